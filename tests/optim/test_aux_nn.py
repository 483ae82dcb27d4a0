"""The auxiliary network really learns: its weights and its decisions follow what its decisions did."""

from __future__ import annotations

import math
import random
from statistics import geometric_mean

import numpy as np
import pytest

from hybridkit.ancestor.auxiliary_network import AuxiliaryNeuralNetwork
from hybridkit.errors import UsageError
from hybridkit.optim.controllers.aux_nn import AuxNN
from hybridkit.optim.controllers.features import Features
from hybridkit.optim.controllers.schedules import WSD
from hybridkit.optim.protocol import Outcome, Proposal, TrainingState, announced


def state(step: int = 0, **changes) -> TrainingState:
    generator = random.Random(step)
    values = {
        "current_loss": 1.0 + generator.gauss(0, 0.05),
        "gradient_magnitude": 2.0 + generator.gauss(0, 0.2),
        "cluster_id": -1,
        "loss_trend": -0.01,
        "gradient_variance": 0.04,
        "step_number": step,
        "max_steps": 0,  # no schedule around the network
        "trust_radius": 0.1,
    }
    return TrainingState(**(values | changes))


def live(controller, steps, reduction, *, start=0, clusters=(), constraint_active=False):
    """Lead the controller through an environment: `reduction` of the loss as a function of the proposal."""
    proposals: list[Proposal] = []
    for step in range(start, start + steps):
        seen = state(step, parameter_gradients=clusters)
        proposals.append(controller.propose(seen))
        outcome = Outcome(1.0, 1.0 - reduction(proposals[-1]), proposals[-1], 0.1, constraint_active)
        controller.feedback(seen, outcome)
    return proposals


def mean_multiplier(proposals):
    each = [p.lr_multiplier for p in proposals]
    return geometric_mean([geometric_mean(m) if isinstance(m, tuple) else m for m in each])


def noisy(sign, spread=0.02):
    generator = random.Random(9)
    return lambda p: sign * 0.1 * math.log(p.lr_multiplier) + generator.gauss(0, spread)


def test_starts_near_one():
    network = AuxiliaryNeuralNetwork()
    assert network.predict_learning_rate(state()) == pytest.approx(1.0, abs=0.5)
    assert network.predict_trust_region(state()) == pytest.approx(0.1, rel=0.15)
    trials = live(AuxNN(), 100, lambda p: 0.0)
    assert len({p.lr_multiplier for p in trials}) == 100  # it tries something at every step
    assert 0.9 < mean_multiplier(trials) < 1.1


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_multiplier_moves_to_where_the_loss_falls_more(sign, seed):
    controller = AuxNN(AuxNN.Options(seed=seed))
    before = controller.network.output_weight.copy(), controller.network.hidden_weight.copy()
    proposals = live(controller, 600, noisy(sign))
    late = mean_multiplier(proposals[-100:])
    assert late > 1.3 if sign > 0 else late < 1 / 1.3
    assert (controller.network.output_weight != before[0]).any()
    assert (controller.network.hidden_weight != before[1]).any()


def test_it_changes_its_mind():
    controller = AuxNN()
    up = mean_multiplier(live(controller, 500, noisy(1))[-50:])
    down = mean_multiplier(live(controller, 800, noisy(-1), start=500)[-50:])
    assert up > 1.3
    assert down < 1 / 1.3


def test_without_signal_it_stays_around_one():
    generator = random.Random(3)
    proposals = live(AuxNN(), 1500, lambda p: generator.gauss(0, 0.1))
    blocks = [mean_multiplier(proposals[i : i + 100]) for i in range(0, 1500, 100)]
    assert all(0.7 < block < 1.4 for block in blocks)


