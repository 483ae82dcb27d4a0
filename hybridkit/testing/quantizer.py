"""What every quantizer promises."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hybridkit.quant.config import Group
from hybridkit.quant.groups import with_granularity
from hybridkit.quant.protocol import (
    Quantizer,
    anneals,
    codec_of,
    has_pattern,
    relaxed,
    takes_numpy,
    takes_statistics,
)

_CASES = (
    "normal",
    "one weight",
    "one row",
    "one column",
    "zeros",
    "constant",
    "tiny",
    "huge",
    "outlier",
    "mixed",
)


class QuantizerContract(ABC):
    """`make` returns a quantizer."""

    @abstractmethod
    def make(self) -> Quantizer:
        """A quantizer."""

    def test_code_book(self) -> None:
        quantizer = self.make()
        assert list(quantizer.levels) == sorted(set(quantizer.levels))
        assert all(-128 <= level <= 127 for level in quantizer.levels)
        most = math.log2(len(quantizer.levels))
        assert quantizer.bits == pytest.approx(
            codec_of(quantizer).bits_per_weight if has_pattern(quantizer) else most
        )

    @pytest.mark.parametrize("case", _CASES)
    def test_codes_are_levels_and_scales_are_finite(self, case: str) -> None:
        quantizer, weight = self.make(), example_weight(case)
        quantized = quantizer.quantize(weight, **quantizer.parameters(weight))
        N, K = weight.shape
        assert quantized.codes.shape == (N, K)
        assert quantized.codes.dtype == torch.int8
        assert set(quantized.codes.flatten().tolist()) <= set(quantizer.levels)
        groups = () if quantized.group_size == 0 else (-(-K // quantized.group_size),)
        assert quantized.scale.shape == (N, *groups)
        assert quantized.scale.dtype == torch.float32
        assert torch.isfinite(quantized.scale).all()
        uneven = -quantizer.levels[0] != quantizer.levels[-1]  # either side may be the longer one
        assert uneven or (quantized.scale >= 0).all()
        assert not quantized.scale.requires_grad
        if quantized.offset is not None:
            assert quantized.offset.shape == quantized.scale.shape
            assert quantized.offset.dtype == torch.float32
            assert torch.isfinite(quantized.offset).all()

    @pytest.mark.parametrize("case", _CASES)
    def test_is_deterministic_and_leaves_the_weight_alone(self, case: str) -> None:
        quantizer, weight = self.make(), example_weight(case)
        before = weight.clone()
        parameters = quantizer.parameters(weight)
        first, second = quantizer.quantize(weight, **parameters), self.make().quantize(weight, **parameters)
        assert torch.equal(first.codes, second.codes)
        assert torch.equal(first.scale, second.scale)
        assert torch.equal(weight, before)

    @pytest.mark.parametrize("case", _CASES)
    def test_fake_quantize_has_the_value_of_dequantize(self, case: str) -> None:
        quantizer, weight = self.make(), example_weight(case)
        parameters = quantizer.parameters(weight)
        quantized = quantizer.quantize(weight, **parameters)
        fake = quantizer.fake_quantize(weight, quantized, **parameters)
        tolerance = 1e-6 * float(weight.abs().max())
        torch.testing.assert_close(fake, quantized.dequantize(), rtol=1e-5, atol=tolerance)

    def test_gradients_reach_the_weight_and_the_parameters(self) -> None:
        quantizer, weight = self.make(), example_weight("normal").requires_grad_()
        parameters = {
            name: value.detach().clone().requires_grad_()
            for name, value in quantizer.parameters(weight.detach()).items()
        }
        quantized = quantizer.quantize(weight, **parameters)
        fake = quantizer.fake_quantize(weight, quantized, **parameters)
        weighting = torch.linspace(-1, 2, fake.numel()).reshape(fake.shape)
        torch.autograd.backward((fake * weighting).sum())
        for name, tensor in {"weight": weight, **parameters}.items():
            assert tensor.grad is not None, f"no gradient reaches {name}"
            assert torch.isfinite(tensor.grad).all(), f"the gradient of {name} is not finite"
            assert tensor.grad.any(), f"the gradient of {name} is zero"

    @pytest.mark.parametrize("case", _CASES)
    def test_what_is_packed_is_what_training_saw(self, case: str) -> None:
        quantizer, weight = self.make(), example_weight(case)
        seen = quantizer.quantize(weight, **quantizer.parameters(weight))
        codec = codec_of(quantizer)
        unpacked = torch.from_numpy(codec.unpack(codec.pack(seen.codes.numpy()), weight.shape[1]))
        assert torch.equal(unpacked, seen.codes)
        assert torch.equal(replace(seen, codes=unpacked).dequantize(), seen.dequantize())

    @pytest.mark.parametrize("case", _CASES)
    def test_it_works_in_groups(self, case: str) -> None:
        weight, inner = example_weight(case), self.make()
        size = inner.quantize(weight, **inner.parameters(weight)).group_size
        if size or takes_statistics(inner):
            pytest.skip("it sees to groups itself")
        quantizer = with_granularity(inner, Group(5))
        parameters = quantizer.parameters(weight)
        quantized = quantizer.quantize(weight, **parameters)
        assert quantized.scale.shape == (len(weight), -(-weight.shape[1] // 5))
        assert set(quantized.codes.flatten().tolist()) <= set(quantizer.levels)
        fake = quantizer.fake_quantize(weight, quantized, **parameters)
        tolerance = 1e-6 * float(weight.abs().max())
        torch.testing.assert_close(fake, quantized.dequantize(), rtol=1e-5, atol=tolerance)

    @pytest.mark.parametrize("case", _CASES)
    def test_a_way_of_its_own_begins_at_the_weight(self, case: str) -> None:
        quantizer, weight = self.make(), example_weight(case).requires_grad_()
        if not anneals(quantizer):
            pytest.skip("it is mixed in linearly")
        parameters = quantizer.parameters(weight.detach())
        quantized = quantizer.quantize(weight.detach(), **parameters)
        start = relaxed(quantizer, weight, quantized, 0.0, **parameters)
        assert torch.equal(start.weight, weight)
        assert start.bias is None or not start.bias.any()
        for progress in (0.1, 0.5, 0.999999):
            soft = relaxed(quantizer, weight, quantized, progress, **parameters)
            total = soft.weight.sum() if soft.bias is None else soft.weight.sum() + soft.bias.sum()
            (gradient,) = torch.autograd.grad(total, weight)
            for tensor in (soft.weight, soft.bias, gradient):
                assert tensor is None or (tensor.shape == weight.shape and torch.isfinite(tensor).all())

    def test_the_error_is_smaller_than_the_weight(self) -> None:
        quantizer, weight = self.make(), example_weight("normal")
        quantized = quantizer.quantize(weight, **quantizer.parameters(weight))
        assert (quantized.dequantize() - weight).norm() < weight.norm()

    @pytest.mark.parametrize("case", _CASES)
    def test_arrays_become_what_tensors_become(self, case: str) -> None:
        quantizer, weight = self.make(), example_weight(case)
        if not takes_numpy(quantizer):
            pytest.skip("it takes tensors only")
        array: Any = weight.numpy()
        ours: Any = quantizer.quantize(array, **quantizer.parameters(array))
        theirs = quantizer.quantize(weight, **quantizer.parameters(weight))
        assert isinstance(ours.codes, np.ndarray)
        assert ours.codes.dtype == np.int8
        assert ours.group_size == theirs.group_size
        np.testing.assert_allclose(ours.scale, theirs.scale.numpy(), rtol=1e-5)


def example_weight(case: str) -> Tensor:
    """A float32 matrix [N, K] for each of the awkward cases, the same at each call."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(6, 37, generator=generator)
    return {
        "normal": normal,
        "one weight": torch.tensor([[-0.3]]),
        "one row": normal[:1],
        "one column": normal[:, :1].contiguous(),
        "zeros": torch.zeros(3, 5),
        "constant": torch.full((3, 5), -0.25),
        "tiny": normal * 1e-30,
        "huge": normal * 1e30,
        "outlier": torch.cat([normal, torch.full((6, 1), 1e4)], dim=1),
        "mixed": torch.cat([normal[:2], torch.zeros(2, 37), normal[4:] * 1e-6]),
    }[case]
