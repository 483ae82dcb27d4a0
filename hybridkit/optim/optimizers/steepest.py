"""Steepest descent in the norm that fits each parameter, by steps relative to the parameter's own size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from hybridkit.optim.optimizers.builder import NamedParameters
from hybridkit.optim.optimizers.orthogonal import orthogonalise
from hybridkit.optim.optimizers.stepping import Stepping
from hybridkit.optim.roles import Role, RoleNames, Roles
from hybridkit.options import option

Norm = Literal["spectral", "adam"]
TINY = 1e-12
_WIDTH = 128  # of the embeddings that `embedding` was found with
_RECENT = 0.9  # decay of the mean square of recent gradients that damping looks at


class RelativeDescent(Stepping):
    """Every step moves a parameter by a share of the size that it began with.

        W <- W - lr * reach * rms(W_0) * D

    so that lr * reach is the relative change of one step, whatever the scale of loss, gradient or layer. D is
    a direction of descent in the group's `norm`:

    - "spectral", for a matrix [N, K] (a convolution's kernel is one, [N, everything else]): the momentum M of
      the gradient, looking ahead as Nesterov's, with singular values set to 1 (Bernstein and Newhouse 2024,
      arXiv 2409.20325; Jordan et al. 2024, "Muon"), then each row over the root of its running mean square
      (Li et al. 2025, arXiv 2510.05491, "NorMuon"):

          M <- b M + (1 - b) G,    O = orthogonalise((1 - b) G + b M),
          v <- b' v + (1 - b') mean_k(O^2),    D = O / sqrt(v), scaled to a root mean square of 1

      A matrix whose shorter side is longer than `block` is orthogonalised in blocks of as many rows (or
      columns, if they are fewer), which costs min(m, n) / block times less. With `keep_norm`, W is scaled
      back to the Frobenius norm that it had before: it stays on a sphere, so that the relative change of a
      step stays what it is while others let their weights grow. `cautious` leaves entries where they are
      whose direction the gradient of this very step opposes, and moves the others as much further (Liang
      et al. 2024, arXiv 2411.16085, "Cautious Optimizers").
    - "adam": Adam's direction, each entry between -1 and 1 or so. For embeddings, output layers and vectors,
      which are used entry by entry.

    With `damped` the step is shortened by min(1, g / g'), the mean square of the norm of the parameter's
    gradient over the last ten steps or so, and over all, step t with weight t. D has the same length whatever
    the gradient is: once a network fits its data, gradients vanish, and steps of full length would follow
    their noise. (Adam's long memory, beta2 = 0.999, has the same effect.)

    A parameter that begins at zero (or below `least_size`) counts as that large.

    Args:
        params: parameters or groups, as for every optimizer.
        lr: learning rate.
        norm: of all groups that do not say.
        reach: relative change of one step per unit of learning rate.
        momentum: b above, Adam's beta1.
        row_decay: b' above; 0: no scaling of rows.
        beta2: Adam's.
        keep_norm, least_size, block, damped, cautious: see above.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        norm: Norm = "spectral",
        reach: float = 20.0,
        momentum: float = 0.9,
        row_decay: float = 0.95,
        beta2: float = 0.99,
        keep_norm: bool = True,
        least_size: float = 0.05,
        block: int = 128,
        damped: bool = True,
        cautious: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "norm": norm,
            "reach": reach,
            "momentum": momentum,
            "row_decay": row_decay,
            "beta2": beta2,
            "keep_norm": keep_norm,
            "least_size": least_size,
            "block": block,
            "damped": damped,
            "cautious": cautious,
        }
        super().__init__(params, defaults)

    def update(self) -> None:
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._move(group, parameters)

    def _move(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        spectral = group["norm"] == "spectral"
        directions = (self._spectral if spectral else self._adam)(group, parameters)
        keep = spectral and group["keep_norm"]
        before = torch._foreach_norm(parameters) if keep else ()
        length = group["lr"] * group["reach"]
        sizes = [self.state[p]["size"] for p in parameters]
        lengths = self._damped(parameters, length) if group["damped"] else length
        scales = torch._foreach_mul(sizes, lengths)
        directions = [d.view_as(p) for d, p in zip(directions, parameters, strict=True)]
        if spectral:
            if group["cautious"]:
                # signs clamped to 0 and 1: a comparison has no foreach, and a mask is one tensor at a time
                agrees = torch._foreach_mul(directions, [_gradient(p) for p in parameters])
                torch._foreach_sign_(agrees)
                torch._foreach_clamp_min_(agrees, 0)
                torch._foreach_mul_(directions, agrees)
            torch._foreach_div_(scales, torch._foreach_add(_rms(directions), TINY))
        torch._foreach_mul_(directions, scales)
        torch._foreach_sub_(parameters, directions)
        if keep:
            after = torch._foreach_norm(parameters)
            torch._foreach_clamp_min_(after, TINY)
            torch._foreach_mul_(parameters, torch._foreach_div(before, after))

    def _damped(self, parameters: list[Tensor], length: float) -> list[Tensor]:
        """`length` for each parameter, shortened as its gradient has become small."""
        states = [self.state[p] for p in parameters]
        norms = [norm.float() for norm in torch._foreach_norm([_gradient(p) for p in parameters])]
        squares = torch._foreach_mul(norms, norms)
        for state, square in zip(states, squares, strict=True):
            if "recent" not in state:
                state.update(recent=torch.zeros_like(square), past=torch.zeros_like(square))
        recent, past = ([state[name] for state in states] for name in ("recent", "past"))
        torch._foreach_lerp_(recent, squares, 1 - _RECENT)
        # weights 1, 2, 3, ..., over their sum
        torch._foreach_lerp_(past, squares, [2 / (state["step"] + 1) for state in states])
        ratios = torch._foreach_div(recent, torch._foreach_add(past, TINY**2))
        torch._foreach_div_(ratios, [1 - _RECENT ** s["step"] for s in states])
        torch._foreach_clamp_max_(ratios, 1.0)
        torch._foreach_mul_(ratios, length)
        return list(ratios)

    def _spectral(self, group: dict[str, Any], parameters: list[Tensor]) -> list[Tensor]:
        momentum, decay = group["momentum"], group["row_decay"]
        for p in parameters:
            if not self.state[p]:
                rows = torch.zeros(len(p), 1, device=p.device)
                size = _rms([p])[0].clamp(min=TINY)
                self.state[p].update(step=0, momentum=torch.zeros_like(p), rows=rows, size=size)
            self.state[p]["step"] += 1
        states = [self.state[p] for p in parameters]
        gradients = [_gradient(p) for p in parameters]
        buffers = [state["momentum"] for state in states]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, buffers, momentum)
        units = _orthogonalised([direction.flatten(1).float() for direction in ahead], group["block"])
        if decay == 0:
            return units
        means = [torch.linalg.vector_norm(unit, dim=1, keepdim=True) for unit in units]
        torch._foreach_mul_(means, means)
        torch._foreach_div_(means, [float(unit.shape[1]) for unit in units])
        averages = [state["rows"] for state in states]
        torch._foreach_lerp_(averages, means, 1 - decay)
        scales = torch._foreach_div(averages, [1 - decay ** state["step"] for state in states])
        torch._foreach_sqrt_(scales)
        torch._foreach_clamp_min_(scales, TINY)
        for unit, scale in zip(units, scales, strict=True):
            unit.div_(scale)
        return units

    def _adam(self, group: dict[str, Any], parameters: list[Tensor]) -> list[Tensor]:
        beta1, beta2 = group["momentum"], group["beta2"]
        for p in parameters:
            state = self.state[p]
            if not state:
                mean, square = torch.zeros_like(p), torch.zeros_like(p)
                size = _rms([p])[0].clamp(min=group["least_size"])
                state.update(step=0, mean=mean, square=square, size=size)
            state["step"] += 1
        states = [self.state[p] for p in parameters]
        gradients = [_gradient(p) for p in parameters]
        means, squares = ([state[name] for state in states] for name in ("mean", "square"))
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1 - beta2)
        directions = torch._foreach_div(means, [1 - beta1 ** state["step"] for state in states])
        roots = torch._foreach_div(squares, [1 - beta2 ** state["step"] for state in states])
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, TINY)
        torch._foreach_div_(directions, roots)
        return list(directions)


