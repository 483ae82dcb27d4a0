"""What every task promises."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch

from hybridkit.tasks.data import Batch, count, first
from hybridkit.tasks.protocol import Task, collate_of, forward, named_axes, named_inputs
from hybridkit.trees import tensors


class TaskContract(ABC):
    """`make` returns the task, with little data where it can. `batch_size` samples are tried at a time."""

    batch_size = 4

    @abstractmethod
    def make(self) -> Task:
        """The task."""

    def test_splits_are_disjoint(self) -> None:
        task = self.make()
        splits = task.splits()
        seen: set[bytes] = set()
        for part in (splits.train, splits.validation, splits.test):
            batch = first(part, 500, collate_of(task))
            assert len({len(tensor) for tensor in tensors(batch)}) == 1, "tensors of a batch differ in length"
            rows = [tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None] for tensor in tensors(batch)]
            samples = {b"".join(r[i].numpy().tobytes() for r in rows) for i in range(count(batch))}
            assert samples
            assert not samples & seen, "a sample is in two splits"
            seen |= samples

    def test_splits_are_the_same_every_time(self) -> None:
        one, two = self.make(), self.make()
        for name in ("train", "validation", "test"):
            a, b = (first(getattr(t.splits(), name), 500, collate_of(t)) for t in (one, two))
            assert all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))

    def test_describes_the_inputs(self) -> None:
        task = self.make()
        inputs = named_inputs(task, self._batch(task))
        assert inputs
        for name, axes in named_axes(task, list(inputs)).items():
            assert 0 in axes, "the batch dimension varies"
            assert all(0 <= axis < inputs[name].dim() for axis in axes)

    def test_every_model_learns_from_a_finite_loss(self) -> None:
        task = self.make()
        batch = self._batch(task)
        assert task.models, "a task brings at least one model"
        for name, factory in task.models.items():
            torch.manual_seed(0)
            model = factory()
            loss = task.loss(forward(task, model, batch), batch)
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
            metrics = task.metrics(forward(task, model, batch), batch)
        assert task.metric in metrics
        assert task.metric_goal in ("max", "min")
        assert all(math.isfinite(value) for value in metrics.values())

    def test_cluster_features(self) -> None:
        task = self.make()
        batch = self._batch(task)
        features = task.cluster_features(batch)
        assert features.ndim == 2
        assert len(features) == count(batch)
        assert features.dtype == np.float32
        assert np.isfinite(features).all()

    def test_says_where_the_data_came_from(self) -> None:
        task = self.make()
        task.splits()
        assert task.provenance()

    def _batch(self, task: Task) -> Batch:
        return first(task.splits().train, self.batch_size, collate_of(task))
