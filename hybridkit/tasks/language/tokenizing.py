"""What the tasks on text share: the tokenizer, and whether it fits the network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridkit.errors import FileError, UsageError
from hybridkit.options import option
from hybridkit.pretrained import Pretrained
from hybridkit.tasks.language.tokens import tokenizer_digest
from hybridkit.tasks.pretrained_task import PretrainedOptions, PretrainedTask

BINS: Final = 256  # of the histogram of hashed tokens by which texts are clustered
_KNUTH: Final = 2654435761  # multiplicative hashing: neighbours in a vocabulary fall into different bins

FREE: Final = {0: "batch", 1: "sequence"}


@dataclass(frozen=True, kw_only=True, slots=True)
class TextOptions(PretrainedOptions):
    """Options of every task on text."""

    tokenizer: str = option("", "where the tokenizer is (default: with the network)")
    suffixes: str = option(".txt,.md,.rst,.py", "which files of a folder are text, separated by commas")

    @property
    def text_suffixes(self) -> tuple[str, ...]:
        """`suffixes` one by one."""
        return tuple(s.strip().lower() for s in self.suffixes.split(",") if s.strip())


class TextTask(PretrainedTask):
    """A task whose inputs are tokens."""

    input_names: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids")
    dynamic_axes = dict.fromkeys(input_names, FREE)

    def __init__(self, options: TextOptions) -> None:
        super().__init__(options)
        self._text_options = options

    @cached_property
    def tokenizer(self) -> Any:
        """transformers' tokenizer, with a token to pad with. Raises FileError where there is none."""
        where = self._text_options.tokenizer or self._text_options.model
        if not self._text_options.tokenizer and not self.models:
            raise UsageError(
                f"task {self.name}: say whose tokenizer {where} takes: --set task.tokenizer=FOLDER"
            )
        try:
            tokenizer = self._opened(where).tokenizer()
            if not len(tokenizer):
                raise FileError("it is empty")
        except FileError as error:
            raise FileError(
                f"{where} has no tokenizer that can be read; name another's with --set task.tokenizer=FOLDER "
                f"({str(error).removeprefix(f'{where}: ')})"
            ) from None
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        return tokenizer

    def _prepared(self, found: Pretrained, network: Any) -> Any:
        """The network, if the tokenizer fits it, told the padding."""
        config = network.config.get_text_config()
        if len(self.tokenizer) > config.vocab_size:
            raise UsageError(
                f"{found.text}: the tokenizer has {len(self.tokenizer)} tokens, the network knows "
                f"{config.vocab_size}: they do not belong together"
            )
        if config.pad_token_id is None:
            config.pad_token_id = self.tokenizer.pad_token_id
        return network

    def _longest(self, asked: int | None, usual: int) -> int:
        """The tokens of a sample at most: those asked for, if the network takes them, else what is usual."""
        most = self.tokenizer.model_max_length
        if self.models:
            config = self._opened(self._text_options.model).config.get_text_config()
            most = min(most, getattr(config, "max_position_embeddings", None) or most)
        if asked is not None and asked > most:
            raise UsageError(f"task {self.name}: {asked} tokens are asked for, the network takes {most}")
        return asked or min(usual, most)

    def _digests(self) -> dict[str, str]:
        return {"data": self._data_digest(), "tokenizer": tokenizer_digest(self.tokenizer)}

    def _data_digest(self) -> str:
        raise NotImplementedError

    def _features(self, batch: Any) -> Tensor:
        ids, mask = batch["input_ids"].flatten(1), batch["attention_mask"].flatten(1).float()
        counts = torch.zeros(len(ids), BINS).scatter_add_(1, ids * _KNUTH % 2**32 * BINS // 2**32, mask)
        return F.normalize(counts, p=1, dim=1)
