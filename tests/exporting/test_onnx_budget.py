"""An ONNX file to a budget: within it by its own outputs, and nothing is left where that cannot be."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_models import network, weights

from hybridkit.errors import GateError, UsageError
from hybridkit.exporting.onnx_quantize.budget import STAYS, halves, quantize_onnx_within
from hybridkit.quant.budgets import Budget
from hybridkit.runtime.session import session


@pytest.fixture
def source(tmp_path):
    onnx.save(network(weights()), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def feeds(count=1, batch=60, seed=3):
    draw = np.random.default_rng(seed)
    return [{"x": draw.normal(size=(batch, 3, 9, 8)).astype(np.float32)} for _ in range(count)]


def lost(source, packed, feed):
    [x], [y] = (session(p, native=False).run(None, dict(feed)) for p in (source, packed))
    x, y = (a.reshape(len(a), -1).astype(np.float64) for a in (x, y))
    cosines = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    return float(np.mean(1 - cosines))


@pytest.mark.parametrize("given", [feeds(), feeds(4, 15)])
def test_the_smallest_file_within_a_loss(source, tmp_path, given):
    packed = tmp_path / "p.onnx"
    report, found = quantize_onnx_within(source, packed, Budget(within=0.02), given)
    taken = found.tried[found.taken]
    _, measured = halves(given)
    direct = np.mean([lost(source, packed, feed) for feed in measured])
    assert taken.lost == pytest.approx(direct, rel=1e-3, abs=1e-6)
    assert taken.lost <= 0.02
    assert taken.bytes == packed.stat().st_size == report.bytes_after < source.stat().st_size
    sizes = [point.bytes for point in found.frontier]
    assert sizes == sorted(sizes)
    assert STAYS in found.frontier[-1].shares
    assert not list(tmp_path.glob(".*"))
    strict, other = quantize_onnx_within(source, tmp_path / "q.onnx", Budget(within=0.0005), given)
    assert other.tried[other.taken].lost <= 0.0005
    assert strict.bytes_after > report.bytes_after


def test_the_best_file_of_a_size(source, tmp_path):
    size = source.stat().st_size
    worse = []
    for share in (0.6, 0.8):
        report, found = quantize_onnx_within(
            source, tmp_path / "p.onnx", Budget(size=int(share * size)), feeds()
        )
        assert report.bytes_after <= share * size
        worse.append(found.tried[found.taken].expected)
    assert worse[0] > worse[1]


@pytest.mark.parametrize("budget", [Budget(within=1e-12), Budget(size=100)])
def test_a_missed_budget_leaves_nothing(source, tmp_path, budget):
    with pytest.raises(GateError):
        quantize_onnx_within(source, tmp_path / "p.onnx", budget, feeds())
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_inputs_are_needed(source, tmp_path):
    with pytest.raises(UsageError, match="real ones"):
        quantize_onnx_within(source, tmp_path / "p.onnx", Budget(within=0.01), [])


def test_halves():
    x, alone = np.arange(5), np.zeros((1, 3))
    fitted, measured = halves([{"x": x, "y": x * 2}])
    assert fitted[0]["y"].tolist() == [0, 4, 8]
    assert measured[0]["x"].tolist() == [1, 3]
    assert halves([{"x": alone}]) == ([{"x": alone}], [{"x": alone}])
    assert halves([{"x": x, "rate": np.array(16000)}])[0] == [{"x": x, "rate": np.array(16000)}]
    assert [len(half) for half in halves([{"x": x}] * 3)] == [2, 1]