def test_decisions_depend_on_the_state():
    """The best multiplier depends on the data cluster; the network finds out which is which."""
    controller = AuxNN(AuxNN.Options(learning_rate=0.01))
    late: dict[int, list[float]] = {0: [], 1: []}
    for step in range(1500):
        cluster = step % 2
        seen = state(step, cluster_id=cluster)
        proposal = controller.propose(seen)
        gain = 0.1 * math.log(proposal.lr_multiplier) * (1 if cluster else -1)
        controller.feedback(seen, Outcome(1.0, 1.0 - gain, proposal, 0.1, False))
        if step >= 1300:
            late[cluster].append(proposal.lr_multiplier)
    assert geometric_mean(late[1]) > 1.3 * geometric_mean(late[0])


def test_the_scale_of_the_loss_does_not_matter():
    small, large = AuxNN(), AuxNN()
    for step in range(50):
        for controller, scale in ((small, 1.0), (large, 1024.0)):
            seen = state(step)
            seen.current_loss *= scale
            seen.loss_trend *= scale
            proposal = controller.propose(seen)
            after = scale * (1 - 0.1 * math.log(proposal.lr_multiplier))
            controller.feedback(seen, Outcome(scale, after, proposal, 0.1, False))
    assert small.propose(state(50)).lr_multiplier == pytest.approx(
        large.propose(state(50)).lr_multiplier, rel=0.2
    )
    np.testing.assert_allclose(small.network.output_weight, large.network.output_weight, rtol=1e-6, atol=1e-9)


def test_the_radius_is_learned_where_the_constraint_acts():
    def gain(proposal):
        return -0.1 * math.log(proposal.trust_radius / 0.1)

    acted, idle = AuxNN(), AuxNN()
    shrunk = live(acted, 800, gain, constraint_active=True)[-50:]
    live(idle, 800, gain, constraint_active=False)
    assert geometric_mean([p.trust_radius for p in shrunk]) < 0.085
    assert (acted.network.output_weight[1] != 0).any()
    assert (idle.network.output_weight[1] == 0).all()


def test_one_multiplier_per_parameter_cluster():
    controller = AuxNN()
    generator = random.Random(5)
    clusters = (1.0, 2.0, 3.0)
    proposals = live(
        controller,
        800,
        lambda p: sum(0.1 * math.log(m) for m in p.lr_multiplier) + generator.gauss(0, 0.01),
        clusters=clusters,
    )
    assert all(len(p.lr_multiplier) == 3 for p in proposals)
    assert mean_multiplier(proposals[-50:]) > 1.3


def test_the_contract_class_learns_on_its_own():
    network = AuxiliaryNeuralNetwork(input_size=6, hidden_size=16, output_size=2)
    for step in range(600):
        multiplier = network.predict_learning_rate(state(step))
        assert multiplier == network.predict_learning_rate(state(step))
        network.update_with_feedback(multiplier, 0.1 * math.log(multiplier))
    assert network.predict_learning_rate(state(600)) > 1.3


@pytest.mark.parametrize(("improvement", "rises"), [(0.5, True), (-0.5, False)])
def test_a_multiplier_that_did_well_is_approached(improvement, rises):
    network = AuxiliaryNeuralNetwork(exploration=0.05)
    for step in range(40):
        network.predict_learning_rate(state(step))
        network.update_with_feedback(2.0, improvement)
    assert (network.predict_learning_rate(state(41)) > 1.1) == rises
    assert (network.predict_learning_rate(state(41)) < 0.9) != rises


def test_sizes():
    assert AuxiliaryNeuralNetwork(1, 1, 1).predict_trust_region(state()) == 0.1
    for sizes in ((0, 16, 2), (7, 16, 2), (6, 0, 2), (6, 16, 3)):
        with pytest.raises(UsageError, match="auxiliary network takes"):
            AuxiliaryNeuralNetwork(*sizes)


def test_resumes_exactly():
    whole, first, second = AuxNN(), AuxNN(), AuxNN(AuxNN.Options(seed=0))
    live(whole, 300, noisy(1))
    live(first, 300, noisy(1))
    live(second, 37, noisy(-1))
    second.load_state_dict(first.state_dict())
    assert live(second, 300, noisy(1), start=300) == live(whole, 300, noisy(1), start=300)
    with pytest.raises(UsageError, match="another size"):
        AuxNN(AuxNN.Options(hidden_size=8)).load_state_dict(first.state_dict())
    with pytest.raises(UsageError, match="relative-step is today"):
        second.load_state_dict({**first.state_dict()["network"], "given": 0.06})


