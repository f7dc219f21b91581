"""View: at every size nothing overlaps, and what is told by colour is told by text too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge_app.live import text, view
from edge_app.live.scene import Scene, Shown
from edge_app.quality import measure
from edge_app.records import Decision, Frame, PartVerdict, Result, Verdict
from edge_app.thermal import Heat

SIZES = [(640, 480), (800, 480), (1280, 720), (1920, 1080), (480, 800)]
FRAMES = [(240, 320, 3), (720, 1280, 3), (1080, 1080, 3)]
LIMIT = 2.9


def result(verdict: Verdict, score: float | None, reason: str | None = None, event="frame"):
    closed = None
    if event == "part":
        closed = PartVerdict(12, verdict, reason, score, 3, 0, 9, 8, 4, 1)
    frame = Frame(7, "bench", None)
    decision = Decision(verdict, score, score, reason, 12, closed)
    return Result(event, frame, decision, 1.0, LIMIT, "0" * 64, latency_ms={"encode": 2.0})


def scene(verdict=Verdict.OK, score: float | None = 1.2, reason=None, shape=FRAMES[0], **more):
    picture = np.full(shape, (90, 60, 30), np.uint8)
    history = tuple(
        (1.0 + (i % 40) / 8, Verdict.NG if i % 40 > 15 else Verdict.OK) for i in range(300)
    )
    fields = {
        "result": result(verdict, score, reason),
        "fresh": True,
        "history": history,
        "camera_fps": 14.9,
        "stages_ms": {name: 1.0 for name in ("read", "locate", "align", "encode", "score")},
        "heat": Heat("normal", 52.0, frozenset(), 0.0, ()),
        **more,
    }
    return Scene(Frame(7, "bench", picture), picture, **fields)


def shown(**fields) -> Shown:
    defaults = {
        "scene": scene(),
        "part": "bracket",
        "pictures": 120,
        "threshold": LIMIT,
        "false_rejects": (0.01, 0.001, 0.045),
        "map_kind": "patch",
    }
    return Shown(**{**defaults, **fields})


FULL = {
    "frozen": True,
    "timings": True,
    "aiming": True,
    "sharpest": 0.4,
    "learning": ("taking frames of good parts", 12, 30),
    "message": "region changed: learning again from 30 frames of this session, which takes a while",
    "region": (0.1, 0.2, 0.9, 0.8),
    "unwritten": True,
    "moved": True,
}
HOT = Heat("hot", 79.4, frozenset({"under-voltage"}), 2.0, ("heat: 79 °C, heatmaps off",))
STATES = {
    "before the first picture": shown(scene=None),
    "no part": shown(knows_part=False, part="", threshold=None, false_rejects=None, map_kind=""),
    "off": shown(scoring=False),
    "ok": shown(),
    "ng": shown(scene=scene(Verdict.NG, 14.27, part=result(Verdict.NG, 14.27, event="part"))),
    "unknown": shown(scene=scene(Verdict.UNKNOWN, None, "part: not where the good parts lay")),
    "everything": shown(
        **FULL,
        scene=scene(heat=HOT, measures=measure(np.zeros((240, 320, 3), np.uint8)), ended=True),
    ),
    "help": shown(help=True),
    "drawing": shown(choosing=True, box=(0.9, 0.9, 0.1, 0.1)),
    "trigger": shown(waits=True, scene=scene(result=None)),
}


def overlap(one: view.Box, other: view.Box) -> bool:
    across = min(one.right, other.right) - max(one.x, other.x)
    down = min(one.bottom, other.bottom) - max(one.y, other.y)
    return across > 0 and down > 0


@pytest.mark.parametrize("shape", FRAMES)
@pytest.mark.parametrize("size", SIZES)
def test_boxes_fill_the_window_and_do_not_overlap(size, shape):
    where = view.layout(size, shape)
    boxes = [where.area, where.verdict, where.score, where.part, where.strip, where.status]
    for number, box in enumerate(boxes):
        assert box.x >= 0 and box.y >= 0 and box.right <= size[0] and box.bottom <= size[1]
        assert not any(overlap(box, other) for other in boxes[number + 1 :])
    assert where.picture.w / where.picture.h == pytest.approx(shape[1] / shape[0], rel=0.02)
    # The picture is the largest thing there is.
    assert where.picture.w * where.picture.h >= 0.3 * size[0] * size[1] or size[1] > size[0]


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("size", [*SIZES, (320, 240)])
def test_every_state_is_drawn_at_every_size(name, size):
    canvas = view.draw(STATES[name], size)
    assert canvas.shape == (size[1], size[0], 3) and canvas.dtype == np.uint8


@pytest.mark.parametrize("size", SIZES)
def test_small_text_is_legible(size):
    # 9 pixels high is the least that both fonts draw without letters running together.
    assert view.layout(size, FRAMES[0]).px >= 9


@pytest.mark.parametrize("verdict", list(Verdict))
@pytest.mark.parametrize("size", SIZES[:4])
def test_verdict_fills_its_box_and_is_written_large(verdict, size):
    scored = verdict in (Verdict.OK, Verdict.NG)
    canvas = view.draw(shown(scene=scene(verdict, 1.0 if scored else None, "part: cut")), size)
    box = view.layout(size, FRAMES[0]).verdict
    inside = canvas[box.y : box.bottom, box.x : box.right].astype(int)
    fill, ink = view._FILL[verdict]
    assert (np.abs(inside - fill).max(axis=2) <= 2).mean() > 0.4
    letters = np.abs(inside - ink).max(axis=2) <= 40
    rows = np.flatnonzero(letters.any(axis=1))
    # Read from two metres: a twentieth of the window's height at least.
    assert rows.max() - rows.min() >= size[1] / 20


def luminance(colour: view.Colour) -> float:
    """Relative luminance of WCAG 2."""
    shares = np.array(colour[::-1]) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize(
    ("fill", "ink"),
    [
        *view._FILL.values(),
        (view.BLUE, view.WHITE),
        (view.GROUND, view.WHITE),
        (view.GROUND, view.SOFT),
        (view.PANEL, view.SOFT),
    ],
)
def test_text_stands_out(fill, ink):
    bright, dark = sorted((luminance(fill), luminance(ink)), reverse=True)
    assert (bright + 0.05) / (dark + 0.05) >= 4.5


def test_heatmap_paints_only_where_it_is_not_zero():
    map_01 = np.zeros(FRAMES[0][:2], np.float32)
    map_01[100:140, 60:100] = 1.0
    size = (1280, 720)
    bare = view.draw(shown(), size).astype(int)
    painted = view.draw(shown(scene=scene(map_01=map_01)), size).astype(int)
    changed = np.abs(bare - painted).max(axis=2) > 0
    box = view.layout(size, FRAMES[0]).picture
    rows, columns = np.nonzero(changed)
    scale = box.h / 240
    assert rows.min() == pytest.approx(box.y + 100 * scale, abs=4)
    assert rows.max() == pytest.approx(box.y + 140 * scale, abs=4)
    assert columns.min() == pytest.approx(box.x + 60 * scale, abs=4)
    assert columns.max() == pytest.approx(box.x + 100 * scale, abs=4)


def test_a_lost_camera_does_not_look_live():
    lost = scene(Verdict.UNKNOWN, None, "camera: lost (unplugged), next try in 4 s")
    lost = replace(lost, frame=Frame(8, "bench", None, problem="camera: lost"))
    size = (1280, 720)
    box = view.layout(size, FRAMES[0]).picture
    at = (box.y + box.h // 2, box.x + box.w // 2)
    live, dimmed = view.draw(shown(), size)[at], view.draw(shown(scene=lost), size)[at]
    assert (live == (90, 60, 30)).all()
    assert (dimmed < 0.5 * live).all()


def test_an_old_verdict_is_not_shown_in_its_colour():
    old = view.draw(shown(result_age_s=4.0), (1280, 720))
    box = view.layout((1280, 720), FRAMES[0]).verdict
    corner = old[box.y + 2, box.x + 2]
    assert tuple(corner) == view.GREY


@pytest.mark.parametrize(
    ("fields", "age_s", "word"),
    [
        ({"frozen": True}, 60.0, "OK"),  # of this very picture
        ({"frozen": True, "fresh": False}, 0.0, "WAIT"),
        ({"ended": True, "fresh": False}, 0.0, "WAIT"),
        ({"fresh": False}, 0.1, "OK"),
        ({"fresh": False}, 0.2, "WAIT"),
        ({"fresh": False, "camera_fps": 4.0}, 0.4, "OK"),
        ({"fresh": False, "camera_fps": 4.0}, 0.6, "WAIT"),
        ({"fresh": False, "camera_fps": 0.1}, 1.6, "WAIT"),
        ({}, 1.4, "OK"),
    ],
)
def test_a_verdict_does_not_stand_over_another_picture(fields, age_s, word):
    of_scene = {name: value for name, value in fields.items() if name != "frozen"}
    told = shown(scene=scene(**of_scene), frozen="frozen" in fields, result_age_s=age_s)
    assert view._said(told)[0] == word


def test_learning_anew_hides_the_verdict():
    assert view._said(shown(anew=True, learning=("encoding", 1, 9)))[0] == "LEARNING"
    # One frame more does not: the part is the same.
    assert view._said(shown(learning=("encoding", 1, 9)))[0] == "OK"


def test_the_last_part_loses_its_colour_when_nothing_is_judged():
    size, part = (1280, 720), result(Verdict.OK, 1.0, event="part")
    box = view.layout(size, FRAMES[0]).part
    for age_s, colour in ((0.0, view.GREEN), (4.0, view.GREY)):
        told = shown(scene=scene(part=part, fresh=age_s == 0.0), result_age_s=age_s)
        canvas = view.draw(told, size)
        inside = canvas[box.y : box.bottom, box.x : box.right]
        assert (inside == colour).all(axis=2).mean() > 0.4


def test_a_frozen_picture_keeps_its_limit_and_the_heat_of_now():
    told = shown(frozen=True, now=scene(heat=HOT), threshold=3.5)
    assert view._heat(told)[0].startswith("HOT 79")
    assert view._tags(told)[1][0] == HOT.degraded[0]
    same = replace(told, threshold=9.0)
    size = (1280, 720)
    box = view.layout(size, FRAMES[0]).score
    drawn = [view.draw(one, size)[box.y : box.bottom, box.x : box.right] for one in (told, same)]
    assert np.array_equal(*drawn)


def test_a_result_from_before_the_trigger_does_not_hide_the_part():
    part = replace(result(Verdict.NG, 14.27, event="part"), time_s=5.0)
    word, _, fill, _, told = view._said(shown(waits=True, scene=scene(part=part)))
    assert (word, fill, told) == ("NG", view.RED, part)


def test_strip_has_the_limit_in_its_middle_and_marks_what_is_higher():
    size = (1280, 720)
    canvas = view.draw(shown(scene=scene(history=((100.0, Verdict.NG),) * 300)), size)
    box = view.layout(size, FRAMES[0]).strip
    column = canvas[box.y : box.bottom, box.x + box.w // 4 : box.x + box.w // 2].astype(int)
    red = (np.abs(column - view.BRIGHT_RED).max(axis=2) <= 2).any(axis=1)
    white = (np.abs(column - view.WHITE).max(axis=2) <= 2).any(axis=1)
    assert red.mean() > 0.8
    middle = np.flatnonzero(white[box.h // 4 : 3 * box.h // 4]) + box.h // 4
    assert middle.mean() == pytest.approx(box.h / 2, abs=box.h * 0.05)
    assert white[: box.h // 8].any()


@pytest.mark.parametrize("size", SIZES)
def test_help_has_room_for_every_key(size):
    where = view.layout(size, FRAMES[0])
    box = view.Box(0, 0, size[0], where.status.y)
    assert max(view._help_px(box, columns) for columns in (1, 2)) >= 8


def test_numbers_keep_their_decimals():
    assert view._number(14.2664, 2.9) == "14.27"
    assert view._number(0.00123, 0.01) == "0.0012"
    assert view._number(1234.6, 900.0) == "1235"


def test_degree_sign_has_a_width_of_its_own():
    assert text.width("83°C", 12) > text.width("83C", 12)
