"""The parameters before a step, and what the step changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hybridkit.optim import foreach


class Snapshot:
    """Two buffers for all parameters, allocated once: the values before the step and the update.

    The order of calls is `take`, (the base optimizer's step), `measure`, (a projection of `updates` in
    place), `write_back`. Updates are fp32 (fp64 for fp64 parameters) whatever the parameters are.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.before = foreach.zeros_like(parameters)
        self.updates = foreach.zeros_like(parameters, wide=True)

    def take(self) -> None:
        """Copy the parameters."""
        torch._foreach_copy_(self.before, self.parameters)

    def measure(self) -> list[Tensor]:
        """The updates: parameters now minus parameters then."""
        torch._foreach_copy_(self.updates, self.parameters)
        foreach.subtract_(self.updates, self.before)
        return self.updates

    def write_back(self, active: Tensor) -> None:
        """Parameter = before + update where `active` (bool [parameters]); the others keep every bit.

        Adding an unchanged update again would not give the same bits, hence the choice per tensor. It is made
        on the device, unless that is the CPU, where looking costs nothing and saves work. `before` holds
        scratch values afterwards.
        """
        if not may_look(active):
            foreach.add_(self.before, self.updates)
            for parameter, moved, changed in zip(self.parameters, self.before, active.unbind(), strict=True):
                torch.where(changed.to(parameter.device), moved, parameter, out=parameter)
        elif any(changes := active.tolist()):
            foreach.add_(self.before, self.updates)
            chosen = [i for i, changed in enumerate(changes) if changed]
            torch._foreach_copy_([self.parameters[i] for i in chosen], [self.before[i] for i in chosen])


def may_look(tensor: Tensor) -> bool:
    """Whether reading the tensor's values waits for nothing."""
    return tensor.device.type == "cpu"
