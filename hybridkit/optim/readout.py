"""Many small tensors brought to the host in one synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor


class Readout:
    """Collects tensors under names; `read` brings them all over at once.

    Everything is fp32 on the way, on the device of the first tensor.
    """

    def __init__(self) -> None:
        self._parts: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Ask for `value` (0-d or 1-d)."""
        self._parts[name] = value.detach().reshape(-1).float()

    def read(self) -> dict[str, list[float]]:
        """The numbers of every tensor by name."""
        if not self._parts:
            return {}
        parts = list(self._parts.values())
        numbers: list[float] = torch.cat([p.to(parts[0].device) for p in parts]).tolist()
        values, start = {}, 0
        for name, part in self._parts.items():
            values[name] = numbers[start : start + part.numel()]
            start += part.numel()
        return values
