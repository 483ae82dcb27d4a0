"""Every table of a bench as text settings: the terminal and the documents render the same ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hybridkit.bench import format
from hybridkit.bench.convergence.methods import OURS
from hybridkit.bench.convergence.summary import ConvergenceResult
from hybridkit.bench.inference import InferenceResult
from hybridkit.bench.layers import REFERENCE, SLOW
from hybridkit.bench.quantization import QuantizationResult
from hybridkit.bench.results import BenchResults
from hybridkit.bench.variants import TWIN


@dataclass(frozen=True, slots=True)
class TextTable:
    """A title, column headings, rows of text, and sentences that belong below."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: Sequence[str] = ()


def tables(results: BenchResults) -> Iterator[TextTable]:
    """The tables of all sections that were measured."""
    if results.convergence:
        yield convergence_table(results.convergence)
    if results.quantization:
        yield error_table(results.quantization)
        yield size_table(results.quantization)
    if results.inference:
        yield file_table(results.inference)
        yield latency_table(results.inference)
        if results.inference.layers:
            yield layer_table(results.inference)
    if results.claims:
        yield claim_table(results)


def machine_line(results: BenchResults) -> str:
    """Machine, versions and threads in one sentence."""
    machine, settings = results.machine, results.settings
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    commit = f", commit {machine.git_commit[:12]}" if machine.git_commit else ""
    features = "/".join(machine.instruction_set) or "unknown"
    threads = " and ".join(str(count) for count in settings.threads)
    return (
        f"{machine.processor}, {machine.cores} cores, {features}, {machine.memory_gib:g} GiB, "
        f"{machine.system}; Python {machine.python}, {versions}{commit}; "
        f"training on 1 thread, {settings.workers} runs at a time; inference on {threads} threads; "
        f"{results.seconds:.0f} s in all"
    )


def convergence_table(result: ConvergenceResult) -> TextTable:
    """One row per method and precision."""
    rows = []
    for row in result.methods:
        tuning = ", ".join(f"{lr}: {loss:.4f}" for lr, loss in row.tuning.items())
        rows.append(
            (
                row.precision,
                row.method,
                f"{row.lr:g}",
                format.interval(row.final_loss),
                format.share(row.lower_loss),
                format.share(row.test_metric),
                format.share(row.fewer_steps) if row.fewer_steps else "-",
                f"{row.reached}/{len(result.seeds)}" if row.reached is not None else "-",
                f"{row.seconds:.1f}",
                format.share(row.active_rate) if row.active_rate else "-",
                tuning or "-",
            )
        )
    start = "same initial weights" if result.same_start else "DIFFERENT initial weights"
    return TextTable(
        f"Convergence on {result.task}: {len(result.seeds)} seeds, {result.steps} steps, {start}",
        (
            "weights",
            "method",
            "lr",
            "val. loss",
            "lower by",
            f"test {result.metric}",
            f"steps {OURS} saves",
            "got there",
            "seconds",
            "constrained",
            "median loss by lr (2 seeds)",
        ),
        rows,
        [
            "Medians over the seeds with 95 % bootstrap intervals; val. loss: after the last step. Lower by: "
            f"than that of {result.baseline}, the baseline.",
            f"Steps {OURS} saves: to the method's last validation loss, in runs with a whole schedule each; "
            "'got there': seeds that reached it.",
            f"Rivals run at the best learning rate of their grid; {OURS} at the default of `train`, untuned.",
        ],
    )


def error_table(result: QuantizationResult) -> TextTable:
    """One row per way to a packed network."""
    rows = [
        (
            row.precision,
            f"{row.method} QAT" if row.trained else f"{row.method} after training",
            format.interval(row.error),
            format.share(row.test_metric),
            format.share(row.fp32_test_metric),
        )
        for row in result.errors
    ]
    return TextTable(
        f"Quantisation error on {result.task}: {len(result.seeds)} seeds, {result.epochs} epochs",
        ("weights", "method", "error", f"test {result.metric}", f"counterpart's {result.metric}"),
        rows,
        [
            "error: squared relative, ||logits(packed) - logits(counterpart)||^2 / ||logits(counterpart)||^2 "
            "on test data. The counterpart is the same method, seed and steps in full precision, from the "
            "same weights. It is no rounding error alone: two full-precision runs that differ in the order "
            "of their batches differ by about as much."
        ],
    )


