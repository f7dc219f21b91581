"""Drawn defects: real changes under an honest mask, the same from the same seed."""

import numpy as np
import pytest

from tools.drawn_defects import KINDS, SMALLEST_CHANGE, draw_defect


@pytest.fixture(scope="module")
def picture():
    """A bright, grained disk on a dark ground, 64 x 96."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[0:64, 0:96]
    grey = np.where((y - 32) ** 2 + (x - 48) ** 2 < 24**2, 170.0, 60.0)
    coloured = grey[..., None] * (1.0, 0.9, 0.8) + rng.normal(0, 8, (64, 96, 3))
    return np.clip(coloured, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_mask_covers_what_changed_and_little_else(picture, kind):
    before = picture.copy()
    rng = np.random.default_rng(1)
    for _ in range(15):
        drawn, mask = draw_defect(picture, rng, (kind,))
        change = np.abs(drawn.astype(int) - picture).max(axis=2)
        assert drawn.shape == picture.shape and drawn.dtype == np.uint8
        assert mask.shape == picture.shape[:2] and mask.dtype == bool and mask.any()
        assert change[~mask].max(initial=0) < SMALLEST_CHANGE
        assert (change[mask] >= SMALLEST_CHANGE).mean() > 0.3
    np.testing.assert_array_equal(picture, before)


def test_sizes_span_from_spots_to_the_whole_part(picture):
    rng = np.random.default_rng(2)
    shares = [draw_defect(picture, rng)[1].mean() for _ in range(300)]
    assert min(shares) < 0.005
    assert max(shares) > 0.4
    assert 0.01 < np.median(shares) < 0.2


def test_same_seed_same_defect(picture):
    first = draw_defect(picture, np.random.default_rng(3))
    again = draw_defect(picture, np.random.default_rng(3))
    other = draw_defect(picture, np.random.default_rng(4))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).any()


def test_grey_picture_gets_grey_defects(picture):
    grey = np.repeat(picture[..., :1], 3, axis=2)
    rng = np.random.default_rng(6)
    for _ in range(60):
        drawn, _ = draw_defect(grey, rng)
        assert (drawn == drawn[..., :1]).all()


@pytest.mark.parametrize("level", [0, 128, 255])
def test_plain_picture_still_gets_a_visible_defect(level):
    plain = np.full((32, 32, 3), level, np.uint8)
    # A blurred plain surface looks the same: only the last resort can show.
    drawn, mask = draw_defect(plain, np.random.default_rng(0), ("blur",))
    assert mask.any()
    assert np.abs(drawn.astype(int) - plain)[mask].min() >= 100


@pytest.mark.parametrize(
    ("shape", "dtype", "kinds"),
    [
        ((32, 32), np.uint8, KINDS),
        ((32, 32, 3), np.float32, KINDS),
        ((8, 32, 3), np.uint8, KINDS),
        ((32, 32, 3), np.uint8, ("dent",)),
        ((32, 32, 3), np.uint8, ()),
    ],
)
def test_wrong_arguments_are_refused(shape, dtype, kinds):
    with pytest.raises(ValueError, match="picture must be|unknown kinds"):
        draw_defect(np.zeros(shape, dtype), np.random.default_rng(0), kinds)