def test_resumes_between_decision_and_feedback():
    whole, resumed = AuxNN(), AuxNN()
    live(whole, 20, noisy(1))
    proposal = whole.propose(state(20))
    resumed.load_state_dict(whole.state_dict())
    for controller in (whole, resumed):
        controller.feedback(state(20), Outcome(1.0, 0.9, proposal, 0.1, True))
    assert whole.propose(state(21)) == resumed.propose(state(21))


def test_an_unknown_loss_is_an_error():
    with pytest.raises(UsageError, match="observe"):
        AuxNN().propose(state(current_loss=math.nan))


def test_features_are_scale_free():
    rows = []
    for scale in (1.0, 1e-4, 1e5):
        features = Features()
        for step in range(20):
            s = state(step, cluster_id=step % 4)
            s.current_loss *= scale
            s.loss_trend *= scale
            s.gradient_magnitude *= scale
            s.gradient_variance *= scale**2
            last = features.rows(s)
        rows.append(last)
    assert rows[1] == [pytest.approx(rows[0][0], rel=1e-6)]
    assert rows[2] == [pytest.approx(rows[0][0], rel=1e-6)]
    assert all(-3 <= value <= 3 for value in rows[0][0])


def test_a_known_relative_step_is_corrected_before_anything_is_learned():
    for given, expected in ((0.06, 1.0), (0.006, 10.0), (0.6, 0.1), (6.0, 0.1), (6e-4, 10.0), (0.0, 1.0)):
        controller = AuxNN(AuxNN.Options(exploration=1e-9, warmup=0.0, decay=0.0))
        assert controller.propose(state(relative_step=given)).lr_multiplier == pytest.approx(expected)


def test_a_mis_set_rate_takes_the_same_steps():
    """As long as it is within ten times: what is learned does not depend on it either."""
    lengths = []
    for given in (0.012, 0.06, 0.3):
        proposals, controller = [], AuxNN()
        for step in range(50):
            seen = state(step, relative_step=given, max_steps=60)
            proposals.append(controller.propose(seen))
            outcome = Outcome(1.0, 1.0 - 0.01 * math.sin(step), proposals[-1], 0.1, False)
            controller.feedback(seen, outcome)
        lengths.append([given * p.lr_multiplier for p in proposals])
    np.testing.assert_allclose(lengths[0], lengths[1], rtol=1e-9)
    np.testing.assert_allclose(lengths[2], lengths[1], rtol=1e-9)


def test_without_a_schedule_it_never_stops():
    controller = AuxNN(AuxNN.Options(exploration=1e-9, warmup=0.0, decay=0.0))
    assert controller.propose(state(5000, max_steps=1000)).lr_multiplier == pytest.approx(1.0)


def test_it_says_what_it_is():
    said = announced(AuxNN())
    assert (said.learns, said.per_cluster, said.uses_update_alignment) == (True, True, False)


def test_the_shape_is_that_of_wsd():
    options = AuxNN.Options(exploration=1e-9, warmup=0.1, decay=0.4)
    steps = [AuxNN(options).propose(state(step, max_steps=100)).lr_multiplier for step in range(100)]
    plan = WSD(WSD.Options(warmup=0.1, decay=0.4))
    assert steps == pytest.approx([plan.propose(state(s, max_steps=100)).lr_multiplier for s in range(100)])


def test_a_random_multiplier_moves_and_learns_nothing():
    controller = AuxNN(AuxNN.Options(multiplier="random"))
    before = controller.network.output_weight.copy()
    proposals = live(controller, 50, lambda p: 0.1)
    assert len({p.lr_multiplier for p in proposals}) == 50
    np.testing.assert_array_equal(controller.network.output_weight, before)
