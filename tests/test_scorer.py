"""The scorer against scikit-learn and against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.preprocessing import MinMaxScaler, normalize

from edge_app.enrol import ScorerSettings, fit_scorer
from edge_app.scorer import FEATURE_SCALINGS, build_scorer, principal_axes


def scorer(embeddings, kind="lof", k=5, scaling="none"):
    settings = ScorerSettings(kind, k, scaling)
    arrays = {"embeddings": embeddings, **fit_scorer(embeddings, settings)}
    return build_scorer(kind, k, scaling, arrays)


def rows(rng, count, dim=64, decay=1.0):
    spectrum = np.arange(1, dim + 1) ** -decay
    return (rng.standard_normal((count, dim)) * spectrum).astype(np.float32)


def scaled_by_sklearn(kind, reference, queries):
    reference, queries = reference.astype(np.float64), queries.astype(np.float64)
    if kind == "minmax":
        scaler = MinMaxScaler().fit(reference)
        return scaler.transform(reference), scaler.transform(queries)
    if kind == "l2":
        return normalize(reference), normalize(queries)
    return reference, queries


@pytest.mark.parametrize("scaling", FEATURE_SCALINGS)
@pytest.mark.parametrize("decay", [0.0, 1.0])
@pytest.mark.parametrize(("count", "k"), [(300, 5), (40, 39), (12, 1), (6, 5)])
def test_equals_scikit_learn(scaling, decay, count, k):
    rng = np.random.default_rng(count + k)
    reference, queries = rows(rng, count, decay=decay), rows(rng, 20, decay=decay) * 1.5
    ref64, queries64 = scaled_by_sklearn(scaling, reference, queries)
    lof = LocalOutlierFactor(n_neighbors=k, novelty=True).fit(ref64)
    ours = scorer(reference, "lof", k, scaling)
    got = [ours.score(query) for query in queries]
    np.testing.assert_allclose(got, -lof.score_samples(queries64), rtol=1e-5)
    distances, _ = NearestNeighbors(n_neighbors=k).fit(ref64).kneighbors(queries64)
    ours = scorer(reference, "knn", k, scaling)
    got = [ours.score(query) for query in queries]
    np.testing.assert_allclose(got, distances.mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize("copies", [2, 4])
def test_equals_scikit_learn_with_duplicates(copies):
    # Fewer copies than k: with more, scikit-learn itself warns that densities become infinite.
    rng = np.random.default_rng(copies)
    reference = np.repeat(rows(rng, 60), copies, axis=0)
    queries = np.concatenate([rows(rng, 10), reference[:5]])
    lof = LocalOutlierFactor(n_neighbors=5, novelty=True).fit(reference.astype(np.float64))
    ours = scorer(reference)
    got = [ours.score(query) for query in queries]
    np.testing.assert_allclose(got, -lof.score_samples(queries.astype(np.float64)), rtol=1e-5)


def test_all_rows_equal_gives_a_finite_score_for_the_same_row():
    reference = np.ones((8, 16), np.float32)
    assert scorer(reference).score(reference[0]) == pytest.approx(1.0)
    assert scorer(reference, "knn").score(reference[0]) == 0.0


def test_lof_worked_out_by_hand():
    reference = np.array([[0, 0], [0, 1], [1, 1], [5, 0]], np.float32)
    query = np.array([2.0, 2.0], np.float32)
    # Its two neighbours are (1, 1) at sqrt 2 and (0, 1) at sqrt 5, both beyond those rows' own
    # k-distances sqrt 2 and 1.
    reach_of_query = (math.sqrt(2) + math.sqrt(5)) / 2
    # (1, 1): to (0, 1) at 1, with k-distance 1; to (0, 0) at sqrt 2, with k-distance sqrt 2.
    density_11 = 2 / (1 + math.sqrt(2))
    # (0, 1): to (0, 0) and (1, 1), both at 1, both with k-distance sqrt 2.
    density_01 = 1 / math.sqrt(2)
    want = (density_11 + density_01) / 2 * reach_of_query
    assert scorer(reference, "lof", 2).score(query) == pytest.approx(want, rel=1e-6)


def test_search_is_exact_whatever_the_axes():
    rng = np.random.default_rng(3)
    reference, queries = rows(rng, 500, 96, 0.4), rows(rng, 30, 96, 0.4)
    want = NearestNeighbors(n_neighbors=7).fit(reference.astype(np.float64))
    distances, indices = want.kneighbors(queries.astype(np.float64))
    fitted = fit_scorer(reference, ScorerSettings("knn", 7))
    for most in (1, 8, 96):
        arrays = {"embeddings": reference, **fitted, "axes": principal_axes(reference, most)}
        ours = build_scorer("knn", 7, "none", arrays)
        for query, near, far in zip(queries, indices, distances, strict=True):
            found, measured = ours.neighbours(query)
            assert set(found) == set(near)
            np.testing.assert_allclose(measured, far, rtol=1e-5)


@pytest.mark.parametrize("scaling", FEATURE_SCALINGS)
def test_equals_scikit_learn_where_rows_lie_close_together_far_from_the_middle(scaling):
    rng = np.random.default_rng(9)
    centres = rng.normal(size=(3, 256))

    def clustered(count):
        near = 1e-3 * rng.normal(size=(count, 256))
        return (centres[rng.integers(0, 3, count)] + near).astype(np.float32)

    reference, queries = clustered(400), clustered(20)
    ref64, queries64 = scaled_by_sklearn(scaling, reference, queries)
    lof = LocalOutlierFactor(n_neighbors=5, novelty=True).fit(ref64)
    ours = scorer(reference, "lof", 5, scaling)
    got = [ours.score(query) for query in queries]
    np.testing.assert_allclose(got, -lof.score_samples(queries64), rtol=1e-5)


def test_the_answer_does_not_depend_on_the_frames_before():
    rng = np.random.default_rng(8)
    # Every row twice, so that ties at the k-th neighbour are the rule.
    reference = np.repeat(rows(rng, 200, 96, 0.3), 2, axis=0)
    near, far = reference[7] * 1.01, rows(rng, 1, 96)[0] * 30
    for kind in ("lof", "knn"):
        ours = scorer(reference, kind, 5)
        first = ours.score(near)
        for before in (far, far * 100, reference[0]):
            ours.score(before)
            assert ours.score(near) == first


def test_higher_is_more_anomalous_and_order_is_kept():
    rng = np.random.default_rng(4)
    reference = rows(rng, 200)
    direction = rows(rng, 1)[0]
    for kind in ("lof", "knn"):
        ours = scorer(reference, kind)
        scores = [ours.score(reference.mean(axis=0) + step * direction) for step in (0, 3, 9, 27)]
        assert scores == sorted(scores) and scores[-1] > 2 * scores[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["lof", "knn"])
def test_not_finite_embedding_gives_nan(bad, kind):
    reference = rows(np.random.default_rng(5), 20)
    query = reference[0].copy()
    query[7] = bad
    assert math.isnan(scorer(reference, kind).score(query))


def test_principal_axes_are_orthonormal_even_where_rank_is_missing():
    flat = np.repeat(rows(np.random.default_rng(6), 3, 40), 10, axis=0).astype(np.float64)
    axes = principal_axes(flat, 20)
    assert axes.shape == (20, 40)
    np.testing.assert_allclose(axes @ axes.T, np.eye(20), atol=1e-5)
