"""Samples held back, against the plan without them and against tuned rivals, on tasks of development.

    PYTHONPATH=. python benchmarks/development/probe.py [--tasks glass wine ...] --out OUT.json

Every rival takes the best of its learning rates (two seeds), as in `hybridkit bench convergence`. Trials are
kept beside OUT, one line each; a run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any, Final

from rich.progress import Progress

from hybridkit.bench.convergence.methods import COSINE, MUON, OURS, TUNED, Method
from hybridkit.bench.convergence.plan import Plan
from hybridkit.bench.convergence.run import get, tune
from hybridkit.bench.convergence.settings import Setting, settings
from hybridkit.bench.convergence.store import trial_store
from hybridkit.bench.convergence.trials import Record, Trial, run
from hybridkit.bench.machine import available_cores, this_machine
from hybridkit.bench.pool import Runs, Tick, processes
from hybridkit.bench.statistics import bootstrap_median
from hybridkit.packing.atomic import atomic_file

TABLES: Final = "benchmarks.development.tables"
TASKS: Final = {  # where they are, and how many steps of how many samples
    **{
        name: (f"{TABLES}:{name}", 400, 32)
        for name in ("glass", "wine", "sonar", "diabetes", "pima", "ionosphere", "cancer")
    },
    "satellite": ("benchmarks.heldout.satellite:satellite", 600, 64),
    "letters": ("benchmarks.heldout.letters:letters", 1_000, 64),
    "digits": ("digits", 400, 32),
}
RIVALS: Final = (TUNED, COSINE, MUON, "schedule-free AdamW")
PROBED: Final = Method("with the probe", {"hybrid": True, "lr_controller": "probe"}, ours=True)


def main() -> None:
    """Run what is missing, and write down what it came to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    plan = Plan(
        settings([TASKS[name] for name in given.tasks], ("fp32", "ternary")),
        range(given.seeds),
        among=RIVALS,
        ablations=False,
    )
    ours = [plan.trial(s, OURS, seed) for s in plan.settings for seed in plan.seeds]
    probed = [Trial(s, PROBED, seed) for s in plan.settings for seed in plan.seeds]
    with processes(available_cores()) as executor, Progress() as bars:
        runs: Runs[Trial, Record] = Runs(run, executor, trial_store(given.out.with_suffix(".jsonl")))

        def progress(title: str, total: int) -> Tick:
            bar = bars.add_task(title, total=total)
            return lambda: bars.advance(bar)

        get(runs, "Ours", [*ours, *probed], progress)
        rates = tune(plan, runs, progress)
        get(runs, "The tuned rivals", plan.tuned(rates), progress)
    rows = []
    for setting in plan.settings:
        losses = {
            name: [
                runs.results[plan.trial(setting, name, seed, rates[setting, name])].loss
                for seed in plan.seeds
            ]
            for name in plan.rivals(setting)
        }
        best = min(losses, key=lambda name: statistics.median(losses[name]))
        found = {
            "plan": [runs.results[trial].loss for trial in ours if trial.setting == setting],
            "probe": [runs.results[trial].loss for trial in probed if trial.setting == setting],
            "rival": losses[best],
        }
        rows.append(row(setting, found, best))
    with atomic_file(given.out) as out:
        document = {"machine": dataclasses.asdict(this_machine()), "seeds": given.seeds, "rows": rows}
        out.write(f"{json.dumps(document, indent=1)}\n".encode())


def row(setting: Setting, losses: dict[str, list[float]], best: str) -> dict[str, Any]:
    """Median losses, and ratios in pairs of equal seed: the mean of their logarithms, and their median."""
    pairs = {
        f"probe / {other}": [
            mine / theirs for mine, theirs in zip(losses["probe"], losses[other], strict=True)
        ]
        for other in ("plan", "rival")
    }
    return {
        "task": str(setting).partition(",")[0],
        "precision": setting.precision,
        "best rival": best,
        "losses": {name: dataclasses.asdict(bootstrap_median(values)) for name, values in losses.items()},
        "ratios": {name: dataclasses.asdict(bootstrap_median(values)) for name, values in pairs.items()},
        "mean": {name: math.exp(statistics.fmean(map(math.log, values))) for name, values in pairs.items()},
    }


if __name__ == "__main__":
    main()
