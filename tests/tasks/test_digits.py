from __future__ import annotations

import torch

from hybridkit.tasks.resolve import make_model, make_task


def test_the_split_is_fixed():
    task = make_task("digits")
    provenance = task.provenance()
    assert provenance["samples"] == {"train": 1258, "validation": 179, "test": 360}
    assert provenance["sha256"].startswith("b0b68b3ca7a90ccd")


def test_shapes_ranges_and_features():
    task = make_task("digits")
    splits = task.splits()
    assert task.splits() is splits
    for inputs, targets in (splits.train, splits.validation, splits.test):
        assert inputs.dtype == torch.float32
        assert targets.dtype == torch.int64
        assert (float(inputs.min()), float(inputs.max())) == (0.0, 1.0)
        assert torch.bincount(targets).min() > 0.08 * len(targets)
    features = task.cluster_features(splits.train)
    assert features.shape == (len(splits.train[0]), 64)
    torch.testing.assert_close(torch.from_numpy(features), splits.train[0])


def test_nearly_all_weights_are_in_hidden_layers():
    model = make_model(make_task("digits"))
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    hidden = sum(m.weight.numel() for m in linear[:-1])
    assert hidden > 50 * linear[-1].weight.numel()


def test_it_learns_in_one_epoch():
    torch.manual_seed(0)
    task = make_task("digits")
    model = make_model(task)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    inputs, targets = task.splits().train
    for batch in zip(inputs.split(32), targets.split(32), strict=True):
        optimizer.zero_grad()
        task.loss(model(*task.inputs(batch)), batch).backward()
        optimizer.step()
    test = task.splits().test
    with torch.no_grad():
        metrics = task.metrics(model(*task.inputs(test)), test)
    assert set(metrics) == {"loss", "accuracy"}
    assert metrics[task.metric] > 0.85
