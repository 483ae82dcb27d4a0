"""Batches by index, from whatever the data lie in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def take(data: Any, indices: Tensor | Sequence[int]) -> Any:
    """The samples at `indices` (int64 [batch]), in that order, in the structure of `data`.

    A tensor is indexed along its first dimension; a tuple of such data becomes a tuple; from a map-style
    Dataset the samples are collated by torch's `default_collate`, and samples that are tuples become a tuple
    of batches.
    """
    index = torch.as_tensor(indices, dtype=torch.int64)
    if isinstance(data, Tensor):
        return data[index]
    if isinstance(data, tuple):
        return tuple(take(part, index) for part in data)
    return _collate(data, index.tolist())


def _collate(dataset: Any, indices: list[int]) -> Any:
    from torch.utils.data import default_collate

    # torch's own fetcher asks for a whole batch at once where the dataset can give one.
    fetch = getattr(dataset, "__getitems__", None)
    samples = fetch(indices) if callable(fetch) else [dataset[i] for i in indices]
    batch = default_collate(samples)
    # default_collate turns tuples into lists.
    return tuple(batch) if samples and isinstance(samples[0], tuple) else batch
