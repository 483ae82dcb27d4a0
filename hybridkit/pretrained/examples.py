"""Inputs that a network of transformers can be called with, from its configuration."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor, nn

_TOKENS_IN: Final = ("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids")
_TOKENS: Final = 32  # of a sentence, and half as many of what a decoder has said so far
_SAMPLES: Final = 1 << 14  # of a sound where nothing says how long it is
_PIXELS: Final = 224  # along a side, likewise


@dataclass(frozen=True, slots=True)
class Examples:
    """What a network takes: `axes` names the free dimensions of each argument."""

    config: Any
    sizes: Mapping[str, tuple[int, ...]]
    axes: Mapping[str, Mapping[int, str]]

    def described(self) -> list[dict[str, Any]]:
        """Name, shape and dtype of each argument for one sample, as a packed file's metadata have them."""
        return [
            {"name": name, "shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")}
            for name, x in self.draw(1).items()
        ]

    def draw(self, batch: int, tokens: int = _TOKENS, *, seed: int = 0) -> dict[str, Tensor]:
        """Random arguments by name: `batch` samples, sentences of at most `tokens`, the last half masked."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        text, made = self.config.get_text_config(), {}
        for name, size in self.sizes.items():
            shape = (batch, *(min(tokens, n) if name in _TOKENS_IN else n for n in size))
            if name in ("input_ids", "decoder_input_ids"):
                made[name] = torch.randint(0, int(text.vocab_size), shape, generator=generator)
            elif name == "attention_mask":
                made[name] = torch.ones(shape, dtype=torch.int64)
                made[name][-1, shape[1] - shape[1] // 2 :] = 0
            elif name == "token_type_ids":
                made[name] = torch.zeros(shape, dtype=torch.int64)
            else:
                made[name] = torch.randn(shape, generator=generator)
        return made


def examples_of(network: nn.Module, folder: Path | None = None) -> Examples | None:
    """What `network` takes, or None where its configuration does not tell.

    Tokens with their mask (and types, where the configuration has several), pixels, mel frames or samples of
    sound; a decoder's tokens beside what is encoded. `folder` may say the size of images.
    """
    inner = inner_model(network)
    if inner is None:
        return None
    config, main = inner.config, inner.main_input_name
    sizes: dict[str, tuple[int, ...]] = {}
    taken = inspect.signature(network.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        taken = inspect.signature(inner.forward).parameters
    if main == "input_ids" and hasattr(config.get_text_config(), "vocab_size"):
        length = (_length(config.get_text_config()),)
        sizes = {"input_ids": length, "attention_mask": length}
        if (getattr(config, "type_vocab_size", 0) or 0) > 1:
            sizes["token_type_ids"] = length
    elif main == "pixel_values":
        sizes = {"pixel_values": (getattr(config, "num_channels", 3), *_image(config, folder))}
    elif main == "input_features" and hasattr(config, "max_source_positions"):
        sizes = {"input_features": (config.num_mel_bins, 2 * config.max_source_positions)}
    elif main == "input_values":
        sizes = {"input_values": (_SAMPLES,)}
    if sizes and getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in taken:
        sizes["decoder_input_ids"] = (max(1, _length(config.get_text_config()) // 2),)
    sizes = {name: size for name, size in sizes.items() if name in taken}
    return Examples(config, sizes, {name: _free(name) for name in sizes}) if sizes else None


def inner_model(network: nn.Module) -> Any:
    """The model of transformers that `network` is, or holds; None where there is none."""
    return next(
        (m for m in network.modules() if hasattr(getattr(m, "config", None), "get_text_config")), None
    )


def _free(name: str) -> dict[int, str]:
    if name == "input_values":
        return {0: "batch", 1: "samples"}
    if name in ("pixel_values", "input_features"):
        return {0: "batch"}
    return {0: "batch", 1: "decoder_sequence" if name.startswith("decoder") else "sequence"}


def _length(config: Any) -> int:
    """Of a sentence: _TOKENS, or what positions there are for."""
    known = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")]
    return min([_TOKENS, *(n for n in known if isinstance(n, int) and n > 0)])


def _image(config: Any, folder: Path | None) -> tuple[int, int]:
    """Height and width: the configuration's, else what the image processor makes, else _PIXELS."""
    size = getattr(config, "image_size", None)
    if size is None and folder is not None:
        try:
            said = json.loads((folder / "preprocessor_config.json").read_bytes())
            size = said.get("crop_size") or said.get("size")
        except (OSError, ValueError, AttributeError):
            size = None
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        size = (size.get("height", edge), size.get("width", edge))
    pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    return pair if len(pair) == 2 and all(isinstance(n, int) and n > 0 for n in pair) else (_PIXELS, _PIXELS)
