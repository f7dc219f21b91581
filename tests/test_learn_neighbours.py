"""Held-out scores of the pooled scorers."""

from __future__ import annotations

import numpy as np
import pytest

from edge_app.errors import InputError
from edge_app.learn_neighbours import ScorerSettings, fit_scorer, held_out_scores
from edge_app.scorer import build_scorer


def test_held_out_scores_never_see_their_own_image():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 32)).astype(np.float32)
    settings = ScorerSettings("knn", 1)
    held_out = held_out_scores(rows, settings, np.array_split(np.arange(40), 10))
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
    alone = [np.array([row]) for row in range(6)]
    assert np.isfinite(held_out_scores(rows, settings, alone)).all()
    with pytest.raises(InputError, match="5 good images are too few for 5 neighbours, wanted at"):
        fit_scorer(rows[:5], settings)
