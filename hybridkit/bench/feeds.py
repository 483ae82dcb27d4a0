"""Inputs for a model of which only the file is known. NumPy only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from hybridkit.errors import UsageError
from hybridkit.runtime.tensor_types import NUMPY_TYPES

if TYPE_CHECKING:
    import onnxruntime

FREE_SIZE: Final = 64  # of a free dimension other than the batch, where the file records no example
Feed = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Input:
    """A model's input. `shape` holds the size of a fixed dimension, the name of a free one."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]

    @property
    def batch_is_free(self) -> bool:
        """Whether the first dimension may have any size."""
        return bool(self.shape) and isinstance(self.shape[0], str)


def model_inputs(session: onnxruntime.InferenceSession) -> list[Input]:
    """The inputs of a loaded model. Raises UsageError for a type that cannot be made up."""
    found = []
    for value in session.get_inputs():
        if value.type not in NUMPY_TYPES:
            raise UsageError(f"input {value.name!r} is a {value.type}, which the bench cannot make up")
        shape = tuple(
            size if isinstance(size, int) else (size or f"{value.name}.{axis}")
            for axis, size in enumerate(value.shape)
        )
        found.append(Input(value.name, np.dtype(NUMPY_TYPES[value.type]), shape))
    return found


def recorded_shapes(metadata: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """The example shape of each input that hybridkit wrote into a file, by name; empty for foreign files."""
    try:
        inputs = json.loads(metadata.get("hybridkit.inputs", "[]"))
        return {str(i["name"]): tuple(int(size) for size in i["shape"]) for i in inputs}
    except (ValueError, TypeError, KeyError):
        return {}


def feed(
    inputs: list[Input], batch: int, seed: int, *, bound: int, examples: Mapping[str, tuple[int, ...]]
) -> Feed:
    """Random inputs: normal floats, integers in [0, bound). A free first dimension is `batch`.

    Another free dimension has the size it has in `examples`, or else FREE_SIZE; equal names, equal sizes.
    """
    generator = np.random.default_rng(seed)
    sizes: dict[str, int] = {}
    for value in inputs:
        example = examples.get(value.name, ())
        for axis, name in enumerate(value.shape):
            if isinstance(name, str):
                known = example[axis] if len(example) == len(value.shape) else FREE_SIZE
                sizes.setdefault(name, batch if axis == 0 else known)
    return {
        value.name: random_array(
            generator, [sizes[x] if isinstance(x, str) else x for x in value.shape], value.dtype, bound
        )
        for value in inputs
    }


def random_array(
    generator: np.random.Generator, shape: Sequence[int], dtype: np.dtype[Any], bound: int
) -> NDArray[Any]:
    """Normal floats, integers in [0, bound), or truth values."""
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, 2 if dtype.kind == "b" else bound, shape).astype(dtype)
