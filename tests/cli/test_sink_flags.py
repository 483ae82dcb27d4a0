"""`--sink` and its options, from flags, the environment and config files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybridkit.cli import run as command_line


def configured(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The configuration that these arguments mean."""
    assert command_line(["train", "--max-steps", "1", "--dry-run", "--json", *arguments]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["config"]
    return found


def test_flags(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--sink", "wandb,mlflow", "--sink", "tensorboard", "--set", "metric_sink.wandb.project=p"]
    found = configured([*flags, "--set", "metric-sink.tensorboard.flush-seconds=5"], capsys)
    assert found["sink"] == ["wandb", "mlflow", "tensorboard"]
    assert found["options"] == {
        "metric_sink": {"wandb": {"project": "p"}, "tensorboard": {"flush_seconds": "5"}}
    }


def test_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HYBRIDKIT_TRAIN_SINK", "wandb,mlflow")
    assert configured([], capsys)["sink"] == ["wandb", "mlflow"]
    assert configured(["--sink", "none"], capsys)["sink"] == []


@pytest.mark.parametrize(
    "text",
    [
        'sink = "wandb"\n[metric_sink]\nproject = "p"\n',
        'sink = ["wandb"]\n[metric_sink.wandb]\nproject = "p"\n',
        '[metric-sink]\nname = "wandb"\nproject = "p"\n',
    ],
)
def test_config_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    found = configured(["--config", str(tmp_path / "c.toml")], capsys)
    assert found["sink"] == ["wandb"]
    assert found["options"] == {"metric_sink": {"wandb": {"project": "p"}}}


def test_a_name_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["train", "--sink", "tensorbord"]) == 2
    assert capsys.readouterr().err == (
        "hybridkit: error: no metric-sink is called 'tensorbord'; did you mean 'tensorboard'?\n"
    )
