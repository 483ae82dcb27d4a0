from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from hybridkit.errors import FileError
from hybridkit.training.state import alone, flatten, unflatten, write_tensors

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.int64, torch.bool, torch.uint8]


def tensors() -> st.SearchStrategy[torch.Tensor]:
    shapes = st.lists(st.integers(0, 3), max_size=3)
    return st.builds(
        lambda s, d, k: (torch.arange(math.prod(s)) * k).reshape(s).to(d),
        shapes,
        st.sampled_from(DTYPES),
        st.integers(-3, 3),
    )


def arrays() -> st.SearchStrategy[Any]:
    kinds = st.sampled_from([np.float32, np.int64, np.uint32, np.bool_, np.float64])
    shaped = st.builds(
        lambda s, d: np.arange(math.prod(s)).reshape(s).astype(d),
        st.lists(st.integers(0, 3), max_size=2),
        kinds,
    )
    return shaped | st.builds(lambda d, v: d(v), kinds, st.integers(0, 1))


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | tensors() | arrays()
states = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.just("$"), inner, max_size=3)
        | st.dictionaries(st.integers() | st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and bool(np.array_equal(a, b))
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@given(states)
@settings(max_examples=150, deadline=None)
def test_round_trip_is_exact(state: Any) -> None:
    tensors, rest = flatten(state)
    assert same(unflatten(tensors, json.loads(json.dumps(rest, allow_nan=False))), state)


def test_random_states_round_trip() -> None:
    state = {
        "python": random.getstate(),
        "numpy": np.random.RandomState(3).get_state(),
        "torch": torch.get_rng_state(),
    }
    tensors, rest = flatten(state)
    assert same(unflatten(tensors, json.loads(json.dumps(rest))), state)


def test_optimizer_state_round_trips() -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    tensors, rest = flatten(optimizer.state_dict())
    assert same(unflatten(tensors, json.loads(json.dumps(rest))), optimizer.state_dict())


def test_one_tensor_in_two_places_is_stored_once() -> None:
    shared = torch.ones(3)
    tensors, rest = flatten({"a": shared, "b": [shared], "c": shared[:2]})
    assert len(tensors) == 2
    assert rest["a"] == rest["b"][0]


def test_names_that_would_collide_stay_apart() -> None:
    state = {"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1)}
    assert same(unflatten(*flatten(state)), state)


def test_what_cannot_be_restored_is_refused_by_its_path() -> None:
    with pytest.raises(TypeError, match=r"state\.a\.1 is a object"):
        flatten({"a": [1, object()]})


@pytest.mark.parametrize(
    "value", [{"$": "tensor", "name": "gone"}, {"$": "what"}, {"$": "float", "value": "x"}, {"$": "tuple"}]
)
def test_an_inconsistent_file_is_one_clear_error(value: Any) -> None:
    with pytest.raises(FileError, match="inconsistent"):
        unflatten({}, {"a": value})


def test_only_what_shares_memory_is_copied() -> None:
    storages: set[int] = set()
    own = torch.randn(3, 4)
    assert alone(own, storages).data_ptr() == own.data_ptr()
    assert alone(own.view(12), storages).data_ptr() != own.data_ptr()  # the same memory again
    part = torch.randn(6)[:3]
    assert alone(part, storages).data_ptr() != part.data_ptr()
    turned = torch.randn(3, 4).t()
    assert alone(turned, storages).is_contiguous()


def test_tied_and_empty_tensors_are_written(tmp_path: Path) -> None:
    tied = torch.randn(4, 2)
    tensors = {"a": tied, "b": tied, "part": tied[1:3], "empty": torch.zeros(0, 3), "one": torch.tensor(2.0)}
    write_tensors(tmp_path / "x.safetensors", tensors)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
