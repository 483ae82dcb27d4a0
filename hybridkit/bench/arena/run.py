"""Run what a plan asks for, several trials at a time, and keep every record at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import as_completed
from pathlib import Path

from hybridkit.bench.arena.findings import findings
from hybridkit.bench.arena.plan import Plan, best_rates
from hybridkit.bench.arena.report import Report
from hybridkit.bench.arena.store import Store
from hybridkit.bench.arena.trials import Record, Trial, run
from hybridkit.bench.machine import available_cores, this_machine
from hybridkit.bench.pool import Tick, processes

Progress = Callable[[str, int], Tick]  # a title and how many trials; what it returns is called at each


def run_arena(plan: Plan, store: Path, progress: Progress) -> Report:
    """Everything that `plan` needs and `store` does not have, then the report.

    Raises the first failure of a trial; what was done until then is in the store.
    """
    kept = Store(store)
    records: dict[Trial, Record] = {}

    def get(title: str, trials: Iterable[Trial]) -> None:
        wanted = list(dict.fromkeys(trials))
        records.update({trial: known for trial in wanted if (known := kept.find(trial)) is not None})
        missing = [trial for trial in wanted if trial not in records]
        if not missing:
            return
        tick = progress(title, len(missing))
        with processes(available_cores()) as executor:
            waiting = {executor.submit(run, trial): trial for trial in missing}
            for future in as_completed(waiting):
                record = future.result()
                records[waiting[future]] = record
                kept.add(waiting[future], record)
                tick()

    get("Ours, its ablations, the baseline", plan.ours())
    get("Shorter runs", plan.horizons())
    get("Tuning the rivals", plan.tuning())
    rates = best_rates(plan, records)
    get("The tuned rivals", plan.tuned(rates))
    get("Wrong settings", plan.mistakes())
    get("Pairs of wrong settings", plan.heat())
    return Report(
        machine=this_machine(),
        plan=plan,
        cells=findings(plan, records, rates),
        records=records,
    )
