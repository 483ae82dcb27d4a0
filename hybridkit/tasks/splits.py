"""Fixed train, validation and test parts."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridkit.errors import UsageError
from hybridkit.tasks.protocol import Splits


def fixed_permutation(n: int, seed: int) -> NDArray[np.int64]:
    """A permutation of range(n) that is the same with every version of NumPy.

    NumPy promises to keep the raw stream of a bit generator, but not what `Generator.permutation` makes of
    it.
    """
    keys = np.random.PCG64(seed).random_raw(n)
    return np.argsort(keys, kind="stable").astype(np.int64)


def stratified_indices(
    labels: NDArray[np.int64], fractions: tuple[float, ...], seed: int
) -> list[NDArray[np.int64]]:
    """Disjoint index sets, one per fraction, and last one with the rest; each class is shared out alike.

    The samples, ordered by class and shuffled within each, sit evenly on [0, 1) of their class; a set takes
    an interval. Each set is sorted. Depends on `labels`, `fractions` and `seed` alone.
    """
    order = fixed_permutation(len(labels), seed)
    sets: list[list[NDArray[np.int64]]] = [[] for _ in range(len(fractions) + 1)]
    for label in np.unique(labels):
        members = order[labels[order] == label]
        cuts = np.round(np.cumsum(fractions) * len(members)).astype(int)
        for part, chosen in zip(sets, np.split(members, cuts), strict=True):
            part.append(chosen)
    return [np.sort(np.concatenate(part)) for part in sets]


def stratified_splits(
    inputs: Tensor, targets: Tensor, *, validation: float = 0.1, test: float = 0.2, seed: int = 0
) -> Splits:
    """Splits of (inputs [samples, ...], targets int64 [samples]) in which every class has its share.

    Raises UsageError if the two differ in length or a part would be empty.
    """
    if len(inputs) != len(targets):
        raise UsageError(f"there are {len(inputs)} inputs but {len(targets)} targets")
    parts = stratified_indices(targets.numpy(), (validation, test), seed)
    if not all(len(part) for part in parts):
        raise UsageError(f"{len(inputs)} samples are too few for a training, a validation and a test part")
    held_out, tested, rest = ((inputs[i], targets[i]) for i in map(torch.from_numpy, parts))
    return Splits(train=rest, validation=held_out, test=tested)


def fingerprint(*tensors: Tensor) -> str:
    """sha256 of the tensors' bytes, dtypes and shapes: what `provenance` records about data."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return digest.hexdigest()
