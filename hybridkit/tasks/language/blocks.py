"""Blocks of a fixed number of tokens, cut out of a token file: what language models are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from hybridkit.errors import FileError
from hybridkit.tasks.datafiles import Part
from hybridkit.tasks.language.tokens import TokenFile

HELD_OUT: Final = 5  # percent of the tokens for each part that the data do not bring, from the end


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of `length` tokens between `start` and `end` of a token file; a map-style data set.

    A sample holds `input_ids`, int64 [length], and `bytes`, float32 [], the bytes of text that it is made of.
    No two blocks share a token; what is left at the end is in none.
    """

    file: TokenFile
    start: int
    end: int
    length: int

    def __len__(self) -> int:
        return (self.end - self.start) // self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        starts = self.start + np.asarray(indices, np.int64) * self.length
        sizes = self.file.bytes_before(starts + self.length) - self.file.bytes_before(starts)
        tokens = self.file.tokens
        return [
            {
                "input_ids": torch.from_numpy(tokens[start : start + self.length].astype(np.int64)),
                "bytes": torch.tensor(size, dtype=torch.float32),
            }
            for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)
        ]


def block_parts(files: dict[Part, TokenFile], length: int, where: str) -> dict[Part, Blocks]:
    """Blocks of every part; parts without a file are cut out of the end of the training tokens.

    Raises FileError where a part has no whole block.
    """
    missing: list[Part] = [part for part in ("validation", "test") if part not in files]
    train = files["train"]
    ends = [train.count * (100 - HELD_OUT * left) // 100 for left in range(len(missing), -1, -1)]
    parts = {part: Blocks(file, 0, file.count, length) for part, file in files.items()}
    parts["train"] = Blocks(train, 0, ends[0], length)
    for part, start, end in zip(missing, ends, ends[1:], strict=False):
        parts[part] = Blocks(train, start, end, length)
    for part, blocks in parts.items():
        if not len(blocks):
            least = -(-length * 100 // HELD_OUT) if missing else length
            raise FileError(
                f"{where}: {files.get(part, train).count} tokens are too few for blocks of {length} in every "
                f"part; give about {least} at least, or a smaller --set task.sequence_length"
            )
    return parts
