"""Writing a file: metadata, then tensor after tensor, then reading it back."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
from numpy.typing import NDArray
from torch import nn

from hybridkit import __version__
from hybridkit.exporting.gguf.architectures import Architecture, architecture_of
from hybridkit.exporting.gguf.readback import verified
from hybridkit.exporting.gguf.tensors import Stored, tensors
from hybridkit.exporting.gguf.vocabulary import add_vocabulary
from hybridkit.exporting.protocol import ExportReport, ExportRequest
from hybridkit.packing.ggml import Floats
from hybridkit.packing.model import PackedModel

_KINDS: Final = {
    int: gguf.GGUFValueType.UINT32,
    float: gguf.GGUFValueType.FLOAT32,
    str: gguf.GGUFValueType.STRING,
}
_FILE_TYPES: Final = {  # llama.h: what most of the weights are
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "BF16": 32,
    "TQ1_0": 36,
    "TQ2_0": 37,
    "Q1_0": 40,
    "Q2_0": 41,
}


def write(
    module: nn.Module,
    packed: PackedModel | None,
    file: Path,
    named: Path,
    request: ExportRequest,
    floats: Floats,
    ternary: str | None,
) -> ExportReport:
    """Write `file`, which will be called `named`, and compare what it holds with the network.

    Raises UsageError for what llama.cpp does not compute, GateError where the file differs from the network.
    """
    architecture = architecture_of(module)
    packed = packed or _unpacked(module)
    found = list(tensors(packed, architecture, floats, ternary))
    _write(file, architecture, found, request)
    verification = None
    if request.validation is not None:
        verification = verified(file, named, found, module, packed, request.validation)
    return ExportReport(
        path=named,
        target="gguf",
        opset=0,
        file_bytes=file.stat().st_size,
        fp32_bytes=sum(4 * math.prod(tensor.shape) for tensor in found),
        bits_per_weight=_bits(found),
        verification=verification,
        cast=_told(found),
    )


def _write(file: Path, architecture: Architecture, found: Sequence[Stored], request: ExportRequest) -> None:
    """One tensor at a time is in memory."""
    writer = gguf.GGUFWriter(file, architecture.name)
    writer.add_type(gguf.GGUFType.MODEL)
    weights = Counter[str]()
    for tensor in found:
        weights[tensor.type] += math.prod(tensor.shape)
    writer.add_file_type(_FILE_TYPES[weights.most_common(1)[0][0]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, fact in architecture.facts.items():
        named = f"{architecture.name}.{key}"
        writer.add_key_value(named, fact, _KINDS[type(fact)])
    writer.add_vocab_size(architecture.vocabulary)
    add_vocabulary(writer, request.assets, architecture.vocabulary)
    writer.add_string("hybridkit.version", __version__)
    for tensor in found:
        # int8 stands for bytes whose shape is the weights' own; gguf 0.19 has no name for 42, and needs none
        kind: Any = tensor.number
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.int8), tensor.nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in found:
        writer.write_tensor_data(tensor.content())
    writer.close()


def _unpacked(module: nn.Module) -> PackedModel:
    """A network as it is: every tensor in full precision."""
    arrays: dict[str, NDArray[Any]] = {}
    tied: dict[str, str] = {}
    names: dict[int, str] = {}
    for key, tensor in module.state_dict().items():
        if tensor.data_ptr() in names:
            tied[key] = names[tensor.data_ptr()]
            continue
        names[tensor.data_ptr()] = key
        arrays[key] = tensor.detach().float().cpu().numpy()
    return PackedModel({}, arrays, tied)


def _bits(found: Sequence[Stored]) -> float | None:
    """Per weight of the quantised layers."""
    layers = [tensor for tensor in found if tensor.block is not None]
    weights = sum(math.prod(tensor.shape) for tensor in layers)
    return 8 * sum(tensor.nbytes for tensor in layers) / weights if weights else None


def _told(found: Sequence[Stored]) -> str:
    kinds = Counter(tensor.type for tensor in found if len(tensor.shape) > 1)
    told = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common())
    return f"Types of matrices: {told}" + ("; scales in fp16" if _bits(found) else "")
