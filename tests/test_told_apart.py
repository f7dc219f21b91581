import numpy as np
import pytest

from tools.drawn_defects import KINDS
from tools.self_made import DRAWN_KINDS
from tools.told_apart import MEASURED_KINDS, told_apart

keras = pytest.importorskip("keras", reason="needs the tools extra")


def test_no_kind_is_both_trained_on_and_measured_by():
    assert not set(MEASURED_KINDS) & set(DRAWN_KINDS)
    assert set(MEASURED_KINDS) | set(DRAWN_KINDS) == set(KINDS)


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
    rng = np.random.default_rng(0)
    good = rng.integers(118, 122, (70, 32, 32, 3)).astype(np.uint8)
    seeing, blind = (told_apart(Means(one), good[:50], good[50:], "none", 0) for one in (0, 1))
    assert seeing > 0.9 and abs(blind - 0.5) < 0.15
    assert told_apart(Means(0), good[:50], good[50:], "none", 0) == seeing
