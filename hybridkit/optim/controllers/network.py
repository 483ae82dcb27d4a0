"""A small network that learns online how long the steps should be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hybridkit.errors import UsageError
from hybridkit.optim.controllers.features import FEATURES, Features
from hybridkit.optim.protocol import TrainingState

Array = NDArray[np.float64]

LARGEST_MULTIPLIER = 10.0
LARGEST_RADIUS_FACTOR = 2.0
_BASELINE_RATE = 0.05
_NOISE_BLOCK = 256


class MultiplierNetwork:
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

    def decide(self, state: TrainingState) -> tuple[list[float], float]:
        """Multipliers (one, or one per parameter cluster) and the factor of the radius.

        Asked again before the feedback, it gives the same answer for the same state.
        """
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

    def learn(self, multipliers: Sequence[float], factor: float | None, improvement: float) -> None:
        """One policy-gradient step. `factor` None: the radius did not matter.

        The multipliers may be others than it decided. The improvement may have any unit: only its size
        relative to earlier ones counts.
        """
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


def _deciding(rows: int) -> slice:
    """The rows that give multipliers: the clusters' where there are any, else the only one."""
    return slice(1, None) if rows > 1 else slice(None)


def _bounded(x: float, largest: float) -> float:
    return min(max(math.pow(largest, math.tanh(x)), 1 / largest), largest)


def _unbounded(y: float, largest: float) -> float:
    """The inverse of `_bounded`, up to the ends of the range."""
    end = 1 - 1e-9
    return math.atanh(min(max(math.log(y) / math.log(largest), -end), end))
