"""Ternary weights as transformers packs them: read byte for byte, and written so that transformers agrees."""

from __future__ import annotations

import json

import folders
import pytest
import safetensors.torch
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers.integrations import bitnet as theirs

from hybridkit.cli import run
from hybridkit.errors import FileError, UsageError
from hybridkit.exporting import export
from hybridkit.exporting.hf import exporter
from hybridkit.packing.model import PackedModel
from hybridkit.pretrained import open_pretrained
from hybridkit.pretrained.assets import assets_of
from hybridkit.pretrained.bitnet import Dequantized, Settings, pack, unpack
from hybridkit.quant.config import QuantConfig
from hybridkit.quant.convert import convert
from hybridkit.quant.prepare import prepare_qat_
from hybridkit.runtime.modules import load_packed

TERNARY = ["--granularity", "tensor", "--activations", "int8", "--embeddings", "8"]
FLOATS = ["--set", "exporter.floats=F32"]


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**31))
def test_packing_is_that_of_transformers(quarter, K, seed):
    codes = torch.randint(-1, 2, (4 * quarter, K), generator=torch.Generator().manual_seed(seed))
    packed = pack(codes.to(torch.int8))
    assert torch.equal(packed, theirs.pack_weights(codes.clone()))
    assert torch.equal(unpack(packed), codes.to(torch.int8))


def test_a_digit_that_is_no_code_is_refused():
    with pytest.raises(FileError, match="digit 3"):
        unpack(torch.tensor([[0b11]], dtype=torch.uint8))


