"""Scales, norms and biases of all blocks, tuned together to what the original network gives.

What EfficientQAT (arXiv 2407.11062) does after its blocks, on calibration samples and with the original's
answers in place of labels. Codes stay: their headings and an optimizer for them would take four times the
memory of the network.

What stands around the blocks stays as it is, so that the original's answer is what this makes of the hidden
states that the original's last block gave. Blocks are computed a second time on the way back (Chen et al.
2016, arXiv 1604.06174), and a batch goes in parts where its logits are many: in memory are a block's
activations and the hidden states between all of them, both of a part, and the original's logits of a batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hybridkit.calls import Inputs, call, without_caches
from hybridkit.massive import relative_error
from hybridkit.precision import autocast, computed_again, faster_precision
from hybridkit.quant.calibration.keeping import KeptDescent
from hybridkit.quant.calibration.streams import Hidden, Recording
from hybridkit.quant.calibration.tuning import TUNED, Tuning, descend
from hybridkit.quant.frozen import train_only
from hybridkit.quant.layers import computing_as_given
from hybridkit.trees import MAIN, floating, main_output, map_tensors

LOOKED_AT: Final = 16  # batches, before and after
AT_ONCE: Final = 1 << 25  # logits of a part of a batch, about; on the way back they are there five times


@dataclass(frozen=True, slots=True)
class JointReport:
    """`output_error` on some of the batches, before tuning all blocks together and after."""

    before: float
    after: float


def output_error(ours: Any, original: Any, counted: Tensor | None) -> Tensor:
    """How far a network's output is from the original's, 0-d.

    Of `logits` the KL divergence per position, in nats; of other outputs the `relative_error`.
    counted: the positions that count, bool [batch, positions], where the output has positions.
    """
    a, b = main_output(ours).float(), main_output(original).float()
    if counted is not None and b.shape[:-1] == counted.shape:
        a, b = a[counted], b[counted]
    if MAIN not in floating(original) or b.shape[-1] == 1:
        return relative_error(a, b)
    a, b = (F.log_softmax(x, dim=-1).flatten(0, -2) for x in (a, b))
    return F.kl_div(a, b, log_target=True, reduction="batchmean")


def tune_jointly_(
    network: nn.Module,
    blocks: Sequence[nn.Module],
    found: Recording,
    batches: Sequence[Inputs],
    last: Hidden,
    counted: Sequence[Tensor | None],
    steps: int,
    tuning: Tuning,
    progress: Callable[[int, int], None],
    kept: KeptDescent | None = None,
) -> JointReport:
    """Tune in place, on a batch a step; undone where the error has not become less.

    found: of the blocks. last: what the original's last block gave, by batch. `progress(done, steps)` is
    called after each step. kept: where it stands is kept, and found again.
    """
    network.requires_grad_(False)
    trained = train_only(nn.ModuleList(blocks), TUNED)
    before = [parameter.detach().clone() for parameter in trained]
    device = last[0].device.type

    def errors(place: int) -> Iterator[Tensor]:
        inputs, mask = batches[place], counted[place]
        with torch.no_grad(), found.passing(blocks, last[place]):
            original = call(network, inputs)
        for part in _parts(inputs, original, mask):
            with _computed_twice(blocks):
                ours = call(network, part.inputs)
            yield part.share * output_error(ours, part.original, part.counted)

    def mean_error() -> float:
        some = range(0, len(batches), -(-len(batches) // LOOKED_AT))
        with torch.no_grad():
            return sum(float(error) for place in some for error in errors(place)) / len(some)

    with computing_as_given(network), autocast(faster_precision(device), device), without_caches(network):
        first = mean_error()
        descend([{"params": trained}], errors, len(batches), steps, tuning, progress, kept)
        reached = mean_error()
    if not reached < first:
        with torch.no_grad():
            for parameter, value in zip(trained, before, strict=True):
                parameter.copy_(value)
        reached = first
    network.requires_grad_(False)
    for parameter in trained:
        parameter.grad = None
    return JointReport(first, reached)


@dataclass(frozen=True, slots=True)
class _Part:
    """Some samples of a batch, what the original gives for them, and their share of the batch's error."""

    inputs: Inputs
    original: Any
    counted: Tensor | None
    share: float


def _parts(inputs: Inputs, original: Any, counted: Tensor | None) -> Iterator[_Part]:
    """A batch in parts of about AT_ONCE logits; whole where there are none, as its error is no sum then."""
    logits = floating(original).get(MAIN)
    if logits is None or logits.shape[-1] == 1 or logits.numel() <= AT_ONCE:
        yield _Part(inputs, original, counted, 1.0)
        return
    samples = len(logits)
    at_once = max(samples * AT_ONCE // logits.numel(), 1)
    weights = torch.ones(logits.shape[:-1])
    if counted is not None and counted.shape == weights.shape:
        weights = counted.float()
    for start in range(0, samples, at_once):
        rows = slice(start, start + at_once)
        share = float(weights[rows].sum() / weights.sum())
        if share:
            mask = None if counted is None else counted[rows]
            yield _Part(_rows(inputs, rows, samples), {MAIN: logits[rows]}, mask, share)


def _rows(inputs: Inputs, rows: slice, samples: int) -> Inputs:
    """These samples out of the arguments of a network; what does not go by samples stays."""

    def some(x: Tensor) -> Tensor:
        return x[rows] if x.dim() and len(x) == samples else x

    taken: Inputs = map_tensors(some, inputs)
    return taken


@contextlib.contextmanager
def _computed_twice(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """In this context blocks keep nothing for the way back but what they are called with."""
    try:
        for block in blocks:
            again = partial(checkpoint, block.forward, use_reentrant=False, context_fn=computed_again)
            block.forward = again
        yield
    finally:
        for block in blocks:
            del block.forward
