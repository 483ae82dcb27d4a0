"""What a base optimizer's recipe is, and the parameter groups that all of them start from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

NamedParameters = Sequence[tuple[str, Tensor]]


class Recipe(Protocol):
    """Builds a `torch.optim.Optimizer` for the parameters of a model.

    A strategy of the kind `optimizer` is a class with this method (and, as all strategies, `Options`), or
    simply any `torch.optim.Optimizer` class.
    """

    def build(
        self, named_parameters: NamedParameters, *, lr: float, weight_decay: float, momentum: float
    ) -> Optimizer:
        """The optimizer. `momentum` is SGD's momentum or Adam's beta1."""
        ...


def decay_groups(named_parameters: Iterable[tuple[str, Tensor]], weight_decay: float) -> list[dict[str, Any]]:
    """At most two parameter groups: matrices with weight decay, and vectors without.

    Vectors (fewer than two dimensions: biases, norm weights, learned quantizer steps) have no scale to
    spare; pulling them to zero changes the function that the network can express.
    """
    parameters = [p for _, p in named_parameters]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]


EMBEDDING_NAMES = "*embed*,*wte*,*wpe*,*token*"
OUTER_NAMES = f"{EMBEDDING_NAMES},*head*,*output*,*classifier*"


def outer_matrices(named_parameters: NamedParameters, patterns: str = OUTER_NAMES) -> set[str]:
    """The names of the matrices (two dimensions or more) between the network and the outside.

    These are embeddings and the output layer: one-hot vectors go in, or logits come out, so that what suits
    hidden matrices does not suit them. A recipe sees names only: those that match one of `patterns`
    (separated by commas), and the last matrix. A number in a name says that the matrix is part of a repeated
    block, as the output of an attention is; it does not count then, unless nothing else does.
    """
    matrices = [name for name, p in named_parameters if p.ndim >= 2]
    alone = [name for name in matrices if not any(part.isdigit() for part in name.split("."))]
    found = {name for name in alone if name == matrices[-1] or _matches(name, patterns)}
    return found or set(matrices[-1:])


def is_embedding(name: str) -> bool:
    """Whether an outer matrix of this name is an embedding; a tied one is both, and counts as one."""
    return _matches(name, EMBEDDING_NAMES)


def _matches(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name.lower(), p.strip().lower()) for p in patterns.split(","))


def fusable(named_parameters: Iterable[tuple[str, Tensor]]) -> bool:
    """Whether torch has a fused kernel for these parameters, several times faster on small models."""
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for _, p in named_parameters)
