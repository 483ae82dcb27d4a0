"""What a teacher says about one batch, term by term."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hybridkit.blocks import main_blocks
from hybridkit.errors import FileError, UsageError
from hybridkit.tasks.data import Batch
from hybridkit.tasks.protocol import Task, forward, named_inputs
from hybridkit.training.distillation.layers import (
    Part,
    Projection,
    paired_blocks,
    projections,
)
from hybridkit.training.distillation.losses import (
    distillation_loss,
    embedding_loss,
    hidden_loss,
    pooled,
    relation_loss,
)
from hybridkit.training.distillation.projection import LeastSquares
from hybridkit.training.distillation.terms import Pairs, Term
from hybridkit.training.distillation.watching import Watch
from hybridkit.trees import floating, main_output, map_tensors

EMBEDDING, LAST = "embedding", "last_hidden_state"  # outputs by these names are what they are called


class Teaching:
    """A frozen teacher in evaluation mode, and the terms in which a student learns from it.

    The teacher runs once for each batch that the student has run on. Hidden states and projections are seen
    by hooks on both networks, whatever attention they compute with; their outputs stay what they are.

    Args:
        task: whose batches they are.
        teacher, student: the networks.
        weights: of each term.
        temperature: of the logits.
        layer_map: pairs of blocks, (student's, teacher's); none: evenly spread.
    """

    def __init__(
        self,
        task: Task,
        teacher: nn.Module,
        student: nn.Module,
        weights: Mapping[Term, float],
        temperature: float = 2.0,
        layer_map: Pairs = (),
    ) -> None:
        self.task, self.weights, self.temperature = task, dict(weights), temperature
        self.teacher = teacher.requires_grad_(False).eval()
        self.pairs: list[tuple[nn.Module, nn.Module]] = []  # blocks: student's, teacher's
        # of both, the block whose output is pooled where the network's own output says no more
        self._last: list[nn.Module | None] = [None, None]
        self._projections: list[dict[Part, tuple[Projection, Projection]]] = []
        self.maps: dict[int, LeastSquares] = {}  # by pair, where the widths differ
        self._find_layers(student, layer_map)
        self._ours, self._theirs = Watch(self._watched(0)), Watch(self._watched(1))
        self._ours.follow(student)

    def _find_layers(self, student: nn.Module, layer_map: Pairs) -> None:
        if set(self.weights) <= {"logits"}:
            return
        try:
            ours, theirs = main_blocks(student), main_blocks(self.teacher)
        except UsageError as error:
            if set(self.weights) <= {"logits", "embedding"}:
                return
            raise UsageError(f"--distil {','.join(self.weights)}: {error}") from None
        places = paired_blocks(len(ours), len(theirs), layer_map)
        pairs = [(ours[i], theirs[j]) for i, j in places]
        if "hidden" in self.weights:
            self.pairs = pairs
        if "attention" in self.weights:
            self._projections = [_paired(projections(a), projections(b)) for a, b in pairs]
        if "embedding" in self.weights:
            self._last = [ours[-1], theirs[-1]]

    def _watched(self, side: int) -> list[nn.Module]:
        """The layers of the student (0) or the teacher (1) that are seen."""
        heads = [both[side].layer for parts in self._projections for both in parts.values()]
        last = self._last[side]
        return [pair[side] for pair in self.pairs] + ([last] if last else []) + heads

    def __call__(self, output: Any, batch: Batch) -> dict[Term, Tensor]:
        """Each term for the student's output on a batch, which it has just run on; 0-d, not weighted."""
        self._theirs.begin()
        expert = self.answer(batch)
        with torch.autocast(main_output(output).device.type, enabled=False):
            return self._compared(output, expert, batch)

    def _compared(self, output: Any, expert: Any, batch: Batch) -> dict[Term, Tensor]:
        ours, theirs = self._ours.take(), self._theirs.take()
        mask = attention_mask(self.task, batch)
        found: dict[Term, Tensor] = {}
        if "logits" in self.weights:
            found["logits"] = distillation_loss(
                main_output(output), main_output(expert), self.temperature, mask
            )
        if "hidden" in self.weights:
            losses = [
                self.hidden(place, ours[a], theirs[b], batch) for place, (a, b) in enumerate(self.pairs)
            ]
            found["hidden"] = torch.stack(losses).mean()
        if "attention" in self.weights:
            losses = [
                relation_loss(a.of(ours[a.layer]), b.of(theirs[b.layer]), mask)
                for parts in self._projections
                for a, b in parts.values()
            ]
            found["attention"] = torch.stack(losses).mean()
        if "embedding" in self.weights:
            last = [
                side[block] if block else None for side, block in zip((ours, theirs), self._last, strict=True)
            ]
            found["embedding"] = embedding_loss(
                embedding_of(output, last[0], mask), embedding_of(expert, last[1], mask)
            )
        return found

    @property
    def device(self) -> torch.device:
        """Where the teacher is."""
        return next((p.device for p in self.teacher.parameters()), torch.device("cpu"))

    @torch.no_grad()
    def answer(self, batch: Batch) -> Any:
        """The teacher's output on a batch."""
        dtype = next((p.dtype for p in self.teacher.parameters() if p.is_floating_point()), torch.float32)
        cast = map_tensors(lambda x: x.to(dtype) if x.is_floating_point() else x, batch)
        return forward(self.task, self.teacher, cast if dtype != torch.float32 else batch)

    def hidden(self, place: int, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """`hidden_loss` of the pair of blocks at `place`, through a map where the widths differ."""
        mask = attention_mask(self.task, batch)
        if student.shape == teacher.shape:
            return hidden_loss(student, teacher, mask)
        channels = 1 if student.dim() == 4 else -1  # of images
        student, teacher = student.movedim(channels, -1), teacher.movedim(channels, -1)
        if student.shape[:-1] != teacher.shape[:-1]:
            raise UsageError(
                f"--distil hidden: the teacher's hidden states are {list(teacher.shape)}, the student's "
                f"{list(student.shape)}; give --layer-map layers of the same resolution, or leave hidden out"
            )
        if mask is not None and mask.shape == student.shape[:2] and student.dim() == 3:
            student, teacher = student[mask > 0], teacher[mask > 0]
        student, teacher = student.flatten(0, -2), teacher.flatten(0, -2)
        if place not in self.maps:
            self.maps[place] = LeastSquares(student.shape[-1], teacher.shape[-1], student.device)
        return hidden_loss(self.maps[place](student, teacher), teacher)

    def state_dict(self) -> dict[str, Any]:
        """What is learned beside the student."""
        return {str(place): each.state_dict() for place, each in self.maps.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises FileError where it does not fit."""
        if set(state) != {str(place) for place in self.maps}:
            raise FileError("the saved state's distillation is of other layers than this run's")
        for place, each in self.maps.items():
            each.load_state_dict(state[str(place)])


def attention_mask(task: Task, batch: Batch) -> Tensor | None:
    """The `attention_mask` [batch, positions] among the network's inputs, if there is one."""
    found = named_inputs(task, batch).get("attention_mask")
    return found if found is not None and found.dim() == 2 else None


def embedding_of(output: Any, last: Tensor | None, mask: Tensor | None) -> Tensor:
    """What a network says about a whole sample, [batch, width].

    Its output called `embedding`; else the mean of `last_hidden_state`, of the last block's hidden states, or
    of the output itself, over the positions that count.
    """
    named = floating(output)
    found = named.get(EMBEDDING, named.get(LAST, last))
    if found is None:
        found = main_output(output)
    if found.dim() == 2:
        return found
    return pooled(found if found.dim() == 3 else found.flatten(2).transpose(1, 2), mask)


def _paired(
    ours: Mapping[Part, Projection], theirs: Mapping[Part, Projection]
) -> dict[Part, tuple[Projection, Projection]]:
    return {part: (projection, theirs[part]) for part, projection in ours.items()}
