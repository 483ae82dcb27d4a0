"""The packed operators as torch custom ops, namespace `hybridkit`; arithmetic.py has what they compute.

For codes q (a packed uint8 matrix [N, B]), scale s_w [N] and bias b [N], both float32 and always present:

    {ternary,binary}_matmul_{int8,float}(x, codes, scale, bias, K, N, layout=0)
    {ternary,binary}_conv_{int8,float}(x, codes, scale, bias, K, N, kernel_shape, strides, pads, dilations,
                                       group, layout=0)
    {ternary,binary}_embedding(indices, codes, scale, K, N, layout=0)
    nbit_matmul_{int8,float}(x, codes, scale, bias, K, N, bits, group_size)
    nbit_conv_{int8,float}(x, codes, scale, bias, K, N, kernel_shape, strides, pads, dilations, group, bits,
                           group_size)
    nbit_embedding(indices, codes, scale, K, N, bits, group_size)

They compute in float32 and return the type of x; embeddings return float32. `pads` are ONNX's: all
begins, then all ends. There is no gradient: these run what was trained.

layout 0 is the row-major layout of the codecs `two-bit` and `one-bit` (see docs/packed-format.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from hybridkit.errors import UsageError
from hybridkit.runtime.arithmetic import (
    Activations,
    Geometry,
    conv,
    conv_shape,
    matmul,
    matmul_shape,
    scaled,
    take,
    unpack,
)

LowBit = Literal["ternary", "binary"]


def _define(name: str, run: Callable[..., Tensor], shape: Callable[..., Tensor]) -> None:
    torch.library.custom_op(f"hybridkit::{name}", run, mutates_args=()).register_fake(shape)


def _check_layout(layout: int) -> None:
    if layout != 0:
        raise UsageError(f"this hybridkit knows layout 0 of packed codes, not {layout}; upgrade it")


def _define_matmul(kind: LowBit, activations: Activations) -> None:
    def run(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor, K: int, N: int, layout: int = 0) -> Tensor:
        _check_layout(layout)
        return matmul(x, unpack(codes, K, kind), scale, bias, activations)

    def shape(
        x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor, K: int, N: int, layout: int = 0
    ) -> Tensor:
        return matmul_shape(x, K, N)

    _define(f"{kind}_matmul_{activations}", run, shape)


def _define_conv(kind: LowBit, activations: Activations) -> None:
    def run(
        x: Tensor,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor,
        K: int,
        N: int,
        kernel_shape: list[int],
        strides: list[int],
        pads: list[int],
        dilations: list[int],
        group: int,
        layout: int = 0,
    ) -> Tensor:
        _check_layout(layout)
        geometry = Geometry(kernel_shape, strides, pads, dilations, group)
        return conv(x, unpack(codes, K, kind), scale, bias, activations, geometry)

    def shape(
        x: Tensor,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor,
        K: int,
        N: int,
        kernel_shape: list[int],
        strides: list[int],
        pads: list[int],
        dilations: list[int],
        group: int,
        layout: int = 0,
    ) -> Tensor:
        return conv_shape(x, N, Geometry(kernel_shape, strides, pads, dilations, group))

    _define(f"{kind}_conv_{activations}", run, shape)


def _define_embedding(kind: LowBit) -> None:
    def run(indices: Tensor, codes: Tensor, scale: Tensor, K: int, N: int, layout: int = 0) -> Tensor:
        _check_layout(layout)
        return scaled(unpack(take(codes, indices), K, kind), take(scale, indices))

    def shape(indices: Tensor, codes: Tensor, scale: Tensor, K: int, N: int, layout: int = 0) -> Tensor:
        return scale.new_empty((*indices.shape, K))

    _define(f"{kind}_embedding", run, shape)


def _define_nbit_matmul(activations: Activations) -> None:
    def run(
        x: Tensor,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor,
        K: int,
        N: int,
        bits: int,
        group_size: int,
    ) -> Tensor:
        return matmul(x, unpack(codes, K, "nbit", bits), scale, bias, activations, group_size)

    def shape(
        x: Tensor,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor,
        K: int,
        N: int,
        bits: int,
        group_size: int,
    ) -> Tensor:
        return matmul_shape(x, K, N)

    _define(f"nbit_matmul_{activations}", run, shape)


def _define_nbit_conv(activations: Activations) -> None:
    def run(
        x: Tensor,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor,
        K: int,
        N: int,
        kernel_shape: list[int],
        strides: list[int],
        pads: list[int],
        dilations: list[int],
        group: int,
        bits: int,
        group_size: int,
    ) -> Tensor:
        geometry = Geometry(kernel_shape, strides, pads, dilations, group)
        return conv(x, unpack(codes, K, "nbit", bits), scale, bias, activations, geometry, group_size)

    def shape(
        x: Tensor,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor,
        K: int,
        N: int,
        kernel_shape: list[int],
        strides: list[int],
        pads: list[int],
        dilations: list[int],
        group: int,
        bits: int,
        group_size: int,
    ) -> Tensor:
        return conv_shape(x, N, Geometry(kernel_shape, strides, pads, dilations, group))

    _define(f"nbit_conv_{activations}", run, shape)


def _define_nbit_embedding() -> None:
    def run(
        indices: Tensor, codes: Tensor, scale: Tensor, K: int, N: int, bits: int, group_size: int
    ) -> Tensor:
        return scaled(unpack(take(codes, indices), K, "nbit", bits), take(scale, indices), group_size)

    def shape(
        indices: Tensor, codes: Tensor, scale: Tensor, K: int, N: int, bits: int, group_size: int
    ) -> Tensor:
        return scale.new_empty((*indices.shape, K))

    _define("nbit_embedding", run, shape)


def _define_all() -> None:
    for activations in get_args(Activations):
        for kind in get_args(LowBit):
            _define_matmul(kind, activations)
            _define_conv(kind, activations)
        _define_nbit_matmul(activations)
        _define_nbit_conv(activations)
    for kind in get_args(LowBit):
        _define_embedding(kind)
    _define_nbit_embedding()


_define_all()
