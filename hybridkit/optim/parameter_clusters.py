"""K-means clusters of the parameters: layers that look alike share a learning rate and a radius."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hybridkit.errors import UsageError
from hybridkit.kmeans import kmeans_labels, one_thread

Named = Sequence[tuple[str, Tensor]]


def cluster_parameters(
    named_parameters: Iterable[tuple[str, Tensor]], k: int = 4, seed: int = 0
) -> dict[Tensor, int]:
    """The cluster of each parameter, in the order given; all parameters of a layer share one.

    K-means over the statistics of each layer (see `layer_statistics`), standardised, with min(k, layers)
    clusters. The labels depend on the parameters' names, shapes and values and on `seed` alone; clusters
    are numbered in order of appearance.

    Raises:
        UsageError: if k < 1.
    """
    if k < 1:
        raise UsageError(f"the number of parameter clusters has to be at least 1, not {k}")
    named = list(named_parameters)
    layers = layers_of(named)
    labels = _kmeans(layer_statistics(list(layers.values())), k, seed)
    of_layer = dict(zip(layers, labels, strict=True))
    return {p: of_layer[layer] for layer, members in layers.items() for _, p in members}


def layers_of(named: Named) -> dict[str, list[tuple[str, Tensor]]]:
    """The parameters of each layer, by the layer's name, in order of appearance.

    A layer is the module that holds the parameter; what lies deeper inside a module that holds a matrix
    (learned quantizer steps, say) belongs to that module.
    """
    owners = {_parent(name) for name, p in named if p.ndim >= 2}
    layers: dict[str, list[tuple[str, Tensor]]] = {}
    for name, parameter in named:
        layer = _parent(name)
        inside = [o for o in owners if o and layer.startswith(o + ".")]
        layers.setdefault(max(inside, key=len, default=layer), []).append((name, parameter))
    return layers


def layer_statistics(layers: Sequence[Named]) -> NDArray[np.float64]:
    """Six numbers per layer, [layers, 6], not yet standardised.

    From the layer's largest parameter: log of its root mean square, log of its size, log of fan-out over
    fan-in, number of dimensions, log of its largest magnitude over the root mean square; and the
    layer's depth in [0, 1]. A vector counts as fan-in 1.
    """
    rows = []
    for place, members in enumerate(layers):
        weight = max((p for _, p in members), key=lambda p: p.numel()).detach().float()
        size = max(weight.numel(), 1)
        rms = weight.norm().item() / math.sqrt(size)
        peak = weight.abs().max().item() if weight.numel() else 0.0
        fan_out = max(weight.shape[0], 1) if weight.ndim else 1
        rows.append(
            (
                math.log(max(rms, 1e-12)),
                math.log(size),
                math.log(fan_out**2 / size),
                float(weight.ndim),
                math.log(max(peak, 1e-12) / max(rms, 1e-12)),
                place / max(len(layers) - 1, 1),
            )
        )
    return np.array(rows, dtype=np.float64).reshape(-1, 6)


def _kmeans(features: NDArray[np.float64], k: int, seed: int) -> list[int]:
    if min(k, len(features)) <= 1:
        return [0] * len(features)
    from sklearn.preprocessing import StandardScaler

    with one_thread():
        scaled = StandardScaler().fit_transform(features)
    found = kmeans_labels(scaled, k, seed).tolist()
    order = list(dict.fromkeys(found))
    return [order.index(label) for label in found]


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
