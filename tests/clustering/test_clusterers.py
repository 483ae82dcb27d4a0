from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from hybridkit.clustering import clusterers
from hybridkit.clustering.clusterers import KMeans, MiniBatchKMeans, NoClusters, fit_labels, make_clusterer
from hybridkit.errors import UsageError


@pytest.fixture(scope="module")
def blobs():
    random = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 10]], np.float32)
    truth = np.repeat(np.arange(3), 40)
    return (centres[truth] + random.normal(0, 0.5, (120, 2))).astype(np.float32), truth


def same_partition(a, b):
    pairs = set(zip(a.tolist(), b.tolist(), strict=True))
    return len(pairs) == len(set(a.tolist())) == len(set(b.tolist()))


@pytest.mark.parametrize(
    "name", ["kmeans", "minibatch-kmeans", "sklearn.cluster:Birch", "sklearn.cluster:AgglomerativeClustering"]
)
def test_clusterers_find_separate_blobs(blobs, name):
    features, truth = blobs
    labels = fit_labels(make_clusterer(name, 3), features, seed=0)
    assert labels.dtype == np.int64
    assert same_partition(labels, truth)


def test_none_is_one_cluster(blobs):
    labels = fit_labels(make_clusterer("none", 8), blobs[0], seed=0)
    assert labels.tolist() == [0] * 120
    assert isinstance(make_clusterer("none", 8), NoClusters)


def test_options_reach_the_clusterer_and_win_over_the_number_of_clusters():
    assert make_clusterer("kmeans", 8).n_clusters == 8
    assert make_clusterer("kmeans", 8, {"n_clusters": "3", "n_init": "2"}).options.n_init == 2
    assert make_clusterer("kmeans", 8, {"n_clusters": "3"}).n_clusters == 3
    with pytest.raises(UsageError, match="did you mean 'n_init'"):
        make_clusterer("kmeans", 8, {"n_int": 2})
    with pytest.raises(UsageError):
        make_clusterer("kmeans", 8, {"n_clusters": 0})


def test_the_same_seed_gives_the_same_labels(blobs):
    features, _ = blobs
    for make in (KMeans, MiniBatchKMeans):
        first, second = fit_labels(make(), features, seed=5), fit_labels(make(), features, seed=5)
        np.testing.assert_array_equal(first, second)


def test_the_seed_reaches_the_clusterer(blobs):
    clusterer = KMeans()
    fit_labels(clusterer, blobs[0], seed=17)
    assert clusterer._fitted.random_state == 17


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("kmeans", 1),
        ("kmeans", 5),
        ("minibatch-kmeans", 1),
        ("minibatch-kmeans", 5),
        ("sklearn.cluster:Birch", 2),
    ],
)
def test_more_clusters_than_samples(name, samples):
    features = np.arange(samples * 2, dtype=np.float32).reshape(samples, 2) ** 2
    labels = fit_labels(make_clusterer(name, 8), features, seed=0)
    assert len(labels) == samples
    assert labels.max() < samples


def test_equal_points_and_no_points():
    assert set(fit_labels(KMeans(), np.ones((20, 3)), seed=0)) <= set(range(8))
    assert fit_labels(KMeans(), np.zeros((0, 3)), seed=0).shape == (0,)


def test_large_data_are_fitted_on_a_subset_and_predicted_in_blocks(blobs, monkeypatch):
    features, truth = blobs
    monkeypatch.setattr(clusterers, "FIT_SAMPLES", 50)
    monkeypatch.setattr(clusterers, "BLOCK", 7)
    sizes: list[int] = []

    class Spy(KMeans):
        def fit(self, features):
            sizes.append(len(features))
            return super().fit(features)

        def predict(self, features):
            sizes.append(len(features))
            return super().predict(features)

    labels = fit_labels(Spy(KMeans.Options(n_clusters=3)), features, seed=1)
    assert same_partition(labels, truth)
    assert sizes[0] == 50
    assert max(sizes[1:]) == 7
    with pytest.raises(UsageError, match="cannot label samples"):
        fit_labels(make_clusterer("sklearn.cluster:DBSCAN", 3), features, seed=1)


def test_noise_becomes_a_cluster(blobs):
    features = np.concatenate([blobs[0], [[100.0, 100.0]]])
    labels = fit_labels(make_clusterer("sklearn.cluster:DBSCAN", 8, {"eps": 3.0}), features, seed=0)
    assert set(labels.tolist()) == {0, 1, 2, 3}
    assert labels[-1] == 3


def test_fitting_runs_under_one_thread(blobs):
    seen: list[int] = []

    class Spy(NoClusters):
        def fit(self, features):
            seen.extend(pool["num_threads"] for pool in threadpool_info())
            return self

    fit_labels(KMeans(), blobs[0], seed=0)  # loads the pools
    fit_labels(Spy(), blobs[0], seed=0)
    assert set(seen) == {1}


@pytest.mark.parametrize("features", [np.zeros(5), np.full((3, 2), np.nan), np.zeros((2, 2, 2))])
def test_bad_features_are_a_usage_error(features):
    with pytest.raises(UsageError, match="cluster features must be"):
        fit_labels(KMeans(), features, seed=0)
