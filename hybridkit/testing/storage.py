"""What a state is after it was written to a checkpoint and read again."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import load

from hybridkit.training.state import flatten, unflatten, write_tensors


def through_checkpoint(state: Any) -> Any:
    """`state` as a checkpoint restores it, in memory of its own.

    Raises TypeError for a value that cannot be stored.
    """
    tensors, rest = flatten(state)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "tensors.safetensors"
        write_tensors(file, tensors)
        return unflatten(load(file.read_bytes()), json.loads(json.dumps(rest, allow_nan=False)))
