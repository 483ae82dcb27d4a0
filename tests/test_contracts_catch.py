"""The contract tests fail where a strategy breaks its promise: one broken strategy for each promise."""

from __future__ import annotations

import itertools
import json
import random
from functools import cached_property

import numpy as np
import pytest
import torch
from torch import nn

from hybridkit import testing
from hybridkit.optim.constraints.l2 import L2Ball
from hybridkit.optim.controllers.hypergradient import Hypergradient
from hybridkit.optim.optimizers.sgd import SGD
from hybridkit.optim.protocol import ConstraintReport, Proposal
from hybridkit.quant.protocol import QuantizedTensor
from hybridkit.quant.ternary import TernaryAbsmean
from hybridkit.sources.protocol import Source
from hybridkit.tasks.digits import Digits
from hybridkit.tasks.protocol import Splits


def breaks(contract, strategy, test, *arguments):
    """Run one test of `contract` against `strategy` and expect it to fail."""
    subject = type("Subject", (contract,), {"make": lambda self: strategy()})()
    with pytest.raises((AssertionError, TypeError)):
        getattr(subject, test)(*arguments)


class OutOfBounds(Hypergradient):
    bounds = (0.99, 1.01)

    def propose(self, state):
        return Proposal(1.0 + 0.1 * state.update_alignment)


class NotFinite(Hypergradient):
    def propose(self, state):
        return Proposal(1.0 if state.gradient_magnitude < 1e20 else float("nan"))


class Forgetful(Hypergradient):
    def load_state_dict(self, state):
        pass


class Unstorable(Hypergradient):
    def state_dict(self):
        return {"multiplier": self.multiplier, "self": self}


class Random(Hypergradient):
    def propose(self, state):
        return Proposal(random.uniform(0.1, 10))


class NegativeRadius(Hypergradient):
    def propose(self, state):
        return Proposal(1.0, trust_radius=-0.1)


@pytest.mark.parametrize(
    ("controller", "test"),
    [
        (OutOfBounds, "test_multiplier_stays_within_bounds"),
        (NotFinite, "test_extreme_states_give_finite_decisions"),
        (Forgetful, "test_state_round_trip_at_any_step"),
        (Unstorable, "test_state_round_trip_at_any_step"),
        (Random, "test_is_deterministic"),
        (Random, "test_does_not_disturb_the_random_state"),
        (NegativeRadius, "test_multiplier_stays_within_bounds"),
    ],
)
def test_lr_controller(controller, test):
    breaks(testing.LRControllerContract, controller, test)


class RandomLabels:
    counter = itertools.count()

    def fit(self, features):
        return self

    def predict(self, features):
        return np.random.default_rng(next(self.counter)).integers(0, 3, len(features))


class TooFewLabels(RandomLabels):
    def predict(self, features):
        return np.zeros(max(len(features) - 1, 0), np.int64)


class Meddling(RandomLabels):
    def fit(self, features):
        features -= features.mean()
        return self


@pytest.mark.parametrize(
    ("clusterer", "test", "arguments"),
    [
        (RandomLabels, "test_is_deterministic_under_a_seed", ()),
        (TooFewLabels, "test_labels_every_sample", ((60, 1),)),
        (Meddling, "test_leaves_the_features_alone", ()),
    ],
)
def test_clusterer(clusterer, test, arguments):
    breaks(testing.ClustererContract, clusterer, test, *arguments)


class Enlarging(L2Ball):
    def apply(self, updates, parameters, radius):
        report = super().apply(updates, parameters, radius)
        torch._foreach_mul_(list(updates), 1.5)
        return report


class Nudging(L2Ball):
    def apply(self, updates, parameters, radius):
        report = super().apply(updates, parameters, radius)
        torch._foreach_mul_(list(updates), 1 - 1e-6)
        return report


class Loose(L2Ball):
    def apply(self, updates, parameters, radius):
        return super().apply(updates, parameters, 1.5 * radius)


class Silent(L2Ball):
    def apply(self, updates, parameters, radius):
        report = super().apply(updates, parameters, radius)
        return ConstraintReport(report.norm, torch.zeros(len(updates), dtype=torch.bool))


@pytest.mark.parametrize(
    ("constraint", "test", "arguments"),
    [
        (Enlarging, "test_never_enlarges_an_update", (10.0, 1e-3)),
        (Silent, "test_never_enlarges_an_update", (0.01, 1.0)),
        (Nudging, "test_an_inactive_constraint_changes_no_bit", (1.0,)),
        (Loose, "test_the_bound_holds_after_an_active_step", (0.3,)),
    ],
)
def test_constraint(constraint, test, arguments):
    breaks(testing.ConstraintContract, constraint, test, *arguments)


class OffLevels(TernaryAbsmean):
    def quantize(self, weight, **parameters):
        made = super().quantize(weight, **parameters)
        return QuantizedTensor(made.codes * 2, made.scale)


class Dithering(TernaryAbsmean):
    def quantize(self, weight, **parameters):
        return super().quantize(weight + 0.1 * torch.randn_like(weight), **parameters)


class AnotherForward(TernaryAbsmean):
    def fake_quantize(self, weight, quantized, **parameters):
        return super().fake_quantize(weight, quantized, **parameters) * 1.01


class NoGradient(TernaryAbsmean):
    def fake_quantize(self, weight, quantized, **parameters):
        return quantized.dequantize() + 0 * weight


