"""Codes and scales that keep a layer's output: tr((W - Q) H (W - Q)^T) is least, with H the inputs' moments.

Three moves, each of which knows nothing of a quantizer but its levels:

- `feedback`: columns are rounded one after the other, and what rounding adds to the output is taken back by
  the columns that are still free (GPTQ, arXiv 2210.17323, in its Cholesky form and the order of diag(H)).
- `descend`: each code in turn becomes the best one while all others stay (coordinate descent, as QuantEase,
  arXiv 2309.01885). The error never grows.
- `best_scales`: for given codes the scales of least error, and offsets where there are some, a linear system
  for each row (as PT2-LLM, arXiv 2510.03267, alternates codes and scales of ternary weights). The error never
  grows.

All compute with torch tensors and with NumPy arrays alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from array_api_compat import array_namespace, device

from hybridkit.quant.protocol import QuantizedTensor
from hybridkit.quant.scales import Array, as_float32, divisor

DAMPING: Final = 0.01  # of the mean of diag(H), onto diag(H), as GPTQ has it
BLOCK: Final = 128  # columns whose effect on those behind them is put off
ROUNDS: Final = 4  # of scales and codes in turn
MOST_UNKNOWNS: Final = 1 << 23  # squared, of all rows whose scales are found at a time: bounds the memory


@dataclass(frozen=True, slots=True)
class Grid:
    """Evenly spaced levels.

    kept: None, or bool [N, K], which codes are a level; all others are 0 for good.
    """

    low: int
    high: int
    step: int
    kept: Array | None = None

    @classmethod
    def of(cls, levels: tuple[int, ...]) -> Grid:
        """That of a quantizer's levels."""
        return cls(levels[0], levels[-1], levels[1] - levels[0])

    @classmethod
    def in_pattern(cls, codes: Array) -> Grid:
        """-1 and +1, and 0 where these ternary codes [N, K] have it."""
        return cls(-1, 1, 2, codes != 0)

    def nearest(self, values: Array) -> Array:
        """The level next to each value."""
        xp = array_namespace(values)
        places = xp.round((values - self.low) / self.step)
        return xp.clip(places * self.step + self.low, self.low, self.high)

    def nearest_in(self, values: Array, column: int) -> Array:
        """The level next to each value [N] of a column, or 0."""
        found = self.nearest(values)
        return found if self.kept is None else found * self.kept[:, column]


def evenly_spaced(levels: Sequence[int]) -> bool:
    """Whether levels make a `Grid`: there are two or more, equally far apart."""
    return len({b - a for a, b in pairwise(levels)}) == 1


def fit_output(
    weight: Array,
    gram: Array,
    start: QuantizedTensor,
    grid: Grid,
    rounds: int = ROUNDS,
) -> QuantizedTensor:
    """Codes and scales of the least output error that the three moves find from the scales of `start`.

    weight: float [N, K]. gram: H, float [K, K], symmetric, positive semidefinite. start: what a quantizer
    with the levels of `grid` made of `weight`. The result has its form, and no larger error under damped H.
    """
    xp = array_namespace(weight)
    weight, moments = as_float32(weight), damped(gram)
    size = start.group_size or weight.shape[1]
    scale = as_float32(start.scale).reshape(weight.shape[0], -1)
    offset = None if start.offset is None else as_float32(start.offset).reshape(weight.shape[0], -1)
    rest = without_offset(weight, offset, size)  # what codes and scales are to make
    given = per_weight(scale, size, weight.shape[1])
    begun = xp.astype(start.codes, xp.float32)
    codes = feedback(rest, moments, given, grid)
    worse = output_errors(rest, moments, codes * given) > output_errors(rest, moments, begun * given)
    codes = xp.where(worse[:, None], begun, codes)
    for _ in range(rounds):
        scale, offset = best_scales(weight, moments, codes, size, scale, offset)
        rest = without_offset(weight, offset, size)
        codes = descend(rest, moments, codes, per_weight(scale, size, weight.shape[1]), grid)
    shape = start.scale.shape
    offset = None if offset is None else offset.reshape(shape)
    return QuantizedTensor(xp.astype(codes, xp.int8), scale.reshape(shape), start.group_size, offset)


def without_offset(weight: Array, offset: Array | None, size: int) -> Array:
    """Weights [N, K] less their offsets [N, G], of groups of `size` columns."""
    return weight if offset is None else weight - per_weight(offset, size, weight.shape[1])


def per_weight(scale: Array, size: int, K: int) -> Array:
    """Scales [N, G] of groups of `size` columns as [N, K]."""
    return array_namespace(scale).repeat(scale, size, axis=1)[:, :K]


def damped(gram: Array, share: float = DAMPING) -> Array:
    """H + share * mean(diag(H)) I in float32; the identity where nothing but zeros came in."""
    xp = array_namespace(gram)
    identity = xp.eye(gram.shape[0], dtype=xp.float32, device=device(gram))
    mean = float(xp.mean(xp.linalg.diagonal(gram)))
    return as_float32(gram) + share * mean * identity if mean > 0 else identity


def output_errors(weight: Array, moments: Array, quantized: Array) -> Array:
    """(w - q) H (w - q)^T of each row, [N]."""
    off = weight - quantized
    return array_namespace(off).sum((off @ moments) * off, axis=1)


