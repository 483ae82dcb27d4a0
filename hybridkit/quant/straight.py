"""What quantizers share whose gradient is straight through and that learn nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hybridkit.options import option
from hybridkit.quant.protocol import Granularity, QuantizedTensor, straight_through

if TYPE_CHECKING:
    from torch import Tensor


class StraightThrough:
    """A quantizer but for `levels`, `bits` and `quantize`; its scales are those of its rows, or one."""

    takes_numpy: ClassVar = True

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """What can be set."""

        granularity: Granularity = option("channel", "one scale per output channel, or one per tensor")

    def __init__(self, options: Any = None) -> None:
        self.options: Any = options or self.Options()

    def parameters(self, weight: Tensor) -> dict[str, Tensor]:
        """Nothing is learned."""
        return {}

    def fake_quantize(self, weight: Tensor, quantized: QuantizedTensor) -> Tensor:
        """The dequantised weight; identity as gradient."""
        return straight_through(weight, quantized)


def is_straight_through(quantizer: object) -> bool:
    """Whether the gradient to the weight is the identity, and nothing is learned."""
    return getattr(type(quantizer), "fake_quantize", None) is StraightThrough.fake_quantize
