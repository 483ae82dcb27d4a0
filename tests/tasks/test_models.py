from __future__ import annotations

import math

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hybridkit.tasks.models.cnn import ConvNet
from hybridkit.tasks.models.mlp import MLP
from hybridkit.tasks.models.transformer import (
    Attention,
    Shape,
    Transformer,
    rotate,
    transformer_04m,
    transformer_3m,
)

TINY = Shape(width=16, layers=2, heads=4, kv_heads=2, hidden=24)
ONE_BLOCK = Shape(width=16, layers=1, heads=4, kv_heads=2, hidden=24)


def size(model):
    return sum(p.numel() for p in model.parameters())


def reference_rotate(x):
    """Each pair (i, i + d/2) as a complex number times exp(i * position * base^(-2i/d))."""
    half = x.shape[-1] // 2
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double())
    for position in range(x.shape[-2]):
        for i in range(half):
            angle = position * 10_000.0 ** (-2 * i / x.shape[-1])
            pairs[..., position, i] *= complex(math.cos(angle), math.sin(angle))
    return torch.cat((pairs.real, pairs.imag), -1).float()


def reference_attention(layer, x):
    """Grouped-query causal attention, one head and one position at a time."""
    width = layer.head_width
    share = layer.heads // layer.kv_heads
    joined = torch.zeros(*x.shape[:2], layer.heads * width)
    for sample in range(len(x)):
        q, k, v = (projection(x[sample]) for projection in (layer.query, layer.key, layer.value))
        for head in range(layer.heads):
            own, shared = slice(head * width, (head + 1) * width), head // share * width
            group = slice(shared, shared + width)
            turned_q, turned_k = reference_rotate(q[:, own]), reference_rotate(k[:, group])
            for t in range(x.shape[1]):
                scores = (turned_k[: t + 1] @ turned_q[t]) / math.sqrt(width)
                joined[sample, t, own] = scores.softmax(0) @ v[: t + 1, group]
    return layer.output(joined)


@settings(max_examples=15, deadline=None)
@given(length=st.integers(1, 9), half=st.integers(1, 8), seed=st.integers(0, 99))
def test_rotary_positions_match_the_definition(length, half, seed):
    x = torch.randn(2, length, 2 * half, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(rotate(x), reference_rotate(x), atol=1e-5, rtol=1e-5)


@settings(max_examples=10, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 7),
    groups=st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2), (6, 2), (3, 3)]),
    seed=st.integers(0, 99),
)
def test_attention_matches_the_definition(batch, length, groups, seed):
    torch.manual_seed(seed)
    heads, kv_heads = groups
    layer = Attention(Shape(width=heads * 4, layers=1, heads=heads, kv_heads=kv_heads, hidden=8))
    x = torch.randn(batch, length, heads * 4)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), reference_attention(layer, x), atol=1e-5, rtol=1e-4)


def test_the_future_is_not_seen():
    torch.manual_seed(0)
    model = Transformer(TINY).eval()
    tokens = torch.randint(0, 256, (2, 12))
    changed = tokens.clone()
    changed[:, 7:] = 0
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_positions_matter():
    torch.manual_seed(0)
    with torch.no_grad():
        logits = Transformer(TINY)(torch.tensor([[1, 2, 3], [2, 1, 3]]))
    assert not torch.allclose(logits[0, 2], logits[1, 2])


def test_head_and_embedding_are_one_parameter_and_linears_have_no_bias():
    model = transformer_04m()
    assert model.head.weight is model.embedding.weight
    assert all(m.bias is None for m in model.modules() if isinstance(m, nn.Linear))
    assert [m for m in model.modules() if isinstance(m, nn.Linear)][-1] is model.head


@pytest.mark.parametrize("make", [transformer_04m, transformer_3m])
def test_untrained_transformers_are_near_uniform(make):
    torch.manual_seed(0)
    with torch.no_grad():
        logits = make()(torch.randint(0, 256, (4, 32)))
    assert float(logits.std()) == pytest.approx(0.5, rel=0.1)


def test_sizes():
    assert 0.35e6 < size(transformer_04m()) < 0.45e6
    assert 2.7e6 < size(transformer_3m()) < 3.5e6
    assert size(MLP(64, (512, 512), 10)) == 64 * 512 + 512 * 512 + 512 * 10 + 2 * 2 * 512 + 10


def packed_ratio(model, weights_per_byte):
    """fp32 bytes of the quantised layers over their packed bytes: codes and one fp32 scale per row."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not model.head]
    full = sum(4 * m.in_features * m.out_features for m in layers)
    packed = sum(m.out_features * (math.ceil(m.in_features / weights_per_byte) + 4) for m in layers)
    return full / packed


def test_the_large_transformer_packs_as_small_as_is_claimed():
    model = transformer_3m()
    assert packed_ratio(model, weights_per_byte=4) >= 15.5
    assert packed_ratio(model, weights_per_byte=5) >= 19.0


@pytest.mark.parametrize(
    ("model", "example", "axes", "others"),
    [
        (
            Transformer(ONE_BLOCK),
            torch.randint(0, 256, (2, 8)),
            {0: "batch", 1: "sequence"},
            [(1, 1), (3, 17)],
        ),
        (
            ConvNet(1, ((4, 2), (8, 1)), 3),
            torch.randn(2, 1, 12, 12),
            {0: "batch"},
            [(1, 1, 12, 12), (5, 1, 12, 12)],
        ),
        (MLP(6, (8,), 3), torch.randn(2, 6), {0: "batch"}, [(1, 6), (5, 6)]),
    ],
    ids=["transformer", "cnn", "mlp"],
)
def test_models_export_with_dynamic_shapes(tmp_path, model, example, axes, others):
    model.eval()
    dimensions = {i: torch.export.Dim(name) for i, name in axes.items()}
    program = torch.onnx.export(model, (example,), dynamo=True, dynamic_shapes=(dimensions,), verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    name = session.get_inputs()[0].name
    for shape in others:
        x = torch.randint(0, 256, shape) if example.dtype == torch.int64 else torch.randn(shape)
        with torch.no_grad():
            expected = model(x).numpy()
        np.testing.assert_allclose(session.run(None, {name: x.numpy()})[0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("hidden", [(), (8,), (8, 4)])
def test_mlp_flattens_its_input(hidden):
    assert MLP(12, hidden, 3)(torch.randn(5, 3, 4)).shape == (5, 3)
