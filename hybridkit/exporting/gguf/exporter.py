"""The exporter; nothing here needs the package gguf until a file is written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hybridkit.errors import FileError, UsageError
from hybridkit.exporting.gguf.blocks import Floats
from hybridkit.exporting.protocol import ExportReport, ExportRequest
from hybridkit.options import option
from hybridkit.packing.atomic import sync, temporary_beside

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
        if not path.parent.is_dir():
            raise FileError(f"cannot write {path}: there is no folder {path.parent}")
        try:
            from hybridkit.exporting.gguf.writing import write
        except ModuleNotFoundError as error:
            raise UsageError(f"{path.name}: {error}; pip install 'hybridkit[hf]' brings it") from None
        temporary = temporary_beside(path)
        try:
            ternary = None if self.options.ternary == "auto" else self.options.ternary
            report = write(module, packed, temporary, path, request, self.options.floats, ternary)
            os.replace(temporary, path)
            sync(path.parent)
        except OSError as error:
            raise FileError(f"cannot write {path}: {error.strerror or error}") from error
        finally:
            temporary.unlink(missing_ok=True)
        return report
