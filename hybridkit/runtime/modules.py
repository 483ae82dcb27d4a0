"""Packed torch modules, and how a packed model comes into a freshly built module."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, TypeVar, cast

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridkit.errors import UsageError
from hybridkit.packing.codecs import codec, operator_codec
from hybridkit.packing.layers import PackedLayer
from hybridkit.packing.model import PackedModel
from hybridkit.packing.tiles import tile, untile
from hybridkit.quant.attachments import attach, attached_names
from hybridkit.quant.fast_path import close_fast_paths
from hybridkit.quant.kinds import is_scaled, is_transposed
from hybridkit.quant.layers import scaled
from hybridkit.runtime import ops  # defines torch.ops.hybridkit
from hybridkit.runtime.arithmetic import Codes
from hybridkit.runtime.native import load

__all__ = ["PackedConv1d", "PackedConv2d", "PackedEmbedding", "PackedLinear", "load_packed", "ops"]

_CODES: dict[str, tuple[Codes, int]] = {
    "two-bit": ("ternary", 2),
    "one-bit": ("binary", 1),
    "nbit2": ("nbit", 2),
    "nbit4": ("nbit", 4),
    "nbit8": ("nbit", 8),
}

_M = TypeVar("_M", bound=nn.Module)


class _Packed(nn.Module):
    """Codes and scales as an operator takes them.

    codes: uint8, in the order that `layout` names (`base3` is repacked as `two-bit`, `base6` as `nbit4`).
    Ternary and binary products hold tiles, on every device and with or without the native library, and so
    does an embedding that is tied to one; all others hold rows [N, bytes], layout 0.
    scale: float32 [N] or [N, groups]. offset: the same, or None. It, bits and group_size matter for n-bit
    codes only: ternary and binary codes in groups, or with offsets, become n-bit ones of two bits and of one,
    which hold the same integers.
    """

    layout = 0
    tiles = 0  # the layout of its tiles; 0 for a layer that reads rows
    group = 1  # of a convolution
    positions = 1  # positions of a convolution's kernel
    transposed = False  # whether the original stores its weight with the inputs first

    codes: Tensor
    scale: Tensor
    offset: Tensor | None

    def __init__(self, layer: PackedLayer, device: torch.device) -> None:
        super().__init__()
        name, codes = layer.codec, layer.codes
        wanted = operator_codec(name)
        grouped = layer.group_size > 0 or layer.has_offset
        if grouped and wanted == "two-bit":
            wanted = "nbit2"
        if wanted != name:
            name, codes = wanted, codec(wanted).pack(layer.unpack())
        self.code_kind: Codes
        self.code_kind, self.bits = ("nbit", 1) if grouped and name == "one-bit" else _CODES[name]
        self.group_size = layer.group_size
        self.N, self.K = layer.matrix_shape
        self.shape = layer.shape
        self.activations = layer.activations
        for key, content in {"codes": codes, "scale": layer.scale, "offset": layer.offset}.items():
            held = None if content is None else torch.from_numpy(np.require(content, requirements="W"))
            self.register_buffer(key, None if held is None else held.to(device))

    @property
    def weight(self) -> Tensor:
        """The dequantised weight as the original had it, made anew: networks look at its type or device.

        An operator makes it, so that an exported graph can have it, too.
        """
        operator = getattr(torch.ops.hybridkit, f"{self.code_kind}_embedding")
        form = self._form if self.code_kind == "nbit" else (0,)
        rows = torch.arange(self.N, device=self.codes.device)
        tensors = (rows, self._rows(), self.scale, *self._offsets)
        weight: Tensor = operator(*tensors, self.K, self.N, *form).view(self.shape)
        return weight.t() if self.transposed else weight

    @property
    def _form(self) -> tuple[int, ...]:
        """What the operators take at the end."""
        return (self.bits, self.group_size) if self.code_kind == "nbit" else (self.layout,)

    @property
    def _offsets(self) -> tuple[Tensor | None, ...]:
        """What n-bit operators take behind the other tensors."""
        return (self.offset,) if self.code_kind == "nbit" else ()

    def _tile(self) -> None:
        """From layout 0 to the layer's tiles."""
        if self.layout or not self.tiles or self.code_kind == "nbit" or self.N * self.K == 0:
            return
        codes, native = self.codes.cpu().numpy(), load()
        if native is None:
            tiles = tile(codes, self.K, self.bits, group=self.group, positions=self.positions)
        else:
            tiles = native.conv_tile(self.code_kind, codes, self.K, self.group, self.positions)
        # cloned, as torch's memory begins at a multiple of 64 bytes
        self.codes, self.layout = torch.from_numpy(tiles).clone().to(self.codes.device), self.tiles

    def _rows(self) -> Tensor:
        """The codes in layout 0."""
        if self.layout == 0:
            return self.codes
        tiles = self.codes.cpu().numpy()
        rows = untile(tiles, self.N, self.K, self.bits, group=self.group, positions=self.positions)
        return torch.from_numpy(rows).to(self.codes.device)

    def extra_repr(self) -> str:
        return f"N={self.N}, K={self.K}, {self.code_kind}, bits={self.bits}, activations={self.activations}"


