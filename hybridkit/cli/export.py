"""`hybridkit export`: write a network as a file that another runtime loads, and verify it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hybridkit.cli._shared import (
    ConfigOption,
    JsonOption,
    RemoteOption,
    SetOption,
    assets_fields,
    assets_lines,
    emit_json,
    flag,
    left_alone_lines,
    strategy_options,
    with_flags,
)
from hybridkit.sources.protocol import Code, Source, open_source

if TYPE_CHECKING:
    from hybridkit.exporting import ExportReport
    from hybridkit.quant.plan import LeftAlone

WHAT, HOW = "What is exported", "How"
SHOWN = 5  # outputs whose differences are printed


@dataclass(frozen=True, kw_only=True, slots=True)
class Flags:
    """The options of the verb."""

    from_: Annotated[
        str | None,
        flag(
            WHAT,
            "A run, a checkpoint, a packed model, a pretrained network (hf:OWNER/NAME, a Hugging Face "
            "folder or a .gguf file), a .safetensors file or package.module:attr (default: the newest run).",
            "SOURCE",
            name="--from",
        ),
    ] = None
    model: Annotated[
        str | None,
        flag(WHAT, "package.module:attr of the network; without --from, that network as it is.", "NAME"),
    ] = None
    input_: Annotated[
        list[str] | None,
        flag(
            WHAT,
            "One input of --model, as x:1,64 or ids:int64:batch,seq; a named dimension is free, else "
            "the first; repeatable. Given by name where forward has arguments of these names. Without DTYPE "
            "what an embedding gets is int64, the rest float32. Verified on random indices and floats, and "
            "on ones for other integers, such as a mask.",
            "NAME[:DTYPE]:SHAPE",
            name="--input",
        ),
    ] = None
    task: Annotated[
        str | None,
        flag(
            WHAT, "Whose network a .safetensors file holds; or repeats the run's package.module:attr.", "NAME"
        ),
    ] = None
    quantizer: Annotated[str | None, flag(WHAT, "Likewise for the run's quantizer.", "NAME")] = None
    trust_remote_code: RemoteOption = False
    target: Annotated[
        str | None,
        flag(HOW, "onnx, matmulnbits, fp32, gguf, genai, hf or a plugin's (default: by the suffix).", "NAME"),
    ] = None
    pool: Annotated[
        str | None,
        flag(
            HOW,
            "One vector of length 1 per text out of an encoder's hidden states: mean, cls, max, lasttoken.",
            "MODE",
        ),
    ] = None
    half: Annotated[
        bool,
        flag(
            HOW, "What is not packed in fp16, for engines that compute in it; of ONNX files.", name="--half"
        ),
    ] = False
    unpacked: Annotated[
        bool, flag(HOW, "Of the target hf: dequantised weights, which every engine of such folders reads.")
    ] = False
    opset: Annotated[int, flag(HOW, "Opset of the stock operators, 18 to 23.", "N")] = 18
    verify: Annotated[
        bool,
        flag(
            HOW,
            "Compare the file with the network on validation data before it appears.",
            name="--verify/--no-verify",
        ),
    ] = True


@with_flags
def command(
    ctx: typer.Context,
    output: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The file to write, or the folder.")],
    flags: Flags,
    config: ConfigOption = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Write a trained network as one ONNX file that stock ONNX Runtime runs, and verify it.

    A name that ends in .gguf makes a file of a language model for llama.cpp,
    --target genai a folder for onnxruntime-genai and `hybridkit generate`, and
    --target hf one for transformers. A file that differs from the network beyond
    the gates is not written (exit code 3).
    """
    options, inputs = strategy_options(ctx, set_), flags.input_ or ()

    from hybridkit.cli._export_inputs import described, write
    from hybridkit.exporting import target_for
    from hybridkit.pretrained.assets import travelling
    from hybridkit.registry import registry

    chosen = flags.target or target_for(output)
    text = flags.from_ or (flags.model if flags.model and inputs else None) or _newest_run()
    code = Code(flags.task, flags.model, also=(flags.quantizer,), remote=flags.trust_remote_code)
    source = open_source(text, code, options.get("source"))
    subject = described(source, flags.model, inputs)
    metadata = {name: value for name, value in source.metadata.items() if not (inputs and name == "inputs")}
    inside = getattr(registry().load("exporter", chosen), "folder", False)
    beside: AbstractContextManager[dict[str, Any]]
    beside = nullcontext({}) if inside else travelling(source.assets, output)
    with beside as assets:
        report = write(
            source,
            subject,
            output,
            target=chosen,
            opset=flags.opset,
            verify=flags.verify,
            metadata=metadata | assets,
            assets=source.assets,
            pool=flags.pool,
            half=flags.half,
            options={**options.get("exporter", {}), **({"unpacked": True} if flags.unpacked else {})},
        )
    spared = _left_alone(source)
    if json:
        document = {"report": report, "ratio": report.ratio, "left_alone": spared}
        emit_json("export", document | ({} if inside else assets_fields(output)))
    else:
        _print(report)
        print(*([] if inside else assets_lines(output, report.file_bytes)), sep="\n", end="")
        print(*left_alone_lines(spared), sep="\n", end="\n" if spared else "")


def _newest_run() -> str:
    from hybridkit.training.runs import newest_run

    return str(newest_run().path)


def _left_alone(source: Source) -> tuple[LeftAlone, ...]:
    """What stays in full precision beside packed layers; nothing where nothing is packed."""
    from hybridkit.quant.kinds import describe
    from hybridkit.quant.plan import LeftAlone
    from hybridkit.quant.prepare import prepared

    if source.packed is None:
        return ()
    if done := prepared(source.network):
        return done.left_alone
    return tuple(
        LeftAlone(layer.name, layer.kind, layer.shape, layer.obstacle or "not among the packed layers")
        for layer in describe(source.network)
        if layer.name not in source.packed.layers
    )


def _print(report: ExportReport) -> None:
    print(
        f"{report.path}: {report.file_bytes:,} bytes, {report.ratio:.2f}x smaller than in fp32 "
        f"({report.fp32_bytes:,} bytes); target {report.target}"
        + (f", opset {report.opset}" if report.opset else "")
    )
    if report.cast:
        print(report.cast)
    if report.bits_per_weight is not None:
        print(f"Quantised layers: {report.bits_per_weight:.2f} bits per weight, scales included")
    found = report.verification
    if found is None:
        print("Not verified")
        return
    # without a task there is no loss, and `loss` is the outputs' squared error
    quality = (
        f"loss {found.loss:.6f} (network {found.network_loss:.6f})"
        if found.network_loss
        else f"relative squared error {found.loss:.2e}"
    )
    print(
        f"Verified on {found.samples:,} samples: outputs differ by {found.max_abs:.2e} at most "
        f"({found.max_rel:.2e} of the largest), top-1 agreement {100 * found.top1_agreement:.2f} % "
        f"({found.top1_misses} misses beyond a margin of {found.margin:.2g}), "
        f"{quality}"
    )
    if len(found.differences) > 1:
        worst = sorted(found.differences.items(), key=lambda pair: -pair[1])[:SHOWN]
        more = f" and {hidden} more" if (hidden := len(found.differences) - len(worst)) else ""
        print("Largest differences: " + ", ".join(f"{name}: {value:.2e}" for name, value in worst) + more)
    if found.native is not None:
        how = "bit for bit" if found.native == "equal" else "to float32 rounding"
        print(f"Native operators and portable bodies agree {how}")
