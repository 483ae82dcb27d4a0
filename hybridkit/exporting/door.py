"""The door for other people's ONNX files: what comes in is a graph that the rest of the package trusts.

A file is refused with one line where it is no ONNX model, where it is not valid, where a tensor has other
data than its type and shape say, where it would need more memory than the machine has, where a name holds
control characters, and where it asks for data from outside its folder. Nothing is read or allocated on the
word of a file: sizes are compared with the bytes that are there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
import psutil
from google.protobuf.message import DecodeError, Message
from onnx import ModelProto, TensorProto
from onnx_ir import DataType

from hybridkit.errors import FileError

MOST_NODES: Final = 10_000_000  # after local functions are inlined, which may call each other many times
_LARGEST_FILE: Final = (1 << 31) - 1  # of protobuf; larger models keep their weights in other files
_SMALL: Final = 1024  # bytes of a tensor from whose values shapes may follow
_NO_NAMES: Final = ("doc_string", "producer_name", "producer_version")
_ANOTHER_STORE: Final[dict[int, str]] = {  # types that do not lie in the typed field of their own kind
    TensorProto.FLOAT: "float_data",
    TensorProto.COMPLEX64: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.COMPLEX128: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
    TensorProto.STRING: "string_data",
}  # all others: int32_data


@dataclass(frozen=True, slots=True)
class Admitted:
    """A model that came in.

    data: the files that hold its external tensors, with links resolved. strict: it also passes strict
    inference of shapes, which many files that run do not.
    """

    path: Path
    model: ModelProto
    data: frozenset[Path]
    strict: bool

    @property
    def file_bytes(self) -> int:
        """Of the model and of its data files."""
        return sum(file.stat().st_size for file in (self.path, *self.data))


def admit(path: Path) -> Admitted:
    """The model in a file; locations of external data are absolute in it, and lie where they may.

    Raises FileError, in one line, for every file that is not a valid model.
    """
    model = _parsed(path)
    try:
        data = _check_parts(model, path)
        _check_functions(model)
        strict = _check_graph(model)
    except ValueError as error:
        raise FileError(f"{path} is not a valid ONNX model: {one_line(error)}") from None
    return Admitted(path, model, frozenset(data), strict)


def _parsed(path: Path) -> ModelProto:
    model = ModelProto()
    if not path.is_file():
        raise FileError(f"there is no model file {path}")
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise FileError(f"{path} is not an ONNX model: those above 2 GiB keep their weights apart")
        model.ParseFromString(path.read_bytes())
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from None
    except DecodeError as error:
        raise FileError(f"{path} is not an ONNX model that can be read: {one_line(error)}") from None
    if not model.HasField("graph"):
        raise FileError(f"{path} is not an ONNX model: it has no graph")
    for opset in model.opset_import:  # two names of the same operators
        if opset.domain == "ai.onnx":
            opset.domain = ""
    if all(opset.domain for opset in model.opset_import):
        raise FileError(f"{path} is not an ONNX model: it imports no operators")
    return model


def _check_parts(model: ModelProto, path: Path) -> set[Path]:
    """Every name and every tensor on its own; the data files."""
    data: set[Path] = set()
    for part in _messages(model):
        _check_names(part)
        if isinstance(part, onnx.GraphProto) and part.sparse_initializer:
            raise FileError(f"{path} keeps weights in sparse form, which is not read; store them densely")
        if isinstance(part, TensorProto):
            if part.data_location == TensorProto.EXTERNAL:
                data.add(_check_external(part, path.parent))
            else:
                _check_size(part)
    return data


def _messages(message: Message) -> Iterator[Message]:
    """The message and all that are in it, however deep."""
    waiting = [message]
    while waiting:
        part = waiting.pop()
        yield part
        for field, value in part.ListFields():
            if field.message_type is not None:
                waiting.extend([value] if isinstance(value, Message) else value)


def _check_names(part: Message) -> None:
    """All text but notes can be printed. Entries of external data are of the type of notes; see there."""
    notes = part.DESCRIPTOR.name == "StringStringEntryProto"
    for field, value in part.ListFields():
        if field.type == field.TYPE_STRING:
            for text in [value] if isinstance(value, str | bytes) else value:
                if isinstance(text, bytes):  # protobuf's way to say that it is not
                    raise ValueError(f"the text {text[:40]!a} is not UTF-8")
                if not (notes or field.name in _NO_NAMES or text.isprintable()):
                    raise ValueError(f"the name {text[:40]!a} holds characters that cannot be printed")


def _stored(tensor: TensorProto) -> tuple[DataType, int]:
    """Type and number of elements. Raises ValueError where there are none such."""
    try:
        kind = DataType(tensor.data_type)
    except ValueError:
        kind = DataType.UNDEFINED
    if kind == DataType.UNDEFINED:
        raise ValueError(f"tensor {tensor.name!r} has a type, {tensor.data_type}, that is none")
    if any(size < 0 for size in tensor.dims):
        raise ValueError(f"tensor {tensor.name!r} has a negative size")
    return kind, math.prod(tensor.dims)


def _check_size(tensor: TensorProto) -> None:
    kind, count = _stored(tensor)
    if tensor.HasField("segment"):
        raise ValueError(f"tensor {tensor.name!r} is in segments, which no runtime reads")
    if tensor.HasField("raw_data"):
        if kind == DataType.STRING:
            raise ValueError(f"tensor {tensor.name!r} has strings as raw bytes")
        wanted, found = -(-count * kind.bitwidth // 8), len(tensor.raw_data)
    else:
        held = getattr(tensor, _ANOTHER_STORE.get(tensor.data_type, "int32_data"))
        wanted, found = count, len(held)
        if kind in (DataType.COMPLEX64, DataType.COMPLEX128):
            wanted *= 2
        elif kind != DataType.STRING and kind.bitwidth in (2, 4):
            wanted = -(-count * kind.bitwidth // 8)
    if found != wanted:
        what = "bytes" if tensor.HasField("raw_data") else "values"
        raise ValueError(
            f"tensor {tensor.name!r} of shape {_shape(tensor.dims)} needs {wanted:,} {what} and has {found:,}"
        )


def _check_external(tensor: TensorProto, folder: Path) -> Path:
    """The data file, whose absolute path replaces the location."""
    kind, count = _stored(tensor)
    said = {entry.key: entry for entry in tensor.external_data}
    if "location" not in said or len(said) < len(tensor.external_data) or kind == DataType.STRING:
        raise ValueError(f"tensor {tensor.name!r} lies in another file, and it is not said once in which")
    location = said["location"].value
    file = _inside(location, folder)
    offset, size = _number(said, "offset", 0), file.stat().st_size
    wanted = -(-count * kind.bitwidth // 8)
    length = _number(said, "length", wanted)
    if length != wanted or offset + length > size:
        raise ValueError(
            f"tensor {tensor.name!r} of shape {_shape(tensor.dims)} needs {wanted:,} bytes, and its data is "
            f"{length:,} bytes from {offset:,} on of the {size:,} in {location!a}"
        )
    said["location"].value = str(file)
    return file


def _number(said: dict[str, Any], key: str, default: int) -> int:
    text = said[key].value if key in said else str(default)
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError(f"{text[:40]!a} is no {key} of external data")
    return int(text)


def _inside(location: str, folder: Path) -> Path:
    """The file at `location` with links resolved.

    It lies in `folder`, or in the store of blobs of the same model in a Hugging Face cache, whose files in
    `snapshots/<revision>` are links into it.
    """
    shown = ascii(location[:200])
    relative = Path(location)
    if relative.is_absolute() or ".." in relative.parts or not location.isprintable():
        raise ValueError(f"external data at {shown} lies outside the model's folder")
    try:
        file = (folder / relative).resolve()
        there = file.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long, links in a circle
        raise ValueError(f"external data at {shown} cannot be found: {error}") from None
    allowed = [folder.resolve(), *_blobs(folder.absolute())]
    if not any(file.is_relative_to(place) for place in allowed):
        raise ValueError(f"external data at {shown} is a link to outside the model's folder")
    if not there:
        raise ValueError(f"external data at {shown} is missing; it belongs beside the model")
    return file


def _blobs(folder: Path) -> Iterator[Path]:
    for place in (folder, *folder.parents):
        if place.parent.name == "snapshots" and (place.parent.parent / "blobs").is_dir():
            yield (place.parent.parent / "blobs").resolve()


def _check_graph(model: ModelProto) -> bool:
    """onnx's checker and inference of shapes, on a copy without weights; whether the strict one passes."""
    copy = ModelProto()
    copy.CopyFrom(model)
    weights, open_types = _leave_out(copy)
    try:
        onnx.checker.check_model(copy)
        for tensor, dims in weights:
            tensor.dims[:] = dims
        for kind in open_types:
            kind.ClearField("shape")
        inferred, strict = _infer(copy)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, DecodeError) as error:
        raise ValueError(str(error)) from None
    memory = psutil.virtual_memory().total
    for value in inferred.graph.value_info:
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if math.prod(dims) > memory:  # an open dimension has the value 0
            raise ValueError(f"{value.name!r} of shape {_shape(dims)} is more than fits into memory")
    return strict and not open_types