def is_packed(module: nn.Module) -> bool:
    """Whether a module computes with packed weights."""
    return isinstance(module, _Packed)


class _PackedProduct(_Packed):
    """Adds the bias, float32 [N]: zeros where the original has none."""

    bias: Tensor

    def __init__(self, layer: PackedLayer, module: nn.Linear | nn.Conv1d | nn.Conv2d) -> None:
        super().__init__(layer, module.weight.device)
        bias = torch.zeros(self.N, device=module.weight.device)
        if module.bias is not None:
            bias.copy_(module.bias.detach())
        self.register_buffer("bias", bias)


class PackedLinear(_PackedProduct):
    """A Linear layer over packed codes; x [..., K] -> [..., N]."""

    tiles = 1

    @classmethod
    def from_packed(cls, layer: PackedLayer, module: nn.Module) -> Self:
        """The packed layer for `module`, whose bias it takes. Raises UsageError if they do not fit."""
        return cls(layer, _matching(layer, module, nn.Linear))

    def forward(self, x: Tensor) -> Tensor:
        """One operator, `{ternary,binary,nbit}_matmul_{int8,float}`."""
        operator = getattr(torch.ops.hybridkit, f"{self.code_kind}_matmul_{self.activations}")
        tensors = (x, self.codes, self.scale, self.bias, *self._offsets)
        result: Tensor = operator(*tensors, self.K, self.N, *self._form)
        return result


