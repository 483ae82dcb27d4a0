"""Which layers of two networks go together: repeated blocks, and the projections of attention in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from torch import Tensor, nn

from hybridkit.errors import UsageError
from hybridkit.training.distillation.terms import Pairs

Part = Literal["query", "key", "value"]
_NAMES: Final[dict[Part, re.Pattern[str]]] = {
    "query": re.compile(r"q|query|[qQ]_(proj|lin)|wq|to_q"),
    "key": re.compile(r"k|key|[kK]_(proj|lin)|wk|to_k"),
    "value": re.compile(r"v|value|[vV]_(proj|lin)|wv|to_v"),
}
_JOINED: Final = re.compile(r"qkv|qkv_proj|c_attn|Wqkv|in_proj")  # the three in one, one after the other


@dataclass(frozen=True, slots=True)
class Projection:
    """A layer that gives queries, keys or values; `third`: of its output, None: all of it."""

    layer: nn.Module
    third: int | None = None

    def of(self, output: Tensor) -> Tensor:
        """Its part of what the layer gives."""
        return output if self.third is None else output.chunk(3, dim=-1)[self.third]


def paired_blocks(students: int, teachers: int, given: Pairs = ()) -> Pairs:
    """Which of the student's blocks learns from which of the teacher's, both counted from 0.

    By default every block of the student, evenly spread, its last with the teacher's last (TinyBERT). Raises
    UsageError where `given` names blocks that are not there.
    """
    for ours, theirs in given:
        if ours >= students or theirs >= teachers:
            raise UsageError(
                f"--layer-map {ours}:{theirs}: the student has blocks 0 to {students - 1}, the teacher 0 to "
                f"{teachers - 1}"
            )
    return given or tuple((i, max((i + 1) * teachers // students - 1, 0)) for i in range(students))


def projections(block: nn.Module) -> dict[Part, Projection]:
    """The layers of a block's first attention that give queries, keys and values.

    They are known by their names (`q_proj`, `query`, `c_attn`, ...). Raises UsageError where there are none.
    """
    for parent in block.modules():
        children = dict(parent.named_children())
        found: dict[Part, Projection] = {}
        for part, pattern in _NAMES.items():
            for name, child in children.items():
                if pattern.fullmatch(name) and _has_weight(child):
                    found.setdefault(part, Projection(child))
        if len(found) == len(_NAMES):
            return found
        for name, child in children.items():
            if _JOINED.fullmatch(name) and _has_weight(child) and _is_tripled(child):
                return {part: Projection(child, third) for third, part in enumerate(_NAMES)}
    raise UsageError(
        f"--distil attention: {type(block).__name__} has no layers named query, key and value (or q_proj, "
        "c_attn, ...); leave attention out"
    )


def _has_weight(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), Tensor)


def _is_tripled(module: nn.Module) -> bool:
    """Whether its output is three times as wide as its input, so that each third is a whole of the three."""
    small, large = sorted(module.get_parameter("weight").shape)
    return bool(large == 3 * small)
