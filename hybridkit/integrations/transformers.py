"""The Trainer of transformers with hybridkit's optimizer and fake-quantised layers.

network = hybridkit.prepare_qat(network)
optimizer = hybridkit.hybrid_optimizer(network)
arguments = TrainingArguments(..., lr_scheduler_type="constant")
trainer = Trainer(network, arguments, train_dataset=..., optimizers=(optimizer, None))
trainer.add_callback(HybridCallback(trainer))
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hybridkit.errors import UsageError
from hybridkit.integrations.folders import tied_steps
from hybridkit.integrations.rules import Quantization, agree_on_length, check_schedule, hybrid_in
from hybridkit.quant.layers import qat_layers
from hybridkit.quant.recorded import write_record


class HybridCallback(TrainerCallback):  # type: ignore[misc]
    """Observes the loss for a HybridOptimizer, sets the ramp, notes in checkpoints how they are quantised.

    The loss is what `trainer.training_step` returns: what is differentiated, label smoothing and a loss
    function of the user's included, summed over the batches of a step, its mean over the processes. Works
    without a HybridOptimizer, and without fake-quantised layers.

    Args:
        trainer: made with `optimizers=(optimizer, None)` and `lr_scheduler_type="constant"`.
        ramp: over which share of the run layers go from full precision to quantised; None: 0.8 with a
            HybridOptimizer, else 0.

    Raises:
        UsageError: where a schedule of the trainer's would multiply the optimizer's, or its optimizer would
            decay what quantizers learn; when training begins, where optimizer and trainer differ about
            the number of steps.
    """

    def __init__(self, trainer: Trainer, ramp: float | None = None) -> None:
        self.trainer = trainer
        self.quantization = Quantization(trainer.model, ramp)
        self._loss: Tensor | None = None
        self._check(trainer.args)
        trainer.training_step = self._summing(trainer.training_step)
        trainer.save_model = self._recording(trainer.save_model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the optimizer how long the run is."""
        self._loss = None
        agree_on_length(hybrid_in(self.trainer.optimizer), state.global_step, state.max_steps)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the ramp for the coming step."""
        hybrid = hybrid_in(self.trainer.optimizer) is not None
        self.quantization.before_step(state.global_step, state.max_steps, hybrid)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Observe the step's loss."""
        optimizer = hybrid_in(self.trainer.optimizer)
        if optimizer is not None and self._loss is not None:
            optimizer.observe(self.trainer.accelerator.reduce(self._loss, reduction="mean"))
        self._loss = None

    def _check(self, args: TrainingArguments) -> None:
        trainer, optimizer = self.trainer, hybrid_in(self.trainer.optimizer)
        if trainer.lr_scheduler is not None or args.lr_scheduler_type != "constant":
            check_schedule(optimizer, 'say optimizers=(optimizer, None) and lr_scheduler_type="constant"')
        learned = any(layer.quantizer_parameters for layer in qat_layers(trainer.model).values())
        if trainer.optimizer is None and args.weight_decay and learned:
            raise UsageError(
                "the Trainer's own optimizer would decay the steps that the quantizers learn; say "
                "weight_decay=0, or hand over an optimizer: optimizers=(optimizer, None)"
            )

    def _summing(self, training_step: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(training_step)
        def step(*args: Any, **kwargs: Any) -> Tensor:
            loss = training_step(*args, **kwargs)
            self._loss = loss if self._loss is None else self._loss + loss
            return loss

        return step

    def _recording(self, save_model: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(save_model)
        def save(output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
            with tied_steps(self.trainer.model):
                save_model(output_dir, *args, **kwargs)
            if self.trainer.args.should_save:
                write_record(self.trainer.model, output_dir or self.trainer.args.output_dir)

        return save
