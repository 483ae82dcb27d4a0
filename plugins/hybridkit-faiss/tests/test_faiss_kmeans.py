from __future__ import annotations

import numpy as np
import pytest
from hybridkit_faiss.clusterer import FaissKMeans

from hybridkit.errors import HybridkitError
from hybridkit.registry import registry
from hybridkit.testing import ClustererContract
from hybridkit.testing.clusterer import blobs


class TestFaissKMeans(ClustererContract):
    def make(self):
        return FaissKMeans(FaissKMeans.Options(n_clusters=3))


class TestMoreClustersThanBlobs(ClustererContract):
    def make(self):
        return FaissKMeans()


def test_is_registered():
    assert registry().load("clusterer", "faiss-kmeans") is FaissKMeans


def test_finds_separated_clouds():
    features = blobs(90, 4)
    labels = FaissKMeans(FaissKMeans.Options(n_clusters=3, n_init=3)).fit(features).predict(features)
    for cloud in range(3):
        assert len(set(labels[cloud::3].tolist())) == 1
    assert len(set(labels.tolist())) == 3


def test_accepts_float64_and_unordered_memory():
    features = np.asfortranarray(blobs(60, 4).astype(np.float64))
    assert FaissKMeans().fit(features).predict(features[::2]).shape == (30,)


def test_predict_before_fit():
    with pytest.raises(HybridkitError, match="call fit first"):
        FaissKMeans().predict(blobs(3, 2))
