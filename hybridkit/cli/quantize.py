"""`hybridkit quantize`: quantise and pack a trained network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hybridkit.cli._shared import (
    ConfigOption,
    JsonOption,
    RemoteOption,
    SetOption,
    assets_fields,
    assets_lines,
    console,
    emit_json,
    left_alone_lines,
    strategy_options,
)
from hybridkit.errors import UsageError
from hybridkit.sources.protocol import Code, open_source

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from hybridkit.packing.model import Sizes
    from hybridkit.quant.post_training import FileReport, LayerReport
    from hybridkit.tasks.protocol import Task

HOW, FILE, CODE, ONNX = "How", "The file", "Code that a file names", "ONNX files"
DEFAULT_OUTPUT = Path("model.hk.safetensors")
CALIBRATION = 8  # random samples where a pretrained network says its inputs itself


def command(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A run, one checkpoint of it, a pretrained network (hf:OWNER/NAME, a Hugging Face folder, a "
            ".gguf file), a .safetensors file or its .index.json (with --model), package.module:attr, or an "
            ".onnx file.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The packed model (model.hk.safetensors; of NAME.onnx, NAME.packed.onnx).",
            rich_help_panel=FILE,
        ),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="two-bit (default for ternary weights) or base3, 1.6 bits.",
            rich_help_panel=FILE,
        ),
    ] = None,
    compress: Annotated[
        Literal["zstd"] | None, typer.Option(help="Compress the whole file.", rich_help_panel=FILE)
    ] = None,
    float_dtype: Annotated[
        Literal["fp32", "fp16", "bf16"] | None,
        typer.Option(
            help="What tensors that are not quantised are stored in (the source's own); with fp16 or bf16 "
            "scales are fp16 too, where that does no harm.",
            rich_help_panel=FILE,
        ),
    ] = None,
    quantizer: Annotated[
        str | None, typer.Option(metavar="NAME", help="ternary-mse by default.", rich_help_panel=HOW)
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="What has a scale: channel (default), tensor or group:64.",
            rich_help_panel=HOW,
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=NAME",
            help="Another quantizer, or fp32, for layers, as 'blocks.0.*=fp32'; repeatable.",
            rich_help_panel=HOW,
        ),
    ] = None,
    activations: Annotated[
        str | None,
        typer.Option(
            metavar="int8|float", help="What the packed layers compute with (float).", rich_help_panel=HOW
        ),
    ] = None,
    quantize_all: Annotated[
        bool,
        typer.Option("--quantize-all", help="The last Linear and embeddings too.", rich_help_panel=HOW),
    ] = False,
    embeddings: Annotated[
        str | None,
        typer.Option(
            metavar="8|4|8-tensor", help="Bits of embeddings and the last Linear (32).", rich_help_panel=HOW
        ),
    ] = None,
    target_bits: Annotated[
        float | None,
        typer.Option(help="Mean bits per weight, 1 to 8; layers get what they need.", rich_help_panel=HOW),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="package.module:attr of the network in a .safetensors file; or repeats the run's.",
            rich_help_panel=CODE,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Whose network a .safetensors file holds; or repeats the run's package.module:attr.",
            rich_help_panel=CODE,
        ),
    ] = None,
    trust_remote_code: RemoteOption = False,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Layers to quantise, as 'encoder*'; repeatable (all).",
            rich_help_panel=ONNX,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Layers that stay as they are; repeatable.", rich_help_panel=ONNX
        ),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(help="Layers with a larger relative error stay as they are.", rich_help_panel=ONNX),
    ] = None,
    more_bits: Annotated[
        bool,
        typer.Option("--more-bits", help="They go to 4, then 8 bits instead.", rich_help_panel=ONNX),
    ] = False,
    inputs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="An .npz of arrays by input name: errors are then those of the layers' outputs on them.",
            rich_help_panel=ONNX,
        ),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Quantise a trained network without further training, pack it, and print what that cost.

    A network that trained with --qat is packed as it trained. The error of a layer is ||W - Q|| / ||W||.
    In an ONNX file MatMul, Gemm and Conv with constant weights become packed operators; no torch is needed.
    """
    options = strategy_options(ctx, set_)
    of_onnx = _said(include=include, exclude=exclude, max_error=max_error, more_bits=more_bits, inputs=inputs)
    found = open_source(
        source, Code(task, model, (quantizer,), remote=trust_remote_code), options.get("source")
    )
    if found.onnx is not None:
        from hybridkit.cli import _quantize_onnx

        stated = _said(quantizer=quantizer, options=options.get("quantizer"), activations=activations)
        idle = _said(codec=codec, compress=compress, quantize_all=quantize_all, target_bits=target_bits)
        idle |= _said(model=model, task=task, granularity=granularity, layer=layer)
        idle |= _said(embeddings=embeddings, float_dtype=float_dtype)
        _quantize_onnx.run(found.onnx, output, idle=idle, json=json, **stated, **of_onnx)
        return
    for name in of_onnx:
        raise UsageError(f"--{name.replace('_', '-')} is for ONNX files, and {source} is none; drop it")
    output = output or DEFAULT_OUTPUT

    from hybridkit.quant.config import config_from
    from hybridkit.quant.layers import qat_layers
    from hybridkit.quant.post_training import AFTERWARDS, quantize_to_file

    # what weighs the errors of layers, where the source itself says it
    examples = found.examples.draw(CALIBRATION) if target_bits and found.examples else None
    network, weights = found.streamed() if examples is None else (found.network, None)
    flags: dict[str, Any] = {
        "quantizer": quantizer,
        "options": options.get("quantizer"),
        "granularity": granularity,
        "layer": layer,
        "activations": activations,
        "quantize_all": quantize_all,
        "target_bits": target_bits,
        "embeddings": int(embeddings) if embeddings and embeddings.isdecimal() else embeddings,
    }
    given = {name: value for name, value in flags.items() if value}
    if qat_layers(network):
        _reject_idle(source, given)
    given["overrides"] = _overrides(given.pop("layer", []))
    how = config_from(None, AFTERWARDS, **given)
    from hybridkit.pretrained.assets import travelling

    with travelling(found.assets, output) as assets:
        metadata = {name: value for name, value in found.metadata.items() if name != "metrics"}  # of before
        report = quantize_to_file(
            network,
            output,
            how,
            metadata=metadata | assets,
            codec=codec,
            float_dtype=float_dtype,
            compress=compress,
            weights=weights,
            example_inputs=examples or (_example_inputs(found.task) if weights is None else None),
        )
    if json:
        document = {"layers": report.layers, "left_alone": report.left_alone}
        sizes = _size_fields(report.sizes)
        emit_json("quantize", {"path": output, "sizes": sizes, **document, **assets_fields(output)})
    else:
        _print(output, report)
        print(*assets_lines(output, report.sizes.file_bytes), sep="\n", end="")


