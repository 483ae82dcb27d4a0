"""The ancestor's claims, each beside what was measured. The verdict is computed here and nowhere else.

A claim holds if the whole 95 % interval of the measurement meets it; else it does not hold, which includes
the case that there is too little data to tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hybridkit.bench import format
from hybridkit.bench.convergence.methods import BASELINE, OURS
from hybridkit.bench.convergence.summary import ConvergenceResult
from hybridkit.bench.overhead import OverheadResult
from hybridkit.bench.quantization import QuantizationResult
from hybridkit.bench.statistics import Interval
from hybridkit.optim.radius import TARGET_SHARE

Unit = Literal["share", "ratio"]
Verdict = Literal["holds", "does not hold"]


@dataclass(frozen=True, slots=True)
class Claim:
    """A number that was claimed: at least `least` and at most `most`, as far as they are given."""

    text: str
    unit: Unit
    least: float | None = None
    most: float | None = None

    def verdict(self, measured: Interval) -> Verdict:
        """Whether the interval lies where the claim says."""
        above = self.least is None or measured.low >= self.least
        below = self.most is None or measured.high <= self.most
        return "holds" if above and below else "does not hold"


CONVERGENCE = Claim("35 % faster convergence", "share", least=0.35)
LOSS = Claim("15 % lower final loss", "share", least=0.15)
ERROR = Claim("33 % less quantisation error", "share", least=0.33)
COMPRESSION = Claim("20.25x compression", "ratio", least=20.25)
OVERHEAD = Claim("10-15 % overhead per epoch", "share", most=0.15)
CONSTRAINED = Claim("20-40 % of steps constrained", "share", least=0.20, most=0.40)


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """A claim beside one way to measure it."""

    claim: str
    measured_as: str
    unit: Unit
    measured: Interval
    verdict: Verdict
    note: str = ""


def judge(
    convergence: ConvergenceResult | None,
    quantization: QuantizationResult | None,
    overheads: list[OverheadResult],
) -> list[ClaimResult]:
    """Every claim that the given results say something about."""
    found: list[ClaimResult] = []
    if convergence:
        found += _convergence(convergence)
    if quantization:
        found += _quantization(quantization)
    for result in overheads:
        how = f"{result.precision}, {result.hybrid_step_ms:.2f} ms a step on {result.base_step_ms:.2f} ms"
        note = f"at most 15 %, on the base optimizer alone; AdamW: {result.adamw_step_ms:.2f} ms"
        found.append(_row(OVERHEAD, how, result.overhead, note))
    if convergence:
        found += _constrained(convergence)
    return found


def _convergence(result: ConvergenceResult) -> Iterator[ClaimResult]:
    rows = {(row.precision, row.method): row for row in result.methods}
    precisions = list(dict.fromkeys(row.precision for row in result.methods))
    for precision in precisions:
        base, plain = rows[precision, result.baseline], rows[precision, BASELINE]
        there = f"{base.reached}/{len(result.seeds)} seeds got there"
        for unit, saved, untuned in (
            ("steps", base.fewer_steps, plain.fewer_steps),
            ("seconds", base.fewer_seconds, plain.fewer_seconds),
        ):
            if saved and untuned:
                note = f"{there}; against {BASELINE}: {format.share(untuned)}"
                yield _row(CONVERGENCE, f"{precision}, {unit}", saved, note)
    for precision in precisions:
        note = f"{BASELINE}: {format.share(rows[precision, BASELINE].lower_loss)}"
        yield _row(LOSS, f"{precision}, validation loss", rows[precision, OURS].lower_loss, note)


def _quantization(result: QuantizationResult) -> Iterator[ClaimResult]:
    for row in result.errors:
        if row.less_than_adamw and row.less_than_afterwards:
            best = result.best_afterwards[row.precision]
            yield _row(ERROR, f"{row.precision}, against AdamW QAT", row.less_than_adamw)
            yield _row(ERROR, f"{row.precision}, against {best} after training", row.less_than_afterwards)
    for size in result.sizes:
        where = f"{size.precision}, {size.codec}"
        yield _row(COMPRESSION, f"{where}, whole file", Interval.exact(size.whole_file))
        yield _row(COMPRESSION, f"{where}, quantised layers", Interval.exact(size.layers))


def _constrained(result: ConvergenceResult) -> Iterator[ClaimResult]:
    note = f"chosen: the radius is a quantile that {100 * TARGET_SHARE:g} % of the updates exceed"
    for row in result.methods:
        if row.active_rate:
            yield _row(CONSTRAINED, f"{row.precision}, of all steps", row.active_rate, note)


def _row(claim: Claim, measured_as: str, measured: Interval, note: str = "") -> ClaimResult:
    return ClaimResult(claim.text, measured_as, claim.unit, measured, claim.verdict(measured), note)
