"""Contract tests that the author of a strategy inherits.

    from hybridkit.testing import LRControllerContract

    class TestMine(LRControllerContract):
        def make(self):
            return Mine()

`pytest` then runs every promise that hybridkit relies on against `Mine`. The built-in strategies pass the
same tests. Each contract says in its docstring what `make` returns and which attributes may be overridden.
Each is loaded on first use: a controller's tests do not import ONNX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridkit.testing.clusterer import ClustererContract as ClustererContract
    from hybridkit.testing.constraint import ConstraintContract as ConstraintContract
    from hybridkit.testing.exporter import ExporterContract as ExporterContract
    from hybridkit.testing.lr_controller import LRControllerContract as LRControllerContract
    from hybridkit.testing.optimizer import OptimizerContract as OptimizerContract
    from hybridkit.testing.quantizer import QuantizerContract as QuantizerContract
    from hybridkit.testing.sink import MetricSinkContract as MetricSinkContract
    from hybridkit.testing.source import SourceContract as SourceContract
    from hybridkit.testing.task import TaskContract as TaskContract

_MODULES = {
    "ClustererContract": "clusterer",
    "ConstraintContract": "constraint",
    "ExporterContract": "exporter",
    "LRControllerContract": "lr_controller",
    "MetricSinkContract": "sink",
    "OptimizerContract": "optimizer",
    "QuantizerContract": "quantizer",
    "SourceContract": "source",
    "TaskContract": "task",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'hybridkit.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hybridkit.testing.{_MODULES[name]}"), name)
