"""
Drawn pictures of metal parts at an inspection station, above all of a hexagonal nut.

A part's light is set on a belt with its soft shadow and passed through a camera: vignette, bloom,
defocus, shot and read noise, tone curve. The mask of a defect is where the noise-free pictures with
and without it differ.

All arrays of light are linear, float32, BGR, 1.0 = sensor full scale.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from tools.metal_part import Part, defective, periodic_noise
from tools.shading import Appearance, Pose, cast_shadow, draw_layer

# Smallest step in the picture, in grey levels, that counts as altered by the defect. The sensor
# noise is about 1.5 levels, so a smaller step is not visible in one picture.
_MASK_STEP = 5


@dataclass(frozen=True)
class Station:
    """
    The place of inspection: everything that stays while parts come and go.

    Attributes
    ----------
    size : tuple of int
        Height and width of a picture in pixels.
    apothem_px : float
        Half the nominal nut's width across flats.
    belt : ndarray, shape (height, 2 * width, 3), float32
        Belt, periodic along its width.
    rails : ndarray, shape (height, width, 3), float32
        The guide rails, 0 where there is none.
    open : ndarray, shape (height, width, 3), float32
        1 where the belt is seen, 0 where a rail covers it.
    vignette : ndarray, shape (height, width, 3), float32
        Light falloff.
    azimuth_deg, elevation_deg : float
        Nominal direction to the lamp.
    finish : str
        Finish of the parts made here.
    """

    size: tuple[int, int]
    apothem_px: float
    belt: np.ndarray = field(repr=False)
    rails: np.ndarray = field(repr=False)
    open: np.ndarray = field(repr=False)
    vignette: np.ndarray = field(repr=False)
    azimuth_deg: float
    elevation_deg: float
    finish: str


def make_station(
    rng: np.random.Generator,
    size: tuple[int, int] = (240, 320),
    *,
    finish: str = "turned",
    rails: bool = True,
    azimuth_deg: float = -125.0,
    belt_bgr: tuple[float, float, float] = (0.084, 0.080, 0.070),
) -> Station:
    """
    Set up a station: belt, guide rails, lamp.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the belt's and the rails' texture.
    size : tuple of int
        Height and width in pixels.
    finish : str
        A key of `FINISHES`.
    rails : bool
        Whether guide rails run above and below the part.
    azimuth_deg : float
        Direction to the lamp; 0 is right, 90 is down in the picture.
    belt_bgr : tuple of float
        Mean linear reflectance of the belt.

    Returns
    -------
    Station
    """
    height, width = size
    apothem_px = 0.36 * min(height, width)
    grain = periodic_noise(rng, (height, 2 * width), 0.8, 0.8)
    cloud = periodic_noise(rng, (height, 2 * width), 9.0, 9.0)
    rows, columns = np.mgrid[0:height, 0 : 2 * width].astype(np.float32)
    # a whole number of threads around the belt, so that it has no seam
    threads = 2 * np.pi * round(2 * width / 5) / (2 * width)
    weave = np.sin(columns * threads) * np.sin(rows * threads)
    reflectance = 1 + 0.11 * grain + 0.05 * cloud + 0.055 * weave
    belt = reflectance[..., None] * np.float32(belt_bgr)

    open_belt = np.ones((height, width, 3), np.float32)
    metal = np.zeros((height, width, 3), np.float32)
    if rails:
        # corner to corner a nut must pass in any rotation
        edge = height / 2 - 1.2 * apothem_px
        line = np.arange(height, dtype=np.float32)
        depth = edge - np.minimum(line, height - 1 - line)
        open_belt[:] = 1 - np.clip(depth + 0.5, 0, 1)[:, None, None]
        profile = 0.20 + 0.30 * np.exp(-(((depth - 2.5) / 1.6) ** 2))
        profile += 0.10 * np.exp(-(((depth - edge * 0.75) / (edge * 0.3)) ** 2))
        drawn = periodic_noise(rng, (height, width), 40.0, 0.6)
        metal[:] = (profile[:, None] * (1 + 0.10 * drawn))[..., None]
        metal *= np.float32((1.0, 0.985, 0.96)) * (1 - open_belt)
        # the rail shades the belt beside it
        shade = 1 - 0.55 * np.exp(np.minimum(depth, 0) / (0.07 * apothem_px))
        belt = belt * shade[:, None, None]
    y = (np.arange(height, dtype=np.float32)[:, None] - height / 2) / (width / 2)
    x = (np.arange(width, dtype=np.float32)[None, :] - width / 2) / (width / 2)
    falloff = (1 - 0.22 * (x * x + y * y)).astype(np.float32)
    return Station(
        size=(height, width),
        apothem_px=apothem_px,
        belt=belt.astype(np.float32),
        rails=metal,
        open=open_belt,
        vignette=cv2.merge([falloff] * 3),
        azimuth_deg=azimuth_deg,
        elevation_deg=52.0,
        finish=finish,
    )


def random_pose(rng: np.random.Generator, station: Station, rotation_deg: float = 8.0) -> Pose:
    """
    How a part comes to rest at a station.

    Parameters
    ----------
    rng : numpy.random.Generator
    station : Station
    rotation_deg : float
        Greatest absolute rotation, degrees.

    Returns
    -------
    Pose
    """
    play = 0.04 * station.apothem_px
    return Pose(
        x_px=float(np.clip(rng.normal(0, 0.5), -1, 1) * play),
        y_px=float(np.clip(rng.normal(0, 0.5), -1, 1) * play * 0.75),
        angle_deg=float(rng.uniform(-rotation_deg, rotation_deg)),
        scale=float(1 + np.clip(rng.normal(0, 0.005), -0.012, 0.012)),
    )


def random_appearance(rng: np.random.Generator, station: Station) -> Appearance:
    """
    Light, exposure, focus and surface of one more picture at a station.

    Parameters
    ----------
    rng : numpy.random.Generator
    station : Station

    Returns
    -------
    Appearance
    """
    return Appearance(
        azimuth_deg=station.azimuth_deg + float(rng.uniform(-5, 5)),
        elevation_deg=station.elevation_deg + float(rng.uniform(-3, 3)),
        exposure=float(np.exp(rng.normal(0, 0.035))),
        cast_bgr=(float(rng.uniform(0.98, 1.02)), 1.0, float(rng.uniform(0.98, 1.02))),
        blur_px=float(rng.uniform(0.45, 0.65)),
        motion_px=1,
        belt_px=int(rng.integers(0, station.belt.shape[1])),
        surface_seed=int(rng.integers(0, 2**62)),
    )


def draw_light(
    station: Station, part: Part | None, pose: Pose, appearance: Appearance
) -> tuple[np.ndarray, np.ndarray]:
    """
    Light that reaches the sensor, before noise.

    Parameters
    ----------
    station : Station
    part : Part or None
        None draws the empty station.
    pose : Pose
    appearance : Appearance

    Returns
    -------
    light : ndarray, shape (height, width, 3), float32
        Linear BGR, 1.0 = full scale, not clipped.
    outline : ndarray, shape (height, width), float32
        Share of each pixel inside the part's silhouette, bore included.
    """
    height, width = station.size
    start = -appearance.belt_px % station.belt.shape[1]
    strip = station.belt[:, start : start + width]
    light = np.concatenate([strip, station.belt[:, : width - strip.shape[1]]], axis=1)
    outline = np.zeros((height, width), np.float32)
    layer = None
    if part is not None:
        layer = draw_layer(station.size, station.apothem_px, part, pose, appearance)
    if layer is not None:
        shadow = cast_shadow(station.size, station.apothem_px, part, pose, appearance)
        light *= cv2.merge([shadow] * 3)
    light *= station.open
    light += station.rails
    if layer is not None:
        (top, left), colour, alpha, edge = layer
        box = slice(top, top + alpha.shape[0]), slice(left, left + alpha.shape[1])
        outline[box] = edge
        light[box] *= cv2.merge([1 - alpha] * 3)
        light[box] += colour
    light *= station.vignette
    glare = cv2.GaussianBlur(np.maximum(light - 0.85, 0), (0, 0), 0.05 * station.apothem_px)
    light += 0.25 * glare
    light = cv2.GaussianBlur(light, (0, 0), appearance.blur_px)
    if appearance.motion_px > 1:
        light = cv2.blur(light, (appearance.motion_px, 1))
    for channel, gain in enumerate(appearance.cast_bgr):
        light[..., channel] *= gain * appearance.exposure
    return light, outline


def expose(light: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """
    Turn light into a picture as a small sensor does: shot noise, read noise, tone curve.

    Parameters
    ----------
    light : ndarray, shape (height, width, 3), float32
        Linear BGR from `draw_light`.
    rng : numpy.random.Generator or None
        Source of the noise; None gives the picture without noise.

    Returns
    -------
    ndarray, shape (height, width, 3), uint8
        BGR picture.
    """
    signal = np.maximum(light, 0)
    if rng is not None:
        # 9000 electrons at full scale, 13 electrons read noise: a small industrial CMOS sensor
        sigma = np.sqrt(signal / 9000 + np.float32((13 / 9000) ** 2))
        signal = np.maximum(signal + sigma * rng.standard_normal(light.shape, np.float32), 0)
    # a soft shoulder above 0.7 keeps the highlights from clipping flat
    over = np.maximum(signal - 0.7, 0)
    signal = np.minimum(signal, 0.7) + 0.3 * (1 - np.exp(-over / 0.3))
    return np.rint(255 * cv2.pow(signal, 1 / 2.2)).astype(np.uint8)


def draw_view(
    rng: np.random.Generator,
    station: Station,
    defect: str | None = None,
    *,
    part_present: bool = True,
    pose: Pose | None = None,
    appearance: Appearance | None = None,
    rotation_deg: float = 8.0,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Draw one view of a nut at a station, before the sensor, and the mask of its defect.

    Parameters
    ----------
    rng : numpy.random.Generator
        The only source of chance: the same state gives the same bytes.
    station : Station
    defect : str or None
        One of `DEFECTS`, or None for a good part.
    part_present : bool
        False draws the empty station; its mask is black, since an empty station is no defect.
    pose : Pose or None
        None draws one by `random_pose`.
    appearance : Appearance or None
        None draws one by `random_appearance`.
    rotation_deg : float
        Greatest absolute rotation, degrees, when `pose` is None.

    Returns
    -------
    light : ndarray, shape (height, width, 3), float32
        Linear BGR, for `expose`: once for a picture, several times for frames of a part at rest.
    mask : ndarray, shape (height, width), uint8
        255 on the pixels that the defect alters, 0 elsewhere. For ``"missing_nut"`` the place where
        the nut should be.

    Raises
    ------
    ValueError
        If the defect has no such name.
    """
    pose = pose or random_pose(rng, station, rotation_deg)
    appearance = appearance or random_appearance(rng, station)
    good = Part(finish=station.finish)
    none = np.zeros(station.size, np.uint8)
    if not part_present:
        return draw_light(station, None, pose, appearance)[0], none
    clean, outline = draw_light(station, good, pose, appearance)
    if defect is None:
        return clean, none
    if defect == "missing_nut":
        light, _ = draw_light(station, None, pose, appearance)
        return light, np.where(outline > 0.5, 255, 0).astype(np.uint8)
    light, _ = draw_light(station, defective(rng, good, defect), pose, appearance)
    return light, altered(clean, light)


