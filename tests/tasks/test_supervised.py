from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hybridkit.tasks import supervised
from hybridkit.tasks.protocol import Splits
from hybridkit.tasks.supervised import SupervisedTask


def regression_task():
    x = torch.arange(30.0).reshape(10, 3)
    part = (x, x.sum(1, keepdim=True))
    return SupervisedTask(
        name="sum",
        load=lambda: Splits(part, part, part),
        models={"linear": lambda: nn.Linear(3, 1)},
        prepare=lambda x: x / 30,
        loss_function=F.mse_loss,
        measures={"largest_error": lambda output, target: (output - target).abs().max()},
        metric="loss",
        metric_goal="min",
        features=lambda x: x[:, :2],
    )


def test_every_part_is_the_users():
    task = regression_task()
    batch = task.splits().train
    assert task.splits() is task.splits()
    (inputs,) = task.inputs(batch)
    torch.testing.assert_close(inputs, batch[0] / 30)
    output = torch.zeros(10, 1)
    assert task.loss(output, batch).shape == ()
    metrics = task.metrics(output, batch)
    assert metrics["largest_error"] == 84.0
    assert metrics["loss"] == pytest.approx(float((batch[1] ** 2).mean()))
    np.testing.assert_array_equal(task.cluster_features(batch), batch[0][:, :2].numpy())


def test_features_are_computed_in_blocks(monkeypatch):
    task = regression_task()
    whole = task.cluster_features(task.splits().train)
    sizes = []
    monkeypatch.setattr(supervised, "FEATURE_BLOCK", 4)
    task.features = lambda x: (sizes.append(len(x)), x[:, :2])[1]
    np.testing.assert_array_equal(task.cluster_features(task.splits().train), whole)
    assert sizes == [4, 4, 2]


def test_accuracy_counts_the_largest_logit():
    logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert supervised.accuracy(logits, torch.tensor([1, 0, 0, 0])) == 0.75


def test_flat_values_keep_the_samples():
    assert supervised.flat_values(torch.zeros(5, 2, 3, dtype=torch.uint8)).shape == (5, 6)
    assert supervised.flat_values(torch.zeros(5, dtype=torch.uint8)).shape == (5, 1)
