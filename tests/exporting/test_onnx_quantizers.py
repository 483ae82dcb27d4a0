"""One quantizer for torch tensors and NumPy arrays, from the one registry, a stranger's too."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx_models import network, one_layer, weights

from hybridkit.cli import run
from hybridkit.errors import HybridkitError, UsageError
from hybridkit.exporting.onnx_quantize import quantize_onnx
from hybridkit.exporting.onnx_quantize.rounding import make_rounding
from hybridkit.registry import registry

few = settings(max_examples=15, deadline=None)
GRANULARITIES = [{}, {"granularity": "tensor"}]
# sums of float32 numbers, whose order is the library's own
ADDED = [*[("binary", o) for o in GRANULARITIES], *[("ternary-absmean", o) for o in GRANULARITIES]]
ADDED += [("ternary-absmean", {"scale_multiplier": 1.5})]
SEARCHED = [("nbit", {"bits": b, "group_size": g}) for b in (2, 4) for g in (0, 5, 32)]
SEARCHED += [("nbit", {"bits": 2, "granularity": "tensor"})]
SEARCHED += [("nbit", {"bits": 2, "offset": True, "group_size": g}) for g in (0, 5, 32)]
# maxima, and sums of float64 numbers that are rounded once
EXACT = [*[("ternary-mse", o) for o in GRANULARITIES], *[("ternary-learned", o) for o in GRANULARITIES]]
EXACT += [("nbit", {"bits": b, "group_size": g, "scale": "absmax"}) for b in (2, 4, 8) for g in (0, 5, 32)]
EXACT += [("nbit", {"bits": 8, "group_size": g}) for g in (0, 5, 32)]

sizes = given(
    N=st.integers(1, 6),
    K=st.integers(1, 300),
    magnitude=st.sampled_from([1e-3, 1.0, 1e4]),
    zeros=st.booleans(),
    seed=st.integers(0, 2**31),
)


def both(name, options, N, K, magnitude, zeros, seed):
    """A weight, and what its array and its tensor become."""
    weight = (np.random.default_rng(seed).normal(size=(N, K)) * magnitude).astype(np.float32)
    if zeros:
        weight[0] = 0
    quantizer = registry().create("quantizer", name, options)
    tensor = torch.from_numpy(weight)
    theirs = quantizer.quantize(tensor, **quantizer.parameters(tensor))
    ours = quantizer.quantize(weight, **quantizer.parameters(weight))
    assert isinstance(ours.codes, np.ndarray)
    assert isinstance(ours.scale, np.ndarray)
    assert (ours.codes.dtype, ours.scale.dtype) == (np.int8, np.float32)
    assert ours.group_size == theirs.group_size
    np.testing.assert_array_equal(
        theirs.dequantize().numpy(), quantizer_of(theirs).dequantize(), "dequantising is the same"
    )
    return weight, ours, theirs


def quantizer_of(found):
    return replace(found, codes=found.codes.numpy()).with_numbers(lambda tensor: tensor.numpy())


@pytest.mark.parametrize(("name", "options"), EXACT)
@few
@example(N=1, K=1, magnitude=1.0, zeros=False, seed=0)
@example(N=3, K=40, magnitude=1e-30, zeros=True, seed=1)
@sizes
def test_equal_to_the_bit(name, options, **how):
    _, ours, theirs = both(name, options, **how)
    np.testing.assert_array_equal(ours.codes, theirs.codes.numpy())
    np.testing.assert_array_equal(ours.scale, theirs.scale.numpy())


@pytest.mark.parametrize(("name", "options"), ADDED)
@few
@example(N=1, K=1, magnitude=1.0, zeros=False, seed=0)
@example(N=3, K=40, magnitude=1e-30, zeros=True, seed=1)
@sizes
def test_equal_but_for_the_order_of_a_sum(name, options, **how):
    """Scales are within eight units in the last place, codes equal but at the very middle between two."""
    weight, ours, theirs = both(name, options, **how)
    np.testing.assert_array_almost_equal_nulp(ours.scale, theirs.scale.numpy(), 8)
    middle = np.abs(np.abs(weight) - ours.scale[:, None] / 2) <= 1e-6 * ours.scale[:, None]
    np.testing.assert_array_equal(np.where(middle, 0, ours.codes), np.where(middle, 0, theirs.codes.numpy()))


@pytest.mark.parametrize(("name", "options"), SEARCHED)
@few
@example(N=1, K=1, magnitude=1.0, zeros=False, seed=0)
@example(N=3, K=40, magnitude=1e-30, zeros=True, seed=1)
@sizes
def test_equal_unless_two_clips_are_equally_good(name, options, **how):
    """The search compares sums of squares; where it takes another clip, the error is the same."""
    weight, ours, theirs = both(name, options, **how)
    if not np.array_equal(ours.scale, theirs.scale.numpy()):
        errors = [np.linalg.norm(found.dequantize() - weight) for found in (ours, quantizer_of(theirs))]
        assert errors[0] == pytest.approx(errors[1], rel=1e-5)
    else:
        np.testing.assert_array_equal(ours.codes, theirs.codes.numpy())


def test_options_and_defaults_are_the_registrys():
    assert make_rounding("nbit").quantizer.options == registry().create("quantizer", "nbit").options
    with pytest.raises(UsageError, match=r"bits='5'"):
        make_rounding("nbit", {"bits": "5"})
    with pytest.raises(UsageError, match="no option 'bit'; did you mean 'bits'"):
        make_rounding("nbit", {"bit": 4})
    with pytest.raises(UsageError, match="no quantizer is called 'ternary-mes'; did you mean 'ternary-mse'"):
        make_rounding("ternary-mes")


def test_one_scale_for_a_weight_that_is_taken_in_blocks(tmp_path, monkeypatch):
    from hybridkit.exporting.onnx_quantize import rounding

    monkeypatch.setattr(rounding, "_BLOCK", 100)
    weight = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    found = make_rounding("ternary-mse", {"granularity": "tensor"}).quantize(weight)
    assert np.unique(found.scale).size == 1
    rows = make_rounding("ternary-mse").quantize(weight)
    whole = registry().create("quantizer", "ternary-mse").quantize(weight)
    np.testing.assert_array_equal(rows.codes, whole.codes)


STRANGER = """
import torch
from hybridkit.quant.protocol import QuantizedTensor, straight_through

