"""Example layers and models for the tests of packing."""

import tracemalloc
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from hybridkit.packing.codecs import bits_of, codec
from hybridkit.packing.model import PackedLayer, PackedModel


def _codes(name, N, K, rng):
    if name != "sparse34":
        return rng.choice(np.array(codec(name).levels, np.int8), (N, K))
    blocks = -(-K // 4)
    codes = rng.choice(np.array([-1, 1], np.int8), (N, blocks, 4))
    np.put_along_axis(codes, rng.integers(0, 4, (N, blocks, 1)), 0, axis=2)
    return codes.reshape(N, 4 * blocks)[:, :K]


@pytest.fixture(scope="session")
def make_codes():
    """Random codes that a codec stores: make_codes(codec_name, N, K, seed), int8 [N, K]."""
    return lambda name, N, K, seed: _codes(name, N, K, np.random.default_rng(seed))


def _layer(name="fc", shape=(3, 7), codec_name="two-bit", kind="linear", group_size=0, seed=0, **fields):
    rng = np.random.default_rng(seed)
    N, K = shape[0], int(np.prod(shape[1:]))
    found = codec(codec_name)
    codes = _codes(codec_name, N, K, rng)
    groups = (N, -(-K // group_size)) if group_size else (N,)
    fields = {
        "bits": bits_of(found.levels),
        "activations": "int8",
        "quantizer": "example",
        "codes": found.pack(codes),
        "scale": rng.random(groups, np.float32),
    } | fields
    if fields.get("has_offset"):
        fields["offset"] = rng.random(groups, np.float32)
    return PackedLayer(name=name, kind=kind, codec=codec_name, shape=shape, group_size=group_size, **fields)


@pytest.fixture(scope="session")
def make_layer():
    """A random layer: make_layer(name, shape, codec_name, kind, group_size, seed, **fields)."""
    return _layer


@pytest.fixture(scope="session")
def example_model():
    """One layer of every kind and codec, other tensors of several types, a tied weight, metadata."""
    layers = [
        _layer("embed", (11, 6), "nbit4", "embedding", group_size=4),
        _layer("conv", (4, 2, 3, 3), "base3", "conv2d"),
        _layer("line", (5, 3, 4), "one-bit", "conv1d", activations="float"),
        _layer("fc", (3, 7), "two-bit"),
        _layer("moved", (3, 7), "nbit2", group_size=4, has_offset=True),
        _layer("empty", (0, 5), "nbit8"),
    ]
    tensors = {
        "fc.bias": np.arange(3, dtype=np.float32),
        "norm.weight": np.ones((2, 5), np.float16),
        "norm.count": np.array(3),
        "mask": np.array([True, False, True]),
        "nothing": np.zeros((0, 4), np.float64),
    }
    metadata = {
        "task": "digits",
        "model": "mlp",
        "inputs": [{"name": "x", "shape": [1, 64], "dtype": "float32"}],
    }
    return PackedModel(
        {layer.name: layer for layer in layers}, tensors, {"head.weight": "embed.weight"}, metadata
    )


@pytest.fixture(scope="session")
def known_to_1(example_model):
    """What version 1 of the format has a place for."""
    layers = {name: layer for name, layer in example_model.layers.items() if not layer.has_offset}
    return replace(example_model, layers=layers)


def assert_same(a: PackedModel, b: PackedModel) -> None:
    """Equal in every field and byte."""
    assert list(a.layers) == list(b.layers)
    for name, layer in a.layers.items():
        other = b.layers[name]
        assert layer.spec == other.spec
        for mine, theirs in zip(layer.arrays(), other.arrays(), strict=True):
            assert mine.dtype == theirs.dtype
            assert np.array_equal(mine, theirs)
    assert set(a.tensors) == set(b.tensors)
    for name, tensor in a.tensors.items():
        assert tensor.dtype == b.tensors[name].dtype
        assert np.array_equal(tensor, b.tensors[name])
    assert dict(a.tied) == dict(b.tied)
    assert dict(a.metadata) == dict(b.metadata)


@pytest.fixture(scope="session")
def same():
    """The comparison of two packed models."""
    return assert_same


@contextmanager
def _peak_memory():
    tracemalloc.start()
    measured = []
    try:
        yield lambda: measured[0]
    finally:
        measured.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()


@pytest.fixture(scope="session")
def peak_memory():
    """A context that gives a function: the most bytes that Python and NumPy held inside it."""
    return _peak_memory
