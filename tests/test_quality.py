"""Dark, overexposed, blurred, frozen; and what must not be called so."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from edge_app.errors import BundleError
from edge_app.quality import (
    Limits,
    Measures,
    Memory,
    _exposure,
    as_section,
    check,
    learn_limits,
    light_of,
    lowest_sharpness,
    measure,
    read_limits,
    sees_nothing,
)


def reason_of(frame, limits, margin=1.0, region=None):
    return check(frame, limits, Memory(), False, 5, margin, region)[0]


def motion(frame, length, down):
    kernel = np.zeros((length, length), np.float32)
    if down:
        kernel[:, length // 2] = 1 / length
    else:
        kernel[length // 2] = 1 / length
    return cv2.filter2D(frame, -1, kernel)


def noisy(frame, deviation):
    noise = np.random.default_rng(1).normal(0, deviation, frame.shape)
    return np.clip(frame + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def limits(still_frames):
    return learn_limits([measure(frame) for frame in still_frames["good"][::4]])


def test_good_frames_it_has_not_seen_pass(limits, still_frames):
    rest = [frame for i, frame in enumerate(still_frames["good"]) if i % 4]
    assert [reason_of(frame, limits) for frame in rest] == [None] * len(rest)


def test_five_good_frames_are_enough_to_let_the_others_pass(still_frames):
    good = still_frames["good"]
    for first in range(0, 60, 12):  # five frames of one part; the others show other parts
        few = learn_limits([measure(frame) for frame in good[first : first + 5]])
        assert {reason_of(frame, few) for frame in good} == {None}


SPOILT = {
    "dark": (lambda f: cv2.convertScaleAbs(f, alpha=0.3), "quality: too dark ("),
    "black": (lambda f: noisy(np.full_like(f, 5), 3), "quality: too dark ("),
    "lens covered": (lambda f: noisy(np.full_like(f, 42), 1), "quality: too dark ("),
    "bright": (lambda f: cv2.convertScaleAbs(f, alpha=2.5), "quality: overexposed ("),
    "white": (lambda f: np.full_like(f, 255), "quality: overexposed ("),
    "defocus 1.5 px": (lambda f: cv2.GaussianBlur(f, (0, 0), 1.5), "quality: blurred ("),
    "defocus 3 px": (lambda f: cv2.GaussianBlur(f, (0, 0), 3), "quality: blurred ("),
    "defocus 6 px": (lambda f: cv2.GaussianBlur(f, (0, 0), 6), "quality: blurred ("),
    "defocus with noise": (
        lambda f: noisy(cv2.GaussianBlur(f, (0, 0), 3), 3),
        "quality: blurred (",
    ),
    "motion along rows": (lambda f: motion(f, 9, down=False), "quality: blurred ("),
    "motion across rows": (lambda f: motion(f, 9, down=True), "quality: blurred ("),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_spoilt_frame_is_refused_and_says_why(kind, limits, still_frames):
    spoil, wanted = SPOILT[kind]
    for frame in still_frames["good"][1::12]:
        assert (reason_of(spoil(frame), limits) or "").startswith(wanted)


def test_a_light_twice_as_strong_is_refused_though_nothing_clips(still_frames):
    good = still_frames["good"]
    limits = learn_limits([measure(cv2.convertScaleAbs(f, alpha=0.5)) for f in good[::4]])
    assert measure(good[1]).clipped_share < 0.01
    assert reason_of(good[1], limits).startswith("quality: overexposed (dark parts at")


def test_a_defect_another_part_or_an_empty_station_is_not_refused(limits, still_frames):
    for frame in still_frames["bad"] + still_frames["empty"]:
        assert reason_of(frame, limits) is None


def test_a_plain_view_is_not_called_blurred(limits, still_frames):
    """Without any edge, only the light falling towards the corners and noise."""
    height, width = still_frames["good"][0].shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    plain = np.repeat((100 * (1 - 0.2 * (x * x + y * y)))[..., None], 3, axis=2)
    assert measure(plain.astype(np.uint8)).sharpness < lowest_sharpness(limits, 1.0)
    assert reason_of(plain.astype(np.uint8), limits) is None
    assert reason_of(noisy(plain, 3), limits) is None


@pytest.mark.parametrize("kind", ["good", "bad"])
@pytest.mark.parametrize("sigma", [12, 16, 20, 30])
def test_a_part_of_which_no_outline_is_left_is_blurred(kind, sigma, limits, still_frames):
    for frame in still_frames[kind][::12]:
        spoilt = cv2.GaussianBlur(frame, (0, 0), sigma)
        assert (reason_of(spoilt, limits) or "").startswith("quality: blurred (")
    # So far out of focus that its contrast is no longer judged: the empty station has more.
    gone = cv2.GaussianBlur(still_frames[kind][0], (0, 0), 20)
    assert measure(gone).contrast < min(measure(f).contrast for f in still_frames["empty"])
    assert reason_of(gone, limits).startswith("quality: blurred (no outline left: sharpness 0.09")


@pytest.mark.parametrize("colour", [0, 1, 2])
def test_a_station_lit_in_one_colour_is_not_dark(colour, still_frames):
    """The grey of blue light is a ninth of it, black nearly."""
    lit = np.zeros_like(still_frames["good"][0]), np.zeros_like(still_frames["good"][1])
    for picture, frame in zip(lit, still_frames["good"][:2], strict=True):
        picture[..., colour] = frame[..., colour]
    assert not sees_nothing(lit[0])
    assert not sees_nothing(cv2.convertScaleAbs(lit[0], alpha=0.7))
    limits = learn_limits([measure(lit[0])] * 20)
    assert reason_of(lit[1], limits) is None
    assert reason_of(cv2.convertScaleAbs(lit[1], alpha=0.3), limits).startswith("quality: too dark")
    assert reason_of(cv2.convertScaleAbs(lit[1], alpha=4), limits).startswith("quality: overexpos")


@pytest.mark.parametrize("bgr", [(200, 90, 10), (10, 10, 255), (250, 5, 5), (0, 255, 255)])
def test_exposure_is_in_grey_levels_whatever_the_colour(bgr):
    """The unit of every bundle; limits learnt in one and checked in another refuse good parts."""
    frame = np.full((240, 320, 3), bgr, np.uint8)
    grey = int(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)[0, 0])
    measures = measure(frame)
    assert (measures.shadows, measures.highlights) == (grey, grey)
    assert (measures.dark_share, measures.clipped_share) == (0, 0)


def test_limits_of_coloured_pictures_learnt_long_ago_hold():
    """The section `quality` of a bundle of schema 1, learnt from ten pictures like this one."""
    frame = np.full((240, 320, 3), (150, 80, 10), np.uint8)
    cv2.circle(frame, (160, 120), 80, (10, 15, 230), -1, cv2.LINE_AA)
    section = {
        "images": 10,
        "shadows": [67.0, 67.0],
        "highlights": [78.0, 79.0],
        "clipped_share": [0.0, 0.0],
        "dark_share": [0.0, 0.0],
        "sharpness": [0.22, 0.24],
        "contrast": [20.0, 30.0],
    }
    assert reason_of(frame, read_limits(section)) is None
    dim = cv2.convertScaleAbs(frame, alpha=0.4)
    assert reason_of(dim, read_limits(section)).startswith("quality: too dark (")


@pytest.mark.parametrize("levels_bgr", [(25, 8, 8), (8, 8, 30), (2, 2, 21)])
def test_a_nearly_black_picture_shows_nothing_though_one_colour_is_raised(levels_bgr):
    black = noisy(np.full((240, 320, 3), levels_bgr, np.uint8), 1.5)
    assert sees_nothing(black)


def test_where_good_pictures_are_fine_texture_alone_none_is_blurred():
    """Sharpness is then the share of hardly any coarse detail: chance, and 0 in some."""
    rng = np.random.default_rng(3)
    flat = np.full((240, 320, 3), 120.0)
    good = [(flat + rng.normal(0, 25, flat.shape)).astype(np.uint8) for _ in range(20)]
    measured = [measure(frame) for frame in good]
    assert min(one.sharpness for one in measured) == 0 < max(one.sharpness for one in measured)
    limits = learn_limits(measured)
    assert [reason_of(frame, limits) for frame in good] == [None] * 20
    # Nor where the least is not quite 0, and still below that of slopes, 0.087 here.
    limits = replace(limits, sharpness=(0.05, limits.sharpness[1]))
    assert [reason_of(frame, limits) for frame in good] == [None] * 20


def test_the_quick_look_at_the_light_finds_what_the_measures_find(still_frames):
    """`check` measures the light only of what a count of four ranges does not clear."""
    frames = [still_frames[kind][0] for kind in ("good", "bad", "empty")]
    told = set()
    for learnt in (0.5, 1.0, 1.7):
        good = [cv2.convertScaleAbs(f, alpha=learnt) for f in still_frames["good"][::10]]
        limits = learn_limits([measure(f) for f in good])
        for gain in np.geomspace(0.1, 8, 60):
            for frame in frames:
                lit = cv2.convertScaleAbs(frame, alpha=gain)
                wanted = _exposure(measure(lit), limits, 1.0)
                got = reason_of(lit, limits)
                assert got == wanted or (wanted is None and got.startswith("quality: blurred"))
                told.add((wanted or "none").partition("(")[0])
    assert told == {"none", "quality: too dark ", "quality: overexposed "}


@pytest.mark.parametrize("alpha, beta", [(0.7, 0), (1.3, 0), (0.6, 40)])
def test_light_and_contrast_do_not_change_sharpness(alpha, beta, still_frames):
    frame = still_frames["good"][0]
    other = measure(cv2.convertScaleAbs(frame, alpha=alpha, beta=beta))
    assert other.sharpness == pytest.approx(measure(frame).sharpness, rel=0.05)


def test_noise_does_not_pass_for_sharpness(still_frames):
    for frame in (still_frames["good"][0], cv2.GaussianBlur(still_frames["good"][0], (0, 0), 3)):
        noisier = measure(noisy(frame, 5))
        assert noisier.sharpness == pytest.approx(measure(frame).sharpness, rel=0.15)
        assert noisier.contrast == pytest.approx(measure(frame).contrast, rel=0.05)


def drawn(index):
    """A large frame of a polygon with sharp edges at its own angle."""
    angles = np.arange(6) * np.pi / 3 + index
    corners = np.stack([960 + 350 * np.cos(angles), 540 + 350 * np.sin(angles)], axis=1)
    frame = np.full((1080, 1920, 3), 70, np.uint8)
    return cv2.fillPoly(frame, [corners.astype(np.int32)], (180, 170, 160), cv2.LINE_AA)


def test_a_small_blur_is_seen_in_a_large_frame():
    limits = learn_limits([measure(drawn(i)) for i in range(12)])
    for index in (0.3, 0.7, 1.4):
        assert reason_of(drawn(index), limits) is None
        soft = cv2.GaussianBlur(drawn(index), (0, 0), 3)
        assert (reason_of(soft, limits) or "").startswith("quality: blurred (")
        # What the rule is there for: a frame reduced without interpolation hides this blur.
        nearest = [
            measure(cv2.resize(f, (160, 90), interpolation=cv2.INTER_NEAREST))
            for f in (drawn(index), soft)
        ]
        assert nearest[1].sharpness > 0.85 * nearest[0].sharpness


def test_only_the_region_is_looked_at(limits, still_frames):
    frame = still_frames["good"][0]
    height, width = frame.shape[:2]
    around = np.zeros((2 * height, 2 * width, 3), np.uint8)
    around[height // 2 : height // 2 + height, width // 2 : width // 2 + width] = frame
    region = (0.25, 0.25, 0.75, 0.75)
    assert reason_of(around, limits, region=region) is None
    assert measure(around, region) == measure(frame)
    assert reason_of(around, limits) is not None
    spoilt = cv2.GaussianBlur(around, (0, 0), 3)
    assert reason_of(spoilt, limits, region=region).startswith("quality: blurred (")


@pytest.mark.parametrize("shape", [(8, 8), (8, 300), (300, 8), (9, 11), (37, 640)])
def test_measures_any_view_that_may_be_judged(shape):
    texture = np.random.default_rng(0).integers(0, 256, (*shape, 1), dtype=np.uint8).repeat(3, 2)
    measures = measure(texture)
    assert all(np.isfinite(list(vars(measures).values())))
    assert measures.shadows < 80 and measures.highlights > 175


def test_measures_of_known_pictures():
    stripes = np.zeros((240, 320, 3), np.uint8)
    stripes[:, 160:] = 255
    measures = measure(stripes)
    assert measures.dark_share == pytest.approx(0.5, abs=0.005)
    assert measures.clipped_share == 1 - measures.dark_share
    assert (measures.shadows, measures.highlights) == (0, 255)
    # One edge in 320 columns: S(d) = 255^2 d / (320 - d) in each row, nothing across the rows.
    mean = [255**2 * d / (320 - d) for d in (1, 2, 20)]
    assert measures.contrast == pytest.approx(((mean[2] - mean[0]) / 2) ** 0.5)
    assert measures.sharpness == pytest.approx(((mean[1] - mean[0]) / (mean[2] - mean[0])) ** 0.5)


def some(highlights=150.0, shadows=60.0, sharpness=0.25, dark=0.0, clipped=0.0):
    return Measures(shadows, highlights, clipped, dark, sharpness, 20.0)


def test_limits_widen_with_the_good_pictures_and_narrow_with_their_number(still_frames):
    narrow = learn_limits([some(sharpness=0.30 + 0.001 * i) for i in range(20)])
    wide = learn_limits([some(sharpness=0.2 + 0.01 * i) for i in range(20)])
    assert lowest_sharpness(wide, 1.0) < 0.75 * lowest_sharpness(narrow, 1.0)
    few = learn_limits([some(sharpness=value) for value in (0.20, 0.23, 0.27, 0.33, 0.39)])
    assert lowest_sharpness(few, 1.0) < 0.7 * lowest_sharpness(wide, 1.0)
    assert lowest_sharpness(wide, 0.0) == pytest.approx(0.2)
    assert lowest_sharpness(wide, 2.0) < lowest_sharpness(wide, 1.0)
    frame = still_frames["good"][0]
    dim = cv2.convertScaleAbs(frame, alpha=0.3)
    lights = [cv2.convertScaleAbs(frame, alpha=a) for a in np.linspace(0.25, 1, 20)]
    assert reason_of(dim, learn_limits([measure(light) for light in lights])) is None
    assert reason_of(dim, learn_limits([measure(frame)] * 20)) is not None


def test_black_and_white_are_refused_whatever_was_learnt(still_frames):
    frame = still_frames["good"][0]
    lights = [cv2.convertScaleAbs(frame, alpha=alpha) for alpha in (0.3, 0.6, 1.0, 2.0, 3.0)]
    lenient = learn_limits([measure(light) for light in lights])
    black = np.zeros_like(frame)
    black[:, ::128] = 255  # three columns of hot pixels
    assert reason_of(black, lenient, 10.0).startswith("quality: too dark (99% of it black")
    assert reason_of(np.zeros_like(frame), lenient, 10.0).startswith("quality: too dark (")
    assert reason_of(np.full_like(frame, 255), lenient, 10.0).startswith("quality: overexposed (")


def test_only_a_view_black_or_white_all_over_shows_nothing(still_frames):
    frame = still_frames["empty"][0]
    assert sees_nothing(np.zeros_like(frame)) and sees_nothing(np.full_like(frame, 255))
    assert not sees_nothing(frame) and not sees_nothing(cv2.convertScaleAbs(frame, alpha=0.4))


def test_the_light_of_the_empty_station_is_learnt_but_not_its_lack_of_edges():
    part = np.full((240, 320, 3), 8, np.uint8)  # a bright part on a black belt
    cv2.circle(part, (160, 120), 80, (200, 200, 200), -1, cv2.LINE_AA)
    belt = noisy(np.full((240, 320, 3), 8, np.uint8), 2)
    good, empty = [measure(noisy(part, 2))] * 10, [measure(belt)] * 3
    assert reason_of(belt, learn_limits(good)).startswith("quality: too dark (")
    limits = learn_limits(good, light_of(empty))
    assert reason_of(belt, limits) is None
    assert limits.sharpness == learn_limits(good).sharpness
    assert limits.contrast == learn_limits(good).contrast
    assert limits.images == 10


def test_what_cannot_be_taken_out_stays_in_the_limits_and_pictures_can_be(still_frames):
    measured = [measure(frame) for frame in still_frames["good"]]
    old = learn_limits(measured[:30])
    assert learn_limits(measured[30:], old) == learn_limits(measured)
    assert learn_limits([], old) == old
    dark = light_of([measure(frame // 4) for frame in still_frames["good"][:3]])
    lit = learn_limits(measured, dark)
    assert lit.shadows[0] == dark.shadows[0] < learn_limits(measured).shadows[0]
    assert read_limits(json.loads(json.dumps(as_section(lit)))) == lit
    assert lit.images == len(measured)
    assert learn_limits([], dark) is None and light_of([]) is None and learn_limits([]) is None


def test_the_manifest_section_gives_the_limits_back(limits):
    section = json.loads(json.dumps(as_section(limits)))
    assert read_limits(section) == limits
    assert as_section(None) is None and read_limits(None) is None


@pytest.mark.parametrize(
    "change",
    [
        {"images": 0},
        {"images": True},
        {"sharpness": [0.3, 0.2]},
        {"sharpness": [0.3]},
        {"sharpness": [0.3, "0.4"]},
        {"sharpness": 0.3},
        {"contrast": [float("nan"), 1.0]},
        {"dark_share": [0.0, 1.5]},
        {"shadows": [-1, 5]},
        {"focus": [0, 1]},
        {"fixed": {"images": 0}},
    ],
)
def test_a_damaged_section_is_refused(limits, change):
    with pytest.raises(BundleError, match="manifest.json: quality"):
        read_limits({**as_section(limits), **change})


def test_a_section_that_lacks_a_field_is_refused(limits):
    section = as_section(limits)
    del section["contrast"]
    with pytest.raises(BundleError, match="manifest.json: quality holds"):
        read_limits(section)


def feed(frames, live, limits=None, frozen_frames=5):
    memory, reasons = Memory(), []
    for frame in frames:
        reason, memory = check(frame, limits, memory, live, frozen_frames)
        reasons.append(reason)
    return reasons


@pytest.mark.parametrize("learnt", [False, True])
def test_a_live_camera_that_repeats_itself_is_frozen_until_it_goes_on(learnt, limits, still_frames):
    first, second = still_frames["good"][:2]
    frames = [first.copy() for _ in range(7)] + [second, first]
    reasons = feed(frames, True, limits if learnt else None)
    assert reasons[:4] == [None] * 4
    assert reasons[4:7] == [f"camera: frozen (the same picture {n} times)" for n in (5, 6, 7)]
    assert reasons[7:] == [None, None]


def test_a_picture_that_differs_by_noise_is_not_frozen(still_frames):
    rng = np.random.default_rng(2)
    frame = still_frames["good"][0]
    frames = [np.clip(frame + rng.integers(0, 2, frame.shape), 0, 255) for _ in range(12)]
    assert feed([f.astype(np.uint8) for f in frames], True) == [None] * 12


def test_a_frame_reused_by_its_owner_does_not_change_what_is_remembered(still_frames):
    buffer = still_frames["good"][0].copy()
    reasons, memory = [], Memory()
    for frame in still_frames["good"][:8]:
        buffer[:] = frame
        reason, memory = check(buffer, None, memory, True, 2)
        reasons.append(reason)
    assert reasons == [None] * 8


def test_files_may_repeat_themselves(still_frames):
    assert feed([still_frames["good"][0]] * 12, False) == [None] * 12


def test_a_dark_picture_is_called_dark_before_frozen(limits, still_frames):
    black = np.zeros_like(still_frames["good"][0])
    assert all(r.startswith("quality: too dark (") for r in feed([black] * 8, True, limits))


def test_without_limits_and_not_live_nothing_is_said(still_frames):
    black = np.zeros_like(still_frames["good"][0])
    assert check(black, None, Memory(), False, 5) == (None, Memory())


def test_limits_are_frozen_records(limits):
    assert isinstance(limits, Limits) and hash(limits) == hash(read_limits(as_section(limits)))