def _infer(model: ModelProto) -> tuple[ModelProto, bool]:
    try:
        how = {"check_type": True, "strict_mode": True, "data_prop": True}
        return onnx.shape_inference.infer_shapes(model, **how), True
    except onnx.shape_inference.InferenceError:
        return onnx.shape_inference.infer_shapes(model, data_prop=True), False


def _leave_out(
    model: ModelProto,
) -> tuple[list[tuple[TensorProto, list[int]]], list[onnx.TypeProto.Tensor]]:
    """Take out the data of all but small tensors (returned with their sizes), and add shapes where types lack
    them (returned): onnx's checker wants them, and nobody else.
    """
    weights, open_types = [], []
    for part in list(_messages(model)):
        if isinstance(part, TensorProto):
            if part.data_location == TensorProto.EXTERNAL or part.ByteSize() > _SMALL:
                weights.append((part, list(part.dims)))
                bare = TensorProto(name=part.name, data_type=part.data_type, dims=[0])
                if part.data_type != TensorProto.STRING:
                    bare.raw_data = b""
                part.CopyFrom(bare)
        elif isinstance(part, onnx.TypeProto.Tensor) and not part.HasField("shape"):
            part.shape.SetInParent()
            open_types.append(part)
    return weights, open_types


def _check_functions(model: ModelProto) -> None:
    """Functions end, and inlining them does not make a graph without end; only they refer to attributes."""
    for part in _messages(model.graph):
        if isinstance(part, onnx.AttributeProto) and part.ref_attr_name:
            raise ValueError(f"the attribute {part.name!r} refers to one of a function, and is in none")
    bodies = {(f.domain, f.name, f.overload): _nodes(f) for f in model.functions}
    sizes: dict[tuple[str, str, str], int] = {}

    def size(key: tuple[str, str, str], open_: tuple[tuple[str, str, str], ...]) -> int:
        if key in open_:
            raise ValueError(f"the function {key[1]!r} calls itself")
        if key not in bodies:
            return 1
        if key not in sizes:
            if len(open_) > 100:
                raise ValueError("functions call each other more than 100 deep")
            sizes[key] = sum(size(_callee(n), (*open_, key)) for n in bodies[key])
        return sizes[key]

    if bodies and sum(size(_callee(n), ()) for n in _nodes(model.graph)) > MOST_NODES:
        raise ValueError(f"its functions come to more than {MOST_NODES:,} nodes")


def _nodes(message: Message) -> list[onnx.NodeProto]:
    return [part for part in _messages(message) if isinstance(part, onnx.NodeProto)]


def _callee(node: onnx.NodeProto) -> tuple[str, str, str]:
    return node.domain, node.op_type, node.overload


def _shape(dims: Any) -> str:
    return "x".join(map(str, dims)) or "one number"


def one_line(error: BaseException) -> str:
    """What went wrong in one line without control characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
