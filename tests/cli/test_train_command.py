from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hybridkit.cli import run
from hybridkit.cli._train_report import epoch_line, summary_block
from hybridkit.training.events import EpochDone
from hybridkit.training.loop import HybridSummary
from hybridkit.training.runs import newest_run

HYBRID = ["--hybrid", "--ternary", "--qat", "--epochs", "2", "--batch-size", "256"]
EPOCH = r"Epoch \d+, Loss: \d+\.\d{6}, LR: \d+\.\d{6}"


@pytest.fixture(autouse=True)
def _own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDKIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("HYBRIDKIT_TRAIN_THREADS", "1")
    monkeypatch.setenv("NO_COLOR", "1")


def test_lines_are_exactly_the_contract() -> None:
    assert (
        epoch_line(EpochDone(5, 1.234567, 0.00115, 0.012345))
        == "Epoch 5, Loss: 1.234567, LR: 0.001150, Trust Radius: 0.012345"
    )
    assert epoch_line(EpochDone(5, 1.234567, 0.00115, None)) == "Epoch 5, Loss: 1.234567, LR: 0.001150"
    assert summary_block(HybridSummary(50, 0.456789, 1.15, 0.325, 0.012345)) == (
        "HYBRID OPTIMIZATION SUMMARY\n"
        "============================================================\n"
        "Total Steps: 50\n"
        "Final Loss: 0.456789\n"
        "Avg Learning Rate Multiplier: 1.15x\n"
        "Constraint Activation Rate: 32.5%\n"
        "Final Trust Radius: 0.012345\n"
        "============================================================"
    )


