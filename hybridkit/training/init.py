"""Where the weights come from that a run starts with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from hybridkit.errors import FileError
from hybridkit.quant.checkpoint import open_tensors
from hybridkit.training.runs import find_run


def read_weights(source: str) -> Mapping[str, Tensor]:
    """The state dict of a run's latest checkpoint, of one checkpoint, or of a `.safetensors` file.

    That of a file, or of the files of a `.safetensors.index.json`, is read as it is looked at.
    """
    if Path(source).is_file():
        return open_tensors(source)
    try:
        run, step = find_run(source)
    except FileError as error:
        raise FileError(f"--init-from {error}; a .safetensors file works too") from None
    return run.checkpoint(step).model
