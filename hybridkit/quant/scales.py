"""What quantizers share: the rows that have one scale, the mean magnitude, rounding to a code book."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridkit.quant.protocol import Granularity

TINY = torch.finfo(torch.float32).tiny


def scale_rows(weight: Tensor, granularity: Granularity) -> Tensor:
    """`weight` [N, K] as float32 rows that share a scale each: [N, K] by channel, [1, N*K] by tensor."""
    values = weight.detach().float()
    return values if granularity == "channel" else values.reshape(1, -1)


def per_channel(scale: Tensor, channels: int) -> Tensor:
    """One scale per channel, [N], from one per channel or from a single one."""
    return scale.reshape(-1).expand(channels).contiguous()


def mean_magnitude(weight: Tensor, granularity: Granularity) -> Tensor:
    """mean|w| over each row, or over the whole tensor and repeated: float32 [N]; 0 for an empty row."""
    rows = scale_rows(weight, granularity)
    return per_channel(rows.abs().sum(dim=1) / max(rows.shape[1], 1), weight.shape[0])


def round_to_codes(values: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """clip(round_half_even(values / scale), low, high) as int8; a zero scale gives zeros for zeros."""
    return torch.clamp(torch.round(values / scale.clamp(min=TINY)), low, high).to(torch.int8)
