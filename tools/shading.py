"""
Light of a metal part: from its height field to what a close camera above it sees.

The surface's normals are lit by a softbox environment and by one lamp with Ward's anisotropic
highlight [1]_, which is what makes turned steel look turned. The wall of each hole is traced in
closed form under the same perspective, so that its thread is seen. A part is drawn at twice the
resolution and reduced by area.

Light is linear, float32, BGR, 1.0 = sensor full scale. Lengths without a unit in their name are in
*apothems*: half the nominal nut's width across flats.

.. [1] G. J. Ward, "Measuring and Modeling Anisotropic Reflection", SIGGRAPH 1992.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from tools.metal_part import (
    DEPTHS,
    FINISHES,
    Finish,
    Part,
    edge_distance,
    holes,
    make_surface,
    periodic_noise,
    sample,
)

# Camera distance above the top face. It is short so that a bore shows a broad ring of its wall:
# from far away the thread would be invisible and a wrong one could not be inspected from above.
_CAMERA_DISTANCE = 2.5
_OVERSAMPLE = 2


@dataclass(frozen=True)
class Pose:
    """
    Where the part lies.

    Attributes
    ----------
    x_px, y_px : float
        Offset of the part's centre from the centre of the picture, right and down.
    angle_deg : float
        Rotation; 0 has two flats of a nut parallel to the rails.
    scale : float
        Size against nominal (distance of the camera, not a defect).
    """

    x_px: float = 0.0
    y_px: float = 0.0
    angle_deg: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True)
class Appearance:
    """
    What differs from picture to picture although part and station are the same.

    Attributes
    ----------
    azimuth_deg, elevation_deg : float
        Direction to the lamp; azimuth 0 is right, 90 is down in the picture.
    exposure : float
        Gain of the camera, 1.0 is nominal.
    cast_bgr : tuple of float
        Gain of each channel.
    blur_px : float
        Standard deviation of the defocus.
    motion_px : int
        Width of the motion blur along the belt; 1 is none.
    belt_px : int
        How far the belt has run.
    surface_seed : int
        Seed of the part's own surface: the same part shows the same marks in each of its frames.
    """

    azimuth_deg: float
    elevation_deg: float
    exposure: float
    cast_bgr: tuple[float, float, float]
    blur_px: float
    motion_px: int
    belt_px: int
    surface_seed: int


@dataclass(frozen=True)
class _Grid:
    """
    The oversampled pixels around a part, in its scale.

    `x`, `y` from the part's centre, right and down; `u`, `v` the same points in the part's own
    axes, turned by `cos`, `sin`; `r`, `theta` polar; `axis_x`, `axis_y` the camera's optical axis;
    `pixel` pixels in an apothem, `step` apothems in a pixel.
    """

    x: np.ndarray
    y: np.ndarray
    u: np.ndarray
    v: np.ndarray
    r: np.ndarray
    theta: np.ndarray
    cos: np.float32
    sin: np.float32
    axis_x: np.float32
    axis_y: np.float32
    pixel: np.float32
    step: np.float32


def draw_layer(
    size: tuple[int, int], apothem_px: float, part: Part, pose: Pose, appearance: Appearance
) -> tuple[tuple[int, int], np.ndarray, np.ndarray, np.ndarray] | None:
    """
    Draw a part alone.

    Parameters
    ----------
    size : tuple of int
        Height and width of the picture in pixels.
    apothem_px : float
        Half the nominal nut's width across flats, before the pose's scale.
    part : Part
    pose : Pose
    appearance : Appearance

    Returns
    -------
    place : tuple of int
        Top and left of what follows, in the picture.
    colour : ndarray, shape (rows, columns, 3), float32
        The part's light times its coverage.
    alpha : ndarray, shape (rows, columns), float32
        Its coverage, 0 where the ground is seen, as through the bore.
    outline : ndarray, shape (rows, columns), float32
        Its coverage with the holes filled.

    Instead of all four, None if the part is outside the picture.
    """
    height, width = size
    apothem_px = apothem_px * pose.scale
    centre_x, centre_y = width / 2 + pose.x_px, height / 2 + pose.y_px
    # far from the optical axis a side of the part shows beside its top
    slant = max(np.hypot(pose.x_px, pose.y_px) / apothem_px - 0.9, 0)
    reach = (1.30 * max(part.size, 1.0) + 0.3 * slant) * apothem_px + 2
    left, right = max(int(centre_x - reach), 0), min(int(centre_x + reach) + 1, width)
    top, bottom = max(int(centre_y - reach), 0), min(int(centre_y + reach) + 1, height)
    if left >= right or top >= bottom:
        return None
    n = _OVERSAMPLE
    x_px = (np.arange(left * n, right * n, dtype=np.float32) + 0.5) / n - np.float32(centre_x)
    y_px = (np.arange(top * n, bottom * n, dtype=np.float32) + 0.5) / n - np.float32(centre_y)
    grid = _grid(x_px, y_px, apothem_px, pose)
    colour, alpha, filled = _draw_top(part, grid, np.radians(pose.angle_deg), appearance)
    for hole in holes(part):
        _add_hole(hole, part, grid, appearance, colour, alpha)
    colour *= alpha
    if slant:
        _add_sides(part, grid, appearance, colour, alpha, filled)
    planes = [
        cv2.resize(plane, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
        for plane in (*colour, alpha, filled)
    ]
    return (top, left), cv2.merge(planes[:3]), planes[3], planes[4]


def _grid(x_px: np.ndarray, y_px: np.ndarray, apothem_px: float, pose: Pose) -> _Grid:
    """Grid over the columns `x_px` and rows `y_px`, pixels from the part's centre."""
    x = np.broadcast_to(x_px[None, :] / np.float32(apothem_px), (y_px.size, x_px.size))
    y = np.broadcast_to(y_px[:, None] / np.float32(apothem_px), (y_px.size, x_px.size))
    angle = np.radians(pose.angle_deg)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = x * cos + y * sin, y * cos - x * sin
    r, theta = cv2.cartToPolar(u, v)
    axis_x = np.float32(-pose.x_px / apothem_px)
    axis_y = np.float32(-pose.y_px / apothem_px)
    scale = _OVERSAMPLE * apothem_px
    pixel, step = np.float32(scale), np.float32(1 / scale)
    return _Grid(x, y, u, v, r, theta, cos, sin, axis_x, axis_y, pixel, step)


