import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tools.drawn_defects import KINDS
from tools.self_made import DRAWN_KINDS
from tools.told_apart import DRAWINGS, MEASURED_KINDS, Scores, drawn_scores, gain


def test_no_kind_is_both_trained_on_and_measured_by():
    assert set(MEASURED_KINDS) <= set(KINDS) - set(DRAWN_KINDS)


class Means:
    """Stands for an encoder: the embedding is the picture in 4 x 4 cells, or nothing at all."""

    input_shape = (None, 32, 32, 3)

    def __init__(self, blind):
        self.blind = blind

    def predict(self, pictures, verbose):
        cells = pictures.reshape(-1, 4, 8, 4, 8, 3).mean(axis=(2, 4)).reshape(len(pictures), -1)
        noise = np.random.default_rng(0).normal(size=cells.shape)
        return [(noise if self.blind else cells).astype(np.float32)]


def test_an_encoder_that_sees_tells_defects_and_a_blind_one_does_not():
    ramp = np.linspace(60, 180, 32)
    good = np.random.default_rng(0).normal(ramp[:, None, None], 1.0, (90, 32, 32, 3))
    good = np.clip(good, 0, 255).astype(np.uint8)
    seeing, blind = (drawn_scores(Means(one), good[:50], good[50:], "none", 0) for one in (0, 1))
    assert seeing.drawn.shape == (40, DRAWINGS)
    assert seeing.auroc > 0.8 and abs(blind.auroc - 0.5) < 0.15
    assert drawn_scores(Means(0), good[:50], good[50:], "none", 0).auroc == seeing.auroc
    low, high = gain(blind, seeing, 0)
    assert 0 < low < seeing.auroc - blind.auroc < high
    low, high = gain(seeing, seeing, 0)
    assert low == high == 0


def test_auroc_equals_scikit_learns_with_ties():
    rng = np.random.default_rng(1)
    scores = Scores(rng.integers(0, 5, 30).astype(float), rng.integers(2, 8, (30, 4)).astype(float))
    both = np.concatenate([scores.good, scores.drawn.ravel()])
    wanted = roc_auc_score([0] * 30 + [1] * 120, both)
    assert scores.auroc == pytest.approx(wanted, abs=1e-12)
