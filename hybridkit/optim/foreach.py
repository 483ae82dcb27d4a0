"""Maths over lists of tensors: a few kernels for a whole model, nothing synchronised."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

_ROW = 4096
"""Length of the runs that are summed in fp32 on a CPU, whose kernels do not sum in pairs."""


class Flat(list[Tensor]):
    """Tensors that lie one after another in one buffer, so that the functions here see one tensor.

    `buffer` is 1-d and padded with zeros to whole rows of 4,096 numbers.
    """

    def __init__(self, shapes: Iterable[torch.Size], dtype: torch.dtype, device: torch.device) -> None:
        shapes = list(shapes)
        sizes = [shape.numel() for shape in shapes]
        self.buffer = torch.zeros(-(-sum(sizes) // _ROW) * _ROW, dtype=dtype, device=device)
        parts = torch.split(self.buffer[: sum(sizes)], sizes)
        super().__init__(part.view(shape) for part, shape in zip(parts, shapes, strict=True))


def zeros_like(tensors: Sequence[Tensor], *, wide: bool = False) -> list[Tensor]:
    """Zeros of the same shapes: a `Flat` where dtype and device are everywhere the same.

    With `wide`, in fp32 at least.
    """
    dtypes = [torch.promote_types(t.dtype, torch.float32) if wide else t.dtype for t in tensors]
    if len(set(dtypes)) == 1 and len({t.device for t in tensors}) == 1:
        return Flat([t.shape for t in tensors], dtypes[0], tensors[0].device)
    return [torch.zeros(t.shape, dtype=d, device=t.device) for t, d in zip(tensors, dtypes, strict=True)]


def add_(targets: list[Tensor], others: list[Tensor]) -> None:
    """Add tensor by tensor, in place."""
    if isinstance(targets, Flat) and isinstance(others, Flat):
        targets.buffer.add_(others.buffer)
    else:
        torch._foreach_add_(targets, others)


def subtract_(targets: list[Tensor], others: list[Tensor]) -> None:
    """Subtract tensor by tensor, in place."""
    if isinstance(targets, Flat) and isinstance(others, Flat):
        targets.buffer.sub_(others.buffer)
    else:
        torch._foreach_sub_(targets, others)


def scale_(targets: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply all tensors by one factor (0-d), in place."""
    if isinstance(targets, Flat):
        targets.buffer.mul_(factor)
    else:
        torch._foreach_mul_(list(targets), factor)


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """The l2 norm of each tensor: fp32 [len(tensors)] on the first tensor's device.

    Relative error below 1e-5 for any size: PyTorch's CPU kernel alone is off by 8e-3 for 10 million equal
    numbers, so large tensors are reduced row by row there.
    """
    if not tensors:
        return torch.zeros(0)
    wide = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    each = torch._foreach_norm([_rows(t) for t in tensors], 2, dtype=wide)
    return torch.stack(_on(each, tensors[0].device)).float()


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """The l2 norm of all tensors together, fp32 0-d; as accurate as `norms`."""
    if isinstance(tensors, Flat):
        return total_norm(_row_norms(tensors.buffer))
    return total_norm(norms(tensors))


def total_norm(each: Tensor) -> Tensor:
    """The l2 norm of everything, fp32 0-d, from the norms of the parts."""
    total: Tensor = torch.linalg.vector_norm(each)
    return total.float()


def _rows(tensor: Tensor) -> Tensor:
    """A smaller tensor of the same norm where the norm of this one would be inaccurate."""
    if tensor.device.type != "cpu" or tensor.numel() <= 4 * _ROW:
        return tensor
    flat = tensor.reshape(-1)
    whole = flat.numel() // _ROW * _ROW
    rows = _row_norms(flat[:whole])
    return rows if whole == flat.numel() else torch.cat((rows, flat[whole:].to(rows.dtype)))


def _row_norms(flat: Tensor) -> Tensor:
    wide = torch.promote_types(flat.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(flat.view(-1, _ROW), dim=1, dtype=wide)
    return norms


def _on(tensors: Iterable[Tensor], device: torch.device) -> list[Tensor]:
    return [t if t.device == device else t.to(device) for t in tensors]


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """The inner product of two lists of tensors of equal shapes, fp32 0-d."""
    parts = [(a.float() * b.float()).sum() for a, b in zip(left, right, strict=True)]
    return torch.stack(_on(parts, left[0].device)).sum()


def gradient_norms(parameters: Sequence[Tensor]) -> Tensor:
    """The l2 norm of each parameter's gradient, 0 where there is none: fp32 [len(parameters)]."""
    found = norms([p.grad for p in parameters if p.grad is not None])
    if len(found) == len(parameters):
        return found
    zero, each = found.new_zeros(()), iter(found.unbind())
    return torch.stack([zero if p.grad is None else next(each) for p in parameters])


def gradient_dot(parameters: Sequence[Tensor], directions: Sequence[Tensor]) -> Tensor:
    """The inner product of the gradient, where there is one, with a direction: fp32 0-d."""
    pairs = [(p.grad, d) for p, d in zip(parameters, directions, strict=True) if p.grad is not None]
    return dot([g for g, _ in pairs], [d for _, d in pairs])


def vector(values: Sequence[float], device: torch.device) -> Tensor:
    """Numbers as fp32 [len(values)] on `device`, without the synchronisation of a copy from the host."""
    if device.type == "cpu":
        return torch.tensor(values, dtype=torch.float32)
    return torch.stack([torch.full((), v, dtype=torch.float32, device=device) for v in values])


def membership(clusters: Sequence[int], count: int, device: torch.device) -> Tensor:
    """fp32 [len(clusters), count]: 1 where the tensor belongs to the cluster. For `cluster_norms`."""
    return torch.nn.functional.one_hot(torch.tensor(clusters), count).float().to(device)


def cluster_norms(each: Tensor, members: Tensor) -> Tensor:
    """The l2 norm of each cluster of tensors, fp32 [count], from the norms of the tensors.

    A sum over a mask and not `index_add_`, whose order on a GPU is not the same twice.
    """
    if members.shape[1] == 1:
        return total_norm(each)[None]
    return (each.square()[:, None] * members).sum(0).sqrt()
