"""The model that inference is measured on where no file is given: trained and exported for it."""

from __future__ import annotations

from pathlib import Path

from hybridkit.bench.convergence.trials import Trial, trained


def export_trained(trial: Trial, path: str) -> None:
    """Train as `trial` says and export the packed network to `path`, verified.

    Raises as training and `hybridkit.export` do.
    """
    from hybridkit.exporting import Validation, export
    from hybridkit.quant.convert import convert
    from hybridkit.training.evaluation import batches
    from hybridkit.training.network import example_batch
    from hybridkit.training.packed import about

    trainer = trained(trial)
    task = trainer.task
    metadata = about(trainer.config, task, commit=None)
    export(
        trainer.model.eval(),
        convert(trainer.model, metadata=metadata),
        Path(path),
        example_inputs=task.inputs(example_batch(task, 2)),
        input_names=task.input_names,
        dynamic_axes=task.dynamic_axes,
        validation=Validation(
            batches=list(batches(task, task.splits().validation, 256)), inputs=task.inputs, loss=task.loss
        ),
        metadata=metadata,
    )
