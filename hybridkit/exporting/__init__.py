"""Module + packed weights -> a file another runtime loads, verified."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridkit.errors import HybridkitError, UsageError
from hybridkit.exporting.protocol import ExportReport, ExportRequest, Validation
from hybridkit.registry import registry

if TYPE_CHECKING:
    from torch import nn

    from hybridkit.calls import Inputs
    from hybridkit.packing.model import PackedModel
    from hybridkit.pretrained.assets import Assets
    from hybridkit.runtime.network import PackedNetwork

__all__ = ["ExportReport", "Validation", "export", "target_for"]

DEFAULT_OPSET = 18  # what every supported ONNX Runtime loads


def export(
    module: nn.Module | PackedNetwork,
    packed: PackedModel | str | os.PathLike[str] | None,
    path: str | os.PathLike[str] | None = None,
    *,
    example_inputs: Inputs,
    input_names: Sequence[str] | None = None,
    dynamic_axes: Sequence[Mapping[int, str]] | None = None,
    target: str | None = None,
    opset: int = DEFAULT_OPSET,
    validation: Validation | None = None,
    verify: bool = True,
    metadata: Mapping[str, Any] | None = None,
    assets: Assets | None = None,
    pool: str | None = None,
    half: bool = False,
    options: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Write `module` with the weights of `packed` to `path`, verified; the file appears whole or not at all.

    module: any network; where it holds fake-quantised layers it is what the file is compared with, else
    the packed network is. packed: None exports the module as it is. `export(network, path)` takes what `pack`
    returns, or a network with fake-quantised layers, which it packs.
    The file's outputs are the tensors in what the network gives, be it a tensor, a tuple, a mapping or a
    transformers `ModelOutput`: by the names of its keys, else `output`, or `output_0`, `output_1`, ... Caches
    for a next call are no outputs, and transformers' networks are told not to make them.
    example_inputs: one tensor per input in order, or a mapping from the names of the network's arguments.
    input_names: of inputs in order; default `input`, or `input_0`, `input_1`, ...
    dynamic_axes: the free dimensions of each input by axis; by default the first, as `batch`.
    target: the exporter, by default the one that answers to the suffix of `path`; `options` are its options.
    validation: what to verify on; by default `example_inputs`. `verify` False checks the file's form only.
    metadata: recorded in the file. assets: of a pretrained network, what formats hold that take a tokenizer.
    pool: `mean`, `cls`, `max` or `lasttoken`: an encoder's only output is `embedding`, float [texts, width]:
    its hidden states where `attention_mask` is 1, pooled, of length 1. For ONNX files; there is no loss then.
    half: weights and activations that are not packed are fp16; for ONNX files.

    Raises UsageError for arguments that do not fit, HybridkitError where the network cannot be exported,
    FileError where the file cannot be written, GateError where it differs from the network.
    """
    from hybridkit.pretrained.assets import facts_of

    module, packed, path = _alone(module, packed, path)
    given: Inputs = dict(example_inputs) if isinstance(example_inputs, Mapping) else list(example_inputs)
    if isinstance(given, Mapping):
        numbered = list(given)
        if list(input_names or numbered) != numbered:
            raise UsageError("example_inputs names the inputs already; leave input_names out")
    else:
        numbered = ["input"] if len(given) == 1 else [f"input_{i}" for i in range(len(given))]
    file = Path(path)
    exporter = registry().create("exporter", target or target_for(file), options or {})
    if target:
        _check_suffix(file, target, exporter.suffixes)
    if (pool or half) and file.suffix != ".onnx":
        raise UsageError(f"--{'pool' if pool else 'half'} is for ONNX files, not for {file.name}")
    if pool and validation:
        validation = dataclasses.replace(validation, loss=None)
    request = ExportRequest(
        example_inputs=given,
        input_names=list(input_names or numbered),
        dynamic_axes=[{0: "batch"} for _ in given] if dynamic_axes is None else dynamic_axes,
        opset=opset,
        validation=(validation or Validation(batches=[given])) if verify else None,
        metadata={**facts_of(module, assets), **(metadata or {}), **({"pool": pool} if pool else {})},
        assets=assets,
        pool=pool,
        half=half,
    )
    report: ExportReport = exporter.export(module, packed, file, request)
    return report


def _alone(
    module: nn.Module | PackedNetwork,
    packed: PackedModel | str | os.PathLike[str] | None,
    path: str | os.PathLike[str] | None,
) -> tuple[nn.Module, PackedModel | None, str | os.PathLike[str]]:
    """The module, its packed model and the path, where the first may bring the second."""
    from hybridkit.quant.convert import convert
    from hybridkit.quant.layers import qat_layers
    from hybridkit.runtime.network import PackedNetwork

    if isinstance(packed, str | os.PathLike):
        packed, path = None, packed
        if not isinstance(module, PackedNetwork) and qat_layers(module):
            packed = convert(module)
    if isinstance(module, PackedNetwork):
        return _alone(module.module, module.packed, path)
    if path is None:
        raise UsageError("say where to write the file: export(network, path, example_inputs=...)")
    return module, packed, path


def target_for(path: Path) -> str:
    """The exporter that answers to the longest suffix of `path`. Raises UsageError if none does."""
    suffixes: dict[str, str] = {}
    for entry in registry().entries:
        if entry.strategy.kind == "exporter":
            with contextlib.suppress(HybridkitError):  # a plugin that does not load answers to nothing
                for suffix in registry().load("exporter", entry.qualified_name).suffixes:
                    if suffix:  # a folder's exporter is named
                        suffixes.setdefault(suffix, entry.qualified_name)
    fitting = [suffix for suffix in suffixes if path.name.endswith(suffix)]
    if not fitting:
        raise UsageError(
            f"{path.name}: no exporter writes such files; names end in {', '.join(sorted(suffixes))}"
        )
    return suffixes[max(fitting, key=len)]


def _check_suffix(path: Path, target: str, suffixes: Sequence[str]) -> None:
    endings = sorted({Path(suffix).suffix or suffix for suffix in suffixes})
    if endings == [""] and path.suffix:
        raise UsageError(f"{path.name}: the exporter {target!r} writes a folder; name it without a suffix")
    if path.suffix not in endings:
        raise UsageError(
            f"{path.name}: the exporter {target!r} writes files that end in {' or '.join(endings)}"
        )