def altered(clean: np.ndarray, light: np.ndarray) -> np.ndarray:
    """
    Mask of the pixels that differ visibly between two noise-free views.

    Parameters
    ----------
    clean, light : ndarray, shape (height, width, 3), float32
        Light from `draw_light` without and with the defect.

    Returns
    -------
    ndarray, shape (height, width), uint8
        0 or 255.
    """
    step = cv2.absdiff(expose(clean, None), expose(light, None)).max(axis=2)
    mask = np.where(step >= _MASK_STEP, 255, 0).astype(np.uint8)
    # inside a stain or a thread's ring some pixels happen to agree: they belong to it
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    small = [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] < 4]
    mask[np.isin(labels, small)] = 0
    return mask


def draw_part(
    rng: np.random.Generator, kind: str, finish: str, size: tuple[int, int] = (240, 320)
) -> np.ndarray:
    """
    Draw a good part of any kind on any ground, in any rotation: training pictures for an encoder.

    Parameters
    ----------
    rng : numpy.random.Generator
    kind : str
        One of `KINDS`.
    finish : str
        A key of `FINISHES`.
    size : tuple of int
        Height and width in pixels.

    Returns
    -------
    ndarray, shape (height, width, 3), uint8
        BGR picture.
    """
    tone = np.exp(rng.uniform(np.log(0.03), np.log(0.45)))
    belt_bgr = tuple(float(tone * c) for c in rng.uniform(0.85, 1.15, 3))
    station = make_station(
        rng,
        size,
        finish=finish,
        rails=bool(rng.random() < 0.3),
        azimuth_deg=float(rng.uniform(-180, 180)),
        belt_bgr=belt_bgr,
    )
    room = 0.25 * station.apothem_px
    pose = Pose(
        x_px=float(rng.uniform(-room, room)),
        y_px=float(rng.uniform(-room, room)),
        angle_deg=float(rng.uniform(-180, 180)),
        scale=float(rng.uniform(0.7, 1.05)),
    )
    part = Part(
        kind=kind,
        finish=finish,
        bore=float(rng.uniform(0.5, 0.62)),
        turns=float(rng.choice([4.0, 5.0, 6.0])),
    )
    light, _ = draw_light(station, part, pose, random_appearance(rng, station))
    return expose(light, rng)
