"""Text to tokens and back, and conversations as a model's chat template has them; without torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridkit.errors import FileError, UsageError

Message = Mapping[str, str]  # role, content
_HOW = "pip install 'hybridkit[hf]' brings it"


class Text:
    """The tokenizer of a folder, with its chat template. Raises FileError where it is missing or damaged."""

    def __init__(self, folder: Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ModuleNotFoundError as error:
            raise UsageError(f"text needs the package tokenizers ({error}); {_HOW}") from None
        file = folder / "tokenizer.json"
        try:
            self._tokenizer: Any = Tokenizer.from_str(file.read_text("utf-8"))
            about = folder / "tokenizer_config.json"
            self._about: dict[str, Any] = json.loads(about.read_bytes()) if about.is_file() else {}
        except Exception as error:  # of the package, which has no class of its own for them
            raise FileError(f"{file} cannot be read: {error}") from None
        template = folder / "chat_template.jinja"
        self._template: Any = (
            template.read_text("utf-8") if template.is_file() else self._about.get("chat_template")
        )

    @property
    def chats(self) -> bool:
        """Whether there is a chat template."""
        return isinstance(self._template, str)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Tokens; `special`: with those that every text begins or ends with."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """A conversation, up to where the answer begins.

        Raises UsageError where there is no template, or it refuses the conversation.
        """
        if not self.chats:
            raise UsageError("the model has no chat template; leave out --chat")
        try:
            from jinja2.exceptions import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ModuleNotFoundError as error:
            raise UsageError(f"a chat needs the package jinja2 ({error}); {_HOW}") from None

        def refuse(reason: str) -> None:
            raise TemplateError(reason)

        # as transformers renders templates, which are a stranger's
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = refuse
        environment.filters["tojson"] = lambda value, **how: json.dumps(value, ensure_ascii=False, **how)
        special = {
            name: token["content"] if isinstance(token, dict) else token
            for name in ("bos_token", "eos_token", "unk_token", "pad_token")
            if (token := self._about.get(name)) is not None
        }
        try:
            made = environment.from_string(self._template).render(
                messages=list(messages), add_generation_prompt=True, **special
            )
        except TemplateError as error:
            raise UsageError(f"the model's chat template does not take this: {error}") from None
        return self.encode(made, special=False)

    def decode(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text of tokens as they come, in pieces of whole characters; special ones are left out."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        for token in tokens:
            piece = stream.step(self._tokenizer, token)
            if piece:
                yield piece
