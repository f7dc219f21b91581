"""
How well an embedding tells drawn defects from good parts, without one real defect.

What a training of the encoder is for; its losses only stand in for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edge_app.learn_neighbours import ScorerSettings, learn_scorer
from edge_app.preprocess import shrink
from tools.drawn_defects import draw_defect
from tools.network import network_input

if TYPE_CHECKING:
    import keras

# Kinds that no training shows and that are not drawn with the strokes of those: what an encoder was
# trained on, it tells apart in any case.
MEASURED_KINDS = ("blur", "warp", "foreign")
# More would take longer than a tenth of a training.
MOST_GOOD, MOST_HELD, DRAWINGS = 300, 60, 4
RESAMPLES = 1000
# Below so many held-out pictures the interval of a gain is too wide to mean anything.
FEWEST_HELD = 30


class Scores(NamedTuple):
    """
    Scores of held-out good pictures and of the defects drawn on them; higher is more anomalous.

    Attributes
    ----------
    good : ndarray of float64, shape (n,)
    drawn : ndarray of float64, shape (n, DRAWINGS)
    """

    good: np.ndarray
    drawn: np.ndarray

    @property
    def auroc(self) -> float:
        """Of the drawn defects against the pictures, 0 to 1."""
        return _auroc(self.good, self.drawn)


def gain(before: Scores, after: Scores, seed: int) -> tuple[float, float]:
    """
    Where the gain in AUROC lies, by a paired bootstrap over the held-out pictures.

    Parameters
    ----------
    before, after : Scores
        Of the same pictures with the same drawings.
    seed : int
        Of the resampling.

    Returns
    -------
    low, high : float
        95 % interval of after - before.
    """
    rng = np.random.default_rng(seed)
    count = len(before.good)
    gains = []
    for _ in range(RESAMPLES):
        rows = rng.integers(count, size=count)
        one, other = (_auroc(scores.good[rows], scores.drawn[rows]) for scores in (before, after))
        gains.append(other - one)
    low, high = np.quantile(gains, (0.025, 0.975))
    return float(low), float(high)


def _auroc(good: np.ndarray, drawn: np.ndarray) -> float:
    # Mann and Whitney's count; a thousand calls of scikit-learn's would take seconds.
    ordered = np.sort(good)
    below = np.searchsorted(ordered, drawn, side="left").mean()
    below_or_equal = np.searchsorted(ordered, drawn, side="right").mean()
    return float((below + below_or_equal) / 2 / len(good))


def drawn_scores(
    encoder: keras.Model,
    good_rgb: Sequence[np.ndarray],
    held_rgb: Sequence[np.ndarray],
    feature_scaling: str,
    seed: int,
) -> Scores:
    """
    Score held-out good pictures and defects drawn on them by kNN over pooled embeddings, k = 5.

    Parameters
    ----------
    encoder : keras.Model
        As from `tools.network.build_encoder`.
    good_rgb, held_rgb : sequence of ndarray
        uint8 RGB (H, W, 3) of one size, the one what is stored, the other what is scored: no
        picture in both.
    feature_scaling : str
        One of `edge_app.scorer.FEATURE_SCALINGS`.
    seed : int
        Of the drawn defects.

    Returns
    -------
    Scores
    """
    rng = np.random.default_rng(seed)
    size = tuple(encoder.input_shape[1:3])
    rows = rng.permutation(len(good_rgb))[:MOST_GOOD]
    stored = np.stack([shrink(good_rgb[row], size) for row in rows])
    held = np.stack([shrink(one, size) for one in held_rgb[:MOST_HELD]])
    drawings = [one for one in held for _ in range(DRAWINGS)]
    drawn = np.stack([draw_defect(one, rng, MEASURED_KINDS)[0] for one in drawings])
    embeddings = encoder.predict(network_input(np.concatenate([stored, held, drawn])), verbose=0)[0]
    scorer = learn_scorer(embeddings[: len(stored)], ScorerSettings("knn", 5, feature_scaling))
    scores = np.array([scorer.score(row) for row in embeddings[len(stored) :]])
    return Scores(scores[: len(held)], scores[len(held) :].reshape(len(held), DRAWINGS))
