"""Language models of the exporter `genai`, token by token, without torch.

The cache is one buffer per layer that ONNX Runtime writes new keys and values into, so a step copies nothing.
It is kept between calls: a prompt that begins with what was seen before, as the next turn of a conversation
does, costs its new tokens alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from hybridkit.errors import FileError, UsageError
from hybridkit.memory import give_back_memory
from hybridkit.runtime.session import session

if TYPE_CHECKING:
    from onnxruntime import OrtValue

CONFIGURATION: Final = "genai_config.json"
_STEP: Final = 256  # tokens by which a cache grows
_PIECE: Final = 128  # tokens of a prompt that are read at a time, which bounds the memory of activations


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is drawn from the logits; temperature 0 takes the likeliest.

    top_k: among so many of the likeliest (0: all). top_p: among the likeliest that together have this
    probability (Holtzman et al. 2020, arXiv 1904.09751). repetition_penalty: logits of tokens that occur
    already are divided by it, or multiplied where they are negative (Keskar et al. 2019, arXiv 1909.05858).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for what is out of range."""
        if not (self.temperature >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1):
            raise UsageError("temperature and top-k are at least 0, top-p is above 0 and at most 1")
        if not self.repetition_penalty > 0:
            raise UsageError("the repetition penalty is above 0")


