"""Defects drawn on pictures of good parts.

They stand in for the anomalies a user does not have: the decoder learns to redraw a picture
without them, and a choice between recipes can be made on good pictures alone. Shapes, sizes and
strengths are random; every kind changes real pixels and returns the mask of what it changed. The
idea of learning normality from pasted patches is that of CutPaste (Li et al., CVPR 2021) and of
restoring drawn-on surfaces that of DRAEM (Zavrtanik et al., ICCV 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

# A change that neither a camera nor an eye tells from sensor noise must not be called a defect.
SMALLEST_CHANGE = 6.0
SMALLEST_AREA_SHARE = 2e-4
TRIES = 20


def _outline(height: int, width: int, rng: np.random.Generator, smallest: float, largest: float):
    """Alpha map (H, W) float32 in 0..1 of one irregular filled outline at a random place."""
    side = min(height, width)
    radius = 0.5 * side * np.exp(rng.uniform(np.log(smallest), np.log(largest)))
    angles = np.sort(rng.uniform(0.0, 2.0 * np.pi, rng.integers(5, 14)))
    radii = radius * rng.uniform(0.55, 1.0, angles.size)
    flattening, turn = rng.uniform(0.35, 1.0), rng.uniform(0.0, np.pi)
    x, y = radii * np.cos(angles), flattening * radii * np.sin(angles)
    points = np.stack(
        [
            rng.uniform(0.03, 0.97) * width + np.cos(turn) * x - np.sin(turn) * y,
            rng.uniform(0.03, 0.97) * height + np.sin(turn) * x + np.cos(turn) * y,
        ],
        axis=1,
    )
    alpha = np.zeros((height, width), np.uint8)
    cv2.fillPoly(alpha, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    softness = rng.choice([0.0, 0.08, 0.3], p=[0.4, 0.4, 0.2]) * radius
    alpha = alpha.astype(np.float32) / 255.0
    return cv2.GaussianBlur(alpha, (0, 0), softness) if softness > 0.3 else alpha


def _tint(rng: np.random.Generator) -> np.ndarray:
    """Offset of brightness and a little colour, (3,) float32 in grey levels of either sign."""
    offset = rng.choice([-1.0, 1.0], p=[0.6, 0.4]) * rng.uniform(18.0, 110.0)
    return (offset * (1.0 + rng.uniform(-0.25, 0.25, 3) * rng.integers(0, 2))).astype(np.float32)


def _ripple(height: int, width: int, rng: np.random.Generator, cells: float) -> np.ndarray:
    """Smooth random field (H, W) float32, zero mean, unit deviation, `cells` bumps per side."""
    coarse = rng.standard_normal((int(cells) + 2, int(cells) + 2)).astype(np.float32)
    field = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return (field - field.mean()) / (field.std() + 1e-6)


def _blend(picture: np.ndarray, other: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return picture + alpha[..., None] * (other - picture)


def _walk(height: int, width: int, rng: np.random.Generator, wobble: float) -> np.ndarray:
    """Corner points (n, 2) float of a path that starts anywhere and turns by `wobble` radians."""
    side = min(height, width)
    steps = int(rng.integers(4, 12))
    length = side * np.exp(rng.uniform(np.log(0.08), np.log(0.8)))
    heading = rng.uniform(0.0, 2.0 * np.pi) + np.cumsum(rng.normal(0.0, wobble, steps))
    start = rng.uniform(0.05, 0.95, 2) * (width, height)
    moves = np.stack([np.cos(heading), np.sin(heading)], axis=1) * (length / steps)
    return start + np.vstack([np.zeros(2), np.cumsum(moves, axis=0)])


def _draw_paths(paths, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    alpha = np.zeros((height, width), np.uint8)
    thickest = max(2, round(min(height, width) / 48))
    for path in paths:
        points = np.round(path * 16).astype(np.int32)
        cv2.polylines(
            alpha, [points], False, 255, int(rng.integers(1, thickest + 1)), cv2.LINE_AA, shift=4
        )
    return alpha.astype(np.float32) / 255.0


def _cut_paste(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = picture.shape[:2]
    turn = rng.uniform(-180.0, 180.0) if rng.random() < 0.5 else 0.0
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), turn, rng.uniform(0.8, 1.25))
    matrix[:, 2] += rng.uniform(-0.5, 0.5, 2) * (width, height)
    moved = cv2.warpAffine(picture, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    return _blend(picture, moved * rng.uniform(0.8, 1.2), _outline(height, width, rng, 0.06, 1.0))


def _scratch(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = picture.shape[:2]
    path = _walk(height, width, rng, 0.12)
    paths = [path + rng.normal(0.0, 0.03 * width, 2) for _ in range(rng.integers(1, 4))]
    return picture + _draw_paths(paths, height, width, rng)[..., None] * _tint(rng)


def _crack(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = picture.shape[:2]
    trunk = _walk(height, width, rng, 0.6)
    paths = [trunk]
    for _ in range(rng.integers(0, 3)):
        branch = _walk(height, width, rng, 0.6)
        paths.append((branch - branch[0]) * 0.5 + trunk[rng.integers(trunk.shape[0])])
    alpha = _draw_paths(paths, height, width, rng)
    return picture * (1.0 - rng.uniform(0.35, 0.9) * alpha[..., None])


def _stain(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = picture.shape[:2]
    strength = rng.uniform(0.4, 1.0)
    mottle = 1.0 + 0.3 * _ripple(height, width, rng, rng.uniform(4, 16))
    alpha = strength * _outline(height, width, rng, 0.04, 0.6) * np.clip(mottle, 0.0, 1.5)
    return picture + alpha[..., None] * _tint(rng)


def _spots(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = picture.shape[:2]
    alpha = np.zeros((height, width), np.float32)
    for _ in range(rng.integers(1, 6)):
        alpha = np.maximum(alpha, _outline(height, width, rng, 0.02, 0.07))
    return picture + alpha[..., None] * _tint(rng)


def _blur(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = picture.shape[:2]
    sigma = rng.uniform(0.015, 0.06) * min(height, width)
    alpha = _outline(height, width, rng, 0.1, 0.5)
    return _blend(picture, cv2.GaussianBlur(picture, (0, 0), sigma), alpha)


def _noise(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = picture.shape[:2]
    grain = rng.standard_normal((height, width, 1)).astype(np.float32)
    if rng.random() < 0.6:
        grain = cv2.GaussianBlur(grain, (0, 0), rng.uniform(0.6, 2.5))[..., None]
    grain *= rng.uniform(20.0, 60.0) / (grain.std() + 1e-6)
    return picture + _outline(height, width, rng, 0.06, 0.5)[..., None] * grain


def _erase(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = picture.shape[:2]
    # A colour from the rim is what shows where a piece of the part has gone.
    rim = picture[[0, -1, rng.integers(height)], [0, -1, rng.integers(width)]]
    fill = rim[rng.integers(3)] if rng.random() < 0.7 else rng.uniform(0.0, 255.0, 3)
    other = np.broadcast_to(fill.astype(np.float32), picture.shape)
    return _blend(picture, other, _outline(height, width, rng, 0.05, 0.5))


def _cover(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = picture.shape[:2]
    # What lies at one edge of the picture, mirrored over the rest, is the station with a piece of
    # the part, or all of it, missing.
    turns = int(rng.integers(4))
    turned = np.rot90(picture, turns)
    strip = turned[:, : max(2, round(turned.shape[1] * rng.uniform(0.04, 0.15)))]
    tile = np.concatenate([strip, strip[:, ::-1]], axis=1)
    repeats = -(-turned.shape[1] // tile.shape[1])
    other = np.rot90(np.tile(tile, (1, repeats, 1))[:, : turned.shape[1]], -turns)
    if rng.random() < 0.25:
        return other
    return _blend(picture, other, _outline(height, width, rng, 0.08, 1.8))


def _shade(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = picture.shape[:2]
    alpha = _outline(height, width, rng, 0.2, 0.9)
    gain = rng.uniform(0.45, 0.8) if rng.random() < 0.6 else rng.uniform(1.2, 1.6)
    return _blend(picture, picture * gain, alpha)


def _warp(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = picture.shape[:2]
    alpha = _outline(height, width, rng, 0.15, 0.5)
    reach = rng.uniform(0.02, 0.07) * min(height, width)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x += reach * alpha * _ripple(height, width, rng, rng.uniform(2, 8))
    y += reach * alpha * _ripple(height, width, rng, rng.uniform(2, 8))
    return cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def _foreign(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = picture.shape[:2]
    if rng.random() < 0.5:
        y, x = np.mgrid[0:height, 0:width].astype(np.float32) / min(height, width)
        turn, pitch = rng.uniform(0.0, np.pi), rng.uniform(8.0, 40.0)
        pattern = np.sin(2 * np.pi * pitch * (x * np.cos(turn) + y * np.sin(turn)))
    else:
        pattern = _ripple(height, width, rng, rng.uniform(8, 40))
    other = rng.uniform(20, 235, 3) + rng.uniform(10, 60) * pattern[..., None]
    alpha = rng.uniform(0.5, 1.0) * _outline(height, width, rng, 0.05, 0.5)
    return _blend(picture, other.astype(np.float32), alpha)


_DRAWERS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "cut_paste": _cut_paste,
    "scratch": _scratch,
    "crack": _crack,
    "stain": _stain,
    "spots": _spots,
    "blur": _blur,
    "noise": _noise,
    "erase": _erase,
    "cover": _cover,
    "shade": _shade,
    "warp": _warp,
    "foreign": _foreign,
}
KINDS: tuple[str, ...] = tuple(_DRAWERS)


def draw_defect(
    picture_rgb: np.ndarray, rng: np.random.Generator, kinds: Sequence[str] = KINDS
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one defect of a random kind, place, size and strength on a picture.

    A defect too faint or too small to be seen at that place (a blur on plain ground, say) is
    drawn again elsewhere, perhaps of another kind.

    Parameters
    ----------
    picture_rgb : ndarray of shape (H, W, 3), uint8
        Left as it is.
    rng : numpy.random.Generator
        Only source of chance: the same state gives the same defect.
    kinds : sequence of str
        Names from `KINDS` to choose from, each equally likely.

    Returns
    -------
    picture_rgb : ndarray of shape (H, W, 3), uint8
        The picture with the defect.
    mask : ndarray of shape (H, W), bool
        True where a channel changed by at least `SMALLEST_CHANGE` grey levels (with the pixels
        enclosed by the change, closed over a few pixels). Never empty.

    Raises
    ------
    ValueError
        If the picture is not (H, W, 3) uint8 of at least 16 x 16 pixels or a kind is unknown.
    """
    if picture_rgb.ndim != 3 or picture_rgb.shape[2] != 3 or picture_rgb.dtype != np.uint8:
        raise ValueError(
            f"picture must be (H, W, 3) uint8, got {picture_rgb.shape} {picture_rgb.dtype}"
        )
    height, width = picture_rgb.shape[:2]
    if min(height, width) < 16:
        raise ValueError(f"picture must be at least 16 x 16 pixels, got {height} x {width}")
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        raise ValueError(f"unknown kinds {unknown}; choose from {', '.join(KINDS)}")

    picture = picture_rgb.astype(np.float32)
    # A camera that sees no colour never shows a coloured defect.
    is_grey = bool(np.all(picture_rgb == picture_rgb[..., :1]))
    for attempt in range(TRIES + 1):
        if attempt < TRIES:
            drawn = _DRAWERS[kinds[rng.integers(len(kinds))]](picture, rng)
        else:
            # A patch of the opposite brightness shows on any ground whatever.
            alpha = np.zeros((height, width), np.float32)
            alpha[height // 3 : height // 2, width // 3 : width // 2] = 1.0
            drawn = _blend(picture, np.where(picture < 128.0, 255.0, 0.0), alpha)
        if is_grey:
            drawn = np.broadcast_to(drawn.mean(axis=2, keepdims=True), picture.shape)
        drawn_rgb = np.clip(np.rint(drawn), 0, 255).astype(np.uint8)
        change = np.abs(drawn_rgb.astype(np.float32) - picture).max(axis=2)
        mask = (change >= SMALLEST_CHANGE).astype(np.uint8)
        if mask.sum() >= max(4, SMALLEST_AREA_SHARE * mask.size):
            break
    gap = max(3, 2 * round(min(height, width) / 100) + 1)
    element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (gap, gap))
    return drawn_rgb, cv2.morphologyEx(mask, cv2.MORPH_CLOSE, element).astype(bool)
