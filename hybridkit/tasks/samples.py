"""Samples out of a task's data to run a network on without training it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from torch import Tensor

from hybridkit.calls import Inputs
from hybridkit.errors import UsageError
from hybridkit.tasks.data import Batch, Data, in_memory, size, take
from hybridkit.tasks.protocol import Task, collate_of, named_inputs

TOKENS: Final = 2_048  # of a batch, about
MOST: Final = 32  # samples of a batch


@dataclass(frozen=True, slots=True)
class Samples:
    """Batches, and for each the network's inputs and the positions that count.

    counted: bool [batch, positions], or None for all. told: where they are from, as text.
    """

    batches: list[Batch]
    inputs: list[Inputs]
    counted: list[Tensor | None]
    told: str


def draw(task: Task, samples: int, tokens: int = TOKENS) -> Samples:
    """Samples evenly out of the training data, in batches of about so many tokens, or of 32 samples.

    Raises UsageError where there is none.
    """
    return _batched(task, spread(task.splits().train, samples), tokens)


def draw_others(task: Task, samples: int, tokens: int = TOKENS) -> Samples | None:
    """Samples from halfway between those that `draw` gives; None where there are not as many more."""
    places = spread(task.splits().train, samples)
    others = [(a + b) // 2 for a, b in pairwise(places) if b - a > 1]
    return _batched(task, others, tokens) if len(others) == samples - 1 > 0 else None


def _batched(task: Task, places: list[int], tokens: int) -> Samples:
    train = task.splits().train
    [longest, *_] = named_inputs(task, take(train, places[:MOST], collate_of(task))).values()
    length = longest.shape[1] if longest.dim() == 2 else 1  # images and vectors are not counted by tokens
    at_once = min(max(tokens // length, 1), MOST)
    found = Samples([], [], [], json.dumps([task.provenance(), places], default=str))
    for start in range(0, len(places), at_once):
        batch = take(train, places[start : start + at_once], collate_of(task))
        mask = named_inputs(task, batch).get("attention_mask")
        found.batches.append(batch)
        found.inputs.append(task.inputs(batch))
        found.counted.append(mask.bool() if mask is not None and mask.dim() == 2 else None)
    return found


def some(data: Data, samples: int) -> Data:
    """A part of `data`, evenly out of it. Raises UsageError where there is none."""
    places = spread(data, samples)
    part: Any = take(data, places) if in_memory(data) else [data[place] for place in places]
    return part


def spread(data: Data, samples: int) -> list[int]:
    """At most so many places, evenly over `data`. Raises UsageError where there is none."""
    count = size(data) or 0
    if not count:
        raise UsageError("the data hold no sample, or do not say how many")
    places: Sequence[int] = np.linspace(0, count - 1, min(samples, count)).round().astype(int).tolist()
    return list(places)
