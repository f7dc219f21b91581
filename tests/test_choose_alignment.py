"""Choosing the alignment: what is drawn, what is held against a recipe, what comes of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

from edge_app.align import Aligned, Aligner, Alignment
from edge_app.held_out import folds
from edge_app.learn_align import learn_alignment
from edge_app.learn_patches import MOST_BYTES
from edge_app.records import Frame
from tools.choose import LEAST_GAIN, ON_PART, SURE
from tools.choose_alignment import (
    DRAWN,
    LEAST_PICTURES,
    MOST_COVERED,
    _different,
    _drawings,
    _drawn_crops,
    _enough,
    _good_crops,
    _scores,
    choose_recipe,
)

# A bracket, shares of a side of 70 pixels.
OUTLINE = np.array([[0.1, 0.15], [0.35, 0.15], [0.35, 0.6], [0.9, 0.6], [0.9, 0.85], [0.1, 0.85]])


# A square that lacks a corner.
CLIPPED = np.array([[0.2, 0.2], [0.8, 0.2], [0.8, 0.8], [0.45, 0.8], [0.2, 0.55]])


def brackets(count, turn=180.0, seed=3, enlarged=1, outline=OUTLINE):
    """Frames of 160 x 120 pixels, a bright bracket on dark ground, moved and turned each."""
    rng = np.random.default_rng(seed)
    frames = []
    for index in range(count):
        angle = math.radians(rng.uniform(-turn, turn))
        rotation = np.array(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        place = [80 + rng.uniform(-18, 18), 60 + rng.uniform(-12, 12)]
        points = ((outline - 0.5) * 70 @ rotation + place) * enlarged
        picture = np.full((120 * enlarged, 160 * enlarged, 3), 50, np.uint8)
        cv2.fillPoly(picture, [np.rint(points * 16).astype(int)], (150,) * 3, cv2.LINE_AA, 4)
        noise = rng.normal(0, 2, (120, 160, 3)).repeat(enlarged, 0).repeat(enlarged, 1)
        frames.append(
            Frame(index, f"{index}.png", np.clip(picture + noise, 0, 255).astype(np.uint8))
        )
    return frames


def copied(frame):
    """The same picture under another name."""
    return Frame(frame.index + 100, f"copy of {frame.source}", frame.frame_bgr.copy())


def pixels(frames):
    return [frame.frame_bgr for frame in frames]


@pytest.fixture(scope="module")
def turned():
    frames = brackets(12)
    learnt = learn_alignment(pixels(frames), None)
    assert learnt.alignment.recipe == "pose"
    return frames, learnt


@pytest.fixture(scope="module")
def kept(turned, encoder):
    """What comes of good agreement, and the steps told on the way."""
    frames, learnt = turned
    steps = []
    choice = choose_recipe(
        frames, None, learnt, lambda aspect: (encoder, MOST_BYTES), progress=steps.append
    )
    return choice, steps


def refused(aspect):
    raise AssertionError("an encoder was made though there is nothing to try")


# What is drawn.


def test_defects_lie_on_the_part_and_leave_most_of_it():
    (frame,) = brackets(1)
    # Where the part is brighter than the ground.
    on_part = frame.frame_bgr.mean(axis=2) > 100
    box = cv2.boundingRect(on_part.astype(np.uint8))
    drawings = _drawings(frame.frame_bgr, on_part, 60, np.random.default_rng(0))
    assert len(drawings) > 50
    shares = []
    for drawing in drawings:
        changed = (drawing != frame.frame_bgr).any(axis=2)
        assert changed.any() and drawing.shape == frame.frame_bgr.shape
        x, y, width, height = cv2.boundingRect(changed.astype(np.uint8))
        assert box[0] <= x and box[1] <= y
        assert x + width <= box[0] + box[2] and y + height <= box[1] + box[3]
        strong = np.abs(drawing.astype(int) - frame.frame_bgr).max(axis=2) >= 6
        shares.append((strong & on_part).sum() / strong.sum())
        assert (strong & on_part).sum() <= MOST_COVERED * on_part.sum()
    # The mask is closed over a few pixels, hence not all of them.
    assert np.quantile(shares, 0.1) > 0.8 * ON_PART


def test_nothing_is_drawn_on_a_part_of_a_few_pixels():
    (frame,) = brackets(1)
    on_part = np.zeros((120, 160), bool)
    on_part[50:60, 40:100] = True
    assert _drawings(frame.frame_bgr, on_part, 5, np.random.default_rng(0)) == []


def test_every_recipe_gets_the_same_drawn_frames(turned):
    frames, learnt = turned
    whole = Aligner(Alignment("none"), (120, 160))
    aligners = {"pose": Aligner(learnt.alignment, (64, 64)), "none": whole}
    crops, good = _good_crops(pixels(frames), aligners, lambda what: None)
    drawn, drawn_on = _drawn_crops(good, crops, aligners, (0, 0), lambda what: None)
    # Here and there a defect finds no place on the part.
    assert 0.9 * DRAWN < len(drawn_on) <= DRAWN
    assert len(drawn["pose"]) == len(drawn["none"]) == len(drawn_on)
    np.testing.assert_array_equal(np.unique(drawn_on), np.arange(12))
    # The whole view is the drawn frame itself: it differs from its own good frame only, by little.
    for seen, row in zip(drawn["none"], drawn_on, strict=True):
        own = crops["none"][row].pixels_rgb
        assert 0 < (seen.pixels_rgb != own).any(axis=2).mean() < 0.4
    again, _ = _drawn_crops(good, crops, aligners, (0, 0), lambda what: None)
    other, _ = _drawn_crops(good, crops, aligners, (0, 1), lambda what: None)
    first = [one["none"][0].pixels_rgb for one in (drawn, again, other)]
    np.testing.assert_array_equal(first[0], first[1])
    assert (first[0] != first[2]).any()


def test_frames_far_finer_than_the_crop_are_halved_first(turned):
    frames, learnt = turned
    aligners = {
        "pose": Aligner(learnt.alignment, (32, 32)),
        "none": Aligner(Alignment("none"), (32, 32)),
    }
    large = pixels(brackets(12, enlarged=4))
    crops, good = _good_crops(large, aligners, lambda what: None)
    assert {one.shape for one in good} <= {(240, 320, 3), (120, 160, 3)}
    # The aligner would have halved them itself: the crops are the same but for rounding.
    for row in (0, 7):
        whole = aligners["pose"].align(large[row]).pixels_rgb.astype(int)
        assert np.abs(crops["pose"][row].pixels_rgb - whole).mean() < 3
    small, same = _good_crops(pixels(frames), {"pose": Aligner(learnt.alignment, (64, 64))}, print)
    assert [one.shape for one in same] == [(120, 160, 3)] * 12 and None not in small["pose"]


# What is held against a recipe.


def seen(picture):
    return Aligned(picture, np.eye(2, 3), False, None, None)


def test_what_cannot_be_aligned_counts_against_the_recipe(encoder):
    rng = np.random.default_rng(0)
    pictures = [
        cv2.resize(rng.integers(90, 110, (9, 9, 3), np.uint8), encoder.size[::-1])
        for _ in range(12)
    ]
    defective = pictures[3].copy()
    defective[:40, :40] = 255
    crops = [seen(picture) for picture in pictures]
    crops[5] = None
    # The last is drawn on the frame that was not aligned itself.
    drawn, drawn_on = [seen(defective), None, seen(defective)], np.array([3, 4, 5])
    held_out, _ = folds(np.arange(12))
    good, bad = _scores(
        Alignment("none"), crops, drawn, drawn_on, held_out, (encoder, MOST_BYTES), lambda: None
    )
    assert good.shape == (12,) and bad.shape == (3,)
    assert np.isfinite(good).all() and np.isfinite(bad).all()
    assert good.argmax() == 5 and good[5] > bad.max()
    assert bad.argmin() == 1 and bad[1] < good.min()
    # Scored by the others, it is found like the one whose frame was aligned.
    assert min(bad[0], bad[2]) > np.delete(good, 5).max()


def test_a_recipe_must_leave_something_to_learn_from():
    held_out, _ = folds(np.arange(12))
    aligned = [seen(np.zeros((8, 8, 3), np.uint8))] * 12
    assert _enough(aligned, held_out)
    assert not _enough([*aligned[: LEAST_PICTURES - 1], *[None] * (13 - LEAST_PICTURES)], held_out)
    # All that is aligned but one would be held out together.
    assert not _enough([*aligned[:10], None, None], [np.arange(9), np.arange(9, 12)])


# What comes of it.


def test_what_the_pictures_agree_on_stays_where_it_is_best(turned, kept):
    (_, learnt), (choice, steps) = turned, kept
    assert choice.learnt is learnt
    assert {trial.settings for trial in choice.trials} == {"none", "centre", "pose"}
    assert choice.trials[0].name == "pose" and choice.trials[0].chosen
    # As only the default is.
    assert choice.trials[0].better == 0.5
    assert choice.trials[0].drawn_auroc > choice.trials[1].drawn_auroc + 0.1
    assert (choice.good, choice.unaligned["none"]) == (12, (0, 0))
    assert 0.9 * DRAWN < choice.drawn <= DRAWN
    assert {"aligning", "drawing defects", "encoding, pose", "encoding, none"} <= set(steps)
    assert steps.count("encoding, none") == choice.good + choice.drawn
    json.dumps(choice.section(), allow_nan=False)
    assert [one["recipe"] for one in choice.section()] == [one.name for one in choice.trials]
    assert choice.section()[0]["agreement"] == learnt.agreement["pose"]["median"]


def test_a_recipe_that_shows_defects_better_replaces_what_was_agreed_on(turned, encoder):
    frames, learnt = turned
    # As if the pictures had agreed on the wrong one.
    wrong = replace(learn_alignment(pixels(frames), None, "none"), agreement=learnt.agreement)
    aspects = []

    def encoder_of(aspect):
        aspects.append(aspect)
        return encoder, MOST_BYTES

    choice = choose_recipe(frames, None, wrong, encoder_of)
    assert choice.learnt.alignment.recipe == "pose"
    np.testing.assert_array_equal(choice.learnt.alignment.template, learnt.alignment.template)
    assert choice.learnt.agreement is wrong.agreement
    assert choice.learnt.reason.startswith("pose: tells drawn defects from good parts better")
    pose, none = (
        next(trial for trial in choice.trials if trial.name == name) for name in ("pose", "none")
    )
    assert pose.chosen and pose.better >= SURE and none.better == 0.5
    assert pose.drawn_auroc >= none.drawn_auroc + LEAST_GAIN
    # So much is at stake that it was asked twice.
    assert 1.8 * DRAWN < choice.drawn <= 2 * DRAWN
    # The view is a square to the encoder, the crops are cut out at the part's own aspect ratio.
    assert len(aspects) == 3 and aspects.count(1.0) < 3 and learnt.alignment.aspect in aspects


@pytest.mark.parametrize("kind", ["few", "twins", "touching", "empty"])
def test_nothing_is_tried_where_there_is_no_choice(turned, kind):
    frames, learnt = turned
    empty = []
    if kind == "few":
        frames = frames[: LEAST_PICTURES - 1]
    elif kind == "twins":
        frames = [copied(frame) for frame in frames[: LEAST_PICTURES - 1] * 2]
    elif kind == "touching":
        frames = [Frame(f.index, f.source, f.frame_bgr[40:90, 50:110].copy()) for f in frames]
        learnt = learn_alignment(pixels(frames), None)
        assert learnt.alignment.recipe == "none"
    else:
        learnt = replace(learn_alignment(pixels(frames), None, "none"), agreement=learnt.agreement)
        empty = brackets(2, seed=9)
    choice = choose_recipe(frames, None, learnt, refused, empty)
    assert choice.learnt is learnt and choice.trials == []


def test_a_recipe_that_aligns_hardly_any_frame_is_not_tried(turned, encoder):
    frames, learnt = turned
    # As if the parts had been ten times as large: all views look empty.
    lost = replace(learnt, alignment=replace(learnt.alignment, area=10 * learnt.alignment.area))
    choice = choose_recipe(frames, None, lost, lambda aspect: (encoder, MOST_BYTES))
    assert choice.learnt is lost and choice.trials == []


def test_frames_that_show_nothing_take_no_part(turned):
    frames, _ = turned
    bad = [Frame(90, "lost", None), Frame(91, "tiny", np.zeros((4, 4, 3), np.uint8))]
    assert len(_different([*bad, *frames, copied(frames[0])], None)) == 12
    assert _different(bad, None) == []


def test_the_table_names_every_recipe_and_marks_the_chosen_one(kept):
    choice, _ = kept
    head, *lines = choice.table().splitlines()
    assert [line.startswith("->") for line in lines] == [True, False, False]
    assert [line.split()[line.startswith("->")] for line in lines] == [
        t.name for t in choice.trials
    ]
    both = list(zip(lines, choice.trials, strict=True))
    end = head.index("AUROC") + len("AUROC")
    assert all(line[:end].endswith(f"{t.drawn_auroc:.4f}") for line, t in both)
    assert all("of 12 good" in line for line in lines)
    assert choice.sentence().startswith("alignment chosen: pose (drawn-defect AUROC ")
    assert choice.figures().startswith("AUROC on drawn defects: pose ")


# As a command.


def test_fit_says_and_keeps_what_was_tried(weights_file, tmp_path, capsys):
    pytest.importorskip("tensorflow", reason="fit needs the tools extra")
    from edge_app.bundle import load_bundle
    from tools.__main__ import main as tools

    (tmp_path / "good").mkdir()
    # A crop as good as square, so that one conversion serves all recipes.
    for frame in brackets(10, outline=CLIPPED):
        cv2.imwrite(str(tmp_path / "good" / frame.source), frame.frame_bgr)

    def fit(out, *more):
        given = ["--data", tmp_path / "good", "--weights", weights_file, "--out", tmp_path / out]
        given += ["--size", 64, "--scorer", "patches", "--no-decoder", *more]
        assert tools(["fit", *map(str, given)]) == 0
        return load_bundle(tmp_path / out).manifest["alignment"], capsys.readouterr().out

    section, said = fit("chosen", "--report", tmp_path / "page.html")
    assert {one["recipe"] for one in section["trials"]} == {"none", "centre", "pose"}
    assert "alignment chosen: " in said and "drawn-defect AUROC" in said
    assert f"-> {section['recipe']}" in said
    assert "AUROC on drawn defects: " in (tmp_path / "page.html").read_text()
    section, said = fit("forced", "--align", "centre")
    assert section["recipe"] == "centre" and "trials" not in section
    assert "alignment chosen: " not in said
