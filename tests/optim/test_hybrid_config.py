"""HybridTrainingConfig: names, defaults, validation."""

from __future__ import annotations

import dataclasses
import math

import pytest

from hybridkit.ancestor.config import HybridTrainingConfig, get_default_config
from hybridkit.errors import UsageError

DEFAULTS = {
    "use_quantization": True,
    "quantizer_scale": 1.0,
    "target_bits": 1.58,
    "use_clustering": True,
    "data_clusters": 8,
    "parameter_clusters": 4,
    "use_auxiliary_nn": True,
    "auxiliary_nn_hidden_size": 16,
    "auxiliary_nn_learning_rate": 1e-3,
    "use_trust_region": True,
    "initial_trust_radius": 0.01,
    "trust_radius_adaptation": True,
    "base_learning_rate": 1e-3,
    "max_steps": 1000,
    "batch_size": 32,
    "momentum": 0.9,
    "weight_decay": 1e-5,
    "log_interval": 10,
    "eval_interval": 50,
}


def test_names_and_defaults():
    assert dataclasses.asdict(get_default_config()) == DEFAULTS


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize("value", [-1, math.nan, "many", None])
def test_every_field_is_checked(name, value):
    with pytest.raises(UsageError, match=f"^{name} has to be"):
        HybridTrainingConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("momentum", 1.0), ("target_bits", 3), ("batch_size", 0), ("data_clusters", 2.5)]
)
def test_limits(name, value):
    with pytest.raises(UsageError, match=f"^{name} has to be"):
        HybridTrainingConfig(**{name: value})