def feedback(weight: Array, moments: Array, scale: Array, grid: Grid) -> Array:
    """Codes [N, K] for the scales [N, K] of each weight, by error feedback."""
    xp = array_namespace(weight)
    order = xp.argsort(xp.linalg.diagonal(moments), descending=True)
    free, scale = weight[:, order], divisor(scale[:, order])  # copies
    inverse = xp.linalg.inv(xp.astype(moments[order, :][:, order], xp.float64))
    factor = xp.astype(xp.linalg.cholesky((inverse + inverse.T) / 2, upper=True), xp.float32)
    codes = xp.zeros_like(free)
    for block in _blocks(weight.shape[1]):
        inside, rows = free[:, block], factor[block, block]  # views
        off = xp.zeros_like(inside)
        for k in range(inside.shape[1]):
            place = block.start + k
            codes[:, place] = grid.nearest_in(inside[:, k] / scale[:, place], int(order[place]))
            off[:, k] = (inside[:, k] - codes[:, place] * scale[:, place]) / rows[k, k]
            inside[:, k + 1 :] -= off[:, k, None] * rows[k, k + 1 :]
        free[:, block.stop :] -= off @ factor[block, block.stop :]
    return codes[:, xp.argsort(order)]


def descend(weight: Array, moments: Array, codes: Array, scale: Array, grid: Grid) -> Array:
    """One sweep over the columns: each code [N, K] the best one, all others given. scale: [N, K]."""
    xp = array_namespace(weight)
    codes, scale = xp.asarray(codes, copy=True), divisor(scale)
    pull = (weight - codes * scale) @ moments  # half of minus the gradient, by the quantised weight
    for block in _blocks(weight.shape[1]):
        inside, rows = pull[:, block], moments[block, block]  # views
        moved = xp.zeros_like(inside)
        for k in range(inside.shape[1]):
            place = block.start + k
            now = codes[:, place]
            best = grid.nearest_in(now + inside[:, k] / (rows[k, k] * scale[:, place]), place)
            moved[:, k] = (best - now) * scale[:, place]
            codes[:, place] = best
            inside[:, k + 1 :] -= moved[:, k, None] * rows[k, k + 1 :]
        pull[:, block.stop :] -= moved @ moments[block, block.stop :]
    return codes


def best_scales(
    weight: Array, moments: Array, codes: Array, size: int, scale: Array, offset: Array | None = None
) -> tuple[Array, Array | None]:
    """The scales [N, G], and offsets where there are some, of least error for given codes.

    A row keeps its own where a scale would change its sign. size: how many columns share a scale. scale,
    offset: [N, G], what they were.
    """
    xp = array_namespace(weight)
    N, G = scale.shape
    groups = [slice(g * size, min((g + 1) * size, weight.shape[1])) for g in range(G)]
    unknowns = G if offset is None else 2 * G
    step = max(1, MOST_UNKNOWNS // unknowns**2)
    parts = []
    for rows in (slice(i, i + step) for i in range(0, N, step)):
        left, right = _normal_equations(weight[rows], moments, codes[rows], groups, offset is not None)
        diagonal = xp.linalg.diagonal(left)
        idle = diagonal <= 0  # groups of zeros
        more = xp.where(idle, xp.ones_like(diagonal), 1e-9 * diagonal)
        left = left + more[:, :, None] * xp.eye(unknowns, dtype=xp.float64, device=device(weight))
        found = xp.astype(xp.linalg.solve(left, right[:, :, None])[:, :, 0], xp.float32)
        scales = xp.where(idle[:, :G], scale[rows], found[:, :G])
        fit = xp.all(scales * scale[rows] > 0, axis=1, keepdims=True)
        before = scale[rows] if offset is None else xp.concat([scale[rows], offset[rows]], axis=1)
        parts.append(xp.where(fit, xp.concat([scales, found[:, G:]], axis=1), before))
    made = xp.concat(parts, axis=0)
    return made[:, :G], None if offset is None else made[:, G:]


def _normal_equations(
    weight: Array, moments: Array, codes: Array, groups: Sequence[slice], offsets: bool
) -> tuple[Array, Array]:
    """The system of each row, [N, U, U] and [N, U], for scales of groups, and then offsets of them.

    A row is a sum of scales times codes in their group and, where there are `offsets`, of offsets times ones.
    """
    xp = array_namespace(weight)
    N, G = codes.shape[0], len(groups)
    U = 2 * G if offsets else G
    left = xp.zeros((N, U, U), dtype=xp.float64, device=device(weight))
    right = xp.zeros((N, U), dtype=xp.float64, device=device(weight))
    target = weight @ moments
    for g, mine in enumerate(groups):
        reached = codes[:, mine] @ moments[mine, :]  # [N, K]
        right[:, g] = xp.sum(codes[:, mine] * target[:, mine], axis=1)
        if offsets:
            right[:, G + g] = xp.sum(target[:, mine], axis=1)
            ones = xp.sum(moments[mine, :], axis=0)  # [K]
        for h, other in enumerate(groups):
            left[:, g, h] = xp.sum(reached[:, other] * codes[:, other], axis=1)
            if offsets:
                left[:, g, G + h] = left[:, G + h, g] = xp.sum(reached[:, other], axis=1)
                left[:, G + g, G + h] = xp.sum(ones[other])
    return left, right


def _blocks(columns: int) -> Sequence[slice]:
    return [slice(first, min(first + BLOCK, columns)) for first in range(0, columns, BLOCK)]
