from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from hybridkit.errors import FileError
from hybridkit.training.metrics import MetricsLog, cut_back, read_records, rows, save_metrics


def write(path: Path, upto: int) -> None:
    log = MetricsLog(path)
    for step in range(1, upto + 1):
        log.write("step", step, {"epoch": 1, "loss": 1 / step})
    log.write("evaluation", upto, {"validation_loss": math.inf})
    log.write("final", upto, {"test_loss": 0.5})
    log.sync()
    log.close()


def test_records_come_back_and_infinity_is_null(tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", 3)
    records = read_records(tmp_path / "m.jsonl")
    assert [r["event"] for r in records] == ["step"] * 3 + ["evaluation", "final"]
    assert records[2]["loss"] == 1 / 3
    assert records[3]["validation_loss"] is None


def test_cut_back_keeps_what_was_logged_up_to_a_step(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write(path, 5)
    before = path.read_text().splitlines()
    cut_back(path, 3)
    assert path.read_text().splitlines() == before[:3]


def test_a_finished_log_loses_its_final_record(tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", 2)
    cut_back(tmp_path / "m.jsonl", 2)
    assert [r["event"] for r in read_records(tmp_path / "m.jsonl")] == ["step", "step", "evaluation"]


def test_an_incomplete_last_line_is_dropped_any_other_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write(path, 2)
    whole = path.read_text()
    path.write_text(whole + '{"event": "st')
    assert len(read_records(path)) == 4
    path.write_text('{"event": "st\n' + whole)
    with pytest.raises(FileError, match="line 1"):
        read_records(path)
    with pytest.raises(FileError, match="no metrics log"):
        read_records(tmp_path / "none")


def test_every_value_reaches_csv_and_json(tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", 3)
    records = read_records(tmp_path / "m.jsonl")
    written = save_metrics(tmp_path / "out", records, {"config": {"seed": 1}})
    assert [path.name for path in written] == ["metrics.csv", "metrics.json"]
    table = list(csv.DictReader(written[0].open()))
    assert [float(row["loss"]) for row in table] == [1, 1 / 2, 1 / 3]
    assert table[-1]["test_loss"] == "0.5"
    document = json.loads(written[1].read_text())
    assert document["records"] == records
    assert document["config"] == {"seed": 1}
    assert save_metrics(tmp_path / "x.csv", records, {}) == [tmp_path / "x.csv"]


def test_rows_join_what_belongs_to_one_step() -> None:
    step = {"event": "step", "step": 2, "epoch": 1, "loss": 1.0}
    epoch = {"event": "epoch", "step": 2, "epoch": 1, "loss": 1.5}
    assert rows([step, epoch]) == [{"step": 2, "loss": 1.0, "epoch": 1, "epoch_loss": 1.5}]
