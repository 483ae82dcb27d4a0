"""A written file as a network again: its bytes are read and decoded, and it runs beside the packed one."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybridkit.exporting import verify
from hybridkit.exporting.gguf.tensors import Stored
from hybridkit.exporting.protocol import Validation, Verification
from hybridkit.packing.ggml import from_blocks
from hybridkit.packing.model import PackedModel
from hybridkit.runtime.modules import PackedEmbedding

Weight = tuple[str, NDArray[np.float32]]  # by its name in the state dictionary

ALIGNMENT: Final = 32  # of each tensor in the file


def verified(
    file: Path,
    named: Path,
    tensors: Sequence[Stored],
    module: nn.Module,
    packed: PackedModel,
    validation: Validation,
) -> Verification:
    """The network with the file's weights against the one with ours, both with float activations.

    llama.cpp quantises activations in blocks, finer than a scale per token. named: what the file will be
    called. Raises GateError where the loss is another one by 1 %.
    """
    read = _running(module, packed, weights(file, tensors))
    ours = _running(module, packed, _ours(packed))
    found = verify.compare_networks(read, ours, validation)
    verify.check_gate(found, "approximate", named)
    return found


def _ours(packed: PackedModel) -> Iterator[Weight]:
    for layer in packed.layers.values():
        yield layer.weight_name, layer.dequantize()
    for name, array in packed.tensors.items():
        yield name, array.astype(np.float32)


def _running(module: nn.Module, packed: PackedModel, found: Iterable[Weight]) -> nn.Module:
    """A copy of `module` with plain layers in place of packed ones, and these weights."""
    state = {name: torch.from_numpy(array) for name, array in found}
    layers = {name: state.pop(layer.weight_name) for name, layer in packed.layers.items()}
    layers |= {
        alias.removesuffix(".weight"): layers[name.removesuffix(".weight")]
        for alias, name in packed.tied.items()
        if name.removesuffix(".weight") in layers
    }
    plain = {id(part): _plain(part, layers[name]) for name, part in module.named_modules() if name in layers}
    copied: nn.Module = copy.deepcopy(module, plain)
    copied.load_state_dict(state, strict=False)
    return copied.requires_grad_(False).eval()


def _plain(layer: nn.Module, weight: Tensor) -> nn.Module:
    if isinstance(layer, nn.Embedding | PackedEmbedding):
        return nn.Embedding(weight.shape[0], weight.shape[1], _weight=weight)
    bias = getattr(layer, "bias", None)
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().float())
    return made


def weights(file: Path, tensors: Sequence[Stored]) -> Iterator[Weight]:
    """Each tensor of a file as the network has it; they are the end of the file, in this order."""
    sizes = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors]
    content: NDArray[Any] = np.memmap(file, np.uint8, "r")
    start = len(content) - sum(sizes)
    for tensor, size in zip(tensors, sizes, strict=True):
        array = _decoded(tensor, content[start : start + tensor.nbytes])
        if tensor.order is not None:
            array = array[np.argsort(tensor.order)]
        yield tensor.key, array
        start += size


def _decoded(tensor: Stored, content: NDArray[np.uint8]) -> NDArray[np.float32]:
    if tensor.block is not None:
        return from_blocks(tensor.block, content.reshape(tensor.shape[0], -1))
    if tensor.type == "BF16":
        wide = content.view(np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).reshape(tensor.shape)
    kind = np.float16 if tensor.type == "F16" else np.float32
    return content.view(kind).astype(np.float32).reshape(tensor.shape)
