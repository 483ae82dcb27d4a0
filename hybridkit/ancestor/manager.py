"""HybridOptimizationManager: one object that owns the step of `hybrid_optimizer`."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hybridkit.ancestor.config import HybridTrainingConfig
from hybridkit.ancestor.gradients import Gradients, set_gradients
from hybridkit.ancestor.quantization_error import quantization_error, quantizer_for
from hybridkit.clustering.clusterers import fit_labels, make_clusterer
from hybridkit.errors import UsageError
from hybridkit.optim.factory import hybrid_optimizer
from hybridkit.optim.hybrid import HybridOptimizer
from hybridkit.tasks.data import take

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=Optimizer)

_BLOCK = 8192  # samples that are fetched at a time

METRICS = (
    "loss",
    "learning_rate",
    "lr_multiplier",
    "trust_radius",
    "update_magnitude",
    "constraint_active",
    "gradient_magnitude",
)


class HybridOptimizationManager:
    """Owns the optimisation step: callers drop their own `optimizer.step()`.

        manager = HybridOptimizationManager(config)
        metrics = manager.optimization_step(model, loss)        # backward included

    Args:
        config: what to do; None: the defaults.
        optimizer: the base optimizer over the model's parameters; None: the one of `--hybrid`, made at the
            first step. A `HybridOptimizer` is used as it is.
    """

    def __init__(
        self, config: HybridTrainingConfig | None = None, optimizer: Optimizer | None = None
    ) -> None:
        self.config = config or HybridTrainingConfig()
        self.optimizer: HybridOptimizer | None = None
        self.metrics_history: list[dict[str, Any]] = []
        self._given = optimizer
        self._model: nn.Module | None = None
        self._labels: Tensor | None = None
        self._generator = torch.Generator().manual_seed(0)

    # --- the step

    def optimization_step(
        self,
        model: nn.Module,
        loss: Tensor | float,
        gradients: Gradients = None,
        cluster_id: int = -1,
        step: int = 0,
        base_lr: float | None = None,
    ) -> dict[str, Any]:
        """Take one step with every trainable parameter of `model`.

        Args:
            model: the same at every call.
            loss: of this batch; backward is called on it where no parameter has a gradient yet.
            gradients: None (take `p.grad`), a sequence or mapping of tensors, or a flat tensor of the total
                size; a one-element tensor is a statistic and `p.grad` drives. Gradients that the caller left
                in `p.grad` stay there; those that came from here are cleared after the step.
            cluster_id: data cluster of the batch, -1 for a mixed one.
            step: number of the step where the caller counts (a resumed run); lower numbers than were taken
                already are ignored.
            base_lr: learning rate before the multiplier, from this step on; None: as it is.

        Returns:
            `loss, learning_rate, lr_multiplier, trust_radius, update_magnitude, constraint_active,
            gradient_magnitude`.

        Raises:
            UsageError: for gradients in another form, or another model than before.
            NotFiniteError: if the loss or a gradient is not finite; nothing is changed then.
        """
        optimizer = self._prepare(model)
        if base_lr is not None:
            for group in optimizer.param_groups:
                group["lr"] = base_lr
        optimizer.step_number = max(optimizer.step_number, step)
        ours = set_gradients(model, loss, gradients)
        optimizer.observe(loss, cluster_id)
        try:
            optimizer.step()
        finally:
            if ours:
                optimizer.zero_grad(set_to_none=True)
        metrics = {name: optimizer.last_step.get(name, math.nan) for name in METRICS}
        self.metrics_history.append(metrics)
        taken = len(self.metrics_history)
        if optimizer.step_number == self.config.max_steps + 1 and metrics["lr_multiplier"] == 0:
            logger.warning("max_steps is over and the learning rate is 0; give the run's real length")
        if self.config.log_interval and taken % self.config.log_interval == 0:
            logger.info("step %d: %s", taken, ", ".join(f"{k} {v:.6g}" for k, v in metrics.items()))
        return dict(metrics)

    def get_summary(self) -> dict[str, Any]:
        """`final_loss, metrics_history, trust_radius, total_steps, avg_lr_multiplier,
        constraint_activation_rate` over all steps, and `quantization_error` of the model's matrices (None
        without `use_quantization` or before the first step). With an adapting radius the activation rate
        follows the rule's target share, 30 %, in the long run (see `RadiusRule`).
        """
        history = self.metrics_history
        count = max(len(history), 1)
        error = None
        if self.config.use_quantization and self._model is not None:
            quantizer = quantizer_for(self.config.target_bits, self.config.quantizer_scale)
            error = quantization_error(self._model.parameters(), quantizer)
        return {
            "final_loss": history[-1]["loss"] if history else math.nan,
            "metrics_history": [dict(m) for m in history],
            "trust_radius": history[-1]["trust_radius"] if history else self.config.initial_trust_radius,
            "total_steps": len(history),
            "avg_lr_multiplier": sum(m["lr_multiplier"] for m in history) / count if history else 1.0,
            "constraint_activation_rate": sum(m["constraint_active"] for m in history) / count,
            "quantization_error": error,
        }

    def _prepare(self, model: nn.Module) -> HybridOptimizer:
        if self.optimizer is None:
            self._model = model
            self.optimizer = self._build(model)
        elif model is not self._model:
            raise UsageError("this manager steps another model already; make one manager per model")
        return self.optimizer

    def _build(self, model: nn.Module) -> HybridOptimizer:
        if isinstance(self._given, HybridOptimizer):
            return _covering(self._given, model)
        config = self.config
        settings: dict[str, Any] = {}
        if self._given is not None:
            settings["optimizer"] = self._given
        if not config.use_auxiliary_nn:
            settings["lr_controller"] = None
        elif config.network:
            settings |= {"lr_controller": "aux-nn", "options": {"lr_controller": config.network}}
        if not config.use_trust_region:
            settings["constraint"] = None
        optimizer = hybrid_optimizer(
            model,
            config.max_steps,
            lr=config.base_learning_rate,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            parameter_clusters=config.parameter_clusters if config.use_clustering else 1,
            initial_trust_radius=config.initial_trust_radius,
            adapt_radius=config.trust_radius_adaptation,
            measure_updates=True,
            **settings,
        )
        return _covering(optimizer, model)

    # --- data clusters

    def setup_data_clustering(self, data: Any) -> None:
        """Cluster the samples of `data` (tensor, tuple of tensors or map-style Dataset) by k-means.

        The features are the first tensor of a sample, flattened. Without `use_clustering` all samples are in
        cluster 0.
        """
        size = _length(data)
        if not self.config.use_clustering or size == 0:
            self._labels = torch.zeros(size, dtype=torch.int64)
            return
        blocks = [take(data, range(i, min(i + _BLOCK, size))) for i in range(0, size, _BLOCK)]
        features = torch.cat([_first(b).detach().float().cpu().flatten(1) for b in blocks]).numpy()
        clusterer = make_clusterer("hybridkit:kmeans", self.config.data_clusters)
        self._labels = torch.from_numpy(np.asarray(fit_labels(clusterer, features, seed=0)))

    def get_cluster_batch(self, data: Any, batch_size: int, cluster_id: int) -> Any:
        """At most `batch_size` different samples of one cluster, drawn at random, in the structure of `data`.

        `cluster_id` -1 draws from all samples. Raises UsageError before `setup_data_clustering`, for data of
        another length, and for a cluster that does not exist.
        """
        if self._labels is None or len(self._labels) != _length(data):
            raise UsageError("call setup_data_clustering(data) with these data first")
        members = torch.arange(len(self._labels))
        if cluster_id != -1:
            members = (self._labels == cluster_id).nonzero().flatten()
        if batch_size < 1 or len(members) == 0:
            count = int(self._labels.max()) + 1 if len(self._labels) else 0
            raise UsageError(
                f"no batch of {batch_size} from cluster {cluster_id}; batches have at least one sample, and "
                f"clusters go from 0 to {count - 1} (-1: all)"
            )
        order = torch.randperm(len(members), generator=self._generator)[:batch_size]
        return take(data, members[order])


def create_hybrid_optimizer(config: HybridTrainingConfig | None = None) -> HybridOptimizationManager:
    """A manager with this configuration, or the default one."""
    return HybridOptimizationManager(config)


def _covering(optimizer: T, model: nn.Module) -> T:
    """The optimizer, if it updates every trainable parameter of the model."""
    held = {p for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p not in held]
    if missing:
        raise UsageError(f"the optimizer lacks {len(missing)} parameters of the model, {missing[0]!r} first")
    return optimizer


def _first(batch: Any) -> Tensor:
    """The first tensor of a batch, [samples, ...], at least two-dimensional."""
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0]
    return batch if batch.ndim > 1 else batch[:, None]


def _length(data: Any) -> int:
    return _length(data[0]) if isinstance(data, tuple) else len(data)
