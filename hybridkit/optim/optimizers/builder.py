"""What builds a base optimizer, and the parameter groups that all of them start from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

NamedParameters = Sequence[tuple[str, Tensor]]


class OptimizerBuilder(Protocol):
    """Builds a `torch.optim.Optimizer` for the parameters of a model.

    A strategy of the kind `optimizer` is a class with this method (and, as all strategies, `Options`), or
    simply any `torch.optim.Optimizer` class. A `build` with one more keyword, `roles`, is given the role of
    each parameter by name (`hybridkit.optim.roles`); its default has to be None.
    """

    def build(
        self, named_parameters: NamedParameters, *, lr: float, weight_decay: float, momentum: float
    ) -> Optimizer:
        """The optimizer. `momentum` is SGD's momentum or Adam's beta1."""
        ...


def decay_groups(named_parameters: Iterable[tuple[str, Tensor]], weight_decay: float) -> list[dict[str, Any]]:
    """At most two parameter groups: matrices with weight decay, and vectors without.

    Vectors (fewer than two dimensions: biases, norm weights, learned quantizer steps) have no scale to
    spare; pulling them to zero changes the function that the network can express.
    """
    parameters = [p for _, p in named_parameters]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]


def fusable(named_parameters: Iterable[tuple[str, Tensor]]) -> bool:
    """Whether torch has a fused kernel for these parameters, several times faster on small models."""
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for _, p in named_parameters)
