"""Looking at layers while a model runs once on example inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

ExampleInputs = Sequence[Tensor] | Mapping[str, Tensor]  # a model's arguments, in order or by name


@torch.no_grad()
def observe(
    model: nn.Module,
    layers: Iterable[nn.Module],
    example_inputs: ExampleInputs,
    seen: Callable[[nn.Module, Tensor], None],
) -> None:
    """Evaluate `model` on its arguments and call `seen(layer, its input)` as each of `layers` runs.

    The model runs in evaluation mode, without gradients, and is left as it was.
    """
    modes = {module: module.training for module in model.modules()}
    hooks = [layer.register_forward_hook(lambda m, args, _: seen(m, args[0])) for layer in layers]
    try:
        model.eval()
        model(**example_inputs) if isinstance(example_inputs, Mapping) else model(*example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
