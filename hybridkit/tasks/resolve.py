"""Tasks and models by name, or by `package.module:attribute` for a user's own."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from typing import Any

from torch import nn

from hybridkit.errors import UsageError
from hybridkit.options import construct, describe_options, nearest
from hybridkit.pretrained import is_pretrained
from hybridkit.registry import import_target, registry
from hybridkit.tasks.protocol import Task

MEMBERS: tuple[str, ...] = (
    *inspect.get_annotations(Task),
    *(name for name, value in vars(Task).items() if inspect.isfunction(value) and not name.startswith("_")),
)


def make_task(spec: str, options: Mapping[str, Any] | None = None) -> Task:
    """The task `spec`: a registered name, `distribution:name`, or `package.module:attribute`.

    The attribute is a task class, a function that returns a task (both take `options`), or a task itself.
    Raises UsageError if there is none, options do not fit, or what comes out is not a `Task` (saying what is
    missing).
    """
    found = registry().load("task", spec)
    options = options or {}
    if not inspect.isclass(found) and (not _missing(found) or not callable(found)):
        if options:
            raise UsageError(f"task {spec!r} is ready-made and takes no options; drop {', '.join(options)}")
        return _checked(found, spec)
    needed = [o.name for o in describe_options(found).values() if o.default is MISSING]
    absent = [name for name in needed if name not in options]
    if absent:
        raise UsageError(
            f"task {spec!r} needs the option {absent[0]!r}; give it with --set task.{absent[0]}=VALUE"
        )
    return _checked(construct(found, options, where="task"), spec)


def make_model(task: Task, spec: str | None = None) -> nn.Module:
    """A new model: the task's default (None), one of the task's by name, or `package.module:attribute`.

    The attribute is an `nn.Module` class or a function that returns a module, called without arguments, or a
    module, which is copied. Raises UsageError if there is no such model or it is not a module.
    """
    if spec is None:
        spec = next(iter(task.models))
    if spec in task.models:
        return _built(task.models[spec], spec)
    if is_pretrained(spec):
        raise UsageError(
            f"task {task.name!r} does not take pretrained networks, such as {spec}; text-classification, "
            "causal-lm and others do (hybridkit plugins --kind task)"
        )
    if ":" in spec:
        return import_model(spec)
    raise UsageError(f"task {task.name!r} has no model {spec!r}; {nearest(spec, task.models)}")


def import_model(spec: str) -> nn.Module:
    """A new model from `package.module:attribute`, as in `make_model`."""
    return _built(import_target(spec), spec)


def _built(found: Any, spec: str) -> nn.Module:
    if isinstance(found, nn.Module):
        return copy.deepcopy(found)
    if not callable(found):
        raise UsageError(f"model {spec!r} is a {type(found).__name__}; it must be a module or make one")
    _require_no_arguments(found, spec)
    model = found()
    if not isinstance(model, nn.Module):
        raise UsageError(f"model {spec!r} made a {type(model).__name__}, which is not a torch.nn.Module")
    return model


def _missing(candidate: Any) -> list[str]:
    return [name for name in MEMBERS if not hasattr(candidate, name)]


def _checked(candidate: Any, spec: str) -> Task:
    missing = _missing(candidate)
    if missing:
        kind = type(candidate).__name__
        raise UsageError(
            f"{spec!r} is a {kind}, not a task: it lacks {', '.join(missing)} (see docs/tasks.md)"
        )
    task: Task = candidate
    return task


def _require_no_arguments(factory: Callable[..., Any], spec: str) -> None:
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise UsageError(f"model {spec!r}: {error}; give a function that needs no arguments") from None
    except ValueError:  # some builtins have no signature; calling will tell
        return
