"""Which rivals cannot train a setting's network."""

from __future__ import annotations

import dataclasses

from hybridkit.bench.convergence.methods import MUON
from hybridkit.bench.convergence.plan import Plan
from hybridkit.bench.convergence.settings import Setting


def suited(plan: Plan) -> Plan:
    """`plan` without the rivals that its networks do not suit. Raises UsageError for an unknown task."""
    return dataclasses.replace(plan, unsuitable={setting: unsuitable(setting) for setting in plan.settings})


def unsuitable(setting: Setting) -> tuple[str, ...]:
    """Muon where there is no hidden matrix: to torch's Muon a convolution is none."""
    from hybridkit.optim.optimizers.muon import Muon
    from hybridkit.optim.roles import parameter_roles
    from hybridkit.tasks.resolve import make_model, make_task

    model = make_model(make_task(setting.task), setting.model)
    return () if Muon().hidden_matrices(list(model.named_parameters()), parameter_roles(model)) else (MUON,)
