"""Muon for hidden matrices, AdamW for everything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Lt

from hybridkit.errors import UsageError
from hybridkit.optim.optimizers.adamw import AdamW
from hybridkit.optim.optimizers.builder import NamedParameters
from hybridkit.optim.optimizers.composite import Composite
from hybridkit.optim.roles import Role, RoleNames, Roles
from hybridkit.options import option


class Muon:
    """Steepest descent in the spectral norm (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    Hidden matrices go to `torch.optim.Muon`, with the step scaled to AdamW's usual size (Liu et al. 2025,
    arXiv 2502.16982), so that one learning rate serves both. AdamW takes the rest: vectors, convolutions
    (torch's Muon is for two dimensions only), embeddings and the output layer.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options(RoleNames):
        """Options of `muon`."""

        momentum: Annotated[float, Ge(0.0), Lt(1.0)] = option(0.95, "Muon's momentum (Nesterov)")
        newton_schulz_steps: Annotated[int, Ge(1), Lt(100)] = option(5, "iterations of the orthogonalisation")

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def build(
        self,
        named_parameters: NamedParameters,
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
        roles: Roles | None = None,
    ) -> torch.optim.Optimizer:
        """The composite; `momentum` is AdamW's beta1 (Muon's own is an option)."""
        hidden = self.hidden_matrices(named_parameters, roles)
        if not hidden:
            raise UsageError("muon finds no hidden matrix in this model; take adamw, or set hidden_names")
        rest = [(n, p) for n, p in named_parameters if n not in hidden]
        parts: dict[str, torch.optim.Optimizer] = {
            "muon": torch.optim.Muon(
                [p for n, p in named_parameters if n in hidden],
                lr=lr,
                weight_decay=weight_decay,
                momentum=self.options.momentum,
                ns_steps=self.options.newton_schulz_steps,
                adjust_lr_fn="match_rms_adamw",
            )
        }
        if rest:
            parts["adamw"] = AdamW().build(rest, lr=lr, weight_decay=weight_decay, momentum=momentum)
        return Composite(parts)

    def hidden_matrices(self, named_parameters: NamedParameters, roles: Roles | None) -> set[str]:
        """The names of the parameters that Muon updates."""
        known = self.options.known(named_parameters, roles)
        return {name for name, p in named_parameters if p.ndim == 2 and known[name] == Role.HIDDEN}
