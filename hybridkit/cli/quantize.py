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
    flag,
    left_alone_lines,
    strategy_options,
    with_flags,
)
from hybridkit.errors import UsageError
from hybridkit.sources.protocol import Code, Source, open_source

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from hybridkit.budget import BudgetReport
    from hybridkit.cli._calibrate import Data
    from hybridkit.packing.model import Sizes
    from hybridkit.quant.calibration import BlockReport, Calibration, Tuning
    from hybridkit.quant.post_training import FileReport, LayerReport
    from hybridkit.tasks.protocol import Task

HOW, FILE, CODE, ONNX = "How", "The file", "Code that a file names", "ONNX files"
DATA, SPENT = "On calibration data", "To a budget"
DEFAULT_OUTPUT = Path("model.hk.safetensors")
_HOW = ("granularity", "layer", "activations", "quantize_all", "target_bits", "embeddings")
_OF_NETWORKS = (
    *("codec", "compress", "quantize_all", "target_bits", "model", "task", "granularity", "layer"),
    *("embeddings", "float_dtype", "calibrate", "samples", "tune_steps", "joint_steps"),
)
_OF_ONNX = ("include", "exclude", "max_error", "more_bits", "inputs")
_BUDGET = ("within", "max_size", "frontier")
SAMPLES = 128  # of calibration data
CALIBRATION = 8  # random samples where a pretrained network says its inputs itself


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Flags:
    """The options of the verb."""

    output: Annotated[
        Path | None,
        flag(
            FILE,
            "The packed model (model.hk.safetensors; of NAME.onnx, NAME.packed.onnx).",
            "FILE",
            name="--output -o",
        ),
    ] = None
    codec: Annotated[
        str | None, flag(FILE, "two-bit (default for ternary weights) or base3, 1.6 bits.", "NAME")
    ] = None
    compress: Annotated[Literal["zstd"] | None, flag(FILE, "Compress the whole file.")] = None
    float_dtype: Annotated[
        Literal["fp32", "fp16", "bf16"] | None,
        flag(
            FILE,
            "What tensors that are not quantised are stored in (the source's own); with fp16 or bf16 "
            "scales are fp16 too, where that does no harm.",
        ),
    ] = None
    quantizer: Annotated[str | None, flag(HOW, "ternary-mse by default.", "NAME")] = None
    granularity: Annotated[
        str | None, flag(HOW, "What has a scale: channel (default), tensor or group:64.", "KIND")
    ] = None
    layer: Annotated[
        list[str] | None,
        flag(
            HOW,
            "Another quantizer, or fp32, for layers, as 'blocks.0.*=fp32'; repeatable.",
            "PATTERN=NAME",
        ),
    ] = None
    activations: Annotated[
        str | None, flag(HOW, "What the packed layers compute with (float).", "int8|float")
    ] = None
    quantize_all: Annotated[bool, flag(HOW, "The last Linear and embeddings too.", name="--quantize-all")] = (
        False
    )
    embeddings: Annotated[
        str | None, flag(HOW, "Bits of embeddings and the last Linear (32).", "8|4|8-tensor")
    ] = None
    target_bits: Annotated[
        float | None, flag(HOW, "Mean bits per weight, 1 to 8; layers get what they need.")
    ] = None
    calibrate: Annotated[
        str | None,
        flag(
            DATA,
            "Text, tables, images or hf:OWNER/NAME that a pretrained network is run on, block by block, so "
            "that codes and scales keep what its layers give.",
            "DATA",
        ),
    ] = None
    samples: Annotated[int | None, flag(DATA, "Samples of it (128).", "N", min=1)] = None
    tune_steps: Annotated[
        int | None,
        flag(DATA, "Steps that tune scales, norms, biases and codes of each block (200).", "N", min=0),
    ] = None
    joint_steps: Annotated[
        int | None,
        flag(
            DATA,
            "Steps that then tune scales, norms and biases of all blocks together, on other samples where "
            "there are as many more (200 for logits, else 0).",
            "N",
            min=0,
        ),
    ] = None
    within: Annotated[
        str | None,
        flag(
            SPENT,
            "The smallest file that loses so much of the task's metric at most, as 1% (of an ONNX file: of "
            "its outputs' cosine); each layer gets the bits it needs.",
            "SHARE",
        ),
    ] = None
    max_size: Annotated[
        str | None, flag(SPENT, "The best file of so many bytes at most, as 40MB.", "BYTES")
    ] = None
    frontier: Annotated[Path | None, flag(SPENT, "A picture of size against quality.", "FILE.png")] = None
    model: Annotated[
        str | None,
        flag(
            CODE, "package.module:attr of the network in a .safetensors file; or repeats the run's.", "NAME"
        ),
    ] = None
    task: Annotated[
        str | None,
        flag(
            CODE,
            "Whose network a .safetensors file holds; or repeats the run's package.module:attr; or what "
            "reads --calibrate (by the network: causal-lm, text-embedding, ...).",
            "NAME",
        ),
    ] = None
    trust_remote_code: RemoteOption = False
    include: Annotated[
        list[str] | None, flag(ONNX, "Layers to quantise, as 'encoder*'; repeatable (all).", "PATTERN")
    ] = None
    exclude: Annotated[
        list[str] | None, flag(ONNX, "Layers that stay as they are; repeatable.", "PATTERN")
    ] = None
    max_error: Annotated[
        float | None, flag(ONNX, "Layers with a larger relative error stay as they are.")
    ] = None
    more_bits: Annotated[bool, flag(ONNX, "They go to 4, then 8 bits instead.", name="--more-bits")] = False
    inputs: Annotated[
        Path | None,
        flag(
            ONNX,
            "An .npz of arrays by input name, or a folder of them: codes are fitted to them, and errors are "
            "those of outputs.",
            "FILE",
        ),
    ] = None

    def given(self, *names: str) -> dict[str, Any]:
        """Those of `names` that the command line gives."""
        values = {name: getattr(self, name) for name in names}
        return {k: v for k, v in values.items() if v not in (None, []) and v is not False}


