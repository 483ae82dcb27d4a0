"""Run what a plan asks for, several trials at a time, and keep every record at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from pathlib import Path

from hybridkit.bench.convergence import teacher
from hybridkit.bench.convergence.findings import best_rivals, findings, rankings
from hybridkit.bench.convergence.plan import Plan, Rates, best_rates
from hybridkit.bench.convergence.report import Report
from hybridkit.bench.convergence.settings import Setting
from hybridkit.bench.convergence.store import plain_store, trial_store
from hybridkit.bench.convergence.suitable import suited
from hybridkit.bench.convergence.trials import Record, Trial, run
from hybridkit.bench.machine import available_cores, this_machine
from hybridkit.bench.overhead import OverheadResult, OverheadSpec, measure_overhead
from hybridkit.bench.pool import R, Runs, S, Tick, processes

Progress = Callable[[str, int], Tick]  # a title and how many steps; what it returns is called at each
Trials = Runs[Trial, Record]


def run_convergence(plan: Plan, store: Path, progress: Progress) -> Report:
    """Everything that `plan` needs and `store` does not have, then the report.

    Times of steps are kept beside `store`. Raises UsageError for a task that does not exist, and the first
    failure of a trial; what was done until then is kept.
    """
    plan = suited(plan)
    with processes(available_cores()) as executor:
        trials: Trials = Runs(run, executor, trial_store(store))
        rates = gather(plan, trials, progress)
    found = findings(plan, trials.results, rates, step_times(plan, store, progress))
    extras = plan.further({e.like: best_rivals(found, e.like) for e in plan.extras}, rates)
    wanted = [trial for extra in extras for runs in extra.values() for trial in runs]
    with processes(available_cores()) as executor:
        trials.executor = executor
        prepare_teacher(trials.missing(wanted), executor, progress)
        get(trials, "Further settings, the best methods", wanted, progress)
    return Report(
        machine=this_machine(),
        plan=plan,
        settings=found,
        extras=rankings(extras, trials.results),
        records=trials.results,
    )


def gather(plan: Plan, trials: Trials, progress: Progress) -> Rates:
    """Run what the settings of `plan` need; the learning rates that were chosen on the way."""
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


def step_times(plan: Plan, store: Path, progress: Progress) -> dict[Setting, OverheadResult]:
    """What a step takes in each setting, kept beside `store`; one process, nothing else at the same time."""
    kept = plain_store(store.with_name("overhead.jsonl"), OverheadResult)
    with processes(1) as executor:
        times: Runs[OverheadSpec, OverheadResult] = Runs(measure_overhead, executor, kept)
        get(times, "Time of a step", plan.overheads(), progress)
    return {spec.setting: result for spec, result in times.results.items()}


def prepare_teacher(missing: Iterable[Trial], executor: Executor, progress: Progress) -> None:
    """Train the teacher that a missing trial distils from, unless it is there already."""
    if any(trial.setting.teacher for trial in missing) and not teacher.path().is_file():
        tick = progress("Training the teacher", 1)
        executor.submit(teacher.prepare).result()
        tick()


def get(runs: Runs[S, R], title: str, specs: Iterable[S], progress: Progress) -> None:
    """The results of `specs` into `runs`; a bar where something has to be measured."""
    missing = runs.missing(specs)
    if missing:
        runs.get(missing, progress(title, len(missing)))
