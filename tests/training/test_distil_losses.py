"""Each distillation loss against a twin of a few obvious lines, over shapes and masks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybridkit.errors import UsageError
from hybridkit.training.distillation import losses
from hybridkit.training.distillation.agreement import divergences
from hybridkit.training.distillation.layers import paired_blocks
from hybridkit.training.distillation.losses import (
    distillation_loss,
    embedding_loss,
    hidden_loss,
    pooled,
    relation_loss,
)
from hybridkit.training.distillation.projection import LeastSquares
from hybridkit.training.distillation.terms import parse_layer_map, parse_terms

Case = tuple[Tensor, Tensor, Tensor]


@st.composite
def cases(draw: st.DrawFn, widths: tuple[int, ...] = (4, 6, 64, 96), same: bool = True) -> Case:
    """Student and teacher [batch, positions, width], and a mask in which each sample has a position."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    ours = draw(st.sampled_from(widths))
    theirs = ours if same else draw(st.sampled_from(widths))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    lengths = draw(st.lists(st.integers(1, length), min_size=batch, max_size=batch))
    mask = torch.tensor([[int(p < n) for p in range(length)] for n in lengths])
    student, teacher = (torch.randn(batch, length, w, generator=generator) for w in (ours, theirs))
    return student, teacher, mask


def rows(tensor: Tensor, mask: Tensor) -> list[Tensor]:
    """The positions that count, one by one."""
    return [tensor[b, p].double() for b in range(len(mask)) for p in range(mask.shape[1]) if mask[b, p]]


@given(cases(), st.floats(0.5, 4))
@settings(max_examples=40, deadline=None)
def test_logits(case: Case, temperature: float) -> None:
    student, teacher, mask = case
    pairs = list(zip(rows(student, mask), rows(teacher, mask), strict=True))
    expected = 0.0
    for s, t in pairs:
        p, q = F.softmax(t / temperature, 0), F.softmax(s / temperature, 0)
        expected += temperature**2 * float((p * (p / q).log()).sum()) / len(pairs)
    assert float(distillation_loss(student, teacher, temperature, mask)) == pytest.approx(
        expected, rel=1e-3, abs=1e-5
    )


@given(cases(), st.floats(0.5, 4), st.booleans(), st.sampled_from([1, 8, 1000]))
@settings(max_examples=40, deadline=None)
def test_logits_have_autograds_gradient(case: Case, temperature: float, whole: bool, at_once: int) -> None:
    student, teacher, mask = (x.double() for x in case)
    kept = torch.ones_like(mask, dtype=torch.bool) if whole else mask > 0
    student.requires_grad_()
    ours, theirs = (F.log_softmax(x[kept] / temperature, -1) for x in (student, teacher))
    plain = temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    (expected,) = torch.autograd.grad(3 * plain, student)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "AT_ONCE", at_once)
        found = distillation_loss(student, teacher, temperature, None if whole else mask)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(torch.autograd.grad(3 * found, student)[0], expected)


def test_logits_of_low_precision_are_compared_in_float32() -> None:
    student, teacher = (torch.randn(2, 5, 50, dtype=torch.bfloat16) for _ in range(2))
    student.requires_grad_()
    found = distillation_loss(student, teacher, 2.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, distillation_loss(student.float(), teacher.float(), 2.0))
    (gradient,) = torch.autograd.grad(found, student)
    wide = student.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(distillation_loss(wide, teacher, 2.0), wide)
    torch.testing.assert_close(gradient, expected.bfloat16(), rtol=0.02, atol=1e-5)


@given(cases())
@settings(max_examples=40, deadline=None)
def test_hidden_states(case: Case) -> None:
    student, teacher, mask = case
    ours, theirs = torch.stack(rows(student, mask)), torch.stack(rows(teacher, mask))
    sizes = [max(float(a @ a), float(b @ b)) for a, b in zip(ours, theirs, strict=True)]
    median = float(theirs.square().sum(1).median())
    counts = [min(1.0, 10 * median / size) for size in sizes]
    weights = torch.tensor(counts, dtype=torch.float64)[:, None]
    mean = float((weights * theirs).sum() / (weights * torch.ones_like(theirs)).sum())
    expected = (weights * (ours - theirs).square()).sum() / (weights * (theirs - mean).square()).sum()
    assert float(hidden_loss(student, teacher, mask)) == pytest.approx(float(expected), rel=1e-4)
    assert float(hidden_loss(teacher, teacher, mask)) == 0


