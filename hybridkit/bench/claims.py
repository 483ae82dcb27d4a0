"""The ancestor's claims, each beside what was measured. The verdict is computed here and nowhere else.

A claim holds if the whole 95 % interval of the measurement meets it; else it does not hold, which includes
the case that there is too little data to tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hybridkit.bench import format
from hybridkit.bench.convergence import ConvergenceResult
from hybridkit.bench.overhead import OverheadResult
from hybridkit.bench.quantization import QuantizationResult
from hybridkit.bench.runs import HYBRID, UNTUNED
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
        found.append(_row(OVERHEAD, how, result.overhead, "at most 15 %"))
    if convergence:
        found += _constrained(convergence)
    return found


def _convergence(result: ConvergenceResult) -> Iterator[ClaimResult]:
    hybrid = [arm for arm in result.arms if arm.arm == HYBRID]
    plain = {arm.precision: arm for arm in result.arms if arm.arm == UNTUNED}
    for arm in hybrid:
        same, count = plain[arm.precision], len(result.seeds)
        steps = f"{arm.reached}/{count} seeds got there; {_rival(same.faster_steps)}"
        seconds = f"{arm.reached}/{count} seeds got there; {_rival(same.faster_seconds)}"
        yield _row(CONVERGENCE, f"{arm.precision}, steps", arm.faster_steps, steps)
        yield _row(CONVERGENCE, f"{arm.precision}, seconds", arm.faster_seconds, seconds)
    for arm in hybrid:
        same = plain[arm.precision]
        yield _row(LOSS, f"{arm.precision}, validation loss", arm.lower_loss, _rival(same.lower_loss))


def _rival(measured: Interval) -> str:
    return f"AdamW at hybrid's lr: {format.share(measured)}"


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
    for arm in result.arms:
        if arm.arm == HYBRID and arm.active_rate:
            yield _row(CONSTRAINED, f"{arm.precision}, of all steps", arm.active_rate, note)


def _row(claim: Claim, measured_as: str, measured: Interval, note: str = "") -> ClaimResult:
    return ClaimResult(claim.text, measured_as, claim.unit, measured, claim.verdict(measured), note)
