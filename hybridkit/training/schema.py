"""What the saved state of a run must be, checked once before any of it is used.

A file whose hash is right may still hold anything: it is from another version, or was edited. What the run
itself saves is described by types (`RunState`); what its optimizer and controller save, strangers' too, is
compared with what ones made afresh save (`rehearse`).
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from annotated_types import Ge, Le
from numpy.typing import NDArray
from pydantic import AfterValidator, AllowInfNan, ConfigDict, Strict, TypeAdapter, ValidationError
from torch import Tensor
from torch.optim import Optimizer

from hybridkit.errors import FileError
from hybridkit.optim.hybrid import HybridOptimizer
from hybridkit.training.distributed import world
from hybridkit.training.progress import Progress

LARGEST_COUNT = 2**63 - 1
LARGEST_NUMBER = 1e100  # its square is still a number, and that of any float32 is smaller
MOST_CLUSTERS = 2**20  # a sampler holds a number for each

T = TypeVar("T")
Whole = Annotated[int, Strict(), Ge(0), Le(LARGEST_COUNT)]
Word = Annotated[int, Strict(), Ge(0), Le(2**32 - 1)]
Bits = Literal[2, 3, 4, 8]
GroupSize = Literal[32, 64, 128]
Scale = Annotated[int | float, Ge(0), Le(LARGEST_NUMBER)]


def _accepted_by(restore: Callable[[Any], object]) -> AfterValidator:
    """The values that `restore` (of a generator that is thrown away) takes."""

    def check(value: Any) -> Any:
        try:
            restore(value)
        except Exception as error:
            raise ValueError(f"not the state of a random generator ({error})") from None
        return value

    return AfterValidator(check)


def _labels(value: Any) -> Any:
    if not isinstance(value, np.ndarray) or value.dtype != np.int64 or value.ndim != 1:
        raise ValueError("cluster labels are int64, one for each sample")
    if not len(value):  # of a stream
        return value
    if value.min() < 0 or value.max() >= max(len(value), MOST_CLUSTERS):
        raise ValueError("a cluster label is out of range")
    return value


def _is_tensor(value: Any) -> Any:
    if not isinstance(value, Tensor):
        raise ValueError("a tensor is expected")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomStates:
    """The global generators, as each of them gives its state away."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    python: Annotated[
        tuple[Literal[3], tuple[Word, ...], float | None], _accepted_by(lambda s: random.Random().setstate(s))
    ]
    numpy: Annotated[
        # NumPy itself believes any position, and reads there
        tuple[
            Literal["MT19937"], NDArray[np.uint32], Annotated[Whole, Le(624)], Annotated[Whole, Le(1)], float
        ],
        _accepted_by(lambda s: np.random.RandomState().set_state(s)),
    ]
    torch: Annotated[Any, _accepted_by(lambda s: torch.Generator().set_state(s))]
    cuda: list[Annotated[Any, AfterValidator(_is_tensor)]]

    @classmethod
    def now(cls, device: str) -> dict[str, Any]:
        """The generators' states at this moment; CUDA's where the run is there."""
        return {
            "python": random.getstate(),
            "numpy": np.random.get_state(),  # noqa: NPY002
            "torch": torch.get_rng_state(),
            "cuda": _cuda_states() if device.startswith("cuda") else [],
        }

    def restore(self) -> None:
        """Put every generator there. Raises FileError where CUDA's do not fit."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002
        torch.set_rng_state(self.torch)
        if self.cuda:
            try:
                if len(self.cuda) == 1:
                    torch.cuda.set_rng_state(self.cuda[0])
                else:
                    torch.cuda.set_rng_state_all(self.cuda)
            except (RuntimeError, TypeError, IndexError, AssertionError) as error:
                raise FileError(f"the saved state's random.cuda does not fit: {_line(error)}") from None


def _cuda_states() -> list[Tensor]:
    """Of every device, or of the one that this process has among others."""
    return torch.cuda.get_rng_state_all() if world().size == 1 else [torch.cuda.get_rng_state()]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What a checkpoint holds besides the weights; see `Trainer.checkpoint`."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    # what --target-bits chose; no other name, since a name may stand for code
    allocation: dict[
        str,
        Literal["binary", "ternary-mse"]
        | dict[Literal["quantizer", "bits", "group_size"], Literal["nbit"] | Bits | GroupSize],
    ]
    ramp: Annotated[float, Strict(), Ge(0), Le(1), AllowInfNan(False)]
    labels: Annotated[Any, AfterValidator(_labels)]
    parameter_clusters: list[Whole] | None
    sampler: dict[str, Any]  # of the feed, which checks it
    optimizer: dict[str, Any]
    progress: Progress
    random: RandomStates
    distillation: dict[str, Any] = field(default_factory=dict)  # of the objective, which checks it
    others: tuple[RandomStates, ...] | list[RandomStates] = ()  # the other processes'
    loss_scale: dict[
        Literal["scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"], Scale
    ] = field(default_factory=dict)


def checked(schema: type[T], value: Any, what: str) -> T:
    """`value` as a `schema`. Raises FileError, which says where in `what` something else is."""
    try:
        found: T = TypeAdapter(schema).validate_python(value)
    except (ValidationError, RecursionError) as error:
        raise FileError(f"{what} is damaged, or another version's: {_first(error)}") from None
    return found


def rehearse(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Try on `optimizer`, freshly made, whether it can go on from `saved`; it and its weights are moved.

    Raises FileError where two fresh steps (a controller learns from the first in the second) leave a state of
    another structure (keys, types, shapes), or the optimizer cannot load this one or step from there.
    """
    like = optimizer.state_dict()
    try:
        for _ in range(2):
            _step(optimizer)
    except Exception:  # it wants other gradients, sparse ones for instance: nothing is known of its state
        return
    if saved.get("state"):  # else it was saved before its first step
        like = optimizer.state_dict()
    _check_optimizer(optimizer, like, saved)
    try:
        optimizer.load_state_dict(copy.deepcopy(dict(saved)))
        _step(optimizer)
    except Exception as error:  # a stranger's code, or ours, on values that it never wrote
        raise _damaged("optimizer", f"it cannot go on from there ({_line(error)})") from None


