"""How much of the weights a quantizer would lose."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hybridkit.registry import registry


def quantizer_for(bits: float, scale: float = 1.0) -> Any:
    """The standard quantizer of so many bits per weight: 1, 1.58 (ternary), 2, 4 or 8.

    `scale` multiplies the ternary quantizer's scale and has no meaning for the others.
    """
    if bits == 1.58:
        return registry().create("quantizer", "hybridkit:ternary-absmean", {"scale_multiplier": scale})
    if bits == 1:
        return registry().create("quantizer", "hybridkit:binary")
    return registry().create("quantizer", "hybridkit:nbit", {"bits": int(bits)})


def quantization_error(parameters: Iterable[Tensor], quantizer: Any) -> float:
    """||W - Q(W)|| / ||W|| over all matrices together (Frobenius), 0 where there is no weight to lose.

    Kernels count as matrices [out, in * kernel]. Vectors are not quantised and do not count, unless there is
    nothing else: then each is one row.
    """
    every = [p.detach().float() for p in parameters if p.numel()]
    matrices = [p.flatten(1) for p in every if p.ndim >= 2] or [p.reshape(1, -1) for p in every]
    lost = kept = 0.0
    for weight in matrices:
        learned = quantizer.parameters(weight)
        with torch.no_grad():
            difference = weight - quantizer.quantize(weight, **learned).dequantize()
        lost += difference.double().square().sum().item()
        kept += weight.double().square().sum().item()
    return (lost / kept) ** 0.5 if kept > 0 else 0.0
