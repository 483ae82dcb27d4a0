"""What happened to a run, the text that it wrote, and how much its batches were."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import tiny_task
import torch
from same_run import logged
from torch import nn

from hybridkit.errors import InterruptedRun
from hybridkit.tasks.text import MARK, PROMPT, WRITTEN, Text, continued
from hybridkit.training.config import TrainConfig, resolve
from hybridkit.training.events import StepDone
from hybridkit.training.history import add_note, read_notes
from hybridkit.training.loop import resume, train
from hybridkit.training.metrics import numbers, rows
from hybridkit.training.runs import Run, newest_run
from hybridkit.training.workload import workload

TASK = "tiny_task:tiny"


def config(task: str = TASK, **flags: Any) -> TrainConfig:
    return resolve(**{"task": task, "batch_size": 12, "checkpoint_every": 5, "max_steps": 8, **flags})


def happened(run: Run) -> list[tuple[str, int, str]]:
    return [(note.what, note.step, note.text) for note in read_notes(run.history_path)]


def test_a_run_says_what_happened_to_it(tmp_path: Path) -> None:
    def stop(event: Any) -> None:
        if isinstance(event, StepDone) and event.step == 7:
            raise InterruptedRun("stopped\x1b[2J")

    with pytest.raises(InterruptedRun):
        train(config(), run_dir=tmp_path, on_event=stop)
    run = newest_run(tmp_path)
    resume(run, trusted={TASK})
    assert happened(run) == [
        ("started", 0, ""),
        ("interrupted", 7, "stopped\\x1b[2J"),
        ("resumed", 6, "what was logged up to step 7 is forgotten"),
        ("finished", 8, ""),
    ]


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="the loss is nan"):
        train(config("tiny_task:exploding"), run_dir=tmp_path)
    what, step, text = happened(newest_run(tmp_path))[-1]
    assert (what, step) == ("failed", 6)
    assert "the loss is nan at step 7" in text


def test_lines_that_are_no_notes_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert read_notes(path) == []
    add_note(path, 3, "warning", "a")
    with path.open("ab") as file:
        file.write(b'{"time": 1}\n[]\n\xff\n{"time": "t", "step": 1, "what": "no", "text": ""}\n')
    add_note(path, 4, "finished")
    assert [note.step for note in read_notes(path)] == [3, 4]


class Writing:
    """A task whose sample draws from every generator, and fails where it is told to."""

    fails = False

    def __call__(self, model: nn.Module) -> str:
        assert not model.training
        assert not torch.is_grad_enabled()
        random.random(), torch.rand(2)
        if self.fails:
            raise ValueError("no words")
        return "words" * 2000


def test_samples_are_logged_and_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = train(config(eval_every=4), run_dir=tmp_path)
    writing = Writing()
    monkeypatch.setattr(tiny_task.SupervisedTask, "sample", staticmethod(writing), raising=False)
    writes = train(config(eval_every=4), run_dir=tmp_path)
    assert writes.final_loss == silent.final_loss
    samples = [r["sample"] for r in logged(writes.run) if "sample" in r]
    assert samples == [("words" * 2000)[:4000]] * 2
    writing.fails = True
    fails = train(config(eval_every=4), run_dir=tmp_path)
    assert fails.final_loss == silent.final_loss
    assert not any("sample" in r for r in logged(fails.run))
    assert any("sample failed: ValueError: no words" in text for _, _, text in happened(fails.run))


class Counting(nn.Module):
    """Says that the next byte is the one after."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        assert tokens.shape[1] <= 16
        return nn.functional.one_hot((tokens + 1) % 256, 256).float()


def test_the_text_task_writes_a_greedy_continuation(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefghij" * 200)
    task = Text(Text.Options(data_dir=str(tmp_path / "a.txt"), sequence_length=16))
    told, written = task.sample(Counting()).split(MARK)
    assert len(told) == min(16, PROMPT)
    assert told in "abcdefghij" * 4
    assert [ord(c) for c in written[:20]] == [ord(told[-1]) + 1 + i for i in range(20)]
    tokens = continued(Counting(), torch.tensor([[1, 2], [7, 9]]), 3, 16)
    assert tokens.tolist() == [[1, 2, 3, 4, 5], [7, 9, 10, 11, 12]]
    assert WRITTEN > 0


class Named(tiny_task.SupervisedTask):
    def inputs(self, batch: Any) -> Any:
        return batch


def test_how_much_a_batch_is() -> None:
    assert workload(tiny_task.tiny(), (torch.randn(5, 8), torch.zeros(5))) == {"samples": 5}
    words = Named(name="n", load=tiny_task.blobs, models={"net": tiny_task.net})
    ids, mask = torch.zeros(3, 7, dtype=torch.long), torch.tensor([[1] * 4 + [0] * 3] * 3)
    assert workload(words, {"input_ids": ids, "attention_mask": mask}) == {"samples": 3, "tokens": 12}
    assert workload(words, {"input_ids": ids}) == {"samples": 3, "tokens": 21}
    assert workload(words, {"pixel_values": torch.randn(3, 1, 4, 4)}) == {"samples": 3}


def test_text_and_lists_stay_out_of_tables_of_numbers() -> None:
    record = {"event": "evaluation", "step": 2, "validation_loss": 1.0, "layers": ["a"], "sample": "x",
              "layer_zeros": [0.3]}  # fmt: skip
    assert numbers(record) == {"event": "evaluation", "step": 2, "validation_loss": 1.0}
    assert rows([record]) == [{"step": 2, "validation_loss": 1.0, "layer_zeros": [0.3], "epoch": None}]
