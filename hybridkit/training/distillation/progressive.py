"""Block by block, then end to end.

In its stage a block learns to give what the teacher's block gives, from the outputs of the quantised blocks
before it, so that it makes up for their errors (as GPTQ and BRECQ go through a network, arXiv 2210.17323 and
2102.05426, here with training). What comes before the block runs without gradients, what comes after it not
at all: in memory are the activations of one block for one batch. Nothing is kept between batches; the blocks
before are computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from hybridkit.blocks import hidden_of, main_blocks
from hybridkit.errors import UsageError
from hybridkit.tasks.data import Batch
from hybridkit.tasks.protocol import forward
from hybridkit.training.distillation.layers import paired_blocks
from hybridkit.training.distillation.teaching import Teaching
from hybridkit.training.distillation.terms import Pairs

SHARE: Final = 0.5  # of the steps go block by block


@dataclass(frozen=True, slots=True)
class BlockOutput:
    """What one block gave: hidden states of the student, and of the teacher's block that it learns from."""

    place: int  # of the pair
    student: Tensor
    teacher: Tensor


class Progressive:
    """The stages of a run that begins block by block.

    Args:
        teaching: the teacher, its loss of hidden states included.
        student: the network.
        steps: of the whole run; half of them are shared out among the blocks.
        layer_map: pairs of blocks, (student's, teacher's); none: evenly spread.
    """

    def __init__(self, teaching: Teaching, student: nn.Module, steps: int, layer_map: Pairs = ()) -> None:
        self.teaching, self.task = teaching, teaching.task
        ours, theirs = main_blocks(student), main_blocks(teaching.teacher)
        self.pairs = [(ours[i], theirs[j]) for i, j in paired_blocks(len(ours), len(theirs), layer_map)]
        self.steps_per_block = int(SHARE * steps) // len(self.pairs)
        if not self.steps_per_block:
            raise UsageError(
                f"--progressive: half of {steps} steps is less than one for each of {len(self.pairs)} "
                "blocks; train longer"
            )

    def block(self, step: int) -> int | None:
        """The block whose stage a step (from 0) is in; None: end to end."""
        place = step // self.steps_per_block
        return place if place < len(self.pairs) else None

    def run(self, model: nn.Module, batch: Batch, place: int) -> BlockOutput:
        """Both networks up to a block, the student's with gradients in this block alone."""
        ours, theirs = self.pairs[place]
        with torch.no_grad():
            teacher = _until(theirs, lambda: self.teaching.answer(batch))
            student = _until(ours, lambda: forward(self.task, model, batch), learning=True)
        return BlockOutput(place, student, teacher)

    def loss(self, output: BlockOutput, batch: Batch) -> Tensor:
        """The relative squared error of the block's hidden states, 0-d."""
        return self.teaching.hidden(output.place, output.student, output.teacher, batch)


class _Reached(Exception):  # noqa: N818 - no error
    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def _until(block: nn.Module, run: Callable[[], Any], *, learning: bool = False) -> Tensor:
    """Run a network until `block` has run, and no further; the hidden states that the block gives."""

    def entered(*_: Any) -> None:
        torch.set_grad_enabled(learning)

    def left(module: nn.Module, args: Any, output: Any) -> None:
        raise _Reached(hidden_of(output))

    hooks = [block.register_forward_pre_hook(entered), block.register_forward_hook(left)]
    try:
        run()
    except _Reached as reached:
        return reached.hidden
    finally:
        torch.set_grad_enabled(False)
        for hook in hooks:
            hook.remove()
    raise UsageError("--progressive: a block of the network does not run in this task")