@with_flags
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
    flags: Flags,
    config: ConfigOption = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Quantise a trained network without further training, pack it, and print what that cost.

    A network that trained with --qat is packed as it trained; --embeddings takes what it left in full
    precision. The error of a layer is ||W - Q|| / ||W||.
    In an ONNX file MatMul, Gemm and Conv with constant weights become packed operators; no torch is needed.
    """
    options = strategy_options(ctx, set_)
    code = Code(flags.task, flags.model, also=(flags.quantizer,), remote=flags.trust_remote_code)
    found = open_source(source, code, options.get("source"))
    of_onnx = flags.given(*_OF_ONNX)
    if found.onnx is not None:
        from hybridkit.cli import _quantize_onnx

        how = of_onnx | flags.given("quantizer", "activations", *_BUDGET)
        how |= {"options": options["quantizer"]} if "quantizer" in options else {}
        _quantize_onnx.run(found.onnx, flags.output, idle=flags.given(*_OF_NETWORKS), json=json, **how)
        return
    for name in of_onnx:
        raise UsageError(f"--{name.replace('_', '-')} is for ONNX files, and {source} is none; drop it")
    output = flags.output or DEFAULT_OUTPUT
    if not flags.calibrate:
        for name in flags.given("samples", "tune_steps", "joint_steps", *_BUDGET):
            raise UsageError(f"--{name.replace('_', '-')} goes with --calibrate DATA; say both, or drop it")
    budget: BudgetReport | None = None
    if flags.within or flags.max_size:
        report, calibration, budget = _to_budget(found, output, flags, options)
    elif flags.calibrate:
        if flags.frontier:
            raise UsageError("--frontier goes with --within or --max-size; say one of them, or drop it")
        report, calibration = _calibrate(found, output, flags, options)
    else:
        report, calibration = _quantize(found, output, flags, options.get("quantizer")), None
    if json:
        document: dict[str, Any] = {"layers": report.layers, "left_alone": report.left_alone}
        document |= {"blocks": calibration.blocks, "joint": calibration.joint} if calibration else {}
        document |= {"budget": budget} if budget else {}
        sizes = _size_fields(report.sizes)
        emit_json("quantize", {"path": output, "sizes": sizes, **document, **assets_fields(output)})
    else:
        if calibration:
            console().print(_block_table(calibration.blocks))
        if calibration and (joint := calibration.joint):
            print(f"All blocks together: error of the output {joint.before:.3g}, tuned {joint.after:.3g}")
        _print(output, report)
        if budget:
            from hybridkit.cli._budget import frontier_table

            console().print(frontier_table(budget))
        print(*assets_lines(output, report.sizes.file_bytes), sep="\n", end="")


def _calibrate(
    found: Source, output: Path, flags: Flags, options: Mapping[Any, Any]
) -> tuple[FileReport, Calibration]:
    from hybridkit.cli._calibrate import calibrated
    from hybridkit.pretrained.assets import travelling
    from hybridkit.quant.config import config_from, parse_layers
    from hybridkit.quant.post_training import AFTERWARDS, quantize_to_file

    given = flags.given("quantizer", *_HOW)
    given |= {"options": options["quantizer"]} if "quantizer" in options else {}
    given["overrides"] = parse_layers(given.pop("layer", []))
    if (bits := flags.embeddings) and bits.isdecimal():
        given["embeddings"] = int(bits)
    data, tuning = _data(flags, options), _tuning(flags)
    with travelling(found.assets, output) as assets:
        config = config_from(None, AFTERWARDS, **given)
        network, calibration, kept = calibrated(found, config, data, tuning, output)
        report = quantize_to_file(
            network,
            output,
            metadata={**found.metadata, **assets},
            codec=flags.codec,
            float_dtype=flags.float_dtype,
            compress=flags.compress,
        )
    kept.end()
    return report, calibration


def _to_budget(
    found: Source, output: Path, flags: Flags, options: Mapping[Any, Any]
) -> tuple[FileReport, Calibration, BudgetReport]:
    from hybridkit.budget import Budget, Storage
    from hybridkit.cli._budget import budgeted, check_drawing, draw_frontier, refuse_idle
    from hybridkit.pretrained.assets import travelling
    from hybridkit.quant.config import config_from, parse_layers
    from hybridkit.quant.post_training import AFTERWARDS

    refuse_idle(
        [
            *flags.given("quantizer", "granularity", "quantize_all", "target_bits", "embeddings"),
            *(["set quantizer"] if "quantizer" in options else []),
        ]
    )
    if flags.frontier:
        check_drawing(flags.frontier)
    budget = Budget.parse(flags.within, flags.max_size)
    given = flags.given("activations") | {"overrides": parse_layers(flags.layer or [])}
    config = config_from(None, AFTERWARDS, **given)
    with travelling(found.assets, output) as assets:
        storage = Storage({**found.metadata, **assets}, flags.codec, flags.float_dtype, flags.compress)
        made, report = budgeted(found, config, _data(flags, options), _tuning(flags), budget, storage, output)
    if flags.frontier:
        draw_frontier(report, flags.frontier)
    return made.report, made.calibration, report


def _data(flags: Flags, options: Mapping[Any, Any]) -> Data:
    from hybridkit.cli._calibrate import Data

    return Data(flags.calibrate or "", flags.samples or SAMPLES, flags.task, options.get("task", {}))


def _tuning(flags: Flags) -> Tuning:
    from hybridkit.quant.calibration import Tuning

    names = {"tune_steps": "steps", "joint_steps": "joint"}
    return Tuning(**{names[flag]: value for flag, value in flags.given(*names).items()})


def _quantize(found: Source, output: Path, flags: Flags, options: Mapping[str, Any] | None) -> FileReport:
    from hybridkit.pretrained.assets import travelling
    from hybridkit.quant.config import config_from, parse_layers
    from hybridkit.quant.layers import qat_layers
    from hybridkit.quant.post_training import AFTERWARDS, quantize_to_file
    from hybridkit.quant.prepare import quantize_spared_

    # what weighs the errors of layers, where the source itself says it
    examples = found.examples.draw(CALIBRATION) if flags.target_bits and found.examples else None
    network, weights = found.streamed() if examples is None else (found.network, None)
    given = flags.given("quantizer") | ({"options": options} if options else {}) | flags.given(*_HOW)
    if (bits := flags.embeddings) and bits.isdecimal():
        given["embeddings"] = int(bits)
    if qat_layers(network):
        spared = given.pop("embeddings", None)
        _reject_idle(found.text, given)
        if spared is not None:
            quantize_spared_(network, spared)
    given["overrides"] = parse_layers(given.pop("layer", []))
    with travelling(found.assets, output) as assets:
        metadata = {name: value for name, value in found.metadata.items() if name != "metrics"}  # of before
        return quantize_to_file(
            network,
            output,
            config_from(None, AFTERWARDS, **given),
            metadata=metadata | assets,
            codec=flags.codec,
            float_dtype=flags.float_dtype,
            compress=flags.compress,
            weights=weights,
            example_inputs=examples or (_example_inputs(found.task) if weights is None else None),
        )


def _example_inputs(task: Task | None) -> Sequence[Tensor] | Mapping[str, Tensor] | None:
    from hybridkit.training.network import example_batch

    return None if task is None else task.inputs(example_batch(task, size=64))


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


def _block_table(blocks: Sequence[BlockReport]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("Block", "Error, fitted", "tuned"):
        table.add_column(heading, justify="right")
    for block in blocks:
        table.add_row(str(block.place), f"{block.fitted:.4f}", f"{block.tuned:.4f}")
    return table


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
            "-" if layer.relative_error is None else f"{layer.relative_error:.4f}",
        )
    return table


def _size_fields(sizes: Sizes) -> dict[str, Any]:
    ratios = {name: getattr(sizes, name) for name in ("bits_per_weight", "ratio", "layers_ratio")}
    return {**dataclasses.asdict(sizes), **ratios}
