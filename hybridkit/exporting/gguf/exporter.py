"""The exporter; nothing here needs the package gguf until a file is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hybridkit.errors import UsageError
from hybridkit.exporting.protocol import ExportReport, ExportRequest
from hybridkit.options import option
from hybridkit.packing.atomic import atomic_file
from hybridkit.packing.ggml import Floats

if TYPE_CHECKING:
    from torch import nn

    from hybridkit.packing.model import PackedModel


class GgufExporter:
    """A file for llama.cpp and what is built on it: weights, metadata, tokenizer and chat template in one."""

    suffixes = (".gguf",)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """Options of `gguf`."""

        floats: Floats = option("F16", "type of matrices that are not quantised")
        ternary: Literal["auto", "TQ1_0", "TQ2_0", "Q2_0"] = option(
            "auto", "type of ternary layers; auto: TQ2_0 where rows are multiples of 256, else Q2_0"
        )

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def export(
        self, module: nn.Module, packed: PackedModel | None, path: Path, request: ExportRequest
    ) -> ExportReport:
        """Write the file; see Exporter."""
        try:
            from hybridkit.exporting.gguf.writing import write
        except ModuleNotFoundError as error:
            raise UsageError(f"{path.name}: {error}; pip install 'hybridkit[hf]' brings it") from None
        ternary = None if self.options.ternary == "auto" else self.options.ternary
        with atomic_file(path) as file:  # gguf opens its name again
            return write(module, packed, Path(file.name), path, request, self.options.floats, ternary)
