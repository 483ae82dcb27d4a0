"""Pretrained folders wherever a source is opened: streamed from their files, or loaded where need be."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from folders import FAMILIES, network, write, write_gguf

import hybridkit
from hybridkit.cli import run
from hybridkit.errors import FileError, UsageError
from hybridkit.packing.model import PackedModel
from hybridkit.pretrained import is_pretrained, open_pretrained
from hybridkit.sources.protocol import Code, open_source
from hybridkit.training.config import TrainConfig, named_targets, resolve
from hybridkit.training.trainer import Trainer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write("llama", tmp_path / "llama")
    return tmp_path / "llama"


def same(one, two):
    assert set(one) == set(two)
    assert all(torch.equal(one[name], two[name].to(one[name].dtype)) for name in one)


@pytest.mark.parametrize("prefix", ["", "hf:"])
def test_a_folder_by_either_name(folder, prefix):
    source = open_source(f"{prefix}{folder}")
    same(network("llama").state_dict(), source.weights())
    same(network("llama").state_dict(), source.network.state_dict())
    assert not source.network.training


def test_shards_are_read_as_one(tmp_path):
    made = write("llama", tmp_path / "m", max_shard_size="40KB")
    assert (tmp_path / "m/model.safetensors.index.json").is_file()
    own, weights = open_source(str(tmp_path / "m")).streamed()
    assert all(p.is_meta for p in own.parameters())
    same(made.state_dict(), weights)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_short_floats_stay_short_and_a_tied_head_stays_tied(tmp_path, dtype):
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96}
    config = transformers.LlamaConfig(vocab_size=96, tie_word_embeddings=True, **sizes)
    made = transformers.LlamaForCausalLM(config).to(kind)
    made.save_pretrained(tmp_path / "m")
    assert run(["quantize", str(tmp_path / "m"), "-o", str(tmp_path / "m.hk.safetensors")]) == 0
    packed = PackedModel.load(tmp_path / "m.hk.safetensors")
    assert packed.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert (
        str(packed.tensors["model.embed_tokens.weight"].dtype)
        == {"bf16": "bfloat16", "fp16": "float16"}[dtype]
    )
    restored = open_source(str(tmp_path / "m.hk.safetensors")).network
    assert restored.lm_head.weight is restored.model.embed_tokens.weight


def test_the_body_is_opened_from_the_weights_of_a_head(tmp_path, caplog):
    """Names get or lose the prefix of the body; what the head lacks is drawn, and a line says so."""
    torch.manual_seed(0)
    config = network("bert").config
    headed = transformers.BertForMaskedLM(config)
    headed.save_pretrained(tmp_path / "m")
    found = open_pretrained(str(tmp_path / "m"))
    same(headed.state_dict(), found.network().state_dict())
    with caplog.at_level(logging.WARNING):
        classifier = found.network("text-classification", num_labels=3)
    assert classifier.classifier.out_features == 3
    assert [r.message for r in caplog.records if "drawn at random" in r.message] != []
    assert "bert.pooler.dense.bias and 3 more" in caplog.text
    same(headed.bert.encoder.state_dict(), classifier.bert.encoder.state_dict())
    assert found.config.num_labels == 2, "the configuration is nobody's to change"


def test_a_head_of_another_size_is_drawn(tmp_path, caplog):
    write("vit", tmp_path / "m")
    found = open_pretrained(str(tmp_path / "m"))
    assert found.network("image-classification", num_labels=7).classifier.out_features == 7
    assert "classifier.bias and 1 more: not among its weights, drawn at random" in caplog.text


def test_fused_experts_are_loaded(tmp_path):
    """Mixtral's files hold an expert's matrices one by one, the network has all of them in one tensor."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.MixtralConfig(vocab_size=64, num_key_value_heads=2, num_local_experts=2, **sizes)
    made = transformers.MixtralForCausalLM(config).eval()
    made.save_pretrained(tmp_path / "m")
    source = open_source(str(tmp_path / "m"))
    own, weights = source.streamed()
    assert weights is None
    same(made.state_dict(), own.state_dict())
    assert run(["quantize", str(tmp_path / "m"), "-o", str(tmp_path / "m.hk.safetensors")]) == 0


def test_bits_are_chosen_by_errors_that_inputs_weigh(folder, tmp_path):
    target = tmp_path / "m.hk.safetensors"
    assert run(["quantize", str(folder), "-o", str(target), "--target-bits", "3"]) == 0
    packed = PackedModel.load(target)
    examples = open_source(str(folder)).examples
    report = hybridkit.quantize(network("llama"), target_bits=3, example_inputs=examples.draw(8))
    assert {n: x.bits for n, x in packed.layers.items()} == {
        n: x.bits for n, x in report.packed.layers.items()
    }


