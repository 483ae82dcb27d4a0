"""Work spread over processes with one thread each, every result kept, nothing done twice."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Generic, TypeVar

S = TypeVar("S")
R = TypeVar("R")
Tick = Callable[[], None]


class Runs(Generic[S, R]):
    """Results by specification. `measure` is a module-level function; `workers` processes call it.

    Processes are spawned, because a fork of a process in which torch or ONNX Runtime has threads may hang;
    `workers` 0 works in this process.
    """

    def __init__(self, measure: Callable[[S], R], workers: int) -> None:
        self.measure, self.workers = measure, workers
        self.results: dict[S, R] = {}

    def missing(self, specs: Iterable[S]) -> list[S]:
        """The specifications that have no result yet, each once, in order."""
        return [spec for spec in dict.fromkeys(specs) if spec not in self.results]

    def get(self, specs: Iterable[S], tick: Tick = lambda: None) -> dict[S, R]:
        """The result of every specification; what is missing is measured first.

        `tick` is called after each measurement. The first failure cancels the rest and is raised.
        """
        specs = list(specs)
        for spec, result in self._measured(self.missing(specs)):
            self.results[spec] = result
            tick()
        return {spec: self.results[spec] for spec in specs}

    def _measured(self, specs: list[S]) -> Iterator[tuple[S, R]]:
        if self.workers == 0:
            yield from ((spec, self.measure(spec)) for spec in specs)
            return
        if not specs:
            return
        with single_threaded(), processes(min(self.workers, len(specs))) as executor:
            waiting = {executor.submit(self.measure, spec): spec for spec in specs}
            for future in as_completed(waiting):
                yield waiting[future], future.result()


@contextmanager
def processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """`count` spawned processes; what has not begun when the block is left is dropped."""
    executor = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Processes started inside the block use one OpenMP thread: the variable is read when torch is imported."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
