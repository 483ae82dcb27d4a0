from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridkit.cli import run as command_line
from hybridkit.errors import FileError
from hybridkit.report.charts import chart_figure, shown_value, value_axis
from hybridkit.report.data import Chart, Line, collect, thinned
from hybridkit.report.page import page
from hybridkit.training.metrics import read_records
from hybridkit.training.runs import Run

NUMBERS = st.floats(-1e12, 1e12, allow_subnormal=False)


def copied(run: Run, folder: Path) -> Run:
    return Run(Path(shutil.copytree(run.path, folder / run.path.name)))


def rewritten(run: Run, keep) -> None:
    """The log with what `keep` makes of each record; None drops it."""
    kept = [new for record in read_records(run.metrics_path) if (new := keep(record)) is not None]
    run.metrics_path.write_text("".join(json.dumps(record) + "\n" for record in kept))


def titles(report) -> list[str]:
    return [chart.title for chart in report.charts]


def test_everything_of_a_ternary_language_model(ternary: Run) -> None:
    report = collect(ternary)
    assert titles(report) == [
        "Loss",
        "Learning rate",
        "Trust radius",
        "Weights that change code in a step",
        "Weights with the code zero",
        "Error of quantisation",
        "Validation: bits per byte",
        "Validation: accuracy",
        "Packed against trained output",
    ]
    assert (report.state, report.steps, report.missing) == ("finished", 16, [])
    steps = [r for r in read_records(ternary.metrics_path) if r["event"] == "step"]
    assert report.charts[0].lines[0].values == [r["loss"] for r in steps]
    assert report.throughput["tokens"] == pytest.approx(32 * report.throughput["samples"])
    assert report.layer_steps == [4, 8, 12, 16]
    assert {layer.name for layer in report.layers} > {"blocks.0.attention.query", "blocks.1.mlp.down"}
    for layer in report.layers:
        assert len(layer.zeros) == len(layer.error) == 4
        assert all(0 < share < 1 for share in (*layer.zeros, *layer.error))
    assert [sample.step for sample in report.samples] == [4, 8, 12, 16]
    assert [note.what for note in report.history if note.what != "warning"] == [
        "started",
        "finished",
        "resumed",
        "finished",
    ]
    text = page(report)
    for piece in (*titles(report), "blocks.0.mlp.up", "Samples of text", "learning rate", "resumed"):
        assert piece in text


def test_full_precision_says_what_there_is_not(plain: Run) -> None:
    report = collect(plain)
    assert titles(report) == ["Loss", "Learning rate", "Validation: accuracy"]
    assert (report.layers, report.samples) == ([], [])
    assert [line.split(":")[0] for line in report.missing] == [
        "Weights train in full precision",
        "No trust region is on.",
        "The task writes no samples of text, or an older version did not log them.",
    ]
    assert "Weights train in full precision" in page(report)


def test_without_a_trust_region_there_is_no_radius_to_draw(ternary: Run, tmp_path: Path) -> None:
    run = copied(ternary, tmp_path)
    path = run.path / "config.json"
    about = json.loads(path.read_text())
    about["config"]["constraint"] = None
    path.write_text(json.dumps(about))
    report = collect(run)
    assert "Trust radius" not in titles(report)
    assert "No trust region is on." in report.missing


def test_a_run_of_an_older_version(ternary: Run, tmp_path: Path) -> None:
    run = copied(ternary, tmp_path)
    new = ("codes_changed", "codes_zero", "samples", "tokens", "layers", "sample",
           "layer_zeros", "layer_error", "layer_changed")  # fmt: skip
    rewritten(run, lambda record: {n: v for n, v in record.items() if n not in new})
    run.history_path.unlink()
    report = collect(run)
    assert titles(report)[:3] == ["Loss", "Learning rate", "Trust radius"]
    assert (report.layers, report.samples, report.history, report.throughput) == ([], [], [], {})
    assert any("from a version that did not" in line for line in report.missing)
    assert any("kept no history" in line for line in report.missing)
    assert "Layers after" not in page(report)


@pytest.mark.parametrize("upto", [0, 2, 6])
def test_a_run_that_has_only_begun(ternary: Run, tmp_path: Path, upto: int) -> None:
    run = copied(ternary, tmp_path)
    rewritten(run, lambda record: record if record["step"] <= upto else None)
    run.history_path.write_text('{"time": "t", "step": 0, "what": "started", "text": ""}\n{"tim')
    report = collect(run)
    assert (report.state, report.steps) == ("not finished", upto)
    assert any("has not ended" in line for line in report.missing)
    assert ("Curves" in page(report)) is (upto > 0)
    run.metrics_path.unlink()
    assert collect(run).charts == []


