"""Packed layers and models: what they check, what they represent, what they weigh."""

import json
import math

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.errors import FileError, UsageError
from hybridkit.packing.codecs import CODECS, codec
from hybridkit.packing.model import PackedModel, TensorSpec
from hybridkit.packing.table import decode_table

SMALL = st.integers(0, 9)
BF16 = ml_dtypes.bfloat16


def dequantize_reference(layer):
    """One weight at a time."""
    N, K = layer.matrix_shape
    codes = codec(layer.codec).unpack(layer.codes, K)
    weight = np.zeros((N, K), np.float32)
    for n in range(N):
        for k in range(K):
            scale = layer.scale[n, k // layer.group_size] if layer.group_size else layer.scale[n]
            weight[n, k] = np.float32(codes[n, k]) * scale
    return weight.reshape(layer.shape)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CODECS), SMALL, SMALL, st.integers(0, 5), st.integers(0, 1000))
def test_dequantize_equals_the_reference(make_layer, name, N, K, group_size, seed):
    layer = make_layer("fc", (N, K), name, group_size=group_size, seed=seed)
    weight = layer.dequantize()
    assert weight.dtype == np.float32
    assert np.array_equal(weight, dequantize_reference(layer))
    assert layer.zeros == int((layer.unpack() == 0).sum())
    assert layer.zero_fraction == (layer.zeros / (N * K) if N * K else 0.0)


def test_convolution_weights_keep_their_shape(make_layer):
    layer = make_layer("conv", (4, 2, 3, 5), "base3", "conv2d")
    assert layer.matrix_shape == (4, 30)
    assert np.array_equal(layer.dequantize(), dequantize_reference(layer))


@pytest.mark.parametrize("compress", [None, "zstd"])
def test_save_and_load(example_model, same, tmp_path, compress):
    path = tmp_path / "model.hk.safetensors"
    sizes = example_model.save(path, compress)
    same(PackedModel.load(path), example_model)
    assert sizes.file_bytes == path.stat().st_size
    if compress is None:
        assert sizes == example_model.sizes()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(CODECS), SMALL, SMALL, st.integers(0, 3)), max_size=4),
    st.lists(
        st.tuples(st.sampled_from(["<f4", ">f4", "f2", BF16, "i8", "?", "u1"]), st.lists(SMALL, max_size=3)),
        max_size=3,
    ),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers() | st.none(), max_size=3),
)
def test_any_model_survives_a_file(make_layer, same, tmp_path_factory, layers, tensors, metadata):
    made = [make_layer(f"l{i}", (N, K), c, group_size=g) for i, (c, N, K, g) in enumerate(layers)]
    arrays = {f"t{i}": np.ones(shape, dtype) for i, (dtype, shape) in enumerate(tensors)}
    model = PackedModel({layer.name: layer for layer in made}, arrays, {}, metadata)
    path = tmp_path_factory.mktemp("any") / "model.hk.safetensors"
    model.save(path)
    native = {name: a.astype(a.dtype.newbyteorder("=")) for name, a in arrays.items()}
    same(PackedModel.load(path), PackedModel(model.layers, native, {}, metadata))


def test_saving_twice_gives_the_same_bytes(example_model, tmp_path):
    example_model.save(tmp_path / "a")
    PackedModel.load(tmp_path / "a").save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.fixture
def larger_model(example_model, make_layer):
    """The example with a layer and a tensor that stand in the header under their own names."""
    layers = {**example_model.layers, "large": make_layer("large", (130, 513), "nbit8")}
    tensors = {**example_model.tensors, "table": np.arange(1 << 13).astype(np.float64)}
    return PackedModel(layers, tensors, example_model.tied, example_model.metadata)


def test_the_safetensors_library_opens_the_file(larger_model, tmp_path):
    path, model = tmp_path / "model.hk.safetensors", larger_model
    model.save(path)
    loaded = safetensors.numpy.load_file(path)
    assert set(loaded) == {"large.weight.codes", "table", ".small"}
    assert np.array_equal(loaded["large.weight.codes"], model.layers["large"].codes)
    assert np.array_equal(loaded["table"], model.tensors["table"])
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    assert metadata["format"] == "hybridkit.packed"
    table = decode_table(metadata["table"])
    assert [layer.name for layer in table.layers] == list(model.layers)
    assert table.metadata["task"] == "digits"


