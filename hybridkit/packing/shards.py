"""Models in several files, with an index beside them that says which tensor lies in which.

The index is the one that safetensors checkpoints have: `{"metadata": ..., "weight_map": {tensor: file}}`. Of
a packed model each file is a packed file itself; the index's metadata hold the hash of each file's header.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from hybridkit.errors import FileError
from hybridkit.packing.container import MAX_HEADER, parse_json
from hybridkit.packing.table import FORMAT, SUFFIX, VERSION, Table

INDEX_SUFFIX: Final = ".index.json"


def index_path(path: Path) -> Path:
    """The index of a model that is called `path`."""
    return path if path.name.endswith(INDEX_SUFFIX) else path.with_name(path.name + INDEX_SUFFIX)


def split(table: Table, path: Path, limit: int) -> dict[Path, Table]:
    """A table for each file: one for `path` itself, unless its content needs more than `limit` bytes.

    A layer and a tensor stay whole; ties and metadata are in the first file.
    """
    pieces = [(layer.tensor_specs(), Table([layer])) for layer in table.layers]
    pieces += [({name: spec}, Table([], {name: spec})) for name, spec in table.tensors.items()]
    parts, room = [Table([])], limit
    for specs, piece in pieces:
        need = sum(spec.nbytes for spec in specs.values())
        if need > room and room < limit:
            parts.append(Table([]))
            room = limit
        room -= need
        last = parts[-1]
        parts[-1] = Table([*last.layers, *piece.layers], {**last.tensors, **piece.tensors})
    parts[0] = replace(parts[0], tied=table.tied, metadata=table.metadata)
    if len(parts) == 1:
        return {path: parts[0]}
    stem = path.name.removesuffix(SUFFIX).removesuffix(".safetensors")
    names = (f"{stem}-{i:05}-of-{len(parts):05}{SUFFIX}" for i in range(1, len(parts) + 1))
    return {path.with_name(name): part for name, part in zip(names, parts, strict=True)}


def join(parts: Mapping[str, Table]) -> Table:
    """The inverse of `split`."""
    first = next(iter(parts.values()))
    layers = [layer for part in parts.values() for layer in part.layers]
    tensors = {name: spec for part in parts.values() for name, spec in part.tensors.items()}
    return Table(layers, tensors, first.tied, first.metadata)


def index_text(parts: Mapping[str, Table], identities: Mapping[str, str]) -> str:
    """The index of a packed model, from the table and the header's hash of each file."""
    about = {"format": FORMAT, "version": VERSION, "files": dict(identities)}
    weights = {name: file for file, part in parts.items() for name in part.placed()}
    return json.dumps({"metadata": about, "weight_map": weights}, indent=1) + "\n"


def read_index(path: Path) -> dict[str, Any]:
    """An index as JSON. Raises FileError for what is none, OSError where it cannot be read."""
    with path.open("rb") as file:
        text = file.read(MAX_HEADER + 1)
    if len(text) > MAX_HEADER:
        raise FileError("it is larger than any index")
    found = parse_json(text, "index")
    weights = found.get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights.values()):
        raise FileError("it has no table weight_map of tensors and their files")
    return found


def beside(index: Path, name: str) -> Path:
    """The file `name` of an index, which lies in its folder and nowhere else.

    A link may lead within a model of a hub cache, from `snapshots/COMMIT/` to `blobs/`. Raises FileError.
    """
    if not name or name != os.path.basename(name) or name in (".", "..") or "\\" in name or "\0" in name:
        raise FileError(f"it names the file {name!r:.80}, which is not one of its folder")
    folder = index.parent.resolve()
    found = (folder / name).resolve()
    allowed = [folder]
    if folder.parent.name == "snapshots":
        allowed.append(folder.parent.parent / "blobs")
    if found.parent not in allowed:
        raise FileError(f"its file {name!r:.80} is a link that leads out of its folder")
    return found
