"""Text that a network writes while it trains, for tasks that have `sample`."""

from __future__ import annotations

from torch import nn

from hybridkit.randomness import undisturbed
from hybridkit.tasks.protocol import Task
from hybridkit.training.evaluation import measuring

LONGEST = 4000  # characters that are kept


def written(task: Task, model: nn.Module) -> str | None:
    """What `task.sample(model)` returns, in evaluation mode without gradients; None where it has no `sample`.

    The global random generators stay where they are.
    """
    sample = getattr(task, "sample", None)
    if sample is None:
        return None
    with measuring(model), undisturbed():
        return str(sample(model))[:LONGEST]
