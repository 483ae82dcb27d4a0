"""What a report shows: collected from the files of a run, whatever version wrote them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hybridkit.training.history import Note, read_notes
from hybridkit.training.metrics import Record, read_records
from hybridkit.training.runs import Run

MOST_POINTS = 500  # of one line; longer ones are averaged
LAYER_VALUES = ("layer_zeros", "layer_error", "layer_changed")
DIFFERENCES = ("max_diff", "mean_diff")  # of the packed network's output from the trained one's


@dataclass(frozen=True, slots=True)
class Line:
    """Values over steps; where several are one point, `low` and `high` are the least and greatest of them."""

    name: str
    steps: list[int]
    values: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines that share their axes; `about` says what is shown."""

    title: str
    lines: list[Line]
    about: str = ""
    percent: bool = False


@dataclass(frozen=True, slots=True)
class Layer:
    """A quantised layer at each evaluation: shares of weights, and the squared relative error."""

    name: str
    zeros: list[float | None]
    error: list[float | None]
    changed: list[float | None]


@dataclass(frozen=True, slots=True)
class Sample:
    """Text that the network wrote after `step` steps."""

    step: int
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that the page shows. `missing` says in sentences what the run has not logged."""

    run: str
    state: str
    created: str
    steps: int
    seconds: float
    throughput: dict[str, float]
    results: dict[str, float | None]
    charts: list[Chart]
    layers: list[Layer]
    layer_steps: list[int]
    samples: list[Sample]
    history: list[Note]
    config: dict[str, Any]
    environment: dict[str, Any]
    data: dict[str, Any]
    missing: list[str]


def collect(run: Run) -> Report:
    """Read the run's files. Raises FileError where they are damaged, or `run` is none."""
    about = run.about()
    records = read_records(run.metrics_path) if run.metrics_path.exists() else []
    history = read_notes(run.history_path)
    found = about.get("config")
    config = found if isinstance(found, dict) else {}
    bounded = config.get("constraint") not in (None, "none")  # a radius is logged all the same
    steps = [
        r if bounded else {n: v for n, v in r.items() if n != "trust_radius"}
        for r in records
        if r["event"] == "step"
    ]
    evaluations = [r for r in records if r["event"] == "evaluation"]
    final = next((r for r in reversed(records) if r["event"] == "final"), {})
    layers, layer_steps = _layers(evaluations)
    samples = [Sample(r["step"], r["sample"]) for r in evaluations if "sample" in r]
    seconds = sum(_number(r, "seconds") or 0.0 for r in steps)
    return Report(
        run=run.path.resolve().name,
        state=_state(final, history),
        created=str(about.get("created", "")),
        steps=max((r["step"] for r in records), default=0),
        seconds=seconds,
        throughput=_throughput(steps),
        results=_results(evaluations, final),
        charts=[chart for chart in _charts(records, steps, evaluations) if chart.lines],
        layers=layers,
        layer_steps=layer_steps,
        samples=samples,
        history=history,
        config=config,
        environment=about.get("environment", {}),
        data=about.get("data", {}),
        missing=list(_missing(config, steps, evaluations, final, history)),
    )


def _state(final: Record, history: Sequence[Note]) -> str:
    if final:
        return "finished"
    last = next((n.what for n in reversed(history) if n.what != "warning"), "")
    return {"interrupted": "interrupted", "failed": "failed"}.get(last, "not finished")


def _throughput(steps: Sequence[Record]) -> dict[str, float]:
    """Samples and tokens per second of the steps that logged them; evaluations are not counted."""
    found = {}
    for unit in ("samples", "tokens"):
        pairs = [(_number(r, unit), _number(r, "seconds")) for r in steps if unit in r]
        seconds = sum(s or 0.0 for _, s in pairs)
        if seconds:
            found[unit] = sum(n or 0.0 for n, _ in pairs) / seconds
    return found


def _results(evaluations: Sequence[Record], final: Record) -> dict[str, float | None]:
    """The last validation and the final values, by name."""
    last = evaluations[-1] if evaluations else {}
    shown = {n: v for n, v in last.items() if n.startswith("validation_") or n in DIFFERENCES}
    shown |= {n: v for n, v in final.items() if n not in ("event", "step")}
    return {name: value for name, value in shown.items() if not isinstance(value, list | str)}


