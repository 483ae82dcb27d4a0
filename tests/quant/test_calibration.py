"""Block by block on calibration data: closer than rounding, packed as it computes, and it survives a kill."""

from __future__ import annotations

import copy
import dataclasses
import functools

import pytest
import torch
from torch import nn

from hybridkit.errors import FileError, UsageError
from hybridkit.quant.calibration import Kept, Tuning, calibrate_, fingerprint
from hybridkit.quant.config import QuantConfig
from hybridkit.quant.convert import convert
from hybridkit.quant.layers import qat_layers
from hybridkit.quant.prepare import prepare_qat_
from hybridkit.runtime.modules import load_packed
from hybridkit.tasks.models.transformer import Shape, Transformer

SHAPE = Shape(width=64, layers=3, heads=4, kv_heads=2, hidden=128, vocabulary=50)
CONFIGS = {
    "ternary, groups": QuantConfig(weights="ternary-mse", granularity="group:32", activations="float"),
    "ternary, int8": QuantConfig(weights="ternary-mse", activations="int8"),
    "2 bits": QuantConfig(weights={"quantizer": "nbit", "bits": 2}, activations="float"),
    "binary": QuantConfig(weights="binary", activations="float"),
    "3:4-sparse": QuantConfig(weights="ternary-sparse", granularity="group:16", activations="float"),
    "learned": QuantConfig(weights="ternary-learned", activations="float"),
}
TUNING = Tuning(steps=20, joint=0)
BRIEF = Tuning(steps=4, joint=0)
LONG = Tuning(steps=60, joint=0)


def network():
    torch.manual_seed(0)
    return Transformer(SHAPE).eval()


def tokens(batches=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    # a walk, so that what comes next depends on what was before
    steps = torch.randint(-3, 4, (batches, 4, 24), generator=generator)
    return list(steps.cumsum(dim=-1) % SHAPE.vocabulary)


def prepared(config):
    return prepare_qat_(network(), config)


@torch.no_grad()
def error(model):
    """Of the logits on other data, beside the network's own."""
    ours, theirs = (torch.cat([each(batch[0:]) for batch in tokens(seed=1)]) for each in (model, network()))
    return float((ours - theirs).square().mean() / theirs.var())


def inputs():
    return [[batch] for batch in tokens()]


@functools.cache
def calibrated(name, tuning):
    """The network that several tests look at, and what was reported of its blocks."""
    model = prepared(CONFIGS[name])
    return model, calibrate_(model, inputs(), tuning=tuning).blocks


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_it_is_closer_than_rounding_and_what_is_packed_computes_the_same(name):
    model, reports = calibrated(name, TUNING)
    assert [report.place for report in reports] == [0, 1, 2]
    assert all(report.tuned < report.fitted for report in reports)
    assert error(model) < 0.7 * error(prepared(CONFIGS[name]))
    packed = load_packed(network(), convert(model))
    [given, *_] = tokens(seed=1)
    with torch.no_grad():
        torch.testing.assert_close(packed(given), model(given), rtol=1e-4, atol=1e-5)


def test_each_part_helps():
    fitted, _ = calibrated("ternary, groups", Tuning(steps=0, joint=0))
    both, _ = calibrated("ternary, groups", LONG)
    assert error(both) < error(fitted) < error(prepared(CONFIGS["ternary, groups"]))


def test_positions_that_do_not_count_change_nothing():
    mask = torch.ones(4, 24, dtype=torch.bool)
    mask[:, 16:] = False
    found = []
    for garbage in (0, 7):
        given = [[torch.where(mask, batch, garbage)] for batch in tokens()]  # attention is causal
        model = prepared(CONFIGS["ternary, groups"])
        calibrate_(model, given, counted=[mask] * len(given), tuning=BRIEF)
        found.append(model.state_dict())
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name


class Killed(Exception):  # noqa: N818 - stands for one from outside
    pass


def test_a_killed_calibration_goes_on_at_its_block(tmp_path):
    config, kept = CONFIGS["ternary, groups"], Kept(tmp_path / "kept", "a")
    whole, _ = calibrated("ternary, groups", BRIEF)

    def killed(doing, done, of):
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        calibrate_(prepared(config), inputs(), tuning=BRIEF, kept=kept, progress=killed)
    resumed = prepared(config)
    reports = calibrate_(resumed, inputs(), tuning=BRIEF, kept=kept).blocks
    assert [report.place for report in reports] == [2]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    other = calibrate_(prepared(config), inputs(), tuning=BRIEF, kept=Kept(kept.folder, "b")).blocks
    assert len(other) == 3  # of another calibration nothing is taken
    kept.end()
    assert not kept.folder.exists()


def test_a_damaged_block_is_said(tmp_path):
    kept = Kept(tmp_path / "kept", "a")
    config = CONFIGS["ternary, groups"]
    calibrate_(prepared(config), inputs(), tuning=BRIEF, kept=kept)
    (kept.folder / "block-0001.safetensors").write_bytes(b"nothing")
    with pytest.raises(FileError, match="is damaged"):
        calibrate_(prepared(config), inputs(), tuning=BRIEF, kept=kept)


def test_the_original_is_not_needed_any_more_and_not_changed():
    before = network()
    model = prepare_qat_(copy.deepcopy(before), CONFIGS["ternary, groups"])
    calibrate_(model, inputs(), tuning=BRIEF)
    for name, tensor in network().state_dict().items():
        assert torch.equal(tensor, before.state_dict()[name])
    assert not any(layer.weight.is_floating_point() for layer in qat_layers(model).values())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8))])
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.blocks[1](self.blocks[0](self.blocks[0](x))))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), "no repeated blocks"),
        (Twice(), "does not run exactly once"),
    ],
)
def test_what_cannot_be_calibrated_is_said(model, message):
    quantized = prepare_qat_(model, QuantConfig(weights="ternary-mse", activations="float"))
    with pytest.raises(UsageError, match=message):
        calibrate_(quantized, [[torch.randn(4, 8)]])


def test_data_are_needed():
    with pytest.raises(UsageError, match="data"):
        calibrate_(prepared(CONFIGS["binary"]), [])


def test_codes_that_move_help():
    moved, reports = calibrated("ternary, groups", LONG)
    stayed, fixed = calibrated("ternary, groups", dataclasses.replace(LONG, codes=False))
    assert sum(r.tuned for r in reports) < sum(r.tuned for r in fixed)
    assert error(moved) < error(stayed)


def test_a_head_outside_the_blocks_is_fitted_too():
    config = QuantConfig(weights={"quantizer": "nbit", "bits": 2}, activations="float", quantize_all=True)
    made = []
    for tied in (False, True):
        model = network()
        if not tied:
            model.head.weight = nn.Parameter(model.head.weight.detach().clone())
        made.append(prepare_qat_(model, config))
        calibrate_(made[-1], inputs(), tuning=BRIEF)
    fitted, rounded = (model.head.quantized_weight().codes for model in made)
    assert not torch.equal(fitted, rounded)
    assert error(made[0]) < error(made[1])


def test_other_weights_are_told_apart():
    one, other = network(), network()
    assert fingerprint(one) == fingerprint(other)
    with torch.no_grad():
        next(other.parameters()).mul_(1.001)
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(nn.Linear(3, 2)) != fingerprint(nn.Linear(3, 2, bias=False))
