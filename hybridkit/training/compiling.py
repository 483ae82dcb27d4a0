"""torch.compile for the network of a run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch

from hybridkit.errors import UsageError

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(forward: Function) -> Function:
    """`forward`, compiled when it is called first.

    That is the forward of a training step and not the network itself, which keeps its names and is evaluated
    and packed as it is.
    """
    # the namespace of the quantizers' arrays, which depends on nothing but its argument's type
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
    made: Any = torch.compile(forward)
    return cast("Function", made)


@contextmanager
def compiling() -> Iterator[None]:
    """In this context a failure to compile is one line: UsageError."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        cause = getattr(error, "inner_exception", error)
        reason = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise UsageError(
            f"--compile: torch cannot compile this network here ({reason.strip()}); leave it out, or install "
            "a C++ compiler"
        ) from None
