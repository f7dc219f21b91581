"""
Metal parts as height fields: their kinds, finishes and dimensions, and the defects of a nut.

A part is a height field seen from above. A defect changes its dimensions, its height or its
reflectance, never a finished picture.

Lengths without a unit in their name are in *apothems*: half the nominal nut's width across flats.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

DEFECTS = (
    "chipped_corner",
    "crack",
    "scratch",
    "stain",
    "wrong_thread",
    "wrong_size",
    "missing_nut",
)
# Thickness of each kind.
DEPTHS = {"nut": 1.05, "washer": 0.16, "socket_screw": 1.0, "gear": 0.5, "plate": 0.22}
KINDS = tuple(DEPTHS)


@dataclass(frozen=True)
class Finish:
    """
    How a surface was made.

    Attributes
    ----------
    lay : str
        Direction of the machining marks: ``"turned"`` (circles), ``"brushed"`` (lines) or
        ``"none"``.
    colour : tuple of float
        Reflectance, BGR, 0..1.
    along, across : float
        Ward roughness along and across the lay.
    marks : float
        Amplitude of the marks as a slope.
    gloss : float
        Weight of the highlight.
    """

    lay: str
    colour: tuple[float, float, float]
    along: float
    across: float
    marks: float
    gloss: float


FINISHES = {
    "turned": Finish("turned", (0.58, 0.56, 0.54), 0.09, 0.36, 0.075, 1.25),
    "brushed": Finish("brushed", (0.58, 0.575, 0.57), 0.11, 0.42, 0.10, 0.9),
    "zinc": Finish("none", (0.66, 0.62, 0.57), 0.26, 0.26, 0.05, 0.55),
    "brass": Finish("turned", (0.24, 0.52, 0.68), 0.12, 0.34, 0.07, 1.0),
    "black": Finish("none", (0.085, 0.08, 0.08), 0.22, 0.22, 0.06, 0.35),
}


@dataclass(frozen=True)
class Part:
    """
    What the part is: kind, finish, and the dimensions that a defect may change.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    finish : str
        A key of `FINISHES`.
    size : float
        Size against nominal.
    bore : float
        Radius of the bore.
    turns : float
        Turns of thread in the bore; 0 is a smooth bore.
    flaw, flaw_seed : str, int
        Surface defect drawn on the part (``""`` is none), and the seed of its shape.
    """

    kind: str = "nut"
    finish: str = "turned"
    size: float = 1.0
    bore: float = 0.60
    turns: float = 5.0
    flaw: str = ""
    flaw_seed: int = 0


@dataclass(frozen=True)
class Surface:
    """
    A part's surface at the points of a grid.

    Attributes
    ----------
    edge : ndarray, shape (rows, columns), float32
        Distance from the outer edge, negative inside.
    height : ndarray, shape (rows, columns), float32
        Height over the top face, mostly negative.
    body_gain : ndarray, shape (3, rows, columns), float32
        Factor on the reflectance, BGR; 1 without a flaw.
    gloss_gain : ndarray, shape (rows, columns), float32
        Factor on the highlight; 1 without a flaw.
    rough : ndarray, shape (rows, columns), float32
        0 where the finish is whole, towards 1 where it is broken.
    """

    edge: np.ndarray
    height: np.ndarray
    body_gain: np.ndarray
    gloss_gain: np.ndarray
    rough: np.ndarray


def defective(rng: np.random.Generator, part: Part, defect: str) -> Part:
    """
    Give a nut one defect.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the defect's size, strength and place.
    part : Part
        A good nut.
    defect : str
        One of `DEFECTS` but ``"missing_nut"``, which is no part at all.

    Returns
    -------
    Part

    Raises
    ------
    ValueError
        If the defect has no such name.
    """
    if defect in ("chipped_corner", "crack", "scratch", "stain"):
        return replace(part, flaw=defect, flaw_seed=int(rng.integers(0, 2**62)))
    if defect == "wrong_thread":
        turns = rng.choice([0.0, rng.uniform(2.2, 3.2), rng.uniform(7.5, 8.5)])
        return replace(part, turns=float(turns))
    if defect == "wrong_size":
        ranges = [(0.84, 0.93), (1.06, 1.11)]
        if rng.random() < 0.5:
            low, high = ranges[rng.integers(2)]
            return replace(part, size=part.size * float(rng.uniform(low, high)))
        low, high = [(0.78, 0.89), (1.10, 1.20)][rng.integers(2)]
        return replace(part, bore=part.bore * float(rng.uniform(low, high)))
    raise ValueError(f"defect {defect!r} is none of {', '.join(DEFECTS)}")


def make_surface(
    part: Part, u: np.ndarray, v: np.ndarray, r: np.ndarray, theta: np.ndarray
) -> Surface:
    """
    Surface of a part, its flaw included.

    Parameters
    ----------
    part : Part
    u, v : ndarray, shape (rows, columns), float32
        Points in the part's own axes, from its centre.
    r, theta : ndarray, shape (rows, columns), float32
        The same points in polar form; theta in radians, 0..2 pi.

    Returns
    -------
    Surface
    """
    size = np.float32(part.size)
    edge = edge_distance(part.kind, u / size, v / size, r / size, theta)
    height = _height(part, edge, u / size, v / size, r / size) * size
    edge *= size
    body_gain = np.ones((3, *u.shape), np.float32)
    surface = Surface(edge, height, body_gain, np.ones_like(u), np.zeros_like(u))
    if part.flaw:
        _add_flaw(part, surface, u, v)
    return surface


def edge_distance(
    kind: str, u: np.ndarray, v: np.ndarray, r: np.ndarray, theta: np.ndarray
) -> np.ndarray:
    """
    Distance from the outer edge of a part of nominal size, negative inside.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    u, v, r, theta : ndarray, shape (rows, columns), float32
        Points as for `make_surface`.

    Returns
    -------
    ndarray, shape (rows, columns), float32
    """
    if kind == "nut":
        return _hexagon(u, v, 1.0)
    if kind == "washer":
        return r - 1.05
    if kind == "socket_screw":
        return r - 1.0
    if kind == "gear":
        return r - 0.95 - 0.17 * np.clip(0.5 + 1.6 * np.cos(18 * theta), 0, 1)
    over_u, over_v = np.abs(u) - 0.75, np.abs(v) - 0.75
    rounded = np.hypot(np.maximum(over_u, 0), np.maximum(over_v, 0))
    return rounded + np.minimum(np.maximum(over_u, over_v), 0) - 0.2


def holes(part: Part) -> list[tuple[float, float, float, float]]:
    """
    Round through holes of a part of nominal size.

    Parameters
    ----------
    part : Part

    Returns
    -------
    list of tuple of float
        Each hole's centre u and v, radius, and turns of thread.
    """
    if part.kind == "nut":
        return [(0, 0, part.bore, part.turns)]
    if part.kind == "washer":
        return [(0, 0, part.bore * 0.95, 0.0)]
    if part.kind == "gear":
        return [(0, 0, part.bore * 0.55, 0.0)]
    if part.kind == "plate":
        corners = [(u, v, 0.14, 0.0) for u in (-0.62, 0.62) for v in (-0.62, 0.62)]
        return [*corners, (0, 0, part.bore * 0.6, part.turns)]
    return []


def periodic_noise(
    rng: np.random.Generator, shape: tuple[int, int], sigma_x: float, sigma_y: float
) -> np.ndarray:
    """
    Gaussian noise of unit deviation, smoothed by a Gaussian, periodic along both axes.

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : tuple of int
    sigma_x, sigma_y : float
        Widths of the smoothing, in pixels.

    Returns
    -------
    ndarray, shape `shape`, float32
    """
    pad_x, pad_y = int(3 * sigma_x) + 1, int(3 * sigma_y) + 1
    noise = rng.standard_normal(shape, np.float32)
    wrapped = cv2.copyMakeBorder(noise, pad_y, pad_y, pad_x, pad_x, cv2.BORDER_WRAP)
    wrapped = cv2.GaussianBlur(wrapped, (0, 0), sigmaX=sigma_x, sigmaY=sigma_y)
    noise = wrapped[pad_y:-pad_y, pad_x:-pad_x]
    return noise / noise.std()


def sample(texture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """
    Read a periodic texture at fractional positions.

    Parameters
    ----------
    texture : ndarray, shape (height, width), float32
    x, y : ndarray, shape (rows, columns), float32
        Positions in the texture's pixels.

    Returns
    -------
    ndarray, shape (rows, columns), float32
    """
    return cv2.remap(texture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def _height(
    part: Part, edge: np.ndarray, u: np.ndarray, v: np.ndarray, r: np.ndarray
) -> np.ndarray:
    """Height of a part's surface over its local plane; 0 is its top face."""
    # every edge is a little rounded, and it is the edge that catches the light
    height = -12 * np.maximum(edge + 0.035, 0) ** 2
    if part.kind == "nut":
        height -= 0.55 * _ramp(r - 0.93, 0.010)
    elif part.kind == "socket_screw":
        socket = _hexagon(u, v, part.bore * 0.85)
        height -= 0.6 * _ramp(r - 0.92, 0.03)
        height -= 0.6 * np.clip(-socket / 0.05, 0, 1) + 0.25 * _ramp(-socket - 0.2, 0.1)
    elif part.kind == "gear":
        web = np.clip((r - part.bore) / 0.04, 0, 1) * np.clip((0.8 - r) / 0.04, 0, 1)
        height -= 0.12 * web
    for hole_u, hole_v, radius, _ in holes(part):
        away = np.hypot(u - np.float32(hole_u), v - np.float32(hole_v)) if hole_u else r
        height -= 0.8 * _ramp(radius * 1.10 - away, 0.012)
    return height


