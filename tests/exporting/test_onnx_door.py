"""What comes in through the door for ONNX files, and that everything else gets one line."""

from __future__ import annotations

import os
import shutil
import tracemalloc
import unicodedata
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from malformed import SPECIAL, malformed
from networks import run_ort
from onnx import TensorProto, helper, numpy_helper
from onnx_models import example, network, weights

from hybridkit.cli import run
from hybridkit.errors import FileError
from hybridkit.exporting.door import admit
from hybridkit.exporting.onnx_quantize import comparison, quantize_onnx

HOW = (
    [],
    ["--quantizer", "nbit"],
    ["--activations", "int8"],
    ["--quantizer", "nbit", "--set", "quantizer.group_size=512"],
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("door")
    (folder / "model").mkdir()
    return folder / "model"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(comparison, "LONGEST_RUN", 2.0)


def one_line_or_a_file(place, capfd, data, how):
    """Run the command on a file: it works in silence, or says one line and leaves nothing."""
    source, out = place / "model.onnx", place / "out.onnx"
    source.write_bytes(data)
    capfd.readouterr()
    code = run(["quantize", str(source), "-o", str(out), *how])
    said = capfd.readouterr()
    assert not [c for c in said.out + said.err if c != "\n" and unicodedata.category(c) in ("Cc", "Cf")]
    if code == 0:
        assert said.err == ""
        out.unlink()
    else:
        assert code in (1, 2, 3)
        assert said.out == ""
        assert said.err.startswith("hybridkit: error: ")
        assert said.err.count("\n") == 1
    assert [file.name for file in place.iterdir()] == ["model.onnx"]
    return code, said.err


def test_malformed_files(place, capfd):
    """No example that fails needs shrinking: its seed is the file."""

    @settings(max_examples=300, deadline=None)
    @given(seed=st.integers(0, 2**63), how=st.sampled_from(HOW))
    def check(seed, how):
        _, data = malformed(seed)
        one_line_or_a_file(place, capfd, data, how)

    check()


REFUSED = {
    "2^40 elements": "tensor 'w' of shape 1048576x1048576 needs 4,398,046,511,104 bytes and has 0",
    "2^40 elements in four bytes": "needs 4,398,046,511,104 bytes and has 4",
    "more elements than a number holds": "needs ",
    "negative dims": "tensor 'w' has a negative size",
    "a type that is none": "has a type, 0, that is none",
    "half of the data": "tensor 'w' of shape 32x32 needs 4,096 bytes and has 2,048",
    "a name that clears the screen": r"the name '\x1b[2J\nname\r' holds characters that cannot be printed",
    "data nowhere": "external data at 'nowhere.bin' is missing; it belongs beside the model",
    "data above the folder": "external data at '../secret.bin' lies outside the model's folder",
    "data anywhere": "external data at '/etc/passwd' lies outside the model's folder",
    "data without a location": "it is not said once in which",
    "data in a folder": "external data at '.' is missing",
    "data in the model": "its data is 4,096 bytes from 99,999,999 on of the ",
    "an offset that is no number": r"'\x1b[1m' is no offset of external data",
    "a cycle": "must be topologically sorted",
    "a function that calls itself": "the function 'F' calls itself",
    "functions that call each other": "calls itself",
    "functions that grow": "its functions come to more than 10,000,000 nodes",
    "graphs in graphs": "must be topologically sorted",
    "an attribute of a function outside one": "'alpha' refers to one of a function, and is in none",
    "a sparse weight": "keeps weights in sparse form, which is not read; store them densely",
    "2^40 computed elements": "'w' of shape 32x1099511627776 is more than fits into memory",
    "nothing": "it has no graph",
    "no graph": "it has no graph",
}


@pytest.mark.parametrize("name", sorted(SPECIAL))
def test_what_has_a_name(name, place, capfd):
    tracemalloc.start()
    try:
        code, line = one_line_or_a_file(place, capfd, SPECIAL[name]().SerializeToString(), [])
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()
    if name in REFUSED:
        assert code == 1
        assert REFUSED[name] in line


@pytest.mark.parametrize(
    "kind", sorted(set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED, TensorProto.STRING})
)
def test_every_type_of_tensor_comes_in_as_it_is_written(kind, tmp_path):
    """Raw and in the typed field, and one element less or more does not."""
    if kind not in helper.get_all_tensor_dtypes():
        pytest.skip("this onnx does not write it")
    values = np.array([0, 1, 1, 0, 1]).astype(helper.tensor_dtype_to_np_dtype(kind))
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [helper.make_tensor("typed", kind, [5], values), numpy_helper.from_array(values, "raw")],
    )
    proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    assert admit(path).model == proto
    for tensor in graph.initializer:
        for size in (0, 4 if values.itemsize > 1 else 2, 40):
            tensor.dims[:] = [size]
            proto.graph.CopyFrom(graph)
            onnx.save(proto, path)
            with pytest.raises(FileError, match=f"tensor '{tensor.name}' of shape {size} needs"):
                admit(path)
        tensor.dims[:] = [5]


