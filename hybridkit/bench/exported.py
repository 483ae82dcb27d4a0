"""The model that inference is measured on where no file is given: trained and exported for it."""

from __future__ import annotations

from pathlib import Path

from hybridkit.bench.runs import RunSpec


def export_trained(spec: RunSpec, path: str) -> None:
    """Train as `spec` says and export the packed network to `path`, verified.

    Raises as training and `hybridkit.export` do.
    """
    from hybridkit.exporting import Validation, export
    from hybridkit.quant.convert import convert
    from hybridkit.training.evaluation import batches
    from hybridkit.training.network import example_batch
    from hybridkit.training.packed import about
    from hybridkit.training.trainer import Trainer

    config = spec.config()
    trainer = Trainer.seeded(config)
    while not trainer.done:
        trainer.step()
    task = trainer.task
    metadata = about(config, task, commit=None)
    export(
        trainer.model.eval(),
        convert(trainer.model, metadata=metadata),
        Path(path),
        example_inputs=task.inputs(example_batch(task, 2)),
        input_names=task.input_names,
        dynamic_axes=task.dynamic_axes,
        validation=Validation(
            batches=list(batches(task.splits().validation, 256)), inputs=task.inputs, loss=task.loss
        ),
        metadata=metadata,
    )
