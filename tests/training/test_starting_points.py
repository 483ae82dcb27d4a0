"""--init-from and --teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny_task
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hybridkit.errors import FileError, UsageError
from hybridkit.training.config import TrainConfig, resolve
from hybridkit.training.distillation.losses import distillation_loss
from hybridkit.training.distillation.teaching import Teaching
from hybridkit.training.loop import train
from hybridkit.training.objective import Objective
from hybridkit.training.runs import Run
from hybridkit.training.trainer import Trainer
from hybridkit.training.weights import load_weights


def config(**flags: Any) -> TrainConfig:
    return resolve(**{"task": "tiny_task:tiny", "batch_size": 12, "max_steps": 6, **flags})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(config(), run_dir=tmp_path_factory.mktemp("runs")).run


def reference_kl(student: Tensor, teacher: Tensor, temperature: float) -> float:
    total = 0.0
    rows = student.reshape(-1, student.shape[-1]).double(), teacher.reshape(-1, teacher.shape[-1]).double()
    for s, t in zip(*rows, strict=True):
        p, q = F.softmax(t / temperature, 0), F.softmax(s / temperature, 0)
        total += float((p * (p.log() - q.log())).sum())
    return temperature**2 * total / len(rows[0])


@given(st.lists(st.integers(1, 4), min_size=2, max_size=3), st.floats(0.5, 8), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_distillation_loss_is_its_definition(shape: list[int], temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(*shape, generator=generator), torch.randn(*shape, generator=generator)
    expected = reference_kl(student, teacher, temperature)
    assert float(distillation_loss(student, teacher, temperature)) == pytest.approx(
        expected, rel=1e-3, abs=1e-5
    )


def test_the_objective_mixes_both_losses() -> None:
    task = tiny_task.tiny()
    batch = tuple(part[:5] for part in task.splits().train)
    expert, output = tiny_task.net().eval(), torch.randn(5, 3)
    teaching = Teaching(task, expert, tiny_task.net(), {"logits": 1.0}, temperature=3.0)
    mixed = Objective(task, teaching, alpha=0.25)(output, batch)
    kl = distillation_loss(output, expert(batch[0]), 3.0)
    assert mixed.item() == pytest.approx((0.25 * task.loss(output, batch) + 0.75 * kl).item(), rel=1e-5)


@pytest.mark.parametrize("form", ["run", "checkpoint", "attribute"])
def test_a_teacher_is_a_run_a_checkpoint_or_an_attribute(teacher: Run, form: str) -> None:
    source = {
        "run": str(teacher.path),
        "checkpoint": str(teacher.checkpoints / "step-6"),
        "attribute": "tiny_task:net",
    }[form]
    trainer = Trainer.seeded(config(teacher=source, alpha=0.0))
    expert = trainer.objective.teacher
    assert expert is not None
    assert not expert.training
    before = {name: tensor.clone() for name, tensor in expert.state_dict().items()}
    trainer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in expert.state_dict().items())
    if form != "attribute":
        assert torch.equal(before["0.weight"], teacher.checkpoint().model["0.weight"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tiny_task:four_classes", r"its output is \[1, 4\], the student's \[1, 3\]"),
        ("tiny_task:blobs", "not a torch.nn.Module"),
        ("tiny_task:nothing", "has no 'nothing'"),
        ("no_such_run", "there is no run here"),
    ],
)
def test_a_teacher_that_does_not_fit(source: str, message: str) -> None:
    with pytest.raises((UsageError, FileError), match=message):
        Trainer.seeded(config(teacher=source))


@pytest.mark.parametrize(
    "flags", [{}, {"qat": True}, {"qat": True, "ternary": True, "learnable_scale": True}]
)
def test_starting_from_a_full_precision_run(teacher: Run, flags: dict[str, Any]) -> None:
    trainer = Trainer.seeded(config(init_from=str(teacher.path), **flags))
    weights = teacher.checkpoint().model
    own = trainer.model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in weights.items())


def test_starting_from_a_quantised_run_and_from_a_file(teacher: Run, tmp_path: Path) -> None:
    flags = {"qat": True, "ternary": True, "learnable_scale": True}
    quantized = train(config(**flags), run_dir=tmp_path).run.checkpoint().model
    assert set(quantized) > set(teacher.checkpoint().model)
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(quantized, file)
    own = Trainer.seeded(config(init_from=str(file), **flags)).model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in quantized.items())


def test_files_that_do_not_fit_say_why(teacher: Run, tmp_path: Path) -> None:
    weights = teacher.checkpoint().model
    file = tmp_path / "w.safetensors"
    cases = [
        ({k: v for k, v in weights.items() if k != "0.bias"}, "lacks '0.bias'"),
        (
            {**weights, "0.biass": weights["0.bias"].clone()},
            "'0.biass' that the model has not; did you mean '0.bias'",
        ),
        ({**weights, "0.bias": torch.zeros(3)}, r"0.bias is \[3\], the model's is \[16\]"),
        ({**weights, "0.bias": torch.zeros(16, dtype=torch.int64)}, "0.bias is torch.int64"),
    ]
    for tensors, message in cases:
        safetensors.torch.save_file(tensors, file)
        with pytest.raises(UsageError, match=message):
            Trainer.seeded(config(init_from=str(file)))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(FileError, match="not a safetensors file, or truncated"):
        Trainer.seeded(config(init_from=str(file)))
    with pytest.raises(FileError, match=r"a \.safetensors file works too"):
        Trainer.seeded(config(init_from="nowhere"))


def test_tied_weights_may_be_stored_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.head.weight = self.table.weight

    model = Tied()
    load_weights(model, {"table.weight": torch.ones(5, 4)}, "file")
    assert torch.equal(model.head.weight, torch.ones(5, 4))
    assert model.head.weight is model.table.weight
