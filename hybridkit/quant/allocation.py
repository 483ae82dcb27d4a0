"""Bits per weight where they matter: a bit width per cluster of layers, within a budget (`--target-bits`).

Layers are clustered by how their error falls with the bits. Then the widths are chosen, one per cluster c
with n_c weights, that

    minimise sum_c n_c e_c(b_c)   subject to   sum_c n_c b_c <= target * sum_c n_c

exactly. e(b) is the relative error of the layer's output, ||(W - Q) D||^2 / ||W D||^2, with D the root mean
square of each input feature where example inputs are given, and 1 otherwise.
"""

from __future__ import annotations

import glob
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybridkit.errors import UsageError
from hybridkit.kmeans import kmeans_labels
from hybridkit.quant.observe import observe
from hybridkit.quant.plan import LayerPlan, QuantizerSpec, make_quantizer, plan_layers

# What a weight may cost, in hundredths of a bit: integers, so that budgets compare exactly.
WIDTHS = (100, 158, 200, 400, 800)


def allocate_bits(
    model: nn.Module,
    target_bits: float,
    k: int = 4,
    seed: int = 0,
    *,
    quantize_all: bool = False,
    ternary: QuantizerSpec = "ternary-mse",
    example_inputs: Sequence[Tensor] | None = None,
) -> dict[str, QuantizerSpec]:
    """A quantizer for each layer that `plan_layers` takes, as `overrides` of `prepare_qat`.

    The mean over all their weights is at most `target_bits`, counting 1 for `binary`, 1.58 for `ternary`,
    2, 4 or 8 for `nbit`. Layers fall into min(k, layers) clusters; those of a cluster get the same.
    `example_inputs`: the model's arguments, best some dozens of samples.

    Raises UsageError for a budget outside [1, 8] and where `plan_layers` does.
    """
    if not 1 <= target_bits <= 8:
        raise UsageError(f"target bits go from 1 to 8 per weight, not {target_bits:g}")
    if k < 1:
        raise UsageError(f"layers fall into at least one cluster, not {k}")
    specs: list[QuantizerSpec] = ["binary", ternary, *({"quantizer": "nbit", "bits": b} for b in (2, 4, 8))]
    plans = plan_layers(model, quantize_all=quantize_all, example_inputs=example_inputs)
    tied: dict[int, list[LayerPlan]] = defaultdict(list)
    for plan in plans:
        if plan.quantizer is not None:
            tied[id(plan.layer.weight)].append(plan)
    groups = list(tied.values())
    importance = _importance(model, [group[0].layer for group in groups], example_inputs)
    weights = [group[0].layer.get_parameter("weight") for group in groups]
    errors = np.array(
        [_errors(w, importance.get(g[0].layer), specs) for w, g in zip(weights, groups, strict=True)]
    )
    sizes = np.array([w.numel() for w in weights])
    labels = cluster_layers(errors, k, seed)
    clusters = [
        Cluster(int(sizes[labels == c].sum()), tuple((sizes @ (errors * (labels == c)[:, None])).tolist()))
        for c in range(labels.max() + 1)
    ]
    chosen = choose_widths(clusters, target_bits)
    return {
        glob.escape(plan.name): specs[chosen[label]]
        for group, label in zip(groups, labels, strict=True)
        for plan in group
    }


@dataclass(frozen=True, slots=True)
class Cluster:
    """Layers that get one width. `errors[i]`: their summed error at `WIDTHS[i]`."""

    weights: int
    errors: tuple[float, ...]


