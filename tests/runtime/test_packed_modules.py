"""Packed modules: they compute what quantisation-aware training computed, load strictly, and export."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hybridkit.errors import UsageError
from hybridkit.packing.model import PackedModel
from hybridkit.quant.convert import convert
from hybridkit.quant.prepare import prepare_qat
from hybridkit.runtime.modules import PackedConv1d, PackedConv2d, PackedEmbedding, PackedLinear, load_packed


class Everything(nn.Module):
    """Every kind of layer, a buffer, and a head tied to the embedding."""

    def __init__(self, tied=True):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.norm = nn.BatchNorm1d(16)
        self.line = nn.Conv1d(16, 24, 3, padding="same", groups=4)
        self.hidden = nn.Linear(24, 16, bias=False)
        self.head = nn.Linear(16, 50)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.norm(self.embed(tokens).transpose(1, 2))
        x = self.line(x).transpose(1, 2)
        return self.head(torch.relu(self.hidden(x)))


TOKENS = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))


def tensors_of(module, *names):
    return {name: module.state_dict()[name].numpy() for name in names}


def same(ours, theirs, activations):
    """int8 layers agree bit for bit; float ones may sum in another order."""
    if activations == "int8":
        return torch.equal(ours, theirs)
    return torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


WITH_OFFSET = {"quantizer": "nbit", "offset": True}
QUANTIZERS = ["ternary-absmean", "ternary-mse", "ternary-learned", "binary", "nbit", WITH_OFFSET]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("activations", ["int8", "float"])
@pytest.mark.parametrize("tied", [True, False])
def test_packed_equals_what_was_trained(tmp_path, quantizer, activations, tied):
    torch.manual_seed(0)
    model = prepare_qat(Everything(tied), quantizer=quantizer, activations=activations, quantize_all=True)
    model(TOKENS).sum().backward()  # lets BatchNorm's buffers move
    model.eval()
    convert(model).save(tmp_path / "model")
    packed = load_packed(Everything(tied), PackedModel.load(tmp_path / "model"))
    assert isinstance(packed.head, PackedLinear)
    with torch.no_grad():
        assert same(packed(TOKENS), model(TOKENS), activations)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(
        [
            ("ternary-absmean", {}),
            ("binary", {}),
            ("nbit", {"bits": 4}),
            ("nbit", {"group_size": 4}),
            ("nbit", {"offset": True}),
            ("nbit", {"offset": True, "group_size": 4, "bits": 2}),
        ]
    ),
    st.sampled_from(["int8", "float"]),
    st.integers(1, 40),
    st.integers(1, 20),
    st.booleans(),
    st.integers(0, 99),
)
def test_packed_linear_computes_what_the_trained_layer_did(quantizer, activations, K, N, bias, seed):
    torch.manual_seed(seed)
    name, options = quantizer
    fresh = nn.Sequential(nn.Linear(K, N, bias))
    model = prepare_qat(
        nn.Sequential(nn.Linear(K, N, bias)),
        quantizer=name,
        options=options,
        activations=activations,
        quantize_all=True,
    )
    packed = load_packed(fresh, convert(model))
    x = torch.randn(3, 2, K) * 10 ** (seed % 5 - 2)
    assert same(packed(x), model(x).detach(), activations)


@pytest.mark.parametrize("activations", ["int8", "float"])
@pytest.mark.parametrize("quantizer", ["ternary-mse", "binary", "nbit", WITH_OFFSET])
@pytest.mark.parametrize(
    "conv",
    [
        lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        lambda: nn.Conv2d(4, 6, (2, 4), padding="same", dilation=(1, 2)),
        lambda: nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="reflect"),
        lambda: nn.Conv2d(4, 6, 2, padding="same", padding_mode="circular", bias=False),
        lambda: nn.Conv2d(4, 4, 3, padding="valid", groups=4),
    ],
)
def test_packed_convolution_computes_what_the_trained_layer_did(conv, quantizer, activations):
    torch.manual_seed(0)
    module = nn.Sequential(conv())
    model = prepare_qat(module, quantizer=quantizer, activations=activations)
    packed = load_packed(nn.Sequential(conv()), convert(model))
    assert isinstance(packed[0], PackedConv2d)
    x = torch.randn(2, 4, 9, 8)
    assert same(packed(x), model(x).detach(), activations)


def test_a_sample_without_a_batch_and_half_precision():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(-3), nn.Linear(64, 8))
    packed = load_packed(model, convert(prepare_qat(copy.deepcopy(model), quantize_all=True)))
    x = torch.randn(3, 6, 6)
    assert torch.equal(packed(x), packed(x[None])[0])
    half = load_packed(copy.deepcopy(model).bfloat16(), convert(prepare_qat(model, quantize_all=True)))
    assert half(x.bfloat16()).dtype == torch.bfloat16
    table = nn.Embedding(9, 4).bfloat16()
    rows = load_packed(table, convert(prepare_qat(nn.Embedding(9, 4), quantize_all=True)))(
        torch.tensor([3, 8])
    )
    assert rows.dtype == torch.bfloat16


@pytest.mark.parametrize("activations", ["int8", "float"])
def test_three_bits_run_as_four(activations):
    model = Everything()
    how = {"activations": activations, "quantize_all": True}
    prepare_qat(model, quantizer={"quantizer": "nbit", "bits": 3}, **how)
    packed = convert(model)
    assert {layer.codec for layer in packed.layers.values()} == {"base6"}
    assert {round(layer.bits, 3) for layer in packed.layers.values()} == {2.585}
    with torch.no_grad():
        torch.testing.assert_close(load_packed(Everything(), packed)(TOKENS), model.eval()(TOKENS))


def test_base3_runs_like_two_bit():
    torch.manual_seed(0)
    model = prepare_qat(Everything(), quantize_all=True).eval()
    two_bit, base3 = convert(model), convert(model, codec="base3")
    assert base3.layers["hidden"].codes.size < two_bit.layers["hidden"].codes.size
    assert torch.equal(load_packed(Everything(), base3)(TOKENS), load_packed(Everything(), two_bit)(TOKENS))


def test_a_prepared_module_can_be_loaded_into_as_well():
    torch.manual_seed(0)
    packed = convert(prepare_qat(Everything(), quantizer="ternary-learned", quantize_all=True))
    prepared = prepare_qat(Everything(), quantizer="ternary-learned", quantize_all=True)
    assert torch.equal(load_packed(prepared, packed)(TOKENS), load_packed(Everything(), packed)(TOKENS))


def test_the_given_module_is_left_alone_and_full_precision_weights_are_gone():
    module = Everything()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    packed = load_packed(module, convert(prepare_qat(Everything(), quantize_all=True)))
    assert module.training
    assert not packed.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert type(module.hidden) is nn.Linear
    assert [type(m) for m in (packed.embed, packed.line, packed.hidden, packed.head)] == [
        PackedEmbedding,
        PackedConv1d,
        PackedLinear,
        PackedLinear,
    ]
    assert not any(name.endswith("weight") and "norm" not in name for name in packed.state_dict())
    assert packed.head.codes.data_ptr() == packed.embed.codes.data_ptr()
    assert not any(p.requires_grad for p in packed.parameters())


def test_a_module_used_twice_is_packed_once():
    shared = nn.Linear(8, 8)
    torch.manual_seed(0)
    model = prepare_qat(nn.Sequential(shared, nn.ReLU(), shared), quantize_all=True)
    layer = nn.Linear(8, 8)
    packed = load_packed(nn.Sequential(layer, nn.ReLU(), layer), convert(model))
    assert packed[0] is packed[2]
    x = torch.randn(3, 8)
    assert torch.equal(packed(x), model(x).detach())


def test_a_model_that_is_one_layer():
    torch.manual_seed(0)
    model = prepare_qat(nn.Linear(8, 5), quantize_all=True)
    packed = load_packed(nn.Linear(8, 5), convert(model))
    assert isinstance(packed, PackedLinear)
    x = torch.randn(3, 8)
    assert torch.equal(packed(x), model(x).detach())


def small(pack_like):
    module = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4))
    layers = {"0": pack_like("0", module[0])}
    return module, layers, tensors_of(module, "0.bias", "1.weight", "1.bias")


def test_mismatches_get_a_clear_error(pack_like):
    module, layers, tensors = small(pack_like)
    load_packed(module, PackedModel(layers, tensors))  # it fits

    def refuses(match, layers=layers, tensors=tensors, module=module, tied=None):
        with pytest.raises(UsageError, match=match) as caught:
            load_packed(module, PackedModel(layers, tensors, tied or {}))
        assert "\n" not in str(caught.value)

    one = np.ones(4, np.float32)
    refuses("has a layer '3', the module has not", layers=layers | {"3": pack_like("3", nn.Linear(6, 4))})
    refuses("shape .4, 7., the module's has .4, 6.", layers={"0": pack_like("0", nn.Linear(7, 4))})
    refuses("packed as embedding, the module has a Linear", layers={"0": pack_like("0", nn.Embedding(4, 6))})
    refuses(
        "packed as linear, the module has a LayerNorm",
        layers=layers | {"1": pack_like("1", nn.Linear(2, 2))},
        tensors={k: v for k, v in tensors.items() if k != "1.weight"},
    )
    refuses("lacks '1.bias'", tensors={k: v for k, v in tensors.items() if k != "1.bias"})
    refuses("lacks '0.bias' and 2 more", tensors={})
    refuses("lacks '0.weight'", layers={})
    refuses("holds 'x', which the module does not have", tensors=tensors | {"x": one})
    refuses("holds 'y', which", tied={"y": "1.bias"})
    refuses(
        "'1.bias' has shape .5., the module's has .4.", tensors=tensors | {"1.bias": np.ones(5, np.float32)}
    )
    refuses("holds '0.bias', which", module=nn.Sequential(nn.Linear(6, 4, bias=False), nn.LayerNorm(4)))
    limited = nn.Embedding(4, 6, max_norm=1.0)
    refuses("max_norm", layers={"": pack_like("", limited)}, tensors={}, module=limited)


def test_export_gives_one_operator_per_layer_with_dynamic_batch_and_sequence():
    torch.manual_seed(0)
    model = prepare_qat(Everything(), quantizer="ternary-absmean", quantize_all=True).eval()
    packed = load_packed(Everything(), convert(model))
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    program = torch.export.export(packed, (TOKENS,), dynamic_shapes={"tokens": axes})
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert [name for name in called if name.startswith("hybridkit.")] == [
        "hybridkit.ternary_embedding.default",
        "hybridkit.ternary_conv_int8.default",
        "hybridkit.ternary_matmul_int8.default",
        "hybridkit.ternary_matmul_int8.default",
    ]
    other = torch.randint(0, 50, (5, 17))
    assert torch.equal(program.module()(other), packed(other))


def test_images_export_with_a_dynamic_batch():
    module = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(64, 10))
    packed = load_packed(module, convert(prepare_qat(module, quantize_all=True)))
    program = torch.export.export(
        packed, (torch.randn(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    assert sum("hybridkit" in str(node.target) for node in program.graph.nodes) == 2
    assert program.module()(torch.randn(7, 1, 8, 8)).shape == (7, 10)


def test_torchs_encoder_does_not_read_past_packed_layers():
    def make():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        return nn.ModuleDict({"encoder": nn.TransformerEncoder(layer, 2), "head": nn.Linear(8, 2)})

    model = prepare_qat(make()).eval()
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        packed = load_packed(make(), convert(model))
        assert torch.equal(packed["encoder"](x), model["encoder"](x))
