"""From a trained network to its packed twin: how far the two differ, and the file a run ends with."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from hybridkit.packing.model import PackedModel
from hybridkit.quant.convert import convert
from hybridkit.quant.post_training import quantize
from hybridkit.runtime.modules import load_packed
from hybridkit.tasks.protocol import Batch, Task
from hybridkit.training.config import TrainConfig
from hybridkit.training.evaluation import evaluate, outputs, relative_error
from hybridkit.training.network import example_batch, model_name

if TYPE_CHECKING:
    from hybridkit.packing.sizes import Sizes


@dataclass(frozen=True, slots=True)
class PackedResult:
    """A packed model on the disk: its sizes, its metrics on the test data, and what packing changed.

    `error` is ||packed - trained||^2 / ||trained||^2 over the test outputs; where the run trained quantised
    weights the two agree and it is about 0, where it quantised afterwards it is the price of that.
    """

    path: Path
    sizes: Sizes
    test: dict[str, float]
    error: float


def packed_twin(model: nn.Module, packed: PackedModel) -> nn.Module:
    """A copy of `model` that computes with the packed weights, in evaluation mode on the CPU."""
    on_cpu = all(tensor.device.type == "cpu" for tensor in model.state_dict().values())
    return load_packed(model if on_cpu else copy.deepcopy(model).cpu(), packed)


def packed_difference(task: Task, model: nn.Module, batch: Batch, device: str = "cpu") -> dict[str, float]:
    """`max_diff` and `mean_diff`: |output in training - output of the packed network| on a batch."""
    size = len(batch[0])
    ours = outputs(model, task, batch, batch_size=size, device=device)
    theirs = outputs(packed_twin(model, convert(model)), task, batch, batch_size=size)
    difference = (ours - theirs).abs()
    return {"max_diff": float(difference.max()), "mean_diff": float(difference.mean())}


def pack_run(
    config: TrainConfig, task: Task, model: nn.Module, path: Path, commit: str | None
) -> PackedResult:
    """Pack the trained network into `path`: as it trained under QAT, else quantised afterwards."""
    metadata = about(config, task, commit)
    packed = convert(model, metadata=metadata) if config.qat else quantise_afterwards(config, model, metadata)
    sizes = packed.save(path)
    twin = packed_twin(model, packed)
    test = task.splits().test
    size = config.batch_size
    trained = outputs(model, task, test, batch_size=size, device=config.device)
    error = relative_error(outputs(twin, task, test, batch_size=size), trained)
    return PackedResult(path, sizes, evaluate(twin, task, test, batch_size=size), error)


def quantise_afterwards(
    config: TrainConfig, model: nn.Module, metadata: dict[str, Any] | None = None
) -> PackedModel:
    """The packed model of a network that trained in full precision (--ternary without --qat)."""
    return quantize(
        model,
        quantizer=config.quantizer or "ternary-mse",
        options=config.strategy_options("quantizer"),
        activations=config.activations,
        quantize_all=config.quantize_all,
        metadata=metadata,
    ).packed


def about(config: TrainConfig, task: Task, commit: str | None) -> dict[str, Any]:
    """The metadata of a packed file: task, model, inputs, commit."""
    arrays = task.inputs(example_batch(task))
    inputs = [
        {"name": name, "shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")}
        for name, x in zip(task.input_names, arrays, strict=True)
    ]
    return {"task": config.task, "model": model_name(config, task), "inputs": inputs, "commit": commit}