@pytest.mark.parametrize("family", ["bert", "vit", "whisper"])
def test_a_folder_is_exported_without_a_word_about_inputs(family, tmp_path, capsys):
    write(family, tmp_path / "m")
    capsys.readouterr()
    assert run(["export", str(tmp_path / "m.onnx"), "--from", str(tmp_path / "m"), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["report"]["verification"]["samples"] == 19
    assert not printed.err


def test_a_folder_teaches_and_starts_a_run(tmp_path, monkeypatch):
    """Here its network is one of the user's own module; tasks for pretrained networks bring theirs."""
    write("vit", tmp_path / "m")
    (tmp_path / "vit_task.py").write_text(VIT_TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    flags = {"task": "vit_task:task", "max_steps": 1, "threads": 1, "batch_size": 4}
    trainer = Trainer.seeded(resolve(init_from="m", teacher="hf:m", **flags))
    same(network("vit").state_dict(), trainer.model.state_dict())
    same(network("vit").state_dict(), trainer.objective.teacher.state_dict())
    trainer.step()


VIT_TASK = """
import torch
from folders import network
from hybridkit.tasks.protocol import Splits
from hybridkit.tasks.supervised import SupervisedTask

def data(count):
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 3, 32, 32, generator=generator), torch.arange(count) % 5

def task():
    load = lambda: Splits(data(8), data(6), data(4))
    return SupervisedTask(name="images", load=load, models={"vit": lambda: network("vit")})
"""


def test_a_gguf_file(tmp_path):
    made = write_gguf(tmp_path / "m.gguf")
    source = open_source(str(tmp_path / "m.gguf"))
    ids = torch.randint(3, 96, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(source.network(ids).logits, made(ids).logits, rtol=1e-4, atol=1e-5)
    assert run(["quantize", str(tmp_path / "m.gguf"), "-o", str(tmp_path / "m.hk.safetensors")]) == 0
    assert (tmp_path / "m.assets/tokenizer.json").is_file()
    assert open_source(str(tmp_path / "m.hk.safetensors")).network(ids).logits.shape == (2, 7, 96)
    alone = tmp_path / "alone"
    alone.mkdir()
    (tmp_path / "m.gguf").rename(alone / "m.gguf")
    assert open_pretrained(str(alone)).gguf == "m.gguf"


def test_what_is_a_pretrained_network(folder, tmp_path):
    assert is_pretrained(str(folder))
    assert is_pretrained("hf:owner/name")
    assert is_pretrained("there-is-none.gguf")
    assert not is_pretrained(str(tmp_path))
    assert not is_pretrained("package.module:attribute")
    (tmp_path / "config.json").write_text('{"format": "hybridkit-run"}')
    assert not is_pretrained(str(tmp_path))


def test_names_of_networks_are_no_code(tmp_path, monkeypatch):
    """hf:NAME looks like module:attribute; a module of that name is not imported."""
    (tmp_path / "hf.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert named_targets(TrainConfig(model="hf:Net", teacher="hf:Net")) == {}
    assert named_targets(TrainConfig(quantizer="hf:Net", qat=True)) == {"quantizer": "hf:Net"}
    with pytest.raises(UsageError, match="does not take pretrained networks"):
        Trainer.seeded(resolve(model="hf:Net", max_steps=1))
    with pytest.raises(FileError):
        _ = open_source("hf:Net").network
    assert "hf" not in sys.modules


REMOTE = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.ran = True

class MineConfig(LlamaConfig):
    model_type = "mine"

class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""


def test_code_of_a_folder_runs_under_the_flag_alone(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "cache"))
    monkeypatch.setattr(torch, "ran", False, raising=False)
    (folder / "modeling_mine.py").write_text(REMOTE)
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "mine",
        "architectures": ["MineForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_mine.MineConfig",
            "AutoModelForCausalLM": "modeling_mine.MineForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    target = str(tmp_path / "m.hk.safetensors")
    capsys.readouterr()
    assert run(["quantize", str(folder), "-o", target]) == 2
    error = capsys.readouterr().err
    assert "say --trust-remote-code" in error
    assert error.count("\n") == 1
    assert not torch.ran
    assert run(["quantize", str(folder), "-o", target, "--trust-remote-code"]) == 0
    assert torch.ran
    assert (tmp_path / "m.assets/modeling_mine.py").is_file()
    with pytest.raises(UsageError, match="--trust-remote-code"):
        _ = open_source(target).network
    assert type(open_source(target, Code(remote=True)).network).__name__ == "MineForCausalLM"


MEMORY = """
import sys, torch
from hybridkit.cli import run
from hybridkit.sources.protocol import open_source

def memory(key):
    lines = open("/proc/self/status").readlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key + ":"))

source, target, small = sys.argv[1:]
run(["quantize", small, "-o", target])  # everything is imported
open("/proc/self/clear_refs", "w").write("5")  # the peak is that of now
before = memory("VmRSS")
run(["quantize", source, "-o", target, "--quantizer", "ternary-absmean"])
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux for the peak of memory")
def test_memory_is_bounded_by_the_largest_layer(tmp_path):
    """Twice the weights that may be in memory; no layer has more than 34 MB."""
    write("llama", tmp_path / "small")
    sizes = {"hidden_size": 1024, "intermediate_size": 8192, "num_attention_heads": 8}
    config = transformers.LlamaConfig(vocab_size=512, num_hidden_layers=4, **sizes)
    with torch.device("meta"):
        shapes = {n: list(t.shape) for n, t in transformers.LlamaForCausalLM(config).state_dict().items()}
    config.architectures = ["LlamaForCausalLM"]
    big = tmp_path / "big"
    config.save_pretrained(big)
    entries, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * int(np.prod(shape))
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    with (big / "model.safetensors").open("wb") as file:  # zeros that take no room on the disk
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    assert end > 2 * (34e6 + 200e6)
    command = [
        sys.executable,
        "-c",
        MEMORY,
        str(big),
        str(tmp_path / "m.hk.safetensors"),
        str(tmp_path / "small"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) < 34e6 + 200e6


def test_every_family_here_says_its_inputs(tmp_path):
    for family in FAMILIES:
        write(family, tmp_path / family, tokenizer=False)
        described = open_source(str(tmp_path / family)).examples.described()
        assert described[0]["name"] == network(family).main_input_name
    sizes = {x["name"]: x["shape"] for x in open_source(str(tmp_path / "whisper")).examples.described()}
    assert sizes == {"input_features": [1, 16, 48], "decoder_input_ids": [1, 16]}
    resnet = open_source(str(tmp_path / "resnet")).examples.described()
    assert resnet[0]["shape"] == [1, 3, 32, 32], "what its image processor makes"
