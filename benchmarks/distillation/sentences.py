"""English sentences to learn embeddings from, and others to measure on, out of public packages and files.

    python benchmarks/distillation/sentences.py FOLDER

writes FOLDER/sentences/train.txt (prose that is not fiction: the validation and test parts of WikiText-2, the
Anarchist FAQ, Matthew Henry's commentary, film reviews, addresses on the State of the Union, fortunes; and a
part of the glosses and examples of WordNet and the GNU dictionary), validation.txt and test.txt beside it
(256 and 2,048 sentences of Jane Austen's novels, in no order), and FOLDER/sts/test.csv (the test set of the
STS benchmark: scored pairs).
Everything is fetched once, into the cache of the benches, and known by its sha256.
"""

from __future__ import annotations

import gzip
import html
import io
import random
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.heldout.austen import read_novels
from benchmarks.heldout.data import Package, Source, fetch, read_matching
from hybridkit.packing.atomic import atomic_file

WORDNET: Final = Package(
    "w/wordnet/wordnet-base_3.0-37_all.deb",
    "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
)
GCIDE: Final = Package(
    "d/dict-gcide/dict-gcide_0.48.5+nmu2_all.deb",
    "7b0af5cfde3cbdef5e9d6e78f92ec335ced7c2790f37a40f49bebc6f7347ac0f",
)
FORTUNES: Final = Package(
    "f/fortune-mod/fortunes_1.99.1-7.3_all.deb",
    "41d0551dc0ff52f875a2ecef7c39da2f672ab468c37e170119f7e0245a9d63c5",
)
AFAQ: Final = Package(
    "a/anarchism/anarchism_15.3-3_all.deb",
    "cf21c10948b00e923c62eb31c39a3390413fa26c5ee0e3b925feb0ec7fe42948",
)
HENRY: Final = Package(
    "s/sword-comm-mhcc/sword-comm-mhcc_2.0-1_all.deb",
    "06f748215de78ff48fdfdee93e3ffc5af6318b976485f7aedf22309236967e35",
)
_GITHUB: Final = "https://raw.githubusercontent.com"
_WIKITEXT: Final = (
    f"{_GITHUB}/pytorch/examples/77f55b912142e11fcfdf5b530231fb9c52f181e8/word_language_model/data/wikitext-2"
)
WIKITEXT: Final = (
    Source(f"{_WIKITEXT}/valid.txt", "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8"),
    Source(f"{_WIKITEXT}/test.txt", "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0"),
)
_NLTK: Final = f"{_GITHUB}/nltk/nltk_data/5db857e6f7df11eabb5e5665836db9ec8df07e28/packages/corpora"
REVIEWS: Final = Source(
    f"{_NLTK}/movie_reviews.zip", "a41211ae685019137410268134db6a1a14428c89b671eb83056151a878539008"
)
ADDRESSES: Final = Source(
    f"{_NLTK}/state_union.zip", "366c1dc82b2abf896f42b2ec50ba802a0141a29f75d29ca48a7a243ce5bfbe8d"
)
STS: Final = Source(
    f"{_GITHUB}/PhilipMay/stsb-multi-mt/30de0dec4ee199b7f42351d3f1a0b19592955385/data/stsb-en-test.csv",
    "11523b625219e94e9ca05d2816b5f02cac1614c5894fe657376fa0806378d053",
)
TOKENS: Final = {" @-@ ": "-", " @,@ ": ",", " @.@ ": ".", "( ": "(", " 's": "'s"}  # of WikiText
SHORTEST, LONGEST = 20, 300  # characters of a sentence
MARKUP: Final = re.compile(r"<[^>]*>")
PLAIN: Final = 0.85  # share of its characters that are letters and spaces
GLOSSES: Final = 90_000  # sentences of dictionaries: they are easy, and three times as many as there is prose
VALIDATION, TEST = 256, 2_048  # sentences


def main(folder: Path) -> None:
    """Write the files."""
    train = training_sentences()
    prose = "\n\n".join(read_novels().values())
    held = sorted({s for p in _paragraphs(prose) for s in _sentences(p) if SHORTEST <= len(s) <= LONGEST})
    random.Random(1).shuffle(held)
    known = set(train)
    held = [sentence for sentence in held if sentence not in known]
    parts = {"train": train, "validation": held[:VALIDATION], "test": held[VALIDATION : VALIDATION + TEST]}
    for name, lines in parts.items():
        _write(folder / "sentences" / f"{name}.txt", "".join(f"{line}\n" for line in lines).encode())
        print(f"{name}: {len(lines):,} sentences")
    _write(folder / "sts" / "test.csv", b"sentence1,sentence2,score\n" + fetch(STS))


