"""Prodigy as a base optimizer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import prodigyopt
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from hybridkit.options import option


class Prodigy:
    """`prodigyopt.Prodigy`: Adam with an estimated step size (Mishchenko, Defazio 2023, arXiv 2306.06101).

    The learning rate only scales the estimate; 1 is the authors' recommendation for every network.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """Options of `prodigy`."""

        beta2: Annotated[float, Ge(0.0), Lt(1.0)] = option(0.999, "decay of the squared gradient's average")
        initial_distance: Annotated[float, Gt(0.0)] = option(
            1e-6, "first estimate of the distance to the solution (d0)"
        )
        distance_factor: Annotated[float, Gt(0.0)] = option(1.0, "scales the estimated distance (d_coef)")
        growth_rate: Annotated[float, Gt(1.0)] = option(
            float("inf"), "largest growth of the estimate per step"
        )
        bias_correction: bool = option(True, "Adam's bias correction, which also warms the step size up")
        safeguard_warmup: bool = option(False, "keep a warm-up of the learning rate out of the estimate")

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def build(
        self,
        named_parameters: Sequence[tuple[str, Tensor]],
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
    ) -> torch.optim.Optimizer:
        """The optimizer; `momentum` is beta1. Vectors (biases, norm weights) are not decayed."""
        matrices = [p for _, p in named_parameters if p.ndim >= 2]
        vectors = [p for _, p in named_parameters if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        with contextlib.redirect_stdout(sys.stderr):  # prodigyopt prints; stdout belongs to the command
            return prodigyopt.Prodigy(
                [group for group in groups if group["params"]],
                lr=lr,
                betas=(momentum, self.options.beta2),
                d0=self.options.initial_distance,
                d_coef=self.options.distance_factor,
                growth_rate=self.options.growth_rate,
                use_bias_correction=self.options.bias_correction,
                safeguard_warmup=self.options.safeguard_warmup,
            )
