"""The numbers that must be reached, each beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hybridkit.bench.convergence.findings import Findings
from hybridkit.bench.convergence.methods import BASELINE, COSINE, OURS
from hybridkit.bench.convergence.settings import Setting
from hybridkit.bench.statistics import Interval


@dataclass(frozen=True, slots=True)
class Number:
    """`measured` at most (or, if `least`, at least) `limit`; None where it is only reported."""

    claim: str
    setting: Setting
    measured: Interval
    limit: float | None
    least: bool = False
    strict: bool = False  # the whole interval must meet it, not only the median

    @property
    def met(self) -> bool | None:
        """Whether it is."""
        if self.limit is None:
            return None
        if self.least:
            return (self.measured.low if self.strict else self.measured.median) >= self.limit
        return (self.measured.high if self.strict else self.measured.median) <= self.limit


def numbers(found: Sequence[Findings]) -> Iterator[Number]:
    """All of them, claim by claim."""
    for f in found:
        yield Number("steps to the final loss of AdamW, constant 1e-3", f.setting, f.steps[BASELINE], 0.65)
    for f in found:
        yield Number("seconds to it", f.setting, f.seconds[BASELINE], 0.75)
    for f in found:
        limit = 0.65 if f.setting.task == "text" else 0.8
        yield Number("steps to the final loss of AdamW + cosine, tuned", f.setting, f.steps[COSINE], limit)
    for f in found:
        least = 0.15 if (f.setting.task, f.setting.precision) == ("text", "ternary") else 0.0
        yield Number("lower final loss than AdamW, constant 1e-3", f.setting, f.lower_loss, least, least=True)
    for f in found:
        yield Number("final loss over the best tuned rival's", f.setting, f.against_best, 1.02, strict=True)
    for f in found:
        for wrong, ratio in f.mistakes.items():
            yield Number(f"final loss with {wrong} over the default's", f.setting, ratio, 1.02)
    yield from _gaps(found)
    for f in found:
        if f.less_error:
            claim = "lower squared relative error than AdamW, constant 1e-3, trained quantised"
            yield Number(claim, f.setting, f.less_error, 0.33, least=True)
    for f in found:
        if f.overhead:
            claim = "time of controller, sampler and constraint, over a step of the base optimizer alone"
            yield Number(claim, f.setting, f.overhead.overhead, 0.05 if f.setting.task == "text" else None)
    for f in found:
        if f.active is not None:
            yield Number("constrained steps", f.setting, f.active, None)


def _gaps(found: Sequence[Findings]) -> Iterator[Number]:
    """What ternary weights cost against the best full-precision run, over what they cost AdamW."""
    for f in found:
        full = next(
            (g for g in found if (g.setting.task, g.setting.precision) == (f.setting.task, "fp32")), None
        )
        if f.setting.precision != "ternary" or full is None:
            continue
        best = min(s.loss.median for s in full.standings)
        losses = {s.method: s.loss for s in f.standings}
        adam = losses[BASELINE].median - best
        if adam <= 0:
            continue
        ours = losses[OURS]
        gap = Interval(*((x - best) / adam for x in (ours.median, ours.low, ours.high)))
        yield Number("ternary gap to the best full-precision run, over AdamW's gap", f.setting, gap, 0.5)
