"""The auxiliary network: proposes the multiplier and the radius, and learns from what followed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray

from hybridkit.errors import UsageError
from hybridkit.optim.controllers.features import FEATURES, Features, relative_difference
from hybridkit.optim.controllers.schedules import WSD, Share
from hybridkit.optim.protocol import Outcome, Proposal, TrainingState
from hybridkit.options import option

Array = NDArray[np.float64]

LARGEST_MULTIPLIER = 10.0
REFERENCE_STEPS = 300
SHORTEST_STEP, LONGEST_STEP = 1 / 2, 4 / 3  # of the step in a run of that many: runs of 1,200 and of 170
LARGEST_RADIUS_FACTOR = 2.0
_BASELINE_RATE = 0.05
_NOISE_BLOCK = 256


class AuxiliaryNeuralNetwork:
    """A network of one hidden layer that learns, by trial and feedback, how long the steps should be.

        h = tanh(W1 [x, 1]),   (a, b) = W2 [h, 1]                            x: `Features`
        multiplier = 10 ^ tanh(a + s e1),   radius = rule's radius * 2 ^ tanh(b + s e2),   e ~ N(0, 1)

    It starts at multiplier 1 and radius factor 1 (W2 = 0), with an exploration s of 0.05: +-12 % in the
    multiplier. After a step, the loss reduction r that followed is compared with its running mean, and the
    weights move by the policy gradient of a Gaussian (REINFORCE, Williams 1992), in units of s:

        A = (r - mean r) / rms(r - mean r), clipped to +-3
        W <- W + lr * (A e1 - k a) * da/dW + lr * (A e2 - k b) * db/dW

    k a pulls back to multiplier 1 and so decides what is signal: a settles at corr(A, e1) / k.

    What to expect: the reduction from one mini-batch to the next is mostly noise, and one step's learning
    rate explains little of it. Over a few hundred steps the network finds a multiplier that is wrong by
    a lot, not the last 10 %; it sees one step ahead only, which favours short steps in the long run
    (Wu et al. 2018, arXiv 1803.02021); and the radius that shortens a step hides what a longer one would
    have done.
    Without any signal it wanders within about +-15 % of multiplier 1.

    NumPy only, well below 0.1 ms per step. It draws its noise from `seed` and a counter and touches no global
    random state.

    Args:
        input_size: how many of the six features it sees, from the first.
        hidden_size: width of the hidden layer.
        output_size: 2, or 1 for the multiplier alone.
        learning_rate: lr above.
        exploration: s above.
        pull: k above.
        seed: of the first weights and of the exploration.
    """

    def __init__(
        self,
        input_size: int = 6,
        hidden_size: int = 16,
        output_size: int = 2,
        *,
        learning_rate: float = 1e-3,
        exploration: float = 0.05,
        pull: float = 1.0,
        seed: int = 0,
    ) -> None:
        if not 1 <= input_size <= len(FEATURES) or hidden_size < 1 or output_size not in (1, 2):
            raise UsageError(
                f"the auxiliary network takes 1 to {len(FEATURES)} inputs, at least 1 hidden unit and 1 or "
                f"2 outputs; not {input_size}, {hidden_size}, {output_size}"
            )
        self.learning_rate, self.exploration, self.pull, self.seed = learning_rate, exploration, pull, seed
        start = np.random.default_rng([seed, 0])
        # The last column of each holds the biases.
        self.hidden_weight: Array = np.zeros((hidden_size, input_size + 1))
        self.hidden_weight[:, :-1] = start.standard_normal((hidden_size, input_size)) / math.sqrt(input_size)
        self.output_weight: Array = np.zeros((output_size, hidden_size + 1))
        self.features = Features()
        self.decisions = 0
        self.baseline = 0.0
        self.spread = 0.0  # running mean of (r - baseline)^2, with a bias that `feedbacks` corrects
        self.feedbacks = 0
        self._inputs: Array = np.ones((1, input_size + 1))
        self._hidden, self._means = self._forward()
        self._state: TrainingState | None = None
        self._noise: tuple[int, Array] = (-1, np.zeros((0, 0)))

    # --- deciding

    def predict_learning_rate(self, state: TrainingState) -> float:
        """The multiplier for the step that begins in `state`, in [0.1, 10], exploration included.

        Asked again before the feedback, it gives the same answer for the same state.
        """
        return self.decide(state)[0][0]

    def predict_trust_region(self, state: TrainingState) -> float:
        """The radius for the step that begins in `state`: half to twice `state.trust_radius`."""
        return state.trust_radius * self.decide(state)[1]

    def decide(self, state: TrainingState) -> tuple[list[float], float]:
        """Multipliers (one, or one per parameter cluster) and the factor of the radius."""
        if state != self._state:
            width = self._inputs.shape[1] - 1
            self._inputs = np.array([[*row[:width], 1.0] for row in self.features.rows(state)])
            self._hidden, self._means = self._forward()
            self._state = state
            self.decisions += 1
        noise = self._draw(len(self._means) + 1)
        s = self.exploration
        tried = [mean[0] + s * e for mean, e in zip(self._means, noise, strict=False)]
        multipliers = [_bounded(a, LARGEST_MULTIPLIER) for a in tried[_deciding(len(tried))]]
        if len(self.output_weight) < 2:
            return multipliers, 1.0
        return multipliers, _bounded(self._means[0][1] + s * noise[-1], LARGEST_RADIUS_FACTOR)

    def _forward(self) -> tuple[Array, list[list[float]]]:
        """[h, 1] and (a, b) for each row of inputs; b is 0 where the network has no second output."""
        hidden = np.ones((len(self._inputs), len(self.hidden_weight) + 1))
        np.tanh(self._inputs @ self.hidden_weight.T, out=hidden[:, :-1])
        means = (hidden @ self.output_weight.T).tolist()
        return hidden, [[*row, 0.0][:2] for row in means]

    def _draw(self, count: int) -> list[float]:
        """The noise of the current decision: depends on the seed and the number of decisions alone."""
        block, row = divmod(self.decisions, _NOISE_BLOCK)
        if self._noise[0] != block or self._noise[1].shape[1] != count:
            generator = np.random.default_rng([self.seed, 1, block])
            self._noise = block, generator.standard_normal((_NOISE_BLOCK, count))
        drawn: list[float] = self._noise[1][row].tolist()
        return drawn

    # --- learning

    def update_with_feedback(self, lr_multiplier: float, loss_improvement: float) -> None:
        """Learn that the last decision, taken with `lr_multiplier`, made the loss fall by `loss_improvement`.

        The multiplier may be another one than predicted. The improvement may have any unit: only its
        size relative to earlier ones counts.
        """
        self.learn([lr_multiplier], None, loss_improvement)

    def learn(self, multipliers: Sequence[float], factor: float | None, improvement: float) -> None:
        """One policy-gradient step. `factor` None: the radius did not matter."""
        advantage = self._advantage(improvement)
        slopes = [[0.0, 0.0] for _ in self._means]
        deciding = range(len(slopes))[_deciding(len(slopes))]
        for row, multiplier in zip(deciding, multipliers, strict=True):
            slopes[row][0] = self._slope(advantage, multiplier, LARGEST_MULTIPLIER, self._means[row][0])
            slopes[row][0] /= len(deciding)
        if factor is not None:
            slopes[0][1] = self._slope(advantage, factor, LARGEST_RADIUS_FACTOR, self._means[0][1])
        moves = np.array(slopes)[:, : len(self.output_weight)]
        hidden = self._hidden[:, :-1]
        back = moves @ self.output_weight[:, :-1] * (1 - hidden * hidden)
        self.output_weight += moves.T @ self._hidden
        self.hidden_weight += back.T @ self._inputs
        self._state = None

    def _slope(self, advantage: float, taken: float, largest: float, mean: float) -> float:
        score = (_unbounded(taken, largest) - mean) / self.exploration
        score = min(max(score, -3.0), 3.0)
        return self.learning_rate * (advantage * score - self.pull * mean)

    def _advantage(self, improvement: float) -> float:
        """How much better than usual, in usual deviations. The usual is 0 at first."""
        surprise = improvement - self.baseline
        self.feedbacks += 1
        self.spread += _BASELINE_RATE * (surprise**2 - self.spread)
        self.baseline += _BASELINE_RATE * surprise
        corrected = self.spread / (1 - (1 - _BASELINE_RATE) ** self.feedbacks)
        return min(max(surprise / math.sqrt(corrected), -3.0), 3.0) if corrected > 0 else 0.0

    # --- resuming

    def state_dict(self) -> dict[str, Any]:
        """Weights, running means, counters and the inputs of the last decision."""
        return {
            "hidden_weight": torch.from_numpy(self.hidden_weight.copy()),
            "output_weight": torch.from_numpy(self.output_weight.copy()),
            "features": self.features.state_dict(),
            "inputs": torch.from_numpy(self._inputs.copy()),
            "decisions": self.decisions,
            "baseline": self.baseline,
            "spread": self.spread,
            "feedbacks": self.feedbacks,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. Raises UsageError for a network of another size."""
        hidden, output = state["hidden_weight"].numpy().copy(), state["output_weight"].numpy().copy()
        if hidden.shape != self.hidden_weight.shape or output.shape != self.output_weight.shape:
            raise UsageError("the saved auxiliary network has another size; keep hidden_size when resuming")
        self.hidden_weight, self.output_weight = hidden, output
        self.features.load_state_dict(state["features"])
        self._inputs = state["inputs"].numpy().copy()
        self._hidden, self._means = self._forward()
        self.decisions = int(state["decisions"])
        self.baseline, self.spread = float(state["baseline"]), float(state["spread"])
        self.feedbacks = int(state["feedbacks"])
        self._state = None


