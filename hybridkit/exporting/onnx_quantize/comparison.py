"""A quantised file against the model it was made from."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from hybridkit.errors import FileError, HybridkitError, UsageError
from hybridkit.exporting.door import one_line
from hybridkit.runtime.session import session
from hybridkit.runtime.tensor_types import NUMPY_TYPES

if TYPE_CHECKING:
    import onnxruntime

Feed = Mapping[str, NDArray[Any]]

SILENT: Final = 4  # of ONNX Runtime's levels; what goes wrong it raises as well
LONGEST_RUN: Final = 300.0  # seconds; a hostile graph may loop for ever
_MOST_ELEMENTS: Final = 1 << 28  # of generated inputs
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


def read_inputs(path: Path) -> list[Feed]:
    """The arrays of an .npz file by name, or of each such file in a folder, by their names in order.

    Raises FileError if it is none; nothing in it is unpickled.
    """
    if path.is_dir():
        found = [_read(file) for file in sorted(path.glob("*.npz"))]
        if not found:
            raise FileError(f"{path} holds no .npz file")
        return found
    return [_read(path)]


def _read(path: Path) -> Feed:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile's, zlib's and NumPy's own have no common base
        raise FileError(f"{path}: cannot be read as an .npz file of arrays: {one_line(error)}") from None


@dataclass(frozen=True, slots=True)
class Reference:
    """What the source gives: `outputs` by name on `feed`."""

    inputs: Literal["given", "generated"]
    feed: Feed
    outputs: Feed


def run_source(source: Path, given: Feed | None) -> Reference | None:
    """The source's outputs on the given arrays, or on normal floats and integers 0 and 1.

    None where it runs on no generated inputs, or for too long. Raises FileError where it does not load,
    UsageError where the given arrays are not its inputs, or it does not run on them.
    """
    runner = session(source, native=False, log_severity_level=SILENT)
    wanted = {value.name: value for value in runner.get_inputs()}
    if given is not None:
        if set(wanted) != set(given):
            raise UsageError(
                f"{source.name} has the inputs {_list(wanted)}, the file of inputs has {_list(given)}"
            )
        try:
            return Reference("given", given, run(runner, given, source.name))
        except HybridkitError as error:
            raise UsageError(str(error)) from error
    for size in _SIZES:
        feed = _generated(wanted, size)
        if feed is None:
            return None
        try:
            return Reference("generated", feed, run(runner, feed, source.name))
        except TooLong:
            return None
        except HybridkitError:
            continue
    return None


def _generated(inputs: Mapping[str, Any], size: int) -> Feed | None:
    """Arrays for every input; None for types that NumPy lacks, and for sizes that nobody means."""
    shapes = {name: _shape(value.shape, size) for name, value in inputs.items()}
    if any(value.type not in NUMPY_TYPES for value in inputs.values()):
        return None
    if sum(map(math.prod, shapes.values())) > _MOST_ELEMENTS:
        return None
    return {name: _random(NUMPY_TYPES[value.type], shapes[name]) for name, value in inputs.items()}


def _shape(dimensions: Sequence[Any], size: int) -> list[int]:
    stated = [d if isinstance(d, int) and d > 0 else None for d in dimensions]
    return [d or (size if axis else 1) for axis, d in enumerate(stated)]


def _random(kind: type[np.generic], shape: Sequence[int]) -> NDArray[Any]:
    random = np.random.default_rng(0)
    if np.issubdtype(kind, np.floating):
        return random.normal(size=shape).astype(kind)
    return random.integers(0, 2, shape).astype(kind)


def compare(reference: Reference, packed: Path) -> Comparison:
    """Run the packed file as the source was run, by portable bodies.

    It runs once: unpacking weights at that run takes less time and memory than unpacking them to load.
    """
    runner = session(packed, native=False, low_memory=True, log_severity_level=SILENT)
    found = run(runner, reference.feed, packed.name)
    wanted = reference.outputs
    return Comparison(
        reference.inputs,
        tuple(_difference(n, wanted[n], found[n]) for n in wanted if _is_float(wanted[n])),
    )


class TooLong(HybridkitError):  # noqa: N818 - says what happened
    """A model ran for longer than anybody waits."""


def run(runner: onnxruntime.InferenceSession, feed: Feed, name: str) -> dict[str, Any]:
    """The outputs by name. Raises HybridkitError where the model does not run on `feed`, or for too long."""
    import onnxruntime

    names = [value.name for value in runner.get_outputs()]
    options = onnxruntime.RunOptions()
    options.log_severity_level = SILENT
    clock = threading.Timer(LONGEST_RUN, setattr, (options, "terminate", True))
    clock.daemon = True
    clock.start()
    try:
        return dict(zip(names, runner.run(names, dict(feed), options), strict=True))
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        if options.terminate:
            raise TooLong(f"{name} runs for more than {LONGEST_RUN:g} seconds on these inputs") from error
        raise HybridkitError(f"{name} does not run on these inputs: {one_line(error)}") from error
    finally:
        clock.cancel()


def _is_float(array: Any) -> bool:
    return isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.floating)


def _difference(name: str, wanted: NDArray[Any], found: NDArray[Any]) -> Difference:
    x, y = wanted.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    size = float(np.linalg.norm(x))
    cosine = float(x @ y) / (size * float(np.linalg.norm(y)) or 1.0)
    return Difference(name, float(np.linalg.norm(x - y)) / (size or 1.0), cosine)


def _list(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"
