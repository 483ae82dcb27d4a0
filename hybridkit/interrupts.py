"""Ctrl-C ends a command with one line, whenever it comes and however often.

Nothing here imports more than the interpreter has loaded anyway: it is in place before anything else is.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

EXIT_CODE = 130

_arrived = False
_installed = False


def install() -> None:
    """The first SIGINT raises KeyboardInterrupt; a second one, or one that was swallowed, ends the process.

    Where SIGINT is ignored, as in background jobs, it stays so.
    """
    global _installed
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _installed = True
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _unraisable


def arrived() -> bool:
    """Whether a KeyboardInterrupt is, or was, on its way; other exceptions may have taken its place."""
    return _arrived


def settle() -> None:
    """From here on nothing interrupts: the last line is being printed."""
    if _installed:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def leave() -> None:
    """Say that the command was interrupted, and end the process where it stands."""
    settle()
    show_cursor = b"\x1b[?25h" if os.isatty(2) else b""  # a live display may have hidden it
    try:
        os.write(2, show_cursor + b"hybridkit: error: interrupted\n")
    finally:
        os._exit(EXIT_CODE)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _arrived
    if _arrived:
        leave()
    _arrived = True
    raise KeyboardInterrupt


def _unraisable(found: Any) -> None:
    """Called for an exception that nobody can catch, in a destructor for instance."""
    from hybridkit.errors import InterruptedRun

    if issubclass(found.exc_type, InterruptedRun):
        return  # whoever raised it asks again
    if _arrived and issubclass(found.exc_type, KeyboardInterrupt):
        leave()
    sys.__unraisablehook__(found)
