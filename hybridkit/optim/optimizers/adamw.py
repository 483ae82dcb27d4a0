"""AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), torch's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt

from hybridkit.optim.optimizers.builder import NamedParameters, decay_groups, fusable
from hybridkit.options import option


class AdamW:
    """`torch.optim.AdamW` with its fused kernel; no weight decay on vectors."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """Options of `adamw`."""

        beta2: Annotated[float, Ge(0.0), Lt(1.0)] = option(0.999, "decay of the squared gradient's average")
        eps: Annotated[float, Gt(0.0)] = option(1e-8, "added to the root of the squared gradient's average")

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def build(
        self, named_parameters: NamedParameters, *, lr: float, weight_decay: float, momentum: float
    ) -> torch.optim.Optimizer:
        """The optimizer; `momentum` is beta1."""
        return torch.optim.AdamW(
            decay_groups(named_parameters, weight_decay),
            lr=lr,
            betas=(momentum, self.options.beta2),
            eps=self.options.eps,
            fused=fusable(named_parameters),
        )
