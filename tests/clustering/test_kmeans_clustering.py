from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit import KMeansClustering
from hybridkit.errors import UsageError


def reference_nearest(x, centroids):
    return ((x[:, None, :] - centroids[None]) ** 2).sum(-1).argmin(1)


@settings(max_examples=25, deadline=None)
@given(
    samples=st.integers(1, 40), width=st.integers(1, 6), clusters=st.integers(1, 12), seed=st.integers(0, 99)
)
def test_prediction_is_the_nearest_centroid(samples, width, clusters, seed):
    x = torch.randn(samples, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    kmeans = KMeansClustering(n_clusters=clusters).fit(x)
    info = kmeans.get_cluster_info()
    assert info["n_clusters"] == min(clusters, samples)
    assert sum(info["cluster_sizes"]) == samples
    labels = kmeans.predict(x)
    assert labels.dtype == torch.int64
    distance = ((x[:, None] - info["centroids"][None]) ** 2).sum(-1)
    best = distance.gather(1, reference_nearest(x, info["centroids"])[:, None])
    torch.testing.assert_close(distance.gather(1, labels[:, None]), best, atol=1e-4, rtol=1e-4)


def test_inertia_is_the_sum_of_squared_distances():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    kmeans = KMeansClustering(n_clusters=4).fit(x)
    info = kmeans.get_cluster_info()
    expected = ((x - info["centroids"][kmeans.predict(x)]) ** 2).sum()
    assert info["inertia"] == pytest.approx(float(expected), rel=1e-4)
    assert info["iterations"] >= 1


def test_images_are_flattened_and_results_repeat():
    images = torch.rand(30, 2, 3, 3, generator=torch.Generator().manual_seed(2))
    first = KMeansClustering(n_clusters=3).fit(images).predict(images)
    second = KMeansClustering(n_clusters=3).fit(images.numpy()).predict(images)
    assert torch.equal(first, second)
    assert KMeansClustering(n_clusters=3).fit(images).predict(images[:0]).shape == (0,)


def test_misuse_is_a_usage_error():
    with pytest.raises(UsageError, match="not fitted"):
        KMeansClustering().predict(torch.zeros(2, 2))
    with pytest.raises(UsageError, match="not fitted"):
        KMeansClustering().get_cluster_info()
    with pytest.raises(UsageError, match="at least one sample"):
        KMeansClustering().fit(torch.zeros(0, 2))
    with pytest.raises(UsageError, match="3 features"):
        KMeansClustering().fit(torch.rand(9, 2)).predict(torch.zeros(1, 3))
    with pytest.raises(UsageError):
        KMeansClustering(n_clusters=0)
