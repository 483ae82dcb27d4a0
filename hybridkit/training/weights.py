"""Weights by name into a network: every name and shape checked, nothing silently skipped."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from hybridkit.errors import UsageError
from hybridkit.options import nearest


def fits(model: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of the model's state dict."""
    return set(weights) == set(model.state_dict())


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy `weights` into `model`. Raises UsageError as `check_weights` does."""
    model.load_state_dict(check_weights(model, weights, source))


def check_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """`weights` as a state dict of `model`, which may be on the meta device.

    Raises UsageError where a name is missing or left over, or a shape or kind of number differs.
    """
    own = model.state_dict(keep_vars=True)
    weights = _with_tied(own, weights)
    missing = sorted(set(own) - set(weights))
    extra = sorted(set(weights) - set(own))
    if missing:
        where = (
            f"{len(missing)} of the model's tensors, such as {missing[0]!r}"
            if missing[1:]
            else repr(missing[0])
        )
        hint = nearest(missing[0], extra) if extra else "is it the same model?"
        raise UsageError(f"{source}: lacks {where}; {hint}")
    if extra:
        raise UsageError(
            f"{source}: has a tensor {extra[0]!r} that the model has not; {nearest(extra[0], own)}"
        )
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            raise UsageError(
                f"{source}: {name} is {list(tensor.shape)}, the model's is {list(own[name].shape)}"
            )
        if _kind(tensor) != _kind(own[name]):
            raise UsageError(f"{source}: {name} is {tensor.dtype}, the model's is {own[name].dtype}")
    return weights


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _with_tied(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights`, completed where a missing name is tied to one that is there (files may store those once)."""
    complete = dict(weights)
    by_place = {_place(own[name]): name for name in own if name in weights and own[name].numel()}
    for name, tensor in own.items():
        if name not in complete and _place(tensor) in by_place:
            complete[name] = weights[by_place[_place(tensor)]]
    return complete


def _place(tensor: Tensor) -> int:
    """What tensors that share their content have in common; on the meta device that is the object itself."""
    return id(tensor) if tensor.is_meta else tensor.data_ptr()
