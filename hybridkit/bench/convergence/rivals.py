"""Base optimizers that nobody needs but the comparison."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Gt
from torch import Tensor

from hybridkit.errors import UsageError
from hybridkit.optim.optimizers.builder import NamedParameters, decay_groups
from hybridkit.options import option


class ScheduleFree:
    """Schedule-free AdamW (Defazio et al. 2024, arXiv 2405.15682), by `schedulefree`; 30 steps of warm-up."""

    def build(
        self, named_parameters: NamedParameters, *, lr: float, weight_decay: float, momentum: float
    ) -> torch.optim.Optimizer:
        """The optimizer; `momentum` is beta1."""
        made: torch.optim.Optimizer = _package("schedulefree").AdamWScheduleFree(
            decay_groups(named_parameters, weight_decay), lr=lr, betas=(momentum, 0.999), warmup_steps=30
        )
        return made


class Prodigy:
    """Prodigy (Mishchenko and Defazio 2023, arXiv 2306.06101), by `prodigyopt`, set as its README says."""

    def build(
        self, named_parameters: NamedParameters, *, lr: float, weight_decay: float, momentum: float
    ) -> torch.optim.Optimizer:
        """The optimizer; `lr` is a factor on the rate that it finds."""
        made: torch.optim.Optimizer = _package("prodigyopt").Prodigy(
            decay_groups(named_parameters, weight_decay),
            lr=lr,
            betas=(momentum, 0.999),
            use_bias_correction=True,
            safeguard_warmup=True,
        )
        return made


class Clipped:
    """AdamW behind a clipped gradient, the usual rivals of a trust region.

    `mode` "global": the whole gradient's norm (Pascanu et al. 2013, arXiv 1211.5063). "adaptive": each row's,
    relative to the row of the weight (AGC, Brock et al. 2021, arXiv 2102.06171).
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """Options of both."""

        mode: str = option("global", "global or adaptive")
        limit: Annotated[float, Gt(0.0)] = option(
            1.0, "largest norm (global), or ratio to the weight's (adaptive)"
        )

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def build(
        self, named_parameters: NamedParameters, *, lr: float, weight_decay: float, momentum: float
    ) -> torch.optim.Optimizer:
        """AdamW that clips at the beginning of each step."""
        parameters = [p for _, p in named_parameters]
        made = torch.optim.AdamW(decay_groups(named_parameters, weight_decay), lr=lr, betas=(momentum, 0.999))
        clip = _clip_adaptively if self.options.mode == "adaptive" else _clip_globally
        limit = self.options.limit
        made.register_step_pre_hook(lambda *_: clip(parameters, limit))
        return made


def _clip_globally(parameters: Iterable[Tensor], limit: float) -> None:
    torch.nn.utils.clip_grad_norm_(parameters, limit)


@torch.no_grad()
def _clip_adaptively(parameters: Iterable[Tensor], limit: float) -> None:
    for p in parameters:
        if p.grad is None:
            continue
        gradient, weight = (t.flatten(1) if t.ndim > 1 else t[None] for t in (p.grad, p))
        most = limit * weight.norm(dim=1, keepdim=True).clamp(min=1e-3)
        gradient.mul_((most / gradient.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1.0))


def _package(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(f"this rival needs {name}: pip install 'hybridkit[bench]'") from None
