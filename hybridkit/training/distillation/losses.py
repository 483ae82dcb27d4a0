"""How far a student is from its teacher. All are means, 0-d, in float32, with the gradient to the student.

A mask is [batch, positions], above 0 where a position counts; it is None where all do. It is applied to
tensors whose first two dimensions it has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridkit.massive import relative_error

RELATION_WIDTH = 32  # of a relation head
AT_ONCE: Final = 2**22  # logits that are in float32 at a time


def distillation_loss(
    student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """T^2 * KL(teacher || student) of the distributions softened by T, mean over all positions.

    Both outputs are logits [..., classes] of one shape. T^2 keeps the gradient's size independent of T
    (Hinton, Vinyals & Dean 2015, arXiv 1503.02531).
    """
    kept = positions(student, mask)
    rows = None if kept is None or bool(kept.all()) else kept.flatten().nonzero()[:, 0]
    apply: Callable[..., Tensor] = _Softened.apply
    return apply(student.flatten(0, -2), teacher.flatten(0, -2), temperature, rows)


class _Softened(torch.autograd.Function):
    """`distillation_loss` of some rows of logits [rows, classes], with its gradient, a few rows at a time.

    A vocabulary makes logits the largest tensors of a step; autograd would keep half a dozen of their size.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, temperature: float, rows: Tensor | None
    ) -> Tensor:
        gradient = torch.zeros_like(student) if rows is not None else torch.empty_like(student)
        places = torch.arange(len(student), device=student.device) if rows is None else rows
        wide = torch.promote_types(student.dtype, torch.float32)
        total = student.new_zeros((), dtype=wide)
        for some in torch.split(places, max(AT_ONCE // student.shape[-1], 1)):
            ours = F.log_softmax(student[some].to(wide) / temperature, dim=-1)
            theirs = F.log_softmax(teacher[some].to(wide) / temperature, dim=-1)
            share = theirs.exp()
            total += (share * (theirs - ours)).sum()
            gradient[some] = (ours.exp_() - share).to(student.dtype)
        count = max(len(places), 1)
        ctx.save_for_backward(gradient)
        ctx.factor = temperature / count
        return temperature**2 * total / count

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (given * ctx.factor).to(gradient.dtype), None, None, None


def hidden_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """`relative_error` over all positions that count.

    Hidden states [batch, positions, width], or features of any other shape. It is the mean squared error of
    TinyBERT (Jiao et al. 2019, arXiv 1909.10351) in units of the teacher's variance, so that one weight suits
    every layer and network, and without what very large positions would make of it.
    """
    kept = positions(student, mask)
    student, teacher = (student[kept], teacher[kept]) if kept is not None else (student, teacher)
    return relative_error(student, teacher)


def relation_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """KL(teacher || student) of attention relations, mean over relation heads and positions that count.

    MiniLMv2 (Wang et al. 2020, arXiv 2012.15828): queries (or keys, or values) [batch, positions, width] are
    split anew into heads of width d, and a head's relation is softmax(A A^T / sqrt(d)) over the positions
    that count. Networks of other widths and numbers of heads have relations of one shape. There are as many
    heads of 32 or more as both widths allow.
    """
    heads = max(math.gcd(student.shape[-1], teacher.shape[-1]) // RELATION_WIDTH, 1)
    while student.shape[-1] % heads or teacher.shape[-1] % heads:
        heads -= 1
    ours, theirs = log_relations(student, heads, mask), log_relations(teacher, heads, mask)
    divergence = (theirs.exp() * (theirs - ours)).sum(-1).mean(1)  # [batch, positions]
    if mask is None:
        return divergence.mean()
    counts = (mask > 0).to(divergence)
    return (divergence * counts).sum() / counts.sum().clamp(min=1)


def log_relations(states: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """log softmax(A A^T / sqrt(d)), float32 [batch, heads, positions, positions]."""
    split = torch.unflatten(states.float(), -1, (heads, -1)).transpose(1, 2)
    scores = split @ split.transpose(-1, -2) / math.sqrt(split.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(mask[:, None, None] <= 0, torch.finfo(scores.dtype).min)
    return F.log_softmax(scores, dim=-1)


def embedding_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine of the embeddings [batch, width], mean over the batch."""
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).mean()


def pooled(hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean of [batch, positions, width] over the positions that count, float32 [batch, width]."""
    hidden = hidden.float()
    if positions(hidden, mask) is None or mask is None:
        return hidden.mean(1)
    counts = (mask > 0).to(hidden)[..., None]
    return (hidden * counts).sum(1) / counts.sum(1).clamp(min=1)


def positions(tensor: Tensor, mask: Tensor | None) -> Tensor | None:
    """Where `tensor` [batch, positions, ...] counts, bool [batch, positions]; None: everywhere."""
    if mask is None or tensor.dim() < 3 or tensor.shape[:2] != mask.shape:
        return None
    return mask > 0
