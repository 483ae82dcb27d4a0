"""What every learning-rate controller promises."""

from __future__ import annotations

import contextlib
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from hybridkit.errors import UsageError
from hybridkit.optim.protocol import LRController, Outcome, Proposal, TrainingState, announced
from hybridkit.testing.storage import through_checkpoint

_EXTREMES = (0.0, 1e-30, 1.0, 1e30)
_MAX_STEPS = 60


class LRControllerContract(ABC):
    """`make` returns a fresh controller, the same one each time."""

    @abstractmethod
    def make(self) -> LRController:
        """A new controller."""

    def test_declares_its_bounds_and_its_needs(self) -> None:
        controller = self.make()
        low, high = controller.bounds
        assert 0 <= low <= high < math.inf, f"bounds {controller.bounds} must satisfy 0 <= low <= high < inf"
        assert isinstance(controller.uses_update_alignment, bool)
        for name in ("learns", "per_cluster"):  # may be left out
            assert isinstance(getattr(controller, name, False), bool), f"{name} must be True or False"

    def test_multiplier_stays_within_bounds(self) -> None:
        controller = self.make()
        for state, proposal in drive(controller, ordinary_run()):
            _check_proposal(controller, state, proposal)

    def test_extreme_states_give_finite_decisions(self) -> None:
        for spread in (0, 3):
            controller = self.make()
            for state, proposal in drive(controller, extreme_run(spread)):
                _check_proposal(controller, state, proposal)

    def test_a_run_of_unknown_length_is_fine_or_refused(self) -> None:
        controller = self.make()
        states = (replace(state, max_steps=0) for state in ordinary_run())
        with contextlib.suppress(UsageError):  # a schedule may say that it has to know the length
            for state, proposal in drive(controller, states):
                _check_proposal(controller, state, proposal)

    def test_steps_beyond_the_announced_end_are_fine(self) -> None:
        controller = self.make()
        for state, proposal in drive(controller, (replace(s, max_steps=5) for s in ordinary_run())):
            _check_proposal(controller, state, proposal)

    def test_is_deterministic(self) -> None:
        first = [proposal for _, proposal in drive(self.make(), ordinary_run())]
        second = [proposal for _, proposal in drive(self.make(), ordinary_run())]
        assert first == second

    def test_does_not_disturb_the_random_state(self) -> None:
        before = random.getstate(), torch.get_rng_state()
        list(drive(self.make(), ordinary_run()))
        assert random.getstate() == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])

    def test_state_round_trip_at_any_step(self) -> None:
        states = list(ordinary_run())
        for cut in (0, 1, len(states) // 2):
            original, restored = self.make(), self.make()
            list(drive(original, states[:cut]))
            saved = through_checkpoint(original.state_dict())
            list(drive(restored, reversed(states[:7])))  # whatever it was before is forgotten
            restored.load_state_dict(saved)
            rest = [proposal for _, proposal in drive(original, states[cut:])]
            assert [proposal for _, proposal in drive(restored, states[cut:])] == rest, (
                f"differs after {cut} steps"
            )


def ordinary_run(clusters: int = 3) -> Iterator[TrainingState]:
    """The states of a noisy but healthy run, the same at each call."""
    generator = random.Random(0)
    for step in range(_MAX_STEPS):
        gradients = tuple(generator.uniform(0.1, 2.0) for _ in range(clusters))
        yield TrainingState(
            current_loss=2.0 * 0.97**step + generator.uniform(0, 0.1),
            gradient_magnitude=math.hypot(*gradients),
            cluster_id=generator.randrange(-1, 8),
            loss_trend=generator.uniform(-0.1, 0.05),
            gradient_variance=generator.uniform(0, 1),
            step_number=step,
            max_steps=_MAX_STEPS,
            trust_radius=0.01 * (1 + step),
            update_alignment=generator.uniform(-1, 1),
            cluster_histogram=(0.5, 0.25, 0.25),
            parameter_gradients=gradients,
        )


def extreme_run(clusters: int) -> Iterator[TrainingState]:
    """States with zeros, tiny and huge numbers in every combination."""
    step = 0
    for loss in (*_EXTREMES, -1e30):
        for gradient in _EXTREMES:
            for trend in (-1e30, 0.0, 1e30):
                for alignment in (-1.0, 0.0, 1.0):
                    yield TrainingState(
                        current_loss=loss,
                        gradient_magnitude=gradient,
                        cluster_id=step % 9 - 1,
                        loss_trend=trend,
                        gradient_variance=min(gradient**2, 1e30),
                        step_number=step,
                        max_steps=step // 2 + 1,
                        trust_radius=gradient,
                        update_alignment=alignment,
                        parameter_gradients=(gradient,) * clusters,
                    )
                    step += 1


def drive(
    controller: LRController, states: Iterable[TrainingState]
) -> Iterator[tuple[TrainingState, Proposal]]:
    """Lead `controller` through `states` as the optimizer would: feedback comes with the next state."""
    previous: tuple[TrainingState, Proposal] | None = None
    for state in states:
        if previous is not None:
            before, proposal = previous
            outcome = Outcome(
                loss_before=before.current_loss,
                loss_after=state.current_loss,
                proposal=proposal,
                update_magnitude=min(0.1 * before.gradient_magnitude, 1e30),
                constraint_active=state.step_number % 3 == 0,
            )
            controller.feedback(before, outcome)
        decided = controller.propose(state)
        previous = state, decided
        yield state, decided


def _check_proposal(controller: LRController, state: TrainingState, proposal: Proposal) -> None:
    multiplier, (low, high) = proposal.lr_multiplier, controller.bounds
    if isinstance(multiplier, tuple):
        assert announced(controller).per_cluster, "multipliers for clusters need the attribute per_cluster"
        assert len(multiplier) == len(state.parameter_gradients), "one multiplier for each parameter cluster"
    for value in multiplier if isinstance(multiplier, tuple) else (multiplier,):
        assert math.isfinite(value), f"multiplier {value} in {state}"
        assert low <= value <= high, (
            f"multiplier {value} is outside the bounds {controller.bounds} in {state}"
        )
    radius = proposal.trust_radius
    assert radius is None or (math.isfinite(radius) and radius > 0), f"trust radius {radius} in {state}"
