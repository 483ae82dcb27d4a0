"""Quantisation error and sizes, against their definitions."""

from __future__ import annotations

import copy
import statistics

import numpy as np
import pytest

from hybridkit.bench.quantization import LOW_BITS
from hybridkit.bench.runs import AFTERWARDS, BASELINE, CODECS, HYBRID
from hybridkit.bench.statistics import relative_error
from hybridkit.quant.convert import convert
from hybridkit.training.trainer import Trainer


def test_the_error_is_the_relative_squared_distance():
    reference, output = np.array([[3.0, 4.0]]), np.array([[3.0, 3.0]])
    assert relative_error(output, reference) == pytest.approx(1 / 25)
    assert relative_error(reference, reference) == 0


def test_errors_are_measured_against_the_twin_of_the_same_arm_and_seed(quantised):
    plan, runs, result = quantised
    for row in result.errors:
        if not row.trained:
            continue
        errors = []
        for seed in plan.seeds:
            twin = runs.results[plan.run(row.method, "fp32", seed)]
            own = runs.results[plan.run(row.method, row.precision, seed)]
            assert own.initial == twin.initial
            difference = own.packed[row.precision][0].logits.astype(float) - twin.logits
            errors.append((difference**2).sum() / (twin.logits.astype(float) ** 2).sum())
        assert row.error.median == pytest.approx(statistics.median(errors))


def test_what_trained_is_what_is_packed(quantised):
    plan, runs, _ = quantised
    for precision in LOW_BITS:
        record = runs.results[plan.run(HYBRID, precision, 0)]
        [packed] = record.packed[precision]
        assert np.array_equal(packed.logits, record.logits)


def test_every_method_is_there_and_the_best_is_the_least(quantised):
    result = quantised[-1]
    for precision in LOW_BITS:
        rows = [row for row in result.errors if row.precision == precision]
        assert [r.method for r in rows] == [BASELINE, HYBRID, *AFTERWARDS[precision]]
        after = {r.method: r.error.median for r in rows if not r.trained}
        assert result.best_afterwards[precision] == min(after, key=after.get)
        assert [r.method for r in rows if r.less_than_adamw] == [HYBRID]
    assert {(s.precision, s.codec) for s in result.sizes} == {(p, c) for p in LOW_BITS for c in CODECS[p]}


def test_sizes_are_those_of_the_files(quantised, tmp_path):
    from safetensors.torch import save_file

    plan, _, result = quantised
    trainer = Trainer.seeded(plan.run(HYBRID, "ternary", 0).config())
    fp32 = Trainer.seeded(plan.run(HYBRID, "fp32", 0).config())
    save_file(copy.deepcopy(fp32.model.state_dict()), tmp_path / "fp32.safetensors", {"format": "pt"})
    for size in (s for s in result.sizes if s.precision == "ternary"):
        path = tmp_path / f"{size.codec}.hk.safetensors"
        convert(trainer.model, codec=size.codec).save(path)
        assert size.sizes.fp32_bytes == (tmp_path / "fp32.safetensors").stat().st_size
        assert size.sizes.file_bytes == pytest.approx(
            path.stat().st_size, abs=32
        )  # digits of the zero counts
        assert size.whole_file == size.sizes.fp32_bytes / size.sizes.file_bytes
        quantised = sum(
            p.numel() for n, p in fp32.model.named_parameters() if p.shape in ((24, 64), (24, 24))
        )
        assert size.sizes.layers_fp32_bytes == 4 * quantised
        assert size.layers > size.whole_file
