"""The model that inference is measured on where no file is given: trained and exported for it."""

from __future__ import annotations

from pathlib import Path

from hybridkit.bench.convergence.trials import Trial, trained


def export_trained(trial: Trial, path: str) -> None:
    """Train as `trial` says and export the packed network to `path`, verified.

    Raises as training and `hybridkit.export` do.
    """
    from hybridkit.exporting import export
    from hybridkit.exporting.subject import subject_of
    from hybridkit.quant.convert import convert
    from hybridkit.training.packed import about

    trainer = trained(trial)
    metadata = about(trainer.config, trainer.task, commit=None)
    subject = subject_of(trainer.task)
    export(
        trainer.model.eval(),
        convert(trainer.model, metadata=metadata),
        Path(path),
        example_inputs=subject.example_inputs,
        input_names=subject.input_names,
        dynamic_axes=subject.dynamic_axes,
        validation=subject.validation,
        metadata=metadata,
    )