def test_operators_under_their_long_name(tmp_path):
    proto = network(weights())
    proto.opset_import[0].domain = "ai.onnx"
    onnx.save(proto, tmp_path / "model.onnx")
    report = quantize_onnx(tmp_path / "model.onnx", tmp_path / "packed.onnx")
    assert all(layer.quantizer for layer in report.layers)


def test_a_file_that_runs_but_has_no_shapes_of_outputs(tmp_path):
    proto = network(weights())
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(proto, tmp_path / "model.onnx")
    assert not admit(tmp_path / "model.onnx").strict
    assert quantize_onnx(tmp_path / "model.onnx", tmp_path / "packed.onnx").comparison is not None


@pytest.mark.parametrize("keep", [0, 3, 30, 90, -30, -1])
def test_a_damaged_file_of_inputs(keep, tmp_path):
    np.savez(tmp_path / "in.npz", x=example())
    data = (tmp_path / "in.npz").read_bytes()
    (tmp_path / "in.npz").write_bytes(data[:keep])
    with pytest.raises(FileError, match="cannot be read as an") as caught:
        comparison.read_inputs(tmp_path / "in.npz")
    assert str(caught.value).isprintable()


# --- external data ---


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A model in `here` with its weights in another file, the current folder."""
    here = tmp_path / "here"
    here.mkdir()
    onnx.save(
        network(weights()),
        here / "model.onnx",
        save_as_external_data=True,
        location="w.bin",
        size_threshold=64,
    )
    monkeypatch.chdir(here)
    return here


def relocate(path, **entries):
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            for entry in tensor.external_data:
                entry.value = entries.get(entry.key, entry.value)
    path.write_bytes(proto.SerializeToString())


def quantized(source, target):
    report = quantize_onnx(Path(source), target)
    assert report.bytes_before == os.stat(source).st_size + sum(
        f.stat().st_size for f in admit(Path(source)).data
    )
    want, got = run_ort(source, example()), run_ort(target, example())
    assert np.linalg.norm(got - want) < 0.9 * np.linalg.norm(want)


@pytest.mark.parametrize(
    "spelling", ["model.onnx", "./model.onnx", "../here/model.onnx", "{here}/model.onnx"]
)
def test_data_beside_the_model(outside, tmp_path, spelling):
    quantized(spelling.format(here=outside), tmp_path / "packed.onnx")


@pytest.mark.parametrize(
    "spelling", ["model.onnx", "./model.onnx", "../here/model.onnx", "{here}/model.onnx"]
)
@pytest.mark.parametrize("location", ["../w.bin", "sub/../../w.bin", "{top}/w.bin", "{top}/here/w.bin"])
def test_data_outside_the_folder_is_not_opened(outside, tmp_path, spelling, location):
    """Also where it exists, and where an absolute path leads back into the folder."""
    shutil.copy(outside / "w.bin", tmp_path / "w.bin")
    (outside / "sub").mkdir()
    relocate(outside / "model.onnx", location=location.format(top=tmp_path))
    with pytest.raises(FileError, match=r"lies outside the model's folder$"):
        quantize_onnx(Path(spelling.format(here=outside)), tmp_path / "packed.onnx")
    assert not (tmp_path / "packed.onnx").exists()


@pytest.mark.parametrize("spelling", ["model.onnx", "{here}/model.onnx"])
def test_a_link_to_outside_is_not_followed(outside, tmp_path, spelling):
    shutil.move(outside / "w.bin", tmp_path / "w.bin")
    (outside / "w.bin").symlink_to("../w.bin")
    with pytest.raises(FileError, match=r"'w\.bin' is a link to outside the model's folder$"):
        quantize_onnx(Path(spelling.format(here=outside)), tmp_path / "packed.onnx")


def test_a_link_inside_the_folder_is(outside, tmp_path):
    shutil.move(outside / "w.bin", outside / "other.bin")
    (outside / "w.bin").symlink_to("other.bin")
    quantized("model.onnx", tmp_path / "packed.onnx")


def test_a_model_whose_folder_is_a_link(outside, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to("here")
    quantized(tmp_path / "link" / "model.onnx", tmp_path / "packed.onnx")
    monkeypatch.chdir(tmp_path)
    quantized("link/model.onnx", tmp_path / "packed.onnx")


@pytest.fixture
def cached(outside, tmp_path):
    """The same in a cache of the hub: the folder of a revision, links into the store of blobs."""
    top = tmp_path / "hub" / "models--somebody--net"
    revision = top / "snapshots" / "0123abcd" / "onnx"
    revision.mkdir(parents=True)
    (top / "blobs").mkdir()
    for name, blob in (("model.onnx", "aa"), ("w.bin", "bb")):
        shutil.move(outside / name, top / "blobs" / blob)
        (revision / name).symlink_to(f"../../../blobs/{blob}")
    return revision


@pytest.mark.parametrize("spelling", ["{}/model.onnx", "model.onnx", "onnx/model.onnx"])
def test_links_into_the_same_cache(cached, tmp_path, spelling, monkeypatch):
    monkeypatch.chdir(cached.parent if spelling.startswith("onnx") else cached)
    quantized(spelling.format(cached), tmp_path / "packed.onnx")


def test_links_into_another_model_of_the_cache(cached, tmp_path):
    other = tmp_path / "hub" / "models--somebody--else" / "blobs"
    other.mkdir(parents=True)
    shutil.move((cached / "w.bin").resolve(), other / "bb")
    (cached / "w.bin").unlink()
    (cached / "w.bin").symlink_to(other / "bb")
    with pytest.raises(FileError, match="is a link to outside the model's folder"):
        quantize_onnx(cached / "model.onnx", tmp_path / "packed.onnx")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "gone.bin"}, r"external data at 'gone\.bin' is missing; it belongs beside the model"),
        ({"location": ""}, r"external data at '' is missing"),
        ({"location": "a" * 2000}, "cannot be found: .*name too long"),
        ({"location": "w\x1b.bin"}, r"external data at 'w\\x1b\.bin' lies outside"),
        ({"offset": "99999999"}, r"bytes from 99,999,999 on of the [\d,]+ in 'w\.bin'"),
        ({"offset": "-4"}, "'-4' is no offset of external data"),
        ({"offset": "9" * 30}, "is no offset of external data"),
        ({"offset": "١"}, "is no offset of external data"),
        ({"length": "4"}, "needs [0-9,]+ bytes, and its data is 4 bytes"),
        ({"length": "all"}, "'all' is no length of external data"),
    ],
)
def test_data_that_is_not_there(outside, tmp_path, entries, message):
    relocate(outside / "model.onnx", **entries)
    with pytest.raises(FileError, match=message) as caught:
        quantize_onnx(Path("model.onnx"), tmp_path / "packed.onnx")
    assert str(caught.value).isprintable()


def test_two_locations(outside, tmp_path):
    """Readers may take the first or the last."""
    proto = onnx.load("model.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.external_data.add(key="location", value="w.bin")
    Path("model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(FileError, match="it is not said once in which"):
        quantize_onnx(Path("model.onnx"), tmp_path / "packed.onnx")


def test_links_in_a_circle(outside, tmp_path):
    (outside / "w.bin").unlink()
    (outside / "w.bin").symlink_to("w.bin")
    with pytest.raises(FileError, match=r"external data at 'w\.bin' (cannot be found|is missing)"):
        quantize_onnx(Path("model.onnx"), tmp_path / "packed.onnx")


def test_a_data_file_that_is_cut(outside, tmp_path):
    data = (outside / "w.bin").read_bytes()
    (outside / "w.bin").write_bytes(data[:-1])
    with pytest.raises(FileError, match=r"bytes from [\d,]+ on of the"):
        quantize_onnx(Path("model.onnx"), tmp_path / "packed.onnx")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_no_data(outside, tmp_path):
    (outside / "w.bin").unlink()
    os.mkfifo(outside / "w.bin")
    with pytest.raises(FileError, match="is missing"):
        quantize_onnx(Path("model.onnx"), tmp_path / "packed.onnx")
