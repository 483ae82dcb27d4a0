"""Byte-level causal language modelling on a file, a folder, or the Python standard library's own sources."""

from __future__ import annotations

import math
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from hybridkit.errors import FileError
from hybridkit.options import option
from hybridkit.tasks.models.transformer import BYTES, transformer_04m, transformer_3m
from hybridkit.tasks.protocol import Splits
from hybridkit.tasks.supervised import SupervisedTask, accuracy

VALIDATION, TEST = 5, 5  # percent of the bytes, taken from the end of the text
PROMPT, WRITTEN = 64, 64  # bytes of a sample
MARK = "\N{BLACK RIGHT-POINTING TRIANGLE}"  # between what the model was given and what it wrote


class Text(SupervisedTask):
    """Inputs uint8 [batch, sequence], targets the same bytes one position later; loss in nats per byte.

    The files, in a fixed order, are one stream of bytes, cut in three contiguous regions (training 90 %,
    validation 5 %, test 5 %), each cut into windows that share no byte. Samples are clustered by their byte
    histogram.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """Options of the text task."""

        data_dir: str = option(
            "", "a folder or a file to read (default: the Python standard library's sources)"
        )
        suffixes: str = option(".txt,.md,.rst,.py", "which files of a folder are read, separated by commas")
        sequence_length: Annotated[int, Ge(1)] = option(128, "bytes the model sees at once")
        max_bytes: Annotated[int, Ge(1)] = option(
            2**28, "refuse more text than this, since all of it is in memory"
        )

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        super().__init__(
            name="text",
            load=self._load,
            models={"transformer-0.4m": transformer_04m, "transformer-3m": transformer_3m},
            prepare=Tensor.long,
            loss_function=next_byte_loss,
            measures={"bits_per_byte": bits_per_byte, "accuracy": accuracy},
            metric="loss",
            metric_goal="min",
            features=byte_histogram,
            input_names=("tokens",),
            dynamic_axes=({0: "batch", 1: "sequence"},),
            source=self.options.data_dir or "Python standard library",
        )

    def _load(self) -> Splits:
        text = read_bytes(find_files(self.options), self.options.max_bytes)
        return window_splits(text, self.options.sequence_length)

    def sample(self, model: nn.Module) -> str:
        """The start of the first validation window, a mark, and the model's greedy continuation of it."""
        window = self.splits().validation[0][0]
        prompt = window[: min(PROMPT, len(window))]
        device = next(model.parameters()).device
        tokens = continued(model, prompt.long().to(device)[None], WRITTEN, self.options.sequence_length)
        parts = tokens[0, : len(prompt)], tokens[0, len(prompt) :]
        return MARK.join(bytes(part.tolist()).decode(errors="replace") for part in parts)

    def provenance(self) -> dict[str, Any]:
        """What every supervised task records, and the number of files and the window length."""
        options = self.options
        return super().provenance() | {
            "files": len(find_files(options)),
            "sequence_length": options.sequence_length,
        }


def find_files(options: Text.Options) -> list[Path]:
    """The files to read, in a fixed order. Raises FileError if there are none.

    The default takes the top-level .py files of the standard library except `_sysconfigdata*`, which are
    generated where Python was built.
    """
    if not options.data_dir:
        folder = Path(sysconfig.get_path("stdlib"))
        return sorted(p for p in folder.glob("*.py") if not p.name.startswith("_sysconfigdata"))
    root = Path(options.data_dir).expanduser()
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise FileError(f"{root} does not exist; --data-dir wants a folder or a file of text")
    suffixes = tuple(s.strip() for s in options.suffixes.split(",") if s.strip())
    found = [p for p in root.rglob("*") if p.suffix in suffixes and p.is_file()]
    if not found:
        raise FileError(
            f"{root} holds no {' '.join(suffixes)} files; say which with --set task.suffixes=.a,.b"
        )
    return sorted(found, key=lambda p: p.relative_to(root).as_posix())


def read_bytes(files: list[Path], max_bytes: int) -> Tensor:
    """All files one after the other, uint8 [bytes].

    Raises FileError if one is unreadable or all together are larger than `max_bytes`.
    """
    total = sum(p.stat().st_size for p in files)
    if total > max_bytes:
        raise FileError(
            f"{total} bytes of text exceed {max_bytes}; raise --set task.max_bytes or point at less"
        )
    stream = bytearray()
    for path in files:
        try:
            stream += path.read_bytes()
        except OSError as error:
            raise FileError(f"{path} cannot be read: {error.strerror}") from None
    return torch.frombuffer(stream, dtype=torch.uint8) if stream else torch.zeros(0, dtype=torch.uint8)


def window_splits(text: Tensor, sequence_length: int) -> Splits:
    """Windows of sequence_length + 1 bytes from three contiguous regions of `text` (uint8 [bytes]).

    Inputs and targets are views of the same bytes, shifted by one. Raises FileError if a region has no whole
    window.
    """
    width = sequence_length + 1
    train_end = len(text) * (100 - VALIDATION - TEST) // 100
    validation_end = len(text) * (100 - TEST) // 100
    regions = text[:train_end], text[train_end:validation_end], text[validation_end:]
    if any(len(region) < width for region in regions):
        least = math.ceil(100 * width / min(VALIDATION, TEST))
        raise FileError(
            f"{len(text)} bytes of text are too few for windows of {width}; about {least} are needed"
        )
    windows = [region[: len(region) // width * width].view(-1, width) for region in regions]
    train, validation, test = ((w[:, :-1], w[:, 1:]) for w in windows)
    return Splits(train=train, validation=validation, test=test)


def continued(model: nn.Module, tokens: Tensor, count: int, context: int) -> Tensor:
    """`tokens` [batch, length] with `count` more, each the likeliest after the last `context` ones."""
    for _ in range(count):
        logits = model(tokens[:, -context:])
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    return tokens


def next_byte_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy in nats per byte; logits [batch, sequence, 256], target uint8 [batch, sequence]."""
    return F.cross_entropy(logits.flatten(0, 1), target.flatten().long())


def bits_per_byte(logits: Tensor, target: Tensor) -> Tensor:
    """The loss in bits."""
    return next_byte_loss(logits, target) / math.log(2)


def byte_histogram(windows: Tensor) -> Tensor:
    """Share of each byte value in each window: uint8 [samples, sequence] -> float32 [samples, 256]."""
    counts = torch.zeros(len(windows), BYTES)
    counts.scatter_add_(1, windows.long(), torch.ones(windows.shape))
    return counts / windows.shape[1]
