"""What a saved state has to be like before it is loaded."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_task
import torch
from hypothesis import given
from same_run import assert_same_run
from test_state import leaves, states

from hybridkit.errors import FileError, UsageError
from hybridkit.optim.hybrid import HybridOptimizer
from hybridkit.registry import registry
from hybridkit.training.config import resolve
from hybridkit.training.loop import resume, train
from hybridkit.training.schema import RunState, check_like, checked, rehearse
from hybridkit.training.trainer import Trainer

TASK = "tiny_task:tiny"


@given(states)
def test_a_state_is_like_itself_unless_it_holds_what_no_run_saves(state: Any) -> None:
    with contextlib.suppress(FileError):
        check_like(state, copy.deepcopy(state), "it")
        return
    with pytest.raises(FileError, match=r"out of range|NaN"):
        check_like(state, copy.deepcopy(state), "it")


@given(states, leaves)
def test_a_leaf_is_not_a_table(state: Any, leaf: Any) -> None:
    if isinstance(leaf, torch.Tensor | np.ndarray | str | bool):
        with pytest.raises(FileError, match=r"it\.x: a table is expected"):
            check_like({"x": {"y": state}}, {"x": leaf}, "it")


@pytest.mark.parametrize(
    ("like", "found", "message"),
    [
        ({"a": 1}, {}, "it.a: it is missing"),
        ({"a": 1}, {"a": 1, "b\x1b": 2}, r"it.b\\x1b: nobody knows it"),
        (torch.ones(3), torch.ones(1), r"torch.float32 \[3\] is expected"),
        (torch.ones(3), torch.ones(3).double(), "is expected"),
        (torch.ones(3), [1.0, 1.0, 1.0], "is expected"),
        (torch.ones(2), torch.tensor([1.0, float("nan")]), "it holds NaN"),
        ([1.0], [1.0, "x"], "it.1: a number is expected"),
        ((1,), [1], "a tuple is expected"),
        (3, -1, "-1 is out of range"),
        (3, 2**63, "out of range"),
        (0.5, float("inf"), "out of range"),
        (0.5, 1e200, "out of range"),
        (True, 1, "a bool is expected"),
    ],
)
def test_what_differs_is_named(like: Any, found: Any, message: str) -> None:
    with pytest.raises(FileError, match=message):
        check_like(like, found, "it")


@pytest.mark.parametrize(
    ("like", "found"),
    [([1.0], [1.0] * 9), (-1, 4), (1, 2.5), (None, {"x": 1}), (1.0, None), ({0: 1.0}, {7: 2.0}), ([], [3])],
)
def test_what_changes_as_a_run_goes_on_may_differ(like: Any, found: Any) -> None:
    check_like(like, found, "it")


def hybrid() -> HybridOptimizer:
    parameters = list(tiny_task.net().parameters())
    base = torch.optim.AdamW(parameters, lr=1e-3)
    return HybridOptimizer(base, controller=registry().create("lr_controller", "aux-nn"), max_steps=9)


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s["state"][0].update(exp_avg=torch.zeros(1, 1)),
            r"state.0.exp_avg: torch.float32 \[16, 8\]",
        ),
        (lambda s: s["state"].update({99: s["state"][0]}), "optimizer.state: it is of other parameters"),
        (lambda s: s["param_groups"][0].update(params=[0, 0, 1, 2, 3, 4]), "it has other parameters"),
        (lambda s: s["param_groups"][0].update(betas=(0.9, 2.0)), r"betas: \(0.9, 0.999\) is expected"),
        (lambda s: s.update(param_groups=[]), "1 parameter groups are expected"),
        (lambda s: s["hybrid"]["radius"].update(recent=[]), "optimizer"),
        (lambda s: s["hybrid"]["radius"].update(radii=[-1.0]), "not a positive number"),
        (lambda s: s["hybrid"]["controller"].popitem(), r"controller\.\w+: it is missing"),
        (lambda s: s["hybrid"].update(last={"state": 3}), "it cannot go on from there"),
        (lambda s: s.pop("hybrid"), "optimizer.hybrid: it is missing"),
    ],
)
def test_an_optimizer_is_tried_out(change: Change, message: str) -> None:
    optimizer = hybrid()
    for _ in range(3):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.ones_like(parameter)
        optimizer.observe(1.5)
        optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    rehearse(hybrid(), saved)
    change(saved)
    if message == "optimizer":
        with pytest.raises(FileError):
            rehearse(
                hybrid(), {**saved, "hybrid": {**saved["hybrid"], "radius": {"radii": [], "recent": []}}}
            )
        return
    with pytest.raises(FileError, match=message):
        rehearse(hybrid(), saved)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("labels", np.zeros(3, np.int32)),
        ("labels", np.full(3, 2**40)),
        ("labels", [0, 1]),
        ("ramp", 1.5),
        ("ramp", True),
        ("parameter_clusters", [0.5]),
        ("allocation", {"0": "os:system"}),  # a name of code is not followed
        ("allocation", {"0": {"quantizer": "os:system", "bits": 2}}),
        ("progress", {"step": -1}),
        ("progress", {"steps": 1}),
        ("random", {}),
        ("sampler", [1]),
        ("unheard of", 1),
    ],
)
def test_the_state_of_a_run(name: str, value: Any) -> None:
    trainer = Trainer.seeded(resolve(task=TASK, batch_size=12, max_steps=3))
    trainer.step()
    state = trainer.checkpoint().state
    assert checked(RunState, state, "it").progress.step == 1
    with pytest.raises(FileError, match=f"it is damaged, or another version's: {name}"):
        checked(RunState, {**state, name: value}, "it")


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(numpy=(*r["numpy"][:2], 10**6, *r["numpy"][3:])),  # NumPy would read there
        lambda r: r.update(python=(3, (1, 2, 3), None)),
        lambda r: r.update(torch=r["torch"][:-1]),
        lambda r: r.update(torch=torch.zeros_like(r["torch"])),
    ],
)
def test_random_states_are_tried_out(change: Change) -> None:
    trainer = Trainer.seeded(resolve(task=TASK, max_steps=3))
    state = trainer.checkpoint().state
    assert checked(RunState, state, "it").progress.step == 0
    change(state["random"])
    with pytest.raises(FileError, match=r": random\."):
        checked(RunState, state, "it")


@pytest.mark.parametrize(
    "flags",
    [
        {"optimizer": "muon"},
        {"optimizer": "torch.optim:Adagrad", "lr_controller": "hypergradient", "constraint": "per-layer"},
        {"optimizer": "torch.optim:NAdam"},
        {"optimizer": "schedulefree:AdamWScheduleFree", "constraint": "l2"},
        {"optimizer": "prodigyopt:Prodigy"},
        {
            "hybrid": True,
            "constraint": "per-cluster",
            "lr_controller": "aux-nn",
        },
        {"qat": True, "target_bits": 2.0},
    ],
    ids=str,
)
def test_trying_out_changes_nothing(tmp_path: Path, flags: dict[str, Any]) -> None:
    config = resolve(task=TASK, batch_size=12, max_steps=7, checkpoint_every=4, keep_checkpoints=9, **flags)
    whole, again = (train(config, run_dir=tmp_path / name).run for name in "ab")
    assert_same_run(whole, resume(again, step=4, trusted={TASK, config.optimizer}).run)


def test_an_optimizer_that_cannot_be_tried_out_is_loaded_as_it_is() -> None:
    table = torch.nn.Embedding(3, 2, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters())
    rehearse(optimizer, {"whatever": 1})
    with pytest.raises(UsageError, match="not a HybridOptimizer's"):
        hybrid().load_state_dict({})
