"""Scales, norms, biases and codes of a block, tuned to what the original network gives behind it.

The error is that of the hidden states after the next block, which is in full precision: so a block keeps what
the next one goes by, and a position that would grow massive there shows. On three blocks of SmolLM2-135M,
ternary, that leaves a third to a fifth of the KL of the whole network that the error at the block's own end
leaves; two blocks further are no better (docs/quantization.md).

Codes move as in moving_codes.py. That is what BRECQ (arXiv 2102.05426), AutoRound (2309.05516) and the block
phase of EfficientQAT (2407.11062) do, here from codes that keep each layer's output already.

Products are multiplied in bf16 where that is faster. Only here: statistics of inputs and hidden states that
go from block to block suffer from its rounding where one position is a thousand times larger than the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from hybridkit.massive import relative_error
from hybridkit.precision import autocast, faster_precision
from hybridkit.quant.calibration.keeping import KeptDescent
from hybridkit.quant.calibration.streams import Behind, Call, Hidden
from hybridkit.quant.frozen import parse_trainable, train_only
from hybridkit.quant.layers import QATLayer, computing_as_given
from hybridkit.quant.moving_codes import loosen_, settle_

TUNED: Final = parse_trainable("scales,norms,biases")
WARM_UP: Final = 0.05  # of the steps
JOINT: Final = 200  # encoders gain too little for their time
FASTER: Final = 3  # codes, in steps between levels, than gains of 1


@dataclass(frozen=True, slots=True)
class Tuning:
    """How long, at which rate of Adam, whether codes move too, and the seed of the order of the batches.

    steps: of each block. joint: of all blocks together, behind that; None: JOINT of them where the network
    gives logits, else none. 0: nothing is tuned. lr: of gains of 1, of codes in steps between levels, and
    of norms and biases.
    """

    steps: int = 200
    joint: int | None = None
    lr: float = 1e-3
    codes: bool = True
    seed: int = 0


def block_error(ours: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
    """`relative_error` of a block's hidden states over the positions that count, 0-d."""
    if counted is not None and target.shape[:-1] == counted.shape:
        ours, target = ours[counted], target[counted]
    return relative_error(ours, target)


def tune_(
    block: nn.Module,
    hidden: Hidden,
    targets: Hidden,
    calls: Sequence[Call],
    counted: Sequence[Tensor | None],
    tuning: Tuning,
    weights: Mapping[QATLayer, Tensor],
    behind: Behind,
) -> None:
    """Tune in place, on a batch a step. Dropout stays off: the block is in evaluation mode.

    targets: what comes out of `behind` in the original network, by batch.
    weights: what the codes of layers stand for, float [N, K]; codes of other layers stay.
    """
    loose = list(weights) if tuning.codes else []
    for layer in loose:
        loosen_(layer, weights[layer])
    trained = train_only(block, TUNED)
    codes = [layer.weight.requires_grad_() for layer in loose]
    groups: list[dict[str, Any]] = [{"params": trained}] if trained else []
    groups += [{"params": codes, "lr": FASTER * tuning.lr}] if codes else []
    if groups and tuning.steps:
        device = hidden[0].device.type

        def errors(place: int) -> Iterator[Tensor]:
            output = behind.run(place, calls[place].run(block, hidden[place]))
            yield block_error(output, targets[place], counted[place])

        with computing_as_given(block), autocast(faster_precision(device), device):
            descend(groups, errors, len(calls), tuning.steps, tuning)
    for layer in loose:
        settle_(layer)
    for parameter in block.parameters():
        parameter.requires_grad_(False).grad = None


def descend(
    groups: list[dict[str, Any]],
    errors: Callable[[int], Iterable[Tensor]],
    batches: int,
    steps: int,
    tuning: Tuning,
    progress: Callable[[int, int], None] = lambda done, steps: None,
    kept: KeptDescent | None = None,
) -> None:
    """Adam on the parameters in `groups`, on the error of a batch a step.

    errors: what adds up to the error of a batch, by its number; one is computed after the way back from the
    other. Rates rise at first and fall to the end. `progress(done, steps)` after each step. kept: where it
    stands is kept from time to time, and gone on from.
    """
    optimizer = torch.optim.Adam(groups, lr=tuning.lr, betas=(0.9, 0.98))
    peaks = [group["lr"] for group in optimizer.param_groups]
    warm = max(1, round(WARM_UP * steps))
    generator = torch.Generator().manual_seed(tuning.seed)
    orders = (torch.randperm(batches, generator=generator).tolist() for _ in itertools.count())
    begun = kept.load_(optimizer) if kept else 0
    with torch.enable_grad():
        for step, place in enumerate(itertools.islice(itertools.chain.from_iterable(orders), steps)):
            if step < begun:
                continue
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * min((step + 1) / warm, 1 - step / steps)
            optimizer.zero_grad()
            for error in errors(place):
                torch.autograd.backward(error)
            optimizer.step()
            progress(step + 1, steps)
            if kept:
                kept.save(step + 1, optimizer)
