"""The one opener: the kind of source that a text means, asked of the plugins, then of our own kinds.

A kind is a strategy like others. Who opens something asks here, names the code that the user named, and takes
the parts that it needs: nothing is read, made or imported before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hybridkit.errors import FileError, UsageError
from hybridkit.registry import BUILTIN, registry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hybridkit.packing.model import PackedModel
    from hybridkit.tasks.protocol import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Code(Container[str]):
    """The code that the user names; nothing is imported because a file names it.

    task, model: of the source's network; they go before what a file says. also: the other texts
    package.module:attribute that the user gave. otherwise: makes the network of a source that names none.
    """

    task: str | None = None
    model: str | None = None
    also: Collection[str | None] = ()
    otherwise: Callable[[], nn.Module] | None = None

    def __contains__(self, target: object) -> bool:
        """Whether `target` may be imported."""
        return target in (self.task, self.model, *self.also)


def check_named(named: Mapping[str, str], allowed: Container[str], whose: str) -> None:
    """Raise UsageError for a package.module:attribute, by flag, that a file names and the user does not."""
    for name, target in named.items():
        if target not in allowed:
            flag = name.replace("_", "-")
            raise UsageError(
                f"{whose} {flag} is {target!r}, and code that only a file names is never imported; "
                f"say --{flag} {target}"
            )


class Source:
    """Something opened. A kind overrides the parts that it has; each is read or made when it is asked for.

    Every part may raise FileError for what is missing or damaged, UsageError for what it has to be told.
    """

    def __init__(self, text: str, code: Code) -> None:
        self.text, self.code = text, code

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

    @property
    def onnx(self) -> Path | None:
        """The ONNX file that it is, else None."""
        return None


class SourceKind(Protocol):
    """One kind of source."""

    def matches(self, text: str) -> bool:
        """Whether `text` is of this kind, for any text; reads next to nothing, never raises."""

    def open(self, text: str, code: Code) -> Source:
        """The source of a text that matches."""


def open_source(text: str, code: Code | None = None, options: Mapping[str, Any] | None = None) -> Source:
    """What `text` means, of the first kind that matches: a plugin's, by name, before our own.

    `options` are those of the kind. Raises FileError where no kind matches; a kind that is broken is passed
    over with a warning.
    """
    entries = [entry for entry in registry().entries if entry.strategy.kind == "source"]
    for entry in sorted(entries, key=lambda entry: entry.distribution == BUILTIN):
        name = entry.qualified_name
        try:
            kind: SourceKind = registry().load("source", name)()
            matches = kind.matches(text)
        except Exception as error:  # a stranger's code may fail in any way
            logger.warning("source %s was passed over: %s", name, " ".join(str(error).split()))
            continue
        if matches:
            kind = registry().create("source", name, options)
            return kind.open(text, code or Code())
    raise FileError(
        f"{text}: there is no run here, nor one of that name, and no such file; package.module:attribute, "
        f"a packed model and a .safetensors file works too"
    )
