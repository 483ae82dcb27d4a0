"""What every kind of source promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hybridkit.errors import HybridkitError
from hybridkit.sources.protocol import Code, Source

_OTHERS = (
    "",
    " ",
    "no such thing",
    "no-such-run",
    "\0",
    "\n",
    "x" * 5000,
    "/",
    "a/b/c",
    "x.unheard-of",
)
_PARTS: dict[str, Callable[[Source], Any]] = {
    "weights": lambda source: dict(source.weights()),
    "network": lambda source: source.network,
    "streamed": lambda source: source.streamed(),
    "packed": lambda source: source.packed,
    "task": lambda source: source.task,
    "metadata": lambda source: dict(source.metadata),
    "onnx": lambda source: source.onnx,
}


class SourceContract(ABC):
    """`make` returns the kind, `example` a text that it opens, having written what that takes into a folder.

    `code` is what the user names beside it.
    """

    code = Code()

    @abstractmethod
    def make(self) -> Source:
        """The kind."""

    @abstractmethod
    def example(self, folder: Path) -> str:
        """What it opens."""

    def test_matches_its_own_and_nothing_else(self, tmp_path: Path) -> None:
        kind, text = self.make(), self.example(tmp_path)
        assert kind.matches(text) is True
        for other in _OTHERS:
            assert kind.matches(other) is False, f"it takes {other[:40]!r}"

    def test_opening_leaves_the_kind_as_it_was(self, tmp_path: Path) -> None:
        kind, text = self.make(), self.example(tmp_path)
        before = dict(vars(kind))
        source = kind.open(text, self.code)
        assert isinstance(source, Source)
        assert (source.text, source.code) == (text, self.code)
        assert vars(kind) == before

    def test_parts_are_what_they_are_called(self, tmp_path: Path) -> None:
        found = self._parts(self.make().open(self.example(tmp_path), self.code))
        assert {"weights", "network", "onnx"} & set(found), "it has no part that a command takes"
        weights = found.get("weights", {})
        assert all(isinstance(name, str) and isinstance(t, torch.Tensor) for name, t in weights.items())
        if isinstance(network := found.get("network"), nn.Module):
            assert not network.training, "the network is in training mode"
            assert weights, "a network has weights"
        assert isinstance(found.get("metadata", {}), Mapping)

    def test_weights_are_the_same_every_time(self, tmp_path: Path) -> None:
        text = self.example(tmp_path)
        one, two = (self._parts(self.make().open(text, self.code)).get("weights", {}) for _ in range(2))
        assert list(one) == list(two)
        assert all(torch.equal(one[name], two[name]) for name in one)

    @pytest.mark.parametrize("length", [0, 7, 100])
    def test_a_truncated_file_is_an_error_of_one_line(self, tmp_path: Path, length: int) -> None:
        text = self.example(tmp_path)
        if not Path(text).is_file():
            pytest.skip("it opens no file")
        Path(text).write_bytes(Path(text).read_bytes()[:length])
        self._parts(self.make().open(text, self.code))

    def test_a_missing_file_is_an_error_of_one_line(self, tmp_path: Path) -> None:
        text = self.example(tmp_path)
        if not Path(text).is_file():
            pytest.skip("it opens no file")
        Path(text).unlink()
        found = self._parts(self.make().open(text, self.code))
        assert not {"weights", "network", "packed"} & set(found)

    def _parts(self, source: Source) -> dict[str, Any]:
        """The parts that are there; the others raise an error of one line."""
        found: dict[str, Any] = {}
        for name, part in _PARTS.items():
            reason = ""
            try:
                found[name] = part(source)
            except HybridkitError as error:
                reason = str(error)
            assert "\n" not in reason, f"{name}: {reason}"
        return {name: value for name, value in found.items() if value is not None}
