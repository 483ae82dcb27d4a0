"""Lightning's Trainer with hybridkit's optimizer and fake-quantised layers.

class Text(lightning.LightningModule):
    def configure_optimizers(self):
        return hybridkit.hybrid_optimizer(self.network)

lightning.Trainer(callbacks=[HybridCallback()], max_steps=1000).fit(Text(), batches)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors.torch import save_file
from torch import Tensor, nn

from hybridkit.errors import UsageError
from hybridkit.integrations.folders import save_pretrained
from hybridkit.integrations.rules import Quantization, agree_on_length, check_schedule, hybrid_in
from hybridkit.optim.hybrid import HybridOptimizer
from hybridkit.packing.atomic import remove, temporary_beside
from hybridkit.quant.layers import qat_layers
from hybridkit.quant.recorded import write_record

SUFFIX = ".hybridkit"


class HybridCallback(Callback):  # type: ignore[misc]
    """Observes the loss for a HybridOptimizer, sets the ramp, writes the network beside checkpoints.

    For networks with fake-quantised layers or without, with a HybridOptimizer or another optimizer.
    The loss is what Lightning differentiates, its mean over accumulated batches and over processes. Beside
    NAME.ckpt, which is a pickle, lies a folder NAME.hybridkit with the network's weights as safetensors and
    hybridkit.json; what has `save_pretrained` is written by it.

    Args:
        network: the attribute of the LightningModule that holds the network; None: the one that holds all
            fake-quantised layers, or the module itself where there are several.
        ramp: over which share of the run layers go from full precision to quantised; None: 0.8 with a
            HybridOptimizer, else 0.

    Raises:
        UsageError: when training begins, where a learning-rate scheduler would multiply the optimizer's own
            schedule, optimizer and trainer differ about the number of steps, or there are several
            HybridOptimizers (observe the losses yourself then).
    """

    def __init__(self, network: str | None = None, ramp: float | None = None) -> None:
        self.network, self.ramp = network, ramp
        self._optimizer: HybridOptimizer | None = None
        self._quantization: Quantization | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the network beside every checkpoint from now on."""
        if stage != "fit" or isinstance(trainer.strategy.checkpoint_io, _Beside):
            return
        name = _attribute(pl_module) if self.network is None else self.network
        self._quantization = Quantization(pl_module.get_submodule(name), self.ramp)
        inner = trainer.strategy.checkpoint_io
        trainer.strategy.checkpoint_io = _Beside(
            inner, self._quantization.network, f"{name}." if name else ""
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the optimizer, and tell it how long the run is."""
        found = [hybrid for optimizer in trainer.optimizers if (hybrid := hybrid_in(optimizer)) is not None]
        if len(found) > 1:
            raise UsageError("several HybridOptimizers: this callback cannot know whose loss is which")
        self._optimizer = found[0] if found else None
        if trainer.lr_scheduler_configs:
            check_schedule(self._optimizer, "return no scheduler from configure_optimizers")
        agree_on_length(self._optimizer, trainer.global_step, trainer.estimated_stepping_batches)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the ramp for the coming step."""
        assert self._quantization is not None  # `setup` comes first
        hybrid = self._optimizer is not None
        self._quantization.before_step(trainer.global_step, trainer.estimated_stepping_batches, hybrid)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Observe the loss, which Lightning has divided by the accumulated batches, and scaled for fp16."""
        if self._optimizer is None:
            return
        loss = loss.detach() * trainer.accumulate_grad_batches
        if (scaler := getattr(trainer.precision_plugin, "scaler", None)) is not None:
            loss = loss / scaler.scale(torch.ones_like(loss))
        self._optimizer.observe(trainer.strategy.reduce(loss, reduce_op="mean"))


def _attribute(module: nn.Module) -> str:
    """The name of the one child of `module` that holds fake-quantised layers; "" where it is not one."""
    names = [name for name, child in module.named_children() if qat_layers(child)]
    return names[0] if len(names) == 1 else ""


class _Beside(CheckpointIO):  # type: ignore[misc]
    """Another CheckpointIO, with the quantised network in a folder beside each file."""

    def __init__(self, inner: CheckpointIO, network: nn.Module, prefix: str) -> None:
        self.inner, self.network, self.prefix = inner, network, prefix

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.inner.save_checkpoint(checkpoint, path, storage_options=storage_options)
        if "://" not in str(path) and qat_layers(self.network):
            state = checkpoint["state_dict"]
            own = {n.removeprefix(self.prefix): t for n, t in state.items() if n.startswith(self.prefix)}
            _write(self.network, own, Path(path).with_suffix(SUFFIX))

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        return self.inner.load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: Any) -> None:
        self.inner.remove_checkpoint(path)
        remove(Path(path).with_suffix(SUFFIX))

    def teardown(self) -> None:
        self.inner.teardown()


def _write(network: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    """Write weights and record into `folder`, which appears whole."""
    unfinished = temporary_beside(folder)
    unfinished.mkdir(parents=True)
    try:
        if hasattr(network, "save_pretrained"):
            save_pretrained(network, unfinished, state_dict=dict(state))
        else:
            once = {(t.data_ptr(), t.shape): name for name, t in state.items()}  # what is tied
            stored = {name: state[name].contiguous() for name in once.values()}
            save_file(stored, unfinished / "model.safetensors")
            write_record(network, unfinished)
        remove(folder)
        os.rename(unfinished, folder)
    finally:
        remove(unfinished)
