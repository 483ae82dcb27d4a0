"""From hidden states to one vector per text, as sentence-transformers' folders describe it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridkit.errors import FileError, UsageError

MODES: Final = ("mean", "cls", "max", "lasttoken")
_FLAGS: Final = {
    f"pooling_mode_{mode}{suffix}": mode
    for mode, suffix in zip(MODES, ("_tokens", "_token", "_tokens", ""), strict=True)
}


class SentenceEncoder(nn.Module):
    """An encoder, and one vector per text out of its last hidden states.

    pooling: `mean` over the tokens, the first (`cls`), the largest of each component (`max`) or the last
    (`lasttoken`). normalize: to length 1.
    """

    def __init__(self, encoder: Any, pooling: str = "mean", normalize: bool = True) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.pooling, self.normalize = pooling, normalize

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """`embedding`, float [batch, hidden], of tokens int64 [batch, sequence]."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        vector = pooled(hidden, attention_mask, self.pooling)
        return {"embedding": F.normalize(vector, dim=-1) if self.normalize else vector}


def pooled(hidden: Tensor, mask: Tensor, mode: str) -> Tensor:
    """One vector [batch, hidden] of hidden [batch, sequence, hidden] where mask [batch, sequence] is 1."""
    if mode == "mean":
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    if mode == "max":
        lowest = torch.finfo(hidden.dtype).min
        return hidden.masked_fill(mask.unsqueeze(-1) == 0, lowest).amax(1)
    places = torch.arange(mask.shape[1], device=mask.device)
    chosen = (mask * (places + 1)).argmax(1) if mode == "lasttoken" else mask.argmax(1)
    return hidden.gather(1, chosen[:, None, None].expand(-1, 1, hidden.shape[-1])).squeeze(1)


def described_pooling(folder: Path) -> tuple[str, bool]:
    """Pooling and normalisation that `modules.json` of a folder says; mean and length 1 where there is none.

    Raises UsageError for what this does not do.
    """
    if not (folder / "modules.json").is_file():
        return "mean", True
    pooling, normalize = "mean", False
    for module in _read(folder / "modules.json"):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind == "Pooling":
            pooling = _mode(_read(folder / str(module.get("path", "")) / "config.json"), folder)
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise UsageError(f"{folder}: its modules.json has a {kind}, which text-embedding does not know")
    return pooling, normalize


def _mode(config: dict[str, Any], folder: Path) -> str:
    named = config.get("pooling_mode")
    modes = (
        [named]
        if named
        else [
            _FLAGS.get(name, name)
            for name, on in config.items()
            if on is True and name.startswith("pooling_mode_")
        ]
    )
    if len(modes) != 1 or modes[0] not in MODES:
        listed = ", ".join(map(str, modes)) or "none"
        raise UsageError(f"{folder}: its pooling is {listed}; text-embedding knows one of {', '.join(MODES)}")
    return str(modes[0])


def _read(path: Path) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) and not all(isinstance(part, dict) for part in found):
            raise ValueError("it is no table")
    except (OSError, ValueError, TypeError) as error:
        raise FileError(f"{path} cannot be read ({' '.join(str(error).split())})") from None
    return found
