"""Looks at the codes of quantised layers: what they say, and that a run does not feel them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from same_run import logged
from torch import nn

from hybridkit.quant.prepare import prepare_qat_
from hybridkit.training import codes
from hybridkit.training.config import TrainConfig, resolve
from hybridkit.training.loop import train


def config(**flags: Any) -> TrainConfig:
    common = {"task": "tiny_task:tiny", "batch_size": 12, "ternary": True, "qat": True, "max_steps": 12}
    return resolve(**common | flags)


def test_a_look_counts_changes_zeros_and_errors() -> None:
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.ReLU(), nn.Linear(2, 3, bias=False))
    prepare_qat_(model, quantizer="ternary-absmean", quantize_all=True)
    layers = codes.observable_layers(model)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1, 0, 1], [1, 1, 1, 1]]))
        model[2].weight.copy_(torch.tensor([[1.0, 1], [1, 1], [1, 1]]))
    before = codes.codes(layers)
    with torch.no_grad():
        model[0].weight[0, 0] = -1.0  # one code of eight changes
    shares, by_layer = codes.look(layers, before)
    assert shares == {"codes_changed": 1 / 14, "codes_zero": 1 / 14}
    assert by_layer["layers"] == ["0", "2"]
    assert by_layer["layer_changed"] == [1 / 8, 0.0]
    assert by_layer["layer_zeros"] == [1 / 8, 0.0]
    latent = model[0].weight.detach()
    packed = model[0].quantized_weight().dequantize()
    error = float((packed - latent).square().sum() / latent.square().sum())
    assert by_layer["layer_error"] == pytest.approx([error, 0.0], abs=1e-12)


def test_steps_and_evaluations_log_them_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes, "EVERY", 5)
    records = logged(train(config(eval_every=6), run_dir=tmp_path).run)
    looked = {r["step"]: r for r in records if "codes_changed" in r}
    assert list(looked) == [5, 6, 10, 12]
    assert all(r["event"] == "step" for r in looked.values())
    assert all(0 <= r["codes_changed"] < 0.5 and 0 < r["codes_zero"] < 1 for r in looked.values())
    evaluations = [r for r in records if r["event"] == "evaluation"]
    assert [r["layers"] for r in evaluations] == [["0", "3"]] * 2  # the last Linear stays in full precision
    for record in evaluations:
        mean = sum(n * z for n, z in zip((8 * 16, 16 * 16), record["layer_zeros"], strict=True)) / (24 * 16)
        assert mean == pytest.approx(looked[record["step"]]["codes_zero"])
    assert not any(
        "layers" in r for r in logged(train(config(ternary=False, qat=False), run_dir=tmp_path).run)
    )


@pytest.mark.parametrize("quantizer", ["ternary-absmean", "ternary-mse", "ternary-learned"])
def test_looking_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantizer: str) -> None:
    found = []
    for every in (1, 10**9):
        monkeypatch.setattr(codes, "EVERY", every)
        run = train(config(quantizer=quantizer, hybrid=True, eval_every=100), run_dir=tmp_path).run
        steps = [r for r in logged(run) if r["event"] == "step"]
        assert sum("codes_changed" in r for r in steps) == (12 if every == 1 else 1)
        found.append(run.checkpoint().model)
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_sharded_weights_are_left_alone() -> None:
    model = prepare_qat_(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    model[0].weight.full_tensor = lambda: None  # as torch's DTensor has it
    assert codes.observable_layers(model) == {}
