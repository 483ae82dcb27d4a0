"""A multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with RMSNorm and ReLU between them: [batch, ...] -> [batch, outputs].

    Inputs are flattened to [batch, inputs]. The norm belongs to the model, quantised or not: ternary weights
    move a layer's output scale at every flip, and the norm takes that out before the next layer sees it.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for fan_in, fan_out in pairwise((inputs, *hidden)):
            blocks += [nn.Linear(fan_in, fan_out), nn.RMSNorm(fan_out), nn.ReLU()]
        self.hidden = nn.Sequential(*blocks)
        self.output = nn.Linear(hidden[-1] if hidden else inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, outputs]."""
        logits: Tensor = self.output(self.hidden(x.flatten(1)))
        return logits