def test_tensors_are_aligned_to_their_type(larger_model, tmp_path):
    path = tmp_path / "model.hk.safetensors"
    larger_model.save(path)
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    del header["__metadata__"]
    for entry in header.values():
        width = TensorSpec(entry["dtype"], ()).nbytes
        assert (start + entry["data_offsets"][0]) % width == 0


def test_sizes_count_every_byte(make_layer, tmp_path):
    layer = make_layer("fc", (512, 512))
    bias = np.zeros(512, np.float32)
    model = PackedModel({"fc": layer}, {"fc.bias": bias})
    sizes = model.save(tmp_path / "packed")
    safetensors.numpy.save_file(
        {"fc.weight": layer.dequantize(), "fc.bias": bias}, tmp_path / "fp32", metadata={"format": "pt"}
    )
    assert sizes.fp32_bytes == (tmp_path / "fp32").stat().st_size
    assert sizes.file_bytes == (tmp_path / "packed").stat().st_size
    assert sizes.ratio == sizes.fp32_bytes / sizes.file_bytes
    assert sizes.layers_bytes == 512 * 128 + 4 * 512
    assert sizes.bits_per_weight == 8 * (512 * 128 + 4 * 512) / 512**2
    assert sizes.layers_ratio == 4 * 512**2 / (512 * 128 + 4 * 512)


def test_sizes_of_half_precision_and_of_nothing_quantised():
    sizes = PackedModel({}, {"w": np.zeros(1000, np.float16)}).sizes()
    assert 4000 < sizes.fp32_bytes < 4200
    assert (sizes.bits_per_weight, sizes.layers_ratio) == (0.0, 1.0)


@pytest.mark.parametrize(("name", "least"), [("two-bit", 15.5), ("base3", 19.0)])
def test_ratio_of_layers_with_512_columns(make_layer, name, least):
    assert PackedModel({"fc": make_layer("fc", (64, 512), name)}).sizes().layers_ratio >= least


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "lstm"}, "kind 'lstm'"),
        ({"codec_name": "two-bit", "bits": 2.5}, "2.5 bits do not fit"),
        ({"bits": math.nan}, "nan bits"),
        ({"shape": (3, 7, 1)}, "not the shape of a linear weight"),
        ({"activations": "int4"}, "neither int8 nor float"),
        ({"codes": np.zeros((3, 3), np.uint8)}, r"fc.weight.codes is uint8 \[3, 3\], not uint8 \[3, 2\]"),
        ({"scale": np.zeros(3)}, r"fc.weight.scale is float64 \[3\], not float32 \[3\]"),
        ({"scale": np.array([1, np.inf, 1], np.float32)}, "not finite"),
    ],
)
def test_an_impossible_layer_is_refused(make_layer, fields, message):
    with pytest.raises(UsageError, match=message):
        make_layer(**fields)


def test_an_impossible_model_is_refused(make_layer, tmp_path):
    layer = make_layer("fc")
    one = np.ones(1, np.float32)
    with pytest.raises(UsageError, match="'fc' is listed as 'other'"):
        PackedModel({"other": layer})
    with pytest.raises(UsageError, match=r"hold 'fc.weight' twice"):
        PackedModel({"fc": layer}, {"fc.weight": one})
    with pytest.raises(UsageError, match=r"hold 'fc.weight.codes' twice"):
        PackedModel({"fc": layer}, {"fc.weight.codes": one})
    with pytest.raises(UsageError, match="tied to 'c', which"):
        PackedModel({"fc": layer}, {}, {"b": "c"})
    with pytest.raises(UsageError, match="cannot be tied"):
        PackedModel({}, {"a": one, "b": one}, {"b": "a"})
    with pytest.raises(UsageError, match="__metadata__"):
        PackedModel({}, {"__metadata__": one})
    with pytest.raises(UsageError, match="cannot hold complex128"):
        PackedModel({}, {"a": np.ones(1, complex)}).save(tmp_path / "a")
    for value in (math.nan, {1, 2}, object()):
        with pytest.raises(UsageError, match="JSON"):
            PackedModel({}, {}, {}, {"x": value}).save(tmp_path / "a")
    with pytest.raises(UsageError, match="no compression 'gzip'"):
        PackedModel({}).save(tmp_path / "a", compress="gzip")
    assert not list(tmp_path.iterdir())


def test_bytes_that_no_code_gives_are_never_written(make_layer, tmp_path):
    layer = make_layer(codes=np.full((3, 2), 0xFF, np.uint8))
    with pytest.raises(FileError, match="the byte 0xff"):
        PackedModel({"fc": layer}).save(tmp_path / "a")
    assert not list(tmp_path.iterdir())
