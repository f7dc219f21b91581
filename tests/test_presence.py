"""The empty view."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edge_app.errors import InputError
from edge_app.preprocess import Preprocessing, prepare
from edge_app.presence import learn_empty_view, locate

RECIPE = Preprocessing((96, 96))


@pytest.fixture(scope="module")
def view(still_frames):
    empty = [prepare(frame, RECIPE) for frame in still_frames["empty"][:10]]
    good = [prepare(frame, RECIPE) for frame in still_frames["good"][:20]]
    return learn_empty_view(empty, good)


def test_tells_empty_from_part_on_frames_it_has_not_seen(view, still_frames):
    for frame in still_frames["empty"][10:]:
        assert not locate(prepare(frame, RECIPE), view).present
    for frame in still_frames["good"][20:] + still_frames["bad"]:
        location = locate(prepare(frame, RECIPE), view)
        assert location.present and not location.cut


def test_a_part_beside_its_place_is_seen_as_such(view, still_frames):
    frame = still_frames["good"][20]
    at_rest = locate(prepare(frame, RECIPE), view)
    assert at_rest.in_place
    moved = cv2.warpAffine(
        frame,
        np.float32([[1, 0, 0.12 * frame.shape[1]], [0, 1, 0]]),
        frame.shape[1::-1],
        borderMode=cv2.BORDER_REPLICATE,
    )
    beside = locate(prepare(moved, RECIPE), view)
    assert beside.present and not beside.cut and not beside.in_place
    assert beside.offset > at_rest.offset + 0.05


@pytest.mark.parametrize("light", [0.7, 1.3])
def test_light_alone_is_no_part(view, still_frames, light):
    frame = cv2.convertScaleAbs(still_frames["empty"][12], alpha=light)
    assert not locate(prepare(frame, RECIPE), view).present


def test_a_part_on_its_way_in_is_cut(view, clip_frames, clip_truth):
    part = clip_truth["parts"][0]
    found = [
        locate(prepare(clip_frames[index], RECIPE), view)
        for index in range(part["first_frame"], part["still_first_frame"])
    ]
    assert any(location.present and location.cut for location in found)


def test_good_pictures_that_look_empty_are_refused(still_frames):
    empty = [prepare(frame, RECIPE) for frame in still_frames["empty"]]
    with pytest.raises(InputError, match="look like good parts"):
        learn_empty_view(empty[:5], empty[5:])
