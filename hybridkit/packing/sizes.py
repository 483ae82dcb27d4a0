"""What a packed model weighs, against the fp32 file of the same model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hybridkit.packing.container import TensorSpec, aligned, encode_header
from hybridkit.packing.layers import LayerSpec


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a packed model; nothing is left out of the whole file.

    file_bytes: of the packed file.
    fp32_bytes: of a safetensors file that holds the same model in fp32, tied weights once.
    layers_bytes: codes and scales of the quantised layers.
    layers_fp32_bytes: the same layers' weights in fp32.
    weights: number of quantised weights.
    """

    file_bytes: int
    fp32_bytes: int
    layers_bytes: int
    layers_fp32_bytes: int
    weights: int

    @property
    def bits_per_weight(self) -> float:
        """Bits on disk per quantised weight, codes and scales; 0 where nothing is quantised."""
        return 8 * self.layers_bytes / self.weights if self.weights else 0.0

    @property
    def ratio(self) -> float:
        """How many times smaller the whole file is."""
        return self.fp32_bytes / self.file_bytes

    @property
    def layers_ratio(self) -> float:
        """How many times smaller the quantised layers are; 1 where nothing is quantised."""
        return self.layers_fp32_bytes / self.layers_bytes if self.layers_bytes else 1.0


def measure(layers: Sequence[LayerSpec], tensors: Mapping[str, TensorSpec], file_bytes: int) -> Sizes:
    """Sizes from specifications alone: of the packed layers, the other tensors and the packed file."""
    twin = {name: _in_fp32(spec) for name, spec in tensors.items()}
    twin |= {layer.weight_name: TensorSpec("F32", layer.shape) for layer in layers}
    weights = sum(layer.weights for layer in layers)
    return Sizes(
        file_bytes=file_bytes,
        fp32_bytes=len(encode_header(aligned(twin), {"format": "pt"}))
        + sum(spec.nbytes for spec in twin.values()),
        layers_bytes=sum(spec.nbytes for layer in layers for spec in layer.tensor_specs().values()),
        layers_fp32_bytes=4 * weights,
        weights=weights,
    )


def _in_fp32(spec: TensorSpec) -> TensorSpec:
    return TensorSpec("F32", spec.shape) if spec.dtype in ("BF16", "F16", "F32", "F64") else spec
