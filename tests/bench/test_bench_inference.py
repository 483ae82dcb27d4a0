"""Inference of a file: what it is fed, what is counted, what is refused. Nothing here looks at a time."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from hybridkit.bench.feeds import FREE_SIZE, Input, feed, recorded_shapes
from hybridkit.bench.inference import index_bound, measure_inference, steps
from hybridkit.bench.latency import Effort, compare_latency
from hybridkit.bench.layers import measure_layers, profile
from hybridkit.bench.memory import measure_memory, write_empty
from hybridkit.bench.twin import load, write_twin
from hybridkit.bench.variants import INT8, NBITS2, NBITS4, PORTABLE, TWIN, Variant, write_variants
from hybridkit.errors import FileError, HybridkitError
from hybridkit.exporting.door import admit
from hybridkit.exporting.graph import packed_nodes
from hybridkit.runtime import library_path
from hybridkit.runtime.native import load as native_library

LEAST = Effort(rounds=1, seconds=0.001)


def parsed(text, path, metadata=None):
    model = onnx.parser.parse_model(text)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return path


GATHER = """
<ir_version: 8, opset_import: ["" : 18]>
g (int64[batch, length] ids) => (float[batch, length, 2] y)
<float[5, 2] table = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}> { y = Gather (table, ids) }
"""


NATIVE = library_path() is not None
PEERS = [PORTABLE, TWIN, INT8, NBITS2, NBITS4] if NATIVE else [TWIN, INT8, NBITS2, NBITS4]


def test_an_exported_model_is_measured_beside_its_peers(exported, inference):
    names = ["digits.onnx", *PEERS]
    assert [v.variant for v in inference.variants] == names
    assert inference.packed_layers == 2
    assert [(r.variant, r.batch, r.threads, r.cold) for r in inference.latencies] == [
        (name, batch, 1, cold) for batch in (1, 3) for cold in (False, True) for name in names
    ]
    for row in inference.latencies:
        assert 0 < row.timing.p50_ms <= row.timing.p90_ms <= row.timing.p99_ms
        assert row.timing.samples_per_second == pytest.approx(1e3 * row.batch / row.timing.p50_ms)
    size = {v.variant: v.file_bytes for v in inference.variants}
    assert size["digits.onnx"] == exported.stat().st_size < size[TWIN] / 6
    assert size["digits.onnx"] < size[NBITS2] < size[NBITS4] < size[INT8] < size[TWIN]


def test_every_peer_computes_the_same_network(exported, tmp_path):
    _, variants, notes = write_variants(exported, tmp_path)
    assert notes == []
    x = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    found = {v.name: v.session(1).run(None, {"input": x})[0] for v in variants}
    reference = found.pop("digits.onnx")
    for name, output in found.items():
        error = np.square(output - reference).sum() / np.square(reference).sum()
        assert error < (1e-10 if name == PORTABLE else 0.05), name


def test_a_peer_that_cannot_be_made_is_a_note(tmp_path):
    path = parsed(GATHER, tmp_path / "m.onnx")
    layers, variants, notes = write_variants(path, tmp_path)
    assert layers == 0
    assert [v.name for v in variants] == ["m.onnx", INT8]
    assert [note.split(":")[0] for note in notes] == [f"{name} is left out" for name in (NBITS2, NBITS4)]


def test_a_foreign_network_gets_the_same_peers(tmp_path):
    layer = """
    <ir_version: 8, opset_import: ["" : 18]>
    g (float[batch, 128] x) => (float[batch, 128] y) { y = MatMul (x, w) }
    """
    model = onnx.parser.parse_model(layer)
    w = np.random.default_rng(0).standard_normal((128, 128)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    onnx.save(model, tmp_path / "m.onnx")
    _, variants, notes = write_variants(tmp_path / "m.onnx", tmp_path)
    assert [v.name for v in variants] == ["m.onnx", INT8, NBITS2, NBITS4]
    assert notes == []


def test_profiled_nodes_have_shapes_and_times(exported):
    feeds = [{"input": np.zeros((5, 64), np.float32)}]
    events = profile(Variant("portable", exported), feeds, 1)
    assert all(event.us >= 0 for event in events)
    last = [event for event in events if event.operator in ("Gemm", "MatMul")][-1]
    assert (last.x, last.y) == ((5, 512), (5, 10))


@pytest.mark.skipif(not NATIVE, reason="there is no native library")
def test_layers_are_those_of_the_file(exported, tmp_path):
    _, variants, _ = write_variants(exported, tmp_path)
    twin = next(v for v in variants if v.name == TWIN)
    feeds = [{"input": np.zeros((5, 64), np.float32)}]
    packed = list(packed_nodes(load(exported)))
    native = native_library()
    found = measure_layers(packed, variants[0], twin, native, feeds, 5, 1)
    assert [(r.layer, r.operator, r.n, r.k, r.rows) for r in found] == [
        (p.name, "TernaryMatMulInt8", p.N, p.K, 5) for p in packed
    ]
    for row in found:
        assert row.kernel == native.kernel("ternary", "int8", row.n, row.k, 5)
        assert row.threads == 1
        assert row.us > 0
        assert row.twin_us > 0


@pytest.mark.skipif(not NATIVE, reason="there is no native library")
def test_nbit_layers_have_a_kernel_of_their_own(tmp_path):
    import torch

    import hybridkit
    from hybridkit.exporting import export

    torch.manual_seed(0)
    network, x = torch.nn.Linear(72, 40), torch.randn(8, 72)
    for options in ({"bits": 8}, {"bits": 4, "group_size": 32}):
        packed = hybridkit.quantize(network, quantizer="nbit", options=options, quantize_all=True).packed
        path = tmp_path / f"{options['bits']}.onnx"
        export(network, packed, path, example_inputs=(x,))
        _, variants, _ = write_variants(path, tmp_path)
        twin = next(v for v in variants if v.name == TWIN)
        assert NBITS2 in {v.name for v in variants}  # the same codes, in blocks
        layers, native = list(packed_nodes(load(path))), native_library()
        (row,) = measure_layers(layers, variants[0], twin, native, [{"input": x.numpy()}], 8, 1)
        assert row.operator == f"NBit{options['bits']}MatMulFloat"
        size = options.get("group_size", 80)
        assert row.kernel == native.kernel(f"nbit{options['bits']}", "float", 40, 72, 8, size)
        assert (row.kernel, row.rows) == ("tile", 8)


def test_quality_is_that_of_the_task(exported, inference, tmp_path):
    import torch

    from hybridkit.runtime.session import session
    from hybridkit.tasks.resolve import make_task

    inputs, targets = make_task("digits").splits().test
    write_twin(exported, tmp_path / "twin.onnx")
    by_name = {variant.variant: variant for variant in inference.variants}
    for path, name in ((exported, "digits.onnx"), (tmp_path / "twin.onnx", TWIN)):
        logits = session(path, threads=1).run(None, {"input": inputs.numpy()})[0]
        right = (torch.from_numpy(logits).argmax(1) == targets).float().mean()
        assert by_name[name].metric == pytest.approx(float(right))
    assert (inference.task, inference.metric, inference.samples) == ("digits", "accuracy", len(targets))
    assert 0 < inference.output_error < 0.01


def test_a_foreign_model_is_measured_alone(tmp_path):
    ticks = []
    path = parsed(GATHER, tmp_path / "foreign.onnx")
    found = measure_inference(path, threads=(1,), batches=(1, 2), effort=LEAST, tick=lambda: ticks.append(1))
    assert [v.variant for v in found.variants] == ["foreign.onnx", INT8]
    assert found.layers == []
    assert {r.batch for r in found.latencies} == {1, 2}
    assert found.output_error is None
    assert found.task is found.metric is found.variants[0].metric is None
    assert any("no task" in note for note in found.notes)
    assert any("no packed layers" in note for note in found.notes)
    assert len(ticks) <= steps((1,), (1, 2))


def test_a_file_never_causes_an_import(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.chdir(tmp_path)
    path = parsed(GATHER, tmp_path / "m.onnx", {"hybridkit.task": "evil:task"})
    found = measure_inference(path, threads=(1,), batches=(1,), effort=LEAST)
    assert any("'evil:task'" in note for note in found.notes)


def test_a_task_whose_data_are_not_here_is_a_note(tmp_path, monkeypatch):
    from hybridkit.tasks import resolve

    def absent(name, options=None):
        raise FileError("the data are not here")

    monkeypatch.setattr(resolve, "make_task", absent)
    path = parsed(GATHER, tmp_path / "m.onnx", {"hybridkit.task": "fashion-mnist"})
    found = measure_inference(path, threads=(1,), batches=(1,), effort=LEAST)
    assert "no quality is measured: the data are not here" in found.notes


def test_a_fixed_batch_is_the_only_one(tmp_path):
    text = GATHER.replace("int64[batch, length]", "int64[4, 3]").replace("batch, length, 2", "4, 3, 2")
    found = measure_inference(parsed(text, tmp_path / "m.onnx"), threads=(1,), batches=(1, 8), effort=LEAST)
    assert {r.batch for r in found.latencies} == {4}


@pytest.mark.parametrize("content", [None, b"nonsense"])
def test_a_missing_or_foreign_file_is_one_line(content, tmp_path):
    path = tmp_path / "m.onnx"
    if content:
        path.write_bytes(content)
    with pytest.raises(FileError, match=r"m\.onnx"):
        measure_inference(path, threads=(1,))


def test_a_model_that_does_not_run_is_one_line(tmp_path):
    text = """
    <ir_version: 8, opset_import: ["" : 18]>
    g (float[batch, width] x) => (float[batch, 3] y)
    <int64[2] shape = {-1, 3}> { y = Reshape (x, shape) }
    """
    with pytest.raises(HybridkitError, match="does not run on made-up inputs"):
        measure_inference(parsed(text, tmp_path / "m.onnx"), threads=(1,), batches=(1,), effort=LEAST)


def test_integers_stay_below_the_smallest_table(tmp_path):
    assert index_bound(load(parsed(GATHER, tmp_path / "m.onnx"))) == 5
    text = '<ir_version: 8, opset_import: ["" : 18]> g (int64[n] x) => (int64[n] y) { y = Identity (x) }'
    assert index_bound(load(parsed(text, tmp_path / "n.onnx"))) == 2


def test_feeds_have_the_wanted_sizes_and_differ():
    inputs = [
        Input("ids", np.dtype(np.int64), ("batch", "length")),
        Input("mask", np.dtype(np.bool_), ("batch", "length")),
        Input("x", np.dtype(np.float16), ("batch", 3, "width")),
    ]
    made = feed(inputs, 6, 0, bound=5, examples={"ids": (1, 9)})
    assert made["ids"].shape == made["mask"].shape == (6, 9)
    assert made["x"].shape == (6, 3, FREE_SIZE)
    assert {name: array.dtype for name, array in made.items()} == {i.name: i.dtype for i in inputs}
    assert made["ids"].min() >= 0
    assert made["ids"].max() < 5
    again = feed(inputs, 6, 0, bound=5, examples={"ids": (1, 9)})
    other = feed(inputs, 6, 1, bound=5, examples={"ids": (1, 9)})
    assert np.array_equal(made["x"], again["x"])
    assert not np.array_equal(made["x"], other["x"])


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"name": "x"}]', '[{"name": "x", "shape": ["a"]}]'])
def test_a_damaged_record_of_the_inputs_is_ignored(text):
    assert recorded_shapes({"hybridkit.inputs": text}) == {}


def test_the_record_of_the_inputs_is_read():
    record = json.dumps([{"name": "x", "shape": [1, 64], "dtype": "float32"}])
    assert recorded_shapes({"hybridkit.inputs": record}) == {"x": (1, 64)}
    assert recorded_shapes({}) == {}


def test_external_data_count(tmp_path):
    model = onnx.parser.parse_model(GATHER)
    table = onnx.numpy_helper.from_array(np.zeros((500, 2), np.float32), "table")
    model.graph.initializer[0].CopyFrom(table)
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    assert admit(path).file_bytes == path.stat().st_size + 4000
    (tmp_path / "m.data").unlink()
    with pytest.raises(FileError, match=r"m\.data"):
        admit(path)


def test_sessions_take_turns_on_the_same_inputs():
    calls = []

    class Session:
        def __init__(self, name):
            self.name = name

        def run(self, outputs, given):
            calls.append((self.name, given))

    feeds = ["first", "second"]
    found = compare_latency({"a": Session("a"), "b": Session("b")}, feeds, 4, Effort(rounds=3, seconds=0.0))
    names = [name for name, _ in calls]
    runs = {name: found[name].runs // 3 for name in "ab"}
    warm_up = ["a"] * 6 + ["b"] * 6
    a, b = ["a"] * runs["a"], ["b"] * runs["b"]
    assert names == warm_up + a + b + b + a + a + b
    assert {given for _, given in calls} == {"first", "second"}


def test_memory_is_measured_in_another_process(exported, tmp_path):
    write_empty(tmp_path / "empty.onnx")
    found = measure_memory(exported, tmp_path / "empty.onnx", threads=1, bound=2)
    assert found.resident_bytes > exported.stat().st_size
    assert found.peak_bytes is None or found.peak_bytes >= found.resident_bytes
    with pytest.raises(HybridkitError, match=r"measuring the memory of .*absent\.onnx failed: "):
        measure_memory(tmp_path / "absent.onnx", tmp_path / "empty.onnx", threads=1, bound=2)
