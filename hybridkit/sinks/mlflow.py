"""MLflow."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridkit.errors import UsageError
from hybridkit.options import option
from hybridkit.sinks.protocol import RunInfo, scalars, texts

BATCH = 500  # metrics that wait for one request; MLflow takes 1000
PARAMETERS = 100  # of one request, MLflow's limit
LONGEST = 500  # characters of a parameter's value, the least limit that MLflow's stores have
# A server that is gone delays training once, by seconds; MLflow itself would try for minutes.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class MLflow:
    """A run of MLflow, named after the run folder: configuration as parameters, numbers as metrics.

    Points that were logged cannot be taken back there: a run that goes on from an earlier checkpoint becomes
    a new one with the log up to the checkpoint written again, and the old one gets the tag
    `hybridkit.superseded_after`, whose value is the checkpoint's step.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """Options of `mlflow`."""

        tracking_uri: str = option("", "server or database (MLFLOW_TRACKING_URI, else MLflow's own)")
        experiment: str = option("hybridkit", "the experiment there, made if there is none")

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        for name, value in {**PATIENCE, "MLFLOW_DISABLE_TELEMETRY": "true"}.items():
            os.environ.setdefault(name, value)
        try:
            import mlflow
        except ImportError:
            raise UsageError("--sink mlflow needs MLflow: pip install 'hybridkit[mlflow]'") from None
        self._mlflow: Any = mlflow
        self._waiting: list[Any] = []

    def open(self, run: RunInfo) -> int:
        """Begin or go on with the run whose id lies in the run's folder."""
        self._client = self._mlflow.MlflowClient(tracking_uri=self.options.tracking_uri or None)
        file = run.folder / "run_id"
        if file.exists():
            self._id = file.read_text()
            if run.logged <= run.step:
                self._client.update_run(self._id, status="RUNNING")
                return run.step
            self._client.set_tag(self._id, "hybridkit.superseded_after", str(run.step))
        tags = {"mlflow.source.name": "hybridkit", "hybridkit.run": run.name}
        if commit := run.environment.get("git_commit"):
            tags["mlflow.source.git.commit"] = str(commit)
        made = self._client.create_run(self._experiment(), run_name=run.name, tags=tags)
        self._id = str(made.info.run_id)
        file.write_text(self._id)
        self._log_parameters({**run.config, "environment": run.environment})
        return 0

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """A metric for each number, `samples/step-N.txt` for text; steps in batches, the rest at once."""
        now, make = int(time.time() * 1000), self._mlflow.entities.Metric
        self._waiting += [make(tag, value, now, step) for tag, value in scalars(event, values).items()]
        for tag, text in texts(event, values).items():
            self._client.log_text(self._id, text, f"{tag}/step-{step}.txt")
        if event != "step" or len(self._waiting) >= BATCH:
            self._flush()

    def close(self, *, ended: bool) -> None:
        """Send what is pending and say whether the run finished or was stopped."""
        self._flush()
        self._client.set_terminated(self._id, "FINISHED" if ended else "KILLED")

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for i in range(0, len(waiting), BATCH):
            self._client.log_batch(self._id, metrics=waiting[i : i + BATCH])

    def _experiment(self) -> str:
        name = self.options.experiment
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def _log_parameters(self, table: Mapping[str, Any]) -> None:
        make = self._mlflow.entities.Param
        parameters = [make(name, str(value)[:LONGEST]) for name, value in _flat(table).items()]
        for i in range(0, len(parameters), PARAMETERS):
            self._client.log_batch(self._id, params=parameters[i : i + PARAMETERS])


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in table.items():
        path = f"{prefix}{name}"
        found |= _flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return found