class Thirds:
    \"\"\"Ternary at a third of the largest weight: of a row, or of groups.\"\"\"

    levels, bits, group_size = (-1, 0, 1), 1.585, GROUP

    def parameters(self, weight):
        return {"top": weight.abs().amax(dim=1)}

    def quantize(self, weight, *, top):
        assert isinstance(weight, torch.Tensor)
        codes = torch.sign(weight) * (weight.abs() > top[:, None] / 3)
        groups = -(-weight.shape[1] // self.group_size) if self.group_size else 0
        scale = (top / 2)[:, None].repeat(1, groups) if groups else top / 2
        return QuantizedTensor(codes.to(torch.int8), scale, self.group_size)

    def fake_quantize(self, weight, quantized, *, top):
        return straight_through(weight, quantized)
"""


@pytest.mark.parametrize("group", [0, 16])
def test_a_strangers_quantizer_that_knows_torch_alone(group, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"thirds{group}.py").write_text(STRANGER.replace("GROUP", str(group)))
    weight = np.random.default_rng(0).normal(size=(64, 40)).astype(np.float32)
    proto = one_layer(helper.make_node("MatMul", ["x", "w"], ["y"], "m"), {"w": weight}, ["n", 64], 2)
    onnx.save(proto, "net.onnx")
    assert run(["quantize", "net.onnx", "-o", "out.onnx", "--quantizer", f"thirds{group}:Thirds"]) == 0
    (node,) = onnx.load("out.onnx").graph.node
    assert node.op_type == ("MatMulNBits" if group else "TernaryMatMulFloat")
    top = np.abs(weight).max(axis=0)
    wanted = np.sign(weight) * (np.abs(weight) > top / 3) * top / 2
    x = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
    from networks import run_ort

    np.testing.assert_allclose(run_ort("out.onnx", x), x @ wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("imports", ["import torch\n", ""])
def test_without_torch_a_strangers_quantizer_gets_one_line(imports, tmp_path):
    """Whether its module imports torch, or it only takes tensors."""
    (tmp_path / "thirds.py").write_text(imports + "class Thirds:\n    levels, bits = (-1, 0, 1), 1.585\n")
    onnx.save(network(weights()), tmp_path / "net.onnx")
    script = """
import sys
sys.modules["torch"] = None  # importing it is an error
from hybridkit.cli import run
sys.exit(run(["quantize", "net.onnx", "--quantizer", "thirds:Thirds"]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "hybridkit: error: the quantizer 'thirds:Thirds' needs torch, which is not ins"
    )
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["ternary-mse", "ternary-absmean", "ternary-learned", "binary", "nbit"])
def test_built_in_quantizers_need_no_torch(name, tmp_path):
    onnx.save(network(weights()), tmp_path / "net.onnx")
    script = f"""
import sys
sys.modules["torch"] = None
from hybridkit.cli import run
sys.exit(run(["quantize", "net.onnx", "-o", "out.onnx", "--quantizer", "{name}"]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    quantize_onnx(tmp_path / "net.onnx", tmp_path / "here.onnx", quantizer=name)
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "here.onnx").read_bytes()


@few
@given(K=st.integers(1, 7), seed=st.integers(0, 2**31))
def test_no_ternary_codes_are_closer_than_those_of_least_squares(K, seed):
    row = np.random.default_rng(seed).normal(size=(1, K)).astype(np.float32)
    found = np.linalg.norm(make_rounding("ternary-mse").quantize(row).dequantize() - row)
    for codes in np.ndindex(*[3] * K):
        q = np.array(codes, np.float64) - 1
        scale = max(float(row[0] @ q), 0) / max(float(q @ q), 1)
        assert found <= np.linalg.norm(scale * q - row[0]) + 1e-5


def test_a_code_book_that_no_file_holds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wide.py").write_text("class Wide:\n    levels, bits = tuple(range(-300, 300)), 9.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(HybridkitError, match="no codec holds the levels"):
        make_rounding("wide:Wide")