def choose_widths(clusters: Sequence[Cluster], target_bits: float) -> list[int]:
    """For each cluster an index into WIDTHS: the least total error within the budget, exactly.

    Dynamic programming over the clusters that keeps, of all partial choices, those that no other one beats
    in both cost and error.
    """
    total = sum(cluster.weights for cluster in clusters)
    budget = math.floor(target_bits * 100 * total * (1 + 1e-12))
    reserve = WIDTHS[0] * total  # the least that the clusters still to come can cost
    costs, errors = np.zeros(1, np.int64), np.zeros(1)
    history: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for cluster in clusters:
        reserve -= WIDTHS[0] * cluster.weights
        every_cost = (costs[:, None] + np.array(WIDTHS) * cluster.weights).ravel()
        every_error = (errors[:, None] + np.array(cluster.errors)).ravel()
        order = np.lexsort((every_error, every_cost))
        order = order[every_cost[order] + reserve <= budget]
        least = np.minimum.accumulate(every_error[order])
        better = np.concatenate([[True], every_error[order][1:] < least[:-1]])
        kept = order[better]
        costs, errors = every_cost[kept], every_error[kept]
        history.append((kept // len(WIDTHS), kept % len(WIDTHS)))
    state, choice = int(errors.argmin()), []
    for parents, widths in reversed(history):
        choice.append(int(widths[state]))
        state = int(parents[state])
    return choice[::-1]


def cluster_layers(errors: NDArray[np.float64], k: int, seed: int) -> NDArray[np.int64]:
    """Labels 0..min(k, layers)-1 by k-means over the logarithms of each layer's errors [layers, widths]."""
    features = np.log10(errors + 1e-12)
    distinct = len(np.unique(features, axis=0))
    found = kmeans_labels(features, min(k, distinct), seed)
    _, labels = np.unique(found, return_inverse=True)
    return labels.astype(np.int64)


@torch.no_grad()
def _errors(weight: Tensor, importance: Tensor | None, specs: Sequence[QuantizerSpec]) -> list[float]:
    """The relative error of a weight under each quantizer; 0 for a weight of zeros."""
    matrix = weight.detach().flatten(1).float()
    if not torch.isfinite(matrix).all():
        raise UsageError("a layer has weights that are not finite; bits cannot be allocated")
    squares = torch.ones_like(matrix) if importance is None else importance
    size = float((matrix.square() * squares).sum(dtype=torch.float64))
    found = []
    for spec in specs:
        quantizer, _ = make_quantizer(spec)
        if quantizer is None:
            raise UsageError("a ternary quantizer cannot be fp32")
        quantized = quantizer.quantize(matrix, **quantizer.parameters(matrix))
        difference = (matrix - quantized.dequantize()).square() * squares
        found.append(float(difference.sum(dtype=torch.float64)) / size if size else 0.0)
    return found


def _importance(
    model: nn.Module, layers: Sequence[nn.Module], example_inputs: Sequence[Tensor] | None
) -> dict[nn.Module, Tensor]:
    """The mean square of what each weight is multiplied by, [N, K], for layers that ran."""
    if example_inputs is None:
        return {}
    sums: dict[nn.Module, Tensor] = {}
    counts: dict[nn.Module, int] = defaultdict(int)

    def seen(layer: nn.Module, x: Tensor) -> None:
        channel = -1 if isinstance(layer, nn.Linear) else -layer.get_parameter("weight").dim() + 1
        samples = x.float().movedim(channel, -1).flatten(0, -2)
        sums[layer] = sums.get(layer, 0) + samples.square().sum(dim=0)
        counts[layer] += len(samples)

    observe(model, [layer for layer in layers if not isinstance(layer, nn.Embedding)], example_inputs, seen)
    return {layer: _per_weight(layer, total / max(counts[layer], 1)) for layer, total in sums.items()}


def _per_weight(layer: nn.Module, squares: Tensor) -> Tensor:
    """`squares` [input channels] laid out like the layer's weight as a matrix [N, K]."""
    weight = layer.get_parameter("weight")
    squares = squares + 1e-6 * squares.mean() + 1e-30
    groups = squares.view(-1, weight.shape[1])  # [1 or groups, channels per group]
    rows = groups.repeat_interleave(weight.shape[0] // len(groups), dim=0)
    return rows.reshape(*rows.shape, *[1] * (weight.dim() - 2)).expand(weight.shape).flatten(1)