def shares(
    logits: NDArray[np.float32], seen: Sequence[int], sampling: Sampling
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that may come behind `seen`, likeliest first, and their probabilities.

    logits: float32 [vocabulary].
    """
    if sampling.repetition_penalty != 1 and seen:
        places = np.unique(np.asarray(seen))
        values, penalty = logits[places], np.float32(sampling.repetition_penalty)
        logits = logits.copy()
        logits[places] = np.where(values > 0, values / penalty, values * penalty)
    if sampling.temperature == 0:
        return np.array([logits.argmax()]), np.ones(1)
    places = np.arange(len(logits))
    if 0 < sampling.top_k < len(logits):  # a vocabulary takes milliseconds to sort
        places = np.flatnonzero(logits >= np.partition(logits, -sampling.top_k)[-sampling.top_k])
    order = places[np.argsort(-logits[places], kind="stable")][: sampling.top_k or None]
    scaled = logits[order].astype(np.float64) / sampling.temperature
    found = np.exp(scaled - scaled[0])
    found /= found.sum()
    likely = np.cumsum(found) - found < sampling.top_p  # the likeliest always stays
    return order[likely], found[likely] / found[likely].sum()


def draw(logits: NDArray[np.float32], seen: Sequence[int], sampling: Sampling, random: Random) -> int:
    """The next token behind `seen`, from float32 [vocabulary]."""
    tokens, found = shares(logits, seen, sampling)
    if len(tokens) == 1:
        return int(tokens[0])
    place = np.searchsorted(np.cumsum(found)[:-1], random.random(), side="right")
    return int(tokens[place])


class LanguageModel:
    """A folder that `hybridkit export FOLDER --target genai` wrote, on the CPU.

    threads, native: as `hybridkit.runtime.session` takes them.
    Raises FileError for a folder that is something else.
    """

    def __init__(self, folder: Path, *, threads: int | None = None, native: bool = True) -> None:
        self.folder = folder
        try:
            said = json.loads((folder / CONFIGURATION).read_bytes())
            model, self.search = said["model"], dict(said["search"])
            decoder = model["decoder"]
            self.context, self.vocabulary = int(model["context_length"]), int(model["vocab_size"])
            ends = model["eos_token_id"]
            self.ends = frozenset(ends if isinstance(ends, list) else [ends]) - {None}
            layers = range(int(decoder["num_hidden_layers"]))
            inputs, outputs = decoder["inputs"], decoder["outputs"]
            self._caches = [
                (inputs[f"past_{part}_names"] % layer, outputs[f"present_{part}_names"] % layer)
                for layer in layers
                for part in ("key", "value")
            ]
            self._ids, self._mask, self._logits = (
                *(inputs["input_ids"], inputs["attention_mask"]),
                outputs["logits"],
            )
            self._shape = int(decoder["num_key_value_heads"]), int(decoder["head_size"])
            file = folder / decoder["filename"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise FileError(
                f"{folder} is not what `hybridkit export FOLDER --target genai` writes ({error!r})"
            ) from None
        # an arena keeps what the largest prompt took, and the sizes of prompts never repeat as patterns
        self._session = session(
            file, threads, native=native, enable_cpu_mem_arena=False, enable_mem_pattern=False
        )
        self._binding: Any = None
        self._seen: list[int] = []  # the tokens in the cache
        self._found = np.zeros((1, 1, self.vocabulary), np.float32)  # the logits
        self._buffers: list[NDArray[np.float32]] = []
        self._values: list[OrtValue] = []

    @property
    def cache_bytes(self) -> int:
        """Of the buffers that hold keys and values now."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def logits(self, tokens: Sequence[int], most: int = 0) -> NDArray[np.float32]:
        """Of the token behind all of `tokens`, float32 [vocabulary]; the cache has room for `most` more.

        Raises UsageError for no tokens, ones that the vocabulary has not, and more than the context holds.
        """
        known = _common(self._seen, tokens[:-1])
        if not tokens or not all(0 <= token < self.vocabulary for token in tokens[known:]):
            raise UsageError(f"a prompt is at least one token, each from 0 to {self.vocabulary - 1}")
        if len(tokens) > self.context:
            raise UsageError(f"{len(tokens)} tokens do not fit into the model's context of {self.context}")
        self._make_room(min(len(tokens) + most, self.context))
        del self._seen[known:]  # a run that fails may leave anything behind these
        while len(self._seen) < len(tokens):
            self._read(tokens[len(self._seen) :][:_PIECE])
        logits: NDArray[np.float32] = self._found[0, 0].copy()
        return logits

    def _read(self, tokens: Sequence[int]) -> None:
        """The tokens behind those in the cache."""
        binding = self._binding
        binding.bind_cpu_input(self._ids, np.asarray([tokens], np.int64))
        binding.bind_cpu_input(self._mask, np.ones((1, len(self._seen) + len(tokens)), np.int64))
        self._session.run_with_iobinding(binding)
        self._seen.extend(tokens)

    def stream(self, prompt: Sequence[int], most: int, sampling: Sampling) -> Iterator[int]:
        """Up to `most` tokens behind the prompt as they are found, without the one that ends the answer.

        Raises as `logits`.
        """
        random = Random(sampling.seed)  # NumPy's takes 5 MB to import
        tokens = list(prompt)
        for left in range(min(most, self.context - len(tokens)), 0, -1):
            token = draw(self.logits(tokens, left), tokens, sampling, random)
            if token in self.ends:
                return
            tokens.append(token)
            yield token

    def _make_room(self, tokens: int) -> None:
        """Buffers for that many tokens at least, with what is known in them, bound as past and present."""
        room = self._buffers[0].shape[2] if self._buffers else 0
        if tokens <= room:
            return
        heads, size = self._shape
        shape = 1, heads, -(-tokens // _STEP) * _STEP, size
        self._binding, self._values = None, []  # which hold the old ones
        old, self._buffers, made = self._buffers[::-1], [], []
        seen, self._seen = self._seen, []  # nothing, where there is not enough memory
        for _ in self._caches:
            buffer = np.zeros(shape, np.float32)
            if old:
                buffer[:, :, : len(seen)] = old.pop()[:, :, : len(seen)]
            made.append(buffer)
        self._buffers, self._seen = made, seen
        self._bind()
        give_back_memory()

    def _bind(self) -> None:
        from onnxruntime import OrtValue

        self._binding = self._session.io_binding()
        logits = OrtValue.ortvalue_from_numpy(self._found)
        self._binding.bind_ortvalue_output(self._logits, logits)
        self._values = [OrtValue.ortvalue_from_numpy(buffer) for buffer in self._buffers]
        for (past, present), value in zip(self._caches, self._values, strict=True):
            self._binding.bind_ortvalue_input(past, value)
            self._binding.bind_ortvalue_output(present, value)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with; quick where `second` goes on from `first`, as at most steps."""
    if first == second[: len(first)]:
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def sampling_of(search: Mapping[str, Any], **given: Any) -> Sampling:
    """What a folder's configuration says, where nothing else is given (None)."""
    said = {name: search.get(name) for name in ("temperature", "top_k", "top_p", "repetition_penalty")}
    if not search.get("do_sample"):
        said["temperature"] = 0.0
    chosen = {name: value for name, value in {**said, **_without_none(given)}.items() if value is not None}
    return Sampling(**chosen)


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
