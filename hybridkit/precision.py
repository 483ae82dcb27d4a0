"""Mixed precision: torch's autocast, and the loss scale that fp16 needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, Final, Literal, Self

import torch
import torch.nn.functional as F
from torch.amp.grad_scaler import GradScaler
from torch.overrides import TorchFunctionMode

from hybridkit.errors import UsageError

Precision = Literal["fp32", "bf16", "fp16"]
_TYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: Precision, device: str, *, sharded: bool = False) -> None:
    """Raise UsageError where the run's device cannot train in `precision`."""
    if precision == "fp16" and not device.startswith("cuda"):
        raise UsageError(f"--precision fp16 needs a CUDA device, not {device}; say bf16")
    if precision == "fp16" and sharded:
        raise UsageError("--precision fp16 scales losses, which --shard does not; say bf16")
    if precision == "bf16" and device.startswith("cuda") and not torch.cuda.is_bf16_supported():
        raise UsageError("--precision bf16: this GPU has no bf16; say fp16")


def faster_precision(device: str) -> Precision:
    """bf16 where the device multiplies it faster than float32, else fp32."""
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if found.get("avx512_bf16") or found.get("amx_bf16") else "fp32"


def autocast(precision: Precision, device: str) -> AbstractContextManager[object]:
    """In this context torch computes in `precision` what it holds to be safe; nothing changes for fp32.

    Parameters, gradients and the optimizer stay float32. Quantised layers compute in float32 all the same
    (`QATLayer.product`), so that what trains is what is packed; their output is of their input's type, and
    their gradients are multiplied in `precision`.
    """
    if precision == "fp32":
        return nullcontext()
    kind = device.partition(":")[0]
    casting = torch.autocast(kind, dtype=_TYPES[precision])
    return _on_a_cpu(casting) if kind == "cpu" else casting


@contextmanager
def _on_a_cpu(casting: AbstractContextManager[object]) -> Iterator[None]:
    with casting, _FloatAttention():
        yield


def computed_again() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    """`context_fn` of torch's checkpoint: what the second computation needs to be as the first one is now.

    It sees to autocast itself.
    """
    return nullcontext(), _FloatAttention() if _FloatAttention.entered else nullcontext()


class _FloatAttention(TorchFunctionMode):
    """Attention in float32: in bf16 torch's backward takes ten times as long on a CPU (torch 2.13)."""

    entered: ClassVar[int] = 0

    def __enter__(self) -> Self:
        _FloatAttention.entered += 1
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        _FloatAttention.entered -= 1
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if function is not F.scaled_dot_product_attention:
            return function(*args, **named)
        dtype = args[0].dtype if args else named["query"].dtype
        with torch.autocast("cpu", enabled=False):
            return function(*map(_float, args), **{k: _float(v) for k, v in named.items()}).to(dtype)


def _float(value: Any) -> Any:
    half = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.float() if half else value


def loss_scaler(precision: Precision, device: str) -> GradScaler | None:
    """What keeps small gradients above fp16's least number (Micikevicius et al. 2018, arXiv 1710.03740)."""
    return GradScaler(device.partition(":")[0]) if precision == "fp16" else None
