"""Stochastic gradient descent with momentum, torch's."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hybridkit.optim.optimizers.builder import NamedParameters, decay_groups, fusable
from hybridkit.options import option


class SGD:
    """`torch.optim.SGD`; no weight decay on vectors."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """Options of `sgd`."""

        nesterov: bool = option(False, "look ahead along the momentum (Nesterov)")

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def build(
        self, named_parameters: NamedParameters, *, lr: float, weight_decay: float, momentum: float
    ) -> torch.optim.Optimizer:
        """The optimizer."""
        return torch.optim.SGD(
            decay_groups(named_parameters, weight_decay),
            lr=lr,
            momentum=momentum,
            nesterov=self.options.nesterov,
            fused=fusable(named_parameters),
        )
