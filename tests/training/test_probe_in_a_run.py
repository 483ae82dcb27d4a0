"""A run holds samples back, judges by them, learns from them later, and goes on where it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hybridkit.tasks.resolve import make_task
from hybridkit.training.config import resolve
from hybridkit.training.history import read_notes
from hybridkit.training.loop import resume, train
from hybridkit.training.metrics import read_records
from hybridkit.training.probe import own_statistics
from hybridkit.training.trainer import Trainer

TASK = "tiny_task:tiny"  # 72 samples; an epoch has 12 steps


def config(controller="probe", **flags):
    flags = {"max_steps": 60, "batch_size": 6, **flags}
    return resolve(task=TASK, hybrid=True, lr_controller=controller, **flags)


def rows(batch):
    return {row.numpy().tobytes() for row in batch[0]}


def watched(trainer):
    """The samples of every step, as they are learned from."""
    seen, gradients = [], trainer.engine.gradients

    def record(fed, *more):
        seen.append(set().union(*(rows(one.batch) for one in fed)))
        return gradients(fed, *more)

    trainer.engine.gradients = record
    return seen


@pytest.mark.parametrize("flags", [{}, {"data_clusters": 3}, {"accumulate": 2, "batch_size": 3}])
def test_samples_are_held_back_in_the_first_half(flags):
    trainer = Trainer.seeded(config(**flags))
    held, seen = rows(trainer.probe), watched(trainer)
    assert len(held) == 8
    for _ in range(60):
        trainer.step()
    first, rest = set().union(*seen[:30]), set().union(*seen[30:])
    assert not held & first
    assert held < rest
    assert len(first) == 72 - 8


def test_a_run_that_repeats_nothing_until_then_has_no_probe():
    trainers = [Trainer.seeded(config(name, max_steps=24)) for name in ("probe", "trust-ratio")]
    assert trainers[0].probe is None
    for trainer in trainers:
        torch.manual_seed(0)
        for _ in range(24):
            trainer.step()
    probed, plain = (trainer.model.state_dict() for trainer in trainers)
    for name, tensor in plain.items():
        assert torch.equal(tensor, probed[name]), name


@pytest.mark.parametrize("cut", [7, 29, 40])
def test_a_resumed_run_is_the_uninterrupted_one(cut):
    options = {"lr_controller": {"rise": 0.0, "relative_step": 0.3}}  # goes back at once
    chosen = config(options=options)
    whole = Trainer.seeded(chosen)
    went_back = [whole.step().get("went_back", False) for _ in range(cut)]
    saved = copy.deepcopy(whole.checkpoint())
    went_back += [whole.step().get("went_back", False) for _ in range(60 - cut)]
    resumed = Trainer.seeded(chosen, restored=saved)
    assert rows(resumed.probe) == rows(whole.probe)
    while not resumed.done:
        resumed.step()
    assert any(went_back)
    expected, found = whole.checkpoint(), resumed.checkpoint()
    for name, tensor in expected.model.items():
        assert torch.equal(tensor, found.model[name]), name
    assert (
        expected.state["optimizer"]["hybrid"]["controller"]
        == found.state["optimizer"]["hybrid"]["controller"]
    )


def test_it_is_written_down(tmp_path):
    chosen = config(options={"lr_controller": {"rise": 0.0, "relative_step": 0.3}}, max_steps=40)
    run = train(chosen, run_dir=tmp_path).run
    text = run.metrics_path.read_text()
    assert '"probe_loss"' in text
    assert '"went_back": true' in text
    notes = [note for note in read_notes(run.history_path) if note.what == "went back"]
    assert [note.step for note in notes] == [
        r["step"] for r in read_records(run.metrics_path) if r.get("went_back")
    ]
    assert resume(run, max_steps=44, trusted={TASK}).run.checkpoint().step == 44


def test_running_statistics_are_those_of_the_weights_that_are_judged():
    task = make_task(TASK)
    inputs, labels = task.splits().train
    cuts = ((0, 20), (20, 40), (40, 41))  # the last one alone has no variance
    batches = [(inputs[a:b], labels[a:b]) for a, b in cuts]
    model = nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5, momentum=0.3), nn.Dropout(0.5), nn.Linear(5, 3))
    model(inputs)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model[2].eval()
    with own_statistics(model, task, batches):
        outputs = [model[0](x) for x, _ in batches[:2]]
        mean = torch.stack([o.mean(dim=0) for o in outputs]).mean(dim=0)
        variance = torch.stack([o.var(dim=0) for o in outputs]).mean(dim=0)
        torch.testing.assert_close(model[1].running_mean, mean)
        torch.testing.assert_close(model[1].running_var, variance)
        assert model[0].training
        assert not model[2].training
    assert model[1].momentum == 0.3
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_network_without_them_does_not_run():
    class Counted(nn.Linear):
        runs = 0

        def forward(self, x):
            self.runs += 1
            return super().forward(x)

    task, model = make_task(TASK), Counted(8, 3)
    with own_statistics(model, task, [task.splits().train]):
        assert not model.runs