def _example_inputs(task: Task | None) -> Sequence[Tensor] | Mapping[str, Tensor] | None:
    from hybridkit.training.network import example_batch

    return None if task is None else task.inputs(example_batch(task, size=64))


def _overrides(texts: Sequence[str]) -> dict[str, str]:
    """`["head=fp32"]` as `{"head": "fp32"}`. Raises UsageError for another form."""
    found = {}
    for text in texts:
        pattern, equals, name = text.rpartition("=")
        if not (equals and name):
            raise UsageError(f"--layer {text}: expected PATTERN=QUANTIZER, as in head=fp32")
        found[pattern] = name
    return found


def _said(**flags: Any) -> dict[str, Any]:
    """The flags that the command line gives."""
    return {
        name: value for name, value in flags.items() if value not in (None, [], {}) and value is not False
    }


def _reject_idle(source: str, given: Mapping[str, Any]) -> None:
    """A flag that would change nothing is a mistake worth a line; code that is repeated for trust is none."""
    for name, value in given.items():
        if name == "quantizer" and ":" in str(value):
            continue
        flag = "--set quantizer" if name == "options" else "--" + name.replace("_", "-")
        raise UsageError(f"{source} trained quantised weights and is packed as it trained; drop {flag}")


def _print(output: Path, report: FileReport) -> None:
    sizes = report.sizes
    console().print(_layer_table(report.layers))
    print(*left_alone_lines(report.left_alone), sep="\n", end="\n" if report.left_alone else "")
    print(
        f"Packed: {sizes.bits_per_weight:.3f} bits per weight on disk; {sizes.file_bytes:,} bytes, "
        f"{sizes.ratio:.2f}x smaller than fp32 (quantised layers alone {sizes.layers_ratio:.2f}x)"
    )
    print(f"Packed model: {output}")


def _layer_table(layers: Sequence[LayerReport]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Layer")
    table.add_column("Quantizer")
    for heading in ("Shape", "Bits", "Zeros", "Relative error"):
        table.add_column(heading, justify="right")
    for layer in layers:
        table.add_row(
            escape(layer.name or "(the model)"),
            escape(layer.quantizer),
            "x".join(map(str, layer.shape)),
            f"{layer.bits:.2f}",
            f"{100 * layer.zero_fraction:.1f} %",
            f"{layer.relative_error:.4f}",
        )
    return table


def _size_fields(sizes: Sizes) -> dict[str, Any]:
    ratios = {name: getattr(sizes, name) for name in ("bits_per_weight", "ratio", "layers_ratio")}
    return {**dataclasses.asdict(sizes), **ratios}
