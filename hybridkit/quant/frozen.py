"""Codes that stay while scales, norms, biases and low-rank corrections are trained: the cheap mode.

A layer whose codes are frozen holds them as int8 in place of a latent weight, a byte where training held four
and an optimizer's state and gradient beside them. As in QLoRA (arXiv 2305.14314) corrections of low rank
(LoRA, arXiv 2106.09685) make up for what quantising lost; a sum of codes and a correction is not ternary, so
they stay beside the layer, in full precision, in the packed file and where it is exported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from hybridkit.errors import UsageError
from hybridkit.options import nearest
from hybridkit.quant.attachments import ADAPTER, Adapter, add_adapter
from hybridkit.quant.frozen_codes import FrozenCodes
from hybridkit.quant.kinds import kind_of
from hybridkit.quant.layers import QATLayer, qat_layers
from hybridkit.quant.protocol import QuantizedTensor, Quantizer

SCALES, NORMS, BIASES, ADAPTERS, REST = "scales", "norms", "biases", "adapters", "rest"
KINDS: Final = (SCALES, NORMS, BIASES, ADAPTERS, REST)
RANK: Final = 8


_Held = tuple[nn.Parameter, nn.ParameterDict, Quantizer]


@dataclass(frozen=True, slots=True)
class Trainable:
    """What is trained beside frozen codes: some of KINDS, and the rank of adapters, 0 without them."""

    kinds: frozenset[str]
    rank: int = 0


def parse_trainable(text: str) -> Trainable:
    """`scales,norms,adapters:16`, say: scales of frozen codes; norms, and all other vectors that are no bias
    of a layer; biases of layers; adapters of linear layers, of rank 8 unless said; rest: matrices that are
    not quantised, such as embeddings and the head. Raises UsageError for anything else.
    """
    kinds, rank = set(), 0
    for item in text.split(","):
        kind, colon, said = item.strip().partition(":")
        if kind not in KINDS or (colon and kind != ADAPTERS):
            shown = f"{item.strip()!r:.60}"
            raise UsageError(f"{shown} cannot be trained beside frozen codes; {nearest(kind, KINDS)}")
        if kind == ADAPTERS:
            rank = (
                int(said) if said.isascii() and said.isdigit() and len(said) < 6 else (0 if colon else RANK)
            )
            if rank < 1:
                raise UsageError(f"adapters have a rank of 1 or more, not {said!r}; say adapters:8")
        kinds.add(kind)
    return Trainable(frozenset(kinds), rank)


def freeze_codes_(model: nn.Module, trainable: Trainable) -> None:
    """Freeze the codes of every fake-quantised layer, in place, add adapters, and train `trainable` alone.

    At first the network computes what it did at the end of a ramp, to the bit. Tied weights stay tied. Make
    the optimizer afterwards. Raises UsageError where there is no such layer.
    """
    layers = qat_layers(model)
    if not layers:
        raise UsageError("the model has no quantised layer to freeze the codes of; call prepare_qat first")
    held: dict[Tensor, _Held] = {}  # by latent weight
    for layer in layers.values():
        latent = layer.weight
        if latent not in held:
            held[latent] = _held(layer, layer.quantized_weight())
        _hold(layer, held[latent])
        if trainable.rank and layer.kind == "linear" and not hasattr(layer, ADAPTER):
            N, K = layer.oriented_weight().shape
            add_adapter(layer, K, N, trainable.rank).to(latent.device)
    train_only(model, trainable)


def freeze_layer_(layer: QATLayer, quantized: QuantizedTensor) -> None:
    """Give a layer, which shares its weight with no other, these codes and scales in place of its weight."""
    _hold(layer, _held(layer, quantized))


def train_only(model: nn.Module, trainable: Trainable) -> list[nn.Parameter]:
    """Let gradients reach what `trainable` names, and nothing else; what that is."""
    kinds = _kinds(model)
    for parameter in model.parameters():
        parameter.requires_grad_(kinds.get(parameter) in trainable.kinds)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _hold(layer: QATLayer, held: _Held) -> None:
    layer.weight, layer.quantizer_parameters, layer.quantizer = held
    layer.ramp = 1.0


def _held(layer: QATLayer, made: QuantizedTensor) -> _Held:
    """What takes the place of a layer's latent weight."""
    quantizer = layer.quantizer
    codes = made.codes.view(layer.oriented_weight().shape)
    stored = nn.Parameter(codes.t().contiguous() if layer.transposed else codes, requires_grad=False)
    scale = made.scale.flatten()
    parameters = nn.ParameterDict(
        {"scale": nn.Parameter(scale, requires_grad=False), "gain": nn.Parameter(torch.ones_like(scale))}
    )
    if made.offset is not None:
        parameters["offset"] = nn.Parameter(made.offset.flatten(), requires_grad=False)
        parameters["shift"] = nn.Parameter(torch.zeros_like(scale))
    frozen: Any = FrozenCodes(
        quantizer.levels,
        quantizer.bits,
        made.group_size,
        layer.weight_dtype,
        made.offset is not None,
        getattr(quantizer, "codec", None),
    )
    return stored, parameters, frozen


def _kinds(model: nn.Module) -> dict[Tensor, str]:
    """What each parameter that can be trained is; codes and the scales they began with are left out."""
    found: dict[Tensor, str] = {}
    for module in model.modules():
        layer = isinstance(module, QATLayer) or kind_of(module) is not None
        for own, p in module._parameters.items():
            if p is None or not p.is_floating_point():
                continue
            vector = p.numel() <= max(p.shape, default=1)
            kind = ADAPTERS if isinstance(module, Adapter) else NORMS if vector else REST
            found[p] = BIASES if layer and own == "bias" else kind
    for quantized in qat_layers(model).values():
        for name, parameter in quantized.quantizer_parameters.items():
            found.pop(parameter, None)
            if name in ("gain", "shift"):
                found[parameter] = SCALES
    return found
