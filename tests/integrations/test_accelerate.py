"""A loop of accelerate's: the optimizer inside the wrapper, skipped steps, saved and restored states."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from tiny_llama import tiny_llama
from torch.utils.data import DataLoader

import hybridkit
from hybridkit.cli import run
from hybridkit.integrations.rules import hybrid_in
from hybridkit.packing.model import PackedModel
from hybridkit.quant.recorded import write_record
from hybridkit.runtime.modules import load_packed


class Loop:
    """Two batches to a step."""

    def __init__(self, blocks):
        self.accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
        model = hybridkit.prepare_qat(tiny_llama())
        self.hybrid = hybridkit.hybrid_optimizer(model, max_steps=6)
        prepared = self.accelerator.prepare(model, self.hybrid, DataLoader(blocks, batch_size=4))
        self.model, self.optimizer, self.batches = prepared

    def run(self, epochs):
        losses = []
        for _ in range(epochs):
            for batch in self.batches:
                with self.accelerator.accumulate(self.model):
                    loss = self.model(**batch).loss
                    self.hybrid.observe(loss)
                    self.accelerator.backward(loss)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                losses.append(float(loss.detach()))
        return losses


def test_a_step_that_was_skipped_counts_in_the_mean(blocks):
    loop = Loop(blocks[:8])
    losses = loop.run(1)
    assert hybrid_in(loop.optimizer) is loop.hybrid
    assert loop.hybrid.step_number == 1
    assert loop.hybrid.last_step["loss"] == pytest.approx(sum(losses) / 2)


def test_a_state_that_accelerate_saved_goes_on_and_packs(blocks, tmp_path, monkeypatch):
    whole = Loop(blocks[:16])
    whole.run(1)
    whole.accelerator.save_state(str(tmp_path))
    expected = whole.run(2)
    resumed = Loop(blocks[:16])
    resumed.run(1)  # other states than those that are loaded
    resumed.accelerator.load_state(str(tmp_path))
    assert resumed.run(2) == expected

    resumed.accelerator.load_state(str(tmp_path))
    model = resumed.accelerator.unwrap_model(resumed.model).eval()
    write_record(model, tmp_path)
    (tmp_path / "llama_factory.py").write_text("from tiny_llama import tiny_llama\n")
    monkeypatch.chdir(tmp_path)
    assert (
        run(
            [
                "quantize",
                "model.safetensors",
                "--model",
                "llama_factory:tiny_llama",
                "-o",
                "out.hk.safetensors",
            ]
        )
        == 0
    )
    tokens = torch.arange(32).view(1, 32)
    with torch.no_grad():
        packed = load_packed(tiny_llama(), PackedModel.load("out.hk.safetensors"))
        assert torch.allclose(packed(tokens).logits, model(tokens).logits, atol=1e-4)
