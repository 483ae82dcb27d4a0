"""The built-in sinks keep the contract with their real libraries: files, a database, an offline run."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hybridkit import testing
from hybridkit.registry import registry


class TestTensorBoard(testing.MetricSinkContract):
    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("tensorboard")

    def make(self):
        return registry().create("metric_sink", "hybridkit:tensorboard")

    def seen(self, folder):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        read = EventAccumulator(str(folder), purge_orphaned_data=True).Reload()
        return {tag: {e.step: e.value for e in read.Scalars(tag)} for tag in read.Tags()["scalars"]}

    def test_text_is_a_panel(self):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        sink = self.make()
        sink.open(self._run())
        sink.write("evaluation", 3, {"sample": "def f():\n    pass"})
        sink.close(ended=True)
        read = EventAccumulator(str(self.folder / "sink")).Reload()
        (found,) = read.Tensors("evaluation/sample/text_summary")
        assert found.tensor_proto.string_val[0] == b"    def f():\n        pass"


@pytest.mark.slow  # its first database takes ten seconds
class TestMLflow(testing.MetricSinkContract):
    @pytest.fixture(autouse=True)
    def _installed(self, tmp_path, monkeypatch):
        pytest.importorskip("mlflow")
        monkeypatch.chdir(tmp_path)  # where a local database keeps artifacts

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _database(cls, tmp_path_factory):
        """One for all tests: it takes seconds to make."""
        cls.uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/ml.db"

    def make(self):
        return registry().create("metric_sink", "hybridkit:mlflow", {"tracking_uri": self.uri})

    def _client(self) -> Any:
        import mlflow

        return mlflow.MlflowClient(tracking_uri=self.uri)

    def seen(self, folder):
        client, run_id = self._client(), (folder / "run_id").read_text()
        names = client.get_run(run_id).data.metrics
        return {n: {m.step: m.value for m in client.get_metric_history(run_id, n)} for n in names}

    def test_configuration_status_and_what_supersedes_what(self):
        self._process(0, 4, ended=False)
        old = (self.folder / "sink" / "run_id").read_text()
        assert self._client().get_run(old).info.status == "KILLED"
        self._process(2, 5, logged=4)
        new = self._client().get_run((self.folder / "sink" / "run_id").read_text())
        assert new.info.run_id != old
        assert new.info.status == "FINISHED"
        assert new.data.params["lr"] == "0.1"
        assert new.data.params["options.task.a"] == "1"
        assert self._client().get_run(old).data.tags["hybridkit.superseded_after"] == "2"


class TestWandB(testing.MetricSinkContract):
    @pytest.fixture(autouse=True)
    def _installed(self, monkeypatch):
        pytest.importorskip("wandb")

    def make(self):
        return registry().create("metric_sink", "hybridkit:wandb", {"mode": "offline"})

    def seen(self, folder):
        points: dict[str, dict[int, float]] = {}
        mine = (folder / "id").read_text()
        for file in sorted(folder.glob(f"wandb/offline-run-*/run-{mine}.wandb")):
            for row in history(file):
                for name, value in row.items():
                    if "/" in name:
                        points.setdefault(name, {})[row["_step"]] = value
        return points

    def test_a_run_that_could_not_be_opened_is_begun_by_the_next_process(self, monkeypatch):
        import wandb

        def fails(**settings):
            raise ConnectionError

        with monkeypatch.context() as patch:
            patch.setattr(wandb, "init", fails)
            with pytest.raises(ConnectionError):
                self._process(0, 2)
        assert self._process(2, 3, logged=2) == 0
        self._expect({1: 1.0, 2: 0.5, 3: 1 / 3})


def log_entries(data: bytes) -> Iterator[bytes]:
    """The entries of a file in LevelDB's log format after W&B's own 7 bytes; blocks of 32 KiB."""
    place, entry = 7, b""
    while place + 7 <= len(data):
        if 0 < (rest := -place % 2**15) < 7:  # no header fits: padding
            place += rest
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)  # after the checksum
        entry += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield entry
            entry = b""


def records(file: Path) -> list[Any]:
    """What an offline run holds. W&B's service writes its end a little after `finish` has returned."""
    from wandb.proto import wandb_internal_pb2

    for _ in range(300):
        found = [wandb_internal_pb2.Record.FromString(data) for data in log_entries(file.read_bytes())]
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{file} has no end")


def history(file: Path) -> list[dict[str, Any]]:
    """The rows of an offline run, as `wandb sync` sends them."""
    rows = []
    for record in records(file):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append(
                {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
                | {"_step": record.history.step.num}
            )
    return rows
