"""Encoders that give one vector per text, against sentence vectors by their definition."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

import hybridkit
from hybridkit.errors import HybridkitError, UsageError
from hybridkit.tasks.language.pooling import MODES


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        vocab_size=60,
        max_position_embeddings=32,
    )
    return transformers.BertModel(config).eval()


def batch(texts, tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(tokens) < torch.randint(1, tokens + 1, (texts, 1), generator=generator)).long()
    return {"input_ids": torch.randint(0, 60, (texts, tokens), generator=generator), "attention_mask": mask}


def by_definition(hidden, mask, mode):
    """A text at a time, of the tokens that are there."""
    vectors = []
    for text, there in zip(hidden, mask.bool(), strict=True):
        tokens = text[there]
        vector = {
            "mean": tokens.mean(0),
            "cls": tokens[0],
            "max": tokens.max(0).values,
            "lasttoken": tokens[-1],
        }[mode]
        vectors.append(vector / vector.norm())
    return torch.stack(vectors)


# How it is pooled does not depend on what the encoder's weights are.
@pytest.mark.parametrize(("mode", "packed"), [*((mode, False) for mode in MODES), ("mean", True)])
def test_the_file_gives_the_vectors(encoder, mode, packed, tmp_path):
    network = hybridkit.pack(encoder, hybridkit.QuantConfig(activations="int8")) if packed else encoder
    given = batch(2, 6)
    where = [None, tmp_path / "e.onnx"] if not packed else [tmp_path / "e.onnx"]
    axes = [{0: "batch", 1: "sequence"}] * 2
    report = hybridkit.export(network, *where, example_inputs=given, dynamic_axes=axes, pool=mode)
    assert report.verification is not None
    assert list(report.verification.differences) == ["embedding"]
    session = onnxruntime.InferenceSession(str(report.path))
    assert session.get_modelmeta().custom_metadata_map["hybridkit.pool"] == mode
    plain = network.module if packed else network
    for other in (batch(5, 9, seed=1), batch(1, 3, seed=2)):
        [found] = session.run(None, {name: x.numpy() for name, x in other.items()})
        with torch.no_grad():
            wanted = by_definition(plain(**other).last_hidden_state, other["attention_mask"], mode)
        if packed:  # the packed network's: this one's hidden states are what its own weights give
            assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
        else:
            np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)
    assert "forward" not in vars(encoder)


def test_what_cannot_be_pooled_is_refused(encoder, tmp_path):
    given = batch(2, 6)
    with pytest.raises(UsageError, match="choose one of mean, cls, max, lasttoken"):
        hybridkit.export(encoder, None, tmp_path / "e.onnx", example_inputs=given, pool="median")
    with pytest.raises(UsageError, match="gets an attention_mask"):
        hybridkit.export(encoder, None, tmp_path / "e.onnx", example_inputs=[given["input_ids"]], pool="mean")
    with pytest.raises(UsageError, match="is for ONNX files"):
        hybridkit.export(encoder, None, tmp_path / "e.gguf", example_inputs=given, pool="mean")
    head = transformers.BertForSequenceClassification(encoder.config).eval()
    with pytest.raises(HybridkitError, match=r"hidden states \[texts, tokens, width\], not 2 dimensions"):
        hybridkit.export(head, None, tmp_path / "e.onnx", example_inputs=given, pool="mean")
    assert not list(tmp_path.iterdir())
