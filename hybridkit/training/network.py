"""Making the task and the network of a configuration, fresh or with the weights of a checkpoint."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from hybridkit.errors import FileError, UsageError
from hybridkit.options import describe_options
from hybridkit.quant.attachments import ADAPTER_NAMES
from hybridkit.quant.layers import set_ramp
from hybridkit.quant.prepare import full_precision_copy
from hybridkit.registry import registry
from hybridkit.tasks.data import Batch, first
from hybridkit.tasks.protocol import Task, collate_of
from hybridkit.tasks.resolve import make_model, make_task
from hybridkit.training.checkpoint import Checkpoint
from hybridkit.training.config import TrainConfig
from hybridkit.training.distillation.terms import SELF
from hybridkit.training.schema import RunState, checked
from hybridkit.training.weights import fits, load_weights

Allocation = dict[str, Any]


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - a model or task of the user's may draw from it
    torch.manual_seed(seed)


def configured_task(config: TrainConfig) -> Task:
    """The configured task. Raises UsageError for unknown names and options."""
    options = config.strategy_options("task")
    if config.data_dir is not None:
        options["data_dir"] = config.data_dir
    if takes_pretrained(config.task):
        options |= {"model": config.model or ""}
        options |= {"trust_remote_code": config.trust_remote_code}
    return make_task(config.task, options)


def takes_pretrained(task: str) -> bool:
    """Whether the networks of a task are pretrained ones, which it has to know: its options say so."""
    known = describe_options(found) if callable(found := registry().load("task", task)) else {}
    return {"model", "trust_remote_code"} <= set(known)


def check_teacher_given(config: TrainConfig, task: Task) -> None:
    """Raise UsageError where nothing would be learned: the task's loss says nothing, and no teacher does."""
    if config.teacher is None and getattr(task, "needs_teacher", False):
        raise UsageError(f"task {config.task}: the data have no labels to learn from: say --teacher NETWORK")


def model_name(config: TrainConfig, task: Task) -> str:
    """The name under which the model is recorded."""
    return config.model or next(iter(task.models))


def fresh_network(
    config: TrainConfig, task: Task, weights: Mapping[str, torch.Tensor] | None = None
) -> tuple[nn.Module, Allocation, nn.Module | None]:
    """The network a run starts with, and the bits of each layer where they were chosen (--target-bits).

    Initial weights come from the global generator, or are those of --init-from. Last comes a copy in full
    precision, from before it was quantised, where the run learns from that (--teacher self).
    """
    model = make_model(task, config.model)
    # A full-precision file goes in before quantisation (learned scales start from the weights), a quantised
    # run's file after it.
    frozen = weights is not None and config.trainable is not None and _has_codes(model, weights)
    adapters: dict[str, torch.Tensor] = {}  # of a packed file, whose codes are weights here
    if weights is not None and config.trainable is not None and not frozen:
        adapters = {name: weights[name] for name in weights if name.endswith(ADAPTER_NAMES)}
        weights = {name: weights[name] for name in weights if name not in adapters}
    late = (
        weights is not None
        and config.qat
        and not frozen
        and not fits(model, weights)
        and _has_quantized_names(model, weights)
    )
    if weights is not None and not late and not frozen:
        load_weights(model, weights, f"--init-from {config.init_from}")
    if frozen and config.teacher == SELF:
        raise UsageError("--teacher self is a start in full precision, which frozen codes have not; name one")
    start = copy.deepcopy(model) if config.teacher == SELF and not late else None
    allocation = choose_bits(config, task, model)
    model = quantized(config, task, model, allocation)
    if weights is not None and late:
        load_weights(model, weights, f"--init-from {config.init_from}")
        start = full_precision_copy(model) if config.teacher == SELF else None
    restrict(config, model)
    if weights is not None and (frozen or adapters):
        rest = weights if frozen else {**model.state_dict(), **adapters}
        load_weights(model, rest, f"--init-from {config.init_from}")
    return model.to(config.device), allocation, start


def restore_network(config: TrainConfig, checkpoint: Checkpoint) -> tuple[Task, nn.Module]:
    """The task, and the network with a checkpoint's weights in eval mode; no global generator moves."""
    task = configured_task(config)
    with torch.random.fork_rng(devices=[]):
        model = make_model(task, config.model)
        model = rebuilt(config, task, model, checkpoint.model, run_state(checkpoint))
    return task, model.to(config.device).eval()


def run_state(checkpoint: Checkpoint) -> RunState:
    """A checkpoint's state, checked. Raises FileError for another one."""
    state = checked(RunState, checkpoint.state, "the saved state")
    if state.progress.step != checkpoint.step:
        raise FileError(f"the saved state is of step {state.progress.step}, not {checkpoint.step}")
    return state


def rebuilt(
    config: TrainConfig, task: Task, model: nn.Module, weights: Mapping[str, torch.Tensor], state: RunState
) -> nn.Module:
    """A fresh `model`, made what it was when the checkpoint of `weights` and `state` was taken."""
    model = quantized(config, task, model, state.allocation)
    restrict(config, model)
    load_weights(model, weights, "the checkpoint")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise FileError(f"the checkpoint: {name} holds values that are not finite")
    set_ramp(model, state.ramp)
    return model


def choose_bits(config: TrainConfig, task: Task, model: nn.Module) -> Allocation:
    """The quantizer of each layer under --target-bits, else nothing."""
    if config.target_bits is None:
        return {}
    from hybridkit.quant.allocation import allocate_bits

    return allocate_bits(
        model,
        config.target_bits,
        config.param_clusters,
        config.seed,
        quantize_all=config.quantize_all,
        example_inputs=task.inputs(example_batch(task, size=64)),
    )


def quantized(config: TrainConfig, task: Task, model: nn.Module, allocation: Mapping[str, Any]) -> nn.Module:
    """`model` with fake-quantised layers under QAT, else as it is."""
    if not config.qat:
        return model
    from hybridkit.quant.prepare import prepare_qat_

    how = config.quantization
    how = dataclasses.replace(how, layers={**allocation, **how.layers})
    return prepare_qat_(model, how, example_inputs=task.inputs(example_batch(task)))


def restrict(config: TrainConfig, model: nn.Module) -> None:
    """Freeze the codes of a quantised model under --trainable, which says what is trained then."""
    if config.trainable is None:
        return
    from hybridkit.quant.frozen import freeze_codes_, parse_trainable

    freeze_codes_(model, parse_trainable(config.trainable))


def example_batch(task: Task, size: int = 1) -> Batch:
    """The first `size` validation samples."""
    return first(task.splits().validation, size, collate_of(task))


def _has_quantized_names(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> bool:
    return set(model.state_dict()) < set(weights)


def _has_codes(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether `weights` are those of a run with frozen codes."""
    own = model.state_dict()
    return any(name in own and t.dtype == torch.int8 != own[name].dtype for name, t in weights.items())
