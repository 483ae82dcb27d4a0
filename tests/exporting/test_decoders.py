"""Networks that behave as transformers' do: a mapping with a cache in it, inputs by name, some left out."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import onnx
import pytest
import torch
from networks import quantized
from torch import nn

import hybridkit
from hybridkit.errors import GateError, HybridkitError, UsageError
from hybridkit.exporting import Validation, export, verify
from hybridkit.exporting.translation import translate
from hybridkit.packing import tiles
from hybridkit.runtime import modules
from hybridkit.runtime.modules import load_packed
from hybridkit.runtime.session import session

AXES = [{0: "batch", 1: "sequence"}] * 2


class Cache:
    """Keys of earlier calls."""

    def __init__(self):
        self.keys = []

    def update(self, key):
        self.keys.append(key)
        return torch.cat(self.keys, 1)


class Configuration:
    use_cache = True


class Decoder(nn.Module):
    """Embedding, one attention over the words so far that a mask lets through, a head; all is output."""

    def __init__(self, words=48, width=32):
        super().__init__()
        self.config = Configuration()
        self.words = nn.Embedding(words, width)
        self.query, self.key, self.output = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.lm_head = nn.Linear(width, words)

    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, labels=None):
        x = self.words(input_ids)
        key = self.key(x)
        if self.config.use_cache:
            past_key_values = past_key_values or Cache()
            key = past_key_values.update(key)
        scores = self.query(x) @ key.transpose(1, 2)
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if attention_mask is not None:
            causal = causal & (attention_mask != 0)[:, None]
        hidden = x + self.output(scores.masked_fill(~causal, -1e4).softmax(-1) @ x)
        found = {"loss": None, "logits": self.lm_head(hidden), "past_key_values": past_key_values}
        return OrderedDict(found | {"hidden_states": (x, hidden)})


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Decoder().eval()


@pytest.fixture(scope="module")
def batch():
    ids = torch.randint(0, 48, (3, 7), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": (torch.arange(7) < torch.tensor([[7], [4], [2]])).long()}


@pytest.mark.parametrize("activations", ["float", "int8"])
def test_a_decoder_with_a_cache(network, batch, activations, tmp_path):
    packed = hybridkit.quantize(
        network, quantizer="ternary-mse", activations=activations, quantize_all=True
    ).packed
    path = tmp_path / "m.onnx"
    report = export(network, packed, path, example_inputs=batch, dynamic_axes=AXES)
    assert network.config.use_cache, "the network caches as before"
    proto = onnx.load(path)
    assert [v.name for v in proto.graph.input] == ["input_ids", "attention_mask"]
    outputs = ["logits", "hidden_states_0", "hidden_states_1"]
    assert [v.name for v in proto.graph.output] == outputs
    assert [[d.dim_param for d in v.type.tensor_type.shape.dim] for v in proto.graph.input] == [
        ["batch", "sequence"]
    ] * 2
    assert list(report.verification.differences) == outputs
    assert max(report.verification.differences.values()) == report.verification.max_abs
    reference = load_packed(network, packed)
    longer = {name: x.repeat(2, 3) for name, x in batch.items()}
    for inputs in (batch, longer, {name: x[:1, :1] for name, x in batch.items()}):
        with torch.no_grad():
            wanted = reference(**inputs)
        got = session(path, threads=1).run(["logits"], {name: x.numpy() for name, x in inputs.items()})
        np.testing.assert_allclose(
            got[0], wanted["logits"].numpy(), atol=1e-4 if activations == "float" else 5e-2
        )


def test_optional_inputs_may_be_left_out_and_named_in_any_order(network, batch, tmp_path):
    path = tmp_path / "m.onnx"
    export(network, None, path, example_inputs={"input_ids": batch["input_ids"]}, dynamic_axes=AXES[:1])
    assert [v.name for v in onnx.load(path).graph.input] == ["input_ids"]
    export(network, None, path, example_inputs=dict(reversed(batch.items())), dynamic_axes=AXES, verify=False)
    runner = session(path, threads=1)
    assert [v.name for v in runner.get_inputs()] == ["attention_mask", "input_ids"]
    (logits, *_) = runner.run(None, {name: x.numpy() for name, x in batch.items()})
    np.testing.assert_allclose(logits, network(**batch)["logits"].detach().numpy(), atol=1e-5)


def test_names_that_do_not_fit(network, batch, tmp_path):
    with pytest.raises(HybridkitError, match="unexpected keyword argument 'ids'"):
        export(network, None, tmp_path / "m.onnx", example_inputs={"ids": batch["input_ids"]})
    with pytest.raises(UsageError, match="names the inputs already"):
        export(network, None, tmp_path / "m.onnx", example_inputs=batch, input_names=["a", "b"])
    assert not list(tmp_path.iterdir())


def test_a_loss_gets_the_network_s_own_structure(network, batch, tmp_path):
    path = tmp_path / "m.onnx"
    seen = []

    def loss(output, given):
        seen.append(type(output))
        return output["logits"].square().mean() + output["hidden_states"][1].square().mean()

    validation = Validation(batches=[batch, batch], loss=loss)
    found = export(
        network, None, path, example_inputs=batch, dynamic_axes=AXES, validation=validation
    ).verification
    assert seen == [OrderedDict] * 4
    assert found.loss == pytest.approx(found.network_loss, rel=1e-5)
    assert found.samples == 6


class Several(nn.Module):
    """Outputs with the names of an input and of a weight, a large one, and one that is tiny."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.spoilt = 0.0

    def forward(self, x):
        return {"x": x * self.scale, "scale": 1e4 * x, "tiny": 1e-3 * x + self.spoilt, "index": x.argmax(-1)}


