"""Clusterers with scikit-learn's estimator protocol, and how any of them labels a data set.

A clusterer has `fit(features)` and `predict(features) -> labels`, and keeps its parameters as attributes
(`n_clusters`, `random_state`), as every scikit-learn estimator does: `sklearn.cluster:Birch` works by its
name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from annotated_types import Ge
from numpy.typing import ArrayLike, NDArray

from hybridkit.errors import UsageError
from hybridkit.kmeans import one_thread
from hybridkit.options import describe_options, option
from hybridkit.registry import registry

FIT_SAMPLES = 20_000  # a larger data set is fitted on a random subset of this size
BLOCK = 8_192  # samples per call of predict

Labels = NDArray[np.int64]


class NoClusters:
    """Every sample is in cluster 0."""

    def fit(self, features: ArrayLike) -> Self:
        """Nothing to learn."""
        return self

    def predict(self, features: ArrayLike) -> Labels:
        """Zeros, int64 [samples]."""
        return np.zeros(len(np.asarray(features)), np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Count:
    n_clusters: Annotated[int, Ge(1)] = option(8, "number of clusters (fewer where there are fewer samples)")


class _Means:
    """What the two k-means of scikit-learn share: `Options`, and an estimator made from them."""

    Options: Any
    estimator: ClassVar[str]  # the class of sklearn.cluster that takes the options by their names

    def __init__(self, options: Any = None) -> None:
        self.options = options or self.Options()
        self.n_clusters: int = self.options.n_clusters
        self.random_state = 0

    def fit(self, features: ArrayLike) -> Self:
        """Find centroids of float [samples, features]; `cluster_centers_` and `inertia_` hold the result."""
        import sklearn.cluster

        x = np.asarray(features)
        settings = {"n_init": 1, **asdict(self.options), "n_clusters": min(self.n_clusters, len(x))}
        estimator = getattr(sklearn.cluster, self.estimator)
        self._fitted = estimator(**settings, random_state=self.random_state).fit(x)
        self.cluster_centers_ = self._fitted.cluster_centers_
        self.inertia_ = float(self._fitted.inertia_)
        self.n_iter_ = int(self._fitted.n_iter_)
        return self

    def predict(self, features: ArrayLike) -> Labels:
        """The nearest centroid of each sample, int64 [samples]."""
        return np.asarray(self._fitted.predict(np.asarray(features)), np.int64)


class KMeans(_Means):
    """Lloyd's algorithm from k-means++ starts (Lloyd 1982; Arthur & Vassilvitskii 2007), by scikit-learn."""

    estimator = "KMeans"

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options(_Count):
        """Options of k-means."""

        max_iter: Annotated[int, Ge(1)] = option(300, "iterations of one start at most")
        tol: Annotated[float, Ge(0)] = option(
            1e-4, "stop when centroids move less, relative to the data's variance"
        )
        n_init: Annotated[int, Ge(1)] = option(1, "starts, of which the one with least inertia is kept")


class MiniBatchKMeans(_Means):
    """Mini-batch k-means (Sculley 2010), by scikit-learn: for data too large for full iterations."""

    estimator = "MiniBatchKMeans"

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options(_Count):
        """Options of mini-batch k-means."""

        max_iter: Annotated[int, Ge(1)] = option(100, "passes over the data at most")
        batch_size: Annotated[int, Ge(1)] = option(1024, "samples per update of the centroids")


def make_clusterer(name: str, n_clusters: int, options: Mapping[str, Any] | None = None) -> Any:
    """The clusterer `name` (registered, or `package.module:Class`), with `n_clusters` if it takes that.

    An `n_clusters` in `options` wins. Raises UsageError for unknown names and options.
    """
    options = dict(options or {})
    if "n_clusters" in describe_options(registry().load("clusterer", name)):
        options.setdefault("n_clusters", n_clusters)
    return registry().create("clusterer", name, options)


def fit_labels(clusterer: Any, features: ArrayLike, seed: int) -> Labels:
    """Fit `clusterer` (in place) to float [samples, features] and label every sample, int64 [samples] from 0.

    Its `random_state`, where it has one, is set to `seed` and its `n_clusters` is cut to the number of
    samples. More than `FIT_SAMPLES` samples are fitted on a random subset of that size, and predicted in
    blocks. All runs under one OpenMP and BLAS thread, so that the labels do not depend on the number of
    cores. A clusterer without `predict` (DBSCAN) labels what it was fitted on; samples it calls noise (-1)
    become one more cluster.

    Raises UsageError where features are not a finite matrix, or are too many for a clusterer without
    `predict`.
    """
    x = np.asarray(features)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise UsageError(
            f"cluster features must be a finite matrix [samples, features]; they are {_describe(x)}"
        )
    if len(x) == 0:
        return np.zeros(0, np.int64)
    can_predict = hasattr(clusterer, "predict")
    if len(x) > FIT_SAMPLES and not can_predict:
        raise UsageError(
            f"{type(clusterer).__name__} cannot label samples it was not fitted on, and only "
            f"{FIT_SAMPLES} of {len(x)} are fitted; take a clusterer with predict, such as kmeans"
        )
    chosen = x if len(x) <= FIT_SAMPLES else x[_subset(len(x), seed)]
    if hasattr(clusterer, "random_state"):
        clusterer.random_state = seed
    if isinstance(getattr(clusterer, "n_clusters", None), int):
        clusterer.n_clusters = min(clusterer.n_clusters, len(chosen))
    with one_thread():  # where clusters stay empty, every caller can bear it
        clusterer.fit(chosen)
        if can_predict:
            blocks = [clusterer.predict(x[i : i + BLOCK]) for i in range(0, len(x), BLOCK)]
            labels = np.concatenate(blocks).astype(np.int64)
        else:
            labels = np.asarray(clusterer.labels_, np.int64)
    return np.where(labels < 0, labels.max() + 1, labels)


def _subset(samples: int, seed: int) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(seed).choice(samples, FIT_SAMPLES, replace=False))


def _describe(x: NDArray[Any]) -> str:
    return f"of shape {list(x.shape)}" if x.ndim != 2 else "partly NaN or infinite"
