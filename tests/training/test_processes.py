"""Several processes train as one with a larger batch, end together, and go on in any number."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from same_run import assert_same_run, logged

from hybridkit.errors import UsageError
from hybridkit.training.config import TrainConfig, resolve
from hybridkit.training.distributed import as_launched
from hybridkit.training.loop import resume, train
from hybridkit.training.runs import Run, newest_run

FIXTURES = Path(__file__).parent / "fixtures"
TASK = "block_task:blocks"
RUN = ["train", "--task", TASK, "--model", "dry", "--ternary", "--qat"]
TORCHRUN = ["-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
TORCHRUN += ["--nproc-per-node", "2", "-m", "hybridkit"]


def start(
    root: Path, launcher: list[str], arguments: list[str], stdin: int | None = None
) -> subprocess.Popen[str]:
    paths = {"PYTHONPATH": str(FIXTURES), "HYBRIDKIT_RUNS": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *launcher, *arguments],
        env={**os.environ, **paths},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


Launch = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Runs a command line in several processes; gives their exit code, output and errors."""
    server = start(tmp_path_factory.mktemp("none"), [str(FIXTURES / "ranks.py")], [], stdin=subprocess.PIPE)
    assert server.stdin is not None
    assert server.stdout is not None
    asked, answers = server.stdin, server.stdout

    def launch(root: Path, *arguments: str, processes: int = 2) -> tuple[int, str, str]:
        out, err = (tmp_path_factory.mktemp("printed") / name for name in ("out", "err"))
        print(json.dumps([processes, arguments, str(root), str(out), str(err)]), file=asked, flush=True)
        assert select.select([answers], [], [], 300)[0], "it hangs"
        return int(answers.readline()), out.read_text(), err.read_text()

    yield launch
    server.stdin.close()
    server.wait(60)


def losses(run: Run) -> list[float]:
    return [record["loss"] for record in logged(run) if record["event"] == "step"]


def alone(root: Path, **flags: Any) -> Run:
    given = {"task": TASK, "model": "dry", "qat": True, "ternary": True, "threads": 1, **flags}
    return train(resolve(**given), run_dir=root).run


