"""What tasks on sentences share: rows of text, tokenised batch by batch, padded to the longest of a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Final

import numpy as np
from annotated_types import Ge

from hybridkit.errors import UsageError
from hybridkit.options import option
from hybridkit.tasks.datafiles import Part, find_files
from hybridkit.tasks.language.tokenizing import TextOptions, TextTask
from hybridkit.tasks.rows import (
    Rows,
    Table,
    column,
    digest,
    has_column,
    is_named,
    is_saved,
    open_tables,
    renamed,
    text_lengths,
)

FIRST: Final = ("text", "sentence", "sentence1", "text1", "premise", "question1", "question", "content")
SECOND: Final = ("sentence2", "text2", "hypothesis", "question2")
LONGEST: Final = 512  # tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class SentenceOptions(TextOptions):
    """Options of tasks on sentences."""

    text_column: str = option("", "column with the text (default: text, sentence, sentence1, premise, ...)")
    pair_column: str = option("", "column with the second text of a pair (default: sentence2, text2, ...)")
    label_column: str = option("", "column with the label or score")
    max_length: Annotated[int, Ge(1)] | None = option(
        None, f"tokens of a sample at most (default: {LONGEST}, or what the network takes)"
    )


class SentenceTask(TextTask):
    """A task on lines of text files, or on rows of tables, with one text or two."""

    def __init__(self, options: SentenceOptions) -> None:
        super().__init__(options)
        self._sentence_options = options

    @cached_property
    def max_length(self) -> int:
        """Tokens of a sample at most."""
        return self._longest(self._sentence_options.max_length, LONGEST)

    @cached_property
    def _tables(self) -> dict[Part, Table]:
        """The data as they are, by part."""
        where = self._where
        if is_named(where) or is_saved(where):
            return open_tables(where, self._common.subset)
        found = find_files(where, ("text", "tables"), self._text_options.text_suffixes)
        return open_tables(where, files=found)

    @property
    def _where(self) -> str:
        if not self._common.data_dir:
            raise UsageError(f"task {self.name} needs data: --data-dir FOLDER, FILE or hf:OWNER/NAME")
        return self._common.data_dir

    @property
    def _texts(self) -> list[str]:
        """The columns that the task reads text from."""
        return self._text_columns

    @cached_property
    def _text_columns(self) -> list[str]:
        """The columns with text: one, or two where there are pairs."""
        options, table = self._sentence_options, self._tables["train"]
        first = column(table, options.text_column, FIRST, "text_column", self._where)
        if options.pair_column or has_column(table, "", [name for name in SECOND if name != first]):
            return [first, column(table, options.pair_column, SECOND, "pair_column", self._where)]
        return [first]

    def _rows(self, table: Table, labels: Any = None) -> Rows:
        """The rows of a table that have text, under the names `text` and `text2`."""
        lengths = text_lengths(table, self._texts, self._where)
        places = np.flatnonzero(lengths)
        names = dict(zip(self._texts, ("text", "text2"), strict=False))
        return Rows(
            renamed(table, names), places, lengths[places], None if labels is None else labels[places]
        )

    def _tokens(self, texts: Sequence[str], seconds: Sequence[str] | None = None) -> dict[str, Any]:
        """Padded to the longest: int64 [texts, tokens]."""
        encoded = self.tokenizer(
            list(texts),
            list(seconds) if seconds is not None else None,
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        # token types are all 0, which is what a network takes them for, unless there are two texts
        kept = self.input_names if seconds is not None else ("input_ids", "attention_mask")
        return {name: encoded[name] for name in kept if name in encoded}

    def _data_digest(self) -> str:
        sha = hashlib.sha256()
        for rows in self._all_rows.values():
            sha.update(digest(rows.table, rows.places, rows.table.column_names).encode())
            sha.update(b"" if rows.labels is None else rows.labels.tobytes())
        return sha.hexdigest()

    @cached_property
    def _all_rows(self) -> Mapping[Part, Rows]:
        raise NotImplementedError
