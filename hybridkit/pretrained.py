"""A pretrained network where its publisher put it: a folder of Hugging Face layout, a hub name, a GGUF file.

    found = open_pretrained("hf:sentence-transformers/all-MiniLM-L6-v2")
    network, tokenizer = found.network(), found.tokenizer()

transformers does the work; it is imported when a network, a configuration or a tokenizer is asked for. Code
that lies in such a folder runs only where `trust_remote_code` says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from hybridkit.errors import FileError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

PREFIX: Final = "hf:"
CONFIGURATION: Final = "config.json"
Head = Literal["causal-lm", "masked-lm", "text-classification", "image-classification"]
# What a network is asked for; None: what its configuration names, for embeddings the body alone.
AUTO_CLASSES: Final[dict[Head, str]] = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "text-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
}


def is_pretrained(text: str) -> bool:
    """Whether `text` names a pretrained network: `hf:...`, a folder with a config.json, or NAME.gguf.

    Reads one small file at most, and imports nothing. A run of our own has a config.json too, and is none.
    """
    if "\0" in text:
        return False
    if text.startswith(PREFIX):
        return True
    if text.endswith(".gguf"):
        return not os.path.isdir(text)
    path = Path(text, CONFIGURATION)
    try:
        return path.is_file() and b'"hybridkit-run"' not in path.read_bytes()[: 1 << 16]
    except OSError:
        return False


def open_pretrained(text: str, *, trust_remote_code: bool = False) -> Pretrained:
    """The pretrained network that `text` names; a hub's is fetched into the cache that HF_HOME names.

    `hf:OWNER/NAME` may end in `@REVISION`. HF_HUB_OFFLINE=1 keeps to what the cache holds. Raises FileError
    where there is none, or the hub refuses.
    """
    named = text.removeprefix(PREFIX)
    if "\0" in named or not named:
        raise UsageError(f"{text!r} names no network; say hf:FOLDER or hf:OWNER/NAME")
    path = Path(named).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return Pretrained(text, path.parent, gguf=path.name)
    if path.is_dir():
        if (path / CONFIGURATION).is_file():
            return Pretrained(text, path, trust_remote_code=trust_remote_code)
        ggufs = sorted(path.glob("*.gguf"))
        if len(ggufs) == 1:
            return Pretrained(text, path, gguf=ggufs[0].name)
        raise FileError(f"{named}: this folder has no {CONFIGURATION}, so it holds no Hugging Face network")
    if named.count("/") != 1 or named.startswith((".", "/", "~")):
        raise FileError(f"{named}: there is no such folder, and it is no name of the form OWNER/NAME")
    folder, revision = _fetched(named)
    return Pretrained(text, folder, revision=revision, trust_remote_code=trust_remote_code)


@dataclass(frozen=True)
class Pretrained:
    """A pretrained network in `folder`; `text` is how the user named it.

    gguf: the file of the folder that holds configuration, weights and tokenizer, else None. revision: the
    hub's commit. Every part raises FileError, in one line, for what is missing or damaged, and UsageError for
    what the user has to say.
    """

    text: str
    folder: Path
    gguf: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    @cached_property
    def config(self) -> Any:
        """transformers' configuration of the network."""
        from transformers import AutoConfig

        with self._reading("configuration"):
            return AutoConfig.from_pretrained(self.folder, **self._how())

    def network(
        self, head: Head | None = None, *, dtype: torch.dtype | None = None, **options: Any
    ) -> nn.Module:
        """The network with its weights, in evaluation mode, on the CPU.

        head: which of its networks; None: the one that its configuration names. A head that the weights lack
        is drawn from the global generator. dtype: of the parameters; None: float32. options: of the
        configuration, such as `num_labels`.
        """
        import torch

        with self._reading("network"):
            made: nn.Module = self._class(head).from_pretrained(
                self.folder,
                dtype=dtype or torch.float32,
                use_safetensors=None if self.gguf else True,
                **self._how(),
                **options,
            )
        return made.eval()

    def tokenizer(self) -> Any:
        """transformers' tokenizer."""
        from transformers import AutoTokenizer

        with self._reading("tokenizer"):
            return AutoTokenizer.from_pretrained(self.folder, **self._how())

    def image_processor(self) -> Any:
        """transformers' image processor."""
        from transformers import AutoImageProcessor

        with self._reading("image processor"):
            return AutoImageProcessor.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code)

    def _class(self, head: Head | None) -> Any:
        import transformers

        if head is not None:
            return getattr(transformers, AUTO_CLASSES[head])
        for name in getattr(self.config, "architectures", None) or ():
            if isinstance(found := getattr(transformers, name, None), type):
                return found
        return transformers.AutoModel

    def _how(self) -> dict[str, Any]:
        how: dict[str, Any] = {"trust_remote_code": self.trust_remote_code, "local_files_only": True}
        return how | ({"gguf_file": self.gguf} if self.gguf else {})

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """In this context any failure of transformers becomes one line about `what`."""
        try:
            yield
        except ImportError as error:
            raise UsageError(f"{self.text}: {_line(error)}; pip install 'hybridkit[hf]' brings it") from None
        except Exception as error:  # transformers raises whatever its readers do
            if "trust_remote_code" in str(error):
                raise UsageError(
                    f"{self.text} brings code of its own; read it, then say --trust-remote-code"
                ) from None
            raise FileError(f"{self.text}: its {what} cannot be read ({_line(error)})") from None


def _fetched(name: str) -> tuple[Path, str]:
    """The local snapshot of OWNER/NAME[@REVISION], and its commit."""
    from huggingface_hub import snapshot_download

    owner_and_name, _, revision = name.partition("@")
    try:
        folder = Path(
            snapshot_download(
                owner_and_name,
                revision=revision or None,
                ignore_patterns=["*.bin", "*.h5", "*.msgpack", "*.ot", "onnx/*", "openvino/*", "*.gguf"],
            )
        )
    except Exception as error:  # gated, absent, offline: the hub's client has an error for each
        raise FileError(f"{name} cannot be had from the hub ({_line(error)})") from None
    return folder, folder.name


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
