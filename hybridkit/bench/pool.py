"""Work spread over processes with one thread each, every result kept, nothing done twice."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)
R = TypeVar("R")
Tick = Callable[[], None]


class Kept(Protocol[S_contra, R]):
    """Results that outlive the process."""

    def find(self, job: S_contra, /) -> R | None:
        """A result, if it is known and still valid."""
        ...

    def add(self, job: S_contra, record: R, /) -> None:
        """Keep one."""
        ...


class Runs(Generic[S, R]):
    """Results by specification. `measure` is a module-level function that the processes of `executor` call.

    `executor` None works in this process. What `kept` knows is not measured again, and it is told the rest.
    """

    def __init__(
        self, measure: Callable[[S], R], executor: Executor | None, kept: Kept[S, R] | None = None
    ) -> None:
        self.measure, self.executor, self.kept = measure, executor, kept
        self.results: dict[S, R] = {}

    def missing(self, specs: Iterable[S]) -> list[S]:
        """The specifications that have no result yet, each once, in order."""
        return [spec for spec in dict.fromkeys(specs) if not self._known(spec)]

    def _known(self, spec: S) -> bool:
        if spec not in self.results and self.kept and (found := self.kept.find(spec)) is not None:
            self.results[spec] = found
        return spec in self.results

    def get(self, specs: Iterable[S], tick: Tick = lambda: None) -> dict[S, R]:
        """The result of every specification, in order; what is missing is measured first.

        `tick` is called after each measurement. The first failure is raised.
        """
        specs = list(specs)
        for spec, result in self._measured(self.missing(specs)):
            self.results[spec] = result
            if self.kept:
                self.kept.add(spec, result)
            tick()
        return {spec: self.results[spec] for spec in specs}

    def _measured(self, specs: list[S]) -> Iterator[tuple[S, R]]:
        if self.executor is None:
            yield from ((spec, self.measure(spec)) for spec in specs)
            return
        waiting = {self.executor.submit(self.measure, spec): spec for spec in specs}
        for future in as_completed(waiting):
            yield waiting[future], future.result()


@contextmanager
def processes(count: int) -> Iterator[Executor]:
    """`count` processes of one OpenMP thread each; what has not begun when the block is left is dropped.

    They are spawned, because a fork of a process in which torch or ONNX Runtime has threads may hang.
    """
    with _single_threaded():
        executor = ProcessPoolExecutor(
            count, mp_context=multiprocessing.get_context("spawn"), initializer=_end_on_interrupt
        )
        try:
            yield executor
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _end_on_interrupt() -> None:
    """On Ctrl-C a process ends at once and says nothing: its parent speaks for all."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Processes started inside the block use one OpenMP thread: torch reads the variable when imported."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
