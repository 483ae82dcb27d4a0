"""Rows of tables, lines of text files and images of folders, as memory-mapped data sets with known columns.

`datasets` reads and maps them: local files become Arrow files in its cache (HF_DATASETS_CACHE, HF_HOME),
from which rows are taken when they are asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hybridkit.errors import FileError, UsageError
from hybridkit.tasks.datafiles import DataFiles, Part, builder_of, part_of
from hybridkit.tasks.splits import fixed_permutation, stratified_indices

HUB: Final = "hf:"
HELD_OUT: Final = 0.1  # of the training rows, for each part that the data do not bring
CUT_SEED: Final = 17
BLOCK: Final = 4_096  # rows looked at at once
CHUNK: Final = 500  # rows of text read at once

Table = Any  # datasets.Dataset
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Some rows of a table, a map-style data set: each is a dict of its columns.

    places: int64 [samples], the rows of the table. lengths: int64 [samples], how long each text is, where
    samples have one: batches are made of samples of about one length then. labels: [samples], classes or
    scores, that become `label`.
    """

    table: Table
    places: Indices
    lengths: Indices | None = None
    labels: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        try:
            rows: list[dict[str, Any]] = self.table.__getitems__(self.places[list(indices)].tolist())
        except OSError as error:  # an image is opened only now
            raise FileError(f"a sample cannot be read ({' '.join(str(error).split())})") from None
        if self.labels is not None:
            rows = [row | {"label": self.labels[i].item()} for row, i in zip(rows, indices, strict=True)]
        return rows

    def chosen(self, indices: Indices) -> Rows:
        """Those at `indices`, in that order."""
        lengths, labels = (None if x is None else x[indices] for x in (self.lengths, self.labels))
        return Rows(self.table, self.places[indices], lengths, labels)

    @cached_property
    def longest_first(self) -> Rows:
        """The same rows by falling length, so that neighbours need little padding, if they have lengths."""
        return self if self.lengths is None else self.chosen(np.argsort(-self.lengths, kind="stable"))


def open_tables(where: str, subset: str = "", files: DataFiles | None = None) -> dict[Part, Table]:
    """The parts of the data that `where` names; `train` is always there.

    `files`, a data set that `save_to_disk` wrote, or `hf:OWNER/NAME` with its `subset`. Raises FileError for
    what cannot be read or has no training part.
    """
    import datasets

    with _reading(where):
        if files is not None and files.kind == "text":
            loaded = datasets.load_dataset("text", data_files=_named(files), encoding="utf-8")
        elif files is not None and files.kind == "images":
            loaded = datasets.load_dataset("imagefolder", data_files=_named(files), drop_labels=False)
        elif files is not None:
            # one by one: a test part often lacks the labels
            builder, options = builder_of(files.files), _reader_options(files.files[0])
            loaded = {
                part: datasets.load_dataset(builder, data_files=paths, split="train", **options)
                for part, paths in _named(files).items()
            }
        elif is_saved(where):
            loaded = datasets.load_from_disk(str(Path(where).expanduser()))
        else:
            loaded = datasets.load_dataset(where.removeprefix(HUB), subset or None)
    if isinstance(loaded, datasets.Dataset):
        return {"train": loaded}
    parts: dict[Part, Table] = {}
    for name, table in loaded.items():
        part = part_of(str(name))
        if part and part not in parts and len(table):
            parts[part] = table
    if "train" not in parts:
        raise FileError(f"{where} holds no training data; its parts are {', '.join(map(str, loaded))}")
    return parts


def _reader_options(file: Path) -> dict[str, Any]:
    """What keeps memory small while a table is read; as they come readers hold 10,000 rows or all of them."""
    match file.suffix.lower():
        case ".csv" | ".tsv" as suffix:
            return {"sep": "\t" if suffix == ".tsv" else ",", "chunksize": CHUNK}
        case ".parquet":
            from pyarrow.dataset import ParquetFragmentScanOptions

            return {"fragment_scan_options": ParquetFragmentScanOptions(pre_buffer=False)}
        case _:
            return {}


def is_saved(where: str) -> bool:
    """Whether a folder is what `save_to_disk` of `datasets` wrote."""
    folder = Path(where).expanduser()
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def is_named(where: str) -> bool:
    """Whether the text is the name of a data set on a hub."""
    return where.startswith(HUB)


def column(table: Table, asked: str, usual: Sequence[str], option: str, where: str) -> str:
    """The column `asked`, else the first of the `usual` names that is there. Raises FileError for neither."""
    found = _column(table, asked, usual)
    if found is None:
        looked = repr(asked) if asked else f"called {', '.join(usual)}"
        raise FileError(
            f"{where} has no column {looked}; it has {', '.join(table.column_names)}: "
            f"say which with --set task.{option}=NAME"
        )
    return found


def has_column(table: Table, asked: str, usual: Sequence[str]) -> bool:
    """Whether `column` finds one."""
    return _column(table, asked, usual) is not None


def _column(table: Table, asked: str, usual: Sequence[str]) -> str | None:
    return next((name for name in ([asked] if asked else usual) if name in table.column_names), None)