def size_table(result: QuantizationResult) -> TextTable:
    """One row per codec."""
    rows = [
        (
            size.precision,
            size.codec,
            format.amount(size.sizes.fp32_bytes),
            format.amount(size.sizes.file_bytes),
            format.ratio(size.whole_file),
            format.ratio(size.layers),
        )
        for size in result.sizes
    ]
    return TextTable(
        "Compression of the packed file",
        ("weights", "codec", "fp32 file", "packed file", "whole file", "quantised layers"),
        rows,
        ["The whole file counts everything: the unquantised last layer, biases, scales, header."],
    )


def file_table(result: InferenceResult) -> TextTable:
    """One row per variant."""
    rows = [
        (
            v.variant,
            format.amount(v.file_bytes),
            format.amount(v.resident_bytes),
            format.amount(v.peak_bytes) if v.peak_bytes is not None else "-",
            f"{100 * v.metric:.2f} %" if v.metric is not None and v.metric <= 1 else _plain(v.metric),
        )
        for v in result.variants
    ]
    notes = list(result.notes)
    if result.output_error is not None:
        notes.append(
            f"Squared relative difference of the outputs on random inputs: {result.output_error:.2e}."
        )
    metric = f"{result.metric} ({result.samples} test samples)" if result.metric else "metric"
    return TextTable(
        f"Inference of {result.model}: {result.packed_layers} packed layers, {result.operators}",
        ("file", "size", "memory of the session", "at its peak", metric),
        rows,
        notes,
    )


def latency_table(result: InferenceResult) -> TextTable:
    """One row per variant, batch size and number of threads."""
    rows = [
        (
            str(row.threads),
            str(row.batch),
            "cold" if row.cold else "warm",
            row.variant,
            f"{row.timing.p50_ms:.3f}",
            f"{row.timing.p90_ms:.3f}",
            f"{row.timing.p99_ms:.3f}",
            f"{row.timing.samples_per_second:,.0f}",
        )
        for row in result.latencies
    ]
    return TextTable(
        "Latency in milliseconds",
        ("threads", "batch", "caches", "file", "p50", "p90", "p99", "samples/s"),
        rows,
        [
            "Variants take turns on the same distinct inputs; medians over the rounds of each percentile.",
            "Cold: before each run the caches are filled with something else.",
        ],
    )


def layer_table(result: InferenceResult) -> TextTable:
    """One row per packed layer and batch size, with the flags of slow ones."""
    rows = [
        (
            row.layer or "(the whole network)",
            row.operator,
            f"{row.n} x {row.k}",
            str(row.batch),
            str(row.rows),
            row.kernel,
            str(row.threads),
            f"{row.us:.0f}",
            "-" if row.twin_us is None else f"{row.twin_us:.0f}",
            row.flag,
        )
        for row in result.layers
    ]
    slow = sum(bool(row.flag) for row in result.layers)
    return TextTable(
        f"Packed layers of {result.model} inside the network, on {result.isa}",
        ("layer", "operator", "N x K", "batch", "M", "kernel", "threads", "us", f"us in the {TWIN}", "slow?"),
        rows,
        [
            f"{slow} of {len(rows)} are slow: slower than the same product of the {TWIN}, or {SLOW:g} times "
            f"slower than the same kernel is for as much work on a matrix of {REFERENCE} x {REFERENCE}."
        ],
    )


def claim_table(results: BenchResults) -> TextTable:
    """Every claim beside its measurement."""
    rows = [
        (row.claim, row.measured_as, format.measured(row.measured, row.unit), row.verdict, row.note)
        for row in results.claims
    ]
    return TextTable(
        "The claims, measured",
        ("claim", "measured as", "measured", "verdict", "note"),
        rows,
        ["A claim holds if the whole 95 % interval meets it; a negative number is its opposite."],
    )


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
