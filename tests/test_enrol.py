"""Thresholds, held-out scores and enrolment."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edge_app.enrol import (
    ScorerSettings,
    calibrate,
    fit_scorer,
    folds,
    held_out_scores,
)
from edge_app.errors import InputError
from edge_app.scorer import build_scorer


@pytest.mark.parametrize(("count", "rate"), [(99, 0.01), (500, 0.01), (30, 0.1), (1000, 0.05)])
def test_conformal_threshold_keeps_its_rate(count, rate):
    # The guarantee is on average over draws of the good images: at most the rate, nearly reached.
    rng = np.random.default_rng(count)
    rejected = []
    for _ in range(400):
        threshold = calibrate(rng.gamma(3, size=count), rate)
        rejected.append((rng.gamma(3, size=500) > threshold.value).mean())
        assert "conformal" in threshold.method
    error = 4 * np.std(rejected) / math.sqrt(len(rejected))
    assert np.mean(rejected) <= rate + error
    assert np.mean(rejected) >= rate - 1 / (count + 1) - error


def test_too_few_images_get_a_margin_and_say_what_they_support():
    scores = np.arange(1.0, 21.0)
    threshold = calibrate(scores, 0.01)
    assert threshold.value > 20 and threshold.images == 20
    assert threshold.supported_rate == pytest.approx(1 / 21)
    # By hand: median 10.5, distance to the largest 9.5, times ln 50 / ln 10.5.
    assert threshold.value == pytest.approx(10.5 + 9.5 * math.log(50) / math.log(10.5))
    sentence = threshold.sentence()
    assert "4.76%" in sentence and "needs 99 images" in sentence


def test_the_threshold_is_continuous_where_the_margin_begins():
    scores = np.arange(1.0, 100.0)  # 99 images support 1 % exactly
    assert calibrate(scores, 0.01).value == 99.0
    assert calibrate(scores[:-1], 0.01).value == pytest.approx(98.0, rel=0.02)


def test_folds_hold_neighbours_out_together():
    for count in (2, 7, 20, 21, 105):
        parts = folds(count)
        assert sorted(np.concatenate(parts)) == list(range(count))
        assert all((np.diff(part) == 1).all() for part in parts)
        assert len(parts) == (count if count <= 20 else 10)


def test_held_out_scores_never_see_their_own_image():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 32)).astype(np.float32)
    settings = ScorerSettings("knn", 1)
    held_out = held_out_scores(rows, settings)
    arrays = {"embeddings": rows, **fit_scorer(rows, settings)}
    resubstituted = build_scorer("knn", 1, "none", arrays)
    assert held_out.min() > 1
    assert max(resubstituted.score(row) for row in rows) == 0.0


@pytest.mark.parametrize("kind", ["lof", "knn"])
@pytest.mark.parametrize("scaling", ["none", "l2", "minmax"])
def test_k_plus_one_images_are_enough_and_k_are_not(kind, scaling):
    rng = np.random.default_rng(1)
    rows = rng.random((6, 16)).astype(np.float32)
    settings = ScorerSettings(kind, 5, scaling)
    assert np.isfinite(held_out_scores(rows, settings)).all()
    with pytest.raises(InputError, match="5 good images are too few for 5 neighbours, wanted at"):
        fit_scorer(rows[:5], settings)
