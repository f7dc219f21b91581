"""
How well an embedding tells drawn defects from good parts, without one real defect.

What a training of the encoder is for; its losses only stand in for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edge_app.learn_neighbours import ScorerSettings, fit_scorer
from edge_app.preprocess import shrink
from edge_app.scorer import build_scorer
from tools.drawn_defects import KINDS, draw_defect
from tools.encoder_training import scaled
from tools.metrics import image_auroc
from tools.self_made import DRAWN_KINDS

if TYPE_CHECKING:
    import keras

# Kinds that no training shows: what an encoder was trained on, it tells apart in any case.
MEASURED_KINDS = tuple(kind for kind in KINDS if kind not in DRAWN_KINDS)
# Enough for a standard error of about 0.02; more would take longer than a tenth of a training.
MOST_GOOD, MOST_HELD, DRAWINGS = 300, 60, 4


def told_apart(
    encoder: keras.Model,
    good_rgb: Sequence[np.ndarray],
    held_rgb: Sequence[np.ndarray],
    feature_scaling: str,
    seed: int,
) -> float:
    """
    AUROC of drawn defects against the held-out good pictures they were drawn on.

    Parameters
    ----------
    encoder : keras.Model
        As from `tools.network.build_encoder`.
    good_rgb : sequence of ndarray
        uint8 RGB (H, W, 3), any sizes: what is stored.
    held_rgb : sequence of ndarray
        uint8 RGB of the encoder's input size.
    feature_scaling : str
        One of `edge_app.scorer.FEATURE_SCALINGS`.
    seed : int
        Of the drawn defects.

    Returns
    -------
    float
        0 to 1, by kNN with k = 5 over pooled embeddings.
    """
    rng = np.random.default_rng(seed)
    size = tuple(encoder.input_shape[1:3])
    rows = rng.permutation(len(good_rgb))[:MOST_GOOD]
    stored = np.stack([shrink(good_rgb[row], size) for row in rows])
    held = np.stack(held_rgb[:MOST_HELD])
    drawn = np.stack(
        [draw_defect(one, rng, MEASURED_KINDS)[0] for one in held for _ in range(DRAWINGS)]
    )
    embeddings = encoder.predict(scaled(np.concatenate([stored, held, drawn])), verbose=0)[0]
    settings = ScorerSettings("knn", 5, feature_scaling)
    references = embeddings[: len(stored)]
    arrays = {"embeddings": references, **fit_scorer(references, settings)}
    scorer = build_scorer(settings.kind, settings.k, settings.feature_scaling, arrays)
    scores = [scorer.score(row) for row in embeddings[len(stored) :]]
    return image_auroc(scores, [False] * len(held) + [True] * len(drawn))