class _PackedConv(_PackedProduct):
    """A convolution over packed codes; x [batch, channels, *space] -> [batch, N, *space].

    As in torch, x without a batch is one sample.
    """

    tiles = 2

    def __init__(self, layer: PackedLayer, module: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__(layer, module)
        dims = len(module.kernel_size)
        self.kernel_shape = list(module.kernel_size)
        self.strides = list(module.stride)
        self.dilations = list(module.dilation)
        self.group = module.groups
        self.positions = math.prod(self.kernel_shape)
        # torch's own list for F.pad: last dimension first, begin and end of each; also for padding="same"
        self.around = list(module._reversed_padding_repeated_twice)
        self.padding_mode = module.padding_mode
        self.pads = [0] * 2 * dims
        if self.padding_mode == "zeros":
            self.pads = self.around[0::2][::-1] + self.around[1::2][::-1]

    def forward(self, x: Tensor) -> Tensor:
        """One operator, `{ternary,binary,nbit}_conv_{int8,float}`, after torch's pad unless by zeros."""
        batched = x.dim() == len(self.strides) + 2
        if not batched:
            x = x.unsqueeze(0)
        if self.padding_mode != "zeros":
            x = F.pad(x, self.around, mode=self.padding_mode)
        operator = getattr(torch.ops.hybridkit, f"{self.code_kind}_conv_{self.activations}")
        result: Tensor = operator(
            x,
            self.codes,
            self.scale,
            self.bias,
            *self._offsets,
            self.K,
            self.N,
            self.kernel_shape,
            self.strides,
            self.pads,
            self.dilations,
            self.group,
            *self._form,
        )
        return result if batched else result.squeeze(0)


class PackedConv1d(_PackedConv):
    """A Conv1d layer over packed codes."""

    @classmethod
    def from_packed(cls, layer: PackedLayer, module: nn.Module) -> Self:
        """The packed layer for `module`: its bias and geometry. Raises UsageError if they do not fit."""
        return cls(layer, _matching(layer, module, nn.Conv1d))


class PackedConv2d(_PackedConv):
    """A Conv2d layer over packed codes."""

    @classmethod
    def from_packed(cls, layer: PackedLayer, module: nn.Module) -> Self:
        """The packed layer for `module`: its bias and geometry. Raises UsageError if they do not fit."""
        return cls(layer, _matching(layer, module, nn.Conv2d))


class PackedEmbedding(_Packed):
    """An embedding over packed codes; integer indices [...] -> [..., K] in the original's type.

    embed_scale: what rows are multiplied by, where the original does that.
    """

    dtype = torch.float32
    embed_scale: Tensor | None

    def __init__(self, layer: PackedLayer, device: torch.device) -> None:
        super().__init__(layer, device)
        self.register_buffer("embed_scale", None, persistent=False)

    @classmethod
    def from_packed(cls, layer: PackedLayer, module: nn.Module) -> Self:
        """The packed layer for `module`. Raises UsageError if they do not fit."""
        embedding = _matching(layer, module, nn.Embedding)
        if embedding.max_norm is not None:
            raise UsageError(f"layer {layer.name!r}: an embedding with max_norm cannot be packed")
        result = cls(layer, embedding.weight.device)
        result.dtype = getattr(embedding, "weight_dtype", embedding.weight.dtype)  # frozen codes are int8
        if is_scaled(embedding):
            factor: Any = embedding.embed_scale
            result.embed_scale = torch.as_tensor(factor, dtype=result.dtype)
        return result

    def forward(self, indices: Tensor) -> Tensor:
        """One operator, `{ternary,binary,nbit}_embedding`."""
        operator = getattr(torch.ops.hybridkit, f"{self.code_kind}_embedding")
        tensors = (indices, self.codes, self.scale, *self._offsets)
        result: Tensor = operator(*tensors, self.K, self.N, *self._form)
        result = result if self.dtype == torch.float32 else result.to(self.dtype)
        return result if self.embed_scale is None else scaled(result, self.embed_scale)


_PACKED: dict[
    str, tuple[type[nn.Module], type[PackedLinear | PackedConv1d | PackedConv2d | PackedEmbedding]]
] = {
    "linear": (nn.Linear, PackedLinear),
    "conv1d": (nn.Conv1d, PackedConv1d),
    "conv2d": (nn.Conv2d, PackedConv2d),
    "embedding": (nn.Embedding, PackedEmbedding),
}


def load_packed(module: nn.Module, packed: PackedModel, *, tiled: bool = True) -> nn.Module:
    """A copy of `module` in eval mode that runs the packed model; `module` itself stays as it is.

    `module` is a freshly built full-precision (or fake-quantised) network of the same architecture. Layers
    that are packed are replaced, all other tensors are loaded. A network that runs these packed layers
    already is returned as it is. Raises UsageError for a layer or tensor that is missing, left over or of
    another shape. `tiled` False leaves codes as rows, for one who reads more than he runs; see `tile_layers`.
    """
    modules = dict(module.named_modules(remove_duplicate=False))
    layers = layers_by_module(packed)
    if running := {name: part for name, part in modules.items() if isinstance(part, _Packed)}:
        if not _same(running, layers):
            raise UsageError(
                "the module runs other packed layers already; load them into a freshly built one"
            )
        return module.eval()
    replacements: dict[int, nn.Module] = {}
    shapes = {name: tuple(array.shape) for name, array in packed.tensors.items()}
    for name, layer in layers.items():
        if name not in modules:
            raise UsageError(f"the packed model has a layer {name!r}, the module has not")
        if id(modules[name]) not in replacements:
            replacements[id(modules[name])] = _packed_module(name, layer, modules[name])
            attach(replacements[id(modules[name])], name, shapes)
    _share(layers, {name: replacements[id(modules[name])] for name in layers})
    if tiled:
        _tile_all(m for m in replacements.values() if isinstance(m, _Packed))
    # deepcopy takes what its memo holds for the copy: packed layers come in place, their originals stay out
    result: nn.Module = copy.deepcopy(module, dict(replacements))
    _load_tensors(result, module, layers, packed)
    close_fast_paths(result, _Packed)
    result.__dict__.pop("_hybridkit_prepared", None)
    return result.requires_grad_(False).eval()


@contextlib.contextmanager
def row_major(module: nn.Module) -> Iterator[None]:
    """In this context every packed layer in `module` holds layout 0, in which codes are rows."""
    kept = [(m, m.codes, m.layout) for m in module.modules() if isinstance(m, _Packed)]
    rows = {id(codes): m._rows() for m, codes, _ in kept}  # tied layers stay tied
    try:
        for m, codes, _ in kept:
            m.codes, m.layout = rows[id(codes)], 0
        yield
    finally:
        for m, codes, layout in kept:
            m.codes, m.layout = codes, layout


def tile_layers(module: nn.Module) -> nn.Module:
    """`module` itself, whose packed layers hold tiles from now on: what they run on fast."""
    _tile_all(m for m in module.modules() if isinstance(m, _Packed))
    return module


def _tile_all(layers: Iterable[_Packed]) -> None:
    """Tied layers stay tied: they hold the tiles of a product, if one is among them."""
    holders: dict[int, list[_Packed]] = {}
    for layer in layers:
        holders.setdefault(id(layer.codes), []).append(layer)
    for tied in holders.values():
        product = max(tied, key=lambda layer: layer.tiles > 0)
        product._tile()
        for layer in tied:
            layer.codes, layer.layout = product.codes, product.layout


def _share(layers: Mapping[str, PackedLayer], replacements: Mapping[str, nn.Module]) -> None:
    """Tied modules hold one copy of their codes."""
    holders: dict[int, _Packed] = {}
    for name, module in replacements.items():
        assert isinstance(module, _Packed)
        holder = holders.setdefault(id(layers[name]), module)
        module.codes, module.scale, module.offset = holder.codes, holder.scale, holder.offset


def _same(running: Mapping[str, _Packed], layers: Mapping[str, PackedLayer]) -> bool:
    """Whether these modules hold the layers: of the same names and scales."""
    return running.keys() == layers.keys() and all(
        np.array_equal(part.scale.cpu().numpy(), layers[name].scale) for name, part in running.items()
    )


def layers_by_module(packed: PackedModel) -> dict[str, PackedLayer]:
    """The packed layer of each module name, tied ones included."""
    by_weight = {layer.weight_name: layer for layer in packed.layers.values()}
    by_weight |= {alias: by_weight[name] for alias, name in packed.tied.items() if name in by_weight}
    return {weight.removesuffix("weight").removesuffix("."): layer for weight, layer in by_weight.items()}


def _packed_module(name: str, layer: PackedLayer, module: nn.Module) -> nn.Module:
    kind = "linear" if is_transposed(module) else None
    for own, (original, packed) in _PACKED.items():
        if (own == kind or isinstance(module, original)) and (own == layer.kind or name != layer.name):
            made = packed.from_packed(layer, module)
            made.transposed = is_transposed(module)
            for constant in getattr(module, "__constants__", ()):  # stride, in_features, padding_idx, ...
                setattr(made, constant, getattr(module, constant))
            return made
    raise UsageError(
        f"layer {name!r} is packed as {layer.kind}, the module has a {type(module).__name__} there"
    )


def _matching(layer: PackedLayer, module: nn.Module, kind: type[_M]) -> _M:
    transposed = kind is nn.Linear and is_transposed(module)
    if not (transposed or isinstance(module, kind)):
        raise UsageError(f"layer {layer.name!r} is a {layer.kind}, not a {type(module).__name__}")
    shape = tuple(module.get_parameter("weight").shape)
    shape = shape[::-1] if transposed else shape
    if shape != layer.shape:
        raise UsageError(
            f"layer {layer.name!r} has shape {list(layer.shape)}, the module's has {list(shape)}"
        )
    return cast(_M, module)


def _load_tensors(
    result: nn.Module, module: nn.Module, layers: Mapping[str, PackedLayer], packed: PackedModel
) -> None:
    given = dict(packed.tensors)
    given |= {alias: given[name] for alias, name in packed.tied.items() if name in given}
    replaced = tuple(f"{name}." if name else "" for name in layers)
    biases = {f"{name}bias" for name in replaced}
    beside = set().union(*(attached_names(name) for name in layers))
    kept = biases | beside
    wanted = {name for name in module.state_dict() if name in kept or not name.startswith(replaced)}
    wanted |= beside & result.state_dict().keys()
    if missing := wanted - set(given):
        raise UsageError(f"the packed model lacks {_listed(missing)}")
    if extra := set(given) - wanted:
        raise UsageError(f"the packed model holds {_listed(extra)}, which the module does not have")
    own = result.state_dict()
    for name in wanted:
        array = given[name]
        if tuple(own[name].shape) != array.shape:
            shapes = f"{list(array.shape)}, the module's has {list(own[name].shape)}"
            raise UsageError(f"the packed model's {name!r} has shape {shapes}")
        if array.dtype == ml_dtypes.bfloat16:  # which torch does not take from NumPy
            array = array.astype(np.float32)
        own[name].copy_(torch.from_numpy(np.require(array, requirements="W")))


def _listed(names: Iterable[str]) -> str:
    first, *rest = sorted(names)
    return f"{first!r} and {len(rest)} more" if rest else f"{first!r}"
