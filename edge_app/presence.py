"""
Locate: is a part in the view, and is it there as a whole?

The rule is simple and says so: a station with a fixed camera has one empty view. What differs from
it is the part. The picture is reduced to `SIDE` x `SIDE` grey pixels, its brightness matched to
the empty view by the median ratio, and the differing pixels counted. Without a
picture of the empty view nothing is EMPTY.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np

from edge_app.bundle import Bundle
from edge_app.errors import BundleError, InputError

SIDE = 48
# A pixel belongs to the part when it differs by this many grey levels and this many times the
# noise of the empty view.
LEAST_DIFFERENCE = 12.0
NOISE_FACTOR = 6.0
# A part may lie so far, as a share of the view, beyond where the good ones lay.
PLACE_MARGIN = 0.03
# Share of one edge of the view that the part must cover to count as cut by it.
CUT_SHARE = 0.12


@dataclass(frozen=True)
class EmptyView:
    """
    What the station looks like without a part; from the bundle.

    Attributes
    ----------
    picture : ndarray of float32, shape (SIDE, SIDE)
        Mean of the empty pictures, grey levels 0 to 255.
    difference : float
        Grey levels by which a pixel of a part differs at least.
    least_share : float
        Share of differing pixels, 0 to 1, from which on a part is there.
    place : tuple of float
        (left, top, right, bottom) within which the centre of the good parts lay, shares of the
        view from 0 to 1, with `PLACE_MARGIN` around it.
    """

    picture: np.ndarray
    difference: float
    least_share: float
    place: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Location:
    """
    Attributes
    ----------
    present : bool
    cut : bool
        Whether the part reaches over the edge of the view.
    in_place : bool
        Whether its centre is where the good parts' centres were.
    centre : tuple of float
        (x, y) of its centre, shares of the view.
    offset : float
        Distance of its centre from the middle of where theirs were, share of the view.
    share : float
        Share of the view that differs from the empty view, 0 to 1.
    """

    present: bool
    cut: bool
    in_place: bool
    centre: tuple[float, float]
    offset: float
    share: float


def locate(pixels_rgb: np.ndarray, empty: EmptyView) -> Location:
    """
    Compare a picture with the empty view.

    Parameters
    ----------
    pixels_rgb : ndarray of uint8, shape (height, width, 3)
    empty : EmptyView
    """
    mask = _part_mask(_reduce(pixels_rgb), empty.picture, empty.difference)
    share = float(mask.mean())
    if share < empty.least_share:
        return Location(False, False, False, (0.5, 0.5), 0.0, share)
    edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    cut = max(float(edge.mean()) for edge in edges) >= CUT_SHARE
    x, y = _centre(mask)
    left, top, right, bottom = empty.place
    in_place = left <= x <= right and top <= y <= bottom
    offset = math.hypot(x - (left + right) / 2, y - (top + bottom) / 2)
    return Location(True, cut, in_place, (x, y), offset, share)


def learn_empty_view(empty_rgb: list[np.ndarray], good_rgb: list[np.ndarray]) -> EmptyView:
    """
    Learn the empty view, how much of it a part covers, and where parts lie.

    Parameters
    ----------
    empty_rgb : list of ndarray of uint8, shape (height, width, 3)
        Pictures of the station without a part, at least one.
    good_rgb : list of the same
        Pictures of good parts; where there are none yet, a part is what covers 1 % of the view more
        than the noise of the empty pictures does.

    Raises
    ------
    InputError
        If good pictures do not differ clearly from the empty ones.
    """
    reduced = np.stack([_reduce(picture) for picture in empty_rgb])
    view = reduced.mean(axis=0).astype(np.float32)
    noise = float(np.sqrt(np.mean([(_match(grey, view) - view) ** 2 for grey in reduced])))
    difference = max(LEAST_DIFFERENCE, NOISE_FACTOR * noise)
    empty_share = max(float(_part_mask(grey, view, difference).mean()) for grey in reduced)
    if not good_rgb:
        return EmptyView(view, difference, empty_share + 0.01)
    masks = [_part_mask(_reduce(picture), view, difference) for picture in good_rgb]
    good_share = min(float(mask.mean()) for mask in masks)
    if good_share < 2 * empty_share + 0.01:
        raise InputError(
            "the pictures of the empty station look like good parts: at most "
            f"{empty_share:.1%} of an empty picture and at least {good_share:.1%} of a good one "
            "differ from the empty view, wanted at least twice as much and 1 % more"
        )
    return EmptyView(
        view,
        difference,
        (empty_share + good_share) / 2,
        _around([_centre(mask) for mask in masks]),
    )


def widen(empty: EmptyView, centres: list[tuple[float, float]]) -> EmptyView:
    """An empty view that also knows good parts with these centres (x, y) to be in their place."""
    left, top, right, bottom = _around(centres)
    known = empty.place
    place = (min(known[0], left), min(known[1], top), max(known[2], right), max(known[3], bottom))
    return replace(empty, place=place)


def _around(centres: list[tuple[float, float]]) -> tuple[float, float, float, float]:
    xs, ys = zip(*centres, strict=True)
    margin = PLACE_MARGIN
    return min(xs) - margin, min(ys) - margin, max(xs) + margin, max(ys) + margin


def empty_view_of(bundle: Bundle) -> EmptyView | None:
    """The empty view a bundle has learnt, if it has."""
    presence = bundle.manifest["presence"]
    if presence is None:
        return None
    shape = bundle.reference["empty_view"].shape
    if shape != (SIDE, SIDE):
        raise BundleError(
            f"{bundle.path / 'reference.npz'}: array empty_view is of shape {shape}, "
            f"wanted {(SIDE, SIDE)}"
        )
    return EmptyView(
        bundle.reference["empty_view"],
        presence["difference"],
        presence["least_share"],
        tuple(presence["place"]),
    )


def _reduce(pixels_rgb: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(pixels_rgb, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR).astype(np.float32)


def _centre(mask: np.ndarray) -> tuple[float, float]:
    """Centre (x, y) of the true pixels, shares of the view; of no pixel, the view's own."""
    if not mask.any():
        return 0.5, 0.5
    rows, columns = mask.sum(axis=1), mask.sum(axis=0)
    places = (np.arange(SIDE) + 0.5) / SIDE
    total = mask.sum()
    return float(columns @ places / total), float(rows @ places / total)


def _match(grey: np.ndarray, view: np.ndarray) -> np.ndarray:
    """`grey` with the brightness of `view`; the median is deaf to a part on under half the view."""
    ratio = float(np.median(view / np.maximum(grey, 1.0)))
    return grey * np.float32(min(max(ratio, 0.5), 2.0))


def _part_mask(grey: np.ndarray, view: np.ndarray, difference: float) -> np.ndarray:
    return np.abs(_match(grey, view) - view) > difference
