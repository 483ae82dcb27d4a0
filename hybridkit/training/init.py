"""Where the weights come from that a run starts with."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from hybridkit.errors import FileError
from hybridkit.training.checkpoint import load_tensors
from hybridkit.training.runs import find_run


def read_weights(source: str) -> dict[str, Tensor]:
    """The state dict of a run's latest checkpoint, of one checkpoint, or of a `.safetensors` file."""
    if Path(source).is_file():
        return load_tensors(Path(source))
    try:
        run, step = find_run(source)
    except FileError as error:
        raise FileError(f"--init-from {error}; a .safetensors file works too") from None
    return run.checkpoint(step).model
