"""Small networks of transformers' families: quantised, trained, packed, exported; the same answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from folders import FAMILIES, network, write
from torch import nn

import hybridkit
from hybridkit.cli import run
from hybridkit.exporting import Validation
from hybridkit.packing.model import PackedModel
from hybridkit.pretrained.examples import examples_of
from hybridkit.runtime.modules import load_packed
from hybridkit.runtime.session import session
from hybridkit.sources.protocol import open_source
from hybridkit.trees import main_output, named_outputs

IN_GROUPS = {"quantizer": "nbit", "bits": 4, "group_size": 32}
# What stays in full precision by default; everything else is quantised.
ALONE = {
    "llama": {"model.embed_tokens", "lm_head"},
    "qwen3": {"model.embed_tokens", "lm_head"},
    "gemma3": {"model.embed_tokens", "lm_head"},
    "gpt2": {"transformer.wte", "transformer.wpe", "lm_head"},
    "bert": {f"embeddings.{n}_embeddings" for n in ("word", "position", "token_type")} | {"pooler.dense"},
    "modernbert": {"model.embeddings.tok_embeddings", "decoder"},
    "vit": {"classifier", "vit.embeddings.cls_token", "vit.embeddings.position_embeddings"},
    "whisper": {
        "model.encoder.embed_positions",
        "model.decoder.embed_tokens",
        "model.decoder.embed_positions",
        "proj_out",
    },
    "resnet": {"classifier.1"},
}


def test_gemmas_scaled_embedding_is_quantised(tmp_path):
    model = network("gemma3")
    batch = examples_of(model).draw(2)
    report = hybridkit.quantize(model, quantizer="nbit", options={"bits": 8}, embeddings=8)
    assert "model.embed_tokens" in report.packed.layers
    assert not {"model.embed_tokens", "lm_head"} & {each.name for each in report.left_alone}
    packed = load_packed(model, report.packed)
    with torch.no_grad():
        wanted, found = main_output(model(**batch)), main_output(packed(**batch))
    assert float((found - wanted).norm() / wanted.norm()) < 0.05
    exported = hybridkit.export(model, report.packed, tmp_path / "m.onnx", example_inputs=batch)
    assert exported.verification.max_rel < 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_trained_ternary_packed_and_exported(family, tmp_path):
    model = network(family)
    examples = examples_of(model)
    batch = examples.draw(2)
    hybridkit.prepare_qat_(model, quantizer="ternary-absmean", example_inputs=batch).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    target, losses = None, []
    for _ in range(10):
        found = main_output(model(**batch))
        target = torch.randn_like(found) * found.detach().std() if target is None else target
        loss = (found - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    packed = hybridkit.pack(model.eval())
    with torch.no_grad():
        trained, ran = main_output(model(**batch)), main_output(packed(**batch))
    torch.testing.assert_close(ran, trained, rtol=1e-4, atol=1e-4 * float(trained.abs().max()))
    long, short = examples.draw(3, seed=1), examples.draw(3, 5, seed=2)
    report = hybridkit.export(
        model,
        packed.packed,
        tmp_path / "m.onnx",
        example_inputs=batch,
        dynamic_axes=[examples.axes[name] for name in batch],
        validation=Validation(batches=[long, short]),
    )
    assert report.verification.samples == 6
    assert report.file_bytes < report.fp32_bytes
    alone = {name: x[:1] for name, x in short.items()}  # the verification saw no batch of one
    got = session(tmp_path / "m.onnx", threads=1).run(None, {n: x.numpy() for n, x in alone.items()})
    with torch.no_grad():
        wanted = named_outputs(packed(**alone)).values()
    for array, tensor in zip(got, wanted, strict=True):
        np.testing.assert_allclose(array, tensor.numpy(), atol=2e-2 * float(tensor.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_quantised_in_groups_from_its_file(family, tmp_path, capsys, monkeypatch):
    """The same bits as from the network in memory, and a table that names every layer."""
    monkeypatch.setenv("COLUMNS", "200")  # long names are cut in a narrow terminal
    model = write(family, tmp_path / "model")
    capsys.readouterr()
    assert open_source(str(tmp_path / "model")).streamed()[1] is not None, "it was loaded"
    flags = ["--quantizer", "nbit", "--set", "quantizer.bits=4", "--set", "quantizer.group_size=32"]
    target = tmp_path / "m.hk.safetensors"
    assert run(["quantize", str(tmp_path / "model"), "-o", str(target), *flags]) == 0
    printed = capsys.readouterr()
    assert not printed.err, "transformers talks"
    packed = PackedModel.load(target)
    report = hybridkit.quantize(model, quantizer=IN_GROUPS)
    assert {x.name for x in report.left_alone} == ALONE[family]
    assert all(x.reason for x in report.left_alone)
    kinds = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding
    layers = {n for n, m in model.named_modules() if isinstance(m, kinds) or type(m).__name__ == "Conv1D"}
    assert layers <= set(packed.layers) | ALONE[family]
    assert all(name in printed.out for name in layers | ALONE[family])
    assert set(packed.layers) == set(report.packed.layers)
    for name, layer in packed.layers.items():
        other = report.packed.layers[name]
        assert layer.group_size == 32 or layer.matrix_shape[1] % 32
        assert np.array_equal(layer.codes, other.codes)
        assert np.array_equal(layer.scale, other.scale)
    batch = examples_of(model).draw(2)
    with torch.no_grad():
        wanted, found = main_output(model(**batch)), main_output(load_packed(model, packed)(**batch))
    assert float((found - wanted).norm() / wanted.norm()) < 0.3
