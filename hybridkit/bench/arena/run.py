"""Run what a plan asks for, several trials at a time, and keep every record at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from hybridkit.bench.arena.extras import best_rivals
from hybridkit.bench.arena.findings import findings, rankings
from hybridkit.bench.arena.plan import Plan, Rates, best_rates
from hybridkit.bench.arena.report import Report
from hybridkit.bench.arena.store import overhead_store, trial_store
from hybridkit.bench.arena.suitable import suited
from hybridkit.bench.arena.trials import Record, Trial, run
from hybridkit.bench.machine import available_cores, this_machine
from hybridkit.bench.overhead import OverheadResult, OverheadSpec, measure_overhead
from hybridkit.bench.pool import R, Runs, S, Tick, processes

Progress = Callable[[str, int], Tick]  # a title and how many steps; what it returns is called at each
Trials = Runs[Trial, Record]


def run_arena(plan: Plan, store: Path, progress: Progress) -> Report:
    """Everything that `plan` needs and `store` does not have, then the report.

    Times of steps are kept beside `store`. Raises UsageError for a task that does not exist, and the first
    failure of a trial; what was done until then is kept.
    """
    plan = suited(plan)
    with processes(available_cores()) as executor:
        trials: Trials = Runs(run, executor, trial_store(store))
        rates = gather(plan, trials, progress)
    with processes(1) as executor:  # nothing else while steps are timed
        times: Runs[OverheadSpec, OverheadResult] = Runs(
            measure_overhead, executor, overhead_store(store.with_name("overhead.jsonl"))
        )
        get(times, "Time of a step", plan.overheads(), progress)
    overheads = {spec.cell: result for spec, result in times.results.items()}
    found = findings(plan, trials.results, rates, overheads)
    extras = [e.trials(best_rivals(found, e.like), plan.seeds, rates) for e in plan.extras]
    with processes(available_cores()) as executor:
        trials.executor = executor
        wanted = [trial for extra in extras for runs in extra.values() for trial in runs]
        get(trials, "Further cells, the best methods", wanted, progress)
    return Report(
        machine=this_machine(),
        plan=plan,
        cells=found,
        extras=rankings(extras, trials.results),
        records=trials.results,
    )


def gather(plan: Plan, trials: Trials, progress: Progress) -> Rates:
    """Run what the cells of `plan` need; the learning rates that were chosen on the way."""
    get(trials, "Ours, its ablations, the baseline", plan.ours(), progress)
    get(trials, "Shorter runs", plan.horizons(), progress)
    rates = tune(plan, trials, progress)
    get(trials, "The tuned rivals", plan.tuned(rates), progress)
    get(trials, "Wrong settings", plan.mistakes(), progress)
    get(trials, "Pairs of wrong settings", plan.heat(), progress)
    return rates


def tune(plan: Plan, trials: Trials, progress: Progress) -> Rates:
    """Choose the learning rates of the rivals."""
    get(trials, "Tuning the rivals", plan.tuning(), progress)
    return best_rates(plan, trials.results)


def get(runs: Runs[S, R], title: str, specs: Iterable[S], progress: Progress) -> None:
    """The results of `specs` into `runs`; a bar where something has to be measured."""
    missing = runs.missing(specs)
    if missing:
        runs.get(missing, progress(title, len(missing)))
