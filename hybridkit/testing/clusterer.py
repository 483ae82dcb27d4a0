"""What every clusterer promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hybridkit.clustering.clusterers import fit_labels


class ClustererContract(ABC):
    """`make` returns a new, unfitted clusterer: an object with scikit-learn's `fit` and `predict`."""

    @abstractmethod
    def make(self) -> Any:
        """A new clusterer."""

    @pytest.mark.parametrize("shape", [(200, 5), (60, 1), (9, 3), (1, 2)])
    def test_labels_every_sample(self, shape: tuple[int, int]) -> None:
        labels = fit_labels(self.make(), blobs(*shape), seed=0)
        assert labels.shape == (shape[0],)
        assert labels.dtype == np.int64
        assert labels.min() >= 0
        limit = getattr(self.make(), "n_clusters", None)
        if isinstance(limit, int):
            assert labels.max() < limit

    def test_is_deterministic_under_a_seed(self) -> None:
        features = blobs(150, 4)
        first, second = (fit_labels(self.make(), features, seed=3) for _ in range(2))
        assert np.array_equal(first, second)

    def test_a_second_fit_forgets_the_first(self) -> None:
        clusterer = self.make()
        fit_labels(clusterer, blobs(80, 4) * 100 + 7, seed=1)
        again = fit_labels(clusterer, blobs(150, 4), seed=3)
        assert np.array_equal(again, fit_labels(self.make(), blobs(150, 4), seed=3))

    def test_predict_agrees_with_itself_sample_by_sample(self) -> None:
        features = blobs(120, 4)
        clusterer = self.make()
        labels = fit_labels(clusterer, features, seed=0)
        one_by_one = np.concatenate([clusterer.predict(features[i : i + 1]) for i in range(0, 120, 10)])
        assert np.array_equal(one_by_one, labels[::10])

    def test_identical_samples_are_fine(self) -> None:
        labels = fit_labels(self.make(), np.ones((30, 3), np.float32), seed=0)
        assert len(set(labels.tolist())) == 1

    def test_leaves_the_features_alone(self) -> None:
        features = blobs(50, 4)
        before = features.copy()
        fit_labels(self.make(), features, seed=0)
        assert np.array_equal(features, before)


def blobs(samples: int, features: int) -> NDArray[np.float32]:
    """Three well separated clouds, float32 [samples, features], the same at each call."""
    random = np.random.default_rng(0)
    centres = np.array([-8.0, 0.0, 8.0])[np.arange(samples) % 3, None]
    return (centres + random.normal(size=(samples, features))).astype(np.float32)