@given(cases(same=False))
@settings(max_examples=60, deadline=None)
def test_relations(case: Case) -> None:
    student, teacher, mask = case
    heads = max(math.gcd(student.shape[-1], teacher.shape[-1]) // 32, 1)
    divergences = []
    for s, t, m in zip(student.double(), teacher.double(), mask, strict=True):
        s, t = s[m > 0], t[m > 0]
        for ours, theirs in zip(s.chunk(heads, -1), t.chunk(heads, -1), strict=True):
            q = F.softmax(ours @ ours.T / math.sqrt(ours.shape[-1]), -1)
            p = F.softmax(theirs @ theirs.T / math.sqrt(theirs.shape[-1]), -1)
            divergences.append((p * (p.log() - q.log())).sum(-1))
    expected = float(torch.cat(divergences).mean())
    assert float(relation_loss(student, teacher, mask)) == pytest.approx(expected, rel=1e-3, abs=1e-6)


@given(cases())
@settings(max_examples=40, deadline=None)
def test_embeddings(case: Case) -> None:
    student, teacher, mask = case
    means = [
        [x[m > 0].double().mean(0) for x, m in zip(side, mask, strict=True)] for side in (student, teacher)
    ]
    cosines = [float(s @ t / s.norm() / t.norm()) for s, t in zip(*means, strict=True)]
    found = embedding_loss(pooled(student, mask), pooled(teacher, mask))
    assert float(found) == pytest.approx(1 - sum(cosines) / len(cosines), abs=1e-5)


@given(cases())
@settings(max_examples=30, deadline=None)
def test_what_lies_under_the_mask_changes_nothing(case: Case) -> None:
    student, teacher, mask = case
    torn = torch.where(mask[..., None] > 0, student, torch.full_like(student, 1e4))
    terms = [
        lambda s: distillation_loss(s, teacher, 2.0, mask),
        lambda s: hidden_loss(s, teacher, mask),
        lambda s: relation_loss(s, teacher, mask),
        lambda s: embedding_loss(pooled(s, mask), pooled(teacher, mask)),
    ]
    for loss in terms:
        clean, other = (x.clone().requires_grad_() for x in (student, torn))
        (a, b) = (loss(clean), loss(other))
        assert torch.equal(a, b)
        (gradient,) = torch.autograd.grad(b, other)
        assert bool(gradient.isfinite().all())
        assert not gradient[mask == 0].any()


def test_a_batch_of_padding_alone_is_no_error() -> None:
    x, mask = torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)
    found = [
        distillation_loss(x, x + 1, 2.0, mask),
        hidden_loss(x, x + 1, mask),
        relation_loss(x, x + 1, mask),
    ]
    assert [float(value) for value in found] == [0, 0, 0]


def test_without_a_mask_every_position_counts() -> None:
    student, teacher = torch.randn(2, 3, 64), torch.randn(2, 3, 64)
    ones = torch.ones(2, 3)
    for loss in (hidden_loss, relation_loss):
        assert float(loss(student, teacher)) == pytest.approx(float(loss(student, teacher, ones)), rel=1e-5)
    images = torch.randn(2, 3, 4, 4)
    assert float(hidden_loss(images, images + 1, ones)) > 0  # another shape: the mask is of something else


def test_the_map_between_widths_finds_a_linear_relation() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, offset = torch.randn(5, 8, generator=generator), torch.randn(8, generator=generator)
    both = LeastSquares(5, 8, torch.device("cpu"))
    for _ in range(3):
        ours = torch.randn(50, 5, generator=generator)
        theirs = ours @ truth + offset
        mapped = both(ours, theirs)
    assert torch.allclose(mapped, theirs, atol=1e-2)
    other = LeastSquares(5, 8, torch.device("cpu"))
    other.load_state_dict(both.state_dict())
    assert torch.equal(other(ours, theirs), both(ours, theirs))


def test_terms_and_maps_are_read() -> None:
    assert parse_terms("hidden:2, embedding") == {"hidden": 2.0, "embedding": 1.0}
    assert parse_layer_map("1:3,0:1") == ((0, 1), (1, 3))
    assert paired_blocks(3, 6) == ((0, 1), (1, 3), (2, 5))
    assert paired_blocks(6, 6) == tuple((i, i) for i in range(6))
    assert paired_blocks(4, 2) == ((0, 0), (1, 0), (2, 0), (3, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hiden", "did you mean 'hidden'"),
        ("hidden,hidden", "twice"),
        ("hidden:0", "above 0"),
        ("hidden:nan", "above 0"),
        ("hidden:x", "above 0"),
        ("", "there is no term ''"),
    ],
)
def test_terms_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_terms(text)


@pytest.mark.parametrize(("text", "message"), [("0", "no pair"), ("0:1,0:2", "twice"), ("a:b", "no pair")])
def test_maps_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_layer_map(text)
    with pytest.raises(UsageError, match="the student has blocks 0 to 1"):
        paired_blocks(2, 4, ((2, 0),))


@given(cases(), st.booleans())
@settings(max_examples=30, deadline=None)
def test_agreement_is_that_of_each_position(case: Case, whole: bool) -> None:
    student, teacher, mask = case
    counted = torch.ones_like(mask) if whole else mask
    found = divergences(student, teacher, None if whole else mask)
    pairs = list(zip(rows(student, counted), rows(teacher, counted), strict=True))
    kl = [float((t.softmax(0) * (t.log_softmax(0) - s.log_softmax(0))).sum()) for s, t in pairs]
    assert found["teacher_kl"].tolist() == pytest.approx(kl, rel=1e-4, abs=1e-5)
    assert found["teacher_top1"].tolist() == [float(s.argmax() == t.argmax()) for s, t in pairs]
