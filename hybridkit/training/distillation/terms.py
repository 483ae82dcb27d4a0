"""What is learned of a teacher, as text: `hidden:2,embedding`, and which layers go together: `0:1,1:3`."""

from __future__ import annotations

import math
from typing import Final, Literal, get_args

from hybridkit.errors import UsageError
from hybridkit.options import nearest

Term = Literal["logits", "hidden", "attention", "embedding"]
TERMS: Final[tuple[Term, ...]] = get_args(Term)
DEFAULT: Final = "logits"
UNLABELLED: Final = "hidden,embedding:0.1"  # of a task whose data say nothing
SELF: Final = "self"  # the teacher that is the network a run starts with

Pairs = tuple[tuple[int, int], ...]  # (student's block, teacher's block), counted from 0


def parse_terms(text: str) -> dict[Term, float]:
    """The weight of each term of `logits,hidden:2`; 1 where none is said. Raises UsageError."""
    found: dict[Term, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition(":")
        if name not in TERMS:
            raise UsageError(f"--distil: there is no term {name!r}; {nearest(name, TERMS)}")
        if name in found:
            raise UsageError(f"--distil names {name} twice")
        value = _number(weight or "1")
        if not 0 < value < math.inf:
            raise UsageError(f"--distil {part.strip()}: a weight is a number above 0, as in {name}:2")
        found[name] = value
    return found


def parse_layer_map(text: str) -> Pairs:
    """The pairs of `0:1,1:3`, in order. Raises UsageError."""
    pairs = []
    for part in text.split(","):
        ours, _, theirs = part.strip().partition(":")
        if not all(n.isascii() and n.isdigit() and len(n) < 6 for n in (ours, theirs)):
            raise UsageError(f"--layer-map: {part.strip()!r} is no pair STUDENT:TEACHER of layers, as in 0:1")
        pairs.append((int(ours), int(theirs)))
    if len({ours for ours, _ in pairs}) < len(pairs):
        raise UsageError("--layer-map names a layer of the student twice")
    return tuple(sorted(pairs))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