WAYS = {
    "ddp": ([], {}),
    "fsdp": (["--shard"], {}),
    "hybrid": (["--hybrid", "--data-clusters", "3"], {"hybrid": True, "data_clusters": 3}),
}


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_are_one_with_twice_the_batch(ranks: Launch, tmp_path: Path, way: str) -> None:
    flags, same = WAYS[way]
    steps = ["--max-steps", "20", "--batch-size", "7", "--clip-norm", "1", "--lr", "0.01"]
    code, out, err = ranks(tmp_path / "two", *RUN, *flags, *steps)
    assert code == 0, err
    assert out.count("Run: ") == 1  # one of them prints
    two = newest_run(tmp_path / "two")
    assert len(list((tmp_path / "two").iterdir())) == 1  # and writes
    one = alone(tmp_path / "one", max_steps=20, batch_size=14, clip_norm=1.0, lr=0.01, **same)
    if way == "hybrid":
        # Where an activation is on the edge between two int8 codes, its rounding may differ, and long steps
        # carry that away from step 10 or so on, how far depends on the processor.
        assert losses(two)[:10] == pytest.approx(losses(one)[:10], abs=1e-3)
    else:
        assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    assert losses(two)[:5] == pytest.approx(losses(one)[:5], abs=1e-5)
    ours, theirs = logged(two)[-1], logged(one)[-1]
    assert ours.keys() == theirs.keys()
    assert ours["packed_error"] < 1e-10
    assert two.config({TASK}).processes == 2
    assert two.checkpoint().model.keys() == one.checkpoint().model.keys()
    assert two.packed_path.stat().st_size == pytest.approx(one.packed_path.stat().st_size, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--shard",), ("--hybrid",)], ids=["ddp", "fsdp", "hybrid"])
def test_a_run_of_two_goes_on_to_the_bit_and_with_one(
    ranks: Launch, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    line = [*RUN[:3], "--ternary", "--qat", *flags, "--batch-size", "6", "--epochs", "3", "--accumulate", "2"]
    code, _, err = ranks(tmp_path / "whole", *line)
    assert code == 0, err
    whole = newest_run(tmp_path / "whole")
    again = tmp_path / "again"
    shutil.copytree(whole.path, again)
    resumed = Run(again)
    line = ["train", "--resume", str(again), "--from", "6", "--task", TASK]
    code, _, err = ranks(again, *line)
    assert code == 0, err
    assert_same_run(whole, resumed)
    code, _, err = ranks(again, *line, processes=3)
    assert code == 0, err
    assert "processes 2 -> 3" in err
    assert losses(resumed)[:6] == losses(whole)[:6]
    assert losses(resumed)[6:] == pytest.approx(losses(whole)[6:], abs=0.2)  # other dropout
    alone = resume(resumed, step=6, trusted={TASK})
    assert alone.steps == len(losses(whole))


def wait_for_steps(root: Path, count: int, process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        log = next(root.glob("*/metrics.jsonl"), None)
        if log and log.read_text().count('"event": "step"') >= count:
            return
        time.sleep(0.05)


def children(process: subprocess.Popen[str]) -> list[Any]:
    import psutil

    return sorted(psutil.Process(process.pid).children(), key=lambda child: int(child.environ()["RANK"]))


ENDLESS = [*RUN, "--max-steps", "100000", "--batch-size", "6"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_all_with_one_message(tmp_path: Path, rank: int) -> None:
    process = start(tmp_path, TORCHRUN, ENDLESS)
    wait_for_steps(tmp_path, 5, process)
    workers = children(process)
    workers[rank].send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert err.count("hybridkit: error:") == 1
    assert "another process of this run has ended" in err
    assert not any(worker.is_running() for worker in workers)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_saves_once_and_says_so_once(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, TORCHRUN, ENDLESS)
    wait_for_steps(tmp_path, 5, process)
    workers = children(process)
    if number == signal.SIGINT:  # a terminal sends it to all
        for worker in workers:
            worker.send_signal(number)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert err.count("hybridkit: error:") == 1
    run = newest_run(tmp_path)
    step = run.checkpoint().step
    assert f"stopped after step {step}; saved" in err
    assert losses(run)[step:] == []


def test_a_mistake_is_said_once(ranks: Launch, tmp_path: Path) -> None:
    code, _, err = ranks(tmp_path, *RUN, "--shard", "--hybrid")
    assert code != 0
    assert err.count("hybridkit: error:") == 1
    assert "a learning-rate controller or trust region needs whole matrices" in err
    assert "DDP" in err
    assert not list(tmp_path.iterdir())
    code, _, err = ranks(tmp_path, "train", "--max-steps", "0")
    assert code == 2
    assert err.count("hybridkit: error:") == 1


def test_sharding_one_process_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="torchrun --nproc-per-node"):
        train(resolve(task=TASK, shard=True), run_dir=tmp_path)


def test_accelerate_is_heard() -> None:
    def heard(environment: dict[str, str], **flags: Any) -> TrainConfig:
        return as_launched(resolve(task=TASK, **flags), environment)

    assert heard({"ACCELERATE_MIXED_PRECISION": "no"}) == resolve(task=TASK)
    assert heard({"ACCELERATE_MIXED_PRECISION": "bf16"}).precision == "bf16"
    assert heard({"ACCELERATE_MIXED_PRECISION": "bf16"}, precision="fp16").precision == "fp16"
    assert heard({"ACCELERATE_USE_FSDP": "true"}).shard
    for environment in ({"ACCELERATE_MIXED_PRECISION": "fp8"}, {"ACCELERATE_USE_DEEPSPEED": "true"}):
        with pytest.raises(UsageError, match="accelerate"):
            heard(environment)


@pytest.mark.slow
def test_accelerate_launches(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]
    command += ["--num_processes", "2", "--mixed_precision", "bf16", "--main_process_port", "0"]
    command += ["-m", "hybridkit", *RUN, "--max-steps", "2", "--run-dir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(FIXTURES), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    config = newest_run(tmp_path).config({TASK})
    assert (config.processes, config.precision) == (2, "bf16")
