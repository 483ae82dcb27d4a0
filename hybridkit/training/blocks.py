"""The repeated blocks of a network, which are checkpointed, and sharded, one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hybridkit.errors import UsageError
from hybridkit.precision import computed_again


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The outermost modules with parts of their own that a list or sequence holds two or more of, by type."""
    return list(_repeated(model))


def _repeated(module: nn.Module) -> Iterator[nn.Module]:
    children = list(module.children())
    holds = isinstance(module, nn.ModuleList | nn.Sequential)
    kinds = Counter(type(child) for child in children if any(True for _ in child.children()))
    for child in children:
        if holds and kinds[type(child)] > 1:
            yield child
        else:
            yield from _repeated(child)


def checkpoint_activations_(model: nn.Module) -> None:
    """Have the blocks of `model` keep their inputs alone for the backward pass, and compute again (in place).

    Chen et al. 2016, arXiv 1604.06174. The loss and gradients keep their bits: random states are put back for
    the second computation. Networks of transformers do it their own way. Parameters and state dict stay.
    Raises UsageError where there are no repeated blocks.
    """
    own = [m for m in model.modules() if getattr(m, "supports_gradient_checkpointing", False)]
    if own:
        # "activation" since transformers 5.22, "gradient" before
        enable: Any = getattr(own[0], "activation_checkpointing_enable", own[0].gradient_checkpointing_enable)
        enable({"use_reentrant": False, "context_fn": computed_again})
        return
    blocks = repeated_blocks(model)
    if not blocks:
        raise UsageError("--checkpoint-activations: this network has no blocks that repeat; leave it out")
    for block in blocks:
        block.forward = partial(_checkpointed, block.forward)


def _checkpointed(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=computed_again, **kwargs)
