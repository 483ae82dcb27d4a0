"""A quantised file against the model it was made from."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from hybridkit.errors import FileError, HybridkitError, UsageError
from hybridkit.runtime.session import session
from hybridkit.runtime.tensor_types import NUMPY_TYPES

Feed = Mapping[str, NDArray[Any]]

_SIZES: Final = (64, 48, 32, 16, 4, 1)  # to try for dimensions without one, but the first, the batch: 1


@dataclass(frozen=True, slots=True)
class Difference:
    """One output: relative_error = ||y - q|| / ||y||; cosine similarity of the two, as one vector each."""

    output: str
    relative_error: float
    cosine: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outputs on `inputs`: the user's, or generated ones, which say little about a trained network."""

    inputs: Literal["given", "generated"]
    outputs: tuple[Difference, ...]


def read_inputs(path: Path) -> Feed:
    """The arrays of an .npz file by name. Raises FileError if it is none; nothing in it is unpickled."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError) as error:
        raise FileError(f"{path}: cannot be read as an .npz file of arrays: {error}") from None


def check_inputs(source: Path, feed: Feed) -> None:
    """Raise UsageError where the arrays are not the model's inputs, or it does not run on them."""
    wanted = {value.name for value in _inputs(source)}
    if wanted != set(feed):
        raise UsageError(
            f"{source.name} has the inputs {_list(wanted)}, the file of inputs has {_list(feed)}"
        )
    try:
        run(source, feed)
    except HybridkitError as error:
        raise UsageError(str(error)) from error


def generate_inputs(source: Path) -> Feed | None:
    """Normal floats, and integers 0 and 1, for every input; None where the model does not run on them."""
    inputs = _inputs(source)
    if any(value.type not in NUMPY_TYPES for value in inputs):
        return None
    for size in _SIZES:
        feed = {value.name: _random(NUMPY_TYPES[value.type], _shape(value.shape, size)) for value in inputs}
        with contextlib.suppress(HybridkitError):
            run(source, feed)
            return feed
    return None


def _shape(dimensions: Sequence[Any], size: int) -> list[int]:
    stated = [d if isinstance(d, int) and d > 0 else None for d in dimensions]
    return [d or (size if axis else 1) for axis, d in enumerate(stated)]


def _random(kind: type[np.generic], shape: Sequence[int]) -> NDArray[Any]:
    random = np.random.default_rng(0)
    if np.issubdtype(kind, np.floating):
        return random.normal(size=shape).astype(kind)
    return random.integers(0, 2, shape).astype(kind)


def compare(source: Path, packed: Path, feed: Feed, inputs: Literal["given", "generated"]) -> Comparison:
    """Run both files on `feed`, by portable bodies."""
    wanted, found = run(source, feed), run(packed, feed)
    return Comparison(
        inputs, tuple(_difference(n, wanted[n], found[n]) for n in wanted if _is_float(wanted[n]))
    )


def run(path: Path, feed: Feed) -> dict[str, Any]:
    """The outputs by name. Raises HybridkitError where the model does not run on `feed`."""
    runner = session(path, native=False, log_severity_level=4)
    names = [value.name for value in runner.get_outputs()]
    try:
        return dict(zip(names, runner.run(names, dict(feed)), strict=True))
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        raise HybridkitError(
            f"{path.name} does not run on these inputs: {' '.join(str(error).split())}"
        ) from error


def _inputs(path: Path) -> Sequence[Any]:
    inputs: Sequence[Any] = session(path, native=False, log_severity_level=4).get_inputs()
    return inputs


def _is_float(array: Any) -> bool:
    return isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.floating)


def _difference(name: str, wanted: NDArray[Any], found: NDArray[Any]) -> Difference:
    x, y = wanted.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    size = float(np.linalg.norm(x))
    cosine = float(x @ y) / (size * float(np.linalg.norm(y)) or 1.0)
    return Difference(name, float(np.linalg.norm(x - y)) / (size or 1.0), cosine)


def _list(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"
