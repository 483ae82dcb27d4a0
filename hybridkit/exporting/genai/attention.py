"""Attention with a cache, traced as one node: ONNX Runtime's GroupQueryAttention.

transformers lets a network's attention be another function. In `fused` it is one that keeps the operator as
it is, instead of the repeated heads, masks and concatenations that it stands for. Rotary positions are
applied before it, by the network itself.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import onnx_ir as ir
import torch
from torch import Tensor, nn

from hybridkit.exporting.functions import CACHED_ATTENTION, DOMAIN
from hybridkit.exporting.lowering import MICROSOFT
from hybridkit.exporting.translation import node_for

Layers = Sequence[tuple[Tensor, Tensor]]  # keys and values by layer, [batch, kv_heads, tokens, head_size]
NAME: Final = "hybridkit_fused"  # of the attention, among those of transformers


@torch.library.custom_op("hybridkit::grouped_query_attention", mutates_args=())
def grouped_query_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    last: Tensor,
    total: Tensor,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
    softcap: float,
    local_window_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """query [B, S, heads * D], key and value [B, S, kv_heads * D], past [B, kv_heads, P, D].

    `last` int32 [B] is the place of the last token of each sample, `total` int32 [] how many there are with
    the past. softcap: of the logits, 0: none. local_window_size: how many tokens a token sees, itself too,
    -1: all. Gives what is attended to [B, S, heads * D] and the new past [B, kv_heads, P + S, D].
    It is traced, not run.
    """
    raise NotImplementedError("it is traced, not run")


@grouped_query_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, past, size = past_key.shape
    present = past_key.new_empty((batch, heads, past + query.shape[1], size))
    return torch.empty_like(query), present, torch.empty_like(present)


def translation() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What writes the node, for torch's exporter."""
    overload = torch.ops.hybridkit.grouped_query_attention.default
    return {overload: node_for(overload, "GroupQueryAttention", MICROSOFT, 1)}


def use_own_operator(model: ir.Model) -> None:
    """CachedAttention in place of GroupQueryAttention, which is its body."""
    for node in model.graph:
        if (node.domain, node.op_type) == (MICROSOFT, "GroupQueryAttention"):
            node.domain, node.op_type = DOMAIN, CACHED_ATTENTION


class Recorder:
    """Stands in for transformers' cache: keys and values pass, and the operator adds them to the past."""

    def __init__(self, past: Layers, mask: Tensor) -> None:
        """mask: int64 [batch, past + new tokens]."""
        self.past = past
        self.present: list[tuple[Tensor, Tensor]] = [(k, v) for k, v in past]
        self.last = (mask.sum(dim=1) - 1).to(torch.int32)
        self.total = torch.full((), mask.shape[1], dtype=torch.int32)

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """As they are."""
        return key, value

    def get_seq_length(self, *_: Any) -> int:
        """Asked for positions, which are given."""
        return 0

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, softcap: float, window: int
    ) -> Tensor:
        """query [B, heads, S, D] and so on give [B, S, heads, D]."""
        past_key, past_value = self.past[layer]
        found: Tensor
        found, *present = grouped_query_attention(
            *(_joined(x) for x in (query, key, value)),
            past_key,
            past_value,
            self.last,
            self.total,
            query.shape[1],
            key.shape[1],
            scale,
            softcap,
            window,
        )
        self.present[layer] = (present[0], present[1])
        return found.view(query.shape[0], query.shape[2], query.shape[1], query.shape[3])


def _joined(x: Tensor) -> Tensor:
    """[B, heads, S, D] -> [B, S, heads * D]."""
    return x.transpose(1, 2).flatten(2)


@contextlib.contextmanager
def fused(network: nn.Module) -> Iterator[Callable[[Recorder], None]]:
    """In this context the attention of `network` is the operator's. Gives what sets a call's recorder."""
    from transformers import AttentionInterface

    current: list[Recorder] = []

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        scaling: float,
        softcap: float | None = None,
        sliding_window: int | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        layer: Any = module.layer_idx
        window = sliding_window or -1
        return current[-1].attend(layer, query, key, value, scaling, softcap or 0.0, window), None

    AttentionInterface.register(NAME, attention)  # without one for masks: there are none, it is causal
    configs = {id(c): c for m in network.modules() if (c := getattr(m, "config", None)) is not None}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = NAME
        yield current.append
    finally:
        for config, kind in before:
            config._attn_implementation = kind


def cache_argument(network: nn.Module) -> str:
    """What a network's cache is called among its arguments: transformers renames it."""
    return "cache" if "cache" in inspect.signature(network.forward).parameters else "past_key_values"
