"""The forms in which `optimization_step` accepts gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hybridkit.errors import UsageError

Gradients = Tensor | Sequence[Tensor] | Mapping[str, Tensor] | None


def set_gradients(model: nn.Module, loss: Tensor | float, gradients: Gradients) -> bool:
    """Make sure that `p.grad` is there for the step; returns whether it was put there by this call.

    None and a one-element tensor (a statistic) leave `p.grad` as it is, and call backward on `loss` where no
    parameter has one. A sequence in the order of the trainable parameters, a mapping by name, or a flat
    tensor of their total size becomes `p.grad`. Raises UsageError (a ValueError) for anything else.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = sum(p.numel() for p in named.values())
    if isinstance(gradients, Tensor) and gradients.numel() == total and gradients.ndim <= 1:
        pieces = torch.split(gradients.reshape(-1), [p.numel() for p in named.values()])
        _assign(named, {n: g.view_as(p) for (n, p), g in zip(named.items(), pieces, strict=True)})
        return True
    if gradients is None or (isinstance(gradients, Tensor) and gradients.numel() == 1):
        return _backward(named, loss)
    if isinstance(gradients, Mapping):
        _assign(named, gradients)
        return True
    if isinstance(gradients, Sequence):
        if len(gradients) != len(named):
            raise UsageError(f"{len(gradients)} gradients for {len(named)} trainable parameters")
        _assign(named, dict(zip(named, gradients, strict=True)))
        return True
    raise UsageError(
        "gradients has to be None, a sequence or mapping of tensors, a flat tensor of the model's "
        f"{total} elements or a one-element tensor; not {_describe(gradients)}"
    )


def _backward(named: Mapping[str, Tensor], loss: Tensor | float) -> bool:
    if any(p.grad is not None for p in named.values()):
        return False
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        raise UsageError("no parameter has a gradient and the loss has no graph; call loss.backward() before")
    torch.autograd.backward(loss)
    return True


def _assign(named: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
    """Check everything, then set everything."""
    unknown = sorted(set(gradients) - set(named))
    missing = sorted(set(named) - set(gradients))
    if unknown or missing:
        raise UsageError(f"gradients by name: unknown {unknown[:3]}, missing {missing[:3]}")
    for name, parameter in named.items():
        gradient = gradients[name]
        if not isinstance(gradient, Tensor) or gradient.shape != parameter.shape:
            raise UsageError(
                f"the gradient of {name!r} has to be a tensor of shape {tuple(parameter.shape)}, "
                f"not {_describe(gradient)}"
            )
    for name, parameter in named.items():
        parameter.grad = gradients[name].detach().to(parameter.device, parameter.dtype).clone()


def _describe(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