def training_sentences() -> list[str]:
    """All of the prose and a part of the dictionaries, each sentence once, shuffled."""
    order = random.Random(0)
    prose = {s for source in PROSE for s in source() if _is_plain(s)}
    glosses = sorted({s for source in (wordnet, dictionary) for s in source() if _is_plain(s)} - prose)
    train = sorted(prose) + order.sample(glosses, GLOSSES)
    order.shuffle(train)
    return train


def wordnet() -> Iterator[str]:
    """Definitions, and the examples behind them: `a definition; "an example"`."""
    for content in read_matching(WORDNET, r"usr/share/wordnet/data\.(noun|verb|adj|adv)")[0]:
        for line in content.decode().splitlines():
            if not line.startswith("  "):  # the licence
                gloss = line.split(" | ", 1)[1].strip()
                yield from (piece.strip().strip('"') for piece in re.split(r'; (?=")', gloss))


def dictionary() -> Iterator[str]:
    """Definitions and quotations."""
    text = gzip.decompress(read_matching(GCIDE, r"usr/share/dictd/gcide\.dict\.dz")[0][0]).decode(
        errors="ignore"
    )
    text = re.sub(r"\[[^\]]*\]", "", text).replace("{", "").replace("}", "")
    for paragraph in re.split(r"\n\s*\n|\n(?=   +\d+\.)|\n(?=\S)", text):
        if "\\" not in paragraph:  # the pronunciation of a headword
            numbered = re.sub(r"^\s*(\d+\.|\([a-z]\))\s*", "", paragraph).strip()
            yield from _sentences(re.sub(r"--\s*[A-Z][\w. ]*$", "", numbered))


def wikipedia() -> Iterator[str]:
    """Sentences of prose."""
    for paragraph in articles():
        yield from _sentences(paragraph)


def articles() -> Iterator[str]:
    """Paragraphs of prose, put back from their tokens as far as that goes."""
    for source in WIKITEXT:
        for line in fetch(source).decode().splitlines():
            if line.strip() and not line.strip().startswith("="):
                text = line.replace(" <unk>", " something")
                for token, plain in TOKENS.items():
                    text = text.replace(token, plain)
                yield re.sub(r" ([,.;:!?)'])", r"\1", text)


def fortunes() -> Iterator[str]:
    """Sayings, of the files that have no name for it."""
    for content in read_matching(FORTUNES, r"usr/share/games/fortunes/[\w-]+")[0]:
        for saying in content.decode(errors="ignore").split("\n%\n"):
            yield from _sentences(saying)


def arguments() -> Iterator[str]:
    """The Anarchist FAQ, without its headings and lists."""
    for content in read_matching(AFAQ, r"usr/share/doc/anarchism/html/\w+\.html")[0]:
        for paragraph in re.findall(r"<p\b[^>]*>(.*?)</p>", content.decode(errors="ignore"), re.DOTALL):
            yield from _sentences(html.unescape(MARKUP.sub("", paragraph)))


def commentary() -> Iterator[str]:
    """Matthew Henry on the Bible: SWORD's zCom, an index (offset, bytes, bytes of text) of zlib streams."""
    folder = "usr/share/sword/modules/comments/zcom/mhcc"
    for part in ("ot", "nt"):
        [index], [books] = read_matching(HENRY, rf"{folder}/{part}\.bzs", rf"{folder}/{part}\.bzz")
        for start, size, _ in struct.iter_unpack("<III", index):
            if size:
                book = zlib.decompress(books[start : start + size]).decode(errors="ignore")
                for paragraph in re.split(r"<div[^>]*>|<title.*?</title>", book):
                    yield from _sentences(html.unescape(MARKUP.sub("", paragraph)))


def reviews() -> Iterator[str]:
    """Of films: a sentence a line, in lower case, punctuation apart."""
    for text in _zipped(REVIEWS):
        for line in text.splitlines():
            yield re.sub(r" ([,.;:!?)'])", r"\1", line.replace("( ", "(")).strip()


def addresses() -> Iterator[str]:
    """What presidents said."""
    for text in _zipped(ADDRESSES):
        for paragraph in _paragraphs(text):
            yield from _sentences(paragraph)


PROSE: Final = (wikipedia, arguments, commentary, reviews, addresses, fortunes)


def _zipped(source: Source) -> Iterator[str]:
    with zipfile.ZipFile(io.BytesIO(fetch(source))) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".txt"):
                yield archive.read(name).decode(errors="ignore")


def _paragraphs(text: str) -> list[str]:
    return re.split(r"\n\s*\n", text)


def _sentences(text: str) -> list[str]:
    """Cut after . ! or ? where a capital follows; an abbreviation before a name is cut, too."""
    joined = re.sub(r"\s+", " ", text)
    return [s.strip() for s in re.split(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]?[A-Z])", joined)]


def _is_plain(sentence: str) -> bool:
    plain = sum(c.isalpha() or c == " " for c in sentence)
    return SHORTEST <= len(sentence) <= LONGEST and plain >= PLAIN * len(sentence)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(content)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
