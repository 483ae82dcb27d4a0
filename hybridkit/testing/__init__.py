"""Contract tests that the author of a strategy inherits.

    from hybridkit.testing import LRControllerContract

    class TestMine(LRControllerContract):
        def make(self):
            return Mine()

`pytest` then runs every promise that hybridkit relies on against `Mine`. The built-in strategies pass the
same tests. Each contract says in its docstring what `make` returns and which attributes may be overridden.
"""

from hybridkit.testing.clusterer import ClustererContract
from hybridkit.testing.constraint import ConstraintContract
from hybridkit.testing.exporter import ExporterContract
from hybridkit.testing.lr_controller import LRControllerContract
from hybridkit.testing.optimizer import OptimizerContract
from hybridkit.testing.quantizer import QuantizerContract
from hybridkit.testing.task import TaskContract

__all__ = [
    "ClustererContract",
    "ConstraintContract",
    "ExporterContract",
    "LRControllerContract",
    "OptimizerContract",
    "QuantizerContract",
    "TaskContract",
]
