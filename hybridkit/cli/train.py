"""`hybridkit train`: train a network, with hybrid optimisation and quantised weights."""

from __future__ import annotations

import inspect
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from hybridkit.cli._shared import (
    ConfigOption,
    JsonOption,
    SetOption,
    declared_options,
    emit_json,
    strategy_options,
)
from hybridkit.cli._sweep import Results, best_of, described, parse_steps, print_sweep, with_step
from hybridkit.cli._train_report import document, print_result, watched
from hybridkit.errors import UsageError
from hybridkit.sources.protocol import Code
from hybridkit.training.config import HYBRID, QUANT, RUN, TrainConfig, resolve

if TYPE_CHECKING:
    from hybridkit.training.loop import TrainResult

# What can be given with --resume, besides code that the run's configuration names.
_WITH_RESUME = frozenset(
    (
        *("epochs", "max_steps", "threads", "sink", "run_dir", "resume", "from_"),
        *("save_metrics", "metrics_out", "json", "trust_remote_code"),
    )
)


def command(
    ctx: typer.Context,
    learnable_scale: Annotated[
        bool,
        typer.Option("--learnable-scale", help="Train the ternary weights' scale.", rich_help_panel=QUANT),
    ] = False,
    relative_step: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="What a step changes of a matrix in 300 steps (0.06); several with commas, or sweep, train "
            "one run each.",
            rich_help_panel=HYBRID,
        ),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Where run folders are made (HYBRIDKIT_RUNS, else runs).",
            rich_help_panel=RUN,
        ),
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with an interrupted run.", rich_help_panel=RUN)
    ] = None,
    from_: Annotated[
        int | None,
        typer.Option(
            "--from", metavar="STEP", help="With --resume: the checkpoint to go on from.", rich_help_panel=RUN
        ),
    ] = None,
    save_metrics: Annotated[
        bool,
        typer.Option("--save-metrics", help="Write every logged value as CSV and JSON.", rich_help_panel=RUN),
    ] = False,
    metrics_out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Where to (a .csv, a .json, or a folder).", rich_help_panel=RUN),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, print sizes, train nothing.", rich_help_panel=RUN),
    ] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    json: JsonOption = False,
    **fields: Any,
) -> None:
    """Train a network, optionally with hybrid optimisation and quantised weights.

    `--ternary` alone quantises after training, `--qat` alone trains 1-bit weights, `--ternary --qat` trains
    ternary ones. The run folder holds configuration, metrics, checkpoints and the packed model.
    """
    flags = {**fields, "learnable_scale": learnable_scale}
    out = sys.stderr if json else sys.stdout
    elsewhere = os.environ.get("RANK", "0") != "0"  # another process of this run prints
    if resume is not None:
        _reject_with_resume(ctx)
        result = _resume(resume, from_, run_dir, flags, out)
        results: Results = [(None, result)]
    else:
        if from_ is not None:
            raise UsageError("--from STEP says which checkpoint --resume RUN goes on from; give both")
        steps, options = parse_steps(relative_step), strategy_options(ctx, set_)
        configs = [resolve(**flags, options=with_step(options, step)) for step in steps]
        if dry_run:
            _dry_run(configs[0], json)
            return
        results = list(zip(steps, (_train(config, run_dir, out) for config in configs), strict=True))
        result = best_of(results)
    if elsewhere:
        return
    written = _save_metrics(result, metrics_out) if save_metrics or metrics_out else []
    print_result(result, written, out)
    print_sweep(results, out)
    if json:
        emit_json("train", document(result, written) | _swept(results))


def _train(config: TrainConfig, run_dir: Path | None, out: TextIO) -> TrainResult:
    from hybridkit.training.loop import train

    return watched(out, lambda listener: train(config, run_dir=run_dir, on_event=listener))


def _swept(results: Results) -> dict[str, Any]:
    return {"sweep": described(results)} if len(results) > 1 else {}


def _signature() -> inspect.Signature:
    """The command's own parameters, and the declared fields of a run's configuration where they belong."""
    context, learnable_scale, relative_step, *own, _ = inspect.signature(
        command, eval_str=True
    ).parameters.values()
    beside = {"lr_controller": relative_step, "quantizer": learnable_scale}
    declared = [(option, beside.get(option.name)) for option in declared_options(TrainConfig)]
    return inspect.Signature([context, *(option for pair in declared for option in pair if option), *own])


command.__signature__ = _signature()  # type: ignore[attr-defined]


def _reject_with_resume(ctx: typer.Context) -> None:
    """A resumed run has its configuration; only its end, threads and repeated code names can be given."""
    for name, value in ctx.params.items():
        source = ctx.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE" or name in _WITH_RESUME:
            continue
        if isinstance(value, str) and ":" in value:
            continue  # repeats a package.module:attr that the run's configuration names
        flag = "--" + name.strip("_").replace("_", "-")
        raise UsageError(f"{flag}: a resumed run keeps its configuration; drop the flag")


def _resume(
    name: str, step: int | None, run_dir: Path | None, flags: dict[str, Any], out: TextIO
) -> TrainResult:
    from hybridkit.training.loop import resume
    from hybridkit.training.runs import find_run

    run, named_step = find_run(name, run_dir)
    if Path(name) == run.path.parent != run.path:
        print(f"The newest run there: {run.path}", file=out, flush=True)
    return watched(
        out,
        lambda listener: resume(
            run,
            step=named_step if step is None else step,
            epochs=flags["epochs"],
            max_steps=flags["max_steps"],
            threads=flags["threads"],
            sink=flags["sink"] or None,
            trusted=Code(also=_named_code(flags), remote=flags["trust_remote_code"]),
            on_event=listener,
        ),
    )


def _named_code(flags: dict[str, Any]) -> set[str]:
    """Every package.module:attribute among the flags."""
    values = (value for given in flags.values() for value in (given if isinstance(given, list) else [given]))
    texts = (text for value in values if isinstance(value, str) for text in value.split(","))
    return {text.strip() for text in texts if ":" in text}


def _save_metrics(result: TrainResult, destination: Path | None) -> list[Path]:
    from hybridkit.training.metrics import read_records, save_metrics

    run = result.run
    return save_metrics(destination or run.path, read_records(run.metrics_path), run.about())


def _dry_run(config: TrainConfig, json: bool) -> None:
    from hybridkit.training.estimate import estimate

    expected = estimate(config)
    if json:
        emit_json(
            "train",
            {
                "dry_run": True,
                "config": config,
                "plan": asdict(expected) | {"quantised_weights": expected.quantized_weights},
            },
        )
        return
    print(f"Parameters: {expected.parameters:,}, of them quantised: {expected.quantized_weights:,}")
    print(f"Bits per weight on disk: {expected.bits_per_weight:.3f}")
    if expected.packed_bytes:
        print(f"Packed file: {expected.packed_bytes:,} bytes")
    held = "weights, gradients, optimizer, teacher; no activations"
    print(f"Memory: {expected.memory_bytes / 2**20:.1f} MiB ({held})")
    print(f"Steps: {expected.total_steps:,} ({expected.steps_per_epoch:,} per epoch)")
