"""hybridkit: train networks with 1.58-bit and 1-bit weights and ship them as files that run anywhere.

Every public name is loaded on first use (PEP 562), so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "HybridTrainingConfig": "hybridkit.ancestor.config",
    "get_default_config": "hybridkit.ancestor.config",
    "hybrid_optimizer": "hybridkit.optim.factory",
    "HybridOptimizer": "hybridkit.optim.hybrid",
    "HybridOptimizationManager": "hybridkit.ancestor.manager",
    "create_hybrid_optimizer": "hybridkit.ancestor.manager",
    "TrainingState": "hybridkit.optim.protocol",
    "AuxiliaryNeuralNetwork": "hybridkit.ancestor.auxiliary_network",
    "ConstrainedOptimizer": "hybridkit.ancestor.constrained",
    "ConstrainedUpdateInfo": "hybridkit.ancestor.constrained",
    "KMeansClustering": "hybridkit.ancestor.kmeans",
    "QuantConfig": "hybridkit.quant.config",
    "prepare_qat": "hybridkit.quant.prepare",
    "prepare_qat_": "hybridkit.quant.prepare",
    "convert": "hybridkit.quant.convert",
    "quantize": "hybridkit.quant.post_training",
    "PackedModel": "hybridkit.packing.model",
    "PackedNetwork": "hybridkit.runtime.network",
    "load_packed": "hybridkit.runtime.modules",
    "pack": "hybridkit.runtime.network",
    "export": "hybridkit.exporting",
    "Strategy": "hybridkit.hookspecs",
    "hookimpl": "hybridkit.hookspecs",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hybridkit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
