"""Near-duplicates, folds, thresholds and suspicious pictures from held-out scores."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from edge_app.errors import InputError
from edge_app.held_out import (
    THUMBNAIL_SIDE,
    Threshold,
    blinding,
    calibrate,
    false_reject_interval,
    far_beyond,
    folds,
    least_like,
    near_duplicate_groups,
    thumbnail,
)

SIDE = 128


def _texture(rng: np.random.Generator, strength: float, reach: float = 2.0) -> np.ndarray:
    grain = rng.standard_normal((SIDE, SIDE)).astype(np.float32)
    return strength * 2 * reach * cv2.GaussianBlur(grain, (0, 0), reach)


def _shot(part: np.ndarray, rng: np.random.Generator, light: float = 1.0) -> np.ndarray:
    """A thumbnail of a part under this light, with a camera's noise."""
    frame = part * light + rng.normal(0, 4, part.shape)
    return thumbnail(np.repeat(np.clip(frame, 0, 255).astype(np.uint8)[..., None], 3, axis=2))


def _parts(count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Parts in one pose: the same drawing, each with its own fine grain."""
    drawing = 128 + _texture(rng, 50, reach=4)
    return [drawing + _texture(rng, 8) for _ in range(count)]


def test_a_thumbnail_is_deaf_to_light_and_contrast():
    rng = np.random.default_rng(0)
    part = np.clip(128 + _texture(rng, 15), 60, 190)
    pixels = [np.repeat(p.astype(np.uint8)[..., None], 3, 2) for p in (part, 0.5 * part + 90)]
    first, second = map(thumbnail, pixels)
    assert first.shape == (THUMBNAIL_SIDE, THUMBNAIL_SIDE) and first.dtype == np.float32
    assert float((first * first).sum()) == pytest.approx(1, abs=1e-5)
    assert float((first * second).sum()) > 0.97
    assert not thumbnail(np.full((40, 40, 3), 77, np.uint8)).any()


@pytest.mark.parametrize(("parts", "frames"), [(3, 12), (10, 6), (25, 3)])
def test_frames_of_parts_at_rest_are_one_group_a_part(parts, frames):
    rng = np.random.default_rng(parts)
    shots = [_shot(part, rng) for part in _parts(parts, rng) for _ in range(frames)]
    groups = near_duplicate_groups(np.stack(shots))
    assert np.array_equal(groups, np.repeat(np.arange(parts), frames))


def test_exposures_of_a_part_far_apart_in_the_sequence_are_found():
    rng = np.random.default_rng(4)
    parts = _parts(30, rng)
    shots = [_shot(part, rng, light) for light in (0.6, 0.85, 1.1) for part in parts]
    assert np.array_equal(near_duplicate_groups(np.stack(shots)), np.tile(np.arange(30), 3))


def test_one_burst_among_single_pictures_is_found():
    rng = np.random.default_rng(5)
    parts = _parts(40, rng)
    shots = [_shot(part, rng) for part in parts] + [_shot(parts[7], rng) for _ in range(5)]
    groups = near_duplicate_groups(np.stack(shots))
    assert groups.max() == 39 and (groups[40:] == 7).all()


@pytest.mark.parametrize("count", [1, 3, 7, 8, 30, 80])
def test_pictures_that_all_resemble_each_other_are_no_duplicates(count):
    rng = np.random.default_rng(count)
    (part,) = _parts(1, rng)
    copies, flawed = [], []
    for _ in range(count):
        copies.append(_shot(part, rng))
        spoilt = part.copy()
        x, y = (int(place) for place in rng.integers(10, SIDE - 10, 2))
        cv2.circle(spoilt, (x, y), int(rng.integers(3, 8)), float(rng.integers(0, 255)), -1)
        flawed.append(_shot(spoilt, rng))
    for thumbnails in (np.stack(copies), np.stack(copies[:1] * count), _posed(count, rng)):
        assert np.array_equal(near_duplicate_groups(thumbnails), np.arange(count))
    thumbnails = np.stack(flawed)
    assert np.einsum("nij,mij->nm", thumbnails, thumbnails).min() > 0.6
    # Two whose flaw hardly shows may be taken for one.
    assert near_duplicate_groups(thumbnails).max() + 1 >= count - 1


def _posed(count: int, rng: np.random.Generator) -> np.ndarray:
    return np.stack([_shot(part, rng) for part in _parts(count, rng)])


def test_variants_of_a_product_are_no_duplicates():
    rng = np.random.default_rng(6)
    drawings = [128 + _texture(rng, 50, reach=4) for _ in range(3)]
    shots = [_shot(drawings[rng.integers(3)] + _texture(rng, 8), rng) for _ in range(60)]
    assert len(np.unique(near_duplicate_groups(np.stack(shots)))) == 60


def test_what_most_pictures_look_like_is_ordinary():
    rng = np.random.default_rng(9)
    (part,) = _parts(1, rng)
    others = [128 + _texture(rng, 50, reach=4) for _ in range(20)]
    shots = [_shot(part, rng) for _ in range(30)] + [_shot(other, rng) for other in others]
    assert len(np.unique(near_duplicate_groups(np.stack(shots)))) == 50
    # A minority of the same kind are near-duplicates.
    assert len(np.unique(near_duplicate_groups(np.stack(shots[15:])))) == 21


@pytest.mark.parametrize("count", [3, 7, 20, 21, 105])
def test_folds_without_groups_are_pieces_of_the_sequence(count):
    parts, whole = folds(np.arange(count))
    assert whole and sorted(np.concatenate(parts)) == list(range(count))
    assert all((np.diff(part) == 1).all() for part in parts)
    assert len(parts) == (count if count <= 20 else 10)
    assert max(map(len, parts)) <= math.ceil(count / 10) + 1


def test_folds_never_split_a_group():
    rng = np.random.default_rng(0)
    for _ in range(50):
        count, kinds = int(rng.integers(5, 300)), int(rng.integers(4, 100))
        groups = rng.integers(0, kinds, count)
        parts, whole = folds(groups)
        assert sorted(np.concatenate(parts)) == list(range(count))
        if whole:
            for part in parts:
                rest = np.setdiff1d(np.arange(count), part)
                assert len(rest) >= 2 and not np.isin(groups[rest], groups[part]).any()
            present = len(np.unique(groups))
            assert len(parts) == present if present <= 20 else len(parts) <= 10


def test_many_scattered_groups_still_make_even_folds():
    groups = np.tile(np.arange(100), 6)  # six exposures of a hundred parts, one after the other
    parts, whole = folds(groups)
    assert whole and [len(part) for part in parts] == [60] * 10


def test_folds_of_one_group_fall_back_to_the_sequence_and_say_so():
    for groups in (np.zeros(30, int), np.array([4] * 29 + [7])):
        parts, whole = folds(groups)
        assert not whole and [len(part) for part in parts] == [3] * 10
    assert folds(np.array([0, 0, 1]))[1] is False
    assert folds(np.array([0, 0, 1, 1]))[1] is True
    with pytest.raises(InputError, match="2 good images are too few .* wanted at least 3"):
        folds(np.arange(2))


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


def test_conformal_rank_is_exact():
    for count, rate, rank in ((99, 0.01, 99), (100, 0.01, 100), (199, 0.01, 198), (9, 0.1, 9)):
        assert calibrate(np.arange(1.0, count + 1), rate).value == rank
        # Every image twice is as many parts as before.
        twice = np.repeat(np.arange(1.0, count + 1), 2)
        threshold = calibrate(twice, rate, np.repeat(np.arange(count), 2))
        assert (threshold.value, threshold.groups, threshold.images) == (rank, count, 2 * count)


@pytest.mark.parametrize(("parts", "rate"), [(30, 0.05), (20, 0.01)])
def test_near_duplicates_do_not_break_the_rate(parts, rate):
    # The parts differ much, the pictures of one part little; a further part is judged once.
    rng = np.random.default_rng(parts)
    counted_once, counted_each = [], []
    for _ in range(400):
        groups = np.repeat(np.arange(parts), rng.integers(1, 12, parts))
        scores = rng.gamma(3, size=parts)[groups] + rng.normal(0, 0.3, len(groups))
        further = rng.gamma(3, size=300) + rng.normal(0, 0.3, 300)
        counted_once.append((further > calibrate(scores, rate, groups).value).mean())
        counted_each.append((further > calibrate(scores, rate).value).mean())
    assert np.mean(counted_once) <= rate < np.mean(counted_each)


def test_too_few_images_get_a_margin_that_keeps_the_rate_of_an_exponential_tail():
    rng = np.random.default_rng(8)
    for count in (8, 10, 20, 51):
        # Shift and scale do not matter, nor does what lies below the median.
        scores = 7 + 3 * rng.exponential(size=(2000, count))
        values = np.array([calibrate(row, 0.01).value for row in scores])
        assert (values >= scores.max(axis=1)).all()
        exceeded = np.exp(-(values - 7) / 3)
        error = 4 * exceeded.std() / math.sqrt(len(exceeded))
        assert exceeded.mean() == pytest.approx(0.01, abs=error)


def test_the_margin_by_hand():
    # Three scores above the median of seven: (4 / 8) 6 / ((1 + g)(2 + g)(3 + g)) = 0.05 at g = 2.
    threshold = calibrate(np.array([0, 1, 2, 10, 11, 12, 20.0]), 0.05)
    assert threshold.value == pytest.approx(10 + 10 * 2)
    assert "times 2.00" in threshold.method
    # The same with each image of each part twice, and where the growth is held.
    scores = np.repeat([0, 1, 2, 10, 11, 12, 20.0], 2)
    assert calibrate(scores, 0.05, np.repeat(np.arange(7), 2)).value == pytest.approx(30)
    assert calibrate(np.array([0, 1, 2, 3, 4.0]), 0.001).value == pytest.approx(2 + 2 * 4)


def test_one_strange_picture_does_not_push_the_threshold_far_beyond_it():
    scores = np.append(np.linspace(1, 2, 29), 3.3)
    odd = least_like(scores)
    assert list(odd) == [29]
    assert calibrate(scores, 0.01).value > 4
    threshold = calibrate(scores, 0.01, odd=odd)
    assert threshold.value == 3.3 and "unlike the rest" in threshold.method
    # Where the tail of the others reaches farther, it counts.
    assert calibrate(np.append(scores[:-1], 2.1), 0.01, odd=odd).value > 2.1


def test_the_threshold_is_continuous_where_the_margin_begins():
    scores = np.arange(1.0, 100.0)  # 99 images support 1 % exactly
    assert calibrate(scores, 0.01).value == 99.0
    assert calibrate(scores[:-1], 0.01).value == pytest.approx(98.0, rel=0.02)
    assert calibrate(scores[:-1], 0.01).value >= 98.0


def test_a_score_that_is_not_finite_gives_no_threshold():
    for bad in (math.nan, math.inf, -math.inf):
        for count in (10, 200):
            scores = np.arange(float(count))
            scores[3] = bad
            assert math.isnan(calibrate(scores, 0.01).value)


def test_what_a_threshold_says_of_itself():
    few = calibrate(np.arange(1.0, 21.0), 0.01).sentence()
    assert "from the held-out scores of 20 good images; they support" in few
    assert "4.76%" in few and "needs 99 images" in few
    groups = np.repeat(np.arange(214), 3)
    many = calibrate(np.arange(642.0), 0.01, groups).sentence()
    assert "642 good images in 214 groups of near-duplicates, for a false-reject rate of" in many
    assert "1 group of" in calibrate(np.arange(9.0), 0.01, np.zeros(9)).sentence()
    # As read from a manifest that knows of no groups.
    old = Threshold(1.0, "conformal", 0.01, 0.005, 199)
    assert old.sentence() == (
        "threshold 1 from the held-out scores of 199 good images, for a false-reject rate of 1.00%"
    )


@pytest.mark.parametrize("count", [20, 100, 700])
def test_bad_pictures_among_the_good_are_listed(count):
    rng = np.random.default_rng(count)
    bad = count // 10
    found, wrong = [], []
    for _ in range(40):
        scores = rng.gumbel(size=count)
        # Eight standard deviations from the median.
        scores[:bad] = rng.normal(11, 1.5, bad)
        listed = least_like(scores)
        assert (np.diff(scores[listed]) <= 0).all()
        found.append((listed < bad).sum() / bad)
        wrong.append((listed >= bad).sum() / count)
    assert np.mean(found) > 0.85 and np.mean(wrong) < 0.02


@pytest.mark.parametrize("count", [3, 20, 100, 700])
def test_of_clean_sets_little_is_listed(count):
    rng = np.random.default_rng(count)
    draws = {
        "normal": rng.normal,
        "gumbel": rng.gumbel,
        "gamma": lambda size: rng.gamma(3, size=size),
    }
    for draw in draws.values():
        assert np.mean([len(least_like(draw(size=count))) / count for _ in range(60)]) < 0.02


def test_very_bad_pictures_do_not_hide_bad_ones():
    # With the four at 50 the limit is 3.6, without them 3.1.
    scores = np.concatenate([np.linspace(-1, 1, 40), np.full(6, 3.4), np.full(4, 50.0)])
    assert sorted(least_like(scores)) == list(range(40, 50))


def test_frames_of_one_part_do_not_make_its_likes_usual():
    rng = np.random.default_rng(3)
    # Sixty frames of one bad part beside forty good parts.
    scores = np.concatenate([rng.normal(0, 1, 40), rng.normal(12, 0.5, 60)])
    groups = np.concatenate([np.arange(40), np.full(60, 40)])
    assert set(least_like(scores, groups)) == set(range(40, 100))
    assert len(least_like(scores)) == 0


def test_least_like_of_odd_scores():
    scores = np.array([0.1, math.nan, 0.2, 0.15, 9.0, 0.12, 0.11, 0.18])
    assert least_like(scores).tolist() == [1, 4]
    assert least_like(np.ones(5)).tolist() == []
    assert least_like(np.full(2, math.nan)).tolist() == [0, 1]
    assert least_like(np.empty(0)).tolist() == []


@pytest.mark.parametrize(
    ("rejected", "count", "low", "high"),
    [
        # scipy.stats.beta.ppf(0.025, x, n - x + 1), beta.ppf(0.975, x + 1, n - x)
        (0, 30, 0.0, 0.11570330822),
        (1, 30, 0.00084357092663, 0.17216945563),
        (3, 100, 0.0062299715383, 0.085176052974),
        (30, 30, 0.88429669178, 1.0),
        (17, 2000, 0.0049591350218, 0.0135745461965),
        (1999, 2000, 0.9972173601653, 0.9999873411763),
    ],
)
def test_clopper_pearson_interval(rejected, count, low, high):
    assert false_reject_interval(rejected, count) == pytest.approx((low, high), rel=1e-8)


def test_an_interval_of_nothing_is_a_bug():
    for rejected, count in ((0, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="wanted 0 to count"):
            false_reject_interval(rejected, count)


def test_far_beyond_is_what_no_good_picture_would_be():
    scores = np.random.default_rng(0).exponential(size=60)
    groups = np.arange(61)
    limit = float(scores.max())
    for beyond, found in ((limit * 1.05, 0), (limit * 8, 1)):
        with_one = np.append(scores, beyond)
        odd = np.array([60])
        assert len(far_beyond(with_one, groups, odd)) == found
    # Too few others to know what is usual.
    few = np.array([1.0, 1.1, 1.2, 50.0])
    assert len(far_beyond(few, np.arange(4), np.array([3]))) == 0


def test_far_beyond_counts_few_good_pictures_in_of_heavy_tailed_sets():
    generator = np.random.default_rng(1)
    counted_out = 0
    for _ in range(200):
        scores = generator.lognormal(sigma=0.5, size=50)
        odd = least_like(scores)
        counted_out += len(far_beyond(scores, np.arange(50), odd))
    assert counted_out <= 0.005 * 200 * 50


def test_blinding_is_far_beyond_the_threshold_too():
    scores = np.append(np.linspace(1.0, 1.1, 60), [1.5, 9.0])
    groups, odd = np.arange(62), np.array([60, 61])
    assert list(far_beyond(scores, groups, odd)) == [60, 61]
    assert list(blinding(scores, groups, odd, 0.05)) == [61]