def renamed(table: Table, names: Mapping[str, str]) -> Table:
    """A table of some columns only, under new names: old -> new."""
    kept = table.select_columns(list(names))
    return kept.rename_columns({old: new for old, new in names.items() if old != new})


def text_lengths(table: Table, texts: Sequence[str], where: str) -> Indices:
    """How many characters the texts of each row have together, int64 [rows]; 0 where one is blank.

    Raises FileError where a column does not hold text.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    lengths = []
    for block in _blocks(table, texts):
        counted = []
        for name in texts:
            kind = block.schema.field(name).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise FileError(f"{where}: column {name!r} holds {kind}, not text")
            characters = pc.fill_null(pc.utf8_length(pc.utf8_trim_whitespace(block[name])), 0)
            counted.append(characters.to_numpy().astype(np.int64))
            _check_text(block[name], where)
        lengths.append(np.where(np.min(counted, axis=0) > 0, np.sum(counted, axis=0), 0))
    return np.concatenate(lengths) if lengths else np.zeros(0, np.int64)


def values(table: Table, name: str) -> list[Any]:
    """A whole column of small values."""
    return [value for block in _blocks(table, [name]) for value in block[name].to_pylist()]


def digest(table: Table, places: Indices, names: Sequence[str]) -> str:
    """sha256 of what some columns hold in the rows at `places`."""
    sha = hashlib.sha256()
    for start in range(0, len(places), BLOCK):
        block = table.with_format(None).select_columns(list(names))[places[start : start + BLOCK].tolist()]
        for name in names:
            sha.update(repr((name, block[name])).encode("utf-8", "surrogatepass"))
    return sha.hexdigest()


def with_all_parts(
    parts: Mapping[Part, Rows], cut: Callable[[Rows, int], list[Indices]], where: str
) -> dict[Part, Rows]:
    """`parts` with those that are missing cut out of the training rows by `cut`.

    `cut` shares rows out to so many parts of `HELD_OUT` each, and last the rest. Raises FileError where one
    would hold nothing.
    """
    missing: list[Part] = [part for part in ("validation", "test") if not len(parts.get(part, ()))]
    train = parts["train"]
    made = dict(parts)
    if missing:
        *held_out, rest = cut(train, len(missing))
        made |= {part: train.chosen(chosen) for part, chosen in zip(missing, held_out, strict=True)}
        made["train"] = train.chosen(rest)
    if not all(len(made[part]) for part in ("train", "validation", "test")):
        raise FileError(
            f"{where}: {len(train)} samples are too few for a training, a validation and a test part"
        )
    return made


def cut_at_random(rows: Rows, parts: int) -> list[Indices]:
    """`HELD_OUT` of the rows for each of `parts`, at least one, and the rest; fixed for ever."""
    each = max(1, round(len(rows) * HELD_OUT))
    order = fixed_permutation(len(rows), CUT_SEED)
    return [np.sort(part) for part in np.split(order, [each * (i + 1) for i in range(parts)])]


def cut_by_class(rows: Rows, parts: int) -> list[Indices]:
    """Likewise with every class shared out alike, where that leaves no part empty."""
    if rows.labels is None:
        raise UsageError("rows without labels have no classes")
    shared = stratified_indices(rows.labels, (HELD_OUT,) * parts, CUT_SEED)
    return shared if all(len(part) for part in shared) else cut_at_random(rows, parts)


def _blocks(table: Table, names: Sequence[str]) -> Iterator[Any]:
    """The columns as Arrow tables of `BLOCK` rows. Raises FileError where one is not there."""
    for name in names:
        if name not in table.column_names:
            listed = ", ".join(table.column_names)
            raise FileError(f"a part of the data has no column {name!r}; it has {listed}")
    yield from table.select_columns(list(names)).with_format("arrow").iter(batch_size=BLOCK)


def _check_text(column: Any, where: str) -> None:
    """Raise FileError for a NUL, which text does not hold."""
    import pyarrow.compute as pc

    if pc.any(pc.match_substring(column, "\0")).as_py():
        raise FileError(f"{where} holds what is not text: a NUL character")


def _named(files: DataFiles) -> dict[str, list[str]]:
    return {part: [str(path.resolve()) for path in paths] for part, paths in files.parts.items()}


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    """In this context failures of `datasets` are one line, and its progress bars are for terminals."""
    try:
        import datasets
    except ImportError:
        raise UsageError("reading data needs datasets; pip install 'hybridkit[hf]' brings it") from None
    silent = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    if silent:
        datasets.disable_progress_bars()
    try:
        yield
    except Exception as error:  # datasets raises whatever its readers do
        cause = error.__cause__ or error
        said = re.sub(r"\s+", " ", str(cause)).strip() or type(cause).__name__
        if isinstance(cause, UnicodeDecodeError):
            said = f"it is not text: {said}"
        elif isinstance(cause, datasets.table.CastError):
            said = "its files do not have the same columns"
        raise FileError(f"{where}: the data cannot be read ({said})") from None
    finally:
        if silent:
            datasets.enable_progress_bars()