def _orthogonalised(matrices: Sequence[Tensor], block: int) -> list[Tensor]:
    """Each of them in blocks of at most `block` along the shorter side; blocks of one shape together."""
    found = [torch.empty_like(matrix) for matrix in matrices]
    pieces = [
        pair for matrix, into in zip(matrices, found, strict=True) for pair in _blocks(matrix, into, block)
    ]
    pieces.sort(key=lambda pair: pair[0].shape)
    for _, same in groupby(pieces, key=lambda pair: pair[0].shape):
        members = list(same)
        units = orthogonalise(torch.stack([piece for piece, _ in members]))
        torch._foreach_copy_([into for _, into in members], list(units.unbind()))
    return found


def _blocks(matrix: Tensor, into: Tensor, block: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of a wide or transposed tall matrix and of its result, block by block."""
    if matrix.shape[0] > matrix.shape[1]:
        matrix, into = matrix.mT, into.mT
    yield from zip(torch.split(matrix, block), torch.split(into, block), strict=True)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None  # step() takes no others
    return parameter.grad


def _rms(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """The root mean square of each, 0-d; float32, or float64 for float64."""
    wide = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    norms = torch._foreach_norm(tensors, 2, dtype=wide)
    torch._foreach_div_(norms, [math.sqrt(t.numel()) for t in tensors])
    return norms


class Steepest:
    """Relative steps: hidden matrices and convolutions in the spectral norm, the rest along Adam's direction.

    A learning rate of 1e-3 changes a hidden matrix by 6 % a step at most. Embeddings move `embedding` times
    as far, the output layer `output` times, vectors (biases, norm weights, quantizer steps) `vector` times.
    Embeddings wider than 128 move 128 / width as far as that: a tied one makes the logits, to which all
    columns add up, so that the same step of each would change wider networks more (Yang et al. 2022, arXiv
    2203.03466). There is no weight decay, as norms are kept. The run's `momentum` is that of all parameters.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options(RoleNames):
        """Options of `steepest`."""

        reach: Annotated[float, Gt(0.0)] = option(
            60.0, "relative change of a hidden matrix per unit of the learning rate"
        )
        embedding: Annotated[float, Gt(0.0)] = option(
            8.0, "how far embeddings of up to 128 columns move, relative to hidden matrices"
        )
        output: Annotated[float, Gt(0.0)] = option(1.0, "how far the output layer moves")
        vector: Annotated[float, Gt(0.0)] = option(0.1, "how far vectors move, relative to matrices")
        row_decay: Annotated[float, Ge(0.0), Lt(1.0)] = option(
            0.95, "decay of the mean square by which rows are scaled; 0: rows are left alone"
        )
        beta2: Annotated[float, Ge(0.0), Lt(1.0)] = option(
            0.99, "decay of the squared gradient's average (Adam)"
        )
        keep_norm: bool = option(True, "hidden matrices keep their Frobenius norm")
        damped: bool = option(True, "steps shrink where gradients have become small")
        cautious: bool = option(True, "hidden weights whose direction the gradient opposes stay")
        block: Annotated[int, Ge(1)] = option(
            128, "longest shorter side of what is orthogonalised as one matrix"
        )

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def build(
        self,
        named_parameters: NamedParameters,
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
        roles: Roles | None = None,
    ) -> torch.optim.Optimizer:
        """The optimizer; `momentum` is that of all parameters."""
        o = self.options
        known = o.known(named_parameters, roles)
        treatments: dict[Role, tuple[Norm, float]] = {
            Role.HIDDEN: ("spectral", 1.0),
            Role.EMBEDDING: ("adam", o.embedding),
            Role.OUTPUT: ("adam", o.output),
            Role.VECTOR: ("adam", o.vector),
        }
        members: dict[tuple[Role, float], list[Tensor]] = {}
        for name, p in named_parameters:
            role = known[name]
            narrowing = _WIDTH / max(p.shape[-1], _WIDTH) if role == Role.EMBEDDING else 1.0
            members.setdefault((role, narrowing), []).append(p)
        groups = []
        for role, (norm, factor) in treatments.items():
            for (of, narrowing), parameters in members.items():
                if of == role:
                    reach = o.reach * factor * narrowing
                    groups.append({"params": parameters, "norm": norm, "reach": reach})
        return RelativeDescent(
            groups,
            lr,
            momentum=momentum,
            row_decay=o.row_decay,
            beta2=o.beta2,
            keep_norm=o.keep_norm,
            block=o.block,
            damped=o.damped,
            cautious=o.cautious,
        )
