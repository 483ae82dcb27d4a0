"""The `bitnet` quantisation of transformers: ternary weights, four rows to a byte, one scale for each.

Layout (transformers/integrations/bitnet.py): of a weight [N, K] byte [r, k] holds the codes of the rows r,
r + N/4, r + 2 N/4 and r + 3 N/4, lowest bits first, as q + 1. `weight_scale` [1] is a divisor where the
`linear_class` is `bitlinear`, a factor where it is `autobitlinear`, which takes a bias for one of the product
that the factor is for, too. Activations are int8, a scale per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from hybridkit.errors import FileError, UsageError

METHOD: Final = "bitnet"
ROWS: Final = 4  # in a byte
WEIGHT, SCALE = ".weight", ".weight_scale"
DIVIDES, MULTIPLIES = "bitlinear", "autobitlinear"


def pack(codes: Tensor) -> Tensor:
    """Ternary codes int8 [N, K], N a multiple of 4, as uint8 [N / 4, K]."""
    N, K = codes.shape
    digits = (codes + 1).to(torch.uint8).view(ROWS, N // ROWS, K)
    packed = digits[0].clone()
    for place in range(1, ROWS):
        packed |= digits[place] << 2 * place
    return packed


def unpack(packed: Tensor) -> Tensor:
    """The inverse of `pack`: int8 [4 R, K] of uint8 [R, K]. Raises FileError for a code that is none."""
    digits = torch.cat([packed >> 2 * place & 3 for place in range(ROWS)])
    if bool((digits == 3).any()):
        raise FileError("a packed weight holds the digit 3, which is no ternary code")
    return digits.to(torch.int8) - 1


@dataclass(frozen=True, slots=True)
class Settings:
    """What a `quantization_config` says of how weights are stored."""

    packed: bool  # False: the latent weights, which each forward quantises
    divides: bool  # by the scale


def settings_of(config: Any, text: str) -> Settings | None:
    """Those of a configuration whose network is quantised so, else None. `text` is what the user named.

    Raises UsageError for a variant that is not read.
    """
    said: Any = getattr(config, "quantization_config", None)
    said = said.to_dict() if hasattr(said, "to_dict") else said
    if not isinstance(said, dict) or said.get("quant_method") != METHOD:
        return None
    if said.get("use_rms_norm"):
        raise UsageError(f"{text}: its layers normalise what comes in (use_rms_norm), which is not read")
    kind = said.get("linear_class", DIVIDES)
    if kind not in (DIVIDES, MULTIPLIES):
        raise FileError(f"{text}: its linear_class {kind!r:.40} is neither {DIVIDES} nor {MULTIPLIES}")
    online = kind == MULTIPLIES and said.get("quantization_mode", "offline") == "online"
    return Settings(not online, kind == DIVIDES)


class Dequantized(Mapping[str, Tensor]):
    """The tensors of `files` as a network without quantisation has them, each made when it is asked for."""

    def __init__(self, files: Mapping[str, Tensor], settings: Settings) -> None:
        self._files, self._settings = files, settings

    def __getitem__(self, name: str) -> Tensor:
        tensor, (stem, _, part) = self._files[name], name.rpartition(".")
        scale = stem + SCALE
        if not self._settings.packed or scale not in self._files:
            return tensor
        if part == "bias":
            return tensor if self._settings.divides else tensor * self._files[scale]
        if part != "weight" or tensor.dtype != torch.uint8:
            return tensor
        factor = self._files[scale].float()
        if factor.numel() != 1 or not bool(torch.isfinite(factor).all()):
            raise FileError(f"{scale} is not one finite number")
        factor = 1 / factor if self._settings.divides else factor
        return unpack(tensor).float() * factor

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._files if not name.endswith(SCALE))

    def __len__(self) -> int:
        return sum(1 for _ in self)
