"""The error types a user meets, each with the exit code of the command that raises it.

Exit codes: 0 ok, 1 failure, 2 usage, 3 a quality or size gate was missed, 130 interrupted.
Messages are one line: what is wrong, and what to do.
"""

from __future__ import annotations

LONGEST = 1000  # characters of a message


def printable(text: str) -> str:
    """`text` with control characters and other invisible ones, which a file may hold, spelled out.

    The middle of a very long one is left out.
    """
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - 300]} ... {text[-200:]}"
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


class HybridkitError(Exception):
    """Something failed; the message says what and what to do, and is `printable`."""

    exit_code = 1
    said: bool | None = None  # whether another process of the same run has printed it; None: there is none

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


class UsageError(HybridkitError, ValueError):
    """The caller asked for something that does not exist or does not fit together."""

    exit_code = 2


class FileError(HybridkitError):
    """A file is missing, truncated, corrupted or of another kind than expected."""


class NotFiniteError(HybridkitError):
    """A loss or a gradient is not finite; nothing was updated."""


class GateError(HybridkitError):
    """A result missed a quality or size gate; nothing was written."""

    exit_code = 3


class InterruptedRun(HybridkitError):  # noqa: N818 - the run was interrupted; nothing went wrong
    """SIGINT, SIGTERM or SIGHUP arrived; the work so far is saved."""

    exit_code = 130