def _draw_top(
    part: Part, grid: _Grid, angle: float, appearance: Appearance
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Light of the part seen from above, its coverage, and its filled outline (a copy of it)."""
    finish = FINISHES[part.finish]
    rng = np.random.default_rng(appearance.surface_seed)
    # marks are long along the lay: a coarse column step there saves most of the work
    marks = periodic_noise(rng, (256, 64), 1.6, 0.8)
    grain = periodic_noise(rng, (128, 128), 0.9, 0.9)
    cloud = periodic_noise(rng, (64, 64), 5.0, 5.0)
    lay = np.radians(rng.uniform(-12, 12))
    feed = rng.uniform(0.9, 1.1)

    x, y, u, v, r = grid.x, grid.y, grid.u, grid.v, grid.r
    surface = make_surface(part, u, v, r, grid.theta)
    relief, rough = surface.height, surface.rough
    slope_x = cv2.Sobel(relief, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8) / grid.step
    slope_y = cv2.Sobel(relief, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8) / grid.step
    # direction of the lay in the picture, and the slope of its marks across it
    if finish.lay == "turned":
        safe = np.maximum(r, 1e-3)
        tx, ty = -y / safe, x / safe
        mark = sample(marks, grid.theta * np.float32(64 / (2 * np.pi)), r * 190)
        mark += 0.55 * np.sin(r * np.float32(150 * feed))
    else:
        turn = angle + lay
        tx = np.full_like(u, np.cos(turn))
        ty = np.full_like(u, np.sin(turn))
        lay_cos, lay_sin = np.float32(np.cos(lay)), np.float32(np.sin(lay))
        lay_u, lay_v = u * lay_cos + v * lay_sin, v * lay_cos - u * lay_sin
        stretch_u, stretch_v = (12, 160) if finish.lay == "brushed" else (250, 125)
        mark = sample(marks, lay_u * stretch_u + 320, lay_v * stretch_v + 512)
    fine = sample(grain, u * 150 + 300, v * 150 + 300)
    mark = finish.marks * mark * (1 - 0.8 * rough)
    isotropic = (0.02 + 0.55 * rough) * fine
    slope_x = slope_x - ty * mark + isotropic
    slope_y = slope_y + tx * mark + isotropic * np.float32(0.6)

    view = (grid.axis_x - x) / _CAMERA_DISTANCE, (grid.axis_y - y) / _CAMERA_DISTANCE
    body, highlight = _shade(slope_x, slope_y, view, (tx, ty), finish, appearance)
    patina = 1 + 0.035 * sample(cloud, u * 12 + 32, v * 12 + 32) + 0.02 * fine
    # what lies below the top face sees less of the room
    body *= patina / (1 + 0.9 * np.maximum(-relief, 0))
    highlight *= surface.gloss_gain
    colour = np.empty((3, *u.shape), np.float32)
    for plane, gain, reflectance in zip(colour, surface.body_gain, finish.colour, strict=True):
        # what a rough metal mirrors at a slant is a little less coloured than its body
        np.multiply(body * np.float32(reflectance), gain, out=plane)
        plane += highlight * np.float32(0.5 * reflectance + 0.25)
    filled = np.clip(0.5 - surface.edge * grid.pixel, 0, 1)
    return colour, filled.copy(), filled


def cast_shadow(
    size: tuple[int, int], apothem_px: float, part: Part, pose: Pose, appearance: Appearance
) -> np.ndarray:
    """
    Share of the light that reaches the ground around a part.

    Parameters
    ----------
    size, apothem_px, part, pose, appearance
        As for `draw_layer`.

    Returns
    -------
    ndarray, shape (height, width), float32
        1 where nothing is kept from the ground.
    """
    height, width = size
    lx, ly, lz = _lamp(appearance)
    depth = DEPTHS[part.kind] * part.size
    # the foot lies deeper than the top, so it is seen smaller and nearer to the optical axis
    shrink = 1 / (1 + depth / _CAMERA_DISTANCE)
    scale = shrink * apothem_px * pose.scale
    corners = np.arange(6) * np.pi / 3 + np.radians(pose.angle_deg)
    foot = np.stack([np.cos(corners), np.sin(corners)], axis=1) * 1.155 * part.size * scale
    foot += (width / 2 + shrink * pose.x_px, height / 2 + shrink * pose.y_px)
    top = foot - np.array([lx, ly]) / lz * depth * scale
    cast = cv2.convexHull(np.concatenate([foot, top]).astype(np.float32))[:, 0]
    light = np.ones((height, width), np.float32)
    # the lamp's own shadow, and the room's light that the part keeps from the ground beside it
    for points, sigma, darkness in ((cast, 0.09, 0.50), (foot, 0.22, 0.55), (foot, 0.06, 0.45)):
        cover = np.zeros((height, width), np.float32)
        cv2.fillConvexPoly(cover, np.rint(points * 16).astype(np.int32), 1.0, cv2.LINE_8, 4)
        light *= 1 - darkness * cv2.GaussianBlur(cover, (0, 0), sigma * scale)
    return light


def _add_sides(
    part: Part,
    grid: _Grid,
    appearance: Appearance,
    colour: np.ndarray,
    alpha: np.ndarray,
    filled: np.ndarray,
) -> None:
    """
    Draw the sides that a part off the optical axis shows, behind its top, all in place.

    The outline at each depth is the top's, shrunk towards the axis; what it adds is side.
    """
    cos, sin, pixel = grid.cos, grid.sin, grid.pixel
    axis_u = grid.axis_x * cos + grid.axis_y * sin
    axis_v = grid.axis_y * cos - grid.axis_x * sin
    lx, ly, _ = _lamp(appearance)
    size = np.float32(part.size)
    depth = DEPTHS[part.kind] * part.size
    # neighbouring outlines lie about a pixel apart
    levels = int(0.35 * np.hypot(grid.axis_x, grid.axis_y) * pixel / _OVERSAMPLE) + 2
    for level in np.linspace(0, 1, levels)[1:]:
        shrink = np.float32(1 / (1 + level * depth / _CAMERA_DISTANCE))
        u = ((grid.u - axis_u) / shrink + axis_u) / size
        v = ((grid.v - axis_v) / shrink + axis_v) / size
        edge = edge_distance(part.kind, u, v, *cv2.cartToPolar(u, v)) * size * shrink
        added = np.maximum(np.clip(0.5 - edge * pixel, 0, 1) - filled, 0)
        gx = cv2.Sobel(edge, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8) * pixel
        gy = cv2.Sobel(edge, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8) * pixel
        lit = np.maximum(gx * np.float32(lx) + gy * np.float32(ly), 0)
        light = (0.16 + 0.42 * lit) * np.float32(1 - 0.55 * level)
        for plane, reflectance in zip(colour, FINISHES[part.finish].colour, strict=True):
            plane += added * light * np.float32(reflectance)
        alpha += added
        filled += added


def _add_hole(
    hole: tuple[float, float, float, float],
    part: Part,
    grid: _Grid,
    appearance: Appearance,
    colour: np.ndarray,
    alpha: np.ndarray,
) -> None:
    """
    Draw a round hole: its wall and thread into `colour`, the ground seen through it into `alpha`.

    A circle of the wall at depth z is seen shrunk by s = 1 / (1 + z / distance) towards the optical
    axis a. With t = 1 - s, a pixel p sees the wall where |p - a t| = radius (1 - t), a quadratic.
    """
    local_u, local_v, radius, turns = hole
    depth = DEPTHS[part.kind]
    radius = np.float32(radius * part.size)
    finish = FINISHES[part.finish]
    cos, sin, pixel = grid.cos, grid.sin, grid.pixel
    centre_x = np.float32(part.size) * (local_u * cos - local_v * sin)
    centre_y = np.float32(part.size) * (local_u * sin + local_v * cos)
    columns = np.flatnonzero(np.abs(grid.x[0] - centre_x) < radius + 0.03)
    rows = np.flatnonzero(np.abs(grid.y[:, 0] - centre_y) < radius + 0.03)
    if not columns.size or not rows.size:
        return
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    px, py = grid.x[box] - centre_x, grid.y[box] - centre_y
    ax, ay = grid.axis_x - centre_x, grid.axis_y - centre_y
    a = ax * ax + ay * ay - radius * radius
    b = 2 * (radius * radius - px * ax - py * ay)
    c = px * px + py * py - radius * radius
    root = np.sqrt(np.maximum(b * b - 4 * a * np.minimum(c, 0), 0))
    t = np.clip(-2 * np.minimum(c, 0) / np.maximum(b + root, 1e-6), 0, 0.95)
    z = _CAMERA_DISTANCE * t / (1 - t)
    qx, qy = px - ax * t, py - ay * t
    length = np.maximum(np.sqrt(qx * qx + qy * qy), 1e-4)
    inward_x, inward_y = -qx / length, -qy / length

    lx, ly, lz = _lamp(appearance)
    if turns:
        phase = 2 * np.pi * (z * np.float32(turns / depth)) + np.arctan2(
            qy * cos - qx * sin, qx * cos + qy * sin
        )
        wave = np.sin(phase)
        up = 0.80 * wave
        crest = 0.5 + 0.5 * np.cos(phase)
    else:
        up = np.full_like(z, 0.10)
        crest = np.full_like(z, 0.8)
    flat = np.sqrt(1 - up * up)
    lit = np.maximum(inward_x * lx * flat + inward_y * ly * flat + lz * up, 0)
    # the wall mirrors the room above it: upper flanks are bright, lower ones see the bore
    body = (0.10 + 0.30 * np.maximum(up, 0) + 0.60 * lit) * (0.45 + 0.55 * crest)
    glint = finish.gloss * 0.55 * np.maximum(lit * 1.15 - 0.25, 0) ** 2 * crest
    light = (body + glint) * np.exp(-0.75 * z / depth)
    inside = np.clip(0.5 - (np.sqrt(px * px + py * py) - radius) * pixel, 0, 1)
    for plane, reflectance in zip(colour, finish.colour, strict=True):
        plane[box] += inside * (light * np.float32(reflectance) - plane[box])
    bottom = np.float32(1 / (1 + depth / _CAMERA_DISTANCE))
    gx, gy = px - ax * (1 - bottom), py - ay * (1 - bottom)
    ground = np.clip(0.5 - (np.sqrt(gx * gx + gy * gy) - radius * bottom) * pixel, 0, 1) * inside
    alpha[box] *= 1 - ground


def _shade(
    slope_x: np.ndarray,
    slope_y: np.ndarray,
    view: tuple[np.ndarray, np.ndarray],
    lay: tuple[np.ndarray, np.ndarray],
    finish: Finish,
    appearance: Appearance,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Light from a surface with the given slopes of height.

    Returns the body (environment and diffuse) and the highlight, both for reflectance 1.
    """
    norm = 1 / np.sqrt(slope_x * slope_x + slope_y * slope_y + 1)
    nx, ny, nz = -slope_x * norm, -slope_y * norm, norm
    vx, vy = view
    vz = 1 / np.sqrt(1 + vx * vx + vy * vy)
    vx, vy = vx * vz, vy * vz
    facing = 2 * (nx * vx + ny * vy + nz * vz)
    rx, ry = facing * nx - vx, facing * ny - vy
    environment = _environment(appearance, 0.5 * (finish.along + finish.across))
    body = cv2.remap(
        environment,
        (rx + 1) * 47.5,
        (ry + 1) * 47.5,
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    lx, ly, lz = _lamp(appearance)
    lit = np.maximum(nx * lx + ny * ly + nz * lz, 0)
    hx, hy, hz = vx + lx, vy + ly, vz + lz
    across = nx * hx + ny * hy + nz * hz
    tx, ty = lay
    along_h = hx * tx + hy * ty
    across_h = hy * tx - hx * ty
    # Ward's half-vector components against the tilted surface, to first order in its slope
    along_h = along_h + hz * (slope_x * tx + slope_y * ty)
    across_h = across_h + hz * (slope_y * tx - slope_x * ty)
    exponent = (along_h / finish.along) ** 2 + (across_h / finish.across) ** 2
    highlight = np.exp(-exponent / np.maximum(across, 0.1) ** 2) * lit
    return 0.66 * body + 0.12 * lit, finish.gloss * highlight


def _environment(appearance: Appearance, roughness: float) -> np.ndarray:
    """What a mirror would show, over the reflected direction's (x, y) in -1..1, shape (96, 96)."""
    y, x = (np.mgrid[0:96, 0:96].astype(np.float32) - 47.5) / 47.5
    azimuth = np.radians(appearance.azimuth_deg)
    towards = x * np.cos(azimuth) + y * np.sin(azimuth)
    beside = -x * np.sin(azimuth) + y * np.cos(azimuth)
    horizon = np.clip((np.hypot(x, y) - 0.42) / 0.45, 0, 1)
    room = (0.40 + 0.20 * towards) * (1 - 0.42 * horizon)
    softbox = 2.0 / (1 + np.exp(-24 * (0.20 - np.abs(towards - 0.50))))
    softbox /= 1 + np.exp(-24 * (0.62 - np.abs(beside)))
    window = 0.55 * np.exp(-(((towards + 0.72) / 0.16) ** 2) - ((beside - 0.2) / 0.5) ** 2)
    lens = 0.22 * np.exp(-(x * x + y * y) / 0.03)
    image = np.maximum(room, 0.03) + softbox + window - lens
    return cv2.GaussianBlur(np.maximum(image, 0.02).astype(np.float32), (0, 0), 32 * roughness)


def _lamp(appearance: Appearance) -> tuple[float, float, float]:
    """Unit vector to the lamp: right, down, towards the camera."""
    azimuth, elevation = np.radians([appearance.azimuth_deg, appearance.elevation_deg])
    return (
        float(np.cos(azimuth) * np.cos(elevation)),
        float(np.sin(azimuth) * np.cos(elevation)),
        float(np.sin(elevation)),
    )
