"""The document, the tables, the plots and the verdicts, on a real result."""

from __future__ import annotations

import json
import math

import pytest

from hybridkit.bench import claims, format, plots, tables
from hybridkit.bench.convergence.settings import Setting
from hybridkit.bench.overhead import ADAMW, BASE, HYBRID, STEPS, OverheadSpec, summarise
from hybridkit.bench.results import from_json, read, save, to_json
from hybridkit.bench.statistics import Interval
from hybridkit.errors import FileError


def test_what_is_saved_is_what_is_read(results, tmp_path):
    path = save(results, tmp_path / "a" / "b")
    assert read(path) == results
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_what_was_never_reached_is_null_and_comes_back():
    from pydantic import TypeAdapter

    from hybridkit.plain import plain

    never = Interval(-math.inf, -math.inf, 0.5)
    document = json.loads(json.dumps(plain({"median": never.median, "low": never.low, "high": never.high})))
    assert document == {"median": None, "low": None, "high": 0.5}
    assert TypeAdapter(Interval).validate_python(document) == never


@pytest.mark.parametrize("spoil", ["schema", "machine", "claims"])
def test_a_damaged_document_is_one_line(results, spoil, tmp_path):
    document = to_json(results)
    document[spoil] = "something else"
    (tmp_path / "r.json").write_text(json.dumps(document))
    with pytest.raises(FileError, match=r"r\.json: ") as error:
        read(tmp_path / "r.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", [None, "", "[1, 2"])
def test_what_is_no_document_is_one_line(text, tmp_path):
    if text is not None:
        (tmp_path / "r.json").write_text(text)
    with pytest.raises(FileError, match="cannot be read"):
        read(tmp_path / "r.json")
    with pytest.raises(FileError, match="no bench result"):
        from_json(text)


def test_every_claim_stands_beside_a_measurement(results):
    expected = {
        claims.CONVERGENCE: 4,  # steps and seconds, ternary and fp32
        claims.LOSS: 2,
        claims.ERROR: 6,  # against AdamW's and against the best without training, ternary, 3:4-sparse, 1-bit
        claims.COMPRESSION: 8,  # whole file and layers: two-bit, base3, sparse34, one-bit
        claims.OVERHEAD: 1,
        claims.CONSTRAINED: 2,
    }
    found = [row.claim for row in results.claims]
    assert {claim.text: found.count(claim.text) for claim in expected} == {
        claim.text: count for claim, count in expected.items()
    }
    for row in results.claims:
        [claim] = [claim for claim in expected if claim.text == row.claim]
        assert row.verdict == claim.verdict(row.measured)


@pytest.mark.parametrize(
    ("claim", "low", "high", "verdict"),
    [
        (claims.CONVERGENCE, 0.35, 0.6, "holds"),
        (claims.CONVERGENCE, 0.34, 0.6, "does not hold"),
        (claims.CONVERGENCE, -math.inf, 0.6, "does not hold"),
        (claims.OVERHEAD, 0.01, 0.15, "holds"),
        (claims.OVERHEAD, 0.10, 0.16, "does not hold"),
        (claims.CONSTRAINED, 0.2, 0.4, "holds"),
        (claims.CONSTRAINED, 0.19, 0.4, "does not hold"),
        (claims.CONSTRAINED, 0.2, 0.41, "does not hold"),
        (claims.COMPRESSION, 20.25, 20.25, "holds"),
        (claims.COMPRESSION, 20.24, 20.24, "does not hold"),
    ],
)
def test_verdicts(claim, low, high, verdict):
    middle = (low + high) / 2
    assert claim.verdict(Interval(middle, low, high)) == verdict


def test_sections_that_were_not_measured_claim_nothing(converged, quantized):
    convergence, quantization = converged[-1], quantized[-1]
    assert claims.judge(None, None, []) == []
    only = {row.claim for row in claims.judge(None, quantization, [])}
    assert only == {claims.ERROR.text, claims.COMPRESSION.text}
    assert claims.OVERHEAD.text not in {row.claim for row in claims.judge(convergence, None, [])}


def test_the_overhead_is_that_on_top_of_the_base_optimizer_alone():
    spec = OverheadSpec(Setting("digits", "fp32", 400, 32), 3)
    assert {
        which: (c.optimizer, c.uses_hybrid_optimizer)
        for which in (ADAMW, BASE, HYBRID)
        if (c := spec.config(which))
    } == {
        ADAMW: ("adamw", False),
        BASE: (spec.config(HYBRID).optimizer, False),
        HYBRID: (spec.config(BASE).optimizer, True),
    }
    seconds = {BASE: [1.0, 2.0, 4.0], HYBRID: [1.1, 3.0, 4.8], ADAMW: [0.5, 0.5, 0.5]}
    found = summarise(spec, seconds, 0.5)
    assert found.overhead.median == pytest.approx(0.2)
    assert found.base_step_ms == pytest.approx(2e3 / STEPS)
    assert found.hybrid_step_ms == pytest.approx(3e3 / STEPS)
    assert found.adamw_step_ms == pytest.approx(5e2 / STEPS)
    assert (found.rounds, found.setup_seconds) == (3, 0.5)


def test_tables_hold_every_result(results):
    found = list(tables.tables(results))
    assert len(found) == 6 + bool(results.inference.layers)
    assert len(found[0].rows) == len(results.convergence.methods)
    assert len(found[-1].rows) == len(results.claims)
    for table in found:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}
    assert results.machine.processor in tables.machine_line(results)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format.share(Interval(0.123, 0.1, 0.2)), "12.3 % [10.0, 20.0]"),
        (format.share(Interval(-math.inf, -math.inf, 0.2)), "never [never, 20.0]"),
        (format.share(Interval(-math.inf, -math.inf, -math.inf)), "never"),
        (format.interval(Interval.exact(0.5), 2), "0.50"),
        (format.measured(Interval.exact(11.106), "ratio"), "11.11x"),
        (format.amount(108_832), "108.8 kB"),
        (format.amount(1_209_032), "1.21 MB"),
    ],
)
def test_numbers_as_people_read_them(text, expected):
    assert text == expected


def test_plots_are_pictures(results, tmp_path):
    written = plots.write_plots(results, tmp_path)
    assert [p.name for p in written] == ["convergence.png", "quantization-error.png", "latency.png"]
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_plots_show_the_numbers(results):
    figure = plots._figure(4.5)
    plots.draw_convergence(figure, results.convergence)
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    for row in (r for r in results.convergence.methods if r.precision == "ternary"):
        assert lines[f"{row.method} ({row.lr:g})"] == row.curve.median
    figure = plots._figure(4.5)
    plots.draw_errors(figure, results.quantization)
    heights = [bar.get_height() for panel in figure.axes for bar in panel.patches]
    assert heights == [row.error.median for row in results.quantization.errors]
