"""Packed models in torch's own tools: compile, export, state dictionaries, copies and conversions."""

import copy
import io

import pytest
import torch
from torch import nn

from hybridkit.errors import UsageError
from hybridkit.quant.convert import convert
from hybridkit.quant.prepare import prepare_qat
from hybridkit.runtime.modules import load_packed, row_major
from hybridkit.runtime.native import load

LIBRARIES = ["found", "none"]


class Network(nn.Module):
    """Convolutions, groups, a linear layer and a head that is tied to an embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 12)
        self.line = nn.Conv1d(12, 8, 3, padding=1, groups=2)
        self.hidden = nn.Linear(8, 12)
        self.head = nn.Linear(12, 40)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = torch.relu(self.line(self.embed(tokens).transpose(1, 2))).transpose(1, 2)
        return self.head(torch.relu(self.hidden(x)))


TOKENS = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(0))


def packed(quantizer="ternary-absmean", activations="int8"):
    torch.manual_seed(0)
    model = prepare_qat(Network(), quantizer=quantizer, activations=activations, quantize_all=True)
    return load_packed(Network(), convert(model))


@pytest.fixture(params=LIBRARIES)
def library(request, monkeypatch):
    if request.param == "none":
        monkeypatch.setenv("HYBRIDKIT_LIBRARY", "none")
    elif load() is None:
        pytest.skip("installed without the native library")


@pytest.mark.parametrize("quantizer", ["ternary-absmean", "binary"])
def test_answers_are_the_same_with_and_without_the_library(monkeypatch, quantizer):
    if load() is None:
        pytest.skip("installed without the native library")
    native = packed(quantizer)
    expected = native(TOKENS)
    monkeypatch.setenv("HYBRIDKIT_LIBRARY", "none")
    assert torch.equal(native(TOKENS), expected)
    portable = packed(quantizer)
    assert torch.equal(portable(TOKENS), expected)
    ours, theirs = native.state_dict(), portable.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_compiles_as_one_graph(library):
    torch.compiler.reset()
    model = packed()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (TOKENS, TOKENS[:1, :5]):
        with torch.no_grad():
            assert torch.allclose(compiled(tokens), model(tokens), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_compiles_with_inductor():
    torch.compiler.reset()
    model = packed()
    with torch.no_grad():
        assert torch.allclose(torch.compile(model, fullgraph=True)(TOKENS), model(TOKENS), atol=1e-5)


def test_an_exported_program_runs_and_is_saved(library):
    model = packed()
    shapes = {"tokens": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}}
    program = torch.export.export(model, (TOKENS,), dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    other = TOKENS[:1, :4].repeat(5, 1)
    assert torch.equal(loaded.module()(other), model(other))


def test_a_state_dictionary_goes_into_another_model_of_the_shape(library):
    torch.manual_seed(1)
    model, other = packed(), load_packed(Network(), convert(prepare_qat(Network(), quantize_all=True)))
    assert not torch.equal(model(TOKENS), other(TOKENS))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(TOKENS), other(TOKENS))


def test_codes_are_held_once():
    model = packed()
    assert model.embed.codes is model.head.codes
    assert model.embed.layout == model.head.layout == 1
    assert model.line.layout == 2
    held = {buffer.data_ptr(): buffer.nbytes for name, buffer in model.named_buffers() if "codes" in name}
    # 40 x 12 and 12 x 8 in tiles of 16 x 16, two groups of 4 x 18 in tiles of 16 x 16
    assert sum(held.values()) == 64 * (3 * 1 + 1 * 1 + 2 * 2)


def test_row_major_and_back():
    model = packed()
    expected, before = model(TOKENS), {name: m.codes for name, m in model.named_children()}
    with row_major(model):
        assert [m.layout for m in model.children()] == [0, 0, 0, 0]
        assert model.embed.codes is model.head.codes
        assert model.hidden.codes.shape == (12, 2)
        assert torch.equal(model(TOKENS), expected)
    assert all(m.codes is before[name] for name, m in model.named_children())
    assert [m.layout for m in model.children()] == [1, 2, 1, 1]


def test_copies_and_conversions(library):
    model = packed()
    expected = model(TOKENS)
    copied = copy.deepcopy(model)
    assert copied.embed.codes is copied.head.codes
    assert torch.equal(copied(TOKENS), expected)
    assert torch.allclose(model.double()(TOKENS).float(), expected, rtol=1e-5, atol=1e-6)
    half = copied.bfloat16()
    assert half.hidden.codes.dtype == torch.uint8
    assert torch.allclose(half(TOKENS).float(), expected, atol=0.1 * float(expected.abs().max()))


def test_a_packed_model_is_not_trained(library):
    layer = packed().hidden
    x = torch.randn(2, 8, requires_grad=True)
    with pytest.raises(UsageError, match="no gradient"):
        layer(x).sum().backward()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_answers_are_the_same():
    model = packed()
    expected = model(TOKENS)
    found = model.cuda()(TOKENS.cuda()).cpu()
    assert torch.allclose(found, expected, atol=0.02 * float(expected.abs().max()))
