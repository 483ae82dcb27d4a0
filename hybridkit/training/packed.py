"""From a trained network to the packed one: how far the two differ, and the file a run ends with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from hybridkit.packing.model import PackedModel
from hybridkit.pretrained.assets import assets_in
from hybridkit.quant.convert import convert
from hybridkit.quant.plan import LeftAlone
from hybridkit.quant.post_training import quantize
from hybridkit.runtime.modules import load_packed
from hybridkit.tasks.data import Batch, on
from hybridkit.tasks.protocol import Meter, Task, forward, named_inputs
from hybridkit.training.config import TrainConfig
from hybridkit.training.evaluation import Comparison, compare, measuring
from hybridkit.training.network import example_batch, model_name
from hybridkit.trees import main_output

if TYPE_CHECKING:
    from hybridkit.packing.sizes import Sizes


@dataclass(frozen=True, slots=True)
class PackedResult:
    """A packed model on the disk: its sizes, the trained network beside it on the test data, what is fp32.

    Where the run trained quantised weights the two agree but for the order of summation; where it quantised
    afterwards, `test.error` is the price of that.
    """

    path: Path
    sizes: Sizes
    test: Comparison
    left_alone: tuple[LeftAlone, ...] = ()


def packed_network(model: nn.Module, packed: PackedModel) -> nn.Module:
    """A copy of `model` that computes with the packed weights, in evaluation mode on the CPU."""
    on_cpu = all(tensor.device.type == "cpu" for tensor in model.state_dict().values())
    return load_packed(model if on_cpu else copy.deepcopy(model).cpu(), packed)


def packed_difference(task: Task, model: nn.Module, batch: Batch, device: str = "cpu") -> dict[str, float]:
    """`max_diff` and `mean_diff`: |output in training - output of the packed network| on a batch."""
    with measuring(model):
        ours = main_output(forward(task, model, on(batch, device))).cpu()
        theirs = main_output(forward(task, packed_network(model, convert(model)), batch))
    difference = (ours - theirs).abs()
    return {"max_diff": float(difference.max()), "mean_diff": float(difference.mean())}


def pack_run(
    config: TrainConfig,
    task: Task,
    model: nn.Module,
    path: Path,
    commit: str | None,
    meters: Callable[[], Sequence[Meter]] = tuple,
) -> PackedResult:
    """Pack the trained network into `path`: as it trained under QAT, else quantised afterwards.

    `meters`: see `compare`.
    """
    metadata = about(config, task, commit) | assets_beside(path)
    report = quantize(model, config.quantization, metadata=metadata)  # packs what is prepared as it trained
    packed = report.packed
    sizes = packed.save(path)
    found = compare(
        model,
        packed_network(model, packed),
        task,
        task.splits().test,
        batch_size=config.batch_size,
        device=config.device,
        meters=meters,
    )
    return PackedResult(path, sizes, found, report.left_alone)


def quantize_afterwards(
    config: TrainConfig, model: nn.Module, metadata: dict[str, Any] | None = None
) -> PackedModel:
    """The packed model of a network that trained in full precision (--ternary without --qat)."""
    return quantize(model, config.quantization, metadata=metadata).packed


def assets_beside(path: Path) -> dict[str, Any]:
    """The metadata that say what the run of a packed model keeps of its pretrained network, if it has one."""
    folder = path.with_name("assets")
    return {"assets": assets_in(folder).about} if folder.is_dir() else {}


def about(config: TrainConfig, task: Task, commit: str | None) -> dict[str, Any]:
    """The metadata of a packed file: task, model, inputs, commit."""
    inputs = [
        {"name": name, "shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")}
        for name, x in named_inputs(task, example_batch(task)).items()
    ]
    return {"task": config.task, "model": model_name(config, task), "inputs": inputs, "commit": commit}
