"""Looking at the codes of quantised layers while they train, without changing anything.

A look quantises every layer once, as each forward pass does; that is at most half of a training step. Two
looks around one step in `EVERY` are at most 2 % of a run. Those around a step that an evaluation follows come
on top: the evaluation itself costs more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hybridkit.quant.layers import QATLayer, qat_layers

EVERY = 50  # steps

Codes = dict[str, Tensor]  # int8 [N, K] by layer; one byte per quantised weight, for as long as a step takes


def observable_layers(model: nn.Module) -> dict[str, QATLayer]:
    """The quantised layers whose weights are whole in this process; none where ranks hold shards."""
    layers = qat_layers(model)
    return {} if any(hasattr(layer.weight, "full_tensor") for layer in layers.values()) else layers


def due(step: int, evaluated: bool) -> bool:
    """Whether the codes are looked at before and after `step`."""
    return evaluated or step % EVERY == 0


def codes(layers: Mapping[str, QATLayer]) -> Codes:
    """The codes of each layer."""
    return {name: layer.quantized_weight().codes for name, layer in layers.items()}


@torch.no_grad()
def look(layers: Mapping[str, QATLayer], before: Codes) -> tuple[dict[str, float], dict[str, Any]]:
    """What one step did to the codes: shares of all weights for the step, and lists by layer.

    `before` are the codes before the step. Shares: `codes_changed` of the weights have another code,
    `codes_zero` the code 0. Lists: `layers` (names), `layer_changed`, `layer_zeros`, and `layer_error`, the
    squared relative error ||packed - latent||^2 / ||latent||^2.
    """
    sizes, changed, zeros, errors = [], [], [], []
    for name, layer in layers.items():
        now, latent = layer.quantized_weight(), layer.weight_matrix()
        sizes.append(latent.numel())
        changed.append((now.codes != before[name]).sum())
        zeros.append((now.codes == 0).sum())
        errors.append((now.dequantize() - latent).square().sum() / latent.square().sum())
    counts = torch.stack([torch.stack(changed), torch.stack(zeros)]).tolist()  # one transfer from a GPU
    total, (moved, empty) = sum(sizes), counts
    by_layer = {
        "layers": list(layers),
        "layer_changed": [n / size for n, size in zip(moved, sizes, strict=True)],
        "layer_zeros": [n / size for n, size in zip(empty, sizes, strict=True)],
        "layer_error": torch.stack(errors).tolist(),
    }
    return {"codes_changed": sum(moved) / total, "codes_zero": sum(empty) / total}, by_layer
