"""The tensors of a folder for transformers: as its own network has them, packed where that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from hybridkit.errors import UsageError
from hybridkit.packing.layers import PackedLayer
from hybridkit.packing.model import PackedModel
from hybridkit.pretrained import bitnet
from hybridkit.runtime.modules import (
    PackedConv1d,
    PackedConv2d,
    PackedEmbedding,
    PackedLinear,
    layers_by_module,
)

PACKED: Final = (PackedLinear, PackedConv1d, PackedConv2d, PackedEmbedding)
_TERNARY: Final = (-1, 0, 1)
_ADVICE: Final = "say --unpacked, or quantise with --quantizer ternary-mse --granularity tensor"


@dataclass
class State:
    """What is stored.

    tensors: by name. scales: of the layers whose weight is in the layout of bitnet. plain: other linear ones.
    numbers: how many the network has, tied ones once.
    """

    numbers: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    plain: list[str] = field(default_factory=list)

    @property
    def linear_class(self) -> str:
        """`autobitlinear`, as Microsoft's own files are; with biases, which that one scales, `bitlinear`."""
        biased = any(f"{name}.bias" in self.tensors for name in self.scales)
        return bitnet.DIVIDES if biased else bitnet.MULTIPLIES

    @property
    def bits_per_weight(self) -> float | None:
        """Of packed layers, with their scales; None where there are none."""
        parts = [[self.tensors[name + end] for end in (bitnet.WEIGHT, bitnet.SCALE)] for name in self.scales]
        weights = sum(bitnet.ROWS * codes.numel() for codes, _ in parts)
        return 8 * sum(each.nbytes for part in parts for each in part) / weights if weights else None


def state_of(
    network: nn.Module, packed: PackedModel | None, prefix: str, floats: torch.dtype, *, unpacked: bool
) -> State:
    """The state of a network of transformers, which runs the layers of `packed`, if there are some.

    prefix: of its names in the packed model. floats: type of whatever is not packed. unpacked: nothing is.
    Raises UsageError for what transformers' own network has no place for, and for a layer that bitnet cannot
    hold.
    """
    own = _fresh(network).state_dict(keep_vars=True)
    found = State(sum({id(tensor): tensor.numel() for tensor in own.values()}.values()))
    layers = layers_by_module(packed) if packed is not None else {}
    modules = dict(network.named_modules(remove_duplicate=False))
    holders: dict[int, str] = {}  # a tied weight is stored once
    for name, module in modules.items():
        if not isinstance(module, PACKED):
            if isinstance(module, nn.Linear):
                found.plain.append(name)
            continue
        layer = layers[prefix + name]
        bias = f"{name}.bias"
        if bias in own:
            found.tensors[bias] = getattr(module, "bias").to(floats)  # noqa: B009 - embeddings have none
        if isinstance(module, PackedLinear):
            obstacle = "it shares its weight" if id(layer) in holders else bitnet_obstacle(layer, module)
            if not (unpacked or obstacle):
                codes = torch.from_numpy(layer.unpack())
                found.tensors[name + bitnet.WEIGHT] = bitnet.pack(codes)
                found.scales[name] = float(layer.scale[0])
                continue
            found.plain.append(name)
            if not unpacked and layer.levels == _TERNARY:
                raise UsageError(
                    f"the layer {name!r} cannot be packed for transformers: {obstacle}; {_ADVICE}"
                )
        if id(layer) not in holders:
            holders[id(layer)] = name
            found.tensors[name + bitnet.WEIGHT] = module.weight.to(floats)
    if not unpacked and not found.scales:
        raise UsageError(f"there is no ternary layer that transformers' bitnet could hold; {_ADVICE}")
    _add_rest(found, network, own, floats)
    for name, scale in found.scales.items():
        stored = 1 / scale if found.linear_class == bitnet.DIVIDES else scale
        found.tensors[name + bitnet.SCALE] = torch.tensor([stored]).to(floats)
    return found


def bitnet_obstacle(layer: PackedLayer, module: PackedLinear) -> str:
    """Why bitnet cannot hold a layer; empty where it can."""
    if layer.levels != _TERNARY or layer.group_size or np.any(layer.scale != layer.scale[:1]):
        return "it is not ternary with one scale for the whole weight"
    if layer.activations != "int8":
        return "its activations are floats, those of bitnet int8"
    if module.transposed:
        return "it is stored with its inputs first"
    if layer.matrix_shape[0] % bitnet.ROWS:
        return f"its {layer.matrix_shape[0]} outputs are not a multiple of {bitnet.ROWS}"
    return ""


def _add_rest(found: State, network: nn.Module, own: Mapping[str, Any], floats: torch.dtype) -> None:
    """What is not packed; tied tensors once."""
    layers = [name for name, module in network.named_modules() if isinstance(module, PACKED)]
    inside = {f"{name}.{part}" for name in layers for part in ("codes", "scale", "offset", "bias")}
    seen: set[int] = set()
    for name, tensor in network.state_dict(keep_vars=True).items():
        if name in inside:
            continue
        if name not in own:
            raise UsageError(
                f"transformers' {type(network).__name__} has no place for {name}; export .onnx, or train "
                "without what was added to the network"
            )
        if id(tensor) not in seen:
            seen.add(id(tensor))
            kept = tensor.detach().cpu()
            found.tensors[name] = kept.to(floats) if kept.is_floating_point() else kept


def _fresh(network: Any) -> nn.Module:
    """The network as transformers makes it, without content."""
    with torch.device("meta"):
        made: nn.Module = type(network)(network.config)
    return made
