"""The progress line of `hybridkit train`."""

from __future__ import annotations

import re

import pytest

from hybridkit.cli._train_report import Memory, Pace


def test_pace_is_of_the_last_steps_in_what_the_task_counts() -> None:
    pace = Pace()
    assert pace.add({"samples": 32, "seconds": 0.5}) == "64 samples/s"
    for _ in range(Pace.STEPS):
        text = pace.add({"samples": 32, "seconds": 0.01})
    assert text == "3,200 samples/s"
    assert Pace().add({"samples": 2, "tokens": 1000, "seconds": 0.25}) == "4,000 tokens/s"
    assert Pace().add({"samples": 1, "seconds": 0.0}).endswith("samples/s")


def test_memory_is_looked_at_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    memory = Memory()
    first = memory.text()
    assert re.fullmatch(r"\d+\.\d GiB( CUDA)?", first)
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 3 * 2**30)
    assert memory.text() == first
    now[0] += 1.5
    assert memory.text() == "3.0 GiB CUDA"
