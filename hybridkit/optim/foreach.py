"""Maths over lists of tensors: a few kernels for a whole model, nothing synchronised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ROW = 4096
"""Length of the runs that are summed in fp32 on a CPU, whose kernels do not sum in pairs."""


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """The l2 norm of each tensor: fp32 [len(tensors)] on the first tensor's device.

    Relative error below 1e-5 for any size: PyTorch's CPU kernel alone is off by 8e-3 for 10 million equal
    numbers, so large tensors are reduced row by row there.
    """
    if not tensors:
        return torch.zeros(0)
    if any((t.device.type == "cpu" and t.numel() > 4 * _ROW) or t.dtype == torch.float64 for t in tensors):
        each: Sequence[Tensor] = [_norm(t) for t in tensors]
    else:
        each = torch._foreach_norm(list(tensors), 2, dtype=torch.float32)
    device = tensors[0].device
    return torch.stack([n.to(device, torch.float32) for n in each])


def _norm(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    whole = flat.numel() // _ROW * _ROW
    wide = torch.promote_types(tensor.dtype, torch.float32)
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, _ROW), dim=1, dtype=wide)
    tail = torch.linalg.vector_norm(flat[whole:], dtype=wide)
    return total_norm(torch.cat((rows, tail[None])))


def total_norm(each: Tensor) -> Tensor:
    """The l2 norm of everything, 0-d, from the norms of the parts."""
    norm: Tensor = torch.linalg.vector_norm(each)
    return norm


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """The inner product of two lists of tensors of equal shapes, fp32 0-d."""
    device = left[0].device
    parts = [(a.float() * b.float()).sum().to(device) for a, b in zip(left, right, strict=True)]
    return torch.stack(parts).sum()


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
    return (each.square()[:, None] * members).sum(0).sqrt()
