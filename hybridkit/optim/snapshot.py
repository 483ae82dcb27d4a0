"""The parameters before a step, and what the step changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Snapshot:
    """Two buffers per parameter, allocated once: the value before the step and the update.

    The order of calls is `take`, (the base optimizer's step), `measure`, (a projection of `updates` in
    place), `write_back`. Updates are fp32 (fp64 for fp64 parameters) whatever the parameters are.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.before = [torch.empty_like(p, requires_grad=False) for p in parameters]
        self.updates = [
            torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32), requires_grad=False)
            for p in parameters
        ]

    def take(self) -> None:
        """Copy the parameters."""
        torch._foreach_copy_(self.before, self.parameters)

    def measure(self) -> list[Tensor]:
        """The updates: parameters now minus parameters then."""
        torch._foreach_copy_(self.updates, self.parameters)
        torch._foreach_sub_(self.updates, self.before)
        return self.updates

    def write_back(self, active: Tensor) -> None:
        """Parameter = before + update where `active` (bool [parameters]); the others keep every bit.

        Adding a small update again would not give the same bits, hence the choice per tensor; it is made on
        the device. `before` holds scratch values afterwards.
        """
        torch._foreach_add_(self.before, self.updates)
        for parameter, moved, changed in zip(self.parameters, self.before, active.unbind(), strict=True):
            torch.where(changed.to(parameter.device), moved, parameter, out=parameter)
