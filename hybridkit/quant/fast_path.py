"""torch's transformer encoder has a fast path in evaluation that reads weights past their layers."""

from __future__ import annotations

from torch import nn


def close_fast_paths(model: nn.Module, kind: type[nn.Module]) -> None:
    """Make the encoders that hold layers of `kind` call them, in evaluation too."""
    for module in model.modules():
        if not isinstance(module, nn.TransformerEncoderLayer | nn.TransformerEncoder):
            continue
        if any(isinstance(layer, kind) for layer in module.modules()):
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False
            else:
                module.activation_relu_or_gelu = 0  # "neither": the fast path knows these two alone
