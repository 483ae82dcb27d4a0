"""K-means on faiss (Douze et al. 2024, arXiv 2401.08281), with scikit-learn's `fit` and `predict`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Self

import faiss  # here and not in `fit`: hybridkit's limit on threads covers the libraries loaded before it
import numpy as np
from annotated_types import Ge
from numpy.typing import ArrayLike, NDArray

from hybridkit.errors import HybridkitError
from hybridkit.options import option


class FaissKMeans:
    """Lloyd's algorithm from random samples as first centroids; float32 throughout."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """Options of `faiss-kmeans`."""

        n_clusters: Annotated[int, Ge(1)] = option(
            8, "number of clusters (fewer where there are fewer samples)"
        )
        max_iter: Annotated[int, Ge(1)] = option(25, "iterations of one start")
        n_init: Annotated[int, Ge(1)] = option(1, "starts, of which the one with least inertia is kept")
        samples_per_cluster: Annotated[int, Ge(1)] = option(
            256, "training samples per cluster; a larger data set is sampled"
        )

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self.n_clusters = self.options.n_clusters
        self.random_state = 0
        self._fitted: Any = None

    def fit(self, features: ArrayLike) -> Self:
        """Find centroids of float [samples, features]: `cluster_centers_`, float32 [clusters, features]."""
        x = _matrix(features)
        self._fitted = faiss.Kmeans(
            x.shape[1],
            min(self.n_clusters, len(x)),
            niter=self.options.max_iter,
            nredo=self.options.n_init,
            seed=self.random_state,
            min_points_per_centroid=1,  # faiss warns on stderr where there are fewer
            max_points_per_centroid=self.options.samples_per_cluster,
        )
        self._fitted.train(x)
        self.cluster_centers_ = self._fitted.centroids
        return self

    def predict(self, features: ArrayLike) -> NDArray[np.int64]:
        """The nearest centroid of each sample, int64 [samples]. Raises HybridkitError before `fit`."""
        if self._fitted is None:
            raise HybridkitError("faiss-kmeans has no centroids yet; call fit first")
        _, nearest = self._fitted.index.search(_matrix(features), 1)
        return np.asarray(nearest[:, 0], np.int64)


def _matrix(features: ArrayLike) -> NDArray[np.float32]:
    return np.ascontiguousarray(features, dtype=np.float32)
