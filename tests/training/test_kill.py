"""SIGKILL at a random moment of a real process; the resumed run equals one that was never stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from same_run import assert_same_run

from hybridkit.training.config import resolve
from hybridkit.training.loop import resume, train
from hybridkit.training.runs import newest_run

TASK = "tiny_task:tiny"
FIXTURES = Path(__file__).parent / "fixtures"
ARGUMENTS = ["--hybrid", "--ternary", "--qat", "--epochs", "5", "--batch-size", "6", "--data-clusters", "3"]
CONFIG = resolve(task=TASK, hybrid=True, ternary=True, qat=True, epochs=5, batch_size=6, data_clusters=3)


def start(root: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(FIXTURES), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hybridkit", "train", "--task", TASK, "--run-dir", str(root), *ARGUMENTS]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def steps_logged(root: Path) -> int:
    path = next(root.glob("*/metrics.jsonl"), None)
    return path.read_text().count('"event": "step"') if path else 0


@pytest.mark.slow
def test_killed_at_a_random_step_and_resumed(tmp_path: Path) -> None:
    killed_at = random.SystemRandom().randrange(13, 55)  # an epoch has 12 steps
    victim = start(tmp_path / "victim")
    while steps_logged(tmp_path / "victim") < killed_at and victim.poll() is None:
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() in (-signal.SIGKILL, 0)

    expected = train(CONFIG, run_dir=tmp_path / "whole").run
    resumed = resume(newest_run(tmp_path / "victim"), trusted={TASK}).run
    assert_same_run(expected, resumed)
    assert resumed.checkpoint().step == 60
    assert expected.packed_path.read_bytes() == resumed.packed_path.read_bytes()


LINGERING = """
import os, sys
from hybridkit.packing import atomic
from hybridkit.training import checkpoint
def killed(*_): os.kill(os.getpid(), 9)
atomic.os.replace = killed
from hybridkit.__main__ import main
main()
"""


def test_what_a_killed_run_left_is_gone_after_the_next_start(tmp_path: Path) -> None:
    line = ["train", "--task", TASK, "--run-dir", str(tmp_path), "--max-steps", "3", "--batch-size", "6"]
    environment = {**os.environ, "PYTHONPATH": str(FIXTURES), "OMP_NUM_THREADS": "1"}
    for _ in range(2):  # killed while config.json is put in its place: no run yet
        done = subprocess.run([sys.executable, "-c", LINGERING, *line], env=environment, check=False)
        assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*/.config.json.*.tmp"))) >= 1
    train(CONFIG, run_dir=tmp_path)
    assert not list(tmp_path.glob("**/.*.tmp"))
