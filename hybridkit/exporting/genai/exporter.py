"""The exporter: a folder with the network, its tokenizer and the configuration of onnxruntime-genai."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from hybridkit.errors import FileError, UsageError
from hybridkit.exporting.protocol import ExportReport, ExportRequest, Validation
from hybridkit.options import option
from hybridkit.packing.atomic import folder_in_place, writing

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor, nn

    from hybridkit.packing.model import PackedModel

MODEL: Final = "model.onnx"
VERIFIED: Final = 24  # tokens of a prompt
PAST: Final = 3  # tokens before those that are traced


class GenaiExporter:
    """A decoder with a cache, of our operators: their bodies run where the library is not.

    The logits are those of the last token. Prompts of one length each: there is no padding.
    """

    suffixes = ("",)
    folder = True

    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """Options of the exporter."""

        accuracy_level: Literal[1, 4] = option(
            1, "of n-bit products of float activations: 4 rounds those to int8 in blocks, faster"
        )
        dense: bool = option(
            False,
            "ternary codes in 1.6 bits, 3:4-sparse ones in 1.25: a smaller file; large layers stay so",
        )
        stock: bool = option(
            False, "ONNX Runtime's own attention and n-bit products: slower, for runtimes without our library"
        )

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def export(
        self, module: nn.Module, packed: PackedModel | None, path: Path, request: ExportRequest
    ) -> ExportReport:
        """Write the folder; see Exporter."""
        from hybridkit.exporting import lowering
        from hybridkit.exporting.dense import store_densely, use_sparse_products
        from hybridkit.exporting.genai import attention, configuration, decoder
        from hybridkit.exporting.genai.rotary import fuse_rotations
        from hybridkit.exporting.onnx import write_onnx

        if path.exists() and not (path / configuration.NAME).is_file():
            raise FileError(f"{path} is there and not of the target genai; name a new folder")
        if not path.parent.is_dir():
            raise FileError(f"cannot write {path}: there is no folder {path.parent}")
        shape = decoder.Shape.of(module)
        ids = _ids(request)
        example = decoder.arguments(shape, ids, shape.empty(len(ids), PAST))
        free = decoder.axes(shape)
        validation = None
        if request.validation is not None:
            prompt = ids[:1, :VERIFIED]
            # behind pasts as the network makes them: it may magnify errors behind any other
            cuts = ((prompt[:, :0], prompt), (prompt, prompt[:, :1]), (prompt[:, :PAST], prompt[:, -4:]))
            batches = [decoder.arguments(shape, part, decoder.past_of(module, past)) for past, part in cuts]
            validation = Validation(batches=batches)
        wanted = dataclasses.replace(
            request,
            example_inputs=example,
            input_names=list(example),
            dynamic_axes=[free[name] for name in example],
            validation=validation,
        )

        def lower(model: ir.Model) -> None:
            fuse_rotations(model)
            lowering.portable(model, lowering.Products(self.options.accuracy_level, self.options.stock))
            use_sparse_products(model)
            if self.options.dense:
                store_densely(model)
            if not self.options.stock:
                attention.use_own_operator(model)

        with folder_in_place(path) as new:
            report = write_onnx(
                module,
                packed,
                new / MODEL,
                wanted,
                target="genai",
                lower=lower,
                approximate=self.options.accuracy_level == lowering.INT8,
                tracing=decoder.tracing,
                comparing=decoder.comparing,
                operators=attention.translation(),
            )
            said = configuration.configuration(shape, module.config, request.assets, MODEL)
            with writing(path):
                (new / configuration.NAME).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
                if request.assets is not None:
                    request.assets.write(new)
        return dataclasses.replace(report, path=path / MODEL)


def _ids(request: ExportRequest) -> Tensor:
    """Tokens to trace and to verify with, int64 [batch, tokens]."""
    given = request.example_inputs
    ids = given.get("input_ids") if isinstance(given, Mapping) else given[0]
    if ids is None or ids.dim() != 2 or ids.shape[1] < 2:
        raise UsageError("the target genai takes a network of input_ids [batch, tokens]")
    return ids
