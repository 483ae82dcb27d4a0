"""Several optimizers that share the work on one model, seen as one `torch.optim.Optimizer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from hybridkit.optim.optimizers.stepping import Stepping


class Composite(Stepping):
    """Each parameter group belongs to one of `parts`, named in `group["optimizer"]`.

    Groups and state live here, so that torch's own `state_dict`, schedulers and gradient scaling see an
    ordinary optimizer; the parts borrow them for the step. A group added later goes to the last part
    unless it says otherwise.

    Args:
        parts: optimizers over disjoint parameters, by name.
    """

    def __init__(self, parts: Mapping[str, Optimizer]) -> None:
        self.parts = dict(parts)
        groups = [{**g, "optimizer": name} for name, part in parts.items() for g in part.param_groups]
        super().__init__(groups, {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, completed with the defaults of its part."""
        name = param_group.setdefault("optimizer", next(reversed(self.parts)))
        super().add_param_group({**self.parts[name].defaults, **param_group})

    def update(self) -> None:
        """One step of every part."""
        for name, part in self.parts.items():
            part.state = self.state
            part.param_groups = [g for g in self.param_groups if g["optimizer"] == name]
            part.step()
