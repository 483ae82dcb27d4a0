"""The examples of docs/integrations.md train ternary weights on real text, and their checkpoints pack."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from hybridkit.cli import run
from hybridkit.packing.model import PackedModel
from hybridkit.quant.layers import qat_layers
from hybridkit.runtime.modules import load_packed

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Runs an example of the page in a folder of its own and gives its variables."""
    for name, code in re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "common", raising=False)
    yield lambda name: runpy.run_path(str(tmp_path / name))
    sys.modules.pop("common", None)


def check(losses, network, source, capfd):
    """The loss fell, layers are ternary, and what `source` packs to answers as the trained network does."""
    losses = [float(loss) for loss in losses]
    assert sum(losses[-4:]) < 0.75 * sum(losses[:4])
    assert {layer.quantizer_name for layer in qat_layers(network).values()} == {"ternary-absmean"}
    capfd.readouterr()
    assert run(["quantize", str(source), "-o", "packed.hk.safetensors"]) == 0
    packed = PackedModel.load("packed.hk.safetensors")
    assert all(layer.bits < 1.59 for layer in packed.layers.values())
    tokens = torch.arange(64).view(2, 32)
    network.eval()
    fresh = sys.modules["common"].network()
    with torch.no_grad():
        expected = network(tokens).logits
        assert torch.allclose(load_packed(fresh, packed)(tokens).logits, expected, atol=1e-4)
        assert not torch.allclose(fresh(tokens).logits, expected, atol=1e-2)


def test_the_trainer_of_transformers(example, capfd):
    ran = example("with_trainer.py")
    losses = [entry["loss"] for entry in ran["trainer"].state.log_history if "loss" in entry]
    check(losses, ran["model"], Path("out/checkpoint-40"), capfd)


def test_lightning(example, capfd):
    pytest.importorskip("lightning")
    ran = example("with_lightning.py")
    (folder,) = Path("out/checkpoints").glob("*.hybridkit")
    check(ran["module"].losses, ran["module"].network, folder, capfd)


def test_accelerate(example, capfd):
    ran = example("with_accelerate.py")
    assert ran["hybrid"].step_number == 48
    check(ran["losses"], ran["accelerator"].unwrap_model(ran["model"]), Path("out"), capfd)
