"""The kernel bench: models of the peers, floors, medians, verdicts and documents. Nothing here is timed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

KERNELS = Path(__file__).parents[2] / "benchmarks" / "kernels"
sys.path.append(str(KERNELS))

import layers  # noqa: E402
import report  # noqa: E402
import results  # noqa: E402
import timed  # noqa: E402
from limits import Caches, Limits, floor_seconds  # noqa: E402
from results import OURS, OURS_FLOAT, Case  # noqa: E402

LIMITS = {"dram": 10e9, "dram_huge": 20e9, "l3": 50e9, "l2": 100e9, "int8": 200e9, "fp32": 50e9}
BOTH = [{"threads": 1, **LIMITS}, {"threads": 2, **{name: 2 * value for name, value in LIMITS.items()}}]


@pytest.mark.parametrize("peer", layers.PEERS, ids=lambda peer: peer.name)
@pytest.mark.parametrize(("n", "k"), [(32, 64), (5, 3), (1, 1), (17, 130)])
def test_every_peer_multiplies(peer, n, k):
    model = layers.model(peer, n, k, 2)
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    x = np.ones((4, k), np.float32)
    first, second = session.run(None, {"x0": x, "x1": x})
    assert first.shape == second.shape == (4, n)
    assert np.isfinite(first).all()
    if n * k > 100:
        assert not np.array_equal(first, second)  # copies have contents of their own


def test_our_layer_multiplies_what_it_stores():
    session = ort.InferenceSession(layers.model(layers.OURS, 40, 50, 1), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x0": np.eye(50, dtype=np.float32)})[0]
    assert set(np.unique(np.round(found / 0.01))) == {-1, 0, 1}


def test_int8_is_what_dynamic_quantisation_writes(tmp_path):
    from onnxruntime.quantization import quantize_dynamic

    (tmp_path / "fp32.onnx").write_bytes(layers.model(layers.FP32, 8, 16, 1))
    quantize_dynamic(tmp_path / "fp32.onnx", tmp_path / "int8.onnx")
    theirs = onnx.load(tmp_path / "int8.onnx")
    ours = onnx.load_from_string(layers.model(layers.INT8, 8, 16, 1))

    def shape(model):
        kinds = {t.name: (t.data_type, tuple(t.dims)) for t in model.graph.initializer}
        return sorted(
            (node.op_type, sorted(kinds[name] for name in node.input if name in kinds))
            for node in model.graph.node
        )

    assert shape(ours) == shape(theirs)


def test_the_floor_is_bandwidth_or_arithmetic():
    one = Limits(**BOTH[0])
    caches = Caches(l2=512 << 10, l3=32 << 20)
    size = {"n": 1024, "k": 1024, "mode": "int8", "code_bytes": 1 << 18}
    assert floor_seconds(one, caches, m=1, cold=True, **size) == 2**18 / 10e9
    assert floor_seconds(one, caches, m=1, cold=True, huge=True, **size) == 2**18 / 20e9
    assert floor_seconds(one, caches, m=1, cold=False, **size) == 2**21 / 200e9
    assert floor_seconds(one, caches, m=8, cold=False, **(size | {"mode": "float"})) == 2**24 / 50e9
    in_l3 = size | {"code_bytes": 1 << 20, "k": 1}
    assert floor_seconds(one, caches, m=1, cold=False, **in_l3) == 2**20 / 50e9
    in_l2 = in_l3 | {"code_bytes": 1 << 18}
    assert floor_seconds(one, caches, m=1, cold=False, **in_l2) == 2**18 / 100e9
    too_large = in_l3 | {"code_bytes": 1 << 26}
    assert floor_seconds(one, caches, m=1, cold=False, **too_large) == 2**26 / 10e9


def process(seconds):
    """What a process prints: `seconds` by (peer, n, k, m, threads, cold)."""
    yield {"isa": "avx2", "ggml": None, "caches": {"l2": 512 << 10, "l3": 32 << 20}, "limits": BOTH}
    yield {"pages": "4 KiB"}
    names = ("peer", "n", "k", "m", "threads", "cold")
    for key, value in seconds.items():
        yield dict(zip(names, key, strict=True)) | {"seconds": value, "call": 1e-6, "kernel": "", "tasks": 0}


def run(*processes):
    return results.combine([list(process(seconds)) for seconds in processes], {"processor_flags": ""})


def large(peer, m=1, threads=1, cold=False):
    return (peer, 2560, 2560, m, threads, cold)


def test_processes_become_medians_and_ratios_of_pairs():
    found = run(*({large(OURS): a, large("ORT int8"): b} for a, b in ((1.0, 2.0), (2.0, 6.0), (9.0, 36.0))))
    case = Case(2560, 2560, 1, 1)
    assert found.time(OURS, case) == 2.0
    assert found.ratio("ORT int8", OURS, case) == 3.0
    assert found.best_peer(case) == "ORT int8"
    assert found.time("ggml TQ2_0", case) is None
    floor = 2 * 2560 * 2560 / 200e9
    assert found.over_floor(OURS, case) == pytest.approx(2.0 / floor)


def test_processes_that_measured_different_things_are_refused():
    with pytest.raises(ValueError, match="same things"):
        run({large(OURS): 1.0}, {large("ORT fp32"): 1.0})


def verdict(found, regime, must):
    [row] = [row for row in report.verdicts(found) if (row.regime, row.must) == (regime, must)]
    return row


@pytest.mark.parametrize(("factor", "met"), [(1.0, True), (1.15 * 1.04, True), (1.15 * 1.06, False)])
def test_a_floor_is_met_within_five_per_cent(factor, met):
    floor = 8 * 2 * 2560 * 2560 / 200e9
    row = verdict(run({large(OURS, 8): floor * factor}), "M = 8", "<= 1.15 x floor")
    assert row.met is met
    assert row.worst == pytest.approx(factor, rel=1e-3)


@pytest.mark.parametrize(("peer", "met"), [(1.01, True), (0.99, False)])
def test_faster_has_no_allowance(peer, met):
    found = run({large(OURS, 8): 1.0, large("ORT int8", 8): peer})
    assert verdict(found, "M = 8", "faster than ORT int8").met is met
    found = run({large(OURS_FLOAT, 8): 1.0, large("ORT fp32", 8): peer})
    assert verdict(found, "float mode", "faster than ORT fp32").met is met


def test_two_threads_are_compared_with_one():
    found = run({large(OURS, 8, 1): 2.0, large(OURS, 8, 2): 1.0})
    row = verdict(found, "2 threads, M >= 8", "<= 1 / 1.85 of 1 thread")
    assert (row.worst, row.met) == (0.5, True)
    found = run({large(OURS, 8, 1): 2.0, large(OURS, 8, 2): 1.2})
    assert verdict(found, "2 threads, M >= 8", "<= 1 / 1.85 of 1 thread").met is False


def test_what_was_not_measured_is_neither_met_nor_missed():
    found = run({large(OURS, 8): 1.0})
    rows = {row.regime: row.met for row in report.verdicts(found)}
    assert rows["M = 1, weights cold"] is None
    assert "not measured" in {row[-1] for row in report.verdict_table(found).rows}


def test_tables_have_a_column_for_each_regime():
    found = run(
        {large(OURS, 1, cold=True): 2e-6, large(OURS): 1e-6, large(OURS, 8, 2): 3e-6, large("ORT fp32"): 4e-6}
    )
    [table] = report.shape_tables(found)
    assert table.columns == ("", "M = 1 cold", "M = 1", "M = 8")
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows[OURS] == ("2.0 / -", "1.0 / -", "- / 3.0")
    assert rows["ORT fp32"] == ("-", "4.0 / -", "-")
    assert rows[f"best peer / {OURS}"] == ("-", "4.00 / -", "-")


def test_a_document_is_read_as_it_was_written(tmp_path):
    found = run({large(OURS): 1.0}, {large(OURS): 3.0})
    results.write(found, tmp_path / "kernels.json")
    assert results.read(tmp_path / "kernels.json").seconds == found.seconds
    json.loads((tmp_path / "kernels.json").read_text())
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="no result"):
        results.read(tmp_path / "other.json")


def test_everybody_takes_turns():
    calls = []

    class Thing:
        products = 1

        def __init__(self, name, seconds):
            self.name, self.value = name, seconds

        def seconds(self, count):
            calls.append(self.name)
            return self.value

    found = timed.compare({"a": Thing("a", 1.0), "b": Thing("b", 2.0)}, rounds=3, budget=0.1)
    assert found == {"a": 1.0, "b": 2.0}
    assert calls == [*"aabb", *"ab", *"ba", *"ab"]  # slow things need no warm-up


def test_a_net_time_is_less_the_call_that_follows_each_product():
    order = []

    class Thing:
        products = 3

        def __init__(self, name, times):
            self.name, self.times = name, iter(times)

        def seconds(self, calls):
            assert calls == 1
            order.append(self.name)
            return next(self.times)

    net = timed.Net(Thing("product", [9.0, 7.0, 8.0]), Thing("nothing", [1.0, 2.0, 6.0]))
    assert net.seconds(3) == 8.0 - 2.0
    assert (net.call, net.products) == (2.0, 3)
    assert order == ["product", "nothing"] * 3