def _hexagon(u: np.ndarray, v: np.ndarray, apothem: float) -> np.ndarray:
    """Distance to a hexagon with flats parallel to u, negative inside (exact at the flats)."""
    cos30, sin30 = np.float32(np.cos(np.pi / 6)), np.float32(0.5)
    flats = np.maximum(np.abs(u * cos30 + v * sin30), np.abs(u * cos30 - v * sin30))
    return np.maximum(flats, np.abs(v)) - np.float32(apothem)


def _ramp(x: np.ndarray, soft: float) -> np.ndarray:
    """max(x, 0) with a rounded knee of width `soft`."""
    return 0.5 * (x + np.sqrt(x * x + np.float32(soft * soft)))


def _add_flaw(part: Part, surface: Surface, u: np.ndarray, v: np.ndarray) -> None:
    """Draw the part's surface defect into its surface, in place."""
    edge, height, rough = surface.edge, surface.height, surface.rough
    body_gain, gloss_gain = surface.body_gain, surface.gloss_gain
    rng = np.random.default_rng(part.flaw_seed)
    if part.flaw == "chipped_corner":
        corner = rng.integers(6) * np.pi / 3 + rng.uniform(-0.14, 0.14)
        cos, sin = np.float32(np.cos(corner)), np.float32(np.sin(corner))
        inward = u * cos + v * sin
        facets = periodic_noise(rng, (64, 64), 2.2, 2.2)
        grit = sample(periodic_noise(rng, (64, 64), 1.0, 1.0), u * 45 + 400, v * 45 + 400)
        jag = 0.016 * sample(facets, u * 26 + 400, v * 26 + 400)
        size = rng.uniform(0.15, 0.29)
        broken = inward - np.float32(1.155 - size) + jag
        # the corner is gone, and below it a conchoidal face slopes from the top to the break
        np.maximum(edge, broken - np.float32(0.55 * size) + jag, out=edge)
        face = np.clip(broken / 0.03, 0, 1)
        height -= 0.9 * _ramp(broken, 0.012) + face * (1.1 * jag + 0.0015 * grit)
        body_gain *= 1 - face * (0.30 - 0.06 * grit)
        gloss_gain *= 1 - 0.7 * face
        rough += 0.25 * face
    elif part.flaw == "crack":
        angle = rng.uniform(0, 2 * np.pi)
        radii = np.linspace(part.bore * 0.98, rng.uniform(0.86, 1.05), 14)
        walk = np.cumsum(rng.normal(0, 0.03, radii.size)) + angle
        half = rng.uniform(0.005, 0.011)
        widths = (
            half * np.linspace(1.2, 0.5, radii.size - 1) * rng.uniform(0.7, 1.2, radii.size - 1)
        )
        points = np.stack([radii * np.cos(walk), radii * np.sin(walk)], axis=1)
        groove = np.zeros_like(u)
        for start, end, width in zip(points[:-1], points[1:], widths, strict=True):
            np.maximum(groove, _stroke(u, v, start, end, width), out=groove)
        height -= 0.03 * groove
        body_gain *= 1 - 0.88 * groove
        gloss_gain *= 1 - 0.95 * groove
    elif part.flaw == "scratch":
        angle = rng.uniform(0, 2 * np.pi)
        middle = rng.uniform(0.70, 0.88) * np.array([np.cos(angle), np.sin(angle)])
        direction = angle + np.pi / 2 + rng.uniform(-0.9, 0.9)
        for _ in range(rng.integers(1, 4)):
            centre = middle + rng.normal(0, 0.05, 2)
            along = direction + rng.normal(0, 0.08)
            reach = rng.uniform(0.16, 0.36) * np.array([np.cos(along), np.sin(along)])
            line = _stroke(u, v, centre - reach, centre + reach, rng.uniform(0.006, 0.010))
            depth = rng.uniform(0.8, 1.0)
            height -= 0.012 * depth * line
            # a fresh groove throws light to all sides: bright on both the dull and the shiny side
            body_gain *= 1 + 0.9 * depth * line
            gloss_gain *= 1 - 0.5 * line
            np.maximum(rough, 0.06 * line, out=rough)
    else:
        angle = rng.uniform(0, 2 * np.pi)
        away = rng.uniform(0.72, 0.92)
        spread = rng.uniform(0.10, 0.24)
        du = (u - np.float32(away * np.cos(angle))) / np.float32(spread)
        dv = (v - np.float32(away * np.sin(angle))) / np.float32(spread * rng.uniform(0.7, 1.4))
        cloud = sample(periodic_noise(rng, (64, 64), 3.0, 3.0), u * 40 + 300, v * 40 + 300)
        spot = np.clip((1.15 - np.sqrt(du * du + dv * dv) + 0.42 * cloud) / 0.45, 0, 1)
        rim = 4 * spot * (1 - spot)
        strength = np.float32(rng.uniform(0.6, 0.95))
        tint = [(0.10, 0.26, 0.56), (0.22, 0.28, 0.34)][rng.integers(2)]
        weight = strength * np.clip(spot * (0.85 + 0.12 * cloud) + 0.20 * rim, 0, 1)
        for plane, share in zip(body_gain, tint, strict=True):
            plane *= 1 - weight * np.float32(1 - share)
        gloss_gain *= 1 - 0.85 * weight


def _stroke(
    u: np.ndarray, v: np.ndarray, start: np.ndarray, end: np.ndarray, half: float
) -> np.ndarray:
    """Profile of a straight groove, 1 on its line, fading to 0 at twice its half width."""
    delta = (end - start).astype(np.float32)
    span = float(delta @ delta)
    du, dv = u - np.float32(start[0]), v - np.float32(start[1])
    t = np.clip((du * delta[0] + dv * delta[1]) / span, 0, 1)
    away = np.hypot(du - t * delta[0], dv - t * delta[1])
    return np.clip(2 - away / np.float32(half), 0, 1)
