"""
View: what the window shows, drawn at the window's own size; a state goes in, a picture comes out.

Two arrangements, whichever shows the picture larger: a band with the verdict above it, or a column
beside it. Every box is laid out before anything is drawn, and every text is measured to fit its
box, so nothing overlaps at any size. No verdict is told by its colour alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from edge_app.heatmap import overlay
from edge_app.live import text
from edge_app.live.keys import KEYS
from edge_app.live.scene import Scene, Shown
from edge_app.records import Result, Verdict

Colour = tuple[int, int, int]

# BGR. White on each of the dark ones, and black on the amber, has a contrast of 4.5 or more (WCAG
# 2, level AA).
GROUND, PANEL, LINE = (22, 20, 18), (44, 40, 36), (96, 90, 84)
WHITE, SOFT, BLACK = (245, 245, 245), (196, 196, 196), (16, 16, 16)
GREEN, RED, AMBER = (52, 124, 18), (38, 28, 190), (0, 176, 255)
GREY, BLUE = (98, 92, 86), (150, 88, 26)
BRIGHT_GREEN, BRIGHT_RED = (110, 205, 80), (86, 86, 255)

# Where the verdict is called by another word, of what colour it is, and that of the text on it.
_FILL = {
    Verdict.OK: (GREEN, WHITE),
    Verdict.NG: (RED, WHITE),
    Verdict.UNKNOWN: (AMBER, BLACK),
    Verdict.EMPTY: (GREY, WHITE),
}
# A verdict older than this is none on what is seen now, seconds; one on a picture before the newest
# is so already after two pictures of the camera, or this, whichever is more.
OLD_S, PASSED_S = 1.5, 0.15
# From this age on, the age of the last part's verdict is said, seconds.
TELL_S = 2.0
# A bar of the aiming aid that shows clipping is full at this share of the pixels.
FULL_CLIPPING = 0.2
# The strip shows scores up to so many times the limit; what is higher is cut off with a mark.
STRIP_TOP = 2.0


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    x: int
    y: int
    w: int
    h: int

    @property
    def right(self) -> int:
        return self.x + self.w

    @property
    def bottom(self) -> int:
        return self.y + self.h

    def inset(self, dx: int, dy: int | None = None) -> Box:
        dy = dx if dy is None else dy
        return Box(self.x + dx, self.y + dy, max(self.w - 2 * dx, 1), max(self.h - 2 * dy, 1))


@dataclass(frozen=True)
class Layout:
    """
    Where everything lies in a window.

    Attributes
    ----------
    area : Box
        What the picture has room in.
    picture : Box
        The picture itself, in its own proportions.
    verdict, score, part, strip, status : Box
        `part` is that of the last part's verdict.
    px : int
        Height of a capital of small text.
    """

    area: Box
    picture: Box
    verdict: Box
    score: Box
    part: Box
    strip: Box
    status: Box
    px: int


def layout(size: tuple[int, int], frame_shape: tuple[int, ...]) -> Layout:
    """
    Lay out a window.

    Parameters
    ----------
    size : tuple of int
        (width, height) of the window.
    frame_shape : tuple of int
        (height, width, ...) of the frame.
    """
    beside, above = _beside(size, frame_shape), _above(size, frame_shape)
    larger = beside.picture.w * beside.picture.h > 1.15 * above.picture.w * above.picture.h
    return beside if larger else above


def _small(size: tuple[int, int]) -> int:
    return max(9, round(min(size[1], size[0] * 0.65) / 42))


def _beside(size: tuple[int, int], frame_shape: tuple[int, ...]) -> Layout:
    width, height = size
    px = _small(size)
    status_h = round(2.4 * px)
    column = min(max(round(0.3 * width), 220), width // 2)
    inner = height - status_h
    area = Box(0, 0, width - column, inner)
    verdict_h, score_h, part_h = round(0.3 * inner), round(0.24 * inner), round(0.15 * inner)
    gap = max(px // 2, 4)
    x = width - column
    verdict = Box(x, 0, column, verdict_h)
    score = Box(x, verdict.bottom, column, score_h)
    part = Box(x, score.bottom + gap, column, part_h)
    strip = Box(x, part.bottom + gap, column, inner - part.bottom - 2 * gap)
    status = Box(0, inner, width, status_h)
    return Layout(area, _placed(area, frame_shape), verdict, score, part, strip, status, px)


def _above(size: tuple[int, int], frame_shape: tuple[int, ...]) -> Layout:
    width, height = size
    px = _small(size)
    status_h = round(4.4 * px)
    band_h, strip_h = round(0.18 * height), round(0.12 * height)
    third = round(0.27 * width)
    verdict = Box(0, 0, width - 2 * third, band_h)
    score = Box(verdict.right, 0, third, band_h)
    part = Box(score.right, 0, width - score.right, band_h)
    status = Box(0, height - status_h, width, status_h)
    strip = Box(0, status.y - strip_h, width, strip_h)
    area = Box(0, band_h, width, strip.y - band_h)
    return Layout(area, _placed(area, frame_shape), verdict, score, part, strip, status, px)


def _placed(area: Box, frame_shape: tuple[int, ...]) -> Box:
    """The largest box of the frame's proportions in the middle of an area."""
    height, width = frame_shape[:2]
    scale = min(area.w / width, area.h / height)
    w, h = max(int(width * scale), 1), max(int(height * scale), 1)
    return Box(area.x + (area.w - w) // 2, area.y + (area.h - h) // 2, w, h)


def frame_shape(shown: Shown) -> tuple[int, ...]:
    """Shape of the frame that is shown; that of a usual camera before there is one."""
    scene = shown.scene
    return (480, 640) if scene is None or scene.picture_bgr is None else scene.picture_bgr.shape


def draw(shown: Shown, size: tuple[int, int]) -> np.ndarray:
    """
    Draw the window.

    Parameters
    ----------
    shown : Shown
    size : tuple of int
        (width, height), at least 320 x 240.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)
        BGR.
    """
    width, height = size
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = GROUND
    where = layout(size, frame_shape(shown))
    _draw_picture(canvas, where, shown)
    _draw_verdict(canvas, where, shown)
    _draw_strip(canvas, where, shown)
    _draw_status(canvas, where, shown)
    if shown.help:
        _draw_help(canvas, where)
    else:
        _draw_notes(canvas, where, shown)
    return canvas


# The picture


def _draw_picture(canvas: np.ndarray, where: Layout, shown: Shown) -> None:
    scene, box = shown.scene, where.picture
    if scene is None or scene.picture_bgr is None:
        said = "waiting for the camera"
        px = text.fitting(said, where.area.w - 4 * where.px, 2 * where.px)
        x = where.area.x + (where.area.w - text.width(said, px)) // 2
        text.draw(canvas, said, (x, where.area.y + where.area.h // 2), px, SOFT)
        return
    reduced = box.w < scene.picture_bgr.shape[1]
    how = cv2.INTER_AREA if reduced else cv2.INTER_LINEAR
    picture = cv2.resize(scene.picture_bgr, (box.w, box.h), interpolation=how)
    if scene.map_01 is not None:
        _paint(picture, cv2.resize(scene.map_01, (box.w, box.h)))
    if scene.frame.frame_bgr is None:
        # The last picture there was, plainly not live.
        picture = cv2.convertScaleAbs(picture, alpha=0.35)
    canvas[box.y : box.bottom, box.x : box.right] = picture
    line = max(where.px // 6, 1)
    if shown.region is not None and not shown.choosing:
        _outline(canvas, box, shown.region, WHITE, line)
    if shown.choosing:
        cv2.rectangle(canvas, (box.x, box.y), (box.right - 1, box.bottom - 1), AMBER, line + 1)
        if shown.box is not None:
            _outline(canvas, box, shown.box, AMBER, line + 1)


def _paint(picture: np.ndarray, map_01: np.ndarray) -> None:
    """Lay the map over the picture, in place; only where it is not 0, which is a small part."""
    rows, columns = np.flatnonzero(map_01.any(axis=1)), np.flatnonzero(map_01.any(axis=0))
    if not len(rows):
        return
    part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    picture[part] = overlay(picture[part], map_01[part])


def _outline(
    canvas: np.ndarray,
    box: Box,
    shares: tuple[float, float, float, float],
    colour: Colour,
    line: int,
) -> None:
    xs = [box.x + round(share * (box.w - 1)) for share in shares[::2]]
    ys = [box.y + round(share * (box.h - 1)) for share in shares[1::2]]
    start, end = (min(xs), min(ys)), (max(xs), max(ys))
    # A dark line beside the bright one is seen on any picture.
    cv2.rectangle(canvas, start, end, BLACK, line + 2)
    cv2.rectangle(canvas, start, end, colour, line)


# The verdict


def _draw_verdict(canvas: np.ndarray, where: Layout, shown: Shown) -> None:
    word, why, fill, ink, result = _said(shown)
    _fill(canvas, where.verdict, fill)
    _fill(canvas, where.score, fill)
    _draw_word(canvas, where.verdict, word, why, ink, where.px)
    _draw_score(canvas, where.score, result, shown, ink, where.px)
    unsaid = result is None and shown.result_age_s > OLD_S or fill is GREY and shown.frozen
    _draw_part(canvas, where.part, shown, where.px, unsaid)


def _said(shown: Shown) -> tuple[str, str, Colour, Colour, Result | None]:
    """The big word, why, its colours, and the result whose score stands beside it."""
    scene = shown.scene
    if scene is None:
        return "WAIT", "no picture yet", GREY, WHITE, None
    if shown.learning is not None and (shown.anew or not shown.knows_part):
        return "LEARNING", shown.learning[0], BLUE, WHITE, None
    if not shown.knows_part:
        why = (
            "region changed: press l to learn"
            if shown.part
            else "e: empty station, l: learn good parts"
        )
        return "NO PART", why, GREY, WHITE, None
    if not shown.scoring:
        return "OFF", "press s to score", GREY, WHITE, None
    result = scene.result
    if shown.waits and scene.part is not None:
        if result is None or result.time_s <= scene.part.time_s:
            result = scene.part
    if result is None:
        if shown.waits:
            return "READY", "waiting for the trigger", GREY, WHITE, None
        return "WAIT", "not judged yet", GREY, WHITE, None
    verdict = result.decision.verdict
    if shown.frozen or scene.ended:
        if not scene.fresh:
            return "WAIT", "this picture was not judged", GREY, WHITE, None
    elif not shown.waits and shown.result_age_s > _valid_s(scene):
        # What is in view now may be another part.
        return "WAIT", f"{verdict} {_ago(shown.result_age_s)}", GREY, WHITE, None
    fill, ink = _FILL[verdict]
    why = "no part in view" if verdict is Verdict.EMPTY else result.decision.reason or ""
    if shown.frozen and not why:
        why = "of the frozen picture"
    elif shown.waits and result is scene.part and shown.part_age_s >= TELL_S and not why:
        why = _ago(shown.part_age_s)
    return str(verdict), why, fill, ink, result


def _valid_s(scene: Scene) -> float:
    """How long a verdict counts, seconds: not long once there is a newer picture without one."""
    if scene.fresh:
        return OLD_S
    return min(max(2.0 / max(scene.camera_fps, 1e-6), PASSED_S), OLD_S)


def _ago(age_s: float) -> str:
    if age_s < 60.0:
        return f"{age_s:.{0 if age_s >= 2.0 else 1}f} s ago"
    return f"{age_s / 60:.0f} min ago"


def _draw_word(canvas: np.ndarray, box: Box, word: str, why: str, ink: Colour, px: int) -> None:
    inner = box.inset(px, px // 2)
    room = inner.h
    lines: list[str] = []
    if why:
        small = max(px, round(0.09 * box.h))
        most = 1 if box.h < 8 * px else 2
        lines = text.wrapped(why, inner.w, small, most)
        room -= round(len(lines) * 1.6 * small)
    size = text.fitting(word, inner.w, round(0.78 * room), bold=True)
    y = inner.y + (room + size) // 2
    text.draw(canvas, word, (inner.x, y), size, ink, bold=True)
    for number, line in enumerate(reversed(lines)):
        below = inner.bottom - text.below(small) // 2 - round(1.6 * small * number)
        text.draw(canvas, line, (inner.x, below), small, ink)


def _draw_score(
    canvas: np.ndarray, box: Box, result: Result | None, shown: Shown, ink: Colour, px: int
) -> None:
    if result is None or result.decision.score_smoothed is None or shown.threshold is None:
        return
    inner = box.inset(px, px // 2)
    small = max(px, round(0.14 * box.h))
    # The one that it was judged by: that of a frozen picture may have been moved since.
    by = shown.threshold if result.threshold is None else result.threshold
    limit = f"limit {_number(by, by)}"
    if shown.moved:
        limit += " (moved)"
    small = text.fitting(limit, inner.w, small)
    said = _number(result.decision.score_smoothed, shown.threshold)
    room = inner.h - round(1.6 * small)
    size = text.fitting(said, inner.w, round(0.72 * room), bold=True)
    text.draw(canvas, said, (inner.x, inner.y + (room + size) // 2), size, ink, bold=True)
    text.draw(canvas, limit, (inner.x, inner.bottom - text.below(small) // 2), small, ink)


def _number(value: float, limit: float) -> str:
    """A score with as many decimals as its limit needs, so that it does not jump."""
    if abs(limit) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(limit) >= 0.1 else f"{value:.4f}"


def _draw_part(canvas: np.ndarray, box: Box, shown: Shown, px: int, unsaid: bool) -> None:
    """
    The verdict on the last part that was seen on several frames.

    Where nothing is judged any more it has no colour: another part may be in view.
    """
    part = None if shown.scene is None or shown.waits or not shown.scoring else shown.scene.part
    if part is None or shown.anew:
        _fill(canvas, box, PANEL)
        said = "? help"
        if shown.part:
            said = f"{shown.part}"
        size = text.fitting(said, box.w - 2 * px, min(2 * px, box.h // 3))
        text.draw(canvas, said, (box.x + px, box.y + (box.h + size) // 2), size, SOFT)
        return
    fill, ink = (GREY, WHITE) if unsaid else _FILL[part.decision.verdict]
    # Set off, or it would run into a band of the same colour.
    _fill(canvas, box, GROUND)
    _fill(canvas, box.inset(max(px // 3, 3)), fill)
    inner = box.inset(px, px // 2)
    head = f"last part, no. {part.decision.part}"
    if shown.part_age_s >= TELL_S:
        head += f", {_ago(shown.part_age_s)}"
    small = text.fitting(head, inner.w, px)
    text.draw(canvas, head, (inner.x, inner.y + small + px // 3), small, ink)
    said = str(part.decision.verdict)
    if part.decision.score_smoothed is not None:
        said += f" {_number(part.decision.score_smoothed, part.threshold or 1.0)}"
    room = inner.h - round(1.9 * small)
    size = text.fitting(said, inner.w, round(0.75 * room), bold=True)
    y = inner.bottom - (room - size) // 2
    text.draw(canvas, said, (inner.x, y), size, ink, bold=True)


# The strip


def _draw_strip(canvas: np.ndarray, where: Layout, shown: Shown) -> None:
    box, px = where.strip, where.px
    _fill(canvas, box, PANEL)
    inner = box.inset(max(px // 2, 4))
    history = () if shown.scene is None or not shown.knows_part else shown.scene.history
    limit = shown.threshold
    if limit is None or limit <= 0:
        said = "scores appear here"
        size = text.fitting(said, inner.w, px)
        text.draw(canvas, said, (inner.x, inner.y + (inner.h + size) // 2), size, SOFT)
        return
    said = f"limit {_number(limit, limit)}"
    label_w = text.width(said, px) + px
    plot_w = max(inner.w - label_w, 8)
    bar = max(round(where.px / 4), 2)
    count = plot_w // (bar + 1)
    zero = inner.bottom
    for place, (score, verdict) in enumerate(reversed(history[-count:])):
        x = inner.x + plot_w - (place + 1) * (bar + 1)
        if score is None:
            if verdict is Verdict.UNKNOWN:
                high = max(inner.h // 8, 3)
                cv2.rectangle(canvas, (x, zero - high), (x + bar - 1, zero), AMBER, -1)
            continue
        share = min(max(score / (STRIP_TOP * limit), 0.0), 1.0)
        y = zero - max(round(share * inner.h), 1)
        colour = BRIGHT_RED if verdict is Verdict.NG else BRIGHT_GREEN
        cv2.rectangle(canvas, (x, y), (x + bar - 1, zero), colour, -1)
        if score > STRIP_TOP * limit:
            cv2.rectangle(canvas, (x, y), (x + bar - 1, y + bar), WHITE, -1)
    y = zero - round(inner.h / STRIP_TOP)
    for x in range(inner.x, inner.x + plot_w, 3 * px):
        end = min(x + 2 * px, inner.x + plot_w)
        cv2.line(canvas, (x, y), (end, y), WHITE, max(px // 7, 1))
    text.draw(canvas, said, (inner.right - label_w + px, y + px // 2), px, WHITE)


# The status


def _draw_status(canvas: np.ndarray, where: Layout, shown: Shown) -> None:
    box, px = where.status, where.px
    _fill(canvas, box, GROUND)
    cv2.line(canvas, (box.x, box.y), (box.right - 1, box.y), LINE, 1)
    heat = _heat(shown)
    about = []
    if shown.part:
        count = "1 picture" if shown.pictures == 1 else f"{shown.pictures} pictures"
        about.append(
            (f"{shown.part}: {count}" + (", not written" if shown.unwritten else ""), WHITE)
        )
    if shown.false_rejects is not None:
        share, low, high = shown.false_rejects
        about.append((f"false rejects {share:.1%} ({low:.1%} to {high:.1%})", SOFT))
    running = []
    if _now(shown) is not None:
        running.append((f"{_now(shown).camera_fps:.0f} fps", SOFT))
    if shown.map_kind:
        mode = {"auto": "on NG", "always": "always", "off": "off"}[shown.map_mode]
        by = "" if shown.map_mode == "off" else f", {shown.map_kind}"
        running.append((f"heatmap {mode}{by}", SOFT))
    running.append(("? help", SOFT))
    rows = 2 if box.h > 3.5 * px else 1
    step = box.h // rows
    lines = [about + running] if rows == 1 else [about, running]
    for row, line in enumerate(lines):
        y = box.y + row * step + (step + px) // 2
        right = box.right - px
        if row == rows - 1 and heat is not None:
            right = _chip(canvas, right, y, *heat, px) - px
        _row(canvas, box.x + px, right, y, line, px)


def _row(
    canvas: np.ndarray, x: int, right: int, y: int, items: list[tuple[str, Colour]], px: int
) -> None:
    """Items from left to right; those that have no room are left out, the last first."""
    gap = 2 * px
    while len(items) > 1 and sum(text.width(s, px) + gap for s, _ in items) - gap > right - x:
        items = items[:-1]
    for said, colour in items:
        x += text.draw(canvas, text.shortened(said, right - x, px), (x, y), px, colour) + gap


def _now(shown: Shown) -> Scene | None:
    """The newest scene, frozen or not."""
    return shown.scene if shown.now is None else shown.now


def _heat(shown: Shown) -> tuple[str, Colour, Colour] | None:
    """Temperature and throttling in words, with the colours of the chip."""
    now = _now(shown)
    heat = None if now is None else now.heat
    if heat is None:
        return None
    flags = [flag for flag in sorted(heat.flags) if not flag.endswith("since boot")]
    if heat.temperature_c is None:
        said, fill, ink = "no temperature", GROUND, SOFT
    else:
        said = f"{heat.temperature_c:.0f}°C"
        fill, ink = {
            "normal": (GROUND, WHITE),
            "warm": (AMBER, BLACK),
            "hot": (RED, WHITE),
            "paused": (RED, WHITE),
        }.get(heat.state, (GROUND, WHITE))
        if heat.state != "normal":
            said = f"{heat.state.upper()} {said}"
    if flags:
        said, fill, ink = f"{said} {', '.join(flags)}", RED, WHITE
    return said, fill, ink


def _chip(
    canvas: np.ndarray, right: int, y: int, said: str, fill: Colour, ink: Colour, px: int
) -> int:
    """A filled box with text that ends at `right`; gives its left edge."""
    left = right - text.width(said, px) - px
    if fill != GROUND:
        box = Box(left, y - px - px // 2, right - left, 2 * px)
        _fill(canvas, box, fill)
    text.draw(canvas, said, (left + px // 2, y), px, ink)
    return left


# Notes over the picture


def _draw_notes(canvas: np.ndarray, where: Layout, shown: Shown) -> None:
    area, px = where.area.inset(where.px // 2), where.px
    bottom = area.bottom
    if shown.message:
        fill, ink = (RED, WHITE) if shown.alarm else (GROUND, WHITE)
        lines = text.wrapped(shown.message, area.w - 2 * px, px + px // 5, 3)
        bottom = _note(canvas, Box(area.x, area.y, area.w, area.h), lines, fill, ink, px, "bottom")
    if shown.aiming and shown.scene is not None and shown.scene.measures is not None:
        _draw_aim(canvas, Box(area.x, area.y, area.w, bottom - area.y), shown, px)
    left_w = area.w
    if shown.learning is not None:
        recording = Box(area.x + area.w // 2, area.y, area.w - area.w // 2, area.h)
        _draw_learning(canvas, recording, shown.learning, px)
        left_w = area.w // 2 - px // 2
    y = area.y
    lines = [line for line in _tags(shown) if line]
    for said, fill, ink in lines:
        box = Box(area.x, y, left_w, area.h)
        wrapped = text.wrapped(said, left_w - 2 * px, px, 2)
        y = _note(canvas, box, wrapped, fill, ink, px, "top") + px // 3
    if shown.timings and shown.scene is not None:
        rows = _timings(_now(shown))
        _note(canvas, Box(area.x, y, left_w, bottom - y), rows, GROUND, WHITE, px, "top")


def _tags(shown: Shown) -> list[tuple[str, Colour, Colour]]:
    tags = []
    scene = _now(shown)
    if shown.frozen:
        tags.append(("FROZEN, space goes on", AMBER, BLACK))
    if scene is not None and scene.ended:
        tags.append(("end of the source", AMBER, BLACK))
    if scene is not None and scene.frame.frame_bgr is None:
        tags.append(("NOT LIVE, the last picture there was", RED, WHITE))
    if scene is not None and scene.heat is not None:
        for said in scene.heat.degraded:
            tags.append((said, AMBER, BLACK))
    return tags


def _note(
    canvas: np.ndarray,
    box: Box,
    lines: list[str],
    fill: Colour,
    ink: Colour,
    px: int,
    end: str,
) -> int:
    """Lines on a ground, at the top or bottom of a box; gives the edge on the other side."""
    size = px if end == "top" else px + px // 5
    step = round(1.7 * size)
    lines = lines[: max((box.h - px) // step, 1)]
    w = min(max(text.width(line, size) for line in lines) + 2 * px, box.w)
    h = step * len(lines) + px // 2
    y = box.y if end == "top" else box.bottom - h
    ground = Box(box.x, y, w, h)
    _shade(canvas, ground, fill)
    for number, line in enumerate(lines):
        at = (box.x + px, y + px // 4 + step * number + (step + size) // 2)
        text.draw(canvas, text.shortened(line, w - 2 * px, size), at, size, ink)
    return y + h if end == "top" else y - px // 3


def _timings(scene: Scene) -> list[str]:
    rows = [
        f"camera {scene.camera_fps:.1f} fps, inspected {scene.inspected_fps:.1f}",
        f"dropped {scene.dropped}, skipped {scene.skipped}",
    ]
    stages = [f"{name} {ms:.2f}" for name, ms in scene.stages_ms.items()]
    # Two a row, in milliseconds.
    rows += [", ".join(stages[i : i + 2]) + " ms" for i in range(0, len(stages), 2)]
    return rows


def _draw_learning(canvas: np.ndarray, area: Box, learning: tuple[str, int, int], px: int) -> None:
    """A red dot, what is being learnt, and how far it is."""
    stage, done, of = learning
    count = f"{done} of {of}" if of else ""
    box = Box(area.x, area.y, area.w, round(5.6 * px))
    _shade(canvas, box, GROUND)
    inner = box.inset(px, px // 2)
    dot = round(0.6 * px)
    y = inner.y + round(1.5 * px)
    cv2.circle(canvas, (inner.x + dot, y - px // 2), dot, BRIGHT_RED, -1, cv2.LINE_AA)
    x = inner.x + 3 * dot
    right = inner.right - text.width(count, px, True)
    text.draw(canvas, count, (right, y), px, WHITE, bold=True)
    text.draw(canvas, text.shortened("LEARNING", right - x - px, px, True), (x, y), px, WHITE, True)
    y += round(1.6 * px)
    text.draw(canvas, text.shortened(stage, inner.w, px), (inner.x, y), px, SOFT)
    bar = Box(inner.x, y + px // 2 + 2, inner.w, max(px // 2, 5))
    _fill(canvas, bar, LINE)
    if of:
        _fill(canvas, Box(bar.x, bar.y, max(round(bar.w * min(done / of, 1.0)), 1), bar.h), WHITE)


def _draw_aim(canvas: np.ndarray, area: Box, shown: Shown, px: int) -> None:
    """Bars for focus and exposure at the bottom of the area."""
    measures = shown.scene.measures
    sharpest = max(shown.sharpest, 1e-6)
    rows = (
        ("sharpness", measures.sharpness / sharpest, f"{measures.sharpness / sharpest:.0%}", True),
        ("white", measures.clipped_share / FULL_CLIPPING, f"{measures.clipped_share:.1%}", False),
        ("black", measures.dark_share / FULL_CLIPPING, f"{measures.dark_share:.1%}", False),
    )
    step = round(1.9 * px)
    h = step * len(rows) + px
    box = Box(area.x, area.bottom - h, min(area.w, 44 * px), h)
    _shade(canvas, box, GROUND)
    inner = box.inset(px, px // 2)
    name_w = max(text.width(name, px) for name, *_ in rows) + px
    value_w = text.width("100.0%", px) + px
    for number, (name, share, value, good) in enumerate(rows):
        y = inner.y + number * step + (step + px) // 2
        text.draw(canvas, name, (inner.x, y), px, WHITE)
        bar = Box(inner.x + name_w, y - px, max(inner.w - name_w - value_w, 8), px)
        _fill(canvas, bar, LINE)
        filled = Box(bar.x, bar.y, max(round(bar.w * min(max(share, 0.0), 1.0)), 1), bar.h)
        _fill(canvas, filled, BRIGHT_GREEN if good else AMBER)
        x = inner.right - text.width(value, px)
        text.draw(canvas, value, (x, y), px, WHITE)


# Help


def _draw_help(canvas: np.ndarray, where: Layout) -> None:
    """All keys, over the picture, in one column or two, whichever has the larger letters."""
    height, width = canvas.shape[:2]
    # Down to the status: under it nothing is legible anyway.
    box = Box(0, 0, width, where.status.y)
    _fill(canvas, box, GROUND)
    px = max((_help_px(box, columns), columns) for columns in (1, 2))
    size, columns = px
    inner = box.inset(2 * size, size)
    step = inner.h / (_help_rows(columns) + 1.5)
    title = "Keys"
    text.draw(canvas, title, (inner.x, inner.y + round(1.2 * size)), round(1.2 * size), WHITE, True)
    label_w = max(text.width(key.label, size, True) for key in KEYS) + 2 * size
    for number, key in enumerate(KEYS):
        column, row = divmod(number, _help_rows(columns))
        x = inner.x + column * (inner.w // columns)
        y = inner.y + round((row + 2.2) * step)
        cap = Box(x, y - size - size // 2, label_w - size, 2 * size)
        _fill(canvas, cap, PANEL)
        text.draw(canvas, key.label, (x + size // 2, y), size, WHITE, bold=True)
        text.draw(canvas, key.help, (x + label_w, y), size, WHITE)


def _help_rows(columns: int) -> int:
    return -(-len(KEYS) // columns)


def _help_px(box: Box, columns: int) -> int:
    """The largest size of letters at which all keys fit."""
    for px in range(28, 7, -1):
        label_w = max(text.width(key.label, px, True) for key in KEYS) + 2 * px
        help_w = max(text.width(key.help, px) for key in KEYS)
        high = (_help_rows(columns) + 1.5) * 2.05 * px + 2 * px
        if columns * (label_w + help_w + 2 * px) + 2 * px <= box.w and high <= box.h:
            return px
    return 7


def _fill(canvas: np.ndarray, box: Box, colour: Colour) -> None:
    canvas[max(box.y, 0) : box.bottom, max(box.x, 0) : box.right] = colour


def _shade(canvas: np.ndarray, box: Box, colour: Colour) -> None:
    """A ground for text over a picture: nearly opaque, or the picture's texture reads as text."""
    part = canvas[max(box.y, 0) : box.bottom, max(box.x, 0) : box.right]
    ground = np.empty_like(part)
    ground[:] = colour
    cv2.addWeighted(ground, 0.88, part, 0.12, 0.0, dst=part)
