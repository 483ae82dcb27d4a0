"""Data and batches, whatever they lie in: samples by index, in order, from a stream; on a device; counted.

Data are a tensor, or a tuple or mapping of tensors of equal length, which lie in memory; a map-style dataset
(`__len__` and `__getitem__`: a list of samples is one); or an iterable dataset, which is read as a stream. A
batch is a tree of tensors whose first dimension is the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from hybridkit.errors import UsageError
from hybridkit.trees import map_tensors, tensors

Data = Any
Batch = Any
Collate = Callable[[Sequence[Any]], Batch]


def is_stream(data: Data) -> bool:
    """Whether samples come one after the other only, without an index."""
    return not hasattr(data, "__getitem__")


def size(data: Data) -> int | None:
    """The number of samples; None for a stream that does not know."""
    if in_memory(data):
        return count(data)
    if isinstance(data, tuple):
        return size(data[0])
    return len(data) if hasattr(data, "__len__") else None


def count(batch: Batch) -> int:
    """The number of samples of a batch. Raises UsageError where it holds no tensor."""
    for tensor in tensors(batch):
        return len(tensor)
    raise UsageError("a batch holds no tensor")


def take(data: Data, indices: Tensor | Sequence[int], collate: Collate | None = None) -> Batch:
    """The samples at `indices` (int64 [batch]), in that order, in the structure of `data`.

    Tensors are indexed along their first dimension; samples of a map-style dataset are put together by
    `collate`, by default torch's, with which samples that are tuples become a tuple of batches.
    """
    index = torch.as_tensor(indices, dtype=torch.int64)
    if in_memory(data):
        return map_tensors(lambda tensor: tensor[index], data)
    if isinstance(data, tuple):
        return tuple(take(part, index, collate) for part in data)
    # torch's own fetcher asks for a whole batch at once where the dataset can give one.
    fetch = getattr(data, "__getitems__", None)
    places = index.tolist()
    return collated(fetch(places) if callable(fetch) else [data[i] for i in places], collate)


def in_order(data: Data, batch_size: int, collate: Collate | None = None) -> Iterator[Batch]:
    """All samples once, `batch_size` at a time, without more than one batch in memory beyond `data`."""
    if is_stream(data):
        samples = iter(data)
        while chunk := list(islice(samples, batch_size)):
            yield collated(chunk, collate)
        return
    samples_in = size(data) or 0
    for start in range(0, samples_in, batch_size):
        end = min(start + batch_size, samples_in)
        if in_memory(data):  # a view, where an index would copy
            rows = slice(start, end)
            yield map_tensors(itemgetter(rows), data)
        else:
            yield take(data, range(start, end), collate)


def first(data: Data, samples: int, collate: Collate | None = None) -> Batch:
    """The first `samples` samples. Raises UsageError where there is none."""
    for batch in in_order(data, samples, collate):
        return batch
    raise UsageError("the data hold no sample")


def on(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on a device."""
    return map_tensors(lambda tensor: tensor.to(device), batch)


def collated(samples: Sequence[Any], collate: Collate | None = None) -> Batch:
    """One batch of single samples; by torch's `default_collate` where there is no other way."""
    if collate is not None:
        return collate(samples)
    from torch.utils.data import default_collate

    batch = default_collate(list(samples))
    # default_collate turns tuples into lists.
    return tuple(batch) if samples and isinstance(samples[0], tuple) else batch


def in_memory(data: Data) -> bool:
    """Whether data are tensors that all lie in memory."""
    if isinstance(data, Tensor):
        return True
    parts = data.values() if isinstance(data, Mapping) else data if isinstance(data, tuple) else ()
    return bool(parts) and all(map(in_memory, parts))
