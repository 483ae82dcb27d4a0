"""Where a norm before a quantised layer belongs: found by what happens in one run, not by names."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from hybridkit.calls import Inputs, call, evaluating
from hybridkit.quant.attachments import NORM, insert_norm
from hybridkit.quant.kinds import is_transposed, kind_of

_NORMS: Final = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


@dataclass(slots=True)
class _Input:
    """What a layer was given: its squares, and whether any of it did not come out of a norm."""

    squares: float = 0.0
    count: int = 0
    raw: bool = False


@dataclass(slots=True)
class _Seen:
    inputs: dict[nn.Module, _Input] = field(default_factory=dict)
    normalised: list[Tensor] = field(default_factory=list)  # kept, so that no other tensor takes their place

    def norm(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(output, Tensor) and _is_norm(module, args[0], output):
            self.normalised.append(output)

    def layer(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not args:  # called by the argument's name, which no hook of ours changes
            return
        x = args[0]
        found = self.inputs.setdefault(module, _Input())
        found.squares += float(x.double().square().sum())
        found.count += x.numel()
        places = {tensor.untyped_storage().data_ptr() for tensor in self.normalised}
        found.raw |= x.untyped_storage().data_ptr() not in places


def insert_norms_(layers: Mapping[str, nn.Module], model: nn.Module, example_inputs: Inputs) -> list[str]:
    """Put an RMSNorm before each linear layer of `layers` that has none yet; returns their names.

    A layer has one where its input on `example_inputs`, the model's arguments, is a norm's output. In a
    Transformer that leaves the projection out of the attention and the one down from the feed-forward part,
    which is where BitNet's SubLN is (BitDistill, arXiv 2510.13998, section 3.1); every other projection is
    behind the block's own norm, so that all have normalised inputs as in arXiv 2505.08823.

    The weight begins at the root mean square of what the layer was given: a row of that size goes through
    unchanged, another is scaled to that size, which is all that the norm does to the function at first.
    """
    linear = {name: m for name, m in layers.items() if kind_of(m) == "linear" and not hasattr(m, NORM)}
    seen = _Seen()
    with evaluating(model), contextlib.ExitStack() as hooks:
        for module in model.modules():
            if not any(True for _ in module.children()):
                hooks.enter_context(module.register_forward_hook(seen.norm))
        for module in linear.values():
            hooks.enter_context(module.register_forward_pre_hook(seen.layer))
        call(model, example_inputs)
    inserted = []
    for name, module in linear.items():
        found = seen.inputs.get(module)
        if found is None or not found.raw:
            continue
        weight = module.get_parameter("weight")
        width = weight.shape[0 if is_transposed(module) else 1]
        gain = (found.squares / max(found.count, 1)) ** 0.5
        insert_norm(module, width, gain or 1.0).to(weight.device, weight.dtype)
        inserted.append(name)
    return inserted


def _is_norm(module: nn.Module, x: Any, output: Tensor) -> bool:
    """Whether it is one of torch's norms, or holds vectors alone and makes the same of twice its input."""
    if isinstance(module, _NORMS):
        return True
    parameters = list(module.parameters(recurse=False))
    if not parameters or any(p.dim() > 1 for p in parameters) or not isinstance(x, Tensor):
        return False
    if not x.is_floating_point() or x.shape != output.shape or not output.any():
        return False
    doubled = module.forward(2 * x)
    return isinstance(doubled, Tensor) and torch.allclose(doubled, output, rtol=0.01, atol=0.01)
