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
    from torch import nn

    from hybridkit.quant.calibration import Calibration, Kept, Tuning
    from hybridkit.quant.config import QuantConfig
    from hybridkit.tasks.protocol import Task

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
) -> tuple[nn.Module, Calibration, Kept]:
    """The network of `found`, quantised in its blocks on `data`, what that did, and what keeps blocks.

    A calibration that was killed goes on where it was. Raises UsageError for a network whose data nobody
    knows how to read, and what reading data raises.
    """
    from hybridkit.quant.calibration import Batches, Kept, calibrate_, fingerprint
    from hybridkit.quant.prepare import prepare_qat_
    from hybridkit.tasks.samples import draw, draw_others

    network = found.network
    task = task_of(found, network, data)
    samples = draw(task, data.samples)
    others = None if tuning.joint == 0 else draw_others(task, data.samples)
    each = dataclasses.replace(tuning, joint=None)  # blocks are the same whatever follows
    how = [samples.told, config.to_json(), dataclasses.asdict(each), fingerprint(network)]
    key = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()
    kept = Kept(output.with_name(output.name + SUFFIX), key)
    prepare_qat_(network, config, example_inputs=samples.inputs[0])
    with progress() as display:
        bar = display.add_task("Calibrating", total=None)

        def shown(doing: str, done: int, of: int) -> None:
            display.update(bar, description=doing, total=of, completed=done)

        calibration = calibrate_(
            network,
            samples.inputs,
            counted=samples.counted,
            unseen=Batches(others.inputs, others.counted) if others else None,
            tuning=tuning,
            kept=kept,
            progress=shown,
        )
    return network, calibration, kept


def task_of(found: Source, network: nn.Module, data: Data) -> Task:
    """The task that reads the data for this network. Raises UsageError where nobody knows one."""
    from hybridkit.tasks.resolve import make_task

    if found.assets is None:
        raise UsageError(
            f"--calibrate is for pretrained networks (hf:OWNER/NAME, a folder, NAME.gguf), and {found.text} "
            "is none; hybridkit.quant.calibration.calibrate_ takes any network"
        )
    kind = type(network).__name__
    name = data.task or next((task for end, task in _TASKS.items() if kind.endswith(end)), _OTHERS)
    return make_task(name, {"model": found.text, "data_dir": data.where, **data.options})
