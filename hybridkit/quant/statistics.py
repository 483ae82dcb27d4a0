"""What a layer's inputs look like on calibration data, for quantizers that look at it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridkit.calls import Inputs, watch
from hybridkit.quant.protocol import Statistics


def layer_statistics(model: nn.Module, example_inputs: Inputs | None, name: str) -> Statistics | None:
    """The second moments of the inputs of the layer called `name`, from one run of the model.

    None without inputs, for an embedding, and for a layer that does not run. A run for each layer, so that no
    more than one layer's moments [K, K] are in memory.
    """
    layer = model.get_submodule(name)
    if example_inputs is None or isinstance(layer, nn.Embedding):
        return None
    found: list[Statistics] = []

    def seen(module: nn.Module, x: Tensor) -> None:
        rows = (
            _patches(module, x.float())
            if isinstance(module, nn.Conv1d | nn.Conv2d)
            else x.float().flatten(0, -2)
        )
        found.append(Statistics(rows.T @ rows, len(rows)))

    watch(model, example_inputs, [layer], seen)
    count = sum(each.count for each in found)
    if not count:
        return None
    return Statistics(torch.stack([each.gram for each in found]).sum(dim=0) / count, count)


def _patches(conv: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """What meets a row of the weight: [samples, K], over all places and all groups of the convolution."""
    dims = len(conv.kernel_size)
    x = x if x.dim() == dims + 2 else x[None]
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    kernel, dilation, stride = conv.kernel_size, conv.dilation, conv.stride
    if dims == 1:  # an image of height 1
        x = x.unsqueeze(2)
        kernel, dilation, stride = ((1, *value) for value in (kernel, dilation, stride))
    columns = F.unfold(
        x, tuple(kernel), dilation=tuple(dilation), stride=tuple(stride)
    )  # [B, C * positions, places]
    return columns.transpose(1, 2).reshape(-1, conv.weight[0].numel())
