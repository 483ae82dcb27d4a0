"""The numbers in the documents are those of the committed results."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from hybridkit.bench.results import from_json

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tables():
    return load("tables")


def test_the_documents_are_fresh(tables):
    assert tables.main(["--check"]) == 0, "run python benchmarks/tables.py"


def test_every_table_is_shown(tables):
    text = (BENCHMARKS / "README.md").read_text("utf-8")
    for name, block in tables.blocks().items():
        if name in ("kernels-first", "arena-summary"):  # parts of kernels-shapes and arena, for the README
            continue
        assert f"<!-- bench:begin {name} -->" in text
        assert block in text


def test_the_committed_run_is_a_whole_one(tables):
    bench = from_json(json.loads((BENCHMARKS / "results/digits.json").read_text("utf-8")))
    assert len(bench.settings.seeds) >= 5
    assert bench.convergence.same_start
    assert bench.machine.git_commit
    assert {row.verdict for row in bench.claims} <= {"holds", "does not hold"}
    for row in bench.claims:
        assert row.measured.low <= row.measured.median <= row.measured.high


def test_check_names_what_is_stale(tables, tmp_path, monkeypatch, capsys):
    document = tmp_path / "README.md"
    document.write_text("before\n<!-- bench:begin claims -->\nstale\n<!-- bench:end -->\nafter\n")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "DOCUMENTS", ("README.md",))
    assert tables.main(["--check"]) == 1
    assert "stale: README.md" in capsys.readouterr().err
    assert tables.main([]) == 0
    assert tables.main(["--check"]) == 0
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("-->\nafter\n")
    assert "stale" not in text
    assert "20.25x compression" in text


def test_an_unknown_table_is_an_error(tables):
    with pytest.raises(KeyError):
        tables.filled("<!-- bench:begin nothing -->\n<!-- bench:end -->", tables.blocks())


def test_the_help_document_follows_from_its_measurements():
    module = load("help_latency")
    made = module.document({name: [0.2, 0.3, 0.3] for name in module.COMMANDS})
    assert made["met"] is False
    assert made["seconds"]["hybridkit --help"]["median"] == 0.3
    committed = json.loads((BENCHMARKS / "results" / "help_latency.json").read_text("utf-8"))
    assert committed.keys() == made.keys()
    assert committed["seconds"].keys() == made["seconds"].keys()
