"""A choice of options as a file: calibrated, written beside the output, read back and measured."""

from __future__ import annotations

import copy
import glob
import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from hybridkit.budget.options import Option
from hybridkit.budget.quality import Quality
from hybridkit.errors import FileError, UsageError
from hybridkit.packing.atomic import remove, temporary_beside
from hybridkit.packing.model import PackedModel
from hybridkit.packing.table import Table
from hybridkit.packing.writer import data_bytes, header_bytes
from hybridkit.quant.calibration import Calibration, Tuning, calibrate_
from hybridkit.quant.config import QuantConfig
from hybridkit.quant.kinds import Layer
from hybridkit.quant.plan import plan_layers
from hybridkit.quant.post_training import FileReport, quantize_to_file, quantizing_source
from hybridkit.quant.prepare import prepare_qat_
from hybridkit.runtime.modules import load_packed
from hybridkit.tasks.samples import Samples

Unit = tuple[Layer, ...]  # the layers of one weight
Seen = Callable[[int, str, int, int], None]  # the number of the try, and what `calibrate_` says of it


@dataclass(frozen=True, slots=True)
class Storage:
    """How a file is written: as `quantize_to_file` takes it."""

    metadata: Mapping[str, Any] = field(default_factory=dict)
    codec: str | None = None
    float_dtype: Any = None
    compress: Any = None

    @property
    def half(self) -> bool:
        """Whether scales are in fp16, where that is harmless."""
        return self.float_dtype in ("fp16", "bf16")


def units_of(network: nn.Module, config: QuantConfig, samples: Samples) -> list[Unit]:
    """The layers that a budget is spent on, those of one weight together; not those that `config` names.

    Raises UsageError where none is left.
    """
    everything = replace(config, quantize_all=True)
    tied: dict[str, list[Layer]] = defaultdict(list)
    for plan in plan_layers(network, everything, example_inputs=samples.inputs[0]):
        if plan.quantizer is not None:
            tied[plan.layer.weight].append(plan.layer)
    found = [
        tuple(unit)
        for unit in tied.values()
        if not any(fnmatchcase(n, p) for layer in unit for n in layer.names for p in config.layers)
    ]
    if not found:
        raise UsageError("every layer has a quantizer of its own; there is none to spend a budget on")
    return found


def matrix_shape(unit: Unit) -> tuple[int, int]:
    """[N, K] of the weight."""
    return unit[0].shape[0], math.prod(unit[0].shape[1:])


def chosen(
    config: QuantConfig, units: Sequence[Unit], options: Sequence[Option], picks: Sequence[int]
) -> QuantConfig:
    """`config` with the option of each unit, under the layers that it names itself."""
    layers = {
        glob.escape(layer.name): options[pick].spec
        for unit, pick in zip(units, picks, strict=True)
        for layer in unit
    }
    return replace(config, quantize_all=True, layers={**layers, **config.layers})


def file_bytes(network: nn.Module, config: QuantConfig, storage: Storage) -> int:
    """What a file of `network` would have, uncompressed; nothing is quantised for it."""
    source = quantizing_source(
        network, config, metadata=storage.metadata, codec=storage.codec, float_dtype=storage.float_dtype
    ).source
    tensors = {name: tensor.spec for name, tensor in source.tensors.items()}
    table = Table([layer.spec for layer in source.layers], tensors, source.tied, source.metadata)
    return header_bytes(table) + data_bytes(table)


@dataclass(frozen=True, slots=True)
class Made:
    """A file that was made and measured, for now beside the output."""

    file: Path
    report: FileReport
    calibration: Calibration


class Maker:
    """Makes and measures choices; leaving its context removes the files that were not taken."""

    def __init__(
        self,
        network: nn.Module,
        samples: Samples,
        config: Callable[[Sequence[int]], QuantConfig],
        tuning: Tuning,
        quality: Quality,
        output: Path,
        storage: Storage,
        seen: Seen,
    ) -> None:
        self.network, self.samples, self.config, self.tuning = network, samples, config, tuning
        self.quality, self.output, self.storage, self.seen = quality, output, storage, seen
        self.made: list[Made] = []
        self.folder = temporary_beside(output)

    def __enter__(self) -> Maker:
        try:
            self.folder.mkdir()
        except OSError as error:
            raise FileError(f"cannot write {self.output}: {error.strerror or error}") from None
        return self

    def __exit__(self, *_: object) -> None:
        remove(self.folder)

    def __call__(self, picks: Sequence[int]) -> tuple[int, float]:
        """Make a file of these options; its bytes, and what it loses."""
        number = len(self.made)
        network = copy.deepcopy(self.network)
        prepare_qat_(network, self.config(picks), example_inputs=self.samples.inputs[0])
        calibration = calibrate_(
            network,
            self.samples.inputs,
            counted=self.samples.counted,
            tuning=self.tuning,
            progress=partial(self.seen, number),
        )
        file = self.folder / f"{number}.hk.safetensors"
        self.made.append(
            Made(
                file,
                quantize_to_file(
                    network,
                    file,
                    metadata=self.storage.metadata,
                    codec=self.storage.codec,
                    float_dtype=self.storage.float_dtype,
                    compress=self.storage.compress,
                ),
                calibration,
            )
        )
        del network
        if not file.is_file():
            raise UsageError("a budget is for models that fit into one file, of 2 GB")
        lost = self.quality.lost(load_packed(self.network, PackedModel.load(file)))
        return self.made[-1].report.sizes.file_bytes, lost

    def take(self, number: int) -> Made:
        """Put the file of a try where the output is to be."""
        os.replace(self.made[number].file, self.output)
        return self.made[number]
