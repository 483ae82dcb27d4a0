"""A language model of transformers as a function of tokens, mask and cache, with tensors for all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from hybridkit.calls import called_as, evaluating
from hybridkit.errors import UsageError
from hybridkit.exporting.genai.attention import Layers, Recorder, cache_argument, fused

IDS, MASK, LOGITS = "input_ids", "attention_mask", "logits"
PAST: Final = "past_key_values.{}.{}"
PRESENT: Final = "present.{}.{}"
PARTS: Final = ("key", "value")
HEAD_STEP: Final = 8  # what GroupQueryAttention wants sizes of heads to be a multiple of


@dataclass(frozen=True, slots=True)
class Shape:
    """What the cache of a network is made of."""

    layers: int
    heads: int
    kv_heads: int
    head_size: int

    @classmethod
    def of(cls, network: nn.Module) -> Shape:
        """Raises UsageError for what is no language model of transformers with one plain cache."""
        config: Any = getattr(network, "config", None)
        decodes = hasattr(network, "generate") and not getattr(config, "is_encoder_decoder", False)
        if not (decodes and hasattr(config, "num_attention_heads")):
            raise UsageError(
                f"{type(network).__name__} is no language model of transformers, which is what genai writes"
            )
        text = config.get_text_config()
        kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
        if kinds - {"full_attention", "sliding_attention"}:
            raise UsageError(
                f"{type(network).__name__} has layers that keep another cache than all keys and values "
                f"({', '.join(sorted(kinds))}); genai does not write them"
            )
        heads: int = text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // heads
        if size % HEAD_STEP:
            raise UsageError(
                f"its attention has heads of {size}, and ONNX Runtime's operator takes multiples of "
                f"{HEAD_STEP}; export NAME.onnx without --target for a network without cache"
            )
        kv_heads = getattr(text, "num_key_value_heads", None) or heads
        return cls(text.num_hidden_layers, heads, kv_heads, size)

    def named(self, pattern: str, layers: Layers) -> dict[str, Tensor]:
        """Keys and values by name."""
        pairs = enumerate(layers)
        return {pattern.format(i, part): x for i, kv in pairs for part, x in zip(PARTS, kv, strict=True)}

    def layered(self, named: Mapping[str, Tensor]) -> Layers:
        """The past among arguments."""
        key, value = PARTS
        return [(named[PAST.format(i, key)], named[PAST.format(i, value)]) for i in range(self.layers)]

    def empty(self, batch: int, tokens: int = 0) -> Layers:
        """A past of so many tokens, drawn at random, which makes it unlike any."""
        size = (batch, self.kv_heads, tokens, self.head_size)
        return [(torch.randn(size), torch.randn(size)) for _ in range(self.layers)]


def arguments(shape: Shape, ids: Tensor, past: Layers) -> dict[str, Tensor]:
    """What the network takes for int64 ids [batch, tokens] behind a past."""
    mask = torch.ones(ids.shape[0], past[0][0].shape[2] + ids.shape[1], dtype=torch.int64)
    return {IDS: ids, MASK: mask, **shape.named(PAST, past)}


def axes(shape: Shape) -> dict[str, dict[int, str]]:
    """The free dimensions of each argument."""
    free = {IDS: {0: "batch", 1: "sequence"}, MASK: {0: "batch", 1: "total_sequence"}}
    for layer in range(shape.layers):
        free |= {PAST.format(layer, part): {0: "batch", 2: "past_sequence"} for part in PARTS}
    return free


def past_of(network: nn.Module, ids: Tensor) -> Layers:
    """The keys and values that `network` keeps of int64 ids [batch, tokens]."""
    shape = Shape.of(network)
    if not ids.shape[1]:
        return shape.empty(len(ids))
    with torch.no_grad(), evaluating(network), comparing(network):
        found = network(**arguments(shape, ids, shape.empty(len(ids))))
    keys = range(shape.layers)
    return [(found[PRESENT.format(i, PARTS[0])], found[PRESENT.format(i, PARTS[1])]) for i in keys]


@contextlib.contextmanager
def comparing(network: nn.Module) -> Iterator[None]:
    """In this context `network` takes `arguments` and gives the last token's logits and the present."""
    from transformers import DynamicCache

    shape = Shape.of(network)

    def step(run: Callable[..., Any], ids: Tensor, mask: Tensor, past: Layers) -> tuple[Tensor, Layers]:
        cache = DynamicCache()
        for layer, (key, value) in enumerate(past):
            cache.update(key, value, layer)
        logits = run(ids, mask, cache)
        return logits, [(layer.keys, layer.values) for layer in cache.layers]

    with _called(network, shape, step):
        yield


@contextlib.contextmanager
def tracing(network: nn.Module) -> Iterator[None]:
    """As `comparing`, with the fused operator in place of attention: to be traced, not run."""
    shape = Shape.of(network)
    with fused(network) as record:

        def step(run: Callable[..., Any], ids: Tensor, mask: Tensor, past: Layers) -> tuple[Tensor, Layers]:
            recorder = Recorder(past, mask)
            record(recorder)
            return run(ids, mask, recorder), recorder.present

        with _called(network, shape, step):
            yield


@contextlib.contextmanager
def _called(network: nn.Module, shape: Shape, step: Callable[..., tuple[Tensor, Layers]]) -> Iterator[None]:
    inner, cached = network.forward, cache_argument(network)

    def run(ids: Tensor, mask: Tensor, cache: Any) -> Tensor:
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        given = {IDS: ids, MASK: mask, "position_ids": positions, cached: cache}
        logits: Tensor = inner(**given, use_cache=True, logits_to_keep=1).logits
        return logits

    def forward(**named: Tensor) -> dict[str, Tensor]:
        logits, present = step(run, named[IDS], named[MASK], shape.layered(named))
        return {LOGITS: logits, **shape.named(PRESENT, present)}

    with called_as(network, forward):
        yield
