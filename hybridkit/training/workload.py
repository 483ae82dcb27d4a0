"""How much a batch is: what throughput, and curves over tokens, are counted in."""

from __future__ import annotations

from hybridkit.tasks.data import Batch, count
from hybridkit.tasks.protocol import Task, named_inputs


def workload(task: Task, batch: Batch) -> dict[str, int]:
    """`samples` of a batch, and `tokens` where it has any.

    Tokens are what `attention_mask` lets through, else the size of the first integer input
    [batch, sequence]. The batch lies on the CPU.
    """
    found = {"samples": count(batch)}
    inputs = named_inputs(task, batch)
    if "attention_mask" in inputs:
        return found | {"tokens": int(inputs["attention_mask"].count_nonzero())}
    ids = (x for x in inputs.values() if x.dim() == 2 and not x.is_floating_point())
    tokens = next(ids, None)
    return found if tokens is None else found | {"tokens": tokens.numel()}
