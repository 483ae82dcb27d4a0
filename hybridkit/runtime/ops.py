"""The packed operators of torch, namespace `hybridkit`; arithmetic.py has what they compute.

For packed codes q, scale s_w [N] and bias b [N], both float32 and always present:

    {ternary,binary}_matmul_{int8,float}(x, codes, scale, bias, K, N, layout=0)
    {ternary,binary}_conv_{int8,float}(x, codes, scale, bias, K, N, kernel_shape, strides, pads, dilations,
                                       group, layout=0)
    {ternary,binary}_embedding(indices, codes, scale, K, N, layout=0)
    nbit_matmul_{int8,float}(x, codes, scale, bias, offset, K, N, bits, group_size)
    nbit_conv_{int8,float}(x, codes, scale, bias, offset, K, N, kernel_shape, strides, pads, dilations, group,
                           bits, group_size)
    nbit_embedding(indices, codes, scale, offset, K, N, bits, group_size)

n-bit scales are [N] or [N, groups], offsets of the same shape, or None.
They compute in float32 and return the type of x; embeddings return float32. `pads` are ONNX's: all
begins, then all ends. There is no gradient: these run what was trained.

layout 0 is the row-major order of the codecs (see docs/packed-format.md), uint8 [N, bytes]; 1 and 2 are the
tiles of packing/tiles.py, for products and embeddings, and for convolutions.

Ternary and binary products run on the native kernels on CPU tensors, and matrix products on Triton's on CUDA
tensors; everything else, and everything where these are missing, is plain torch. int8 gives the same bits in
all of them, on every CPU.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final, get_args

import torch
from torch import Tensor

from hybridkit.errors import UsageError
from hybridkit.packing.activations import Activations
from hybridkit.runtime import arithmetic, cpu
from hybridkit.runtime.arithmetic import (
    Geometry,
    Numbers,
    PackedMatrix,
    scaled,
    take,
    take_tiled,
    unpack,
)
from hybridkit.runtime.native import LowBit, Native, load

_TENSORS: Final = "Tensor x, Tensor codes, Tensor scale, Tensor bias"
_SIZES: Final = "SymInt K, SymInt N"
_GEOMETRY: Final = "SymInt[] kernel_shape, SymInt[] strides, SymInt[] pads, SymInt[] dilations, SymInt group"
_ROWS: Final = "Tensor indices, Tensor codes, Tensor scale"
_LAYOUT: Final = "SymInt layout=0"
_OFFSET: Final = "Tensor? offset"
_GROUPED: Final = "SymInt bits, SymInt group_size"

# Not torch.library.custom_op, whose wrappers cost as much time as a small product.
_LIBRARY: Final = torch.library.Library("hybridkit", "FRAGMENT")  # type: ignore[no-untyped-call]


def _define(name: str, arguments: str, shape: Callable[..., Tensor], run: Callable[..., Tensor]) -> None:
    schema, tags = f"{name}({arguments}) -> Tensor", (torch.Tag.pt2_compliant_tag,)
    _LIBRARY.define(schema, tags=tags)  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"hybridkit::{name}", shape, lib=_LIBRARY)
    torch.library.register_autograd(f"hybridkit::{name}", _no_gradient, lib=_LIBRARY)


def _no_gradient(context: Any, gradient: Tensor) -> None:
    raise UsageError("packed layers have no gradient: train the layers of prepare_qat, then convert")


def _check_layout(layout: int, known: tuple[int, int]) -> None:
    if layout not in known:
        raise UsageError(
            f"this hybridkit knows layouts {known[0]} and {known[1]} of these codes, not {layout}; upgrade it"
        )


def _native(x: Tensor, weight: PackedMatrix) -> Native | None:
    """The native library, if it can multiply these."""
    if x.device.type != "cpu" or x.dtype not in cpu.DTYPES or weight.N * weight.K == 0:
        return None
    return load()


def _gpu(x: Tensor, weight: PackedMatrix) -> ModuleType | None:
    """The Triton kernels, if they can multiply these. A float32 product is cuBLAS's matter."""
    if not x.is_cuda or x.dtype not in cpu.DTYPES or weight.N * weight.K == 0 or weight.layout != 1:
        return None
    return None if x.dtype == torch.float32 and weight.activations == "float" else _triton()


@functools.cache
def _triton() -> ModuleType | None:
    if importlib.util.find_spec("triton") is None:  # only CUDA builds of torch bring it
        return None
    return importlib.import_module("hybridkit.runtime.triton_kernels")


