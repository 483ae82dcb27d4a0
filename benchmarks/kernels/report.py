"""What a kernel bench says: each number that must be reached, met or missed, and a table for each shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Final

from limits import Limits
from results import OURS, OURS_FLOAT, Case, Results

from hybridkit.bench.tables import TextTable

LARGE: Final = ((2560, 2560), (4096, 4096), (11008, 4096))
SLACK: Final = 1.05  # a limit is met within 5 %; "faster" means faster
INT8, FP32, GGML = "ORT int8", "ORT fp32", "ggml TQ2_0"
ALONE, ALONE_HUGE = "kernel alone", "kernel alone, huge pages"
Measure = Callable[[Case], float | None]


@dataclass(frozen=True)
class Verdict:
    """One number: met where every case is at most `limit`. `worst` is None where nothing was measured."""

    regime: str
    must: str
    limit: float
    worst: float | None
    where: str = ""
    within: int = 0
    of: int = 0

    @property
    def met(self) -> bool | None:
        """Whether every case is within the limit."""
        return None if self.worst is None else self.within == self.of


def verdicts(results: Results) -> list[Verdict]:
    """Every number; ratios that must be reached are turned around, so that less is better."""
    large = [case for case in results.cases() if (case.n, case.k) in LARGE]
    warm, cold = [c for c in large if not c.cold], [c for c in large if c.cold]
    one, eight = [c for c in warm if c.m == 1], [c for c in warm if c.m == 8]
    many = [c for c in warm if c.m >= 32]
    small = [case for case in results.cases() if (case.n, case.k) not in LARGE]

    def floor(case: Case) -> float | None:
        return results.over_floor(OURS, case)

    def best(case: Case) -> float | None:
        peer = results.best_peer(case)
        return results.ratio(OURS, peer, case) if peer else None

    def against(peer: str, ours: str = OURS) -> Measure:
        return lambda case: results.ratio(ours, peer, case)

    rows = [
        _verdict("M = 1, weights cold", "<= 1.15 x floor", 1.15 * SLACK, cold, floor),
        _verdict("M = 1, weights warm", "<= 1.25 x floor", 1.25 * SLACK, one, floor),
        _verdict("M = 1, weights warm", "<= 1 / 1.6 of the best peer", SLACK / 1.6, one, best),
        _verdict("M = 8", "<= 1.15 x floor", 1.15 * SLACK, eight, floor),
        _verdict("M = 8", "faster than ORT int8", 1.0, eight, against(INT8)),
        _verdict("M = 32 to 512", "<= 1.12 x floor", 1.12 * SLACK, many, floor),
        _verdict("M = 32 to 512", "faster than ORT int8", 1.0, many, against(INT8)),
        _verdict(
            "float mode", "faster than ORT fp32", 1.0, results.cases(OURS_FLOAT), against(FP32, OURS_FLOAT)
        ),
        _verdict("small and odd shapes", "faster than every peer", 1.0, small, best),
        _verdict(
            "2 threads, M >= 8",
            "<= 1 / 1.85 of 1 thread",
            SLACK / 1.85,
            [c for c in eight + many if c.threads == 2],
            lambda case: _speed_up(results, case),
        ),
    ]
    if results.isa == "avx2":
        rows.append(_verdict("AVX2", "faster than ggml TQ2_0", 1.0, large, against(GGML)))
    return rows


def _verdict(regime: str, must: str, limit: float, cases: Iterable[Case], measure: Measure) -> Verdict:
    found = [(value, case) for case in cases if (value := measure(case)) is not None]
    if not found:
        return Verdict(regime, must, limit, None)
    worst, where = max(found, key=lambda pair: pair[0])
    within = sum(value <= limit for value, _ in found)
    return Verdict(regime, must, limit, worst, str(where), within, len(found))


def _speed_up(results: Results, case: Case) -> float | None:
    """Time on two threads over that on one."""
    times = results.seconds[OURS]
    alone = times.get(Case(case.n, case.k, case.m, 1))
    return median(b / a for a, b in zip(alone, times[case], strict=True)) if alone else None


def verdict_table(results: Results) -> TextTable:
    """The numbers, met or missed."""
    rows = [
        (
            row.regime,
            row.must,
            "-" if row.worst is None else f"{row.worst:.2f} x",
            row.where,
            f"{row.within}/{row.of}",
            {None: "not measured", True: "met", False: "missed"}[row.met],
        )
        for row in verdicts(results)
    ]
    notes = [
        f"Met when the median of {results.document['processes']} processes is within the limit + 5 % "
        "in every case; 'faster' has no such allowance. Times are net of the host's own call.",
        "Floor: reading the two-bit codes from where they are, or the arithmetic at the peak of the "
        f"instruction set, whichever takes longer. Codes lay on pages of {results.document['pages']}.",
        f"Limits of this run: {_limits(results)}.",
    ]
    if results.isa != "avx512vnni":
        notes.append("The floors' ratios are stated for AVX-512 VNNI; here they are taken with what ran.")
    if results.isa == "amx":
        notes.append("The peak is that of AMX for every M, also where AVX-512 VNNI runs.")
    title = f"The numbers, on {results.isa}"
    return TextTable(title, ("regime", "must be", "worst", "where", "cases within", "verdict"), rows, notes)


def _limits(results: Results) -> str:
    """Medians over the processes."""
    parts = []
    for values in zip(*results.document["limits"], strict=True):
        medians = Limits(**{name: median(one[name] for one in values) for name in values[0]})
        parts.append(f"{values[0]['threads']} thread(s): {medians}")
    return "; ".join(parts)


def shape_tables(results: Results) -> Iterator[TextTable]:
    """Microseconds of everybody, a table for each shape."""
    for n, k in dict.fromkeys((case.n, case.k) for case in results.cases()):
        yield shape_table(results, n, k)


def shape_table(results: Results, n: int, k: int) -> TextTable:
    """Microseconds, one number of threads beside the other; columns are M, cold and warm."""
    cases = [case for case in results.cases() if (case.n, case.k) == (n, k)]
    threads = sorted({case.threads for case in cases})
    columns = sorted({(case.m, not case.cold) for case in cases})

    def row(name: str, value: Measure, digits: int = 0) -> tuple[str, ...]:
        cells = []
        for m, is_warm in columns:
            found = [value(Case(n, k, m, count, not is_warm)) for count in threads]
            cells.append(" / ".join("-" if v is None else _number(v, digits) for v in found))
        return name, *(cell if set(cell) - set("- /") else "-" for cell in cells)

    def microseconds(peer: str) -> Measure:
        return lambda case: None if (found := results.time(peer, case)) is None else 1e6 * found

    def floor(case: Case) -> float | None:
        return 1e6 * median(results.floors(case)) if case in results.seconds[OURS] else None

    def best(case: Case) -> float | None:
        peer = results.best_peer(case)
        return results.ratio(peer, OURS, case) if peer else None

    names = [OURS, OURS_FLOAT, ALONE, ALONE_HUGE, *results.peers]
    rows = [row(name, microseconds(name)) for name in names]
    rows += [
        row("floor, 2-bit weights", floor),
        row(f"{OURS} / floor", lambda case: results.over_floor(OURS, case), 2),
        row(f"best peer / {OURS}", best, 2),
    ]
    headings = tuple(f"M = {m}{'' if warm or m > 1 else ' cold'}" for m, warm in columns)
    title = f"{n} x {k}, microseconds on {' / '.join(str(count) for count in threads)} threads"
    return TextTable(title, ("", *headings), [r for r in rows if set("".join(r[1:])) != {"-"}])


def _number(value: float, digits: int) -> str:
    if digits:
        return f"{value:.{digits}f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
