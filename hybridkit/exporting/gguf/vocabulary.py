"""A tokenizer as llama.cpp keeps one, out of the files that travel with a network."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import gguf

from hybridkit.errors import UsageError
from hybridkit.pretrained.assets import Assets

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # kinds of tokens

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
        _add_tokens(writer, document, size)
        gguf.SpecialVocab(folder, load_merges=True, n_vocab=size).add_to_gguf(writer, quiet=True)


def _add_tokens(writer: gguf.GGUFWriter, document: Mapping[str, Any], size: int) -> None:
    model = document["model"]
    if model.get("type") != "BPE":
        raise UsageError(
            f"a {model.get('type')} tokenizer is not written to .gguf files; only byte-level BPE is"
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut_of(document))
    tokens = {index: token for token, index in model["vocab"].items()}
    kinds = dict.fromkeys(tokens, NORMAL)
    for added in document.get("added_tokens", ()):
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added.get("special") else USER_DEFINED
    if max(tokens) >= size:
        raise UsageError(f"the tokenizer has tokens up to {max(tokens)}, the network {size} rows")
    writer.add_token_list([tokens.get(index, f"[PAD{index}]") for index in range(size)])
    writer.add_token_types([kinds.get(index, UNUSED) for index in range(size)])


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