class AuxNN:
    """The auxiliary network as a controller, around a plan; its feedback is the step's relative loss
    reduction.

        multiplier = clip(network * c, 0.1, 10) * shape(progress),    c = clip(relative_step / given, 0.1, 10)

    The plan is what a step should change, and is no matter of learning. Where the base optimizer takes
    relative steps (`steepest`), `given` is what its learning rate stands for at the first step (so that a
    scheduler of the caller's still counts), and c makes up for a rate that is up to ten times too small or
    too large; for other base optimizers c is 1. The shape is a linear warm-up and a linear decay to zero, for
    relative steps times the root of 300 / max_steps, within 1/2 and 4/3. Without `max_steps` there is no
    decay to plan: relative steps then have the shape's mean for good, 1 - (warmup + decay) / 2, and others
    the learning rate that they were given.

    With parameter clusters it gives one multiplier per cluster, from the same weights and the cluster's own
    gradient. The radius's factor is learned from the steps that the constraint shortened; on the others it
    did nothing.

    `multiplier` says what the network's part is: "learned" as above; "random": its trials alone, nothing is
    learned from them (what learning has to beat); "constant", the default: always 1, which leaves the plan,
    because learning has not beaten it yet.
    """

    bounds = (0.0, LARGEST_MULTIPLIER * LONGEST_STEP)
    uses_update_alignment = False

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """Options of `aux-nn`."""

        multiplier: Literal["constant", "learned", "random"] = option(
            "constant", "the network's part: constant (always 1), learned, or random (no learning)"
        )
        hidden_size: Annotated[int, Ge(1)] = option(16, "width of the hidden layer")
        learning_rate: Annotated[float, Ge(0.0)] = option(
            1e-3, "learning rate of the auxiliary network itself"
        )
        exploration: Annotated[float, Gt(0.0), Le(1.0)] = option(
            0.05, "spread of the trials, in tanh's argument"
        )
        pull: Annotated[float, Ge(0.0)] = option(1.0, "how strongly it is drawn back to multiplier 1")
        relative_step: Annotated[float, Gt(0.0)] = option(
            0.06,
            "what a step changes of a matrix in a run of 300 steps, where the base optimizer takes relative"
            " steps; in longer runs it is less",
        )
        warmup: Share = option(0.05, "share of the run over which the multiplier rises linearly")
        decay: Share = option(0.8, "share of the run over which it falls to zero at the end")
        seed: Annotated[int, Ge(0)] = option(0, "seed of its weights and its trials")

    def __init__(self, options: Options | None = None) -> None:
        self.options = o = options or self.Options()
        self.shape = WSD(WSD.Options(warmup=o.warmup, decay=o.decay))
        self.per_cluster = o.multiplier != "constant"
        self.given = 0.0  # relative step of the learning rate at the first step
        self.network = AuxiliaryNeuralNetwork(
            hidden_size=o.hidden_size,
            learning_rate=o.learning_rate,
            exploration=o.exploration,
            pull=o.pull,
            seed=o.seed,
        )

    def propose(self, state: TrainingState) -> Proposal:
        """The plan times the network's part. Raises UsageError where that needs a loss nobody observed."""
        correction, shape = self._plan(state)
        if self.options.multiplier == "constant":
            return Proposal(correction * shape)
        multipliers, factor = self.network.decide(state)
        planned = [_clipped(m * correction) * shape for m in multipliers]
        radius = state.trust_radius * factor if state.trust_radius > 0 else None
        return Proposal(tuple(planned) if len(planned) > 1 else planned[0], radius)

    def feedback(self, state: TrainingState, outcome: Outcome) -> None:
        """Let the network learn from the relative reduction of the loss."""
        if self.options.multiplier != "learned":
            return
        proposed, radius = outcome.proposal.lr_multiplier, outcome.proposal.trust_radius
        multipliers = proposed if isinstance(proposed, tuple) else (proposed,)
        factor = None
        if outcome.constraint_active and radius is not None:
            factor = radius / state.trust_radius
        correction, shape = self._plan(state)
        if shape == 0:
            return
        tried = [_clipped(m / (correction * shape)) for m in multipliers]
        self.network.learn(tried, factor, relative_difference(outcome.loss_before, outcome.loss_after))

    def _plan(self, state: TrainingState) -> tuple[float, float]:
        """c and the shape."""
        self.given = self.given or state.relative_step
        correction = _clipped(self.options.relative_step / self.given) if self.given > 0 else 1.0
        if state.max_steps <= 0:
            mean = 1 - (self.options.warmup + self.options.decay) / 2
            return correction, mean if self.given > 0 else 1.0
        shape = self.shape.propose(state).lr_multiplier
        assert isinstance(shape, float)
        return correction, shape * (_step_for(state.max_steps) if self.given > 0 else 1.0)

    def state_dict(self) -> dict[str, Any]:
        """The network's state, and what the learning rate stood for."""
        return {**self.network.state_dict(), "given": self.given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the network and the plan."""
        self.network.load_state_dict(state)
        self.given = float(state["given"])


def _step_for(max_steps: int) -> float:
    """Relative steps in a run of `max_steps` (> 0) over those of 300: by the inverse root of its length.

    Where gradients are noisy, the best constant step falls with the root of their number (Nemirovski et al.
    2009, "Robust Stochastic Approximation", section 2.2). The bounds are what trials showed.
    """
    return min(max(math.sqrt(REFERENCE_STEPS / max_steps), SHORTEST_STEP), LONGEST_STEP)


def _clipped(multiplier: float) -> float:
    return min(max(multiplier, 1 / LARGEST_MULTIPLIER), LARGEST_MULTIPLIER)


def _deciding(rows: int) -> slice:
    """The rows that give multipliers: the clusters' where there are any, else the only one."""
    return slice(1, None) if rows > 1 else slice(None)


def _bounded(x: float, largest: float) -> float:
    return min(max(math.pow(largest, math.tanh(x)), 1 / largest), largest)


def _unbounded(y: float, largest: float) -> float:
    """The inverse of `_bounded`, up to the ends of the range."""
    end = 1 - 1e-9
    return math.atanh(min(max(math.log(y) / math.log(largest), -end), end))
