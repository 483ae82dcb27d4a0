"""What every constraint on the update promises."""

from __future__ import annotations

from abc import ABC, abstractmethod

import pytest
import torch
from torch import Tensor

from hybridkit.optim.protocol import Constraint, ConstraintReport

_SHAPES: tuple[tuple[int, ...], ...] = ((7, 5), (5,), (3, 2, 3, 3), (1, 1), (), (6, 9))
_CLUSTERS = (0, 0, 1, 1, 2, 2)
_RADII = (1e-6, 1e-2, 0.3, 1.0, 10.0)


class ConstraintContract(ABC):
    """`make` returns a new constraint. It is bound to six tensors in three parameter clusters."""

    @abstractmethod
    def make(self) -> Constraint:
        """A new constraint."""

    @pytest.mark.parametrize("radius", _RADII)
    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
    def test_never_enlarges_an_update(self, radius: float, scale: float) -> None:
        parameters, updates = tensors(scale)
        projected, report = self._project(parameters, updates, radius)
        assert report.norm.shape == ()
        assert report.active.shape == (len(updates),)
        assert report.active.dtype == torch.bool
        for before, after, active in zip(updates, projected, report.active.tolist(), strict=True):
            assert torch.isfinite(after).all()
            assert after.norm() <= before.norm() * (1 + 1e-5)
            assert (before * after).sum() >= 0, "the projected update points the other way"
            assert active == (not torch.equal(before, after)), "`active` must say which tensors were changed"

    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
    def test_an_inactive_constraint_changes_no_bit(self, scale: float) -> None:
        parameters, updates = tensors(scale)
        projected, report = self._project(parameters, updates, 1e30)
        assert not report.active.any()
        for before, after in zip(updates, projected, strict=True):
            assert torch.equal(before, after)

    @pytest.mark.parametrize("radius", _RADII)
    def test_the_bound_holds_after_an_active_step(self, radius: float) -> None:
        parameters, updates = tensors(1.0)
        once, report = self._project(parameters, updates, radius)
        if report.active.any():
            assert report.norm > radius
            twice, second = self._project(parameters, once, radius)
            assert second.norm <= radius * (1 + 1e-5), "the projected update is still larger than the radius"
            for first, again in zip(once, twice, strict=True):
                torch.testing.assert_close(again, first, rtol=1e-5, atol=0)

    def test_a_radius_may_be_a_number_or_a_tensor(self) -> None:
        parameters, updates = tensors(1.0)
        number, _ = self._project(parameters, updates, 0.1)
        tensor, _ = self._project(parameters, updates, torch.tensor(0.1))
        for a, b in zip(number, tensor, strict=True):
            torch.testing.assert_close(a, b)

    def test_zero_updates_stay_zero(self) -> None:
        parameters, updates = tensors(1.0)
        projected, report = self._project(parameters, [torch.zeros_like(u) for u in updates], 0.1)
        assert report.norm == 0
        assert not report.active.any()
        assert all(not p.any() for p in projected)

    def test_zero_parameters_give_finite_updates(self) -> None:
        parameters, updates = tensors(1.0)
        projected, _ = self._project([torch.zeros_like(p) for p in parameters], updates, 0.1)
        assert all(torch.isfinite(p).all() for p in projected)

    def test_leaves_the_parameters_alone(self) -> None:
        parameters, updates = tensors(1.0)
        before = [p.clone() for p in parameters]
        self._project(parameters, updates, 0.01)
        assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))

    def _project(
        self, parameters: list[Tensor], updates: list[Tensor], radius: Tensor | float
    ) -> tuple[list[Tensor], ConstraintReport]:
        constraint = self.make()
        constraint.bind(parameters, _CLUSTERS)
        projected = [u.clone() for u in updates]
        return projected, constraint.apply(projected, parameters, radius)


def tensors(scale: float) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and updates of several shapes, float32, the same at each call."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(shape, generator=generator) for shape in _SHAPES]
    return parameters, [scale * torch.randn(shape, generator=generator) for shape in _SHAPES]
