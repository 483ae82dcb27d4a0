"""Documents of a corpus, piece by piece, so that none has to fit into memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from hybridkit.errors import FileError

PIECE: Final = 1 << 14  # characters that are tokenised at once


class Piece(NamedTuple):
    """A part of a document, and whether the document ends with it."""

    text: str
    last: bool


def of_files(files: Iterable[Path]) -> Iterator[Piece]:
    """Each file is a document. Raises FileError, naming it, for one that is not UTF-8 text."""
    for path in files:
        try:
            with path.open(encoding="utf-8") as file:
                yield from _checked(_pieces(iter(lambda: file.read(PIECE), "")), str(path))
        except UnicodeDecodeError as error:
            raise FileError(
                f"{path} is not text: it is no UTF-8 ({error.reason}); leave it out with "
                "--set task.suffixes=.a,.b"
            ) from None
        except OSError as error:
            raise FileError(f"{path} cannot be read: {error.strerror}") from None


def of_table(table: Any, column: str, where: str) -> Iterator[Piece]:
    """Each row of a table (`datasets.Dataset`) is a document; rows without text are passed over.

    Raises FileError where the column holds something else.
    """
    for row in table.select_columns([column]):
        text = row[column]
        if text is None:
            continue
        if not isinstance(text, str):
            raise FileError(f"{where}: column {column!r} holds {type(text).__name__}, not text")
        chunks = (text[start : start + PIECE] for start in range(0, len(text), PIECE))
        yield from _checked(_pieces(chunks), where)


def _pieces(chunks: Iterable[str]) -> Iterator[Piece]:
    """One document that comes in chunks, in pieces that end where lines do, if lines are that short."""
    rest = ""
    for chunk in chunks:
        rest += chunk
        end = rest.rfind("\n") + 1 or rest.rfind(" ") + 1
        if len(rest) >= 2 * PIECE and not end:
            end = len(rest)
        if len(rest) > PIECE and end:
            yield Piece(rest[:end], last=False)
            rest = rest[end:]
    yield Piece(rest, last=True)


def _checked(pieces: Iterable[Piece], where: str) -> Iterator[Piece]:
    for piece in pieces:
        if "\0" in piece.text:
            raise FileError(f"{where} is not text: it holds a NUL character")
        yield piece
