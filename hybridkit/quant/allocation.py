"""Bits per weight where they matter: a quantizer per cluster of layers, within a budget (`--target-bits`).

Layers are clustered by how their error falls with the bits. Each cluster c gets the candidate i with which

    sum_c sum_(layers l of c) n_l e_l(i_c)   is least under   sum_c sum_l bits_l(i_c) <= target * sum_l n_l

exactly. n_l is the number of weights of a layer. e_l(i) is the squared relative error of the layer's output,
||(W - Q) D||^2 / ||W D||^2, with D the root mean square of each input feature where example inputs are given,
and 1 otherwise: a share of the layer's own output energy, so that layers of any scale compare.

No layer gets a larger error than under the best candidate for all layers alike within the budget: a network's
own loss hardly follows the sum of its layers' errors (4-bit groups throughout beat a mixture of a smaller
sum, on SmolLM2), but it does not suffer where no layer is worse.

Bits count as they are stored: 1, 1.58, 2, 4 or 8 for a code, and 32 for the scale of every group. One scale
per row is not counted.
"""

from __future__ import annotations

import glob
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybridkit.calls import Inputs, watch
from hybridkit.errors import UsageError
from hybridkit.kmeans import kmeans_labels
from hybridkit.quant.config import QuantConfig, QuantizerSpec
from hybridkit.quant.kinds import Layer
from hybridkit.quant.knapsack import Row, frontier
from hybridkit.quant.plan import LayerChoice, make_quantizer, plan_layers
from hybridkit.quant.protocol import is_ternary, quantize_weight

