"""The native kernels on torch tensors: by their addresses, so that nothing is compiled against torch.

x is float32, float16 or bfloat16 (`DTYPES`), of any strides. As many threads work as torch itself uses.
Codes of layout 0 are tiled at every call; modules hold them tiled.
"""

from __future__ import annotations

import functools
import math
from typing import Final

import torch
from torch import Tensor

from hybridkit.runtime import native as c
from hybridkit.runtime.arithmetic import (
    Geometry,
    PackedMatrix,
    check_conv_input,
    check_matmul_input,
)

DTYPES: Final = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def matmul(native: c.Native, x: Tensor, weight: PackedMatrix) -> Tensor:
    """x [..., K] -> [..., N]."""
    check_matmul_input(x, weight.K)
    x, kept = x.contiguous(), _Kept(native, weight)
    y = x.new_empty((*x.shape[:-1], weight.N))
    rows, pool = math.prod(x.shape[:-1]), native.parallel(torch.get_num_threads())
    native.matmul_at(kept.matrix, DTYPES[x.dtype], x.data_ptr(), rows, y.data_ptr(), pool)
    return y


def conv(native: c.Native, x: Tensor, weight: PackedMatrix, geometry: Geometry) -> Tensor:
    """x [batch, channels, *space] -> [batch, N, *space]."""
    check_conv_input(x, geometry.dims)
    g = geometry
    attributes = (tuple(v) for v in (g.kernel_shape, g.strides, g.pads, g.dilations))
    shape, size = _geometry(native, weight.N, tuple(x.shape[1:]), *attributes, g.group)
    x, kept = x.contiguous(), _Kept(native, weight, g.group, g.positions)
    y = x.new_empty((x.shape[0], weight.N, *size))
    pool = native.parallel(torch.get_num_threads())
    native.conv_at(kept.matrix, shape, DTYPES[x.dtype], x.data_ptr(), x.shape[0], y.data_ptr(), pool)
    return y


class _Kept:
    """A packed matrix for the kernels, and the tensors whose memory it is made of."""

    __slots__ = ("matrix", "tensors")

    def __init__(self, native: c.Native, weight: PackedMatrix, group: int = 1, positions: int = 1) -> None:
        w = weight
        if w.layout == 0:
            tiles = native.conv_tile(w.kind, w.codes.numpy(), w.K, group, positions)
            w = w._replace(codes=torch.from_numpy(tiles))
        self.tensors = w.tiles(group)
        at = (tensor.data_ptr() for tensor in self.tensors)
        size = self.tensors[0].numel()
        self.matrix = c.Matrix(c.CODECS[w.kind], c.ACTIVATIONS[w.activations], w.N, w.K, *at, code_bytes=size)


@functools.lru_cache(maxsize=1024)
def _geometry(
    native: c.Native,
    N: int,
    image: tuple[int, ...],
    kernel_shape: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    group: int,
) -> tuple[c.Convolution, tuple[int, ...]]:
    """The geometry for images [C, *size], and the output's size."""
    channels, *size = image
    shape = c.Convolution.of(channels, size, kernel_shape, strides, pads, dilations, group)
    return shape, native.conv_shape(shape, N)
