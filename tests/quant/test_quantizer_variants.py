"""The quantizer contract with options that are not defaults (those: tests/test_builtin_contracts.py)."""

import pytest

from hybridkit.quant.binary import Binary
from hybridkit.quant.nbit import NBit
from hybridkit.quant.ternary import TernaryAbsmean, TernaryLearned, TernaryMSE
from hybridkit.testing import QuantizerContract

VARIANTS = {
    "absmean-tensor": lambda: TernaryAbsmean(TernaryAbsmean.Options(granularity="tensor")),
    "absmean-1.5": lambda: TernaryAbsmean(TernaryAbsmean.Options(scale_multiplier=1.5)),
    "mse-tensor": lambda: TernaryMSE(TernaryMSE.Options(granularity="tensor")),
    "learned-tensor": lambda: TernaryLearned(TernaryLearned.Options(granularity="tensor")),
    "binary-tensor": lambda: Binary(Binary.Options(granularity="tensor")),
    "nbit-2": lambda: NBit(NBit.Options(bits=2)),
    "nbit-8": lambda: NBit(NBit.Options(bits=8)),
    "nbit-groups": lambda: NBit(NBit.Options(bits=2, group_size=16)),
    "nbit-offset": lambda: NBit(NBit.Options(bits=2, offset=True)),
    "nbit-8-offset": lambda: NBit(NBit.Options(bits=8, offset=True)),
    "nbit-groups-offset": lambda: NBit(NBit.Options(bits=3, group_size=16, offset=True)),
    "nbit-tensor-offset": lambda: NBit(NBit.Options(granularity="tensor", offset=True)),
    "nbit-tensor": lambda: NBit(NBit.Options(granularity="tensor", scale="absmax")),
}


@pytest.mark.parametrize("variant", VARIANTS)
class TestVariants(QuantizerContract):
    @pytest.fixture(autouse=True)
    def _choose(self, variant):
        self.make = VARIANTS[variant]

    def make(self):  # replaced for each variant
        raise AssertionError
