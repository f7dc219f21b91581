"""Reading from pixels that a picture was a JPEG once, and the probe on what is left of it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tools.leak_probe import (
    TRACE_NOISE,
    block_traces,
    grain,
    past_quality,
    prepare,
    probe,
    separation,
)
from tools.picture_files import luminance_steps


def textured(seed=0, side=160, colour=True) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = 6 * cv2.GaussianBlur(rng.normal(0, 1, (side, side, 3)), (0, 0), 2)
    if not colour:
        coarse = np.repeat(coarse[..., :1], 3, axis=2)
    picture = 120 + 20 * coarse + rng.normal(0, 4, (side, side, 1))
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def compressed(picture, quality):
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)


def test_the_tables_are_libjpegs():
    assert luminance_steps(50)[:8].tolist() == [16, 11, 10, 16, 24, 40, 51, 61]
    assert luminance_steps(100).tolist() == [1] * 64
    assert luminance_steps(1).tolist() == [255] * 64
    assert luminance_steps(95).sum() == 369  # what OpenCV writes


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("quality", [40, 50, 63, 75, 85, 90, 95, 97])
def test_the_past_quality_is_read(quality, colour):
    picture = compressed(textured(colour=colour), quality)
    assert abs(past_quality(prepare(picture)) - quality) <= 1


@pytest.mark.parametrize("cut", [(3, 5), (1, 0), (4, 4)])
def test_it_is_read_from_a_picture_cut_out_of_the_jpeg(cut):
    picture = compressed(textured(), 75)[cut[0] :, cut[1] :]
    assert abs(past_quality(prepare(picture)) - 75) <= 1


def test_lossless_pictures_have_no_past_and_smooth_ones_tell_nothing():
    assert past_quality(prepare(textured())) == 0
    ramp = np.repeat(np.tile(np.arange(160, dtype=np.uint8), (160, 1))[..., None], 3, axis=2)
    assert past_quality(prepare(ramp)) is None
    assert past_quality(prepare(np.full((160, 160, 3), 90, np.uint8))) is None


def test_too_small_a_picture_is_not_probed():
    assert prepare(np.zeros((15, 40, 3), np.uint8)) is None
    for side in (16, 17, 23):
        light = prepare(textured(side=side))
        assert np.isfinite(block_traces(light)).all()
        assert np.isfinite(grain(light)).all()
        past_quality(light)


def test_large_pictures_are_cut_at_whole_blocks():
    picture = compressed(cv2.resize(textured(), (1000, 900)), 60)
    light = prepare(picture)
    assert light.shape == (768, 768)
    assert abs(past_quality(light) - 60) <= 1


def test_traces_do_not_mind_the_texture():
    fine = np.array([block_traces(prepare(textured(seed))) for seed in range(12)])
    smooth = np.array(
        [
            block_traces(prepare(cv2.GaussianBlur(textured(100 + seed), (0, 0), 0.7)))
            for seed in range(12)
        ]
    )
    pressed = np.array([block_traces(prepare(compressed(textured(s), 90))) for s in range(12)])
    groups = np.arange(24)
    assert probe(fine, pressed, TRACE_NOISE, groups).auroc > 0.95
    assert probe(fine, smooth, TRACE_NOISE, groups).auroc < 0.85


def test_the_probe_finds_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, (2, 40, 5))
    nothing = probe(first, second, 0.0, np.arange(80))
    assert abs(nothing.auroc - 0.5) < 0.15
    second[:, 2] += 4
    found = probe(first, second, 0.0, np.arange(80))
    assert found.auroc > 0.98
    assert 0.9 < found.lower < found.auroc
    assert found.pictures == (40, 40)


def test_differences_below_the_noise_do_not_count():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1e-3, (2, 40, 3))
    second += 0.02
    assert probe(first, second, 0.0, np.arange(80)).auroc == 1.0
    assert probe(first, second, 1.0, np.arange(80)).auroc < 0.7


def test_near_duplicates_do_not_help_the_probe():
    # Ten pictures six times over: a probe that saw a twin of each would know them by heart.
    rng = np.random.default_rng(0)
    first, second = (np.repeat(rng.normal(0, 1, (10, 40)), 6, axis=0) for _ in range(2))
    groups = np.repeat(np.arange(20), 6)
    assert probe(first, second, 0.0, np.arange(120)).auroc > 0.95
    assert probe(first, second, 0.0, groups).auroc < 0.8


def test_too_few_pictures_are_not_probed():
    rows = np.zeros((30, 2))
    assert probe(rows[:9], rows, 1.0, np.arange(39)) is None
    assert probe(rows, rows, 1.0, np.repeat(np.arange(12), 5)) is None


def test_separation_is_surer_with_more_pictures():
    few = separation(np.arange(10.0), np.arange(5.0, 15.0))
    many = separation(np.arange(10.0).repeat(20), np.arange(5.0, 15.0).repeat(20))
    assert few.auroc == many.auroc
    assert few.lower < many.lower < many.auroc
    # The other way round it is as sure, and a perfect AUROC of two pictures is not.
    turned = separation(np.arange(5.0, 15.0), np.arange(10.0))
    assert turned.auroc == pytest.approx(1 - few.auroc)
    assert turned.lower == pytest.approx(few.lower)
    assert separation(np.zeros(2), np.ones(2)).lower < 0.6
