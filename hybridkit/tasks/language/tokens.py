"""A corpus as one file of token numbers: made once, kept in a cache, mapped into memory.

    CACHE/tokens/KEY/tokens.bin   the numbers, uint16 or uint32, documents one after the other
                     marks.npy    int64 [marks, 2]: after so many tokens so many bytes of text were read
                     about.json   their number and type, and a sha256 of both files

CACHE is HYBRIDKIT_CACHE, else XDG_CACHE_HOME/hybridkit, else ~/.cache/hybridkit. KEY is made of the tokenizer
and of what the data are; the folder appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hybridkit.errors import FileError
from hybridkit.packing.atomic import remove, sweep, sync, temporary_beside
from hybridkit.tasks.language.documents import Piece

VERSION: Final = 1  # of what tokens.bin holds for one key
TOGETHER: Final = 16  # pieces that the tokenizer gets at once
MARK: Final = 4_096  # tokens between two marks at least


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A tokenised corpus: `count` tokens of type `dtype` in `folder`, made of `text_bytes` bytes of UTF-8."""

    folder: Path
    count: int
    dtype: str
    text_bytes: int
    sha256: str

    @property
    def tokens(self) -> NDArray[Any]:
        """All tokens, mapped."""
        return _mapped(self.folder / "tokens.bin", self.dtype)

    def bytes_before(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """How many bytes of text the first so many tokens are, between marks in proportion."""
        marks = _marks(self.folder / "marks.npy")
        return np.interp(tokens, marks[:, 0], marks[:, 1])


def cache_folder() -> Path:
    """Where what is made once is kept."""
    if given := os.environ.get("HYBRIDKIT_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hybridkit"


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 of all that a tokenizer does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    what = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(what.encode()).hexdigest()


def tokenised(
    pieces: Callable[[], Iterable[Piece]],
    tokenizer: Any,
    boundary: int | None,
    data_key: str,
    size_hint: int | None = None,
) -> TokenFile:
    """The token file of a corpus; from the cache, where it is there.

    pieces: gives the corpus; called only where it has to be read. boundary: the token after each document.
    data_key: what tells this corpus from others. size_hint: its bytes, for the progress bar.
    """
    parts = (VERSION, tokenizer_digest(tokenizer), boundary, data_key)
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    folder = cache_folder() / "tokens" / key
    if found := _opened(folder):
        return found
    sweep([folder.parent])
    temporary = temporary_beside(folder)
    try:
        temporary.mkdir(parents=True)
        with _progress(size_hint) as advance:
            made = _write(temporary, pieces(), tokenizer, boundary, advance)
        (temporary / "about.json").write_text(json.dumps(made))
        sync(temporary)
        with contextlib.suppress(OSError):  # another process was faster
            os.replace(temporary, folder)
    except OSError as error:
        raise FileError(
            f"{folder.parent}: the tokens cannot be kept there ({error.strerror}); HYBRIDKIT_CACHE names "
            "another folder"
        ) from None
    finally:
        remove(temporary)
    opened = _opened(folder)
    if opened is None:
        raise FileError(f"{folder}: what is kept there is damaged; remove it")
    return opened


def _opened(folder: Path) -> TokenFile | None:
    """The file that is kept in `folder`, if it is whole."""
    try:
        about = json.loads((folder / "about.json").read_text())
        found = TokenFile(folder, about["count"], about["dtype"], about["text_bytes"], about["sha256"])
        whole = (folder / "tokens.bin").stat().st_size == found.count * np.dtype(found.dtype).itemsize
        return found if whole and (folder / "marks.npy").is_file() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(
    folder: Path,
    pieces: Iterable[Piece],
    tokenizer: Any,
    boundary: int | None,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Tokenise into `folder`; what about.json says."""
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    sha = hashlib.sha256()
    count = text_bytes = 0
    marks = [(0, 0)]
    stream = iter(pieces)
    with (folder / "tokens.bin").open("wb") as file:
        while together := list(islice(stream, TOGETHER)):
            encoded = tokenizer(
                [piece.text for piece in together],
                add_special_tokens=False,
                return_attention_mask=False,
                verbose=False,  # pieces are longer than what a network sees
            )["input_ids"]
            for piece, numbers in zip(together, encoded, strict=True):
                if piece.last and boundary is not None:
                    numbers = [*numbers, boundary]
                held = np.asarray(numbers, dtype).tobytes()
                file.write(held)
                sha.update(held)
                count += len(numbers)
                text_bytes += len(piece.text.encode("utf-8", "surrogatepass"))
                if count - marks[-1][0] >= MARK:
                    marks.append((count, text_bytes))
            advance(text_bytes)
        file.flush()
        os.fsync(file.fileno())
    marks.append((count, text_bytes))
    np.save(folder / "marks.npy", np.array(marks, np.int64))
    return {
        "count": count,
        "dtype": np.dtype(dtype).name,
        "text_bytes": text_bytes,
        "sha256": sha.hexdigest(),
    }


@contextlib.contextmanager
def _progress(size: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal's stderr; its function takes the bytes read so far."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Tokenising"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        job = bar.add_task("", total=size)
        yield lambda done: bar.update(job, completed=done)


@functools.lru_cache(maxsize=16)
def _mapped(path: Path, dtype: str) -> NDArray[Any]:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)


@functools.lru_cache(maxsize=16)
def _marks(path: Path) -> NDArray[np.int64]:
    marks: NDArray[np.int64] = np.load(path, allow_pickle=False)
    return marks
