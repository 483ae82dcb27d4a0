"""Timing several things fairly: they take turns, round after round; the median of the rounds' medians."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from hybridkit.runtime import register

WARM_UP_SECONDS = 0.002  # before each turn, for the caches
IDLE_SECONDS, LONGEST_WAIT = 0.005, 0.5


class Timed(Protocol):
    """Something that can be timed: `products` matrix products in a call."""

    products: int

    def seconds(self, calls: int) -> float:
        """The median time of a call, in seconds."""


class OrtRun:
    """An ONNX model with inputs x0, x1, ... [m, k], all fed the same numbers, and bound outputs [m, n]."""

    def __init__(self, session: ort.InferenceSession, m: int) -> None:
        self.session, self.binding = session, session.io_binding()
        inputs, outputs = session.get_inputs(), session.get_outputs()
        self.products = len(inputs)
        x = np.random.default_rng(m).standard_normal((m, inputs[0].shape[1]), np.float32)
        self._x = ort.OrtValue.ortvalue_from_numpy(x)
        for value in inputs:
            self.binding.bind_ortvalue_input(value.name, self._x)
        for value in outputs:
            y = ort.OrtValue.ortvalue_from_shape_and_type([m, value.shape[1]], np.float32)
            self.binding.bind_ortvalue_output(value.name, y)

    def seconds(self, calls: int) -> float:
        """The median time of a run, in seconds."""
        run, binding, clock = self.session.run_with_iobinding, self.binding, time.perf_counter_ns
        found = []
        for _ in range(calls):
            start = clock()
            run(binding)
            found.append(clock() - start)
        return median(found) * 1e-9


class Net:
    """A product without its host's own call: after each product the same host runs a graph that does nothing.

    In turn, because a product's weights push the host's code and data out of the caches, and that belongs to
    the call: a graph that does nothing, run by itself, takes 2.5 us, and 4.5 us after 2 MB have been read
    (Zen 4).
    """

    def __init__(self, product: Timed, nothing: Timed) -> None:
        self._product, self._nothing, self.products = product, nothing, product.products
        self.call = 0.0  # seconds of the last calls that did nothing, the median

    def seconds(self, calls: int) -> float:
        """The median time of a call less that of one that does nothing, in seconds."""
        pairs = [(self._product.seconds(1), self._nothing.seconds(1)) for _ in range(calls)]
        self.call = median(nothing for _, nothing in pairs)
        return max(median(product for product, _ in pairs) - self.call, 1e-9)


def ort_session(model: bytes, threads: int, *, native: bool = False) -> ort.InferenceSession:
    """A session on the CPU; `native`: with our operators, which must be there."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if native and not register(options):
        raise SystemExit("the native library is missing: build it, or name it in HYBRIDKIT_LIBRARY")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def compare(timed: Mapping[str, Timed], *, rounds: int, budget: float) -> dict[str, float]:
    """Seconds of a call of each, `budget` seconds of measuring a round; overheads are still in it."""
    once = {name: (one.seconds(1), one.seconds(1))[1] for name, one in timed.items()}
    calls = {name: max(1, min(5000, int(budget / seconds))) for name, seconds in once.items()}
    warm_up = {
        name: min(100, math.ceil(WARM_UP_SECONDS / seconds)) if seconds < 0.02 else 0
        for name, seconds in once.items()
    }
    found: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(rounds):
        for name in rotated(list(timed), turn):
            wait_until_idle()
            if warm_up[name]:
                timed[name].seconds(warm_up[name])
            found[name].append(timed[name].seconds(calls[name]))
    return {name: median(values) for name, values in found.items()}


def wait_until_idle() -> None:
    """Wait until no thread of this process runs: ONNX Runtime's spin on for a while after a run."""
    ends = time.perf_counter() + LONGEST_WAIT
    while time.perf_counter() < ends:
        used = time.process_time()
        time.sleep(IDLE_SECONDS)
        if time.process_time() - used < IDLE_SECONDS / 10:
            return


def rotated(names: Sequence[Any], turn: int) -> list[Any]:
    """Another one goes first in each round."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]
