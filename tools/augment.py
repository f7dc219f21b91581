"""Seeded changes to training pictures, of the kind a camera makes by itself."""

from __future__ import annotations

import cv2
import numpy as np

MAX_SHIFT = 0.05  # of each side
MAX_ZOOM = 0.05
GAIN = (0.8, 1.2)
MAX_OFFSET = 15.0  # grey levels
MAX_TINT = 0.04  # gain of one channel against another
BLUR_SHARE = 0.3  # of the pictures
MAX_BLUR_SIGMA_PX = 1.2
MAX_NOISE_SIGMA = 6.0  # grey levels
JPEG_QUALITY = (30, 95)


def augment(
    picture_rgb: np.ndarray,
    rng: np.random.Generator,
    rotation_deg: float = 5.0,
    size: tuple[int, int] | None = None,
    recompress: bool = True,
) -> np.ndarray:
    """
    Shift, zoom, turn, relight, blur, add sensor noise and compress one picture.

    Parameters
    ----------
    picture_rgb : ndarray of uint8, shape (H, W, 3)
        The whole picture; left unchanged.
    rng : numpy.random.Generator
        The only source of chance: the same state gives the same picture.
    rotation_deg : float
        Largest turn to either side, degrees; 180 for parts that lie at any angle.
    size : (int, int), optional
        Height and width of the result, by default those of the input. The same resampling that
        turns the picture also brings it to this size, so it is interpolated only once.
    recompress : bool
        Whether to put it through JPEG at a random quality. Only an experiment on what a model
        learns from file formats leaves it out.

    Returns
    -------
    ndarray of uint8, shape (*size, 3)
        RGB.
    """
    height, width = picture_rgb.shape[:2]
    out_height, out_width = size or (height, width)
    picture = cv2.warpAffine(
        picture_rgb,
        _placement(rng, (height, width), (out_height, out_width), rotation_deg),
        (out_width, out_height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    if rng.random() < BLUR_SHARE:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, MAX_BLUR_SIGMA_PX))
    gain = rng.uniform(*GAIN) * (1 + rng.uniform(-MAX_TINT, MAX_TINT, 3))
    lit = picture * gain.astype(np.float32)
    lit += np.float32(rng.uniform(-MAX_OFFSET, MAX_OFFSET))
    noise = rng.standard_normal(lit.shape, dtype=np.float32)
    lit += noise * np.float32(rng.uniform(0, MAX_NOISE_SIGMA))
    picture = np.clip(np.rint(lit), 0, 255).astype(np.uint8)
    quality = int(rng.integers(*JPEG_QUALITY, endpoint=True))
    return _recompressed(picture, quality) if recompress else picture


def _placement(
    rng: np.random.Generator, size: tuple[int, int], out: tuple[int, int], rotation_deg: float
) -> np.ndarray:
    (height, width), (out_height, out_width) = size, out
    zoom = 1 + rng.uniform(-MAX_ZOOM, MAX_ZOOM)
    turn = cv2.getRotationMatrix2D(
        ((width - 1) / 2, (height - 1) / 2), rng.uniform(-rotation_deg, rotation_deg), zoom
    )
    turn[:, 2] += rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * (width, height)
    # Pixel centres lie at half-integers: this is cv2.resize's own mapping.
    sx, sy = out_width / width, out_height / height
    scale = np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1]])
    return (scale @ np.vstack([turn, [0, 0, 1]]))[:2]


def _recompressed(picture_rgb: np.ndarray, quality: int) -> np.ndarray:
    # Every picture goes through JPEG at a random quality, whatever its file was: a set whose good
    # parts are JPEG and whose reference is PNG would otherwise be told apart by the file format.
    bgr = cv2.cvtColor(picture_rgb, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, quality))
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