def _charts(
    records: Sequence[Record], steps: Sequence[Record], evaluations: Sequence[Record]
) -> Iterator[Chart]:
    epochs = [r for r in records if r["event"] == "epoch"]
    loss = (
        _line("each step", steps, "loss"),
        _line("mean of the epoch", epochs, "loss"),
        _line("validation", evaluations, "validation_loss"),
        _line("samples held back", steps, "probe_loss"),
    )
    yield _chart("Loss", loss, "training (with a teacher: the mixture) and validation (the task's own)")
    yield _chart("Learning rate", [_line("learning rate", steps, "learning_rate")])
    radius = _line("radius", steps, "trust_radius")
    yield _chart(
        "Trust radius",
        [radius, *([_line("size of the update", steps, "update_magnitude")] if radius.steps else ())],
        "the bound on a step, and the step before it was bounded",
    )
    yield _chart(
        "Weights that change code in a step",
        [_line("changed", steps, "codes_changed")],
        "share of all quantised weights, from looks around single steps",
        percent=True,
    )
    yield _chart(
        "Weights with the code zero",
        [_over_layers("all layers", evaluations, "layer_zeros")],
        "mean of the layers; the band goes from the least to the greatest",
        percent=True,
    )
    yield _chart(
        "Error of quantisation",
        [_over_layers("all layers", evaluations, "layer_error")],
        "packed against latent weights, squared and relative: mean of the layers, least and greatest",
    )
    names = dict.fromkeys(n for r in evaluations for n in r if n.startswith("validation_"))
    for name in names:
        if name != "validation_loss":
            title = name.removeprefix("validation_").replace("_", " ")
            yield _chart(f"Validation: {title}", [_line(title, evaluations, name)])
    yield _chart(
        "Packed against trained output",
        [_line(n.replace("_diff", ""), evaluations, n) for n in DIFFERENCES],
        "absolute difference on validation samples, while the weights are those that will be packed",
    )


def _chart(title: str, lines: Iterable[Line], about: str = "", percent: bool = False) -> Chart:
    return Chart(title, [line for line in lines if line.steps], about, percent)


def _line(name: str, records: Sequence[Record], field_name: str) -> Line:
    points = [(r["step"], v) for r in records if (v := _number(r, field_name)) is not None]
    return thinned(name, [step for step, _ in points], [value for _, value in points])


def _over_layers(name: str, evaluations: Sequence[Record], field_name: str) -> Line:
    """The mean over layers at each evaluation, with the least and greatest."""
    rows = [(r["step"], [v for v in _list(r, field_name) if v is not None]) for r in evaluations]
    rows = [(step, values) for step, values in rows if values]
    return Line(
        name,
        [step for step, _ in rows],
        [sum(values) / len(values) for _, values in rows],
        [min(values) for _, values in rows],
        [max(values) for _, values in rows],
    )


def thinned(name: str, steps: Sequence[int], values: Sequence[float], most: int = MOST_POINTS) -> Line:
    """A line of at most `most` points: means of equally many neighbours, at the last of their steps."""
    size = -(-len(steps) // most) or 1
    if size == 1:
        return Line(name, list(steps), list(values))
    groups = [values[i : i + size] for i in range(0, len(values), size)]
    return Line(
        name,
        [steps[min(i + size, len(steps)) - 1] for i in range(0, len(steps), size)],
        [sum(group) / len(group) for group in groups],
        [min(group) for group in groups],
        [max(group) for group in groups],
    )


def _layers(evaluations: Sequence[Record]) -> tuple[list[Layer], list[int]]:
    """The layers of the last evaluation that tells of them, over the evaluations with the same ones."""
    told = [r for r in evaluations if "layers" in r]
    names = _list(told[-1], "layers") if told else []
    told = [
        r for r in told if r["layers"] == names and all(len(_list(r, n)) == len(names) for n in LAYER_VALUES)
    ]
    columns = {n: list(zip(*(r[n] for r in told), strict=True)) for n in LAYER_VALUES}
    layers = [Layer(str(name), *(list(columns[n][i]) for n in LAYER_VALUES)) for i, name in enumerate(names)]
    return layers if told else [], [r["step"] for r in told]


def _missing(
    config: dict[str, Any],
    steps: Sequence[Record],
    evaluations: Sequence[Record],
    final: Record,
    history: Sequence[Note],
) -> Iterator[str]:
    if not steps:
        yield "No step was logged yet."
    if not evaluations:
        yield "The run has not been evaluated yet: no validation, no values by layer."
    if not any("codes_changed" in r for r in steps):
        if not config.get("qat"):
            yield "Weights train in full precision: there are no codes, zeros or errors by layer."
        elif steps:
            yield "No changes of codes were logged: the run is too young, or from a version that did not."
    if not any("trust_radius" in r for r in steps):
        yield "No trust region is on."
    if not any("sample" in r for r in evaluations):
        yield "The task writes no samples of text, or an older version did not log them."
    if not final:
        yield "The run has not ended: there are no test results."
    if not history:
        yield "Nothing says what happened to the run: it is from a version that kept no history."


def _number(record: Record, name: str) -> float | None:
    """A logged number; of a list, one for each cluster, the mean."""
    value = record.get(name)
    if isinstance(value, list):
        found = [float(v) for v in value if v is not None]
        return sum(found) / len(found) if found else None
    return None if value is None or isinstance(value, str) else float(value)


def _list(record: Record, name: str) -> list[Any]:
    value = record.get(name)
    return value if isinstance(value, list) else []
