"""Which files a user's data are: text, tables or images, in which part each belongs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from hybridkit.errors import FileError

Part = Literal["train", "validation", "test"]
Kind = Literal["tables", "images", "text"]
PARTS: Final[tuple[Part, ...]] = ("train", "validation", "test")

TABLES: Final[Mapping[str, str]] = {  # suffix -> builder of `datasets`
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
IMAGES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
_PART_WORDS: Final[Mapping[str, Part]] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_NO_DATA: Final = re.compile(r"(readme|licen[cs]e|copying|notice|metadata)\b.*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class DataFiles:
    """Files of one kind, in a fixed order, by part; `train` is always there."""

    root: Path
    kind: Kind
    parts: Mapping[Part, tuple[Path, ...]]

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return tuple(path for part in self.parts.values() for path in part)

    def names(self) -> list[str]:
        """Their names relative to the root, where they are in a folder."""
        return [
            path.relative_to(self.root).as_posix() if path != self.root else path.name for path in self.files
        ]


def find_files(where: str, kinds: Collection[Kind], suffixes: Collection[str] = ()) -> DataFiles:
    """The data that lie at `where`, a folder or a file, of one of `kinds`.

    A folder is of the kind that most of its files are of; hidden and empty ones, a README and a licence do
    not count.
    suffixes: those of text files; a file named by itself is text whatever its suffix, if it is nothing else.
    Files or folders called train, validation (valid, val, dev) and test are those parts, if there is one for
    training; else all are for training. Raises FileError where there is nothing.
    """
    root = Path(where).expanduser()
    if root.is_file():
        if not root.stat().st_size:
            raise FileError(f"{root} is empty")
        alone = _kind(root, kinds, suffixes) or ("text" if "text" in kinds else None)
        if alone is None:
            raise FileError(f"{root}: expected {_wanted(kinds, suffixes)}")
        return DataFiles(root, alone, {"train": (root,)})
    if not root.is_dir():
        raise FileError(f"{root} does not exist; --data-dir wants {_wanted(kinds, suffixes)}")
    found: dict[Kind, list[Path]] = {}
    for path in root.rglob("*"):
        of_kind = _kind(path, kinds, suffixes)
        if of_kind and not _hidden(path.relative_to(root)) and path.is_file() and path.stat().st_size:
            found.setdefault(of_kind, []).append(path)
    if not found:
        raise FileError(f"{root} holds no data that this task reads: {_wanted(kinds, suffixes)}")
    # a table with a README beside it is a table, a source tree with some JSON in it is text
    counts = {kind: sum(not _NO_DATA.fullmatch(path.name) for path in paths) for kind, paths in found.items()}
    kind = max(found, key=lambda kind: (counts[kind], kind == "tables"))
    paths = sorted(found[kind], key=lambda path: path.relative_to(root).as_posix())
    if kind == "tables":
        paths = _of_one_builder([path for path in paths if not _NO_DATA.fullmatch(path.name)] or paths)
    return DataFiles(root, kind, _by_part(root, paths, whole_words=kind != "tables"))


def part_of(name: str) -> Part | None:
    """The part that a split, file or folder is by its name: `train-00001`, `dev`, `stsb_test`."""
    words = re.split(r"[-_. ]", name.lower())
    return next((_PART_WORDS[word] for word in words if word in _PART_WORDS), None)


def builder_of(files: Iterable[Path]) -> str:
    """The builder of `datasets` that reads these tables."""
    return TABLES[next(iter(files)).suffix.lower()]


def _by_part(root: Path, paths: list[Path], *, whole_words: bool) -> dict[Part, tuple[Path, ...]]:
    """Paths by what the first folder, or else the file, is called; `whole_words`: exactly so."""
    parts: dict[Part, list[Path]] = {}
    for path in paths:
        first, *others = path.relative_to(root).parts
        exact = _PART_WORDS.get((first if others else path.stem).lower())
        part = exact or (None if whole_words else part_of(path.stem))
        if part:
            parts.setdefault(part, []).append(path)
    if "train" not in parts:
        return {"train": tuple(paths)}
    return {part: tuple(parts[part]) for part in PARTS if part in parts}


def _of_one_builder(paths: list[Path]) -> list[Path]:
    """The tables of the format that most have."""
    builder = Counter(TABLES[path.suffix.lower()] for path in paths).most_common(1)[0][0]
    return [path for path in paths if TABLES[path.suffix.lower()] == builder]


def _kind(path: Path, kinds: Collection[Kind], suffixes: Collection[str]) -> Kind | None:
    suffix = path.suffix.lower()
    if "text" in kinds and suffix in suffixes:
        return "text"
    if "tables" in kinds and suffix in TABLES:
        return "tables"
    return "images" if "images" in kinds and suffix in IMAGES else None


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _wanted(kinds: Collection[Kind], suffixes: Collection[str]) -> str:
    words = []
    if "text" in kinds:
        words.append(f"text ({' '.join(suffixes)})")
    if "images" in kinds:
        words.append("images in one folder per class")
    if "tables" in kinds:
        words.append("JSON Lines, CSV or Parquet files")
    return ", ".join(words)
