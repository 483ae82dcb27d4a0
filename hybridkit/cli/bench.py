"""`hybridkit bench`: measure convergence, quantisation and inference."""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybridkit.cli._shared import (
    ConfigOption,
    JsonOption,
    RemoteOption,
    console,
    emit_json,
    flag,
    progress,
    read_config,
    with_flags,
)
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
ONNX = ".onnx"
TRIALS = "trials.jsonl"  # the runs of convergence, each kept as soon as it ends


@dataclass(frozen=True, kw_only=True, slots=True)
class Flags:
    """The options of the verb."""

    task: Annotated[
        str | None,
        flag(
            WHAT, "What is trained (default: digits; of convergence: digits, fashion-mnist and text).", "NAME"
        ),
    ] = None
    seeds: Annotated[int, flag(WHAT, "Runs of each method.", "N", min=1)] = 5
    epochs: Annotated[
        int | None, flag(WHAT, "Epochs of each run (default: 10; not for convergence).", "N", min=1)
    ] = None
    steps: Annotated[
        int | None,
        flag(WHAT, "Steps of each run (convergence on a task of yours; default: 600).", "N", min=1),
    ] = None
    batch_size: Annotated[
        int | None,
        flag(WHAT, "Samples of a step (convergence on a task of yours; default: 32).", "N", min=1),
    ] = None
    threads: Annotated[
        int | None, flag(HOW, "Threads of inference (default: 1, then all cores).", "N", min=1)
    ] = None
    quick: Annotated[bool, flag(HOW, "At most 2 seeds, 1 epoch: to try it out.", name="--quick")] = False
    full: Annotated[
        bool,
        flag(
            WHAT,
            "With convergence: also the 3 M transformer, 1-bit, distillation and a long tail.",
            name="--full",
        ),
    ] = False
    method: Annotated[
        list[str] | None,
        flag(
            WHAT,
            "A method of yours among the rivals of convergence: optimizer:torch.optim:NAdam,"
            "lr_controller:cosine,optimizer.momentum_decay=0.01; may be given several times.",
            "NAME=KIND:STRATEGY,...",
        ),
    ] = None
    methods: Annotated[Path | None, flag(WHAT, "The same as tables of a TOML or YAML file.", "FILE")] = None
    grid: Annotated[
        str | None,
        flag(
            WHAT,
            "Learning rates tried for methods of yours (default: those of the AdamW rivals).",
            "LR,LR,...",
        ),
    ] = None
    trust_remote_code: RemoteOption = False
    out: Annotated[Path, flag(HOW, "Where results.json and the plots go.", "DIR")] = Path("bench-results")


@with_flags
def command(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="convergence|quantization|inference",
            help="One section; a MODEL in its place means inference (default: all three).",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="For inference: an ONNX file, or what export takes as --from (hf:OWNER/NAME, a folder, a "
            "run, a packed model), exported to be measured (default: one is trained).",
        ),
    ] = None,
    *,
    flags: Flags,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Measure how training converges, what quantisation costs and how the exported file runs.

    Every claim is printed beside what was measured; nothing is asserted. Results go to stdout and, with
    plots, to a folder.
    """
    section, source = _parse(what, model)
    if section == ("convergence",):
        _convergence(flags, json)
    else:
        _suite(section or SECTIONS, source, flags, json)


def _convergence(flags: Flags, json: bool) -> None:
    if flags.epochs is not None or flags.threads is not None:
        raise UsageError("convergence has lengths of its own and one thread a run: drop --epochs, --threads")
    plan = _plan(flags)

    from hybridkit.bench.convergence.report import save, tables, to_json
    from hybridkit.bench.convergence.run import run_convergence

    with progress() as display:
        report = run_convergence(plan, flags.out / TRIALS, _bars(display))
    print(f"written: {', '.join(str(path) for path in save(report, flags.out))}", file=sys.stderr)
    if json:
        emit_json("bench", to_json(report))
    else:
        _render(tables(report))


def _plan(flags: Flags) -> Plan:
    custom = _custom(flags)

    from hybridkit.bench.convergence import plan

    task = "digits" if flags.quick and flags.task is None else flags.task
    found = plan.core(
        flags.seeds, task, steps=flags.steps, batch_size=flags.batch_size, full=flags.full, custom=custom
    )
    return plan.quick(found) if flags.quick else found


def _custom(flags: Flags) -> tuple[Method, ...]:
    """The methods that the user brought along. Raises UsageError or FileError for what is none."""
    if not (flags.method or flags.methods):
        if flags.grid:
            raise UsageError("--grid is for --method: the rivals have grids of their own")
        return ()
    from hybridkit.bench.convergence.custom import custom_methods, parse_grid

    tables = read_config(flags.methods) if flags.methods else {}
    return custom_methods(flags.method or (), tables, parse_grid(flags.grid) if flags.grid else ())


def _suite(sections: tuple[str, ...], source: str | None, flags: Flags, json: bool) -> None:
    f = flags
    if f.full or f.steps or f.batch_size or f.method or f.methods or f.grid:
        raise UsageError(
            "--full, --steps, --batch-size, --method, --methods, --grid are for hybridkit bench convergence"
        )

    from hybridkit.bench.suite import Request, run_bench

    with progress() as display, _onnx_file(source, f.trust_remote_code) as file:
        request = Request(
            sections=sections,  # type: ignore[arg-type]
            task=f.task or "digits",
            seeds=f.seeds,
            epochs=f.epochs or 10,
            threads=(f.threads,) if f.threads else (),
            model=file,
            trials=f.out / TRIALS,
        )
        results = run_bench(request.quick() if f.quick else request, _bars(display))
    _keep(results, f.out)
    if json:
        from hybridkit.bench.results import to_json

        emit_json("bench", to_json(results))
    else:
        _print(results)


def _parse(what: str | None, model: str | None) -> tuple[tuple[str, ...], str | None]:
    """The sections (none: all) and the model. Raises UsageError for arguments that do not fit together."""
    if what is not None and what not in SECTIONS and _is_source(what):
        if model is not None:
            raise UsageError(f"two models were given, {what} and {model}; bench one at a time")
        return ("inference",), what
    if what is not None and what not in SECTIONS:
        raise UsageError(
            f"bench has no section {what!r}; {nearest(what, SECTIONS)} (or a model that is there: an ONNX "
            "file, hf:OWNER/NAME, a folder, a run)"
        )
    if model is not None and what != "inference":
        raise UsageError(f"{what} does not take a model; say hybridkit bench inference {model}")
    return ((what,) if what else ()), model


def _is_source(text: str) -> bool:
    return text.endswith(ONNX) or ":" in text or Path(text).exists()


@contextlib.contextmanager
def _onnx_file(text: str | None, remote: bool) -> Iterator[Path | None]:
    """The ONNX file that `text` names, or for the time of the measurement what another source exports to."""
    if text is None or text.endswith(ONNX):
        yield Path(text) if text else None
        return
    from hybridkit.cli._export_inputs import described, write
    from hybridkit.sources.protocol import Code, open_source

    source = open_source(text, Code(remote=remote), None)
    with tempfile.TemporaryDirectory() as folder:
        name = re.split(r"[/:]", text.rstrip("/"))[-1].split(".")[0] or "model"
        file = Path(folder) / f"{name}{ONNX}"
        write(source, described(source, None, ()), file, metadata=source.metadata)
        yield file


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
