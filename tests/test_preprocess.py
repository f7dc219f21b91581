"""Cutting, resizing and colour order."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edge_app.preprocess import Preprocessing, prepare, region_box, shrink


def test_red_stays_red():
    frame_bgr = np.zeros((64, 64, 3), np.uint8)
    frame_bgr[..., 2] = 200
    pixels_rgb = prepare(frame_bgr, Preprocessing((32, 32)))
    assert pixels_rgb[..., 0].min() == 200 and pixels_rgb[..., 1:].max() == 0


@pytest.mark.parametrize("shape", [(480, 640), (481, 643), (97, 1000), (96, 96), (20, 30), (1, 1)])
def test_any_frame_comes_out_at_the_wanted_size(shape):
    frame_bgr = np.full((*shape, 3), 77, np.uint8)
    pixels_rgb = prepare(frame_bgr, Preprocessing((96, 128)))
    assert pixels_rgb.shape == (96, 128, 3) and (pixels_rgb == 77).all()


def test_shrinking_does_not_alias():
    # A one-pixel chessboard is grey from afar; plain bilinear sampling keeps it black and white.
    board = np.indices((480, 640)).sum(axis=0) % 2 * 255
    board = np.repeat(board[:, :, None], 3, axis=2).astype(np.uint8)
    assert shrink(board, (96, 96)).std() < 3


def test_close_to_an_exact_area_average_and_in_place():
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (30, 40, 3), np.uint8), (640, 480))
    exact = cv2.resize(picture, (96, 96), interpolation=cv2.INTER_AREA)
    assert np.abs(shrink(picture, (96, 96)).astype(int) - exact).mean() < 2


def test_region_is_cut():
    frame_bgr = np.zeros((100, 200, 3), np.uint8)
    frame_bgr[20:60, 50:150] = 255
    recipe = Preprocessing((32, 32), (0.25, 0.2, 0.75, 0.6))
    assert region_box(recipe.region, frame_bgr.shape) == (50, 20, 150, 60)
    assert (prepare(frame_bgr, recipe) == 255).all()


def test_region_is_never_empty():
    x0, y0, x1, y1 = region_box((0.999, 0.999, 1.0, 1.0), (4, 4, 3))
    assert x1 > x0 and y1 > y0 and x1 <= 4 and y1 <= 4


@pytest.mark.parametrize(
    "frame", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3))]
)
def test_frames_of_another_kind_are_refused(frame):
    with pytest.raises(ValueError, match="frame must be uint8"):
        prepare(frame, Preprocessing((32, 32)))