def test_numbers_that_were_not_finite_leave_gaps(plain: Run, tmp_path: Path) -> None:
    run = copied(plain, tmp_path)
    rewritten(run, lambda r: {**r, **{n: None for n in r if n.endswith("loss") and r["step"] > 6}})
    report = collect(run)
    assert report.charts[0].lines[0].steps == [1, 2, 3, 4, 5, 6]
    assert report.results["test_loss"] is None
    page(report)


def test_nothing_out_of_a_file_becomes_markup(ternary: Run, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>\" onload='x' & \x1b[2J"
    run = copied(ternary, tmp_path)
    about = json.loads((run.path / "config.json").read_text())
    about |= {"created": evil, "environment": {evil: evil}, "data": {evil: [evil]}}
    about["config"] |= {"task": evil, evil: evil}
    (run.path / "config.json").write_text(json.dumps(about))
    rewritten(
        run,
        lambda r: (
            {**r, "sample": evil, "layers": [evil for _ in r["layers"]], "validation_" + evil[:-5]: 1.0}
            if r["event"] == "evaluation"
            else r
        ),
    )
    with run.history_path.open("a") as file:
        file.write(json.dumps({"time": evil, "step": 1, "what": "warning", "text": evil}) + "\n")
    text = page(collect(run))
    assert text.count("<script") == 1
    assert "alert(1)&lt;/script&gt;" in text
    assert "onload='x'" not in text
    assert "\x1b" not in text


def test_the_page_needs_nothing_else(ternary: Run) -> None:
    text = page(collect(ternary))
    assert not re.search(r"\b(src|href|action|poster)=|@import|url\(|https?://(?!www\.w3\.org)", text)
    assert "default-src 'none'" in text
    assert len(text) < 200_000


def test_the_command(ternary: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copied(ternary, tmp_path)
    assert command_line(["report", str(run.path)]) == 0
    assert capsys.readouterr().out == f"Report: {run.path / 'report.html'}\n"
    assert (run.path / "report.html").read_text().startswith("<!doctype html>")
    assert command_line(["report", run.path.name, "--run-dir", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["page"], found["steps"]) == ("hybridkit/report/1", None, 16)
    assert len(found["charts"][0]["lines"][0]["values"]) == 16
    out = tmp_path / "other.html"
    assert command_line(["report", str(tmp_path), "--json", "--out", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["page"] == str(out)
    assert out.stat().st_size > 10_000


def test_bad_input_is_one_line(ternary: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["report", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert command_line(["report", str(ternary.path), "--out", str(tmp_path / "no" / "x.html")]) == 1
    assert "cannot write" in capsys.readouterr().err
    run = copied(ternary, tmp_path)
    run.metrics_path.write_text('{"event": "step"}\n{"event": "step", "step": 1}\n')
    with pytest.raises(FileError, match="line 1"):
        collect(run)


@given(st.lists(NUMBERS, min_size=1, max_size=60), st.integers(1, 20))
def test_thinning_keeps_the_mean_and_the_extremes(values: list[float], most: int) -> None:
    line = thinned("x", range(1, len(values) + 1), values, most)
    assert 1 <= len(line.steps) <= most
    assert line.steps[-1] == len(values)
    assert line.steps == sorted(set(line.steps))
    if line.low:
        assert min(line.low) == min(values)
        assert max(line.high) == max(values)


@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_every_value_is_within_its_axis(values: list[float]) -> None:
    axis = value_axis(values)
    assert all(-1e-6 <= axis.place(value) <= 1 + 1e-6 for value in values)
    assert all(-1e-6 <= axis.place(tick) <= 1 + 1e-6 for tick in axis.ticks)
    assert 1 <= len(axis.ticks) <= 12


@given(st.lists(NUMBERS, min_size=1, max_size=20), st.booleans())
def test_any_numbers_make_a_chart(values: list[float], percent: bool) -> None:
    text = chart_figure(Chart("t", [Line("l", list(range(len(values))), values)], percent=percent))
    assert "nan" not in text
    assert "inf" not in text.replace("info", "")


@pytest.mark.parametrize(
    ("value", "percent", "text"),
    [(0, False, "0"), (0.5, False, "0.5"), (1e-5, False, "1e-5"), (2.5e7, False, "2.5e7"),
     (12345, False, "12,345"), (0.0123, True, "1.23 %"), (-3.14159, False, "-3.142")],
)  # fmt: skip
def test_values_are_short(value: float, percent: bool, text: str) -> None:
    assert shown_value(value, percent) == text