def check_like(like: Any, found: Any, path: str) -> None:
    """Raise FileError unless `found` is built as `like` is, which is what a fresh component has saved.

    The same text keys, the same kinds of values, tensors of the same shape and type without NaN, numbers
    that can be squared, counts that are not negative unless the fresh one is. Lists may be longer or shorter.
    """
    like, found = (value.item() if isinstance(value, np.generic) else value for value in (like, found))
    if isinstance(like, Tensor | np.ndarray):
        _check_array(like, found, path)
    elif isinstance(like, Mapping):
        _check_mapping(like, found, path)
    elif isinstance(like, list | tuple):
        if type(found) is not type(like):
            raise _damaged(path, f"a {type(like).__name__} is expected")
        for i, item in enumerate(found if like else ()):
            check_like(like[min(i, len(like) - 1)], item, f"{path}.{i}")
    elif isinstance(like, bool | str):
        if type(found) is not type(like):
            raise _damaged(path, f"a {type(like).__name__} is expected")
    elif isinstance(like, int | float):
        _check_number(like, found, path)


def _check_array(like: Any, found: Any, path: str) -> None:
    shape, dtype = tuple(like.shape), like.dtype
    if type(found) is not type(like) or tuple(found.shape) != shape or found.dtype != dtype:
        raise _damaged(path, f"{dtype} {list(shape)} is expected")
    values = torch.as_tensor(found)
    if values.is_floating_point() and bool(values.isnan().any()):
        raise _damaged(path, "it holds NaN")


def _check_mapping(like: Mapping[Any, Any], found: Any, path: str) -> None:
    if not isinstance(found, Mapping):
        raise _damaged(path, "a table is expected")
    names, here = ({key for key in table if isinstance(key, str)} for table in (like, found))
    for name in sorted(names ^ here):
        raise _damaged(f"{path}.{name}", "it is missing" if name in names else "nobody knows it")
    for key, item in found.items():
        if like:
            check_like(like.get(key, next(iter(like.values()))), item, f"{path}.{key}")


def _check_number(like: float, found: Any, path: str) -> None:
    if found is None:
        return
    if type(found) not in (int, float):
        raise _damaged(path, "a number is expected")
    if isinstance(like, int) and isinstance(found, int) and not min(like, 0) <= found <= LARGEST_COUNT:
        raise _damaged(path, f"{found} is out of range")
    if abs(like) <= LARGEST_NUMBER and not abs(found) <= LARGEST_NUMBER:
        raise _damaged(path, f"{found} is out of range")


def _check_optimizer(optimizer: Optimizer, like: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """`check_like`, and what is known of every torch optimizer: its groups, and whose state there may be."""
    like, saved = dict(like), dict(saved)
    groups, known = saved.pop("param_groups", None), like.pop("param_groups")
    if not isinstance(groups, Sequence) or len(groups) != len(known):
        raise _damaged("optimizer.param_groups", f"{len(known)} parameter groups are expected")
    base = getattr(optimizer, "base", optimizer)
    ours = type(base).__module__.partition(".")[0] in ("torch", "hybridkit")  # they never write to a group
    for i, (group, fresh) in enumerate(zip(groups, known, strict=True)):
        path = f"optimizer.param_groups.{i}"
        if not isinstance(group, Mapping) or group.get("params") != fresh["params"]:
            raise _damaged(path, "it has other parameters")
        for name in (n for n in fresh if n in group):
            check_like(fresh[name], group[name], f"{path}.{name}")
            if ours and group[name] != fresh[name]:
                raise _damaged(f"{path}.{name}", f"{fresh[name]!r} is expected")
    if isinstance(optimizer, HybridOptimizer) and isinstance(hybrid := saved.get("hybrid"), Mapping):
        # What the last step decided may look otherwise than what the first one did: the next one looks at it.
        like["hybrid"] = {**like["hybrid"], "last": {}}
        saved["hybrid"] = {**hybrid, "last": {}} if "last" in hybrid else hybrid
    states = saved.get("state")
    if not isinstance(states, Mapping) or not set(states) <= set(like["state"]):
        raise _damaged("optimizer.state", "it is of other parameters")
    check_like(like, saved, "optimizer")


def _step(optimizer: Optimizer) -> None:
    """One step along a small gradient of every parameter."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, 1e-3)
    if isinstance(optimizer, HybridOptimizer):
        optimizer.observe(1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _damaged(path: str, why: str) -> FileError:
    return FileError(f"the saved state is damaged, or another version's: {path}: {why}")


def _first(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
