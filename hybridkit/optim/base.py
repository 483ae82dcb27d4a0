"""The base optimizer by name: a registered builder of it, or any torch.optim.Optimizer class or factory."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from hybridkit.errors import UsageError
from hybridkit.optim.groups import Apart, set_apart
from hybridkit.optim.optimizers.builder import NamedParameters, OptimizerBuilder, decay_groups
from hybridkit.optim.roles import RoleNames, parameter_roles, roles_by_shape
from hybridkit.options import construct
from hybridkit.registry import registry


def build_base_optimizer(
    name: str,
    model: nn.Module | Iterable[tuple[str, Tensor]],
    *,
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    options: Mapping[str, Any] | None = None,
    roles: Mapping[str, str] | None = None,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    apart: Sequence[Apart] = (),
) -> Optimizer:
    """An optimizer over all parameters that require a gradient.

    Matrices get `weight_decay`, vectors (biases, norm weights, quantizer steps) none.

    Args:
        name: a registered optimizer (`adamw`, `muon`, `sgd`, a plugin's) or `package.module:attribute` of a
            `torch.optim.Optimizer` class or of a function with the same arguments.
        model: what to train. Named parameters alone (`model.named_parameters()`) say little about roles.
        lr: learning rate.
        weight_decay: passed on if the optimizer knows weight decay.
        momentum: SGD's momentum or Adam's beta1, passed on if the optimizer has either.
        options: the optimizer's own options.
        roles: what parameters are for, by name, where `parameter_roles` would not find it.
        example_inputs: arguments of the model, in order or by name, from which `parameter_roles` learns more.
        apart: parameters with another weight decay or learning rate.

    Raises:
        UsageError: if nothing is to be trained, the name is unknown or an option does not exist.
    """
    named = list(model.named_parameters() if isinstance(model, nn.Module) else model)
    trainable = [(n, p) for n, p in named if p.requires_grad]
    if not trainable:
        raise UsageError("the model has no parameter that requires a gradient; there is nothing to train")
    loaded = registry().load("optimizer", name)
    if hasattr(loaded, "build"):
        builder: OptimizerBuilder = construct(loaded, options or {}, where="optimizer")
        settings: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        if "roles" in inspect.signature(builder.build).parameters:
            names = getattr(builder, "options", None)
            given = {**(names.chosen(named) if isinstance(names, RoleNames) else {}), **(roles or {})}
            settings["roles"] = (
                parameter_roles(model, example_inputs, given)
                if isinstance(model, nn.Module)
                else roles_by_shape(named, given)
            )
        made = builder.build(trainable, **settings)
    else:
        made = _build_plain(loaded, trainable, lr, weight_decay, momentum, options or {}, name)
    set_apart(made, apart)
    return made


def _build_plain(
    factory: Callable[..., Optimizer],
    trainable: NamedParameters,
    lr: float,
    weight_decay: float,
    momentum: float,
    options: Mapping[str, Any],
    name: str,
) -> Optimizer:
    """Call an optimizer class with what its signature knows of our settings."""
    if not callable(factory):
        raise UsageError(f"optimizer {name!r} is neither a builder nor a torch.optim.Optimizer class")
    known = inspect.signature(factory).parameters
    groups = decay_groups(trainable, weight_decay)
    if "weight_decay" not in known:
        groups = [{"params": [p for _, p in trainable]}]
    settings: dict[str, Any] = {"lr": lr}
    if "momentum" in known:
        settings["momentum"] = momentum
    elif "betas" in known and isinstance(known["betas"].default, tuple):
        settings["betas"] = (momentum, *known["betas"].default[1:])
    built = construct(functools.partial(factory, groups), {**settings, **options}, where="optimizer")
    if not isinstance(built, Optimizer):
        raise UsageError(f"optimizer {name!r} made a {type(built).__name__}, not a torch.optim.Optimizer")
    return built
