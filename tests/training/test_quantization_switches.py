"""Switches of quantisation in a run: trained, resumed, packed, and opened again with the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
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
    "flags",
    [
        {"ternary": True},
        {"ternary": True, "insert_norms": True, "granularity": "group:24", "hybrid": True},
        {"ternary": True, "learnable_scale": True},
        {"quantizer": "nbit", "quantize_all": True},
    ],
)
def test_frozen_codes_with_adapters(tmp_path: Path, flags: dict[str, Any]) -> None:
    packed = check_run(tmp_path, trainable="scales,norms,biases,adapters:2", **flags)
    start = Trainer.seeded(resolve(max_steps=4, qat=True, trainable="scales", **flags))
    for name, layer in qat_layers(start.model).items():
        first = layer.quantized_weight()
        assert np.array_equal(packed.layers[name].unpack(), first.codes.numpy())
        assert not np.array_equal(packed.layers[name].scale, first.scale.numpy())
        assert packed.tensors[f"{name}.adapter.down"].shape == (2, layer.weight.shape[1])
        assert packed.tensors[f"{name}.adapter.up"].any()


def test_codes_come_from_a_file_a_trained_run_or_a_frozen_one(tmp_path: Path) -> None:
    """To the bit: what a packed file, or a run that trained ternary weights, computed with."""
    base = resolve(max_steps=3, qat=True, ternary=True)
    run = train(base, run_dir=tmp_path / "trained").run
    trained = PackedModel.load(next(run.path.glob("*.hk.safetensors")))
    file = str(next(run.path.glob("*.hk.safetensors")))
    cheap = {"max_steps": 2, "qat": True, "ternary": True, "trainable": "scales,rest"}
    for start, quantizer in ((file, None), (str(run.path), "ternary-absmean")):
        trainer = Trainer.seeded(resolve(**cheap, init_from=start, quantizer=quantizer))
        for name, layer in qat_layers(trainer.model).items():
            found = layer.quantized_weight()
            assert np.array_equal(found.codes.numpy(), trained.layers[name].unpack())
            assert np.array_equal(found.scale.numpy(), trained.layers[name].scale)
    frozen = train(resolve(**cheap, init_from=file), run_dir=tmp_path / "frozen").run
    again = Trainer.seeded(resolve(**cheap, init_from=str(frozen.path)))
    for name, tensor in frozen.checkpoint(None).model.items():
        assert torch.equal(again.model.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"insert_norms": True}, "--insert-norms needs --qat"),
        ({"no_latent_decay": True}, "--no-latent-decay needs --qat"),
        ({"trainable": "scales"}, "--trainable needs --qat"),
        ({"trainable": "scals", "qat": True}, "did you mean 'scales'"),
        ({"trainable": "norms:3", "qat": True}, "cannot be trained"),
        ({"trainable": "adapters:0", "qat": True}, "a rank of 1 or more, not '0'"),
        ({"trainable": "adapters:x", "qat": True}, "a rank of 1 or more"),
        ({"trainable": "scales", "qat": True, "ramp": 0.5}, "drop --ramp"),
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
