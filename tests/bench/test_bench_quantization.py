"""Quantisation error and sizes, against their definitions."""

from __future__ import annotations

import copy
import statistics

import numpy as np
import pytest

from hybridkit.bench.convergence.methods import OURS, TUNED
from hybridkit.bench.convergence.store import plain_store
from hybridkit.bench.convergence.trials import trained
from hybridkit.bench.pool import Runs
from hybridkit.bench.quantization import AFTERWARDS, CODECS, LOW_BITS, QuantizedRecord, measure_quantization
from hybridkit.bench.statistics import squared_relative_error
from hybridkit.quant.convert import convert
from hybridkit.training.evaluation import outputs
from hybridkit.training.packed import packed_network


def test_the_error_is_the_squared_relative_distance():
    reference, output = np.array([[3.0, 4.0]]), np.array([[3.0, 3.0]])
    assert squared_relative_error(output, reference) == pytest.approx(1 / 25)
    assert squared_relative_error(reference, reference) == 0


def logits(trainer, model):
    return outputs(model, trainer.task, trainer.task.splits().test, batch_size=256).double().numpy()


@pytest.mark.parametrize("method", [TUNED, OURS])
def test_errors_are_measured_against_the_counterpart_of_the_same_method_and_seed(quantized, method):
    plan, _, result = quantized
    [row] = [r for r in result.errors if (r.precision, r.method) == ("ternary", method)]
    errors = []
    for seed in plan.seeds:
        trial = plan.trial(method, seed)
        full, own = trained(trial.full), trained(trial.quantized("ternary"))
        packed = packed_network(own.model, convert(own.model))
        errors.append(squared_relative_error(logits(own, packed), logits(full, full.model)))
        assert np.array_equal(logits(own, packed), logits(own, own.model))  # what trained is what is packed
    assert row.error.median == pytest.approx(statistics.median(errors), rel=1e-4)


def test_every_method_is_there_and_the_best_is_the_least(quantized):
    result = quantized[-1]
    for precision in LOW_BITS:
        rows = [row for row in result.errors if row.precision == precision]
        assert [r.method for r in rows] == [TUNED, OURS, *AFTERWARDS[precision]]
        after = {r.method: r.error.median for r in rows if not r.trained}
        assert result.best_afterwards[precision] == min(after, key=after.get)
        assert [r.method for r in rows if r.less_than_adamw] == [OURS]
    assert {(s.precision, s.codec) for s in result.sizes} == {(p, c) for p in LOW_BITS for c in CODECS[p]}


def test_what_was_measured_is_kept(quantized, tmp_path):
    plan, runs, result = quantized
    kept = plain_store(tmp_path / "quantised.jsonl", QuantizedRecord)
    for trial, record in runs.results.items():
        kept.add(trial, record)
    again = Runs(None, None, plain_store(kept.path, QuantizedRecord))  # measures nothing
    assert measure_quantization(plan, again, lambda: None) == result


def test_sizes_are_those_of_the_files(quantized, tmp_path):
    from safetensors.torch import save_file

    plan, _, result = quantized
    trial = plan.trial(OURS, 0)
    own, fp32 = trained(trial.quantized("ternary")), trained(trial.full)
    save_file(copy.deepcopy(fp32.model.state_dict()), tmp_path / "fp32.safetensors", {"format": "pt"})
    for size in (s for s in result.sizes if s.precision == "ternary"):
        path = tmp_path / f"{size.codec}.hk.safetensors"
        convert(own.model, codec=size.codec).save(path)
        assert size.sizes.fp32_bytes == (tmp_path / "fp32.safetensors").stat().st_size
        assert size.sizes.file_bytes == pytest.approx(
            path.stat().st_size, abs=32
        )  # digits of the zero counts
        assert size.whole_file == size.sizes.fp32_bytes / size.sizes.file_bytes
        quantized = sum(
            p.numel() for n, p in fp32.model.named_parameters() if p.shape in ((24, 64), (24, 24))
        )
        assert size.sizes.layers_fp32_bytes == 4 * quantized
        assert size.layers > size.whole_file
