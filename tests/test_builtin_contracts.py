"""Every built-in strategy keeps the contract of its kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybridkit import builtins, testing
from hybridkit.hookspecs import Kind
from hybridkit.registry import registry


def builtin(kind: Kind) -> list[str]:
    return [s.name for s in builtins.hybridkit_strategies() if s.kind == kind]


def variants(kind: Kind, extra: Mapping[str, Mapping[str, Any]] | None = None) -> Any:
    """A fixture that sets `self.name` and `self.options` to each built-in, and to variants `name+label`."""
    cases: dict[str, Mapping[str, Any]] = {name: {} for name in builtin(kind)} | dict(extra or {})

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
    choose = variants("exporter")

    def make(self):
        return registry().create("exporter", f"hybridkit:{self.name}", self.options)

    @property
    def packs(self):
        return self.name != "fp32"


class TestTasks(testing.TaskContract):
    choose = variants("task")

    @pytest.fixture(autouse=True)
    def _little_data(self, choose, tmp_path):
        if self.name == "fashion-mnist":  # not installed everywhere
            write_images(tmp_path)
            self.options = {"data_dir": str(tmp_path)}

    def make(self):
        return registry().create("task", f"hybridkit:{self.name}", self.options)


def write_images(folder: Path) -> None:
    """Fashion-MNIST's four files with a few images of noise."""
    random = np.random.default_rng(0)
    for part, samples in (("train", 240), ("t10k", 40)):
        images = random.integers(0, 256, (samples, 28, 28), np.uint8)
        labels = (np.arange(samples) % 10).astype(np.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (folder / name).write_bytes(header + array.tobytes())
