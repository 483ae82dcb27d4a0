"""A packed network that runs: the modules and the packed model behind them, as one value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from hybridkit.packing.model import PackedModel, Sizes
from hybridkit.quant.config import QuantConfig
from hybridkit.quant.convert import convert
from hybridkit.quant.layers import qat_layers
from hybridkit.quant.post_training import quantize
from hybridkit.runtime.modules import load_packed


@dataclass(frozen=True, eq=False)
class PackedNetwork:
    """Call it as the network it was made from; `export(network, path, example_inputs=...)` takes it alone.

    module: the network with packed layers, in evaluation mode. packed: what they hold, and all other tensors.
    """

    module: nn.Module
    packed: PackedModel

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The output of the network."""
        return self.module(*inputs, **named)

    def save(self, path: str | os.PathLike[str], compress: Literal["zstd"] | None = None) -> Sizes:
        """Write the packed model; see `PackedModel.save`."""
        return self.packed.save(path, compress)


def pack(
    model: nn.Module,
    config: QuantConfig | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
    codec: str | None = None,
    **how: Any,
) -> PackedNetwork:
    """A packed copy of `model`, which stays as it is.

    One that was prepared with `prepare_qat_` is packed as it trained (`convert`), any other is quantised
    afterwards: `config` and `how` are arguments of `quantize`. Raises UsageError as those two do.
    """
    if qat_layers(model):
        packed = convert(model, metadata=metadata, codec=codec)
    else:
        packed = quantize(model, config, metadata=metadata, codec=codec, **how).packed
    return PackedNetwork(load_packed(model, packed), packed)
