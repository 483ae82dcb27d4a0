"""Saving networks with fake-quantised layers as transformers saves networks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from hybridkit.quant.layers import qat_layers
from hybridkit.quant.recorded import write_record


def save_pretrained(network: Any, folder: str | os.PathLike[str], **how: Any) -> None:
    """`network.save_pretrained(folder, **how)`, and beside the weights how they are quantised."""
    with tied_steps(network):
        network.save_pretrained(folder, **how)
    write_record(network, folder)


@contextmanager
def tied_steps(network: nn.Module) -> Iterator[None]:
    """In this context transformers knows that layers with one weight learn one step, and stores it once."""
    first: dict[int, str] = {}
    tied = dict(getattr(network, "_tied_weights_keys", None) or {})
    for name, layer in qat_layers(network).items():
        kept = first.setdefault(id(layer.quantizer_parameters), name)
        if kept != name:
            where = ("quantizer_parameters." + key for key in layer.quantizer_parameters)
            tied |= {f"{name}.{key}": f"{kept}.{key}" for key in where}
    network.__dict__["_tied_weights_keys"] = tied
    try:
        yield
    finally:
        del network.__dict__["_tied_weights_keys"]
