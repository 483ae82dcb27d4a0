"""What a state is after it was written to a checkpoint and read again."""

from __future__ import annotations

import json
from typing import Any

from hybridkit.training.state import flatten, unflatten


def through_checkpoint(state: Any) -> Any:
    """`state` as a checkpoint restores it. Raises TypeError for a value that cannot be stored."""
    tensors, rest = flatten(state)
    return unflatten(tensors, json.loads(json.dumps(rest, allow_nan=False)))