def published(folder, linear_class, mode="offline"):
    """A folder whose one block is packed by the description alone; the weights that it stands for."""
    folders.write("llama", folder)
    state = safetensors.torch.load_file(folder / "model.safetensors")
    wanted = {}
    for name in [name for name in state if "_proj" in name]:
        N, K = state[name].shape
        codes = [[(7 * n + 3 * k + n * k) % 3 - 1 for k in range(K)] for n in range(N)]
        scale = 0.25 + len(wanted) / 8
        rows = [
            [sum((codes[r + part * N // 4][k] + 1) << 2 * part for part in range(4)) for k in range(K)]
            for r in range(N // 4)
        ]
        wanted[name] = torch.tensor(codes) * scale
        if mode == "online":
            state[name] = wanted[name]
            continue
        state[name] = torch.tensor(rows, dtype=torch.uint8)
        said = 1 / scale if linear_class == "bitlinear" else scale
        state[f"{name}_scale"] = torch.tensor([said])
    safetensors.torch.save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "bitnet",
        "linear_class": linear_class,
        "quantization_mode": mode,
        "modules_to_not_convert": ["lm_head"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return wanted


@pytest.mark.parametrize(
    ("linear_class", "mode"),
    [("bitlinear", "offline"), ("autobitlinear", "offline"), ("autobitlinear", "online")],
)
def test_a_packed_folder_is_a_source(tmp_path, linear_class, mode):
    wanted = published(tmp_path / "m", linear_class, mode)
    found = open_pretrained(str(tmp_path / "m"))
    network = found.network(head="causal-lm")
    streamed, weights = found.streamed(head="causal-lm")
    assert type(network) is type(streamed) is transformers.LlamaForCausalLM
    for name, weight in wanted.items():
        for read in (network.get_parameter(name).detach(), weights[name]):
            torch.testing.assert_close(read, weight, rtol=1e-6, atol=0)
    # quantised again, its codes are what they were
    packed = tmp_path / "p.hk.safetensors"
    assert run(["quantize", str(tmp_path / "m"), "-o", str(packed), "--granularity", "tensor"]) == 0
    for layer in PackedModel.load(packed).layers.values():
        if layer.weight_name in wanted:
            found_weight = torch.from_numpy(layer.dequantize())
            torch.testing.assert_close(found_weight, wanted[layer.weight_name], rtol=1e-6, atol=0)


def test_a_bias_is_scaled_where_transformers_scales_it():
    layer = theirs.AutoBitLinear(8, 4, bias=True)
    layer.weight.data = torch.randint(-1, 2, (4, 8)).float()
    layer.weight_scale.fill_(0.25)
    files = {
        "a.weight": pack(layer.weight.to(torch.int8)),
        "a.weight_scale": torch.tensor([0.25]),
        "a.bias": layer.bias.detach(),
    }
    read = Dequantized(files, Settings(packed=True, divides=False))
    assert sorted(read) == ["a.bias", "a.weight"]
    x = torch.eye(8) * 127  # exact in 8 bits
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        torch.testing.assert_close(torch.nn.functional.linear(x, read["a.weight"], read["a.bias"]), layer(x))


def test_what_is_not_read_is_said(tmp_path):
    published(tmp_path / "m", "bitlinear")
    config = json.loads((tmp_path / "m/config.json").read_text())
    config["quantization_config"]["use_rms_norm"] = True
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="use_rms_norm"):
        open_pretrained(str(tmp_path / "m")).network()
    state = safetensors.torch.load_file(tmp_path / "m/model.safetensors")
    first = next(name for name in state if name.endswith("_scale"))
    state[first] = torch.tensor([0.5, 0.5])
    safetensors.torch.save_file(state, tmp_path / "m/model.safetensors", {"format": "pt"})
    del config["quantization_config"]["use_rms_norm"]
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    with pytest.raises(FileError, match="is not one finite number"):
        open_pretrained(str(tmp_path / "m")).network()


def quantized(folder, tmp_path, *how):
    packed = tmp_path / "m.hk.safetensors"
    assert run(["quantize", str(folder), "-o", str(packed), *how]) == 0
    return packed


@torch.no_grad()
def logits(network, ids):
    return network(input_ids=ids, use_cache=False).logits


def write_biased(folder):
    """A Qwen2, whose projections have biases, and its tokenizer."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    made = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**shape, num_hidden_layers=1, vocab_size=folders.WORDS)
    )
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    made.save_pretrained(folder)
    folders.words_tokenizer().save_pretrained(folder)


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen2"])
def test_transformers_runs_what_is_packed(family, tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "SHARD", "20KB")
    if family == "qwen2":
        write_biased(tmp_path / "source")
    else:
        folders.write(family, tmp_path / "source")
    packed, out = quantized(tmp_path / "source", tmp_path, *TERNARY), tmp_path / "out"
    assert run(["export", str(out), "--target", "hf", "--from", str(packed), *FLOATS]) == 0
    names = {path.name for path in out.iterdir()}
    assert {
        "model.safetensors.index.json",
        "config.json",
        "tokenizer.json",
        "generation_config.json",
    } <= names
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1
    with torch.compiler.set_stance("force_eager"):
        network = transformers.AutoModelForCausalLM.from_pretrained(out)
        wanted = theirs.BitLinear if family == "qwen2" else theirs.AutoBitLinear
        assert isinstance(network.model.layers[0].mlp.up_proj, wanted)
        ids = torch.randint(0, folders.WORDS, (8, 16), generator=torch.Generator().manual_seed(0))
        theirs_found = logits(network, ids)
    ours = load_packed(open_pretrained(str(tmp_path / "source")).network(), PackedModel.load(packed))
    ours.lm_head.activations = "float"  # 8 bits are not packed there, and its inputs stay floats
    apart = (theirs_found - logits(ours, ids)).abs().amax(dim=-1) / theirs_found.abs().max()
    assert apart.median() < 1e-5  # an activation at a border of int8 may fall to the other side
    assert apart.max() < 0.05
    # and it is a source again, with the same codes
    again = open_pretrained(str(out)).network().state_dict()
    for name, tensor in open_pretrained(str(tmp_path / "source")).network().state_dict().items():
        assert not name.endswith("bias") or torch.equal(again[name], tensor)
    for name, layer in PackedModel.load(packed).layers.items():
        found = again[f"{name}.weight"]
        torch.testing.assert_close(found, torch.from_numpy(layer.dequantize()), rtol=1e-6, atol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_unpacked_weights_are_read_by_anyone(family, tmp_path):
    folders.write(family, tmp_path / "source")
    packed, out = quantized(tmp_path / "source", tmp_path, "--activations", "float"), tmp_path / "out"
    how = ["--target", "hf", "--unpacked", "--from", str(packed)]
    assert run(["export", str(out), *how, *FLOATS]) == 0
    network = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert not hasattr(network.config, "quantization_config")
    ours = load_packed(open_pretrained(str(tmp_path / "source")).network(), PackedModel.load(packed))
    ids = torch.arange(3, 19)[None]
    torch.testing.assert_close(logits(network, ids), logits(ours, ids), rtol=1e-4, atol=1e-5)
    assert run(["export", str(out), *how]) == 0  # over its own, in bf16
    assert transformers.AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


def test_what_does_not_fit_is_refused_and_nothing_is_left(tmp_path, capsys):
    folders.write("llama", tmp_path / "source")

    def refused(packed, out="out", code=2):
        capsys.readouterr()
        assert run(["export", str(tmp_path / out), "--target", "hf", "--from", str(packed)]) == code
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    rows = quantized(tmp_path / "source", tmp_path, "--activations", "int8")
    assert "one scale for the whole weight; say --unpacked" in refused(rows)
    floats = quantized(tmp_path / "source", tmp_path, "--granularity", "tensor", "--activations", "float")
    assert "activations are floats" in refused(floats)
    four = quantized(tmp_path / "source", tmp_path, "--quantizer", "nbit")
    assert "no ternary layer" in refused(four)
    (tmp_path / "mine").mkdir()
    assert "not of the target hf" in refused(four, "mine", 1)
    assert not (tmp_path / "out").exists()


def test_what_was_added_to_a_network_has_no_place(tmp_path):
    """A norm before a layer changes what it computes, and transformers' own network has none there."""
    folders.write("llama", tmp_path / "source")
    opened = open_pretrained(str(tmp_path / "source"))
    network = opened.network()
    how = QuantConfig(weights="ternary-mse", granularity="tensor", insert_norms=True)
    ids = torch.arange(3, 19)[None]
    packed = convert(prepare_qat_(network, how, example_inputs={"input_ids": ids}))
    with pytest.raises(UsageError, match=r"has no place for .*input_norm"):
        export(
            opened.network(),
            packed,
            tmp_path / "out",
            example_inputs={"input_ids": ids},
            target="hf",
            assets=assets_of(opened, network),
        )
    assert not (tmp_path / "out").exists()
