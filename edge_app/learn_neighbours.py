"""
Learn the pooled scorer: from embeddings of good pictures to what `NeighbourScorer` compares with.

The only scikit-learn of the device is here, inside the fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_app.errors import InputError
from edge_app.scorer import (
    DENSITY_EPSILON,
    FeatureScaling,
    NeighbourScorer,
    build_scorer,
    principal_axes,
)

# Axes kept for the scorer's bounds. In the frame loop, caches cold from the encoder, 32 to 128 cost
# within a tenth of each other; fewer leave more rows to measure, more leave more to read.
SCORER_AXES = 96


@dataclass(frozen=True)
class ScorerSettings:
    """Which scorer: `kind` 'patches', 'lof' or 'knn'; of the last two `k` and `feature_scaling`."""

    kind: str = "patches"
    k: int = 5
    feature_scaling: str = "minmax"


def refuse_too_few(count: int, settings: ScorerSettings) -> None:
    """Raise `InputError` if so many good images are too few to fit the scorer."""
    if count < settings.k + 1:
        raise InputError(
            f"{count} good images are too few for {settings.k} neighbours, "
            f"wanted at least {settings.k + 1}"
        )


def fit_scorer(embeddings: np.ndarray, settings: ScorerSettings) -> dict[str, np.ndarray]:
    """
    Fit what a `NeighbourScorer` needs.

    Parameters
    ----------
    embeddings : ndarray of float32, shape (n, d)
    settings : ScorerSettings

    Returns
    -------
    dict of str to ndarray
        `axes`, and as the settings ask `scaling_low`, `scaling_span`, `k_distance`, `density`.

    Raises
    ------
    InputError
        If there are fewer than k + 1 embeddings.
    """
    refuse_too_few(len(embeddings), settings)
    scaling = FeatureScaling.learn(settings.feature_scaling, embeddings)
    scaled = scaling.apply(embeddings)
    arrays = {"axes": principal_axes(scaled, SCORER_AXES)}
    if settings.feature_scaling == "minmax":
        arrays |= {"scaling_low": scaling.low, "scaling_span": scaling.span}
    if settings.kind == "lof":
        from sklearn.neighbors import NearestNeighbors

        # The same brute-force search and order of ties as LocalOutlierFactor's own.
        search = NearestNeighbors(n_neighbors=settings.k).fit(scaled)
        distances, neighbours = search.kneighbors()
        k_distance = distances[:, -1]
        reach = np.maximum(distances, k_distance[neighbours])
        arrays |= {
            "k_distance": k_distance,
            "density": 1.0 / (reach.mean(axis=1) + DENSITY_EPSILON),
        }
    return arrays


def learn_scorer(embeddings: np.ndarray, settings: ScorerSettings) -> NeighbourScorer:
    """
    Fit a scorer and build it.

    Parameters
    ----------
    embeddings : ndarray of float32, shape (n, d)
    settings : ScorerSettings

    Raises
    ------
    InputError
        If there are fewer than k + 1 embeddings.
    """
    arrays = {"embeddings": embeddings, **fit_scorer(embeddings, settings)}
    return build_scorer(settings.kind, settings.k, settings.feature_scaling, arrays)


def held_out_scores(
    embeddings: np.ndarray, settings: ScorerSettings, folds: Sequence[np.ndarray]
) -> np.ndarray:
    """
    The score of every good image against the others, itself and its fold left out.

    Returns
    -------
    scores : ndarray of float64, shape (n,)
        Higher is more anomalous.
    """
    nothing = np.empty((0, embeddings.shape[1]), np.float32), np.empty(0, int)
    return held_out_with(embeddings, settings, folds, *nothing)[0]


def held_out_with(
    embeddings: np.ndarray,
    settings: ScorerSettings,
    folds: Sequence[np.ndarray],
    probes: np.ndarray,
    probe_of: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """
    `held_out_scores`, and those of pictures that are held out with a good one.

    Parameters
    ----------
    embeddings : ndarray of float32, shape (n, d)
    settings : ScorerSettings
    folds : sequence of ndarray of int
        Rows that are held out together.
    probes : ndarray of float32, shape (m, d)
    probe_of : ndarray of int, shape (m,)
        The row of the good image that each belongs to.

    Returns
    -------
    scores : ndarray of float64, shape (n,)
    probe_scores : ndarray of float64, shape (m,)
    """
    scores, probe_scores = np.empty(len(embeddings)), np.empty(len(probes))
    for held_out in folds:
        rest = np.delete(embeddings, held_out, axis=0)
        # With only k + 1 images, those left are one too few for k neighbours among themselves.
        k = min(settings.k, len(rest) - 1)
        fold = ScorerSettings(settings.kind, k, settings.feature_scaling)
        scorer = learn_scorer(rest, fold)
        scores[held_out] = [scorer.score(embeddings[row]) for row in held_out]
        for row in np.flatnonzero(np.isin(probe_of, held_out)):
            probe_scores[row] = scorer.score(probes[row])
    return scores, probe_scores
