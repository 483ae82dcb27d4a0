"""The part of `torch.optim.Optimizer.step` that is the same for every optimizer: its closure."""

from __future__ import annotations

from collections.abc import Callable
from typing import overload

import torch
from torch.optim import Optimizer


class Stepping(Optimizer):
    """An optimizer that says in `update` what a step does."""

    def update(self) -> None:
        """Move the parameters; called without gradients."""
        raise NotImplementedError

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; the closure, if any, is called once and before, and its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self.update()
        return loss
