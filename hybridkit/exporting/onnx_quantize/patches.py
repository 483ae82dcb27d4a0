"""What meets a row of a convolution's weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MOST: Final = 1 << 25  # numbers that are kept


def patches(x: NDArray[Any], shape: Sequence[int], geometry: Mapping[str, Any]) -> NDArray[Any]:
    """x [batch, C, *space] as [patches, K], K = C / groups * kernel, for a weight of this shape [N, K...].

    Patches of all groups, one after the other; of more than some millions evenly chosen ones.
    """
    space = x.ndim - 2
    pads = geometry["pads"]
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:space], pads[space:], strict=True)])
    dilations, strides = geometry["dilations"], geometry["strides"]
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, shape[2:], strict=True)]
    axes = tuple(range(2, x.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(x, spans, axis=axes)  # [batch, C, *places, *spans]
    every = [slice(None)] * 2 + [slice(None, None, s) for s in (*strides, *dilations)]
    windows = windows[tuple(every)]
    places = windows.shape[2 : 2 + space]
    total = len(x) * geometry["group"] * int(np.prod(places))
    step = -(-total * int(np.prod(shape[1:])) // MOST)
    grouped = windows.reshape(len(x), geometry["group"], shape[1], *windows.shape[2:])
    first = np.moveaxis(grouped, 2, 2 + space)  # [batch, groups, *places, C / groups, *kernel]
    chosen = np.arange(0, total, max(step, 1))
    index = np.unravel_index(chosen, (len(x), geometry["group"], *places))
    return first[index].reshape(len(chosen), -1)
