"""A pretrained network where its publisher put it: a folder of Hugging Face layout, a hub name, a GGUF file.

    found = open_pretrained("hf:sentence-transformers/all-MiniLM-L6-v2")
    network, tokenizer = found.network(), found.tokenizer()

transformers does the work; it is imported when a network, a configuration or a tokenizer is asked for. Code
that lies in such a folder runs only where `trust_remote_code` says so.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from hybridkit.errors import FileError, HybridkitError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from hybridkit.pretrained import bitnet
    from hybridkit.pretrained.examples import Examples

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
_TOKENIZER_FILES: Final = ("tokenizer*", "vocab.*", "spiece.model", "sentencepiece*.model", "*.tiktoken")
_DEEP: Final = 1000  # layers that are believed without as many tensors
_DEEPEST: Final = 100_000  # that are believed at all

logger = logging.getLogger(__name__)


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

    `hf:OWNER/NAME` may end in `@REVISION`. HF_HUB_OFFLINE=1 keeps to what the cache holds. A folder that has
    weights as safetensors and as GGUF means the former. Raises FileError where there is none, or the hub
    refuses.
    """
    named = text.removeprefix(PREFIX)
    if "\0" in named or not named.strip():
        raise UsageError(f"{text!r} names no network; say hf:FOLDER or hf:OWNER/NAME")
    path = Path(named).expanduser()
    try:
        if path.is_file() and path.suffix == ".gguf":
            return Pretrained(text, path.parent, gguf=path.name)
        if path.is_dir():
            return _in_folder(text, path, trust_remote_code)
    except OSError as error:  # no name of a file on this system
        raise FileError(f"{named}: {error.strerror or error}") from None
    if named.count("/") != 1 or named.startswith((".", "/", "~")) or named.endswith((".gguf", "/")):
        raise FileError(f"{named}: there is no such file or folder, and it is no name of the form OWNER/NAME")
    from hybridkit.pretrained.hub import fetched

    with _imports(text):
        folder, revision = fetched(named)
    if not (folder / CONFIGURATION).is_file():
        raise FileError(f"{text}: this repository has no {CONFIGURATION}, so it holds no network to open")
    return Pretrained(text, folder, revision=revision, trust_remote_code=trust_remote_code)


