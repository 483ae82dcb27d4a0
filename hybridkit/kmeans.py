"""K-means whose labels do not depend on the number of cores. scikit-learn is imported when it is used."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

STARTS = 10


@contextmanager
def one_thread() -> Iterator[None]:
    """One OpenMP and BLAS thread, and no word about fewer distinct points than clusters."""
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def kmeans_labels(features: NDArray[np.float64], k: int, seed: int) -> NDArray[np.int64]:
    """The cluster, of `k` at most, of each row of float [rows, features]: the best of ten starts.

    Labels go from 0; some may be missing where fewer than `k` rows are distinct.
    """
    from sklearn.cluster import KMeans

    with one_thread():
        fitted = KMeans(min(k, len(features)), n_init=STARTS, random_state=seed).fit(features)
    return np.asarray(fitted.labels_, np.int64)