def test_every_output_is_compared_in_its_own_measure(tmp_path):
    network, x = Several().eval(), torch.randn(4, 3)
    path = tmp_path / "m.onnx"
    report = export(network, None, path, example_inputs=[x])
    assert [v.name for v in onnx.load(path).graph.output] == ["x", "scale", "tiny", "index"]
    assert list(report.verification.differences) == ["x", "scale", "tiny"]
    network.spoilt = 1e-5
    found = verify.compare(path, network, Validation(batches=[(x,)]))
    assert found.differences["tiny"] == pytest.approx(1e-5, rel=1e-2)
    with pytest.raises(GateError):
        verify.check_gate(found, "float", path)


def test_nothing_to_export(tmp_path):
    class Silent(nn.Module):
        def forward(self, x):
            return {"past_key_values": (x,)}

    with pytest.raises(HybridkitError, match="it gives no tensor"):
        export(Silent(), None, tmp_path / "m.onnx", example_inputs=[torch.ones(2, 2)])


def test_codes_are_tiled_once_for_the_file_and_once_where_they_run(network, batch, tmp_path, monkeypatch):
    """Not for the layers that are only translated; and nothing is untiled."""
    calls = []
    counted = {"tile": tiles.tile, "untile": tiles.untile}
    for name, function in counted.items():
        for owner in (modules, hybridkit.exporting.layout):
            monkeypatch.setattr(
                owner, name, lambda *a, _n=name, _f=function, **k: (calls.append(_n), _f(*a, **k))[1]
            )
    monkeypatch.setattr(modules, "load", lambda: None)  # tiles in NumPy, which are counted
    torch.manual_seed(0)
    model, packed = quantized(Decoder(), batch["input_ids"], activations="int8")
    export(model, packed, tmp_path / "m.onnx", example_inputs=batch, dynamic_axes=AXES)
    assert calls == ["tile"] * 3
    calls.clear()
    export(
        network,
        hybridkit.quantize(network, activations="float").packed,
        tmp_path / "m.onnx",
        example_inputs=batch,
    )
    assert calls == ["tile"] * 6


def test_no_weight_is_read_to_find_the_size_of_the_fp32_file(tmp_path, monkeypatch):
    torch.manual_seed(0)
    wide = nn.Sequential(
        nn.Linear(96, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 5)
    ).eval()
    packed = hybridkit.quantize(wide, activations="float").packed
    x = torch.randn(2, 96)
    twin = export(wide, packed, tmp_path / "m.fp32.onnx", example_inputs=[x])
    monkeypatch.setattr(hybridkit.exporting.lowering, "_dequantized", None)
    report = export(wide, packed, tmp_path / "m.onnx", example_inputs=[x])
    assert report.fp32_bytes == twin.fp32_bytes == pytest.approx(twin.file_bytes, rel=2e-3)


def test_the_rule_that_grows_with_the_square_of_the_depth_is_not_tried(monkeypatch):
    from onnxscript import rewriter

    def fails(*_, **__):
        raise AssertionError

    rules = rewriter._DEFAULT_REWRITE_RULES
    (slow,) = [rule for rule in rules if rule.name == "SlicesSplit"]
    monkeypatch.setattr(slow, "try_rewrite", fails)
    translate(nn.Linear(8, 2).eval(), [torch.randn(2, 8)], ["x"], [{0: "batch"}], 18)
    assert rewriter._DEFAULT_REWRITE_RULES is rules


def test_a_decoder_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    configuration = transformers.LlamaConfig(vocab_size=64, num_key_value_heads=2, **sizes)
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(configuration).eval()
    ids = torch.randint(0, 64, (2, 6))
    mask = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])
    packed = hybridkit.quantize(llama, quantizer="ternary-mse", activations="float").packed
    path = tmp_path / "llama.onnx"
    inputs = {"input_ids": ids, "attention_mask": mask}
    report = export(llama, packed, path, example_inputs=inputs, dynamic_axes=AXES)
    assert list(report.verification.differences) == ["logits"]
    longer = {name: x.repeat(2, 2) for name, x in inputs.items()} | {
        "attention_mask": torch.ones(4, 12).long()
    }
    with torch.no_grad():
        wanted = load_packed(llama, packed)(**longer).logits.numpy()
    (got,) = session(path, threads=1).run(None, {name: x.numpy() for name, x in longer.items()})
    np.testing.assert_allclose(got, wanted, atol=1e-4)
