"""Switches of quantisation in a run: trained, resumed, packed, and opened again with the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hybridkit.errors import UsageError
from hybridkit.packing.model import PackedModel
from hybridkit.quant.layers import qat_layers
from hybridkit.runtime.modules import load_packed
from hybridkit.sources.protocol import Code, open_source
from hybridkit.tasks.protocol import forward
from hybridkit.tasks.resolve import make_model
from hybridkit.training.config import resolve
from hybridkit.training.loop import train
from hybridkit.training.network import example_batch
from hybridkit.training.trainer import Trainer


def check_run(folder: Path, **flags: Any) -> PackedModel:
    """Train a few steps, stop and go on; what was packed, after checking what it answers."""
    config = resolve(max_steps=4, checkpoint_every=2, qat=True, **flags)
    run = train(config, run_dir=folder).run
    trainer = Trainer.seeded(config)
    for _ in range(4):
        trainer.step()
    again = Trainer.seeded(config, restored=run.checkpoint(2))
    for _ in range(2):
        again.step()
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    source = open_source(str(run.path), Code())
    batch = example_batch(trainer.task, 8)
    expected = forward(trainer.task, source.network, batch)
    torch.testing.assert_close(forward(trainer.task, trainer.model.eval(), batch), expected)
    packed = PackedModel.load(next(run.path.glob("*.hk.safetensors")))
    fresh = load_packed(make_model(trainer.task, config.model), packed)
    torch.testing.assert_close(forward(trainer.task, fresh, batch), expected, rtol=1e-4, atol=1e-4)
    return packed


def test_inserted_norms(tmp_path: Path) -> None:
    packed = check_run(tmp_path, ternary=True, insert_norms=True)
    assert packed.metadata["quantization"]["insert_norms"] is True
    norms = [name for name in packed.tensors if name.endswith("input_norm.weight")]
    assert {name.removesuffix(".input_norm.weight") for name in norms} == set(packed.layers)


@pytest.mark.parametrize(
    "flags",
    [
        {"ternary": True},
        {"ternary": True, "learnable_scale": True},
        {},
        {"quantizer": "nbit"},
    ],
)
def test_scales_of_groups_are_stored_as_trained(tmp_path: Path, flags: dict[str, Any]) -> None:
    packed = check_run(tmp_path, granularity="group:24", **flags)
    assert packed.metadata["quantization"]["granularity"] == "group:24"
    for layer in packed.layers.values():
        assert layer.group_size == 24
        assert layer.scale.shape == (layer.shape[0], -(-layer.shape[1] // 24))


@pytest.mark.parametrize("hybrid", [False, True])
def test_latent_weights_decay_and_scales_move_as_they_are_told(tmp_path: Path, hybrid: bool) -> None:
    flags = {"ternary": True, "learnable_scale": True, "weight_decay": 0.5, "optimizer": "adamw"}
    config = resolve(max_steps=4, qat=True, hybrid=hybrid, no_latent_decay=True, scale_lr=0.1, **flags)
    trainer = Trainer.seeded(config)
    settings = {
        id(p): (group["weight_decay"], group["lr"])
        for group in trainer.optimizer.param_groups
        for p in group["params"]
    }
    layers = qat_layers(trainer.model)
    for name, parameter in trainer.model.named_parameters():
        layer = layers.get(name.partition(".quantizer_parameters")[0].removesuffix(".weight"))
        latent = layer is not None and parameter is layer.weight
        learned = layer is not None and not latent and "quantizer_parameters" in name
        decay = 0.5 if parameter.ndim > 1 and not latent else 0.0
        assert settings[id(parameter)] == (decay, pytest.approx(config.lr * (0.1 if learned else 1.0)))
    assert len(settings) == len(list(trainer.model.parameters()))
    check_run(tmp_path, **flags, hybrid=hybrid, no_latent_decay=True, scale_lr=0.1, ramp=0.0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"insert_norms": True}, "--insert-norms needs --qat"),
        ({"no_latent_decay": True}, "--no-latent-decay needs --qat"),
        ({"scale_lr": 0.1}, "--scale-lr needs --qat"),
        ({"scale_lr": 0.0, "qat": True}, "scale-lr is 0.0"),
        ({"granularity": "group:64"}, "--granularity needs"),
        ({"granularity": "group:0", "qat": True}, "at least one weight"),
        ({"granularity": "row", "qat": True}, "no granularity"),
        ({"granularity": "tensor", "qat": True, "target_bits": 2.0}, "drop --granularity"),
    ],
)
def test_what_does_not_fit_is_said(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(**flags)
