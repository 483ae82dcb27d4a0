"""Norms before quantised layers: where they go, what they do at first, packed, exported, in a run."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from hybridkit.errors import UsageError
from hybridkit.exporting import export
from hybridkit.packing.model import PackedModel
from hybridkit.quant.config import QuantConfig
from hybridkit.quant.convert import convert
from hybridkit.quant.post_training import quantize
from hybridkit.quant.prepare import full_precision_copy, prepare_qat_, prepared
from hybridkit.runtime.modules import load_packed
from hybridkit.runtime.session import session

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class OwnNorm(nn.Module):
    """A norm that is none of torch's, as those of transformers are."""

    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.scale


class Block(nn.Module):
    """Attention with one head and a gated feed-forward part, with names that say nothing."""

    def __init__(self, make=nn.LayerNorm):
        super().__init__()
        self.n1, self.n2 = make(8), make(8)
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))
        self.e, self.f, self.g = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x):
        y = self.n1(x)
        weights = torch.softmax(self.a(y) @ self.b(y).transpose(1, 2), dim=-1)
        x = x + self.d(weights @ self.c(y))
        y = self.n2(x)
        return x + self.g(torch.relu(self.e(y.view(-1, 8))).view(*x.shape[:-1], 12) * self.f(y))


class Network(nn.Module):
    def __init__(self, make=nn.LayerNorm):
        super().__init__()
        self.block, self.head = Block(make), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.block(x))


def made(make=nn.LayerNorm, **how):
    torch.manual_seed(0)
    model = Network(make)
    config = QuantConfig(insert_norms=True, **how)
    return prepare_qat_(model, config, example_inputs=(X,))


@pytest.mark.parametrize("make", [nn.LayerNorm, nn.RMSNorm, OwnNorm])
def test_they_go_before_the_projections_out_and_down(make):
    model = made(make)
    names = {name for name, module in model.named_modules() if name.endswith("input_norm")}
    assert names == {"block.d.input_norm", "block.g.input_norm"}
    assert prepared(model).config.insert_norms


def test_real_families_get_them_where_subln_is():
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    llama = transformers.LlamaConfig(vocab_size=30, num_key_value_heads=1, **sizes)
    bert = transformers.BertConfig(vocab_size=30, **sizes)
    tokens = {"input_ids": torch.arange(12).view(2, 6)}
    for model, out, down in (
        (transformers.LlamaForCausalLM(llama), "self_attn.o_proj", "mlp.down_proj"),
        (transformers.BertModel(bert, add_pooling_layer=False), "attention.output.dense", "output.dense"),
    ):
        how = QuantConfig(insert_norms=True, quantize_all=True)
        prepare_qat_(model, how, example_inputs=tokens)
        found = {name for name, module in model.named_modules() if hasattr(module, "input_norm")}
        assert len(found) == 4
        assert all(name.endswith((out, down)) for name in found)


def test_every_layer_gets_one_where_no_layer_has_a_norm():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    prepare_qat_(model, QuantConfig(insert_norms=True), example_inputs=(X,))
    assert [hasattr(model[i], "input_norm") for i in (0, 2, 4)] == [True, True, False]  # the last is fp32


def test_at_first_a_row_of_usual_size_goes_through_and_others_are_scaled_to_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 4))
    plain = copy.deepcopy(model)
    rows = torch.randn(16, 8)
    rows = 3 * rows / rows.square().mean(1, keepdim=True).sqrt()
    prepare_qat_(model, QuantConfig(insert_norms=True), example_inputs=(rows,))
    latent = full_precision_copy(model)
    torch.testing.assert_close(latent(rows), plain(rows), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(latent(7 * rows), plain(rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, float("nan"), 3e38])
def test_inputs_without_a_size_leave_the_weight_at_one(value):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    rows = torch.full((2, 4), value)
    prepare_qat_(model, QuantConfig(insert_norms=True), example_inputs=(rows,))
    expected = 3e38 if value == 3e38 else 1.0
    torch.testing.assert_close(model[0].input_norm.weight, torch.full((4,), expected))


def test_training_packing_and_export_give_the_same_answers(tmp_path):
    model = made(nn.RMSNorm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before = model.block.d.input_norm.weight.clone()
    for _ in range(3):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    assert not torch.equal(model.block.d.input_norm.weight, before)
    expected = model.eval()(X)
    path = tmp_path / "model.hk.safetensors"
    convert(model).save(path)
    packed = PackedModel.load(path)
    assert packed.metadata["quantization"]["insert_norms"] is True
    runs = load_packed(Network(nn.RMSNorm), packed)
    torch.testing.assert_close(runs(X), expected)
    torch.testing.assert_close(load_packed(model, packed)(X), expected)
    for target in ("onnx", "fp32", "matmulnbits"):
        file = tmp_path / f"{target}.{target}.onnx"
        export(Network(nn.RMSNorm), packed, file, target=target, example_inputs=(X,))
        (found,) = session(file).run(None, {"input": X.numpy()})
        tolerance = 1e-4 if target == "onnx" else 0.1
        np.testing.assert_allclose(found, expected.detach().numpy(), rtol=tolerance, atol=tolerance)


def test_a_file_whose_norm_does_not_fit_is_refused():
    packed = convert(made())
    packed.tensors["block.d.input_norm.weight"] = np.ones((2, 2), np.float32)
    with pytest.raises(UsageError, match="input_norm"):
        load_packed(Network(), packed)


def test_what_cannot_be_done_is_said():
    with pytest.raises(UsageError, match="example_inputs"):
        prepare_qat_(Network(), QuantConfig(insert_norms=True))
    with pytest.raises(UsageError, match="have to be trained"):
        quantize(Network(), QuantConfig(insert_norms=True))
