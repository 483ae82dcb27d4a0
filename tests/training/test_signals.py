from __future__ import annotations

import os
import signal
import threading

import pytest

from hybridkit.errors import InterruptedRun
from hybridkit.training.signals import SIGNALS, interruptible, stop_requests

BOTH = pytest.mark.parametrize("number", SIGNALS)


@BOTH
def test_the_first_signal_is_a_request_the_second_acts_as_before(number: signal.Signals) -> None:
    seen: list[int] = []
    before = signal.signal(number, lambda n, _: seen.append(n))
    try:
        with stop_requests() as stop_requested:
            assert not stop_requested()
            os.kill(os.getpid(), number)
            assert stop_requested()
            assert not seen
            os.kill(os.getpid(), number)
            assert seen == [number]
    finally:
        signal.signal(number, before)


@BOTH
def test_elsewhere_a_signal_is_a_clean_exception(number: signal.Signals) -> None:
    before = signal.signal(number, signal.default_int_handler)
    try:
        with (
            pytest.raises(InterruptedRun, match="nothing was written") as error,
            interruptible("nothing was written"),
        ):
            os.kill(os.getpid(), number)
        assert error.value.exit_code == 130
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("other", [None, ImportError("half loaded")])
def test_an_interruption_that_was_swallowed_is_raised_again(other: Exception | None) -> None:
    def swallow() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:
            if other:
                raise other from None

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(InterruptedRun, match="nothing was written"), interruptible("nothing was written"):
            swallow()
    finally:
        signal.signal(signal.SIGTERM, before)


@BOTH
def test_an_ignored_signal_stays_ignored(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stop_requests() as stop_requested, interruptible("never"):
            os.kill(os.getpid(), number)
            assert not stop_requested()
    finally:
        signal.signal(number, before)


def test_another_thread_is_never_asked_to_stop() -> None:
    answers: list[bool] = []

    def work() -> None:
        with stop_requests() as stop_requested, interruptible("never"):
            answers.append(stop_requested())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]
