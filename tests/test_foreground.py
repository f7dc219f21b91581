"""What is part and what is background."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edge_app.foreground import (
    CAP,
    DARK,
    THRESHOLD_FREEDOM,
    Background,
    Viewer,
    capped,
    edge_share,
    foreground,
    halved,
    held,
    level_at,
    light_gain,
    otsu,
    pieces,
    scaling,
)

SHAPE = (96, 128)


def slope(shape=SHAPE, noise=0.0) -> np.ndarray:
    """Light that falls off to the right and is not white."""
    height, width = shape
    x = np.linspace(-1, 1, width)[None, :, None]
    y = np.linspace(-1, 1, height)[:, None, None]
    picture = np.array([150.0, 170, 180]) - 30 * x + 10 * y
    picture = picture + np.random.default_rng(0).normal(0, noise, (height, width, 3))
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def test_light_that_falls_off_is_background():
    picture = slope(noise=2)
    background = Background(SHAPE)
    plane = background.plane(picture)
    assert background.distance(picture, plane).max() <= 12
    assert level_at(plane, 0.5, 0.5) == pytest.approx([150, 170, 180], abs=1)
    assert level_at(plane, 1.0, 0.5) == pytest.approx([120, 140, 150], abs=2)


def test_a_part_across_the_rim_does_not_tilt_the_plane():
    picture = slope()
    picture[:, 20:50] = 20
    background = Background(SHAPE)
    distance = background.distance(picture, background.plane(picture))
    assert distance[:, 60:].max() <= 3
    assert distance[:, 25:45].min() > 100


def test_one_colour_is_enough_to_stand_out():
    picture = slope()
    picture[30:60, 40:80, 0] = 20
    background = Background(SHAPE)
    distance = background.distance(picture, background.plane(picture))
    assert distance[35:55, 45:75].min() > 100


def test_a_threshold_is_held_near_the_learnt_one():
    assert held(50, 40) == 50
    assert held(3, 40) == 40 / THRESHOLD_FREEDOM
    assert held(200, 40) == 40 * THRESHOLD_FREEDOM


def test_noise_has_an_otsu_threshold_but_no_piece():
    picture = slope(noise=4)
    background = Background(SHAPE)
    distance = background.distance(picture, background.plane(picture))
    assert pieces(foreground(distance, otsu(distance)))  # what Otsu alone would take for parts
    assert not pieces(foreground(distance, held(otsu(distance), 60)))


def test_pieces_have_their_area_and_centre():
    mask = np.zeros(SHAPE, np.uint8)
    mask[10:30, 20:60] = 1
    mask[15:25, 30:40] = 0  # a hole is part of the part
    mask[50:60, 70:80] = 1
    mask[80, 100] = 1  # a speck is not
    first, second = pieces(mask)
    assert first.area == pytest.approx(20 * 40, rel=0.01)
    assert first.centre == pytest.approx((39.5, 19.5))
    assert second.area == pytest.approx(100, rel=0.03)
    assert second.centre == pytest.approx((74.5, 54.5))


def test_what_touches_an_edge_must_be_no_fading_shadow():
    distance = np.zeros(SHAPE, np.uint8)
    distance[-1, :64] = 55
    assert edge_share(distance, 50) == 0
    distance[-1, :64] = 80
    assert edge_share(distance, 50) == 0.5


def test_light_is_told_from_the_background_unless_that_is_dark():
    assert light_gain(140, 200) == pytest.approx(0.7)
    assert light_gain(1, 200) == 0.5
    assert light_gain(5, DARK - 1) == 1.0


@pytest.mark.parametrize("shape", [(64, 96), (65, 97)])
def test_halving_and_scaling_agree_on_where_pixels_are(shape):
    height, width = shape
    ramp = np.repeat(np.arange(width, dtype=np.float32)[None], height, axis=0)
    small = halved(ramp)
    x = (
        scaling(2.0) @ np.stack([np.arange(width // 2), np.zeros(width // 2), np.ones(width // 2)])
    )[0]
    assert small[0] == pytest.approx(x)


@pytest.mark.parametrize("shape", [(512, 512), (480, 640), (1080, 1920), (301, 457), (100, 120)])
def test_a_view_knows_where_its_pixels_lie_in_the_frame(shape):
    height, width = shape
    # A blob far from the middle; its centroid is known in the frame and measured in the map.
    blob = np.zeros((height, width), np.float32)
    cv2.circle(blob, (round(0.7 * width), round(0.3 * height)), height // 8, 1, cv2.FILLED)
    picture = (200 - 100 * blob)[..., None].repeat(3, axis=2).astype(np.uint8)
    view = capped(Viewer(2).look(picture), None, 0.0)
    assert max(view.maps[0].shape) == 256 and max(view.search.shape) == 128

    def centroid(values):
        y, x = np.mgrid[: values.shape[0], : values.shape[1]]
        return np.array([(x * values).sum(), (y * values).sum()]) / values.sum()

    found = view.to_view @ (*centroid(view.maps[0]), 1)
    assert found[:2] == pytest.approx(centroid(blob), abs=0.15 * max(1, width / 256))
    quarter = view.to_view @ scaling(4.0) @ (*centroid(view.maps[2]), 1)
    assert quarter[:2] == pytest.approx(found[:2], abs=0.3 * max(1, width / 256))


def test_poses_are_found_on_capped_distances_and_pieces_on_whole_ones():
    picture = np.full((256, 256, 3), 200, np.uint8)
    picture[100:160, 100:160] = 10
    view = Viewer(2, threshold=30, level=200).look(picture)
    assert view.maps[0].max() == 30 * CAP
    assert view.search.max() == 190
    later = capped(Viewer(2).look(picture), 30, 200)
    for one, other in zip(later.maps, view.maps, strict=True):
        assert np.array_equal(one, other)
    # In weaker light the cap is lower, so that the maps look the same.
    dim = Viewer(2, threshold=30, level=200).look(cv2.convertScaleAbs(picture, alpha=0.7))
    assert dim.maps[0].max() == pytest.approx(0.7 * 30 * CAP, abs=1)