def _matmul_shape(x: Tensor, *rest: Any) -> Tensor:
    K, N = _numbers(rest)[:2]
    return arithmetic.matmul_shape(x, K, N)


def _conv_shape(x: Tensor, *rest: Any) -> Tensor:
    _, N, *geometry = _numbers(rest)
    return arithmetic.conv_shape(x, N, Geometry(*geometry[:5]))


def _embedding_shape(indices: Tensor, codes: Tensor, scale: Tensor, *rest: Any) -> Tensor:
    return scale.new_empty((*indices.shape, _numbers(rest)[0]))


def _numbers(arguments: tuple[Any, ...]) -> list[Any]:
    """The arguments behind the tensors, of which n-bit operators have one more."""
    return [argument for argument in arguments if not (argument is None or isinstance(argument, Tensor))]


def _define_matmul(kind: LowBit, activations: Activations) -> None:
    def run(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor, K: int, N: int, layout: int = 0) -> Tensor:
        _check_layout(layout, (0, 1))
        weight = PackedMatrix(kind, activations, codes, scale, bias, K, N, layout)
        if (native := _native(x, weight)) is not None:
            return cpu.matmul(native, x, weight)
        if (triton := _gpu(x, weight)) is not None:
            return triton.matmul(x, weight)  # type: ignore[no-any-return]
        return arithmetic.matmul(x, weight.unpack(), Numbers(scale), bias, activations)

    _define(f"{kind}_matmul_{activations}", f"{_TENSORS}, {_SIZES}, {_LAYOUT}", _matmul_shape, run)


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
        _check_layout(layout, (0, 2))
        geometry = Geometry(kernel_shape, strides, pads, dilations, group)
        weight = PackedMatrix(kind, activations, codes, scale, bias, K, N, layout)
        if (native := _native(x, weight)) is not None:
            return cpu.conv(native, x, weight, geometry)
        matrix = weight.unpack(group, geometry.positions)
        return arithmetic.conv(x, matrix, Numbers(scale), bias, activations, geometry)

    arguments = f"{_TENSORS}, {_SIZES}, {_GEOMETRY}, {_LAYOUT}"
    _define(f"{kind}_conv_{activations}", arguments, _conv_shape, run)


def _define_embedding(kind: LowBit) -> None:
    def run(indices: Tensor, codes: Tensor, scale: Tensor, K: int, N: int, layout: int = 0) -> Tensor:
        _check_layout(layout, (0, 1))
        scales = Numbers(take(scale, indices))  # refuses what is no row
        if layout == 0:
            return scaled(unpack(take(codes, indices), K, kind), scales)
        return scaled(take_tiled(codes, indices, K, kind), scales)

    _define(f"{kind}_embedding", f"{_ROWS}, {_SIZES}, {_LAYOUT}", _embedding_shape, run)


def _define_nbit_matmul(activations: Activations) -> None:
    def run(
        x: Tensor,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor,
        offset: Tensor | None,
        K: int,
        N: int,
        bits: int,
        group_size: int,
    ) -> Tensor:
        weight = unpack(codes, K, "nbit", bits)
        return arithmetic.matmul(x, weight, Numbers(scale, offset, group_size), bias, activations)

    arguments = f"{_TENSORS}, {_OFFSET}, {_SIZES}, {_GROUPED}"
    _define(f"nbit_matmul_{activations}", arguments, _matmul_shape, run)


def _define_nbit_conv(activations: Activations) -> None:
    def run(
        x: Tensor,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor,
        offset: Tensor | None,
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
        weight = unpack(codes, K, "nbit", bits)
        numbers = Numbers(scale, offset, group_size)
        return arithmetic.conv(x, weight, numbers, bias, activations, geometry)

    arguments = f"{_TENSORS}, {_OFFSET}, {_SIZES}, {_GEOMETRY}, {_GROUPED}"
    _define(f"nbit_conv_{activations}", arguments, _conv_shape, run)


def _define_nbit_embedding() -> None:
    def run(
        indices: Tensor,
        codes: Tensor,
        scale: Tensor,
        offset: Tensor | None,
        K: int,
        N: int,
        bits: int,
        group_size: int,
    ) -> Tensor:
        offsets = None if offset is None else take(offset, indices)
        numbers = Numbers(take(scale, indices), offsets, group_size)
        return scaled(unpack(take(codes, indices), K, "nbit", bits), numbers)

    _define("nbit_embedding", f"{_ROWS}, {_OFFSET}, {_SIZES}, {_GROUPED}", _embedding_shape, run)


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
