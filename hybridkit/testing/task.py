"""What every task promises."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch

from hybridkit.tasks.protocol import Batch, Task


class TaskContract(ABC):
    """`make` returns the task, with little data where it can. `batch_size` samples are tried at a time."""

    batch_size = 4

    @abstractmethod
    def make(self) -> Task:
        """The task."""

    def test_splits_are_disjoint(self) -> None:
        splits = self.make().splits()
        seen: set[bytes] = set()
        for part in (splits.train, splits.validation, splits.test):
            assert len({len(tensor) for tensor in part}) == 1, "the tensors of a split have different lengths"
            assert len(part[0]) > 0
            samples = {b"".join(t[i].numpy().tobytes() for t in part) for i in range(min(len(part[0]), 500))}
            assert not samples & seen, "a sample is in two splits"
            seen |= samples

    def test_splits_are_the_same_every_time(self) -> None:
        first, second = self.make().splits(), self.make().splits()
        for a, b in (
            (first.train, second.train),
            (first.validation, second.validation),
            (first.test, second.test),
        ):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    def test_describes_the_inputs(self) -> None:
        task = self.make()
        inputs = task.inputs(self._batch(task))
        assert len(task.input_names) == len(task.dynamic_axes) == len(inputs)
        for tensor, axes in zip(inputs, task.dynamic_axes, strict=True):
            assert 0 in axes, "the batch dimension varies"
            assert all(0 <= axis < tensor.dim() for axis in axes)

    def test_every_model_learns_from_a_finite_loss(self) -> None:
        task = self.make()
        batch = self._batch(task)
        assert task.models, "a task brings at least one model"
        for name, factory in task.models.items():
            torch.manual_seed(0)
            model = factory()
            loss = task.loss(model(*task.inputs(batch)), batch)
            assert loss.shape == ()
            assert math.isfinite(loss.item()), f"{name}: loss {loss.item()}"
            torch.autograd.backward(loss)
            unreached = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
            assert not unreached, f"{name}: no gradient reaches {unreached}"

    def test_metrics_are_finite_and_hold_the_main_one(self) -> None:
        task = self.make()
        batch = self._batch(task)
        model = next(iter(task.models.values()))()
        with torch.no_grad():
            metrics = task.metrics(model(*task.inputs(batch)), batch)
        assert task.metric in metrics
        assert task.metric_goal in ("max", "min")
        assert all(math.isfinite(value) for value in metrics.values())

    def test_cluster_features(self) -> None:
        task = self.make()
        batch = self._batch(task)
        features = task.cluster_features(batch)
        assert features.ndim == 2
        assert len(features) == len(batch[0])
        assert features.dtype == np.float32
        assert np.isfinite(features).all()

    def test_says_where_the_data_came_from(self) -> None:
        task = self.make()
        task.splits()
        assert task.provenance()

    def _batch(self, task: Task) -> Batch:
        return tuple(tensor[: self.batch_size] for tensor in task.splits().train)
