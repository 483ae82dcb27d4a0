"""The one opener: the kind of source that a text means, asked of the plugins, then of our own kinds.

Who opens something asks here, says which code the user named, and takes the parts that it needs: nothing is
read, made or imported before.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from hybridkit.errors import FileError, UsageError
from hybridkit.registry import BUILTIN, registry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hybridkit.packing.model import PackedModel
    from hybridkit.pretrained.assets import Assets
    from hybridkit.pretrained.examples import Examples
    from hybridkit.tasks.protocol import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Code(Container[str]):
    """The code that the user names; nothing is imported because a file names it.

    task, model: of the source's network; they go before what a file says. also: the other texts
    package.module:attribute that the user gave. otherwise: makes the network of a source that names none.
    remote: code that lies in a pretrained network's own folder may run.
    """

    task: str | None = None
    model: str | None = None
    also: Collection[str | None] = ()
    otherwise: Callable[[], nn.Module] | None = None
    remote: bool = False

    def __contains__(self, target: object) -> bool:
        """Whether `target` may be imported."""
        return target in (self.task, self.model, *self.also)


def check_named(named: Mapping[str, str], allowed: Container[str], whose: str) -> None:
    """Raise UsageError for a package.module:attribute, by flag, that a file names and the user does not."""
    for name, target in named.items():
        if target not in allowed:
            flag = name.partition("[")[0].replace("_", "-")
            raise UsageError(
                f"{whose} {flag} is {target!r}, and code that only a file names is never imported; "
                f"say --{flag} {target}"
            )


class Source:
    """A kind of source, and what it opens. A kind overrides `matches` and the parts that it has.

    Each part is read or made when it is asked for. All may raise FileError for what is missing or damaged,
    UsageError for what they have to be told.
    """

    text = ""  # what was opened
    code = Code()

    def matches(self, text: str) -> bool:
        """Whether any `text` is of this kind: reads next to nothing, imports nothing heavy, never raises."""
        raise NotImplementedError

    def open(self, text: str, code: Code) -> Self:
        """The source that a text means which matches; nothing is read yet."""
        opened = copy.copy(self)
        opened.text, opened.code = text, code
        return opened

    def weights(self) -> Mapping[str, Tensor]:
        """The state dict, floating point, by the network's own names; one that is lazy where it can be."""
        weights: Mapping[str, Tensor] = self.network.state_dict()
        return weights

    @cached_property
    def network(self) -> nn.Module:
        """The network with its weights, in evaluation mode."""
        raise UsageError(f"{self.text} holds no network")

    def streamed(self) -> tuple[nn.Module, Mapping[str, Tensor] | None]:
        """The network, and its weights where they stay in their file: it is on the meta device then."""
        return self.network, None

    @cached_property
    def packed(self) -> PackedModel | None:
        """The packed twin of the network where it trained quantised weights, else None."""
        from hybridkit.quant.convert import convert
        from hybridkit.quant.layers import qat_layers

        return convert(self.network) if qat_layers(self.network) else None

    @cached_property
    def task(self) -> Task | None:
        """What the network does, where that is known."""
        from hybridkit.tasks.resolve import make_task

        return make_task(self.code.task) if self.code.task else None

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """What a file made of the source records: JSON values, by convention those of `PackedModel`."""
        said = {"task": self.code.task, "model": self.code.model}
        return {name: value for name, value in said.items() if value}

    @cached_property
    def examples(self) -> Examples | None:
        """What the network can be called with, where it says so itself."""
        return None

    @cached_property
    def assets(self) -> Assets | None:
        """What belongs to the network beside its weights, where there is such a thing."""
        return None

    @property
    def onnx(self) -> Path | None:
        """The ONNX file that it is, else None."""
        return None


class Nothing(Source):
    """What a text opens that is of no kind: each part says so."""

    @cached_property
    def network(self) -> nn.Module:
        """Raise FileError."""
        shown = " ".join(self.text.split())
        raise FileError(
            f"{shown}: there is no run here, nor one of that name, and no such file; "
            f"package.module:attribute, a packed model or a .safetensors file works too"
        )


def open_source(text: str, code: Code | None = None, options: Mapping[str, Any] | None = None) -> Source:
    """What `text` means, of the first kind that matches: a plugin's, by name, before our own.

    `options` are those of the kind. A kind that is broken is passed over with a warning. Where none matches
    the parts raise FileError.
    """
    entries = [entry for entry in registry().entries if entry.strategy.kind == "source"]
    for entry in sorted(entries, key=lambda entry: entry.distribution == BUILTIN):
        name = entry.qualified_name
        try:  # what holds a NUL is no path on any system
            matches = "\0" not in text and registry().create("source", name).matches(text)
        except Exception as error:  # a stranger's code may fail in any way
            logger.warning("source %s was passed over: %s", name, " ".join(str(error).split()))
            continue
        if matches:
            kind: Source = registry().create("source", name, options)
            return kind.open(text, code or Code())
    return Nothing().open(text, code or Code())
