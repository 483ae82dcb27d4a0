"""Clusters of parameters: layers stay together, alike layers come together, nothing is random."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import convnet, mlp
from torch import nn

from hybridkit.errors import UsageError
from hybridkit.optim.parameter_clusters import cluster_parameters, layers_of


@settings(max_examples=15, deadline=None)
@given(layers=st.integers(1, 6), k=st.integers(1, 8), seed=st.integers(0, 3))
def test_at_most_k_and_one_per_layer(layers, k, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(*[nn.Linear(2 + i, 3 + i) for i in range(layers)])
    clusters = cluster_parameters(model.named_parameters(), k, seed)
    assert list(clusters) == list(model.parameters())
    labels = list(clusters.values())
    assert set(labels) == set(range(min(k, layers)))
    assert all(clusters[layer.weight] == clusters[layer.bias] for layer in model)
    assert list(cluster_parameters(model.named_parameters(), k, seed).values()) == labels
    assert list(dict.fromkeys(labels)) == sorted(set(labels))  # numbered in order of appearance


def test_alike_layers_share_a_cluster():
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(3)], *[nn.LayerNorm(64) for _ in range(3)])
    labels = list(cluster_parameters(model.named_parameters(), 2, 0).values())
    assert labels == [0] * 6 + [1] * 6


def test_what_lies_inside_a_layer_belongs_to_it():
    named = [
        (n, torch.ones(s)) for n, s in [("a.weight", (2, 2)), ("a.quantizer.step", (2,)), ("ab.weight", (2,))]
    ]
    assert {layer: len(members) for layer, members in layers_of(named).items()} == {"a": 2, "ab": 1}


def test_parameters_without_a_module_and_odd_shapes():
    named = [("w", torch.ones(3, 3)), ("s", torch.ones(())), ("e", torch.ones(0, 4)), ("z", torch.zeros(5))]
    assert set(cluster_parameters(named, 3).values()) == {0}
    spread = [(f"{n}.x", t) for n, t in named]
    assert len(set(cluster_parameters(spread, 4).values())) == 4


@pytest.mark.parametrize("make", [mlp, convnet])
def test_real_networks(make):
    assert set(cluster_parameters(make().named_parameters(), 2).values()) == {0, 1}


def test_bad_numbers():
    assert cluster_parameters([], 4) == {}
    with pytest.raises(UsageError, match="at least 1"):
        cluster_parameters(mlp().named_parameters(), 0)