GROUPS: Final = (32, 64, 128)
SCALE_BITS: Final = 32
HUNDRED: Final = 100  # costs are hundredths of a bit: integers, so that budgets compare exactly


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a layer may get: hundredths of a bit for a code, and columns that share a scale (0: the row)."""

    spec: QuantizerSpec
    width: int
    group_size: int = 0

    def cost(self, shape: Sequence[int]) -> int:
        """Hundredths of a bit of a whole weight."""
        N, K = shape[0], math.prod(shape[1:])
        scales = N * -(-K // self.group_size) if self.group_size else 0
        return self.width * N * K + HUNDRED * SCALE_BITS * scales


def candidates(ternary: QuantizerSpec = "ternary-mse") -> list[Candidate]:
    """Everything that a layer may get."""
    found = [Candidate("binary", 100), Candidate(ternary, 158)]
    for bits in (2, 4, 8):
        found.append(Candidate({"quantizer": "nbit", "bits": bits}, HUNDRED * bits))
        found += [
            Candidate({"quantizer": "nbit", "bits": bits, "group_size": size}, HUNDRED * bits, size)
            for size in GROUPS
        ]
    return found


def allocate_bits(
    model: nn.Module,
    target_bits: float,
    k: int = 4,
    seed: int = 0,
    *,
    quantize_all: bool = False,
    ternary: QuantizerSpec = "ternary-mse",
    example_inputs: Inputs | None = None,
) -> dict[str, QuantizerSpec]:
    """A quantizer for each layer that `plan_layers` takes, as `layers` of a QuantConfig.

    The mean over all their weights is at most `target_bits`. Layers fall into min(k, layers) clusters; those
    of a cluster get the same. `example_inputs`: the model's arguments, best some dozens of samples.

    Raises UsageError for a budget outside [1, 8] and where `plan_layers` does.
    """
    config = QuantConfig(quantize_all=quantize_all, target_bits=target_bits)
    plans = plan_layers(model, config, example_inputs=example_inputs)
    importance = input_squares(model, plans, example_inputs)
    return allocate(plans, model.get_parameter, target_bits, k, seed, ternary=ternary, importance=importance)


def allocated(model: nn.Module, config: QuantConfig, example_inputs: Inputs | None = None) -> QuantConfig:
    """`config` with a quantizer for each layer in the place of its `target_bits`; its own `layers` win."""
    assert config.target_bits is not None
    chosen = allocate_bits(  # over what is not an embedding or a last Linear, unless quantize_all
        model,
        config.target_bits,
        quantize_all=config.quantize_all,
        ternary=ternary_of(config),
        example_inputs=example_inputs,
    )
    return with_layers(config, chosen)


def with_layers(config: QuantConfig, chosen: Mapping[str, QuantizerSpec]) -> QuantConfig:
    """`config` with these quantizers of layers under its own, and no bits to spend."""
    return replace(config, layers={**chosen, **config.layers}, target_bits=None)


def ternary_of(config: QuantConfig) -> QuantizerSpec:
    """The quantizer of `config` as a candidate. UsageError unless it is ternary."""
    made, name = make_quantizer(config.weights)
    if made is None or not is_ternary(made):
        raise UsageError(
            f"target bits are spent on 1-bit, ternary and n-bit weights; {name!r} is not ternary"
        )
    return config.weights


def allocate(
    plans: Sequence[LayerChoice],
    weight: Callable[[str], Tensor],
    target_bits: float,
    k: int = 4,
    seed: int = 0,
    *,
    ternary: QuantizerSpec = "ternary-mse",
    importance: Mapping[str, Tensor] | None = None,
) -> dict[str, QuantizerSpec]:
    """`allocate_bits` for planned layers whose weights are read, by name, one at a time.

    `importance`: of some layers, by name, the mean square of what each weight [N, K] is multiplied by.
    """
    if k < 1:
        raise UsageError(f"layers fall into at least one cluster, not {k}")
    tied: dict[str, list[Layer]] = defaultdict(list)
    for plan in plans:
        if plan.quantizer is not None:
            tied[plan.layer.weight].append(plan.layer)
    groups, options = list(tied.values()), candidates(ternary)
    errors = np.array(
        [
            _errors(g[0].matrix(weight(g[0].weight)), (importance or {}).get(g[0].name), options)
            for g in groups
        ]
    )
    sizes = np.array([math.prod(group[0].shape) for group in groups])
    costs = np.array([[option.cost(group[0].shape) for option in options] for group in groups])
    budget = math.floor(target_bits * HUNDRED * int(sizes.sum()) * (1 + 1e-12))
    weighted = sizes[:, None] * errors
    uniform = int(np.where(costs.sum(axis=0) <= budget, weighted.sum(axis=0), np.inf).argmin())
    good = errors <= errors[:, [uniform]]
    labels = cluster_layers(errors, k, seed)
    members = [labels == c for c in range(labels.max() + 1)]
    allowed = [np.flatnonzero(good[m].all(axis=0)) for m in members]
    rows = [
        Row(tuple(costs[m][:, i].sum(axis=0).tolist()), tuple(weighted[m][:, i].sum(axis=0).tolist()))
        for m, i in zip(members, allowed, strict=True)
    ]
    found = frontier(rows, budget)
    best = found.within(budget)
    assert best is not None  # what is best for all layers alike is
    chosen = [i[pick] for i, pick in zip(allowed, found.options(best), strict=True)]
    return {
        glob.escape(layer.name): options[chosen[label]].spec
        for group, label in zip(groups, labels, strict=True)
        for layer in group
    }


def cluster_layers(errors: NDArray[np.float64], k: int, seed: int) -> NDArray[np.int64]:
    """Labels 0..min(k, layers)-1 by k-means over the logarithms of the errors [layers, candidates]."""
    features = np.log10(errors + 1e-12)
    distinct = len(np.unique(features, axis=0))
    found = kmeans_labels(features, min(k, distinct), seed)
    _, labels = np.unique(found, return_inverse=True)
    return labels.astype(np.int64)


@torch.no_grad()
def _errors(matrix: Tensor, importance: Tensor | None, options: Sequence[Candidate]) -> list[float]:
    """The relative squared error of a weight [N, K] under each candidate; 0 for a weight of zeros."""
    if not torch.isfinite(matrix).all():
        raise UsageError("a layer has weights that are not finite; bits cannot be allocated")
    squares = torch.ones_like(matrix) if importance is None else importance
    size = float((matrix.square() * squares).sum(dtype=torch.float64))
    found = []
    for option in options:
        quantizer, _ = make_quantizer(option.spec)
        if quantizer is None:
            raise UsageError("a ternary quantizer cannot be fp32")
        difference = (matrix - quantize_weight(quantizer, matrix, None).dequantize()).square() * squares
        found.append(float(difference.sum(dtype=torch.float64)) / size if size else 0.0)
    return found


def input_squares(
    model: nn.Module, plans: Sequence[LayerChoice], example_inputs: Inputs | None
) -> dict[str, Tensor]:
    """The mean square of what each weight is multiplied by, [N, K], for the products that ran, by name."""
    if example_inputs is None:
        return {}
    layers = {
        model.get_submodule(plan.name): plan.layer
        for plan in plans
        if plan.quantizer is not None and plan.layer.kind != "embedding"
    }
    sums: dict[Layer, Tensor] = {}
    counts: dict[Layer, int] = defaultdict(int)

    def seen(module: nn.Module, x: Tensor) -> None:
        layer = layers[module]
        channel = -1 if layer.kind == "linear" else 1 - len(layer.shape)
        samples = x.float().movedim(channel, -1).flatten(0, -2)
        sums[layer] = sums.get(layer, 0) + samples.square().sum(dim=0)
        counts[layer] += len(samples)

    watch(model, example_inputs, layers, seen)
    return {
        layer.name: _per_weight(layer.shape, total / max(counts[layer], 1)) for layer, total in sums.items()
    }


def _per_weight(shape: tuple[int, ...], squares: Tensor) -> Tensor:
    """`squares` [input channels] laid out like a weight of this shape as a matrix [N, K]."""
    squares = squares + 1e-6 * squares.mean() + 1e-30
    groups = squares.view(-1, shape[1])  # [1 or groups, channels per group]
    if len(groups) == 1:
        rows = groups.expand(shape[0], -1)
    else:
        rows = groups.repeat_interleave(shape[0] // len(groups), dim=0)
    return rows.reshape(*rows.shape, *[1] * (len(shape) - 2)).expand(shape).flatten(1)
