"""A run folder whose hashes are right may hold anything: resuming it works, or says in one line why not."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import tempfile
from pathlib import Path
from random import Random

import damage
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybridkit.cli import run as hybridkit

ARGUMENTS = {
    "default": ["--hybrid", "--ternary", "--qat", "--sampler", "per-cluster"],
    "learned": ["--hybrid", "--ternary", "--qat", "--lr-controller", "aux-nn"],
    "adamw": ["--lr-controller", "hypergradient", "--qat", "--target-bits", "2"],
}
CODE = ["--task", "tiny_task:tiny"]


@pytest.fixture(scope="module", params=ARGUMENTS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    line = ["train", *CODE, *ARGUMENTS[request.param], "--batch-size", "12", "--max-steps", "4"]
    assert hybridkit([*line, "--run-dir", str(root)]) == 0
    return next(root.iterdir())


def outcome(run: Path) -> str:
    """What comes of resuming: "ok", or the complaint, which is checked."""
    out, complaint = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(complaint):
        code = hybridkit(["train", "--resume", str(run), *CODE, "--max-steps", "7", "--save-metrics"])
    lines = [line for line in complaint.getvalue().split("\n") if "warning: " not in line]
    text = "\n".join(lines)
    assert all(c.isprintable() for c in (out.getvalue() + complaint.getvalue()).replace("\n", "")), text
    if code == 0:
        assert text == ""
        return "ok"
    assert code in (1, 2)
    assert re.fullmatch(r"hybridkit: error: .+\n", text), text
    assert len(text) < 1500
    return text


def damaged(whole: Path, folder: str, seed: int, file: str, times: int) -> Path:
    run = Path(shutil.copytree(whole, Path(folder) / "run"))
    damage.damage(run, Random(seed), file, times)
    return run


@given(st.integers(0, 2**32), st.sampled_from(damage.FILES), st.integers(1, 3))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_one_line_or_does_not_matter(whole: Path, seed: int, file: str, times: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        outcome(damaged(whole, folder, seed, file, times))
