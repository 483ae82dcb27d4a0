"""The numbers that must be reached, each beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hybridkit.bench.arena.cells import Cell
from hybridkit.bench.arena.findings import CellFindings
from hybridkit.bench.arena.methods import BASELINE, COSINE, OURS
from hybridkit.bench.statistics import Interval


@dataclass(frozen=True, slots=True)
class Number:
    """`measured` at most (or, if `least`, at least) `limit`; None where it is only reported."""

    claim: str
    cell: Cell
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


def numbers(found: Sequence[CellFindings]) -> Iterator[Number]:
    """All of them, claim by claim."""
    for f in found:
        yield Number("steps to the final loss of AdamW, constant 1e-3", f.cell, f.steps[BASELINE], 0.65)
    for f in found:
        yield Number("seconds to it", f.cell, f.seconds[BASELINE], 0.75)
    for f in found:
        limit = 0.65 if f.cell.task == "text" else 0.8
        yield Number("steps to the final loss of AdamW + cosine, tuned", f.cell, f.steps[COSINE], limit)
    for f in found:
        least = 0.15 if (f.cell.task, f.cell.precision) == ("text", "ternary") else 0.0
        yield Number("lower final loss than AdamW, constant 1e-3", f.cell, f.lower_loss, least, least=True)
    for f in found:
        yield Number("final loss over the best tuned rival's", f.cell, f.against_best, 1.02, strict=True)
    for f in found:
        for wrong, ratio in f.mistakes.items():
            yield Number(f"final loss with {wrong} over the default's", f.cell, ratio, 1.02)
    yield from _gaps(found)
    for f in found:
        if f.less_error:
            claim = "lower quantisation error than AdamW, constant 1e-3, trained quantised"
            yield Number(claim, f.cell, f.less_error, 0.33, least=True)
    for f in found:
        if f.overhead:
            claim = "time of controller, sampler and constraint, over a step of the base optimizer alone"
            yield Number(claim, f.cell, f.overhead.overhead, 0.05 if f.cell.task == "text" else None)
    for f in found:
        if f.active is not None:
            yield Number("constrained steps", f.cell, f.active, None)


def _gaps(found: Sequence[CellFindings]) -> Iterator[Number]:
    """What ternary weights cost against the best full-precision run, over what they cost AdamW."""
    for f in found:
        twin = next((g for g in found if (g.cell.task, g.cell.precision) == (f.cell.task, "fp32")), None)
        if f.cell.precision != "ternary" or twin is None:
            continue
        best = min(s.loss.median for s in twin.standings)
        losses = {s.method: s.loss for s in f.standings}
        adam = losses[BASELINE].median - best
        if adam <= 0:
            continue
        ours = losses[OURS]
        gap = Interval(*((x - best) / adam for x in (ours.median, ours.low, ours.high)))
        yield Number("ternary gap to the best full-precision run, over AdamW's gap", f.cell, gap, 0.5)
