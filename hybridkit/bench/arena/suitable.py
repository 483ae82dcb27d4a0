"""Which rivals cannot train a cell's network."""

from __future__ import annotations

import dataclasses

from hybridkit.bench.arena.cells import Cell
from hybridkit.bench.arena.methods import MUON
from hybridkit.bench.arena.plan import Plan


def suited(plan: Plan) -> Plan:
    """`plan` without the rivals that its networks do not suit. Raises UsageError for an unknown task."""
    return dataclasses.replace(plan, unsuitable={cell: unsuitable(cell) for cell in plan.cells})


def unsuitable(cell: Cell) -> tuple[str, ...]:
    """Muon where there is no hidden matrix: to torch's Muon a convolution is none."""
    from hybridkit.optim.optimizers.muon import Muon
    from hybridkit.optim.roles import parameter_roles
    from hybridkit.tasks.resolve import make_model, make_task

    model = make_model(make_task(cell.task), cell.model)
    return () if Muon().hidden_matrices(list(model.named_parameters()), parameter_roles(model)) else (MUON,)
