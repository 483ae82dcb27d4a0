"""What `hybridkit export` says about the inputs of a network, and what the file is verified on."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hybridkit.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from hybridkit.exporting import ExportReport
    from hybridkit.exporting.subject import Subject
    from hybridkit.pretrained.examples import Examples
    from hybridkit.sources.protocol import Source

# Example sizes of dimensions given by name alone: few samples, but no shorter than a convolution's kernel.
_BATCH_EXAMPLE: Final = 2
_OTHER_EXAMPLE: Final = 32
_RANDOM_SAMPLES: Final = 16  # to verify on where there is no data
_SHORT: Final = 5  # tokens
_DIMENSION: Final = re.compile(
    r"(?P<label>[A-Za-z_]\w*)(=(?P<size>0*[1-9]\d*))?|(?P<number>0*[1-9]\d*)", re.ASCII
)


def described(source: Source, model: str | None, inputs: Sequence[str]) -> Subject:
    """The inputs of a source's network: those of --input where there are any, else its task's, or its own.

    Raises UsageError where neither says them, or --input contradicts the task of the source.
    """
    if inputs and (model is not None or source.task is None):
        return _of_inputs(source.network, inputs)
    if inputs:
        raise UsageError(
            "--input describes a network of --model package.module:factory; what the network of a run or of "
            "--task takes, its task says"
        )
    network, task = source.network, source.task
    if task is None and source.examples is not None:
        return _of_examples(source.examples)
    if task is None:
        raise UsageError(f"{source.text}: say the inputs of {type(network).__name__} with --input NAME:SHAPE")

    from hybridkit.exporting.subject import subject_of

    return subject_of(task)


def write(source: Source, subject: Subject, path: Path, **how: Any) -> ExportReport:
    """Export what a source opens; `how` is as `exporting.export` takes it."""
    from hybridkit.exporting import export

    return export(
        source.network,
        source.packed,
        path,
        example_inputs=subject.example_inputs,
        input_names=subject.input_names,
        dynamic_axes=subject.dynamic_axes,
        validation=subject.validation,
        **how,
    )


def _of_examples(examples: Examples) -> Subject:
    """Random inputs, verified on long sentences and on short ones."""
    from hybridkit.exporting import Validation
    from hybridkit.exporting.subject import EXAMPLES, Subject

    traced = examples.draw(EXAMPLES)
    batches = [examples.draw(_RANDOM_SAMPLES, seed=1), examples.draw(3, _SHORT, seed=2)]
    axes = [examples.axes[name] for name in traced]
    return Subject(traced, list(traced), axes, Validation(batches=batches))


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


def _of_inputs(module: nn.Module, inputs: Sequence[str]) -> Subject:
    from hybridkit.exporting import Validation
    from hybridkit.exporting.subject import Subject

    parsed = [parse_input(text) for text in inputs]
    shapes = [shape for _, _, shape, _ in parsed]
    samples = [
        [_RANDOM_SAMPLES if free.get(0) == "batch" else shape[0], *shape[1:]] for *_, shape, free in parsed
    ]
    make = _random_inputs(module, [(name, dtype) for name, dtype, *_ in parsed], shapes)
    return Subject(
        make(shapes),
        [name for name, *_ in parsed],
        [free for *_, free in parsed],
        Validation(batches=[make(samples)]),
    )


def _random_inputs(
    module: nn.Module, inputs: Sequence[tuple[str, torch.dtype | None]], shapes: Sequence[Sequence[int]]
) -> Callable[[Sequence[Sequence[int]]], tuple[Tensor, ...] | dict[str, Tensor]]:
    """What makes inputs of given shapes: indices that are there, other integers one, the rest noise.

    By name, where the network has arguments of all these names. An input without a type is int64 where an
    embedding gets it, else of the network's own type. Raises UsageError where that does not run.
    """
    import numpy as np
    import torch

    from hybridkit.bench.feeds import random_array
    from hybridkit.exporting.indices import index_inputs

    generator = np.random.default_rng(0)
    names = [name for name, _ in inputs]
    by_name = len(set(names) & set(inspect.signature(module.forward).parameters)) == len(names)

    def arranged(tensors: list[Tensor]) -> tuple[Tensor, ...] | dict[str, Tensor]:
        return dict(zip(names, tensors, strict=True)) if by_name else tuple(tensors)

    own = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    first = [torch.ones(shape, dtype=dtype or own) for (_, dtype), shape in zip(inputs, shapes, strict=True)]
    indices: dict[str | int, int] = {}
    try:
        indices = index_inputs(module, arranged(first))
    except Exception as error:  # whatever a stranger's module raises
        if untyped := [number for number, (_, dtype) in enumerate(inputs) if dtype is None]:
            listed = ", ".join(names[number] for number in untyped)
            sizes = ",".join(map(str, shapes[untyped[0]]))
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            kind = str(own).removeprefix("torch.")
            raise UsageError(
                f"the network does not run on {kind} for {listed}: {reason}; say the type of another "
                f"input, as in --input {names[untyped[0]]}:int64:{sizes}"
            ) from error
    entries = [indices.get(name if by_name else number) for number, name in enumerate(names)]

    def make(sizes: Sequence[Sequence[int]]) -> tuple[Tensor, ...] | dict[str, Tensor]:
        made = []
        for (_, dtype), shape, count in zip(inputs, sizes, entries, strict=True):
            if count is None and dtype is not None and not dtype.is_floating_point:
                made.append(torch.ones(tuple(shape), dtype=dtype))
                continue
            kind, default = (np.float32, own) if count is None else (np.int64, torch.int64)
            drawn = random_array(generator, shape, np.dtype(kind), count or 0)
            made.append(torch.from_numpy(drawn).to(dtype or default))
        return arranged(made)

    return make
