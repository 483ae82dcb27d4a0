"""What llama.cpp is told about a network: its architecture, facts, and what its tensors are called."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hybridkit.errors import UsageError
from hybridkit.pretrained.examples import inner_model
from hybridkit.tasks.models.transformer import ROTARY_BASE, Transformer

Fact = int | float | str

# transformers' model_type -> architecture of llama.cpp, and whether it turns neighbours, not halves, of a
# head by positions: then the rows of queries and keys lie in another order.
_KNOWN: Final = {
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
}
_ACTIVATIONS: Final = ("silu", "swish")


@dataclass(frozen=True, slots=True)
class Architecture:
    """name: of the architecture. facts: metadata by key, without the name before it.

    rename: the name of a tensor in the file for the one in the state dictionary, None where it has no place.
    heads: how many the rows of a tensor (by its name in the file) are to be re-ordered by, else 0.
    more: tensors that the network has no parameters for, float32.
    """

    name: str
    facts: Mapping[str, Fact]
    vocabulary: int
    rename: Callable[[str], str | None]
    heads: Callable[[str], int]
    more: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


def architecture_of(network: nn.Module) -> Architecture:
    """Raises UsageError for a network that llama.cpp does not compute, or computes otherwise."""
    if isinstance(network, Transformer):
        return _ours(network)
    inner = inner_model(network)
    kind = getattr(getattr(inner, "config", None), "model_type", type(network).__name__)
    if inner is None or kind not in _KNOWN:
        raise UsageError(
            f"a .gguf file holds {', '.join(_KNOWN)} and our own transformer, not {kind}; export .onnx"
        )
    return _pretrained(inner.config, kind)


def _pretrained(config: Any, kind: str) -> Architecture:
    name, reordered = _KNOWN[kind]
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = getattr(config, "rope_parameters", None) or {}
    scaling = _scaling(config, rope, name)
    refused = {
        f"positions of the type {rope.get('rope_type')}": scaling is None,
        f"the activation {config.hidden_act}": config.hidden_act not in _ACTIVATIONS,
        "a sliding window": bool(getattr(config, "use_sliding_window", False))
        or (kind == "mistral" and config.sliding_window is not None),
        "biases of a mlp": bool(getattr(config, "mlp_bias", False)),
    }
    if reasons := [reason for reason, holds in refused.items() if holds]:
        raise UsageError(f"a .gguf file of this {kind} is not written: it has {', '.join(reasons)}")
    facts: dict[str, Fact] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": width,
        "attention.value_length": width,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": width,
        "rope.freq_base": float(rope.get("rope_theta", 10_000.0)),
        **(scaling or {}),
    }
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[name.upper()], config.num_hidden_layers)

    def rename(key: str) -> str | None:
        return names.get_name(key, try_suffixes=(".weight", ".bias"))

    more = _frequencies(config, rope, width)
    heads_of = _reordering(reordered, heads, kv_heads)
    return Architecture(name, facts, config.vocab_size, rename, heads_of, more)


def _scaling(config: Any, rope: Mapping[str, Any], name: str) -> dict[str, Fact] | None:
    """How positions are scaled, as llama.cpp has it; None where it has it otherwise or not at all."""
    kind = rope.get("rope_type", "default")
    if kind == "default" or (kind == "llama3" and name == "llama"):  # in a tensor, see below
        return {}
    of_its_own = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
    if kind not in ("linear", "yarn") or any(rope.get(key) is not None for key in of_its_own):
        return None
    scaled: dict[str, Fact] = {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        before = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        scaled["rope.scaling.original_context_length"] = int(before)
    return scaled


def _frequencies(config: Any, rope: Mapping[str, Any], width: int) -> dict[str, NDArray[np.float32]]:
    """What llama.cpp divides the frequency of each pair by: Llama 3.1 scales slow ones."""
    if rope.get("rope_type") != "llama3":
        return {}
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = rope["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    return {"rope_freqs.weight": (plain / scaled.double()).float().numpy()}


def _ours(network: Transformer) -> Architecture:
    attention: Any = network.blocks[0].attention
    feed_forward: Any = network.blocks[0].mlp
    width = network.embedding.embedding_dim
    norm = network.norm
    facts: dict[str, Fact] = {
        "block_count": len(network.blocks),
        "context_length": 2048,  # it has no table of positions
        "embedding_length": width,
        "feed_forward_length": feed_forward.up.out_features,
        "attention.head_count": attention.heads,
        "attention.head_count_kv": attention.kv_heads,
        "attention.key_length": attention.head_width,
        "attention.value_length": attention.head_width,
        "attention.layer_norm_rms_epsilon": float(norm.eps or np.finfo(np.float32).eps),
        "rope.dimension_count": attention.head_width,
        "rope.freq_base": ROTARY_BASE,
    }
    inner = {
        "attention_norm": "attn_norm",
        "attention.query": "attn_q",
        "attention.key": "attn_k",
        "attention.value": "attn_v",
        "attention.output": "attn_output",
        "mlp_norm": "ffn_norm",
        "mlp.up": "ffn_up",
        "mlp.down": "ffn_down",
    }
    outer = {"embedding.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}

    def rename(key: str) -> str | None:
        found = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", key)
        if found and found[2] in inner:
            return f"blk.{found[1]}.{inner[found[2]]}.weight"
        return outer.get(key)

    vocabulary = network.embedding.num_embeddings
    heads = _reordering(True, attention.heads, attention.kv_heads)
    return Architecture("arcee", facts, vocabulary, rename, heads)


def _reordering(wanted: bool, heads: int, kv_heads: int) -> Callable[[str], int]:
    def of(name: str) -> int:
        found = re.fullmatch(r"blk\.\d+\.attn_([qk])\.(weight|bias)", name)
        return {"q": heads, "k": kv_heads}[found[1]] if wanted and found else 0

    return of


def interleaved(rows: int, heads: int) -> NDArray[np.intp]:
    """Where each row is taken from: halves of a head become neighbours, as in llama.cpp's own converter."""
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).ravel()
