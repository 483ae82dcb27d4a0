"""An encoder that gives one vector per text, as sentence-transformers has it, inside the exported file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch.nn.functional as F
from torch import Tensor, nn

from hybridkit.calls import Inputs, called_as
from hybridkit.errors import UsageError
from hybridkit.tasks.language.pooling import MODES, pooled
from hybridkit.trees import main_output

MASK: Final = "attention_mask"
_HIDDEN: Final = 3  # dimensions of hidden states: texts, tokens, width


def check_pooling(mode: str, inputs: Inputs) -> None:
    """Raise UsageError for another mode than mean, cls, max or lasttoken, and for inputs without a mask."""
    if mode not in MODES:
        raise UsageError(f"--pool {mode}: choose one of {', '.join(MODES)}")
    if not (isinstance(inputs, Mapping) and MASK in inputs):
        raise UsageError(f"--pool takes a network that gets an {MASK}, by name")


@contextlib.contextmanager
def pooling(network: nn.Module, mode: str) -> Iterator[None]:
    """In this context `network` gives `embedding`, float [texts, width] of length 1, alone."""
    inner = network.forward

    def forward(**named: Any) -> dict[str, Tensor]:
        hidden = main_output(inner(**named))
        if hidden.dim() != _HIDDEN:
            raise UsageError(
                f"--pool takes hidden states [texts, tokens, width], not {hidden.dim()} dimensions"
            )
        return {"embedding": F.normalize(pooled(hidden, named[MASK], mode), dim=-1)}

    with called_as(network, forward):
        yield
