from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridkit.errors import UsageError
from hybridkit.trees import floating, main_output, map_tensors, named_tensors, tensors

LEAVES = st.builds(lambda n: torch.full((2,), float(n)), st.integers(0, 9)) | st.none() | st.integers()
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
)


class Cache:
    """Something a decoder answers with beside its logits."""


@given(TREES)
def test_mapping_keeps_the_structure(tree):
    doubled = map_tensors(lambda tensor: tensor * 2, tree)
    before, after = list(named_tensors(tree)), list(named_tensors(doubled))
    assert [name for name, _ in before] == [name for name, _ in after]
    assert all(torch.equal(a * 2, b) for (_, a), (_, b) in zip(before, after, strict=True))
    assert map_tensors(lambda tensor: 0, tree) == map_tensors(lambda tensor: 0, doubled)


Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Result:
    scores: torch.Tensor
    note: str = "none"


def test_named_tuples_and_dataclasses_keep_their_type_and_name_their_parts():
    tree = {"pair": Pair(torch.ones(1), None), "result": Result(torch.ones(1), "kept")}
    assert [name for name, _ in named_tensors(tree)] == ["pair.left", "result.scores"]
    doubled = map_tensors(lambda tensor: tensor * 2, tree)
    assert doubled["pair"] == Pair(torch.full((1,), 2.0), None)
    assert doubled["result"] == Result(torch.full((1,), 2.0), "kept")


def test_names_say_where_a_tensor_lies():
    x = torch.zeros(1)
    tree = {"logits": x, "hidden": (x, [x]), "cache": Cache(), "none": None}
    assert [name for name, _ in named_tensors(tree)] == ["logits", "hidden.0", "hidden.1.0"]
    assert [name for name, _ in named_tensors(x)] == [""]
    assert len(list(tensors(tree))) == 3


def test_the_main_output_is_the_logits_or_the_first():
    logits, other = torch.zeros(1), torch.ones(1)
    assert main_output(logits) is logits
    assert main_output((torch.tensor([1]), other, logits)) is other
    assert main_output(OrderedDict(last=other, logits=logits)) is logits
    assert list(floating({"ids": torch.tensor([1]), "x": other})) == ["x"]
    with pytest.raises(UsageError, match="holds no floating-point tensor"):
        main_output(Cache())
