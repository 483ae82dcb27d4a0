"""A tokenizer as llama.cpp keeps one, out of the files that travel with a network."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import gguf

from hybridkit.errors import UsageError
from hybridkit.pretrained.assets import Assets

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # kinds of tokens
SPACE: Final = "\u2581"  # what SentencePiece writes for one
LAST: Final = -1e6  # the score of a token that no merge gives

_SPACES: Final = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}

# Regular expressions that cut text before merges, and llama.cpp's names for them.
_DIGITS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUTS: Final = {_DIGITS % "": "qwen2", _DIGITS % "{1,3}": "llama-bpe"}


def add_vocabulary(writer: gguf.GGUFWriter, assets: Assets | None, size: int) -> None:
    """Tokens, merges, kinds, special tokens and the chat template of `assets`, for `size` rows.

    A network without a tokenizer, of 256 tokens, gets bytes. Raises UsageError for a tokenizer that llama.cpp
    would cut text otherwise with, or of which it knows nothing.
    """
    if assets is None and size == 256:
        return _add_bytes(writer)
    if assets is None or "tokenizer.json" not in assets.files:
        raise UsageError("the network has no tokenizer.json, without which a .gguf file answers nothing")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "assets"
        assets.save(folder)
        document = json.loads((folder / "tokenizer.json").read_bytes())
        pieces = _add_tokens(writer, document, size)
        special = gguf.SpecialVocab(folder, load_merges=not pieces, n_vocab=size)
        special.add_special_token.setdefault("bos", False)  # llama.cpp would add one before pieces
        special.add_to_gguf(writer, quiet=True)


def _add_tokens(writer: gguf.GGUFWriter, document: Mapping[str, Any], size: int) -> bool:
    """Whether they are SentencePiece's, which are merged by scores."""
    model = document["model"]
    if model.get("type") != "BPE":
        raise UsageError(
            f"a {model.get('type')} tokenizer is not written to .gguf files; only BPE is, of bytes or "
            "SentencePiece's"
        )
    tokens = {index: token for token, index in model["vocab"].items()}
    kinds = dict.fromkeys(tokens, NORMAL)
    prefix = space_before(document)
    if prefix is None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(cut_of(document))
    else:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_add_space_prefix(prefix)
        scores = scores_of(model["merges"], model["vocab"])
        writer.add_token_scores([scores.get(tokens.get(index, ""), LAST) for index in range(size)])
        kinds |= {index: BYTE for index, token in tokens.items() if re.fullmatch("<0x[0-9A-F]{2}>", token)}
    for added in document.get("added_tokens", ()):
        tokens[added["id"]] = added["content"]
        special = UNKNOWN if prefix is not None and added["content"] == model.get("unk_token") else CONTROL
        kinds[added["id"]] = special if added.get("special") else USER_DEFINED
    if max(tokens) >= size:
        raise UsageError(f"the tokenizer has tokens up to {max(tokens)}, the network {size} rows")
    writer.add_token_list([tokens.get(index, f"[PAD{index}]") for index in range(size)])
    writer.add_token_types([kinds.get(index, UNUSED) for index in range(size)])
    return prefix is not None


def space_before(document: Mapping[str, Any]) -> bool | None:
    """Whether SentencePiece's tokenizer puts a space before a text; None for another tokenizer."""
    if not document["model"].get("byte_fallback"):
        return None
    steps = [*_steps(document.get("normalizer")), *_steps(document.get("pre_tokenizer"))]
    before = False
    for step in steps:
        kind = step["type"]
        if kind == "Prepend" and step.get("prepend") == SPACE:
            before = True
        elif kind == "Metaspace" and step.get("replacement") == SPACE and not step.get("split"):
            before = before or step.get("prepend_scheme", "always") != "never"
        elif kind != "Replace" or step != _SPACES:
            return None
    return before if steps else None


def _steps(part: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer."""
    if part is None:
        return []
    steps: list[Mapping[str, Any]] = part.get("normalizers") or part.get("pretokenizers") or [part]
    return steps


def scores_of(merges: Sequence[Any], tokens: Iterable[str]) -> dict[str, float]:
    """By token: llama.cpp merges what makes the token of the highest score, first merges first.

    It merges any two tokens that make one. UsageError where the tokenizer does not.
    """
    pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in merges]
    scores: dict[str, float] = {}
    for rank, (first, second) in enumerate(pairs):
        scores.setdefault(first + second, -float(rank))
    known, merged = set(tokens), set(pairs)
    for token in scores:
        for place in range(1, len(token)):
            pair = token[:place], token[place:]
            if pair not in merged and known.issuperset(pair):
                raise UsageError(
                    f"the tokenizer has no merge of {pair[0]!r} and {pair[1]!r}, which llama.cpp would make; "
                    "its .gguf file would cut text otherwise"
                )
    return scores


def cut_of(document: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a tokenizer.json cuts text before merges. UsageError where it has none."""
    cut = document.get("pre_tokenizer") or {}
    parts = cut["pretokenizers"] if cut.get("type") == "Sequence" else [cut]
    kinds = [part.get("type") for part in parts]
    plain = kinds[-1:] == ["ByteLevel"] and not parts[-1].get("add_prefix_space")
    if plain and kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if plain and kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    if plain and kinds == ["Split", "ByteLevel"]:
        pattern = parts[0].get("pattern", {}).get("Regex")
        if pattern in _CUTS:
            return _CUTS[pattern]
    raise UsageError(f"how the tokenizer cuts text ({json.dumps(cut):.100}) is not known to .gguf files")


def _add_bytes(writer: gguf.GGUFWriter) -> None:
    """Each byte a token, under the letter that GPT-2 writes it as, and no merge."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    letters = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(letters)
    writer.add_token_types([NORMAL] * 256)
    writer.add_token_merges(["! !"])  # llama.cpp wants one; what is no token falls back to its bytes
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
