"""The pictures that matter: missed defects, good parts that look bad, those near the threshold."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from edge_app.heatmap import overlay
from edge_app.inspector import Inspector
from edge_app.records import Frame, Verdict
from edge_app.sources.folder import read_picture
from tools.evaluate import Judged, align_anyway
from tools.inspection_set import read_mask
from tools.report_html import count, image, text
from tools.report_measures import JUDGED

# Long sides of the pictures, pixels: 8 to 25 kB each in base64.
FRAME_SIDE, CROP_SIDE = 300, 200
# Pictures shown of each kind, at most: with three views each they stay below 1.5 MB.
MOST_SHOWN = {"missed": 6, "good": 4, "near": 4, "found": 4, "unjudged": 3}
# Pixels between a defect and the line around it, so that the line hides nothing of it.
LINE_AWAY = 2


def gallery(inspector: Inspector, judged: Sequence[Judged]) -> str:
    """
    The best, the worst and the borderline pictures, each shown once.

    Parameters
    ----------
    inspector : Inspector
        The one that judged; what is shown goes through it once more.
    judged : sequence of Judged

    Returns
    -------
    section : str
        HTML.

    Raises
    ------
    InputError
        If a picture can no longer be read.
    """
    rising = sorted(judged, key=lambda one: one.score)
    sure = [one for one in rising if one.verdict in JUDGED]
    defects = [one for one in sure if one.picture.is_anomaly]
    good = [one for one in reversed(sure) if not one.picture.is_anomaly]
    missed = [one for one in defects if one.verdict is Verdict.OK]
    found = [one for one in reversed(defects) if one.verdict is Verdict.NG]
    near = sorted(sure, key=lambda one: abs(one.score - inspector.threshold))
    unjudged = [one for one in judged if one.verdict not in JUDGED]
    alarms = sum(one.verdict is Verdict.NG for one in good)
    slipped = f"Missed: {count(len(missed), 'defect')} called OK, lowest scores first"
    blocks = [
        ("missed", slipped if missed else "Missed: no defect was called OK", missed),
        ("good", f"Good pictures that score highest; {alarms} of {len(good)} called NG", good),
        ("near", "Nearest to the threshold, of the others", near),
        ("found", "Defects that score highest", found),
        ("unjudged", f"Not judged: {count(len(unjudged), 'picture')}", unjudged),
    ]
    views = ["the frame"]
    if inspector.heatmap_kinds:
        views[0] += ", painted where it is unlike good parts"
    if any(one.picture.mask_path for one in judged):
        views[0] += ", the defect's mask outlined"
    views.append("the part as it is compared")
    if inspector.decoder is not None:
        views.append("its redraw by the decoder, which should lack the defect")
    paint = "This bundle has no heatmap."
    if inspector.heatmap_kinds:
        paint = (
            "The paint's scale is the bundle's own, the same for all pictures: good parts should "
            "stay bare."
        )
    lines = [
        "<h2>The pictures that matter</h2>",
        f"<p>Each with: {'; '.join(views)}. {paint}</p>",
    ]
    shown: set[int] = set()
    for kind, title, chosen in blocks:
        fresh = [one for one in chosen if id(one) not in shown][: MOST_SHOWN[kind]]
        shown.update(id(one) for one in fresh)
        if fresh or kind == "missed":
            lines.append(f"<h3>{text(title)}</h3>")
        if fresh:
            cards = "".join(_card(inspector, one) for one in fresh)
            lines.append(f'<div class="shown">{cards}</div>')
    return "\n".join(lines)


def _card(inspector: Inspector, one: Judged) -> str:
    """One picture with its heatmap and, where there is a decoder, its redraw."""
    picture = one.picture
    frame = Frame(0, str(picture.path), read_picture(picture.path))
    frame_bgr = frame.frame_bgr
    seen = inspector.look(frame, align_anyway(inspector, frame))
    if inspector.heatmap_kinds:
        frame_bgr = overlay(frame_bgr, inspector.heatmap(seen))
    mask = None
    if picture.mask_path is not None:
        mask = read_mask(picture.mask_path, frame_bgr.shape[:2])
    name = picture.path.name
    views = [
        image(outlined(frame_bgr, mask), FRAME_SIDE, name),
        image(_unsquashed(seen.pixels_rgb, seen.matrix), CROP_SIDE, f"{name}, as compared"),
    ]
    if inspector.decoder is not None:
        redraw_01 = np.clip(inspector.decoder.redraw(seen.encoding), 0, 1)
        redraw = _unsquashed((redraw_01 * 255 + 0.5).astype(np.uint8), seen.matrix)
        views.append(image(redraw, CROP_SIDE, f"{name}, redrawn"))
    truth = f"defective: {picture.defect}" if picture.is_anomaly else "good"
    wrong = one.verdict is (Verdict.OK if picture.is_anomaly else Verdict.NG)
    reason = f" ({one.reason})" if one.reason else ""
    return (
        f'<figure><div class="views">{"".join(views)}</div><figcaption>'
        f"<b{' class=ng' if wrong else ''}>{one.verdict}</b><span>{text(truth)}; "
        f"score {one.score:.4g}, threshold {inspector.threshold:.4g}{text(reason)}</span>"
        f"<span><bdi>{text(name)}</bdi></span></figcaption></figure>"
    )


def _unsquashed(pixels_rgb: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """A crop as BGR at the aspect that it has in the frame, its long side `CROP_SIDE`."""
    height, width = pixels_rgb.shape[:2]
    across, down = width * np.hypot(*matrix[:, 0]), height * np.hypot(*matrix[:, 1])
    scale = CROP_SIDE / max(across, down)
    size = (max(1, round(scale * across)), max(1, round(scale * down)))
    return cv2.resize(pixels_rgb[:, :, ::-1], size, interpolation=cv2.INTER_AREA)


def outlined(frame_bgr: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """
    A picture at the size it is shown at, with a line around the defect, white on black.

    Parameters
    ----------
    frame_bgr : ndarray of uint8, shape (H, W, 3)
    mask : ndarray of bool, shape (H, W), or None

    Returns
    -------
    ndarray of uint8, shape (h, w, 3)
        Its longer side `FRAME_SIDE` at most.
    """
    scale = min(1.0, FRAME_SIDE / max(frame_bgr.shape[:2]))
    size = tuple(max(1, round(scale * side)) for side in frame_bgr.shape[1::-1])
    small = cv2.resize(frame_bgr, size, interpolation=cv2.INTER_AREA)
    if mask is None:
        return small
    # Any part of a pixel counts: a hair crack must not vanish.
    inside = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
    for away, colour in ((LINE_AWAY, (0, 0, 0)), (LINE_AWAY + 1, (255, 255, 255))):
        grown = cv2.dilate(inside.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=away)
        found, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(small, found, -1, colour, 1)
    return small
