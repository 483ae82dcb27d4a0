"""Outputs of any structure by name, and back."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hybridkit.calls import without_caches
from hybridkit.trees import compared, named_outputs, with_outputs

A, B, C = (torch.full((2,), float(i)) for i in range(3))
Pair = namedtuple("Pair", ["left", "right"])


class Cache:
    """What a generation cache is to an exporter: an object that is no structure."""

    def __init__(self):
        self.keys = [A]


class ModelOutput(OrderedDict):
    """As transformers': no plain dictionary, and keys are attributes too."""

    def __setitem__(self, name, value):
        super().__setitem__(name, value)
        setattr(self, name, value)


@dataclass
class Result:
    scores: torch.Tensor
    note: str = "none"


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (A, ["output"]),
        ((A,), ["output"]),
        ((A, B), ["output_0", "output_1"]),
        ([None, A, B], ["output_0", "output_1"]),
        ({"logits": A, "hidden": None}, ["logits"]),
        (ModelOutput(logits=A, past_key_values=Cache(), layers=(B, C)), ["logits", "layers_0", "layers_1"]),
        ({"a": A, "past_key_values": ((B, C),)}, ["a"]),
        ({"x": {"y": A, "z": (B,)}}, ["x_y", "x_z"]),
        ((A, {"x": B}), ["output_0", "output_1_x"]),
        ({"a_b": A, "a": {"b": B}}, ["a_b", "a_b_2"]),
        (Pair(A, B), ["left", "right"]),
        (Result(A), ["scores"]),
        (Cache(), []),
        (None, []),
    ],
)  # fmt: skip
def test_names(output, names):
    assert list(named_outputs(output)) == names


trees = st.recursive(
    st.just(None) | st.builds(lambda i: torch.tensor(float(i)), st.integers(0, 99)) | st.builds(Cache),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from(["a", "b", "a_b", "past_key_values"]), inner).map(ModelOutput)
        | st.tuples(inner, inner).map(lambda pair: Pair(*pair))
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(trees)
def test_other_tensors_take_the_place_of_all(tree):
    before = named_outputs(tree)
    new = [x + 1000 for x in before.values()]
    made = with_outputs(tree, new)
    after = named_outputs(made)
    assert type(made) is type(tree) or isinstance(tree, torch.Tensor)
    assert list(after) == list(before)
    assert all(x is y for x, y in zip(after.values(), new, strict=True))
    assert all(named_outputs(tree)[name] is x for name, x in before.items()), "the original stays"


def test_floating_point_outputs_are_compared():
    assert list(compared({"ids": A.long(), "scores": B})) == ["scores"]
    assert list(compared({"ids": A.long()})) == ["ids"]


def test_configurations_cache_again_afterwards():
    class Configuration:
        def __init__(self, use_cache):
            self.use_cache = use_cache

    network, plain = nn.Linear(1, 1), nn.Linear(1, 1)
    network.config, plain.config = Configuration(True), Configuration(None)
    network.child = plain
    with without_caches(network):
        assert network.config.use_cache is False
    assert network.config.use_cache is True
    assert plain.config.use_cache is None
