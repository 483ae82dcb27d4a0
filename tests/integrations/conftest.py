"""Real text for tiny language models."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
import torch

LENGTH = 32


@pytest.fixture(scope="session")
def blocks() -> list[dict[str, torch.Tensor]]:
    """Text of the standard library in blocks of LENGTH bytes, as the samples of a causal language model."""
    text = Path(sysconfig.get_paths()["stdlib"], "argparse.py").read_bytes()[: 256 * LENGTH]
    rows = torch.frombuffer(bytearray(text), dtype=torch.uint8).long().view(-1, LENGTH)
    return [{"input_ids": row, "labels": row.clone()} for row in rows]
