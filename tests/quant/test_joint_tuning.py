"""All blocks tuned together: nearer to the original on other data; only scales, norms and biases change."""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hybridkit.massive import relative_error
from hybridkit.quant.calibration import Batches, Kept, Tuning, calibrate_, joint
from hybridkit.quant.config import QuantConfig
from hybridkit.quant.convert import convert
from hybridkit.quant.layers import qat_layers
from hybridkit.quant.prepare import prepare_qat_
from hybridkit.runtime.modules import load_packed
from hybridkit.tasks.models.transformer import Shape, Transformer

SHAPE = Shape(width=64, layers=3, heads=4, kv_heads=2, hidden=128, vocabulary=50)
CONFIG = QuantConfig(weights="ternary-mse", granularity="group:32", activations="float")
ALONE, TOGETHER = Tuning(steps=0, joint=0), Tuning(steps=0, joint=60, lr=5e-3)


class Narrowing(nn.Module):
    """Blocks of one class that each give fewer numbers than they get, in a tuple; a head without logits."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Narrower(size) for size in (64, 48, 32))
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        for block in self.blocks:
            x, _ = block(x)
        return {"estimate": self.head(x), "hidden": x}


class Narrower(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.linear, self.norm = nn.Linear(size, size - 16), nn.LayerNorm(size - 16)

    def forward(self, x):
        return F.relu(self.norm(self.linear(x))), "beside"


def transformer():
    torch.manual_seed(0)
    return Transformer(SHAPE).eval()


class Speaks(nn.Module):
    """A transformer whose output is called logits."""

    def __init__(self):
        super().__init__()
        self.inner = transformer()

    def forward(self, ids):
        return {"logits": self.inner(ids)}


def narrowing():
    torch.manual_seed(0)
    return Narrowing().eval()


def tokens(seed):
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(-3, 4, (6, 4, 24), generator=generator)
    return [[batch] for batch in steps.cumsum(dim=-1) % SHAPE.vocabulary]


def vectors(seed):
    return [[batch] for batch in torch.randn(24, 32, 64, generator=torch.Generator().manual_seed(seed))]


NETWORKS = {"logits": (Speaks, tokens), "shapes": (narrowing, vectors)}


@torch.no_grad()
def error(model, original, batches):
    return sum(float(joint.output_error(model(*x), original(*x), None)) for x in batches) / len(batches)


@functools.cache
def calibrated(name, tuning):
    """The network that several tests look at, and what was reported of it."""
    make, data = NETWORKS[name]
    model = prepare_qat_(make(), CONFIG)
    return model, calibrate_(model, data(0), tuning=tuning)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_nearer_on_other_data_and_what_is_packed_computes_the_same(name):
    make, data = NETWORKS[name]
    (alone, _), (together, found) = calibrated(name, ALONE), calibrated(name, TOGETHER)
    report = found.joint
    assert report.after < report.before
    assert error(together, make(), data(1)) < error(alone, make(), data(1))
    with torch.no_grad():
        packed = load_packed(make(), convert(together))
        torch.testing.assert_close(packed(*data(1)[0]), together(*data(1)[0]), rtol=1e-4, atol=1e-5)


class Killed(Exception):  # noqa: N818 - stands for one from outside
    pass


def test_one_that_was_killed_goes_on_where_it_was(tmp_path):
    whole, _ = calibrated("logits", TOGETHER)
    kept, seen = Kept(tmp_path / "kept", "a"), []

    def killed(doing, done, of):
        if (doing, done) == ("Tuning all blocks", 21):
            raise Killed

    with pytest.raises(Killed):
        calibrate_(prepare_qat_(Speaks(), CONFIG), tokens(0), tuning=TOGETHER, kept=kept, progress=killed)
    resumed = prepare_qat_(Speaks(), CONFIG)
    note = lambda doing, done, of: seen.append(done)  # noqa: E731
    found = calibrate_(resumed, tokens(0), tuning=TOGETHER, kept=kept, progress=note)
    assert seen == list(range(17, 61))
    assert found.joint == calibrated("logits", TOGETHER)[1].joint
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.parametrize("name", NETWORKS)
def test_data_that_no_block_has_seen_are_what_it_is_tuned_on(name):
    make, data = NETWORKS[name]
    unseen = Batches(data(2)[:5], [None] * 5)  # all of them are looked at, before and after
    alone, together = (prepare_qat_(make(), CONFIG) for _ in range(2))
    calibrate_(alone, data(0), tuning=ALONE)
    report = calibrate_(together, data(0), unseen=unseen, tuning=TOGETHER).joint
    assert report.before == pytest.approx(error(alone, make(), unseen.inputs), rel=0.02)  # bfloat16
    assert report.after == pytest.approx(error(together, make(), unseen.inputs), rel=0.02)
    assert report.after < report.before


@pytest.mark.parametrize("make", [Speaks, transformer])
def test_without_a_word_about_it_logits_are_tuned_to_and_hidden_states_are_not(make, monkeypatch):
    monkeypatch.setattr("hybridkit.quant.calibration.JOINT", 3)
    done = []
    report = calibrate_(
        prepare_qat_(make(), CONFIG),
        tokens(0),
        tuning=Tuning(steps=0),
        progress=lambda doing, step, steps: done.append((doing, step, steps)),
    )
    assert (report.joint is not None) == (make is Speaks)
    assert (done[-1] == ("Tuning all blocks", 3, 3)) == (make is Speaks)


def test_codes_and_what_is_around_the_blocks_stay():
    (alone, _), (together, _) = calibrated("logits", ALONE), calibrated("logits", TOGETHER)
    inside = {id(p) for block in together.inner.blocks for p in block.parameters()}
    changed = set()
    for (name, before), after in zip(alone.named_parameters(), together.parameters(), strict=True):
        if not torch.equal(before, after):
            assert id(after) in inside, name
            assert before.is_floating_point(), name
            changed.add(name.rpartition(".")[2])
    assert "gain" in changed
    assert not any(parameter.requires_grad for parameter in together.parameters())
    for name, layer in qat_layers(together).items():
        assert layer.ramp == 1, name
        assert torch.equal(layer.quantized_weight().codes, qat_layers(alone)[name].quantized_weight().codes)


def test_blocks_computed_twice_have_the_gradients_of_blocks_computed_once(monkeypatch):
    found = []
    for context in (joint._computed_twice, lambda *given: contextlib.nullcontext()):
        monkeypatch.setattr(joint, "_computed_twice", context)
        model = prepare_qat_(Speaks(), CONFIG)
        calibrate_(model, tokens(0), tuning=Tuning(steps=0, joint=3))
        found.append(model.state_dict())
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name


def test_positions_that_do_not_count_change_nothing():
    mask = torch.ones(4, 24, dtype=torch.bool)
    mask[:, 16:] = False
    found = []
    for garbage in (0, 7):
        given = [[torch.where(mask, batch[0], garbage)] for batch in tokens(0)]  # attention is causal
        model = prepare_qat_(Speaks(), CONFIG)
        calibrate_(model, given, counted=[mask] * len(given), tuning=Tuning(steps=0, joint=5, lr=5e-3))
        found.append(model.state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("masked", [False, True])
def test_a_batch_in_parts_has_the_same_error_and_slopes(masked, monkeypatch):
    mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[2] = False  # a part without a position that counts
    monkeypatch.setattr(joint, "faster_precision", lambda device: "fp32")  # bf16 rounds sums
    found = []
    for most in (joint.AT_ONCE, 1):
        monkeypatch.setattr(joint, "AT_ONCE", most)
        model = prepare_qat_(Speaks(), CONFIG)
        given = [(torch.arange(24).reshape(4, 6) % 16,)] * 2
        counted = [mask] * 2 if masked else None
        report = calibrate_(model, given, counted=counted, tuning=Tuning(steps=0, joint=3, lr=5e-3)).joint
        found.append((report, model.state_dict()))
    assert found[0][0].before == pytest.approx(found[1][0].before, rel=1e-5)
    for name, tensor in found[0][1].items():
        torch.testing.assert_close(tensor, found[1][1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_what_does_not_help_is_undone():
    alone, _ = calibrated("logits", ALONE)
    together = prepare_qat_(Speaks(), CONFIG)
    report = calibrate_(together, tokens(0), tuning=Tuning(steps=0, joint=2, lr=1e3)).joint
    assert report.after == report.before
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, together.state_dict()[name]), name


@pytest.mark.parametrize("positions", [1, 5, 300])
def test_the_error_of_logits_is_kl_per_position(positions):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, positions, 7, generator=generator)
    a.requires_grad_()
    mask = torch.rand(3, positions, generator=generator) < 0.6
    mask[0, 0] = True
    for counted in (mask, None):
        p, q = b.softmax(-1), a.softmax(-1)
        each = (p * (p / q).log()).sum(-1)
        want = (each[mask] if counted is mask else each).mean()
        found = joint.output_error({"logits": a}, {"logits": b}, counted)
        torch.testing.assert_close(found, want)
        slopes = [torch.autograd.grad(error, a)[0] for error in (found, want)]
        torch.testing.assert_close(*slopes)


def test_one_logit_is_an_estimate():
    a, b = torch.randn(2, 6, 1, generator=torch.Generator().manual_seed(0))
    found = joint.output_error({"logits": a}, {"logits": b}, None)
    torch.testing.assert_close(found, relative_error(a, b))
