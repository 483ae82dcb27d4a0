"""K-means on the samples themselves, with torch tensors in and out."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hybridkit.clustering.clusterers import BLOCK, KMeans, fit_labels
from hybridkit.errors import UsageError


class KMeansClustering:
    """K-means with at most `n_clusters` centroids and `max_iter` iterations.

    It stops early when the centroids move by less than `tolerance`, relative to the variance of the data.

    Data are a tensor or an array [samples, ...]; everything after the first dimension is one feature vector.
    The result depends on the data and `seed` alone.
    """

    def __init__(
        self, n_clusters: int = 8, max_iter: int = 100, tolerance: float = 1e-4, seed: int = 0
    ) -> None:
        if n_clusters < 1 or max_iter < 1 or tolerance < 0:
            raise UsageError("k-means needs n_clusters >= 1, max_iter >= 1 and tolerance >= 0")
        self.n_clusters = n_clusters
        self.max_iter = max_iter
        self.tolerance = tolerance
        self.seed = seed
        self.centroids: Tensor | None = None  # float32 [clusters, features]
        self.labels: Tensor | None = None  # int64 [samples], of the data that was fitted
        self.inertia = 0.0  # sum of squared distances to the centroids
        self.iterations = 0

    def fit(self, data: Tensor | ArrayLike) -> Self:
        """Find the centroids of `data`. Raises UsageError if it is empty or not finite."""
        x = _matrix(data)
        if len(x) == 0:
            raise UsageError("k-means needs at least one sample")
        options = KMeans.Options(n_clusters=self.n_clusters, max_iter=self.max_iter, tol=self.tolerance)
        clusterer = KMeans(options)
        self.labels = torch.from_numpy(fit_labels(clusterer, x, self.seed))
        self.centroids = torch.from_numpy(clusterer.cluster_centers_.astype(np.float32))
        self.inertia, self.iterations = clusterer.inertia_, clusterer.n_iter_
        return self

    def predict(self, data: Tensor | ArrayLike) -> Tensor:
        """The nearest centroid of each sample, int64 [samples]. Raises UsageError before `fit`."""
        from sklearn.metrics import pairwise_distances_argmin

        centroids = self._fitted().numpy()
        x = _matrix(data)
        if x.shape[1] != centroids.shape[1]:
            raise UsageError(
                f"samples have {x.shape[1]} features; k-means was fitted on {centroids.shape[1]}"
            )
        blocks = [pairwise_distances_argmin(x[i : i + BLOCK], centroids) for i in range(0, len(x), BLOCK)]
        return torch.from_numpy(np.concatenate(blocks or [np.zeros(0)]).astype(np.int64))

    def get_cluster_info(self) -> dict[str, Any]:
        """`n_clusters`, `cluster_sizes` (of the fitted data), `centroids`, `inertia`, `iterations`."""
        centroids = self._fitted()
        assert self.labels is not None
        sizes = torch.bincount(self.labels, minlength=len(centroids))
        return {
            "n_clusters": len(centroids),
            "cluster_sizes": sizes.tolist(),
            "centroids": centroids,
            "inertia": self.inertia,
            "iterations": self.iterations,
        }

    def _fitted(self) -> Tensor:
        if self.centroids is None:
            raise UsageError("k-means is not fitted yet; call fit(data) first")
        return self.centroids


def _matrix(data: Tensor | ArrayLike) -> NDArray[np.float32]:
    array = data.detach().cpu().numpy() if isinstance(data, Tensor) else np.asarray(data)
    return array.reshape(len(array), math.prod(array.shape[1:])).astype(np.float32)
