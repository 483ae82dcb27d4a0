"""Scales, norms and biases of a block with frozen codes, tuned to what the original block gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from hybridkit.quant.calibration.moments import positions
from hybridkit.quant.calibration.streams import Call, Hidden
from hybridkit.quant.frozen import parse_trainable, train_only

TUNED: Final = parse_trainable("scales,norms,biases")
WARM_UP: Final = 0.05  # of the steps


@dataclass(frozen=True, slots=True)
class Tuning:
    """How long, at which rate of Adam, and the seed of the order of the batches; no steps: not at all."""

    steps: int = 200
    lr: float = 1e-3
    seed: int = 0


def relative_error(ours: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
    """||ours - target||^2 over that of target without its mean, over the positions that count; 0-d."""
    a, b = (positions(each, counted) for each in (ours, target))
    return (a - b).square().sum() / (b - b.mean(dim=0)).square().sum().clamp(min=1e-30)


def tune_(
    block: nn.Module,
    hidden: Hidden,
    targets: Hidden,
    calls: Sequence[Call],
    counted: Sequence[Tensor | None],
    tuning: Tuning,
) -> None:
    """Tune in place, on a batch a step. Dropout stays off: the block is in evaluation mode."""
    trained = train_only(block, TUNED)
    if not trained or not tuning.steps:
        return
    optimizer = torch.optim.Adam(trained, lr=tuning.lr, betas=(0.9, 0.98))
    warm = max(1, round(WARM_UP * tuning.steps))
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 1 - step / tuning.steps)
    )
    generator = torch.Generator().manual_seed(tuning.seed)
    with torch.enable_grad():
        for step in range(tuning.steps):
            if step % len(calls) == 0:
                order = torch.randperm(len(calls), generator=generator).tolist()
            place = order[step % len(calls)]
            output = calls[place].run(block, hidden[place])
            loss = relative_error(output, targets[place], counted[place])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            rate.step()
    for parameter in trained:
        parameter.requires_grad_(False).grad = None
