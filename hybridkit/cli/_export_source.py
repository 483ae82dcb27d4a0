"""What `hybridkit export` exports: the network, its packed weights, its inputs and what it is verified on."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hybridkit.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from hybridkit.exporting import Validation
    from hybridkit.packing.model import PackedModel
    from hybridkit.tasks.protocol import Task
    from hybridkit.training.runs import Run

# Example sizes of dimensions given by name alone: few samples, but no shorter than a convolution's reach.
_BATCH_EXAMPLE: Final = 2
_OTHER_EXAMPLE: Final = 32
_RANDOM_SAMPLES: Final = 16  # to verify on where there is no data
_DIMENSION: Final = re.compile(
    r"(?P<label>[A-Za-z_]\w*)(=(?P<size>0*[1-9]\d*))?|(?P<number>0*[1-9]\d*)", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Code:
    """The Python code that the command line names; nothing is imported because a file names it."""

    task: str | None = None
    model: str | None = None
    quantizer: str | None = None

    @property
    def trusted(self) -> list[str]:
        """What may be imported."""
        return [name for name in (self.task, self.model, self.quantizer) if name]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Name, example and free dimensions of each input of a network."""

    names: Sequence[str]
    examples: Sequence[Tensor] | Mapping[str, Tensor]
    dynamic_axes: Sequence[Mapping[int, str]]


@dataclass(frozen=True, slots=True)
class Source:
    """Everything `hybridkit.export` wants to know about a network."""

    module: nn.Module
    packed: PackedModel | None
    inputs: Inputs
    validation: Validation
    metadata: Mapping[str, Any] = field(default_factory=dict)


def find_source(given: str | None, code: Code, inputs: Sequence[str]) -> Source:
    """The network that --from, --model and --input mean; without them the newest run's.

    Raises UsageError for flags that do not fit together, FileError for files that are missing or damaged.
    """
    if given is None and code.model is not None and inputs:
        return _from_module(code.model, inputs)
    if given is not None and Path(given).is_file():
        return _from_file(Path(given), code, inputs)
    from hybridkit.training.runs import find_run, newest_run

    if inputs:
        raise UsageError("--input describes a network of --model; what a run's network takes, its task says")
    run, step = (newest_run(), None) if given is None else find_run(given)
    return _from_run(run, step, code)


def parse_input(text: str) -> tuple[str, torch.dtype | None, list[int], dict[int, str]]:
    """`x:1,64`, `ids:int64:batch,seq` or `audio:batch,1,time=400`: name, dtype if said, sizes, free axes.

    A dimension with a name is free, with `=` its example size; where none is named the first is `batch`.
    """
    import torch

    whole = re.fullmatch(r"([^:,]+):(?:(\w+):)?([^:]+)", text)
    dimensions = (
        [_DIMENSION.fullmatch(part.strip()) for part in whole.group(3).split(",")] if whole else [None]
    )
    said = whole.group(2) if whole else None
    dtype = getattr(torch, said, None) if said else None
    if whole is None or not all(dimensions) or (said and not isinstance(dtype, torch.dtype)):
        raise UsageError(
            f"--input {text}: expected NAME:SHAPE or NAME:DTYPE:SHAPE, as in x:1,64 or ids:int64:batch,seq"
        )
    defaults = [_BATCH_EXAMPLE, *[_OTHER_EXAMPLE] * (len(dimensions) - 1)]
    found = [
        (d["label"], int(d["size"] or d["number"] or default))
        for d, default in zip(dimensions, defaults, strict=True)
        if d
    ]
    free = {axis: label for axis, (label, _) in enumerate(found) if label}
    return whole.group(1), dtype, [size for _, size in found], free or {0: "batch"}


def _from_run(run: Run, step: int | None, code: Code) -> Source:
    from hybridkit.quant.convert import convert
    from hybridkit.training.config import TrainConfig, named_targets
    from hybridkit.training.metrics import read_records
    from hybridkit.training.packed import about, quantize_afterwards

    # of the code a run names, loading its network needs the task, the model and the quantizer alone
    named = named_targets(TrainConfig.from_json(run.about().get("config")))
    unused = [target for name, target in named.items() if name not in ("task", "model", "quantizer")]
    task, model = run.load_model(step, trusted=[*code.trusted, *unused])
    config = run.config(trusted=named.values())
    commit = run.about().get("environment", {}).get("git_commit")
    packed = None
    if config.qat:
        packed = convert(model)
    elif config.ternary:
        packed = quantize_afterwards(config, model)
    measured = [r for r in read_records(run.metrics_path) if r["event"] != "step"]
    metadata = {
        **about(config, task, commit),
        "run": run.path.name,
        "metrics": measured[-1] if measured else {},
    }
    return _of_task(task, model, packed, metadata)


def _from_file(path: Path, code: Code, inputs: Sequence[str]) -> Source:
    from hybridkit.packing.model import SUFFIX, PackedModel
    from hybridkit.tasks.resolve import import_model

    if not path.name.removesuffix(".index.json").endswith(SUFFIX):
        return _from_weights(path, code, inputs)
    packed = PackedModel.load(path)
    if code.model is not None and inputs:
        return _of_inputs(import_model(code.model), packed, inputs, packed.metadata)
    if inputs:
        raise UsageError("--input describes a network of --model; say --model package.module:factory too")
    task, model = _registered(packed.metadata, code)
    return _of_task(task, model, packed, packed.metadata)


