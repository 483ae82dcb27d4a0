"""SIGINT, SIGTERM, SIGHUP (a closed terminal): asked about between two steps, a clean exception elsewhere."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from hybridkit.errors import InterruptedRun

SIGNALS = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
Handler = Callable[[int, FrameType | None], None]


@contextlib.contextmanager
def stop_requests(*, once: bool = False) -> Iterator[Callable[[], bool]]:
    """A function that says whether one of the signals arrived within the block.

    The first signal only sets a flag; a second one acts as it did before the block. With `once` it sets the
    flag too: torchrun passes on to its processes what a terminal has sent to all of them already, and ends by
    force what stays.
    """
    arrived = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal arrived
        arrived = True
        if not once:
            restore()

    with _handled(note) as restore:
        yield lambda: arrived


@contextlib.contextmanager
def interruptible(message: str) -> Iterator[None]:
    """Within the block a signal raises InterruptedRun(message) at once.

    Code in the block may swallow that, or make another exception of it; it is raised again at the end.
    """
    arrived = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal arrived
        arrived = True
        restore()
        raise InterruptedRun(message)

    with _handled(stop) as restore:
        try:
            yield
        finally:
            if arrived:
                raise InterruptedRun(message) from None


@contextlib.contextmanager
def _handled(handler: Handler) -> Iterator[Callable[[], None]]:
    """Install a handler for the signals; yields what puts the previous ones back.

    One that is ignored (by nohup, in a background job) stays so. Outside the main thread Python delivers no
    signals, and nothing is installed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in heeded}

    def restore() -> None:
        for number, before in previous.items():
            signal.signal(number, before)

    try:
        yield restore
    finally:
        restore()