@pytest.mark.parametrize(
    ("quantizer", "test", "arguments"),
    [
        (OffLevels, "test_codes_are_levels_and_scales_are_finite", ("normal",)),
        (Dithering, "test_is_deterministic_and_leaves_the_weight_alone", ("normal",)),
        (AnotherForward, "test_fake_quantize_has_the_value_of_dequantize", ("normal",)),
        (NoGradient, "test_gradients_reach_the_weight_and_the_parameters", ()),
    ],
)
def test_quantizer(quantizer, test, arguments):
    breaks(testing.QuantizerContract, quantizer, test, *arguments)


class Ascent(SGD):
    def build(self, named_parameters, **settings):
        optimizer = super().build(named_parameters, **settings)
        for group in optimizer.param_groups:
            group["maximize"] = True
        return optimizer


class HalfTheModel(SGD):
    def build(self, named_parameters, **settings):
        return super().build(named_parameters[:2], **settings)


class Amnesic(SGD):
    def build(self, named_parameters, **settings):
        optimizer = super().build(named_parameters, **settings)
        optimizer.load_state_dict = lambda state: None
        return optimizer


@pytest.mark.parametrize(
    ("optimizer", "test"),
    [
        (Ascent, "test_reduces_the_loss"),
        (HalfTheModel, "test_builds_a_torch_optimizer_over_every_parameter"),
        (Amnesic, "test_a_resumed_run_takes_the_same_steps"),
    ],
)
def test_optimizer(optimizer, test):
    breaks(testing.OptimizerContract, optimizer, test)


class Leaking(Digits):
    def splits(self):
        splits = super().splits()
        return Splits(splits.train, splits.train, splits.test)


class Reshuffled(Digits):
    def splits(self):
        splits = super().splits()
        order = torch.randperm(len(splits.train[0]))
        return Splits(tuple(t[order] for t in splits.train), splits.validation, splits.test)


class Detached(Digits):
    def loss(self, output, batch):
        return super().loss(output.detach() + 0 * nn.Parameter(torch.zeros(())), batch)


@pytest.mark.parametrize(
    ("task", "test"),
    [
        (Leaking, "test_splits_are_disjoint"),
        (Reshuffled, "test_splits_are_the_same_every_time"),
        (Detached, "test_every_model_learns_from_a_finite_loss"),
    ],
)
def test_task(task, test):
    breaks(testing.TaskContract, task, test)


class Remembering:
    """A sink in a file, which forgets nothing."""

    def open(self, run):
        self.file = run.folder / "points"
        self.step = run.step if self.file.exists() else 0
        return self.step

    def write(self, event, step, values):
        points = json.loads(self.file.read_text()) if self.file.exists() else {}
        points.update({str(step): values.get("loss")})
        self.file.write_text(json.dumps(points))

    def close(self, *, ended):
        pass


class Blind(Remembering):
    def open(self, run):
        super().open(run)
        return run.step


class Drawing(Remembering):
    def write(self, event, step, values):
        super().write(event, step, values)
        random.random()


class Eating(Remembering):
    def write(self, event, step, values):
        super().write(event, step, values)
        values.clear()


@pytest.mark.parametrize(
    ("sink", "test"),
    [
        (Remembering, "test_what_came_after_the_checkpoint_is_superseded"),
        (Blind, "test_a_run_that_began_without_it"),
        (Drawing, "test_does_not_disturb_the_random_state_when_it_writes"),
        (Eating, "test_takes_every_kind_of_value"),
    ],
)
def test_metric_sink(sink, test, tmp_path):
    class Contract(testing.MetricSinkContract):
        folder = tmp_path

        def seen(self, folder):
            points = json.loads((folder / "points").read_text())
            return {"step/loss": {int(step): value for step, value in points.items()}}

    breaks(Contract, sink, test)


class Inventing(Source):
    """Gives a network whatever lies in the file."""

    def matches(self, text):
        return text.endswith(".mine")

    @cached_property
    def network(self):
        return nn.Linear(2, 2).eval()


class TakesAll(Inventing):
    def matches(self, text):
        return True


class Remembers(Inventing):
    def open(self, text, code):
        self.text, self.code = text, code
        return self


class InTraining(Inventing):
    network = cached_property(lambda self: nn.Linear(2, 2))


class Empty(Inventing):
    network = Source.network


class Careless(Inventing):
    @cached_property
    def network(self):
        return torch.load(self.text, weights_only=True)


@pytest.mark.parametrize(
    ("source", "test", "arguments"),
    [
        (TakesAll, "test_matches_its_own_and_nothing_else", ()),
        (Remembers, "test_opening_leaves_the_kind_as_it_was", ()),
        (InTraining, "test_parts_are_what_they_are_called", ()),
        (Empty, "test_parts_are_what_they_are_called", ()),
        (Inventing, "test_weights_are_the_same_every_time", ()),  # drawn anew each time
        (Inventing, "test_a_missing_file_is_an_error_of_one_line", ()),
        (Careless, "test_a_truncated_file_is_an_error_of_one_line", (7,)),
    ],
)
def test_source(source, test, arguments, tmp_path):
    class Contract(testing.SourceContract):
        def example(self, folder):
            (folder / "x.mine").write_bytes(bytes(200))
            return str(folder / "x.mine")

    subject = type("Subject", (Contract,), {"make": lambda self: source()})()
    with pytest.raises(Exception):  # noqa: B017, PT011 - an assertion, or what a careless kind lets out
        getattr(subject, test)(tmp_path, *arguments)
