"""Precision, accumulation, clipping, checkpointing, compilation, workers: what changes, and what does not."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import block_task
import psutil
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from same_run import assert_same_run
from test_loop import Stop
from torch import nn

from hybridkit.errors import FileError, InterruptedRun, UsageError
from hybridkit.precision import Precision, autocast
from hybridkit.testing import TaskContract
from hybridkit.training.blocks import checkpoint_activations_, repeated_blocks
from hybridkit.training.config import TrainConfig, resolve
from hybridkit.training.engine import Engine
from hybridkit.training.feed import share
from hybridkit.training.loop import resume, train
from hybridkit.training.objective import Objective
from hybridkit.training.runs import newest_run
from hybridkit.training.trainer import DivergedError, Trainer

TASK = "block_task:blocks"
QAT: dict[str, Any] = {"qat": True, "ternary": True}


def config(**flags: Any) -> TrainConfig:
    return resolve(**{"task": TASK, "epochs": 2, "batch_size": 12, "checkpoint_every": 4, **flags})


def losses(steps: int = 6, **flags: Any) -> list[float]:
    trainer = Trainer.seeded(config(**flags))
    return [trainer.step()["loss"] for _ in range(steps)]


@pytest.mark.parametrize("flags", [{}, QAT, {**QAT, "hybrid": True}], ids=["fp32", "qat", "hybrid"])
def test_two_half_batches_are_one_whole(flags: dict[str, Any]) -> None:
    # The dropout-free network, and the first epoch's batches as they are dealt: 6 of 12, or 12 of 6.
    whole = Trainer.seeded(config(model="dry", batch_size=12, **flags))
    halves = Trainer.seeded(config(model="dry", batch_size=6, accumulate=2, **flags))
    assert halves.steps_per_epoch == whole.steps_per_epoch
    assert halves.total_steps == whole.total_steps
    fed = next(whole.feed)
    whole.feed.load_state_dict({**whole.feed.state_dict(), "position": 0})
    parts = [nn_slice(fed, slice(0, 5)), nn_slice(fed, slice(5, 12))]  # of unequal size
    loss = whole.engine.gradients([fed], whole.objective)
    accumulated = halves.engine.gradients(parts, halves.objective)
    assert accumulated == pytest.approx(loss, rel=1e-6)
    for one, other in zip(whole.model.parameters(), halves.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def nn_slice(fed: Any, rows: slice) -> Any:
    batch = tuple(tensor[rows] for tensor in fed.batch)
    return type(fed)(batch, -1, (), len(batch[0]), len(batch[0]))


def test_an_epoch_ends_with_the_batches_that_are_left() -> None:
    trainer = Trainer.seeded(config(batch_size=12, accumulate=4))  # 6 batches: 4 and 2
    assert (trainer.steps_per_epoch, trainer.total_steps) == (2, 4)
    ends = []
    while not trainer.done:
        trainer.step()
        ends.append((trainer.feed.drawn, trainer.epoch_ended))
    assert ends == [(4, False), (6, True), (10, False), (12, True)]


def test_a_controller_sees_the_mean_loss_once() -> None:
    trainer = Trainer.seeded(config(accumulate=3, hybrid=True, sampler="per-cluster", data_clusters=3))
    values = trainer.step()
    assert trainer.optimizer.last_step["loss"] == values["loss"]
    assert trainer.optimizer.step_number == 1


def test_clipping_shortens_the_gradient_and_says_how_long_it_was() -> None:
    trainer = Trainer.seeded(config(clip_norm=1e-3))
    norm = trainer.step()["gradient_norm"]
    clipped = torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm()
    assert norm > 1e-3
    assert float(clipped) == pytest.approx(1e-3, rel=1e-3)
    assert losses(clip_norm=1e6) == losses()  # longer than any gradient
    with pytest.raises(DivergedError, match="the gradient is not finite at step 1"):
        Trainer.seeded(resolve(task="tiny_task:steep", clip_norm=1.0)).step()


@pytest.mark.parametrize("model", ["blocks", "attention"])
@pytest.mark.parametrize("flags", [{}, QAT, {"precision": "bf16"}], ids=["fp32", "qat", "bf16"])
def test_checkpointed_activations_change_no_bit(flags: dict[str, Any], model: str) -> None:
    assert losses(model=model, checkpoint_activations=True, **flags) == losses(model=model, **flags)


def test_checkpointed_activations_are_computed_again() -> None:
    trainer = Trainer.seeded(config(checkpoint_activations=True))
    calls: list[int] = []
    first = repeated_blocks(trainer.model)[0]
    first[0].register_forward_hook(lambda *_: calls.append(1))
    trainer.step()
    assert len(calls) == 2  # once more for the backward pass
    trainer.evaluate()
    assert len(calls) == 4  # 24 samples, 12 at a time, once each


def test_a_network_without_blocks_cannot_checkpoint_them() -> None:
    with pytest.raises(UsageError, match="no blocks that repeat"):
        Trainer.seeded(config(task="tiny_task:tiny", checkpoint_activations=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_networks_of_transformers_checkpoint_their_own_way(precision: Precision) -> None:
    from transformers import BertConfig, BertModel

    small = BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    torch.manual_seed(0)
    model, ids = BertModel(small).train(), torch.arange(12).reshape(2, 6)
    names, found = list(model.state_dict()), []
    assert [type(block).__name__ for block in repeated_blocks(model)] == ["BertLayer"] * 2
    for checkpointed in (False, True):
        if checkpointed:
            checkpoint_activations_(model)
            assert any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
        torch.manual_seed(1)
        model.zero_grad()
        with autocast(precision, "cpu"):
            loss = model(input_ids=ids).last_hidden_state.square().mean()
            loss.backward()
        found.append((loss.item(), model.encoder.layer[0].output.dense.weight.grad.clone()))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    assert list(model.state_dict()) == names


def test_bf16_computes_in_bf16_but_for_quantised_layers() -> None:
    seen: dict[str, list[torch.dtype]] = {"fp32": [], "bf16": []}
    for precision, kinds in seen.items():
        trainer = Trainer.seeded(config(precision=precision))
        trainer.model[-1].register_forward_hook(lambda m, x, y, kinds=kinds: kinds.append(y.dtype))
        trainer.step()
        assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
        assert all(p.grad.dtype == torch.float32 for p in trainer.model.parameters())
        trainer.evaluate()
    assert seen["fp32"][0] == torch.float32
    assert seen["bf16"][0] == torch.bfloat16
    assert set(seen["bf16"][1:]) == {torch.float32}  # measured as it is packed
    plain, mixed = losses(**QAT, quantize_all=True), losses(**QAT, quantize_all=True, precision="bf16")
    assert plain[0] == mixed[0]  # every product is a quantised layer's
    assert plain == pytest.approx(mixed, abs=0.05)  # whose gradients are bf16
    assert losses(precision="bf16") != losses()
    assert losses(precision="bf16") == pytest.approx(losses(), abs=0.05)


def test_attention_on_a_cpu_is_float32() -> None:
    parts = [torch.randn(2, 3, 5, 8).bfloat16() for _ in range(3)]
    mask = torch.randn(2, 1, 1, 5)
    expected = F.scaled_dot_product_attention(*(p.float() for p in parts), attn_mask=mask)
    with autocast("bf16", "cpu"):
        found = F.scaled_dot_product_attention(*parts, attn_mask=mask)
        assert F.linear(parts[0].float(), torch.ones(4, 8)).dtype == torch.bfloat16
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())


def test_fp16_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fp16 needs a CUDA device, not cpu; say bf16"):
        train(config(precision="fp16"), run_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def scaled_trainer(scale: float, **flags: Any) -> Trainer:
    """One whose losses are scaled as under fp16; torch has the scaler for the CPU too."""
    trainer = Trainer.seeded(config(**flags))
    trainer.engine.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return trainer


class Loud(Objective):
    def __call__(self, output, batch):
        return 1e6 * super().__call__(output, batch)


@pytest.mark.parametrize("flags", [{}, {"hybrid": True}, {"clip_norm": 0.1}], ids=["adamw", "hybrid", "clip"])
def test_a_loss_scale_leaves_out_steps_that_overflow_and_no_others(flags: dict[str, Any]) -> None:
    flags = {**flags, "model": "dry"}
    ours, plain = scaled_trainer(2.0**10, **flags), Trainer.seeded(config(**flags))
    for _ in range(3):
        scaled, unscaled = ours.step(), plain.step()
        assert scaled.pop("left_out") == 0
        assert scaled["loss"] == pytest.approx(unscaled["loss"], rel=1e-4)
    wild = scaled_trainer(2.0**127, **flags)
    before = [p.clone() for p in wild.model.parameters()]
    wild.objective = Loud(wild.task)
    values = wild.step()
    assert values["left_out"] == 1
    assert values["loss_scale"] == 2.0**127
    assert all(torch.equal(a, b) for a, b in zip(before, wild.model.parameters(), strict=True))
    assert wild.engine.state_dict()["scale"] == 2.0**126
    saved = wild.checkpoint()
    again = Trainer.seeded(config(**flags), restored=saved)
    again.engine.scaler = torch.amp.GradScaler("cpu")
    again.engine.load_state_dict(saved.state["loss_scale"])
    assert again.engine.state_dict() == wild.engine.state_dict()


def test_compiling_keeps_names_and_says_when_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counting(graph: Any, inputs: Any) -> Any:
        seen.append(1)
        return graph.forward

    def failing(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("No working C++ compiler found")

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", partial(compile, backend=counting))
    trainer = Trainer.seeded(config(**QAT, compile=True))
    names = list(trainer.model.state_dict())
    assert [trainer.step()["loss"] for _ in range(3)] == losses(3, **QAT)
    assert seen
    assert list(trainer.model.state_dict()) == names
    seen.clear()
    torch._dynamo.reset()
    ramping = Trainer.seeded(config(**QAT, compile=True, ramp=0.25))  # of 12 steps
    ramping.step()
    ramping.step()
    assert not seen
    ramping.step()
    assert seen
    monkeypatch.setattr(torch, "compile", partial(compile, backend=failing))
    torch._dynamo.reset()
    with pytest.raises(UsageError, match=r"--compile: .*No working C\+\+ compiler found.*leave it out"):
        Trainer.seeded(config(compile=True)).step()


EVERYTHING = {"precision": "bf16", "accumulate": 2, "clip_norm": 0.5, "checkpoint_activations": True}


@pytest.mark.parametrize("task", [TASK, "block_task:listed", "block_task:stream"])
@pytest.mark.parametrize("more", [{}, {"hybrid": True, "ramp": 0.3}], ids=["plain", "hybrid"])
def test_a_run_with_all_of_it_goes_on_to_the_bit(tmp_path: Path, task: str, more: dict[str, Any]) -> None:
    flags = {"task": task, **EVERYTHING, **QAT, **more, "workers": 2, "epochs": None, "max_steps": 9}
    whole = train(config(**flags), run_dir=tmp_path / "a")
    with pytest.raises(InterruptedRun, match="after step 5"):
        train(config(**flags), run_dir=tmp_path / "b", on_event=Stop(5))
    resumed = resume(newest_run(tmp_path / "b"), trusted={task})
    assert_same_run(whole.run, resumed.run)
    assert whole.packed.path.read_bytes() == resumed.packed.path.read_bytes()


@pytest.mark.parametrize("task", [TASK, "block_task:listed", "block_task:stream"])
def test_workers_bring_the_same_batches_in_the_same_order(task: str) -> None:
    def fed(workers: int) -> list[Any]:
        torch.manual_seed(3)
        trainer = Trainer(config(task=task, workers=workers, max_steps=9, epochs=None))
        found = [next(trainer.feed) for _ in range(9)]
        trainer.feed.close()
        return [*(t for one in found for t in one.batch), torch.rand(2)]  # the global generator has not moved

    for one, other in zip(fed(0), fed(2), strict=True):
        assert torch.equal(one, other)


def test_workers_end_with_the_run(tmp_path: Path) -> None:
    before = set(psutil.Process().children())
    seen: set[psutil.Process] = set()

    def look(_: Any) -> None:
        seen.update(set(psutil.Process().children()) - before)

    train(config(workers=2, max_steps=3, epochs=None), run_dir=tmp_path, on_event=look)
    assert len(seen) >= 2
    assert not [process for process in seen if process.is_running()]


def test_what_is_random_in_workers_depends_on_the_batch_alone() -> None:
    def fed(workers: int, skip: int) -> torch.Tensor:
        trainer = Trainer.seeded(config(task="block_task:noisy", workers=workers))
        for _ in range(skip):
            next(trainer.feed)
        state = trainer.feed.state_dict()
        trainer.feed.load_state_dict(state)
        batch = next(trainer.feed).batch[0]
        trainer.feed.close()
        return batch

    again = Trainer.seeded(config(task="block_task:noisy", workers=1))
    found = [next(again.feed).batch[0] for _ in range(4)]
    again.feed.close()
    assert torch.equal(fed(2, 3), found[3])
    assert not torch.equal(found[2], found[3])


def test_what_goes_wrong_in_a_worker_is_one_line() -> None:
    trainer = Trainer.seeded(config(task="block_task:broken", workers=1))
    with pytest.raises(FileError, match=r"^a process of --workers could not read .*: KeyError: 'a sample'$"):
        trainer.step()
    trainer.feed.close()


@given(st.integers(1, 40), st.integers(1, 12))
def test_shares_are_even_and_complete(samples: int, parts: int) -> None:
    found = [share(range(samples), part, parts) for part in range(parts)]
    assert [i for mine, own in found for i in list(mine)[:own]] == list(range(samples))
    assert max(own for _, own in found) - min(own for _, own in found) <= 1
    assert all(len(mine) == max(own, 1) for mine, own in found)


def test_the_engine_of_no_flags_is_forward_and_backward() -> None:
    trainer = Trainer.seeded(config())
    assert isinstance(trainer.engine, Engine)
    fed = next(trainer.feed)
    torch.manual_seed(4)
    trainer.model.train()
    loss = trainer.engine.gradients([fed], trainer.objective)
    ours = [p.grad for p in trainer.model.parameters()]
    trainer.optimizer.zero_grad()
    torch.manual_seed(4)
    expected = nn.functional.cross_entropy(trainer.model(fed.batch[0]), fed.batch[1])
    expected.backward()
    assert loss == expected.item()
    assert all(torch.equal(a, p.grad) for a, p in zip(ours, trainer.model.parameters(), strict=True))


class TestStream(TaskContract):
    def make(self) -> Any:
        return block_task.stream
