"""Parameter groups and parameter clusters of a base optimizer."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from hybridkit.errors import HybridkitError, UsageError
from hybridkit.optim.protocol import LRController, Proposal

Group = dict[str, Any]


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """The optimizer's parameters, group by group."""
    return [p for group in optimizer.param_groups for p in group["params"]]


@dataclass(frozen=True, slots=True)
class Apart:
    """Parameters that an optimizer treats otherwise: no weight decay, or their own share of the rate."""

    parameters: Collection[Tensor]
    decayed: bool = True
    lr_factor: float = 1.0


def set_apart(optimizer: Optimizer, apart: Sequence[Apart]) -> None:
    """Give the parameters of each of `apart` groups of their own, beside the ones that they were in."""
    for each in apart:
        chosen = set(each.parameters)
        groups: list[Group] = []
        for group in optimizer.param_groups:
            inside = [p for p in group["params"] if p in chosen]
            outside = [p for p in group["params"] if p not in chosen]
            changed = {**group, "lr": group["lr"] * each.lr_factor, "params": inside}
            if not each.decayed and "weight_decay" in group:
                changed["weight_decay"] = 0.0
            groups += [g for g in ({**group, "params": outside}, changed) if g["params"]]
        optimizer.param_groups[:] = groups


def all_clusters(base: Optimizer, clusters: Mapping[Tensor, int] | None) -> dict[Tensor, int]:
    """The cluster of each of the base optimizer's parameters; 0 for all where `clusters` is None.

    Raises UsageError if one is missing.
    """
    parameters = parameters_of(base)
    if clusters is None:
        return dict.fromkeys(parameters, 0)
    missing = sum(p not in clusters for p in parameters)
    if missing:
        raise UsageError(
            f"parameter_clusters lacks {missing} of the optimizer's {len(parameters)} parameters"
        )
    return {p: int(clusters[p]) for p in parameters}


def relative_step(groups: Sequence[Group]) -> float:
    """How far a step moves the first parameters, over their size: learning rate times the group's `reach`.

    0 where the base optimizer has no such groups.
    """
    return next((float(g["lr"]) * float(g["reach"]) for g in groups if "reach" in g), 0.0)


def split_by_cluster(group: Group, cluster_of: Mapping[Tensor, int]) -> Iterator[Group]:
    """The group once per parameter cluster in it."""
    for cluster in sorted({cluster_of[p] for p in group["params"]}):
        yield {**group, "params": [p for p in group["params"] if cluster_of[p] == cluster]}


def check_proposal(controller: LRController, proposal: Proposal, clusters: int) -> None:
    """Raise HybridkitError unless the controller keeps its bounds; `clusters` is 0 for undivided groups."""
    name = type(controller).__name__
    proposed, radius = proposal.lr_multiplier, proposal.trust_radius
    each = proposed if isinstance(proposed, tuple) else (proposed,)
    low, high = controller.bounds
    if not all(low <= m <= high for m in each) or (radius is not None and not 0 < radius < math.inf):
        raise HybridkitError(f"{name} proposed {proposal}; its bounds are {low} to {high}, radius > 0")
    if isinstance(proposed, tuple) and len(proposed) != clusters:
        raise HybridkitError(f"{name} proposed {len(proposed)} multipliers without that many clusters")


def group_multipliers(
    groups: Sequence[Group], proposal: Proposal, cluster_of: Mapping[Tensor, int]
) -> list[float]:
    """The multiplier of each parameter group."""
    proposed = proposal.lr_multiplier
    if not isinstance(proposed, tuple):
        return [proposed] * len(groups)
    return [proposed[cluster_of[group["params"][0]]] for group in groups]


@contextmanager
def scaled(groups: Sequence[Group], multipliers: Sequence[float]) -> Iterator[None]:
    """Scale each group's learning rate, and put the very same object back afterwards."""
    rates = [group["lr"] for group in groups]
    try:
        for group, multiplier in zip(groups, multipliers, strict=True):
            if multiplier != 1.0:
                group["lr"] = group["lr"] * multiplier
        yield
    finally:
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
