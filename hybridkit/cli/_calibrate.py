"""`hybridkit quantize --calibrate`: the data that a network is run on, and its blocks one after the other."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hybridkit.cli._shared import progress
from hybridkit.errors import UsageError
from hybridkit.sources.protocol import Source

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hybridkit.calls import Inputs
    from hybridkit.quant.calibration import BlockReport, Kept, Tuning
    from hybridkit.quant.config import QuantConfig
    from hybridkit.tasks.protocol import Task

BATCH: Final = 4  # samples that are run at once
SUFFIX: Final = ".calibration"  # of the folder, beside the output, that keeps finished blocks
_TASKS: Final = {  # by how the class of a network ends
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForSequenceClassification": "text-classification",
    "ForImageClassification": "image-classification",
}
_OTHERS: Final = "text-embedding"


@dataclasses.dataclass(frozen=True, slots=True)
class Data:
    """What to run a network on: where it is, how many samples of it, and the task that reads it."""

    where: str
    samples: int
    task: str | None
    options: Mapping[str, Any]


def calibrated(
    found: Source, config: QuantConfig, data: Data, tuning: Tuning, output: Path
) -> tuple[nn.Module, list[BlockReport], Kept]:
    """The network of `found`, quantised in its blocks on `data`, what that did to them, and what keeps them.

    A calibration that was killed goes on at its block. Raises UsageError for a network whose data nobody
    knows how to read, and what reading data raises.
    """
    from hybridkit.quant.calibration import Kept, calibrate_
    from hybridkit.quant.prepare import prepare_qat_

    network = found.network
    batches, counted, digest = _batches(_task(found, network, data), data.samples)
    how = [digest, config.to_json(), dataclasses.asdict(tuning), found.text]
    key = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()
    kept = Kept(output.with_name(output.name + SUFFIX), key)
    prepare_qat_(network, config, example_inputs=batches[0])
    with progress() as display:
        bar = display.add_task("Calibrating", total=None)

        def seen(report: BlockReport) -> None:
            display.update(bar, total=report.blocks, completed=report.place + 1)

        reports = calibrate_(network, batches, counted=counted, tuning=tuning, kept=kept, seen=seen)
    return network, reports, kept


def _task(found: Source, network: nn.Module, data: Data) -> Task:
    from hybridkit.tasks.resolve import make_task

    if found.assets is None:
        raise UsageError(
            f"--calibrate is for pretrained networks (hf:OWNER/NAME, a folder, NAME.gguf), and {found.text} "
            "is none; hybridkit.quant.calibration.calibrate_ takes any network"
        )
    kind = type(network).__name__
    name = data.task or next((task for end, task in _TASKS.items() if kind.endswith(end)), _OTHERS)
    return make_task(name, {"model": found.text, "data_dir": data.where, **data.options})


def _batches(task: Task, samples: int) -> tuple[list[Inputs], list[Tensor | None], str]:
    """Samples evenly out of the training data: inputs, the positions that count, and what tells the data."""
    import numpy as np

    from hybridkit.tasks.data import size, take
    from hybridkit.tasks.protocol import collate_of, named_inputs

    train = task.splits().train
    count = size(train) or 0
    if not count:
        raise UsageError("--calibrate: the data hold no sample, or do not say how many")
    places = np.linspace(0, count - 1, min(samples, count)).round().astype(int)
    inputs: list[Inputs] = []
    counted: list[Tensor | None] = []
    for start in range(0, len(places), BATCH):
        batch = take(train, places[start : start + BATCH].tolist(), collate_of(task))
        inputs.append(task.inputs(batch))
        mask = named_inputs(task, batch).get("attention_mask")
        counted.append(mask.bool() if mask is not None and mask.dim() == 2 else None)
    told = json.dumps([task.provenance(), places.tolist()], default=str)
    return inputs, counted, told
