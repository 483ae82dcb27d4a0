"""`hybridkit train`: train a network, with hybrid optimisation and quantised weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from hybridkit.cli._shared import ConfigOption, JsonOption, SetOption, emit_json, strategy_options
from hybridkit.cli._train_report import document, print_result, watched
from hybridkit.errors import UsageError

if TYPE_CHECKING:
    from hybridkit.training.config import TrainConfig
    from hybridkit.training.loop import TrainResult

WHAT, HOW, HYBRID, QUANT, START, RUN = (
    "What is trained",
    "Optimisation",
    "Hybrid optimisation",
    "Quantisation",
    "Starting points and teachers",
    "The run",
)
# Options that are not fields of the run's configuration; those marked True make sense with --resume.
_OUTSIDE = {
    "config": False,
    "set_": False,
    "json": True,
    "run_dir": True,
    "resume": True,
    "from_": True,
    "dry_run": False,
    "save_metrics": True,
    "metrics_out": True,
}
_WITH_RESUME = {"epochs", "max_steps", "threads"}


def command(
    ctx: typer.Context,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="digits (default), a plugin's, or package.module:attr.", rich_help_panel=WHAT
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="One of the task's, or package.module:factory.", rich_help_panel=WHAT
        ),
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(metavar="PATH", help="Where the task's data are.", rich_help_panel=WHAT)
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Passes over the training data (20, or until --max-steps).", rich_help_panel=HOW),
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="Stop after so many steps.", rich_help_panel=HOW)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples per step (32).", rich_help_panel=HOW)
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Base learning rate (0.001).", rich_help_panel=HOW)] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Weight decay (1e-5).", rich_help_panel=HOW)
    ] = None,
    momentum: Annotated[
        float | None, typer.Option(help="SGD's momentum or Adam's beta1 (0.9).", rich_help_panel=HOW)
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="adamw (with --hybrid: steepest), muon, sgd, module:attr.",
            rich_help_panel=HOW,
        ),
    ] = None,
    hybrid: Annotated[
        bool,
        typer.Option(
            "--hybrid", help="Clusters, learning-rate controller and trust region.", rich_help_panel=HYBRID
        ),
    ] = False,
    lr_controller: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Who sets the learning-rate multiplier (aux-nn).", rich_help_panel=HYBRID
        ),
    ] = None,
    clusterer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="How the data are clustered (none; kmeans).", rich_help_panel=HYBRID
        ),
    ] = None,
    constraint: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The trust region's shape (l2).", rich_help_panel=HYBRID),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="balanced (with clusters), per-cluster or shuffle.", rich_help_panel=HYBRID
        ),
    ] = None,
    data_clusters: Annotated[
        int | None, typer.Option(help="Clusters of the data (8).", rich_help_panel=HYBRID)
    ] = None,
    param_clusters: Annotated[
        int | None, typer.Option(help="Clusters of the parameters (4).", rich_help_panel=HYBRID)
    ] = None,
    initial_trust_radius: Annotated[
        float | None, typer.Option(help="Trust radius of the first step (0.01).", rich_help_panel=HYBRID)
    ] = None,
    ternary: Annotated[
        bool,
        typer.Option(
            "--ternary",
            help="Ternary weights: after training, or in training with --qat.",
            rich_help_panel=QUANT,
        ),
    ] = False,
    qat: Annotated[
        bool,
        typer.Option(
            "--qat",
            help="Train quantised from the first step; 1-bit without --ternary.",
            rich_help_panel=QUANT,
        ),
    ] = False,
    quantizer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Replaces the default quantizer.", rich_help_panel=QUANT),
    ] = None,
    learnable_scale: Annotated[
        bool,
        typer.Option("--learnable-scale", help="Train the ternary weights' scale.", rich_help_panel=QUANT),
    ] = False,
    activations: Annotated[
        str | None,
        typer.Option(metavar="int8|float", help="int8 by default under --qat.", rich_help_panel=QUANT),
    ] = None,
    quantize_all: Annotated[
        bool,
        typer.Option("--quantize-all", help="The last Linear and embeddings too.", rich_help_panel=QUANT),
    ] = False,
    target_bits: Annotated[
        float | None,
        typer.Option(help="Mean bits per weight; layers get what they need.", rich_help_panel=QUANT),
    ] = None,
    ramp: Annotated[
        float | None,
        typer.Option(
            help="Share of the run from full-precision to quantised weights (0; 0.8 with --hybrid).",
            rich_help_panel=QUANT,
        ),
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|FILE", help="Start from a run's weights, or a .safetensors.", rich_help_panel=START
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|MODULE:ATTR", help="Learn from this network's output too.", rich_help_panel=START
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Temperature of the distillation (2.0).", rich_help_panel=START)
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Share of the task's own loss beside the teacher's (0.5).", rich_help_panel=START),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of everything random (0).", rich_help_panel=RUN)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads (OMP_NUM_THREADS, else all).", rich_help_panel=RUN)
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu (default), or cuda.", rich_help_panel=RUN)] = None,
    eval_every: Annotated[
        int | None, typer.Option(help="Steps between evaluations (an epoch).", rich_help_panel=RUN)
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
) -> None:
    """Train a network, optionally with hybrid optimisation and quantised weights.

    `--ternary` alone quantises after training, `--qat` alone trains 1-bit weights, `--ternary --qat` trains
    ternary ones. The run folder holds configuration, metrics, checkpoints and the packed model.
    """
    flags = {name: value for name, value in ctx.params.items() if name not in _OUTSIDE}
    out = sys.stderr if json else sys.stdout
    if resume is not None:
        _reject_with_resume(ctx)
        result = _resume(resume, from_, run_dir, flags, out)
    else:
        if from_ is not None:
            raise UsageError("--from STEP says which checkpoint --resume RUN goes on from; give both")
        from hybridkit.training.config import resolve

        resolved = resolve(**flags, options=strategy_options(ctx, set_))
        if dry_run:
            _dry_run(resolved, json)
            return
        from hybridkit.training.loop import train

        result = watched(out, lambda listener: train(resolved, run_dir=run_dir, on_event=listener))
    written = _save_metrics(result, metrics_out) if save_metrics or metrics_out else []
    print_result(result, written, out)
    if json:
        emit_json("train", document(result, written))


def _reject_with_resume(ctx: typer.Context) -> None:
    """A resumed run has its configuration; only its end, threads and repeated code names can be given."""
    for name, value in ctx.params.items():
        source = ctx.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE" or _OUTSIDE.get(name, name in _WITH_RESUME):
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
    if run.path.name not in Path(name).parts:
        print(f"The newest run there: {run.path}", file=out, flush=True)
    return watched(
        out,
        lambda listener: resume(
            run,
            step=named_step if step is None else step,
            epochs=flags["epochs"],
            max_steps=flags["max_steps"],
            threads=flags["threads"],
            trusted={value for value in flags.values() if isinstance(value, str) and ":" in value},
            on_event=listener,
        ),
    )


def _save_metrics(result: TrainResult, destination: Path | None) -> list[Path]:
    from hybridkit.training.metrics import read_records, save_metrics

    run = result.run
    return save_metrics(destination or run.path, read_records(run.metrics_path), run.about())


def _dry_run(config: TrainConfig, json: bool) -> None:
    from hybridkit.training.plan import plan

    planned = plan(config)
    if json:
        emit_json("train", {"dry_run": True, "config": config, "plan": planned})
        return
    print(f"Parameters: {planned.parameters:,}, of them quantised: {planned.quantised_weights:,}")
    print(f"Bits per weight on disk: {planned.bits_per_weight:.3f}")
    if planned.packed_bytes:
        print(f"Packed file: {planned.packed_bytes:,} bytes")
    print(f"Memory: {planned.memory_bytes / 2**20:.1f} MiB (weights, gradients, optimizer; no activations)")
    print(f"Steps: {planned.total_steps:,} ({planned.steps_per_epoch:,} per epoch)")
