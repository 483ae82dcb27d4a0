"""The configuration of hybrid training as one data class."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from hybridkit.errors import UsageError

BITS = (1.0, 1.58, 2.0, 4.0, 8.0)


@dataclass
class HybridTrainingConfig:
    """What `HybridOptimizationManager` does, and how.

    Raises UsageError, naming the field, for a value that makes no sense.

    use_quantization: report the quantisation error of the weights in the summary. Training itself is
        quantised by preparing the model with `prepare_qat`.
    quantizer_scale: factor on the quantizer's own scale.
    target_bits: bits per weight: 1, 1.58 (ternary), 2, 4 or 8.
    use_clustering: draw batches from clusters of the data, and cluster the parameters.
    data_clusters, parameter_clusters: how many clusters at most.
    use_auxiliary_nn: let a controller set the multiplier: the one of `--hybrid`, which measurement chose
        over the auxiliary network; off: multiplier 1.
    auxiliary_nn_hidden_size, auxiliary_nn_learning_rate: of the auxiliary network, which is used where one
        of them is not its default.
    use_trust_region: bound every update in l2.
    initial_trust_radius: the bound at the first step.
    trust_radius_adaptation: whether the bound follows the size of the updates.
    base_learning_rate, momentum, weight_decay: of the base optimizer.
    max_steps: length of the run; the learning rate has fallen to zero by then. 0: unknown, it does not fall.
    batch_size: samples per batch, for callers that read it.
    log_interval: a line in the log every so many steps; 0: none.
    eval_interval: steps between evaluations, for callers that read it.
    """

    use_quantization: bool = True
    quantizer_scale: float = 1.0
    target_bits: float = 1.58
    use_clustering: bool = True
    data_clusters: int = 8
    parameter_clusters: int = 4
    use_auxiliary_nn: bool = True
    auxiliary_nn_hidden_size: int = 16
    auxiliary_nn_learning_rate: float = 1e-3
    use_trust_region: bool = True
    initial_trust_radius: float = 0.01
    trust_radius_adaptation: bool = True
    base_learning_rate: float = 1e-3
    max_steps: int = 1000
    batch_size: int = 32
    momentum: float = 0.9
    weight_decay: float = 1e-5
    log_interval: int = 10
    eval_interval: int = 50

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self) if f.name.startswith("use_")):
            self._require(name, isinstance(getattr(self, name), bool), "True or False")
        self._require(
            "trust_radius_adaptation", isinstance(self.trust_radius_adaptation, bool), "True or False"
        )
        for name in ("data_clusters", "parameter_clusters", "auxiliary_nn_hidden_size", "batch_size"):
            self._require(name, _is_whole(getattr(self, name), 1), "a whole number of at least 1")
        for name in ("max_steps", "log_interval", "eval_interval"):
            self._require(name, _is_whole(getattr(self, name), 0), "a whole number of at least 0")
        for name in ("quantizer_scale", "initial_trust_radius"):
            self._require(
                name, _is_number(getattr(self, name)) and getattr(self, name) > 0, "a positive number"
            )
        for name in ("auxiliary_nn_learning_rate", "base_learning_rate", "weight_decay"):
            self._require(
                name, _is_number(getattr(self, name)) and getattr(self, name) >= 0, "a number of at least 0"
            )
        self._require(
            "momentum", _is_number(self.momentum) and 0 <= self.momentum < 1, "at least 0 and below 1"
        )
        self._require("target_bits", self.target_bits in BITS, "one of 1, 1.58, 2, 4, 8")

    @property
    def network(self) -> dict[str, float]:
        """Options of the auxiliary network; empty where all are the defaults."""
        options = {
            "hidden_size": self.auxiliary_nn_hidden_size,
            "learning_rate": self.auxiliary_nn_learning_rate,
        }
        return {} if tuple(options.values()) == (16, 1e-3) else options

    def _require(self, name: str, fine: bool, wanted: str) -> None:
        if not fine:
            raise UsageError(f"{name} has to be {wanted}, not {getattr(self, name)!r}")


def get_default_config() -> HybridTrainingConfig:
    """The defaults."""
    return HybridTrainingConfig()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
