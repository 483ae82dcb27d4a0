"""Ctrl-C in real processes, at chosen moments and several times over; closed terminals."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent / "training" / "fixtures"
TRAIN = ["train", "--task", "tiny_task:tiny", "--batch-size", "6"]

# Sends SIGINT to itself, so many times, when so many modules have been looked for since the command began.
AT_AN_IMPORT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
moment, times, *arguments = sys.argv[1:]

class Clock:
    seen = 0
    def find_spec(self, name, path=None, target=None):
        Clock.seen += 1
        if Clock.seen == int(moment):
            for _ in range(int(times)):
                os.kill(os.getpid(), signal.SIGINT)

from hybridkit.__main__ import main
sys.meta_path.insert(0, Clock())
sys.argv[1:] = arguments
main()
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(FIXTURES), "OMP_NUM_THREADS": "1", "HYBRIDKIT_TRAIN_THREADS": "1"}


def heed_interrupts() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):  # children of background jobs and nohup ignore them
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize("moment", [1, 40, 200, 1000])
def test_while_modules_load(tmp_path: Path, moment: int, times: int) -> None:
    command = [sys.executable, "-c", AT_AN_IMPORT, str(moment), str(times), *TRAIN, "--max-steps", "1"]
    line = [*command, "--run-dir", str(tmp_path / "runs")]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, check=False)
    assert re.fullmatch(r"(?s:.*\n)?hybridkit: error: (interrupted|stopped .*)\n", "\n" + done.stderr), (
        done.stderr
    )
    assert done.stderr.count("\n") == 1
    assert done.returncode == 130


def started(root: Path, **how: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "hybridkit", *TRAIN, "--epochs", "100000", "--run-dir", str(root)]
    victim = subprocess.Popen(command, env=environment(), preexec_fn=heed_interrupts, **how)  # type: ignore[call-overload]
    while not next(root.glob("*/checkpoints/latest"), None):
        assert victim.poll() is None
        time.sleep(0.02)
    return victim


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_while_it_trains_the_state_is_saved(tmp_path: Path, number: signal.Signals) -> None:
    victim = started(tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    victim.send_signal(number)
    _, complaint = victim.communicate()
    assert re.fullmatch(rb"hybridkit: error: [^\n]*after step \d+; saved[^\n]*\n", complaint), complaint
    assert victim.returncode == 130


def test_five_quick_interrupts_leave_one_line(tmp_path: Path) -> None:
    victim = started(tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    for _ in range(5):
        victim.send_signal(signal.SIGINT)
        time.sleep(0.001)
    _, complaint = victim.communicate()
    assert re.fullmatch(rb"hybridkit: error: [^\n]+\n", complaint), complaint
    assert victim.returncode == 130


def test_a_closed_terminal_saves_the_state(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    victim = started(tmp_path, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.close(ours)
    victim.send_signal(signal.SIGHUP)  # as the kernel does for the terminal's own session
    assert victim.wait() == 130
    run = next(tmp_path.iterdir())
    latest = int((run / "checkpoints" / "latest").read_text().removeprefix("step-"))
    logged = (run / "metrics.jsonl").read_text().count('"event": "step"')
    assert latest == logged
