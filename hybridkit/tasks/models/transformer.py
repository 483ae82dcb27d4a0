"""A small decoder-only transformer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BYTES = 256
ROTARY_BASE = 10_000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The sizes of a transformer; `width` is divisible by `heads`, and `heads` by `kv_heads`."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    vocabulary: int = BYTES


class Transformer(nn.Module):
    """Token ids int64 [batch, sequence] -> logits [batch, sequence, vocabulary].

    Pre-norm blocks with RMSNorm (Zhang & Sennrich 2019), rotary positions (Su et al. 2021, arXiv 2104.09864),
    grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245) and a squared-ReLU network without a gate
    (So et al. 2021, arXiv 2109.08668). Linear layers have no bias; input embedding and output head are one
    matrix.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        self._initialise(shape)

    def _initialise(self, shape: Shape) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if name.endswith(("attention.output", "mlp.down")):
                # The residual stream keeps its size with depth (Radford et al. 2019).
                with torch.no_grad():
                    module.weight.mul_((2 * shape.layers) ** -0.5)
        # The head is the embedding: its logits start with a standard deviation of one half at every width.
        nn.init.normal_(self.embedding.weight, std=0.5 * shape.width**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token at every position."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class Block(nn.Module):
    """Attention and a two-layer network, each behind a norm and around a residual connection."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.width)
        self.attention = Attention(shape)
        self.mlp_norm = nn.RMSNorm(shape.width)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, sequence, width] to the same shape."""
        x = x + self.attention(self.attention_norm(x))
        updated: Tensor = x + self.mlp(self.mlp_norm(x))
        return updated


class Attention(nn.Module):
    """Causal self-attention in which `heads / kv_heads` query heads share one key and value head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads = shape.heads, shape.kv_heads
        self.head_width = shape.width // shape.heads
        self.query = nn.Linear(shape.width, shape.heads * self.head_width, bias=False)
        self.key = nn.Linear(shape.width, shape.kv_heads * self.head_width, bias=False)
        self.value = nn.Linear(shape.width, shape.kv_heads * self.head_width, bias=False)
        self.output = nn.Linear(shape.heads * self.head_width, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, sequence, width] to the same shape."""
        query = rotate(self._split(self.query(x), self.heads))
        key = rotate(self._split(self.key(x), self.kv_heads))
        value = self._split(self.value(x), self.kv_heads)
        share = self.heads // self.kv_heads
        mixed = F.scaled_dot_product_attention(
            query, key.repeat_interleave(share, 1), value.repeat_interleave(share, 1), is_causal=True
        )
        joined: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return joined

    def _split(self, x: Tensor, heads: int) -> Tensor:
        """[batch, sequence, heads * head width] -> [batch, heads, sequence, head width]."""
        return torch.unflatten(x, -1, (heads, self.head_width)).transpose(1, 2)


class FeedForward(nn.Module):
    """Linear, squared ReLU, Linear."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, sequence, width] to the same shape."""
        projected: Tensor = self.down(F.relu(self.up(x)).square())
        return projected


def rotate(x: Tensor) -> Tensor:
    """Rotary positions: turn each pair (i, i + d/2) of [..., sequence, d] by position * base^(-2i/d)."""
    half = x.shape[-1] // 2
    exponents = torch.arange(half, device=x.device, dtype=torch.float32) / half
    positions = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)
    angles = positions[:, None] * torch.exp(-math.log(ROTARY_BASE) * exponents)
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def transformer_04m() -> Transformer:
    """0.39 M parameters."""
    return Transformer(Shape(width=128, layers=2, heads=4, kv_heads=2, hidden=512))


def transformer_3m() -> Transformer:
    """3.2 M parameters, nearly all in rows of 534 weights on average.

    Long rows matter to the packed size: one fp32 scale per row costs 32 / K bits a weight.
    """
    return Transformer(Shape(width=384, layers=2, heads=6, kv_heads=2, hidden=1536))