def test_a_hybrid_ternary_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["train", *HYBRID, "--save_metrics"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [bool(re.fullmatch(EPOCH + r", Trust Radius: \d+\.\d{6}", line)) for line in lines[:2]] == [
        True,
        True,
    ]
    assert lines[2] == "HYBRID OPTIMIZATION SUMMARY"
    rest = "\n".join(lines[11:])
    made = newest_run()
    assert re.search(
        r"^Packed: \d\.\d{3} bits per weight on disk; [\d,]+ bytes, \d+\.\d\dx smaller", rest, re.M
    )
    assert f"Run: {made.path}" in rest
    assert made.packed_path.exists()
    assert "max_diff" in (made.path / "metrics.csv").read_text()
    assert made.path.parent == tmp_path / "runs"


def test_a_plain_run_ends_its_lines_after_the_rate(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--epochs", "1", "--batch-size", "256", "--ternary"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(EPOCH, lines[0])
    assert "HYBRID OPTIMIZATION SUMMARY" not in lines
    assert any(line.startswith("Squared relative error of quantisation: ") for line in lines)


def test_json_is_the_only_thing_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", *HYBRID, "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["schema"] == "hybridkit/train/1"
    assert document["config"]["quantizer"] == "ternary-absmean"
    assert document["summary"]["total_steps"] == document["steps"]
    assert 1 < document["packed"]["bits_per_weight"] < 3
    assert {"torch", "instruction_set", "threads"} <= set(document["environment"])
    assert re.match(EPOCH, captured.err)


def test_a_dry_run_says_what_it_would_be_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["train", *HYBRID, "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["plan"]
    assert planned["total_steps"] == 2 * planned["steps_per_epoch"]
    assert planned["memory_bytes"] > 3 * 4 * planned["parameters"]  # weights, gradients, momentum
    assert 2.0 <= planned["bits_per_weight"] < 2.2
    assert 0 < planned["quantised_weights"] < planned["parameters"]
    assert run(["train", *HYBRID, "--dry-run"]) == 0
    assert "Bits per weight on disk: 2." in capsys.readouterr().out
    assert run(["train", "--dry-run"]) == 0
    assert "Bits per weight on disk: 32.000" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_resuming(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--max-steps", "3", "--batch-size", "256"]) == 0
    made = newest_run()
    assert run(["train", "--resume", made.path.name, "--max-steps", "5"]) == 0
    assert "Resumed from step 3 of 5" in capsys.readouterr().out
    assert run(["train", "--resume", str(made.path), "--from", "3"]) == 0
    assert "Resumed from step 3 of 5" in capsys.readouterr().out


def test_resuming_from_the_folder_of_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for _ in range(2):
        assert (
            run(["train", "--max-steps", "2", "--batch-size", "256", "--run-dir", str(tmp_path / "own")]) == 0
        )
    newest = newest_run(tmp_path / "own").path
    capsys.readouterr()
    assert run(["train", "--resume", str(tmp_path / "own"), "--max-steps", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"The newest run there: {newest}", "Resumed from step 2 of 3"]
    assert (newest / "checkpoints" / "step-3").is_dir()
    (tmp_path / "nothing").mkdir()
    assert run(["train", "--resume", str(tmp_path / "nothing")]) == 1
    assert "there is no run here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--resume", "x", "--lr", "1"], 2, "--lr: a resumed run keeps its configuration"),
        (["--resume", "x"], 1, "x: there is no run here"),
        (["--from", "3"], 2, "give both"),
        (["--ternary", "--qat", "--quantizer", "binary"], 2, "not ternary"),
        (["--task", "digit"], 2, "did you mean 'digits'"),
        (["--model", "mpl"], 2, "did you mean 'mlp'"),
        (["--hybrid", "--set", "constraint.x=1"], 2, "no option 'x'"),
        (["--set", "lr_controller.x=1"], 2, "the run has none"),
        (["--epochs", "0"], 2, "epochs is 0"),
        (["--device", "tpu"], 2, "tpu"),
        (["--init-from", "none.safetensors"], 1, "none.safetensors"),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    assert run(["train", *arguments]) == code
    complaint = capsys.readouterr().err.strip()
    assert message in complaint
    assert complaint.startswith("hybridkit: error: ")
    assert "\n" not in complaint
    assert not (tmp_path / "runs").exists()


def test_a_config_file_gives_defaults(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'epochs = 1\nbatch-size = 300\nhybrid = true\n[lr_controller]\nname = "cosine"\nfloor = 0.25\n'
    )
    assert run(["train", "--config", str(file), "--batch_size", "200"]) == 0
    config = newest_run().config()
    assert (config.epochs, config.batch_size, config.lr_controller) == (1, 200, "cosine")
    assert config.options == {"lr_controller": {"floor": 0.25}}


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from hybridkit.cli import run; run(['train', '--help']); "
        "sys.exit(bool({'torch', 'sklearn', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--initial-trust-radius" in done.stdout


def test_a_sweep_of_relative_steps_says_which_ended_best(tmp_path: Path, capsys) -> None:
    brief = ["train", "--hybrid", "--max-steps", "4", "--batch-size", "64"]
    assert run([*brief, "--relative-step", "0.05,0.0005", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    steps = [json.loads((Path(one["run"]) / "config.json").read_text()) for one in said["sweep"]]
    found = [about["config"]["options"]["lr_controller"]["relative_step"] for about in steps]
    assert found == [one["relative_step"] for one in said["sweep"]] == [0.05, 0.0005]
    losses = [one["validation"]["loss"] for one in said["sweep"]]
    assert said["run"] == said["sweep"][losses.index(min(losses))]["run"]
    assert losses[0] != losses[1]
    assert run([*brief, "--relative-step", "0.01"]) == 0
    assert "Relative step" not in capsys.readouterr().out


@pytest.mark.parametrize("steps", ["0", "a", "0.1,0.1", "0.1,,", "inf", ""])
def test_relative_steps_that_are_none_are_refused(steps: str, capsys) -> None:
    assert run(["train", "--hybrid", "--relative-step", steps]) == 2
    assert "a positive number, several with commas, or sweep" in capsys.readouterr().err
