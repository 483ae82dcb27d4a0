"""What belongs to a pretrained network beside its weights, and travels with everything that is made of it.

A folder `assets/` in a run, NAME.assets/ beside a packed model or an exported file: the configuration, the
tokenizer with its chat template, the image processor, the model's card and licence, as transformers reads
them, and RECORD, which says where they came from. There are no weights in it.
"""

from __future__ import annotations

import glob
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hybridkit.errors import FileError
from hybridkit.packing.atomic import folder_in_place, remove, writing
from hybridkit.packing.container import compact_json
from hybridkit.packing.table import SUFFIX
from hybridkit.pretrained.examples import inner_model
from hybridkit.pretrained.weights import NO_WEIGHTS

if TYPE_CHECKING:
    from torch import nn

    from hybridkit.pretrained import Pretrained

RECORD: Final = NO_WEIGHTS
FORMAT: Final = "hybridkit-assets"
_WANTED: Final = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.*", "additional_chat_templates/*.jinja", "*processor_config.json"),
    *(
        "modules.json",
        "[0-9]*_*/config.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
    ),
    *("README*", "LICEN[CS]E*", "NOTICE*"),
)
# The tokenizer of a folder without a tokenizer.json, which says all of it.
_SLOW: Final = (
    "tokenizer.model",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
    "*.tiktoken",
)


@dataclass(frozen=True, slots=True)
class Assets:
    """The files by name, content or place, and where they came from: JSON values `from`, `revision`."""

    files: Mapping[str, bytes | Path]
    origin: Mapping[str, str]
    folder: Path | None = None  # where they lie, if they lie in one place

    @property
    def about(self) -> dict[str, str]:
        """What a product records of them: `sha256` of the list of files and their hashes, and the origin."""
        return {"sha256": _digest(_hashes(self.files)), **self.origin}

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none of this name."""
        return _read(self.files[name]) if name in self.files else None

    def save(self, folder: Path) -> None:
        """Write them to `folder`, which they replace as a whole. Raises FileError."""
        with self.staged(folder):
            pass

    @contextmanager
    def staged(self, folder: Path) -> Iterator[None]:
        """They are written before the context, and take the place of `folder` if it ends without error."""
        with folder_in_place(folder) as new:
            with writing(folder):
                self.write(new)
            yield

    def write(self, folder: Path) -> None:
        """Write them into a folder that is there, beside what it holds, and the record."""
        self.write_files(folder)
        record = {"format": FORMAT, "version": 1, **self.origin, "files": _hashes(self.files)}
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def write_files(self, folder: Path) -> None:
        """Write them alone."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(_read(content))


def assets_of(found: Pretrained, network: nn.Module) -> Assets:
    """The assets of `network`, which is made of `found`: its own configuration, the folder's other files."""
    inner = inner_model(network)
    config = (inner.config if inner is not None else found.config).to_diff_dict()
    for name in ("quantization_config", "_name_or_path", "transformers_weights"):
        config.pop(name, None)
    if inner is not None and not inner.is_custom_code():
        config["architectures"] = [type(inner).__name__]
    files: dict[str, bytes | Path] = {"config.json": json.dumps(config, indent=2, default=str).encode()}
    slow = () if (found.folder / "tokenizer.json").is_file() else _SLOW
    wanted = (*_WANTED, *slow, *(("*.py",) if found.trust_remote_code else ()))
    for path in (path for pattern in wanted for path in sorted(found.folder.glob(pattern))):
        if path.is_file():  # a hub's cache has links into its store
            files[path.relative_to(found.folder).as_posix()] = path
    if found.gguf is not None:
        files |= _tokenizer_of(found)
    origin = {"from": found.text} | ({"revision": found.revision} if found.revision else {})
    return Assets(files, origin)


def facts_of(network: nn.Module, assets: Assets | None) -> dict[str, Any]:
    """What whoever runs a file of `network` has to know: `labels` of its classes, how images are prepared.

    labels: names in the order of the outputs, where the configuration has some of its own. image_processor:
    the content of preprocessor_config.json. What there is none of is left out. Raises FileError for a damaged
    file.
    """
    facts: dict[str, Any] = {}
    inner = inner_model(network)
    named = getattr(inner.config, "id2label", None) if inner is not None else None
    if isinstance(named, Mapping) and "For" in type(inner).__name__:
        labels = [str(named[place]) for place in sorted(named)]
        if not all(label.startswith("LABEL_") for label in labels):
            facts["labels"] = labels
    if assets is not None and (content := assets.read("preprocessor_config.json")) is not None:
        try:
            facts["image_processor"] = json.loads(content)
        except (ValueError, RecursionError):
            raise FileError("preprocessor_config.json is not JSON; is it truncated?") from None
    return facts


def assets_in(folder: Path, sha256: str | None = None) -> Assets:
    """Those that were written to `folder`. Raises FileError where they are gone, changed or not `sha256`."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
        hashes, origin = record["files"], {k: record[k] for k in ("from", "revision") if k in record}
        if record["format"] != FORMAT or not all(isinstance(v, str) for v in (*origin.values(), *hashes)):
            raise ValueError
        inside = all(not Path(name).is_absolute() and ".." not in Path(name).parts for name in hashes)
        files: dict[str, bytes | Path] = {name: folder / name for name in hashes}
        intact = inside and _hashes(files) == hashes and sha256 in (None, _digest(hashes))
    except OSError as error:
        what = error.strerror or error
        raise FileError(
            f"{folder}, which holds configuration and tokenizer, cannot be read ({what})"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise FileError(f"{folder / RECORD} is damaged") from None
    if not intact:
        raise FileError(f"{folder} has changed since it was written, or belongs to another file")
    return Assets(files, origin, folder)


def beside(product: Path) -> Path:
    """Where the assets of a packed or exported file are: NAME.assets."""
    name = product.name.removesuffix(".index.json")
    stem = name.removesuffix(SUFFIX) if name.endswith(SUFFIX) else Path(name).stem
    return product.with_name(f"{stem}.assets")


@contextmanager
def travelling(assets: Assets | None, product: Path) -> Iterator[dict[str, Any]]:
    """The metadata of a product that is written in this context; once it is, its assets lie beside it.

    Assets of a product that was there before, and had some, go, unless a file beside shares its name, and so
    may share them: m.hk.safetensors and m.onnx have m.assets.
    """
    folder = beside(product)
    if assets is not None:
        with assets.staged(folder):
            yield {"assets": assets.about}
        return
    yield {}
    others = product.parent.glob(f"{glob.escape(folder.stem)}.*")
    if (folder / RECORD).is_file() and not any(other not in (product, folder) for other in others):
        remove(folder)


def size_of(product: Path) -> int:
    """Bytes of the assets beside a product; 0 where there are none."""
    folder = beside(product)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def _tokenizer_of(found: Pretrained) -> dict[str, bytes | Path]:
    with tempfile.TemporaryDirectory() as folder:
        found.tokenizer().save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*")) if path.is_file()}


def _read(content: bytes | Path) -> bytes:
    return content.read_bytes() if isinstance(content, Path) else content


def _hashes(files: Mapping[str, bytes | Path]) -> dict[str, str]:
    return {name: hashlib.sha256(_read(files[name])).hexdigest() for name in sorted(files)}


def _digest(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256(compact_json(dict(sorted(hashes.items()))).encode()).hexdigest()
