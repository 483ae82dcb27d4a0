"""Scales, norms and biases of all blocks, tuned together to what the original network gives.

What EfficientQAT (arXiv 2407.11062) does after its blocks, on calibration samples and with the original's
answers in place of labels. Codes stay: their headings and an optimizer for them would take four times the
memory of the network.

What stands around the blocks stays as it is, so that the original's answer is what this makes of the hidden
states that the original's last block gave. Blocks are computed a second time on the way back (Chen et al.
2016, arXiv 1604.06174): in memory are a block's activations, and the hidden states between all of them.
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
from hybridkit.trees import MAIN, floating, main_output

LOOKED_AT: Final = 16  # batches, before and after


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

    def error(place: int) -> Tensor:
        with torch.no_grad(), found.passing(blocks, last[place]):
            original = call(network, batches[place])
        with _computed_twice(blocks):
            ours = call(network, batches[place])
        return output_error(ours, original, counted[place])

    def mean_error() -> float:
        some = range(0, len(batches), -(-len(batches) // LOOKED_AT))
        with torch.no_grad():
            return sum(float(error(place)) for place in some) / len(some)

    with computing_as_given(network), autocast(faster_precision(device), device), without_caches(network):
        first = mean_error()
        descend([{"params": trained}], error, len(batches), steps, tuning, progress, kept)
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