def _in_folder(text: str, folder: Path, trust_remote_code: bool) -> Pretrained:
    ggufs = sorted(folder.glob("*.gguf"))
    if (folder / CONFIGURATION).is_file() and not (ggufs and not any(folder.glob("*.safetensors"))):
        return Pretrained(text, folder, trust_remote_code=trust_remote_code)
    if len(ggufs) > 1:
        listed = ", ".join(path.name for path in ggufs)
        raise FileError(f"{text}: this folder holds several GGUF files; name one of {listed}")
    if ggufs:
        return Pretrained(text, folder, gguf=ggufs[0].name)
    raise FileError(f"{text}: this folder has no {CONFIGURATION}, so it holds no Hugging Face network")


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

    @property
    def config(self) -> Any:
        """transformers' configuration of the network, without what is said of packed ternary weights."""
        return self._configured[0]

    @cached_property
    def _configured(self) -> tuple[Any, bitnet.Settings | None]:
        """The configuration, and how ternary weights are packed."""
        from hybridkit.pretrained import bitnet

        if self.gguf is None:
            self._check_configuration()
        with self._reading("configuration"):
            from transformers import AutoConfig

            if self.gguf is not None:
                from hybridkit.pretrained.ggml_types import refuse_fork, teach_gguf

                teach_gguf()
                refuse_fork(self.folder / self.gguf, self.text)
            config = AutoConfig.from_pretrained(self.folder, **self._how())
        if self.gguf is not None:
            self._check_depth(config.to_dict(), _DEEP)
        if settings := bitnet.settings_of(config, self.text):
            del config.quantization_config  # they are dequantised as they are read
        return config, settings

    @property
    def has_weights(self) -> bool:
        """False for the assets of a run or a packed model, which hold none; networks have fresh ones then."""
        from hybridkit.pretrained.weights import NO_WEIGHTS

        return not (self.folder / NO_WEIGHTS).is_file()

    def network(
        self, head: Head | None = None, *, dtype: torch.dtype | Literal["auto"] | None = None, **options: Any
    ) -> nn.Module:
        """The network with its weights, in evaluation mode, on the CPU.

        head: which of its networks; None: the one that its configuration names. A head that the weights lack
        is drawn from the global generator, which a line on the log says. dtype: of the parameters; None:
        float32, `auto`: the file's. options: of the configuration, such as `num_labels`. Where the folder
        holds no weights by design (`has_weights`) all are drawn.
        """
        import torch

        dtype = dtype or torch.float32
        if not self.has_weights:
            return self.fresh(head, **options)
        where: dict[str, Any] = {"pretrained_model_name_or_path": self.folder}
        kind = self._class(head)
        if self.gguf is None:  # looked at before memory is taken for what a damaged configuration says
            empty, files = self._checked(head, options)
            if self._configured[1]:  # transformers gets them dequantised
                kind, config = type(empty), empty.config
                where = {"pretrained_model_name_or_path": None, "config": config, "state_dict": dict(files)}
        with self._reading("network"):
            network, found = kind.from_pretrained(
                **where,
                dtype=dtype,
                use_safetensors=None if self.gguf else True,
                ignore_mismatched_sizes=self.gguf is None,  # judged below
                output_loading_info=True,
                **self._how(),
                **options,
            )
        self._judge(network, found["missing_keys"], [key for key, *_ in found["mismatched_keys"]])
        made: nn.Module = network.eval()
        return made

    def fresh(self, head: Head | None = None, **options: Any) -> nn.Module:
        """`network` in float32 with weights from the global generator, whatever the folder holds."""
        import torch

        with self._reading("configuration"):
            return self._from_config(head, torch.float32, options).eval()

    def streamed(self, head: Head | None = None) -> tuple[nn.Module, Mapping[str, Tensor] | None]:
        """The network on the meta device, and its tensors by its own names, each read when it is asked for.

        Where transformers does more to the tensors than rename them: the network itself, and None.
        """
        from hybridkit.pretrained.weights import by_own_names

        if self.gguf is None and self.has_weights:
            network, files = self._checked(head, {})
            if weights := by_own_names(network, files):
                return network.eval(), weights
        return self.network(head, dtype="auto"), None

    def _checked(
        self, head: Head | None, options: Mapping[str, Any]
    ) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """The network on the meta device, and the tensors of its weights, which have the shapes it needs."""
        import torch

        from hybridkit.pretrained.bitnet import Dequantized
        from hybridkit.pretrained.weights import misshapen, open_checkpoint

        files: Mapping[str, Tensor] = open_checkpoint(self.folder, self.text)
        if settings := self._configured[1]:
            files = Dequantized(files, settings)
        self._check_depth(self.config.to_dict(), max(_DEEP, len(files)))
        with self._reading("network"), torch.device("meta"):
            network = self._from_config(head, torch.float32, options)
        self._judge(network, (), misshapen(network, files), said=False)
        return network, files

    def _check_depth(self, settings: Mapping[str, Any], most: int) -> None:
        """Raise FileError for more than `most` layers: making them would take for ever."""
        for name, value in settings.items():
            if name.endswith(("layers", "layer")) and isinstance(value, int) and value > most:
                raise FileError(f"{self.text}: its configuration is damaged, {name} is {value:,}")

    def tokenizer(self) -> Any:
        """transformers' tokenizer."""
        if self.gguf is None and not any(any(self.folder.glob(name)) for name in _TOKENIZER_FILES):
            raise FileError(f"{self.text}: there is no tokenizer here (tokenizer.json, vocab.txt, ...)")
        with self._reading("tokenizer"):
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(self.folder, **self._how())

    def image_processor(self) -> Any:
        """transformers' image processor."""
        if not (self.folder / "preprocessor_config.json").is_file():
            raise FileError(f"{self.text}: there is no image processor here (preprocessor_config.json)")
        with self._reading("image processor"):
            from transformers import AutoImageProcessor

            return AutoImageProcessor.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code)

    def examples(self, network: nn.Module) -> Examples | None:
        """What `network`, one of this, can be called with, by its configuration; None where nobody knows."""
        from hybridkit.pretrained.examples import examples_of

        return examples_of(network, self.folder)

    def _from_config(self, head: Head | None, dtype: torch.dtype, options: Mapping[str, Any]) -> nn.Module:
        import copy

        config = copy.deepcopy(self.config)
        for name, value in options.items():
            setattr(config, name, value)
        kind = self._class(head)
        if hasattr(kind, "from_config"):  # one of transformers' Auto classes
            made: nn.Module = kind.from_config(config, dtype=dtype, trust_remote_code=self.trust_remote_code)
            return made
        made = kind._from_config(config, dtype=dtype)
        return made

    def _class(self, head: Head | None) -> Any:
        """transformers' class of the network; an Auto class knows what is meant by the configuration."""
        config = self.config
        with self._reading("network"):
            import transformers

            if head is not None:
                auto = getattr(transformers, AUTO_CLASSES[head])
                known = type(config) in auto._model_mapping or AUTO_CLASSES[head] in _auto_map(config)
                if not known:
                    raise UsageError(f"{self.text}: transformers has no {head} head for {config.model_type}")
                return auto
            if self.trust_remote_code:
                for name in _auto_map(config):
                    if name.startswith("AutoModel") and hasattr(transformers, name):
                        return getattr(transformers, name)
            for name in getattr(config, "architectures", None) or ():
                if isinstance(found := getattr(transformers, str(name), None), type):
                    return found
            causal, masked = transformers.AutoModelForCausalLM, transformers.AutoModelForMaskedLM
            decodes = type(config) in causal._model_mapping and type(config) not in masked._model_mapping
            return causal if self.gguf and decodes else transformers.AutoModel  # a GGUF file names no class

    def _judge(
        self, network: Any, missing: Collection[str], misfits: Collection[str], *, said: bool = True
    ) -> None:
        """Raise FileError for weights of the body that are absent or misshapen; name those that are drawn."""
        prefix = f"{network.base_model_prefix}."
        whole = not hasattr(network, network.base_model_prefix)
        parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
        for names, what in ((sorted(missing), "lack"), (sorted(misfits), "have another shape of")):
            body = [n for n in names if n in parameters and (whole or n.startswith(prefix))]
            if body := [name for name in body if "pooler." not in name]:
                raise FileError(f"{self.text}: its weights {what} {_listed(body)}; is the folder complete?")
        drawn = sorted({*missing, *misfits} & parameters)
        if drawn and said:
            logger.warning("%s: %s: not among its weights, drawn at random", self.text, _listed(drawn))

    def _check_configuration(self) -> None:
        path = self.folder / CONFIGURATION
        try:
            content = json.loads(path.read_bytes())
        except OSError as error:
            raise FileError(f"{self.text}: its {CONFIGURATION} cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError):
            raise FileError(f"{self.text}: its {CONFIGURATION} is not JSON; is it truncated?") from None
        if not isinstance(content, dict):
            raise FileError(f"{self.text}: its {CONFIGURATION} is no table of settings")
        self._check_depth(content, _DEEPEST)  # some families make a list of them at once
        kind = content.get("model_type")
        if not content.get("auto_map"):
            with self._reading("configuration"):
                import transformers

                known = kind in transformers.CONFIG_MAPPING if isinstance(kind, str) else False
            if kind is None:
                raise FileError(
                    f"{self.text}: its {CONFIGURATION} names no model_type, so nobody can tell it"
                )
            if not known:
                raise FileError(
                    f"{self.text}: transformers {transformers.__version__} knows no model_type {kind!r:.60}; "
                    "a newer one may"
                )

    def _how(self) -> dict[str, Any]:
        how: dict[str, Any] = {"trust_remote_code": self.trust_remote_code, "local_files_only": True}
        return how | ({"gguf_file": self.gguf} if self.gguf else {})

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """In this context transformers is silent, and any failure of its becomes one line about `what`."""
        from hybridkit.pretrained.quiet import quiet

        try:
            with _imports(self.text), quiet():
                yield
        except (HybridkitError, KeyboardInterrupt, SystemExit):
            raise
        except (
            BaseException
        ) as error:  # transformers raises whatever its readers do; Rust's panics are no Exception
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            if "ignore_mismatched_sizes" in str(error):
                raise FileError(f"{self.text}: its weights have other shapes than it says itself") from None
            if "trust_remote_code" in str(error):
                raise UsageError(
                    f"{self.text} brings code of its own; read it, then say --trust-remote-code"
                ) from None
            raise FileError(f"{self.text}: its {what} cannot be read ({_line(error)})") from None


@contextmanager
def _imports(text: str) -> Iterator[None]:
    """In this context a library that is not there is one line that says how to get it."""
    try:
        yield
    except ImportError as error:
        raise UsageError(f"{text}: {_line(error)}; pip install 'hybridkit[hf]' brings it") from None


def _auto_map(config: Any) -> Mapping[str, Any]:
    found = getattr(config, "auto_map", None)
    return found if isinstance(found, dict) else {}


def _listed(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
