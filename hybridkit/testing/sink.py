"""What every metric sink promises."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hybridkit.sinks.protocol import MetricSink, RunInfo

Seen = Mapping[str, Mapping[int, float]]  # step -> value, by event/name


class MetricSinkContract(ABC):
    """`make` returns the sink, new each time; what it writes to should lie below `self.folder`.

    `seen` reads back what somebody who looks at the run now sees there, as {"step/loss": {step: value}}. A
    sink that cannot be read from a test leaves it out; what is superseded is then not checked.
    """

    folder: Path

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    @abstractmethod
    def make(self) -> MetricSink:
        """The sink."""

    def seen(self, folder: Path) -> Seen | None:
        """The numbers of the run whose `RunInfo.folder` was `folder`; None: not readable."""
        return None

    def test_a_run_from_beginning_to_end(self) -> None:
        self._process(0, 3, ended=True)
        self._expect({1: 1.0, 2: 0.5, 3: 1 / 3})

    def test_takes_every_kind_of_value(self) -> None:
        sink = self.make()
        assert sink.open(self._run()) == 0, "a new run has nothing"
        values = {"a": 1, "b": True, "c": None, "d": [1.0, None, 2], "e": [], "sample": "a\n<b>\0"}
        before = dict(values)
        for event in ("step", "epoch", "evaluation", "final"):
            sink.write(event, 1, values)
        sink.write("evaluation", 2, {"layers": ["x", "y"], "nothing": None})
        sink.close(ended=True)
        assert values == before, "it changed the record"

    def test_an_empty_run(self) -> None:
        sink = self.make()
        sink.open(self._run())
        sink.close(ended=False)

    def test_goes_on_where_it_stopped(self) -> None:
        self._process(0, 2, ended=False)
        assert 0 <= self._process(2, 4, logged=2) <= 2
        self._expect({step: 1 / step for step in range(1, 5)})

    def test_what_came_after_the_checkpoint_is_superseded(self) -> None:
        self._process(0, 4, ended=False)
        assert 0 <= self._process(2, 3, logged=4, shift=10.0) <= 2
        self._expect({1: 1.0, 2: 0.5, 3: 10 + 1 / 3})

    def test_a_run_that_began_without_it(self) -> None:
        assert self._process(2, 3, logged=2) == 0, "it has nothing of the steps before"
        self._expect({1: 1.0, 2: 0.5, 3: 1 / 3})

    def test_does_not_disturb_the_random_state_when_it_writes(self) -> None:
        sink = self.make()
        sink.open(self._run())
        before = self._random_states()
        for step in range(1, 4):
            sink.write("step", step, {"loss": 1.0 / step})
        assert self._random_states() == before
        sink.close(ended=True)

    def _run(self, step: int = 0, logged: int = 0) -> RunInfo:
        folder = self.folder / "sink"
        folder.mkdir(exist_ok=True)
        config: dict[str, Any] = {"task": "digits", "lr": 0.1, "model": None, "options": {"task": {"a": 1}}}
        return RunInfo(
            name="a-run",
            folder=folder,
            step=step,
            logged=logged,
            config=config,
            environment={"torch": "2.9", "git_commit": None},
        )

    def _process(
        self, begin: int, end: int, *, logged: int = 0, ended: bool = True, shift: float = 0.0
    ) -> int:
        """What one process of a run writes, as `Sinks` has it; returns what `open` did."""
        sink = self.make()
        known = sink.open(self._run(begin, logged))
        for step in range(known + 1, end + 1):
            sink.write("step", step, {"loss": 1 / step + (shift if step > begin else 0.0)})
        sink.close(ended=ended)
        return known

    def _expect(self, losses: Mapping[int, float]) -> None:
        seen = self.seen(self.folder / "sink")
        if seen is not None:
            assert dict(seen["step/loss"]) == pytest.approx(losses, rel=1e-6)

    @staticmethod
    def _random_states() -> tuple[Any, ...]:
        numpy = np.random.get_state()  # noqa: NPY002
        return random.getstate(), str(numpy), torch.get_rng_state().tolist()
