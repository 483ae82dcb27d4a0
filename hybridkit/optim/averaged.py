"""The running mean of the weights, and the best mean that there was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Averaged:
    """The mean of the weights over recent steps, judged in their place (Polyak and Juditsky 1992).

        mean <- mean + max(1 / horizon, 1 / n) (weights - mean)        n: how many weights went into it

    Shorter steps lower the loss at once, since they are less noisy, and say nothing about where they lead.
    The mean has that noise no longer, however long they are.

    It holds two copies of the parameters, the second from the first `keep` on, and a third while the mean is
    in their place.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.mean: list[Tensor] = []
        self.best: list[Tensor] = []
        self.count = 0

    @torch.no_grad()
    def follow(self, horizon: float) -> None:
        """Take in the weights as they are. horizon: steps, at least 1."""
        self.count += 1
        if not self.mean:
            self.mean = [p.clone() for p in self.parameters]
            return
        torch._foreach_lerp_(self.mean, self.parameters, max(1 / horizon, 1 / self.count))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The mean in place of the weights."""
        with torch.no_grad():
            weights = [p.clone() for p in self.parameters]
            torch._foreach_copy_(self.parameters, self.mean)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, weights)

    def keep(self) -> None:
        """Remember the mean as the best one."""
        self.best = [m.clone() for m in self.mean]

    @torch.no_grad()
    def go_back(self) -> bool:
        """The best mean becomes the weights, and the mean; whether there is one."""
        if not self.best:
            return False
        torch._foreach_copy_(self.parameters, self.best)
        torch._foreach_copy_(self.mean, self.best)
        return True

    def drop(self) -> None:
        """Give the memory back."""
        self.mean, self.best, self.count = [], [], 0

    def state_dict(self) -> dict[str, Any]:
        """Both copies, as far as there are any."""
        copied = ([t.clone() for t in tensors] for tensors in (self.mean, self.best))
        return {"count": self.count, **dict(zip(("mean", "best"), copied, strict=True))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. Raises ValueError where it is of other parameters."""
        shapes = [p.shape for p in self.parameters]
        for name in ("mean", "best"):
            tensors = list(state[name])
            if tensors and [t.shape for t in tensors] != shapes:
                raise ValueError(f"the saved {name} of the weights is of other parameters")
            setattr(self, name, [t.to(p) for t, p in zip(tensors, self.parameters, strict=False)])
        self.count = int(state["count"])
