"""`hybridkit bench`: measure convergence, quantisation and inference."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybridkit.cli._shared import ConfigOption, JsonOption, console, emit_json, progress, read_config
from hybridkit.errors import UsageError
from hybridkit.options import nearest

if TYPE_CHECKING:
    from rich.progress import Progress

    from hybridkit.bench.convergence.methods import Method
    from hybridkit.bench.convergence.plan import Plan
    from hybridkit.bench.pool import Tick
    from hybridkit.bench.results import BenchResults
    from hybridkit.bench.tables import TextTable

SECTIONS = ("convergence", "quantization", "inference")
WHAT, HOW = "What is measured", "How"
TRIALS = "trials.jsonl"  # the runs of convergence, each kept as soon as it ends


def command(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="convergence|quantization|inference",
            help="One section; a MODEL.onnx in its place means inference (default: all three).",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL.onnx", help="The file for inference (default: one is trained and exported)."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What is trained (default: digits; of convergence: digits, fashion-mnist and text).",
            rich_help_panel=WHAT,
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Runs of each method.", rich_help_panel=WHAT)
    ] = 5,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Epochs of each run (default: 10; not for convergence).",
            rich_help_panel=WHAT,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Steps of each run (convergence on a task of yours; default: 600).",
            rich_help_panel=WHAT,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Samples of a step (convergence on a task of yours; default: 32).",
            rich_help_panel=WHAT,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Threads of inference (default: 1, then all cores).", rich_help_panel=HOW
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="At most 2 seeds, 1 epoch: to try it out.", rich_help_panel=HOW),
    ] = False,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="With convergence: also the 3 M transformer, 1-bit, distillation and a long tail.",
            rich_help_panel=WHAT,
        ),
    ] = False,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=KIND:STRATEGY,...",
            help="A method of yours among the rivals of convergence: optimizer:torch.optim:NAdam,"
            "lr_controller:cosine,optimizer.momentum_decay=0.01; may be given several times.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    methods: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The same as tables of a TOML or YAML file.", rich_help_panel=WHAT),
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(
            metavar="LR,LR,...",
            help="Learning rates tried for methods of yours (default: those of the AdamW rivals).",
            rich_help_panel=WHAT,
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Where results.json and the plots go.", rich_help_panel=HOW),
    ] = Path("bench-results"),
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Measure how training converges, what quantisation costs and how the exported file runs.

    Every claim is printed beside what was measured; nothing is asserted. Results go to stdout and, with
    plots, to a folder.
    """
    section, file = _parse(what, model)
    if section == ("convergence",):
        if epochs is not None or threads is not None:
            raise UsageError(
                "convergence has lengths of its own and one thread a run: drop --epochs, --threads"
            )
        plan = _plan(task, seeds, steps, batch_size, quick, full, _custom(method, methods, grid))
        _convergence(plan, out, json)
        return
    if full or steps or batch_size or method or methods or grid:
        raise UsageError(
            "--full, --steps, --batch-size, --method, --methods, --grid are for hybridkit bench convergence"
        )

    from hybridkit.bench.suite import Request, run_bench

    request = Request(
        sections=section or SECTIONS,  # type: ignore[arg-type]
        task=task or "digits",
        seeds=seeds,
        epochs=epochs or 10,
        threads=(threads,) if threads else (),
        model=file,
        trials=out / TRIALS,
    )
    with progress() as display:
        results = run_bench(request.quick() if quick else request, _bars(display))
    _keep(results, out)
    if json:
        from hybridkit.bench.results import to_json

        emit_json("bench", to_json(results))
    else:
        _print(results)


def _custom(method: list[str] | None, file: Path | None, grid: str | None) -> tuple[Method, ...]:
    """The methods that the user brought along. Raises UsageError or FileError for what is none."""
    if not (method or file):
        if grid:
            raise UsageError("--grid is for --method: the rivals have grids of their own")
        return ()
    from hybridkit.bench.convergence.custom import custom_methods, parse_grid

    return custom_methods(method or (), read_config(file) if file else {}, parse_grid(grid) if grid else ())


def _plan(
    task: str | None,
    seeds: int,
    steps: int | None,
    batch_size: int | None,
    quick: bool,
    full: bool,
    custom: Sequence[Method],
) -> Plan:
    from hybridkit.bench.convergence import plan

    if quick and task is None:
        task = "digits"
    found = plan.core(seeds, task, steps=steps, batch_size=batch_size, full=full, custom=custom)
    return plan.quick(found) if quick else found


def _convergence(plan: Plan, out: Path, json: bool) -> None:
    from hybridkit.bench.convergence.report import save, tables, to_json
    from hybridkit.bench.convergence.run import run_convergence

    with progress() as display:
        report = run_convergence(plan, out / TRIALS, _bars(display))
    print(f"written: {', '.join(str(path) for path in save(report, out))}", file=sys.stderr)
    if json:
        emit_json("bench", to_json(report))
    else:
        _render(tables(report))


def _parse(what: str | None, model: Path | None) -> tuple[tuple[str, ...], Path | None]:
    """The sections (none: all) and the model. Raises UsageError for arguments that do not fit together."""
    if what is not None and what.endswith(".onnx"):
        if model is not None:
            raise UsageError(f"two models were given, {what} and {model}; bench one at a time")
        return ("inference",), Path(what)
    if what is not None and what not in SECTIONS:
        raise UsageError(
            f"bench has no section {what!r}; {nearest(what, SECTIONS)} (or a file that ends in .onnx)"
        )
    if model is not None and what != "inference":
        raise UsageError(f"{what} does not take a model; say hybridkit bench inference {model}")
    return ((what,) if what else ()), model


def _bars(display: Progress) -> Callable[[str, int], Tick]:
    def begin(title: str, total: int) -> Tick:
        bar = display.add_task(title, total=total)
        return lambda: display.advance(bar)

    return begin


def _keep(results: BenchResults, out: Path) -> None:
    from hybridkit.bench import plots
    from hybridkit.bench.results import save

    written = [save(results, out)]
    if plots.available():
        written += plots.write_plots(results, out)
    else:
        print("no plots: matplotlib is not installed (pip install 'hybridkit[plots]')", file=sys.stderr)
    print(f"written: {', '.join(str(path) for path in written)}", file=sys.stderr)


def _print(results: BenchResults) -> None:
    from hybridkit.bench.tables import machine_line, tables

    console().print(machine_line(results), markup=False)
    _render(tables(results))


def _render(texts: Iterable[TextTable]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    on_stdout = console()
    for text in texts:
        table = Table(title=Text(text.title), title_justify="left", box=box.SIMPLE_HEAD)
        for column in text.columns:
            table.add_column(Text(column), overflow="fold")
        for row in text.rows:
            table.add_row(*(Text(cell) for cell in row))  # "[never, 1.0]" is no markup
        on_stdout.print(table)
        for note in text.notes:
            on_stdout.print(f"  {note}", markup=False)