def _from_weights(path: Path, code: Code, inputs: Sequence[str]) -> Source:
    from hybridkit.tasks.resolve import import_model
    from hybridkit.training.init import read_weights
    from hybridkit.training.weights import load_weights

    if code.model is None or not inputs:
        raise UsageError(
            f"{path} holds weights only: say the network with --model package.module:factory and its inputs "
            "with --input NAME:SHAPE"
        )
    module = import_model(code.model)
    load_weights(module, read_weights(str(path)), str(path))
    return _of_inputs(module, None, inputs, {})


def _from_module(model: str, inputs: Sequence[str]) -> Source:
    from hybridkit.quant.convert import convert
    from hybridkit.quant.layers import qat_layers
    from hybridkit.tasks.resolve import import_model

    module = import_model(model)
    return _of_inputs(module, convert(module) if qat_layers(module) else None, inputs, {"model": model})


def _registered(metadata: Mapping[str, Any], code: Code) -> tuple[Task, nn.Module]:
    """Task and fresh network of a packed file: registered names, or what the command line names too."""
    from hybridkit.tasks.resolve import make_model, make_task
    from hybridkit.training.config import TrainConfig, named_targets

    task, model = (code.task or metadata.get("task"), code.model or metadata.get("model"))
    if not isinstance(task, str):
        raise UsageError(
            "the packed file does not say its task: name the network with --model package.module:factory and "
            "its inputs with --input NAME:SHAPE"
        )
    config = TrainConfig(task=task, model=model if isinstance(model, str) else None)
    for flag, target in named_targets(config).items():
        if target not in code.trusted:
            raise UsageError(
                f"the packed file's {flag} is {target!r}, and code that only a file names is never imported; "
                f"say --{flag} {target}"
            )
    made = make_task(config.task)
    return made, make_model(made, config.model)


def _of_task(
    task: Task, module: nn.Module, packed: PackedModel | None, metadata: Mapping[str, Any]
) -> Source:
    from hybridkit.exporting.subject import subject_of

    subject = subject_of(task)
    inputs = Inputs(subject.input_names, subject.example_inputs, subject.dynamic_axes)
    return Source(module, packed, inputs, subject.validation, metadata)


def _of_inputs(
    module: nn.Module, packed: PackedModel | None, inputs: Sequence[str], metadata: Mapping[str, Any]
) -> Source:
    from hybridkit.exporting import Validation

    parsed = [parse_input(text) for text in inputs]
    shapes = [shape for _, _, shape, _ in parsed]
    samples = [
        [_RANDOM_SAMPLES if free.get(0) == "batch" else shape[0], *shape[1:]] for *_, shape, free in parsed
    ]
    make = _random_inputs(module, [(name, dtype) for name, dtype, *_ in parsed], shapes)
    return Source(
        module,
        packed,
        Inputs([name for name, *_ in parsed], make(shapes), [free for *_, free in parsed]),
        Validation(batches=[make(samples)]),
        {key: metadata[key] for key in ("task", "model", "commit") if metadata.get(key)},
    )


def _random_inputs(
    module: nn.Module, inputs: Sequence[tuple[str, torch.dtype | None]], shapes: Sequence[Sequence[int]]
) -> Callable[[Sequence[Sequence[int]]], tuple[Tensor, ...] | dict[str, Tensor]]:
    """What makes inputs of given shapes: indices that are there, other integers one, the rest noise.

    By name, where the network has arguments of all these names. An input without a type is int64 where an
    embedding gets it, else float32. Raises UsageError where that does not run.
    """
    import torch

    from hybridkit.exporting.indices import index_inputs

    generator = torch.Generator().manual_seed(0)
    names = [name for name, _ in inputs]
    by_name = len(set(names) & set(inspect.signature(module.forward).parameters)) == len(names)

    def arranged(tensors: list[Tensor]) -> tuple[Tensor, ...] | dict[str, Tensor]:
        return dict(zip(names, tensors, strict=True)) if by_name else tuple(tensors)

    first = [
        torch.ones(shape, dtype=dtype or torch.float32)
        for (_, dtype), shape in zip(inputs, shapes, strict=True)
    ]
    indices: dict[str | int, int] = {}
    try:
        indices = index_inputs(module, arranged(first))
    except Exception as error:  # whatever a stranger's module raises
        if untyped := [number for number, (_, dtype) in enumerate(inputs) if dtype is None]:
            listed = ", ".join(names[number] for number in untyped)
            sizes = ",".join(map(str, shapes[untyped[0]]))
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(
                f"the network does not run on float32 for {listed}: {reason}; say the type of "
                f"another input, as in --input {names[untyped[0]]}:int64:{sizes}"
            ) from error
    entries = [indices.get(name if by_name else number) for number, name in enumerate(names)]

    def make(sizes: Sequence[Sequence[int]]) -> tuple[Tensor, ...] | dict[str, Tensor]:
        made = []
        for (_, dtype), shape, count in zip(inputs, sizes, entries, strict=True):
            if count is not None:
                x = torch.randint(0, count, tuple(shape), generator=generator).to(dtype or torch.int64)
            elif dtype is None or dtype.is_floating_point:
                x = torch.randn(tuple(shape), generator=generator).to(dtype or torch.float32)
            else:
                x = torch.ones(tuple(shape), dtype=dtype)
            made.append(x)
        return arranged(made)

    return make
