"""What causal and masked language modelling share: a corpus in blocks of tokens."""

from __future__ import annotations

import hashlib
import json
import math
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from torch import Tensor

from hybridkit.options import option
from hybridkit.pretrained import Head, Pretrained
from hybridkit.tasks.datafiles import DataFiles, Part, find_files
from hybridkit.tasks.language.blocks import block_parts
from hybridkit.tasks.language.documents import Piece, of_files, of_table
from hybridkit.tasks.language.tokenizing import TextOptions, TextTask
from hybridkit.tasks.language.tokens import TokenFile, tokenised
from hybridkit.tasks.protocol import Splits
from hybridkit.tasks.rows import column, is_named, is_saved, open_tables

TEXTS = ("text", "content", "document", "sentence", "code")
BLOCK = 256  # tokens
AT_ONCE = 2_048  # tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusOptions(TextOptions):
    """Options of language modelling."""

    text_column: str = option("", f"column of a table with the text (default: {', '.join(TEXTS)})")
    sequence_length: Annotated[int, Ge(2)] | None = option(
        None, f"tokens of a block (default: {BLOCK}, or what the network takes)"
    )


class CorpusTask(TextTask):
    """Language modelling on a corpus that is tokenised once and lies in blocks of equal length.

    Documents follow each other, each closed by the tokenizer's end (`eos_token`, else `sep_token`). Parts
    that the data do not name are the last 5 % of the tokens (test) and the 5 % before (validation).
    """

    head: Head
    metric = "perplexity"
    metric_goal = "min"

    def __init__(self, options: CorpusOptions | None = None) -> None:
        self.options = options or CorpusOptions()
        super().__init__(self.options)

    @cached_property
    def sequence_length(self) -> int:
        """Tokens of a block, all that the network sees included."""
        return self._longest(self.options.sequence_length, BLOCK)

    @property
    def samples_at_once(self) -> int:
        """How many blocks a file is verified on at once: the logits of `AT_ONCE` tokens are large enough."""
        return max(1, AT_ONCE // self.sequence_length)

    def _network(self, found: Pretrained) -> Any:
        return self._prepared(found, found.network(self.head))

    def _load(self) -> Splits:
        parts = block_parts(
            self._token_files, self._cut_length, self.options.data_dir or "the standard library"
        )
        return Splits(**parts)

    @property
    def _cut_length(self) -> int:
        """Tokens of the corpus in a block."""
        return self.sequence_length

    @cached_property
    def _token_files(self) -> dict[Part, TokenFile]:
        """The corpus, part by part."""
        where, suffixes = self.options.data_dir, self.options.text_suffixes
        if where and (is_named(where) or is_saved(where)):
            return self._of_tables(open_tables(where, self.options.subset), where)
        found = find_files(where, ("text", "tables"), suffixes) if where else standard_library()
        if found.kind == "tables":
            return self._of_tables(open_tables(where, files=found), where)
        return {part: self._of_paths(paths) for part, paths in found.parts.items()}

    def _of_tables(self, tables: Mapping[Part, Any], where: str) -> dict[Part, TokenFile]:
        found: dict[Part, TokenFile] = {}
        for part, table in tables.items():
            name = column(table, self.options.text_column, TEXTS, "text_column", where)
            key = json.dumps([table._fingerprint, name])
            pieces = of_table(table, name, where)
            found[part] = self._tokens(pieces, key, table.info.dataset_size)
        return found

    def _of_paths(self, paths: tuple[Path, ...]) -> TokenFile:
        stats = [(str(path.resolve()), path.stat()) for path in paths]
        key = json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
        return self._tokens(of_files(paths), key, sum(stat.st_size for _, stat in stats))

    def _tokens(self, pieces: Iterable[Piece], key: str, size: int | None) -> TokenFile:
        tokenizer = self.tokenizer
        boundary = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        return tokenised(lambda: pieces, tokenizer, boundary, key, size)

    def _data_digest(self) -> str:
        parts = {part: file.sha256 for part, file in self._token_files.items()}
        return hashlib.sha256(json.dumps([parts, self.sequence_length]).encode()).hexdigest()

    def provenance(self) -> dict[str, Any]:
        """What every task records, and tokens, bytes of text and the length of a block."""
        files = self._token_files
        return super().provenance() | {
            "tokens": {part: file.count for part, file in files.items()},
            "bytes": {part: file.text_bytes for part, file in files.items()},
            "sequence_length": self.sequence_length,
        }


def standard_library() -> DataFiles:
    """The top-level sources of Python's standard library, but for those generated where Python was built."""
    folder = Path(sysconfig.get_path("stdlib"))
    paths = sorted(p for p in folder.glob("*.py") if not p.name.startswith("_sysconfigdata"))
    return DataFiles(folder, "text", {"train": tuple(paths)})


class PerToken:
    """Perplexity and bits per byte of whole data: of the mean loss, not means of what batches have.

    It is a `Meter`. A batch may have `bytes`, float [batch], the bytes of text that its targets stand for.
    """

    def __init__(self, targets: Any) -> None:
        self._targets = targets  # batch -> how many tokens its loss is a mean of
        self._nats = self._bytes = 0.0
        self._count = 0

    def add(self, output: Any, batch: Mapping[str, Tensor], values: Mapping[str, float]) -> None:
        """Take note of a batch and its metrics."""
        count = int(self._targets(batch))
        self._count += count
        self._nats += values["loss"] * count
        self._bytes += float(batch["bytes"].sum()) if "bytes" in batch else 0.0

    def result(self) -> dict[str, float]:
        """What was found so far."""
        return of_nats(self._nats, self._count, self._bytes)


def of_nats(nats: float, count: int, text_bytes: float) -> dict[str, float]:
    """Perplexity and, where bytes are known, bits per byte of `nats` over `count` tokens."""
    mean = nats / max(count, 1)
    found = {"perplexity": math.exp(min(mean, 700.0))}  # beyond it no float holds the number
    return found | ({"bits_per_byte": nats / math.log(2) / text_bytes} if text_bytes else {})
