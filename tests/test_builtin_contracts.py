"""Every built-in strategy keeps the contract of its kind."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hybridkit import builtins, testing
from hybridkit.hookspecs import Kind
from hybridkit.quant.post_training import quantize_to_file
from hybridkit.registry import registry
from hybridkit.sources.protocol import Code
from hybridkit.tasks.models.transformer import Shape, Transformer
from hybridkit.training.config import resolve
from hybridkit.training.loop import train
from hybridkit.training.network import takes_pretrained


def builtin(kind: Kind) -> list[str]:
    return [s.name for s in builtins.hybridkit_strategies() if s.kind == kind]


def variants(
    kind: Kind, extra: Mapping[str, Mapping[str, Any]] | None = None, without: Collection[str] = ()
) -> Any:
    """A fixture that sets `self.name` and `self.options` to each built-in, and to variants `name+label`."""
    cases: dict[str, Mapping[str, Any]] = {name: {} for name in builtin(kind) if name not in without}
    cases |= extra or {}

    @pytest.fixture(autouse=True, params=cases.items(), ids=list(cases))
    def choose(self, request):
        label, self.options = request.param
        self.name = label.partition("+")[0]

    return choose


class TestLRControllers(testing.LRControllerContract):
    choose = variants("lr_controller")

    def make(self):
        return registry().create("lr_controller", f"hybridkit:{self.name}", self.options)


class TestClusterers(testing.ClustererContract):
    choose = variants("clusterer", {"kmeans+3": {"n_clusters": 3}})

    def make(self):
        return registry().create("clusterer", f"hybridkit:{self.name}", self.options)


class TestConstraints(testing.ConstraintContract):
    choose = variants("constraint")

    def make(self):
        return registry().create("constraint", f"hybridkit:{self.name}", self.options)


class TestQuantizers(testing.QuantizerContract):
    choose = variants("quantizer")

    def make(self):
        return registry().create("quantizer", f"hybridkit:{self.name}", self.options)


class TestOptimizers(testing.OptimizerContract):
    choose = variants("optimizer")

    @property
    def lr(self):
        return 0.001 if self.name == "steepest" else 0.02  # whose unit is relative: 6 % of a matrix a step

    def make(self):
        return registry().create("optimizer", f"hybridkit:{self.name}", self.options)


class TestExporters(testing.ExporterContract):
    choose = variants("exporter", without=["gguf", "genai", "hf"])  # test_genai.py, test_bitnet.py

    def make(self):
        return registry().create("exporter", f"hybridkit:{self.name}", self.options)

    @property
    def packs(self):
        return self.name != "fp32"


class TestGgufExporter(testing.ExporterContract):
    def make(self):
        return registry().create("exporter", "hybridkit:gguf", {"floats": "F32"})

    def network(self):
        return Transformer(Shape(width=128, layers=2, heads=4, kv_heads=2, hidden=256))

    def batch(self, samples, generator):
        return torch.randint(0, 256, (samples, 12), generator=generator)


class TestTasks(testing.TaskContract):
    # those of pretrained networks, which need one: tests/tasks/test_pretrained_tasks.py
    choose = variants("task", without=[name for name in builtin("task") if takes_pretrained(name)])

    @pytest.fixture(autouse=True)
    def _little_data(self, choose, tmp_path):
        if self.name == "fashion-mnist":  # not installed everywhere
            write_images(tmp_path)
            self.options = {"data_dir": str(tmp_path)}

    def make(self):
        return registry().create("task", f"hybridkit:{self.name}", self.options)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


class TestSources(testing.SourceContract):
    choose = variants("source")
    code = Code(otherwise=network)

    def make(self):
        return registry().create("source", f"hybridkit:{self.name}", self.options)

    def example(self, folder):
        return getattr(self, f"_{self.name}")(folder)

    def _onnx(self, folder):
        (folder / "model.onnx").write_bytes(bytes(200))
        return str(folder / "model.onnx")

    def _packed(self, folder):
        quantize_to_file(network(), folder / "model.hk.safetensors")
        return str(folder / "model.hk.safetensors")

    def _weights(self, folder):
        save_file(network().state_dict(), folder / "model.safetensors")
        return str(folder / "model.safetensors")

    def _pretrained(self, folder):
        from transformers import BertConfig, BertModel

        torch.manual_seed(0)
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        BertModel(BertConfig(vocab_size=9, max_position_embeddings=9, **sizes)).save_pretrained(folder / "m")
        return str(folder / "m")

    def _run(self, folder):
        config = resolve(max_steps=1, ternary=True, threads=1)
        return str(train(config, run_dir=folder).run.path)

    def _module(self, folder):
        return f"{__name__}:network"


def write_images(folder: Path) -> None:
    """Fashion-MNIST's four files with a few images of noise."""
    random = np.random.default_rng(0)
    for part, samples in (("train", 240), ("t10k", 40)):
        images = random.integers(0, 256, (samples, 28, 28), np.uint8)
        labels = (np.arange(samples) % 10).astype(np.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (folder / name).write_bytes(header + array.tobytes())
