"""
Duplicates: pictures that are there twice, byte for byte, pixel for pixel, or nearly.

Good parts look alike, so that no fixed likeness tells a twin from another good part. Twins are
searched with `edge_app.held_out.near_duplicate_groups`, which finds what stands out from the set's
own ordinary likeness, on two kinds of thumbnail: a fine one, on which only the same photograph
stands out, whatever its compression, size and brightness; and the device's own, on which one part
under several exposures does too, and also parts that merely lie alike. The latter are left out
again by how unlike they are on the fine thumbnail.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from edge_app.held_out import near_duplicate_groups

# Side of the fine thumbnail and its band of detail, pixels: scratches and grain of the surface,
# which no two parts share, but not the noise of the camera, which no two photographs share.
FINE_SIDE, FINE_BAND = 128, (0.8, 3.0)
# Reach over which contrast is made even, thumbnail pixels; contrast in grey levels that is none.
CONTRAST_REACH, NO_CONTRAST = 8.0, 0.5
# Mean correlation on the fine thumbnail from which on parts that look alike are the same one. Of
# screws that merely lie alike at most 0.56; of the same screw photographed again at least 0.60.
SAME_PART = 0.58
# A copy is so much more alike to its original than either is to any third picture, in Fisher's z.
# 95 of 100 copies compressed at quality 50: 1 and more; nuts that merely lie alike: up to 0.4.
LEAST_LEAD = 0.5
# Pairs of more pictures than this need over a gigabyte.
MOST_PICTURES = 4000


def fine_thumbnail(frame_bgr: np.ndarray) -> np.ndarray:
    """
    A picture's fine detail at even contrast.

    Parameters
    ----------
    frame_bgr : ndarray of uint8, shape (H, W, 3)

    Returns
    -------
    ndarray of float32, shape (FINE_SIDE, FINE_SIDE)
        Of mean 0 and Euclidean norm 1; all 0 for a picture without any detail.
    """
    grey = cv2.cvtColor(frame_bgr, cv2.COLOR_BGR2GRAY)
    shrinks = min(grey.shape) >= FINE_SIDE
    small = cv2.resize(
        grey,
        (FINE_SIDE, FINE_SIDE),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    ).astype(np.float32)
    low, high = (cv2.GaussianBlur(small, (0, 0), sigma) for sigma in FINE_BAND)
    band = low - high
    contrast = np.sqrt(cv2.GaussianBlur(band * band, (0, 0), CONTRAST_REACH))
    band /= contrast + np.float32(NO_CONTRAST)
    band -= band.mean()
    norm = float(np.linalg.norm(band))
    # Below a thousandth of a grey level a pixel, all is rounding.
    return band / norm if norm > 1e-3 * FINE_SIDE else np.zeros_like(band)


def same_files(paths: Iterable[Path]) -> list[list[Path]]:
    """
    Files with the same bytes.

    Only files of one size are read, so that a folder of different pictures is hardly read at all.

    Parameters
    ----------
    paths : iterable of Path
        Those that cannot be read are left out.

    Returns
    -------
    list of list of Path
        Each group has at least two, in the order given.
    """
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        try:
            by_size[path.stat().st_size].append(path)
        except OSError:
            continue
    candidates = [path for same in by_size.values() if len(same) > 1 for path in same]
    keys = []
    for path in candidates:
        try:
            keys.append(hashlib.sha256(path.read_bytes()).digest())
        except OSError:
            keys.append(None)
    return [[candidates[index] for index in group] for group in equal(keys)]


def pixel_hash(frame_bgr: np.ndarray) -> bytes:
    """SHA-256 of a picture's shape and pixels, whatever file it came from."""
    hasher = hashlib.sha256(repr(frame_bgr.shape).encode())
    hasher.update(np.ascontiguousarray(frame_bgr))
    return hasher.digest()


def equal(keys: Sequence[Hashable | None]) -> list[list[int]]:
    """Groups of at least two places with the same key; None equals nothing."""
    places: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        if key is not None:
            places[key].append(index)
    return [group for group in places.values() if len(group) > 1]


def near_duplicates(thumbnails: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """
    Which pictures show the same photograph, or the same part photographed again.

    Parameters
    ----------
    thumbnails : ndarray of float32, shape (n, s, s)
        From `edge_app.held_out.thumbnail`.
    fine : ndarray of float32, shape (n, t, t)
        From `fine_thumbnail`. Memory grows with n squared; see `MOST_PICTURES`.

    Returns
    -------
    groups : ndarray of int, shape (n,)
        Pictures with the same number belong together; from 0.

    Notes
    -----
    Of 50 pictures of each of four sets (rendered nuts, screws, screws in wood, magnetic tiles; 365
    to 1340 pictures), copied as JPEG of quality 50, at half size, 15 % brighter, or 15 % darker and
    compressed, it finds all but two tiles at half size. Of what it names in the sets as they are,
    26 groups were looked at: each the same screw, plank or tile again, or a view without a nut.
    """
    count = len(fine)
    rows = fine.reshape(count, -1)
    likeness = rows @ rows.T
    # Fisher's z; identical pictures would be infinitely alike.
    z = np.arctanh(np.clip(likeness, -0.9999, 0.9999))
    groups = np.arange(count)
    for members in _groups(near_duplicate_groups(fine)):
        inside = z[np.ix_(members, members)][np.triu_indices(len(members), 1)].mean()
        if inside >= np.delete(z[members], members, axis=1).max(initial=-np.inf) + LEAST_LEAD:
            groups[members] = members[0]
    for members in _groups(near_duplicate_groups(thumbnails)):
        inside = likeness[np.ix_(members, members)][np.triu_indices(len(members), 1)].mean()
        if inside >= SAME_PART:
            # One number for all that these belong to by the fine thumbnails.
            groups[np.isin(groups, groups[members])] = groups[members].min()
    return np.unique(groups, return_inverse=True)[1].reshape(-1)


def _groups(numbers: np.ndarray) -> list[np.ndarray]:
    """Places of each number that is there more than once."""
    return [np.flatnonzero(numbers == one) for one in np.flatnonzero(np.bincount(numbers) > 1)]
