"""The hybrid optimizer that `--hybrid` runs, for a loop of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from hybridkit.hookspecs import Kind
from hybridkit.optim.base import build_base_optimizer
from hybridkit.optim.groups import Apart
from hybridkit.optim.hybrid import HybridOptimizer
from hybridkit.optim.parameter_clusters import cluster_parameters
from hybridkit.options import describe_options
from hybridkit.registry import registry

Options = Mapping[Kind, Mapping[str, Any]]


def hybrid_optimizer(
    model: nn.Module,
    max_steps: int = 0,
    *,
    lr: float = 1e-3,
    weight_decay: float = 1e-5,
    momentum: float = 0.9,
    optimizer: str | Optimizer = "steepest",
    lr_controller: str | None = "relative-step",
    relative_step: float | None = None,
    constraint: str | None = "l2",
    options: Options | None = None,
    parameter_clusters: int | Mapping[Tensor, int] = 4,
    initial_trust_radius: float = 0.01,
    adapt_radius: bool = True,
    seed: int = 0,
    roles: Mapping[str, str] | None = None,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    measure_updates: bool = False,
    apart: Sequence[Apart] = (),
) -> HybridOptimizer:
    """The optimizer of `hybridkit train --hybrid` over the trainable parameters of `model`.

        optimizer = hybridkit.hybrid_optimizer(model, max_steps=1000)
        ...
        loss.backward()
        optimizer.step()

    Args:
        model: what to train, where it is to be trained, quantised already if it is to be.
        max_steps: length of the run; 0: unknown, then nothing decays.
        lr, weight_decay, momentum: of the base optimizer. `relative-step` makes up for an lr that is up to
            ten times too small or too large for `steepest`.
        optimizer: the base optimizer: a registered name, `package.module:attribute`, or one that was made.
        lr_controller, constraint: likewise by name; None: multiplier 1, no trust region.
        relative_step: what a step changes of a matrix in a run of 300 steps, for controllers that plan it;
            None: theirs.
        options: options of these three, by kind: `{"optimizer": {"reach": 30.0}}`.
        parameter_clusters: how many at most, or the cluster of each parameter.
        initial_trust_radius, adapt_radius, measure_updates: see `HybridOptimizer`.
        seed: of what is random in the clusters and the controller.
        roles: what parameters are for, by name, where `parameter_roles` would not find it.
        example_inputs: arguments of the model, in order or by name, from which `parameter_roles` learns
            more; best given.
        apart: parameters with another weight decay or learning rate, unless the optimizer was made already.

    Raises:
        UsageError: where a name or an option does not exist, or nothing is to be trained.
    """
    given: Options = options or {}
    if relative_step is not None:
        own = {**given.get("lr_controller", {}), "relative_step": relative_step}
        given = {**given, "lr_controller": own}
    if isinstance(optimizer, Optimizer):
        base = optimizer
    else:
        base = build_base_optimizer(
            optimizer,
            model,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            options=given.get("optimizer"),
            roles=roles,
            example_inputs=example_inputs,
            apart=apart,
        )
    if isinstance(parameter_clusters, int):
        trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        parameter_clusters = cluster_parameters(trainable, parameter_clusters, seed)
    return HybridOptimizer(
        base,
        controller=_strategy("lr_controller", lr_controller, given, seed),
        constraint=_strategy("constraint", constraint, given, seed),
        initial_radius=initial_trust_radius,
        adapt_radius=adapt_radius,
        max_steps=max_steps,
        parameter_clusters=parameter_clusters,
        measure_updates=measure_updates,
    )


def _strategy(kind: Kind, name: str | None, options: Options, seed: int) -> Any:
    """The strategy, or None; `seed` is its seed where it has one that was not set."""
    if name is None:
        return None
    known = describe_options(registry().load(kind, name))
    seeded = {"seed": seed} if "seed" in known else {}
    return registry().create(kind, name, {**seeded, **options.get(kind, {})})
