"""
Align: find the part in the frame and bring it to the pose of the good parts.

Three recipes. `none` takes the region of interest as it is. `centre` moves the part to the middle,
`pose` also turns it and undoes a small change of scale; both cut it out at its own aspect ratio.

The part is found against the background that the frame's rim shows (`foreground`). Where it lies,
its distance from the background is compared with a template, the median of the good parts (`pose`).
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from edge_app.foreground import (
    LEAST_GAIN,
    MOST_GAIN,
    Piece,
    View,
    Viewer,
    edge_share,
    foreground,
    halved,
    held,
    level_at,
    light_gain,
    otsu,
    pieces,
    scaling,
)
from edge_app.pose import PoseSearch, sampled, similarity
from edge_app.preprocess import region_box, shrink

RECIPES = ("none", "centre", "pose")
LIGHTS = ("none", "gain", "white balance")

# A pose that agrees this much less than good parts do is looked for again from around its start, by
# this share of the template's mean side, in so many directions.
RETRY_MARGIN, RETRY_REACH, RETRY_STARTS = 0.1, 0.25, 8
# Foreground of less than this share of the good parts' area is no part; a piece of at least so much
# of it may be a second one, if it agrees with the template this share as well as good parts do.
LEAST_AREA, SECOND_AREA, SECOND_LIKENESS = 0.25, 0.5, 0.8
# What agrees with the template less than this share as well as good parts do is something else: a
# hand, a shadow over the whole view.
LEAST_LIKENESS = 0.5
# Foreground beyond this share of the good parts' area is looked through for a second part that
# touches the first: good parts with their shadows stay below.
CROWDED_AREA = 1.4
# Share of its silhouette that a part may have outside the view, and by how much more than the good
# ones' foreground it may cover of an edge: one pixel of the searched picture, two are a tip.
CUT_SHARE, TOUCH_MARGIN = 0.02, 0.01
# Share of good parts above which a place belongs to the part, and the soft margin around it as a
# share of the crop's long side, about one patch.
COVERED_SHARE, WEIGHT_MARGIN = 0.05, 0.04
# Side of the picture whose median is the level of a region that is all part.
LEVEL_SIDE = 32


@dataclass(frozen=True)
class Alignment:
    """
    How parts are brought to one pose; from the bundle.

    Attributes
    ----------
    recipe : {'none', 'centre', 'pose'}
    light : {'none', 'gain', 'white balance'}
        Whether the level of the background (for `none`: of the region) is brought to the good
        pictures' by one factor, or by one for each colour.
    target_bgr : tuple of float or None
        That level, grey levels.
    template : ndarray of float32, shape (h, w), or None
        Median distance of the good parts from the background, grey levels, at most
        `foreground.CAP` thresholds.
    silhouette : ndarray of float32, shape (h, w), or None
        Share of good parts, 0 to 1, that cover each pixel of the template.
    zoom : int
        Pixels of the template to a pixel of the searched picture.
    threshold : float
        Median of the good pictures' Otsu thresholds, grey levels.
    otsu_share : float
        The part of Otsu's threshold from which on a pixel is foreground, 0 to 1.
    level : float
        Median level of the background, grey levels.
    area : float
        Median area of the good parts, pixels of the searched picture.
    touch : float
        Largest share of an edge of the view that good parts' foreground covered (95 % quantile).
    agreement : float
        Median correlation of good parts with the template.
    aspect : float or None
        Width over height of the crop; None for `none`.
    """

    recipe: str
    light: str = "none"
    target_bgr: tuple[float, float, float] | None = None
    template: np.ndarray | None = None
    silhouette: np.ndarray | None = None
    zoom: int = 2
    threshold: float = 0.0
    otsu_share: float = 1.0
    level: float = 0.0
    area: float = 0.0
    touch: float = 0.0
    agreement: float = 0.0
    aspect: float | None = None


@dataclass(frozen=True)
class Aligned:
    """
    One frame after alignment.

    Attributes
    ----------
    pixels_rgb : ndarray of uint8, shape (height, width, 3), or None
        The crop; None where no pose was found.
    matrix : ndarray of float64, shape (2, 3), or None
        From pixels (x, y, 1) of the crop to pixels of the frame, centres at whole numbers.
    empty : bool
        Whether there is no part in the view.
    problem : str or None
        Why the part cannot be judged, ``kind: detail``.
    agreement : float or None
        Correlation with the template, -1 to 1; None for the recipe `none`.
    """

    pixels_rgb: np.ndarray | None
    matrix: np.ndarray | None
    empty: bool
    problem: str | None
    agreement: float | None


# What the manifest holds for `centre` and `pose`, each number with its range.
_RANGES = {
    "zoom": (1, 4),
    "threshold": (1.0, 255.0),
    "otsu_share": (0.1, 1.0),
    "level": (0.0, 255.0),
    "area": (1.0, 1e6),
    "touch": (0.0, 1.0),
    "agreement": (-1.0, 1.0),
    "aspect": (0.01, 100.0),
}


def alignment_section(alignment: Alignment) -> dict[str, Any]:
    """The manifest's section `alignment`, ready for JSON."""
    target = alignment.target_bgr
    section: dict[str, Any] = {
        "recipe": alignment.recipe,
        "light": alignment.light,
        "target_bgr": None if target is None else [float(value) for value in target],
    }
    if alignment.recipe != "none":
        for name in _RANGES:
            value = getattr(alignment, name)
            section[name] = int(value) if name == "zoom" else float(value)
    return section


def alignment_arrays(alignment: Alignment) -> dict[str, np.ndarray]:
    """The arrays for ``reference.npz``, float32; none for the recipe `none`."""
    if alignment.recipe == "none":
        return {}
    return {"align_template": alignment.template, "align_silhouette": alignment.silhouette}


def read_alignment(section: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Alignment:
    """
    The alignment that a bundle holds.

    Parameters
    ----------
    section : mapping
        The manifest's `alignment`. A bundle without light in it leaves the light as it is.
    arrays : mapping of str to ndarray

    Raises
    ------
    ValueError
        Naming the field that is missing or wrong.
    """
    recipe, light = section.get("recipe"), section.get("light", "none")
    if recipe not in RECIPES:
        raise ValueError(f"recipe is {recipe!r}, wanted one of {', '.join(RECIPES)}")
    if light not in LIGHTS:
        raise ValueError(f"light is {light!r}, wanted one of {', '.join(LIGHTS)}")
    target = section.get("target_bgr")
    if light == "none":
        if target is not None:
            raise ValueError(f"target_bgr is {target!r} where light is none, wanted null")
    else:
        if not isinstance(target, list) or len(target) != 3:
            raise ValueError(f"target_bgr is {target!r}, wanted three numbers")
        target = tuple(_number("target_bgr", value, 1.0, 255.0) for value in target)
    if recipe == "none":
        return Alignment(recipe, light, target)
    numbers = {}
    for name, (low, high) in _RANGES.items():
        if name not in section:
            raise ValueError(f"{name} is missing")
        numbers[name] = _number(name, section[name], low, high)
    zoom = numbers["zoom"]
    if zoom not in (1, 2, 4):
        raise ValueError(f"zoom is {zoom:g}, wanted 1, 2 or 4")
    numbers["zoom"] = int(zoom)
    template = _array(arrays, "align_template", 442.0)
    silhouette = _array(arrays, "align_silhouette", 1.0)
    height, width = template.shape
    if silhouette.shape != template.shape:
        raise ValueError(
            f"align_silhouette is of shape {silhouette.shape}, wanted the template's "
            f"{template.shape}"
        )
    # The manifest's number is rounded to a float; nothing else may lie between the two.
    if abs(numbers["aspect"] - width / height) > 1e-6 * width / height:
        raise ValueError(
            f"aspect is {numbers['aspect']}, the template of {width} x {height} gives "
            f"{width / height}"
        )
    if float(template.max() - template.min()) < 1.0:
        raise ValueError("array align_template has no contrast")
    if float(silhouette.max()) <= 0.5:
        raise ValueError("array align_silhouette covers nothing")
    return Alignment(recipe, light, target, template, silhouette, **numbers)


def _number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} is {value!r}, wanted a number")
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} is {value}, wanted {low:g} to {high:g}")
    return float(value)


def _array(arrays: Mapping[str, np.ndarray], name: str, most: float) -> np.ndarray:
    if name not in arrays:
        raise ValueError(f"array {name} is missing")
    array = np.asarray(arrays[name])
    if array.dtype.kind != "f" or array.ndim != 2 or not 8 <= min(array.shape) <= 2048:
        raise ValueError(
            f"array {name} is {array.dtype} of shape {array.shape}, wanted floats of shape "
            "(h, w) from 8 x 8"
        )
    # Written so that NaN is refused too.
    if not bool((array >= 0).all() and (array <= most).all()):
        raise ValueError(f"array {name} holds values outside 0 to {most:g}")
    return np.ascontiguousarray(array, np.float32)


class Aligner:
    """
    Aligns frames.

    Parameters
    ----------
    alignment : Alignment
    size : tuple of int
        (height, width) of the crop, the encoder's input.
    region : tuple of float or None
        Region of interest, see `preprocess.Preprocessing`; what lies outside is not looked at.
    """

    def __init__(
        self,
        alignment: Alignment,
        size: tuple[int, int],
        region: tuple[float, float, float, float] | None = None,
    ) -> None:
        self.alignment = alignment
        self.size = int(size[0]), int(size[1])
        self.region = region
        if alignment.recipe == "none":
            return
        self._viewer = Viewer(alignment.zoom, alignment.threshold, alignment.level)
        self._search = PoseSearch(alignment.template, alignment.recipe)
        height, width = alignment.template.shape
        self._to_template = to_template(self.size, alignment.template.shape)
        y, x = (alignment.silhouette > 0.5).nonzero()
        # Some hundred of the silhouette's pixels say as well as all how much of it is in the view.
        every = max(1, len(x) // 400)
        self._inside = np.stack(
            [x[::every] - (width - 1) / 2, y[::every] - (height - 1) / 2, np.ones(len(x[::every]))]
        )

    def align(self, frame_bgr: np.ndarray, view: View | None = None) -> Aligned:
        """
        Find the part in a frame and cut it out in its pose.

        Parameters
        ----------
        frame_bgr : ndarray of uint8, shape (height, width, 3)
        view : View, optional
            Of this frame, where it is known from learning the alignment.

        Raises
        ------
        ValueError
            If `frame_bgr` has another shape or dtype.
        """
        if frame_bgr.ndim != 3 or frame_bgr.shape[2] != 3 or frame_bgr.dtype != np.uint8:
            raise ValueError(
                f"a frame must be uint8 of shape (height, width, 3), "
                f"got {frame_bgr.dtype} of shape {frame_bgr.shape}"
            )
        x0, y0, x1, y1 = region_box(self.region, frame_bgr.shape)
        region_bgr = frame_bgr[y0:y1, x0:x1]
        to_frame = np.array([[1.0, 0.0, x0], [0.0, 1.0, y0], [0.0, 0.0, 1.0]])
        if self.alignment.recipe == "none":
            return self._whole(region_bgr, to_frame)
        alignment = self.alignment
        view = self._viewer.look(region_bgr) if view is None else view
        threshold = self._threshold(view)
        found = pieces(foreground(view.search, threshold))
        if not found:
            return Aligned(None, None, True, None, None)
        agreement, pose = self._best(view, found)
        in_view = view.to_view @ pose
        empty = found[0].area < LEAST_AREA * alignment.area
        problem = None
        if not empty:
            problem = self._problem(view, threshold, found, pose, agreement)
        matrix = in_view @ self._to_template
        pixels = self._crop(view, matrix)
        return Aligned(pixels, (to_frame @ matrix)[:2], empty, problem, agreement)

    def _whole(self, region_bgr: np.ndarray, to_frame: np.ndarray) -> Aligned:
        """The recipe `none`: the region as `preprocess.prepare` gives it."""
        pixels = cv2.cvtColor(shrink(region_bgr, self.size), cv2.COLOR_BGR2RGB)
        light, target = self.alignment.light, self.alignment.target_bgr
        if light != "none":
            pixels = lit(pixels, median_level(pixels), light, target[::-1])
        (height, width), halvings = region_bgr.shape[:2], 0
        while height >= 2 * self.size[0] and width >= 2 * self.size[1]:
            height, width, halvings = height // 2, width // 2, halvings + 1
        across, down = width / self.size[1], height / self.size[0]
        matrix = to_frame @ scaling(across * 2**halvings, down * 2**halvings)
        return Aligned(pixels, matrix[:2], False, None, None)

    def _threshold(self, view: View) -> float:
        alignment = self.alignment
        gain = light_gain(float(view.plane[0].mean()), alignment.level)
        return alignment.otsu_share * held(otsu(view.search), alignment.threshold * gain)

    def _best(self, view: View, found: list[Piece]) -> tuple[float, np.ndarray]:
        """The best pose of those pieces that are large enough to be the part."""
        area = self.alignment.area
        large = [piece for piece in found[:3] if piece.area >= SECOND_AREA * area] or found[:1]
        centres = [piece.centre for piece in large]
        if len(found) > 1 and found[0].area < (1 - LEAST_AREA) * area:
            # A part in pieces: something bright across it. Its middle is that of all near ones.
            reach = math.hypot(*self._search.size) / 2 / self.alignment.zoom
            near = [piece for piece in found if math.dist(piece.centre, found[0].centre) <= reach]
            total = sum(piece.area for piece in near)
            centres.append(
                (
                    sum(piece.area * piece.centre[0] for piece in near) / total,
                    sum(piece.area * piece.centre[1] for piece in near) / total,
                )
            )
        best = max((self._pose(view.maps, centre) for centre in centres), key=lambda one: one[0])
        if best[0] >= self.alignment.agreement - RETRY_MARGIN:
            return best
        # Something beside the part, or missing of it, drew the centroid away from its place.
        x, y = centres[0]
        reach = RETRY_REACH * math.sqrt(math.prod(self._search.size)) / self.alignment.zoom
        for turn in range(RETRY_STARTS):
            away = cmath.rect(reach, 2 * math.pi * turn / RETRY_STARTS)
            again = self._pose(view.maps, (x + away.real, y + away.imag))
            best = max(best, again, key=lambda one: one[0])
        return best

    def _pose(
        self, maps: Sequence[np.ndarray], centre: tuple[float, float]
    ) -> tuple[float, np.ndarray]:
        """Pose of a piece by its centre in the searched picture."""
        zoom = self.alignment.zoom
        x, y = (value * zoom + (zoom - 1) / 2 for value in centre)
        return self._search.pose(maps, (x, y))

    def _problem(
        self,
        view: View,
        threshold: float,
        found: list[Piece],
        pose: np.ndarray,
        agreement: float,
    ) -> str | None:
        """Why a part that was found cannot be judged."""
        if self._is_cut(view, threshold, view.to_view @ pose, agreement):
            return "part: cut by the edge of the view"
        if self._is_twice(view, threshold, found, pose):
            return "part: found twice"
        if agreement < LEAST_LIKENESS * self.alignment.agreement:
            return "part: not recognised"
        return None

    def _is_cut(self, view: View, threshold: float, in_view: np.ndarray, agreement: float) -> bool:
        height, width = view.halvings[0].shape[:2]
        left, top, right, bottom = _extent(in_view @ self._to_template, self.size)
        if min(left, top) < -0.5 or right > width - 0.5 or bottom > height - 0.5:
            x, y, _ = in_view @ self._inside
            outside = (x < -0.5) | (x > width - 0.5) | (y < -0.5) | (y > height - 0.5)
            if float(outside.mean()) > CUT_SHARE:
                return True
        limit = self.alignment.touch + TOUCH_MARGIN
        if edge_share(view.search, threshold) <= limit:
            return False
        if agreement < self.alignment.agreement - RETRY_MARGIN:
            return True
        # A part that looks whole is cut only by an edge that its own crop reaches: the pose of one
        # that lacks a little shrinks to what is there.
        near = np.full(self._search.size, 255, np.uint8)
        near = self._laid(near, np.linalg.inv(view.to_view) @ in_view, view.maps[0].shape)
        near = cv2.resize(near, view.search.shape[::-1], interpolation=cv2.INTER_AREA)
        return edge_share(cv2.min(view.search, near), threshold) > limit

    def _laid(self, picture: np.ndarray, pose: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """A picture of the template's size laid on the map where the part lies, 0 around it."""
        height, width = self._search.size
        to_map = pose @ similarity(1.0, 0.0, (-(width - 1) / 2, -(height - 1) / 2))
        return cv2.warpAffine(picture, to_map[:2], (shape[1], shape[0]))

    def _is_twice(self, view: View, threshold: float, found: list[Piece], pose: np.ndarray) -> bool:
        """Whether a second part is left when the first is taken out."""
        alignment = self.alignment
        if sum(piece.area for piece in found) < CROWDED_AREA * alignment.area and (
            len(found) == 1 or found[1].area < SECOND_AREA * alignment.area
        ):
            return False
        first = self._laid(alignment.silhouette, pose, view.maps[0].shape)
        maps = [view.maps[0] * (first <= COVERED_SHARE)]
        while len(maps) < len(view.maps):
            maps.append(halved(maps[-1]))
        search = maps[int(math.log2(alignment.zoom))].astype(np.uint8)
        for piece in pieces(foreground(search, threshold)):
            if piece.area < SECOND_AREA * alignment.area:
                return False
            agreement, _ = self._pose(maps, piece.centre)
            if agreement >= SECOND_LIKENESS * alignment.agreement:
                return True
        return False

    def _crop(self, view: View, matrix: np.ndarray) -> np.ndarray:
        """The crop, RGB, in the light of the good pictures."""
        pixels_rgb, level_bgr = cut_out(view, matrix, self.size)
        light, target = self.alignment.light, self.alignment.target_bgr
        if light == "none":
            return pixels_rgb
        return lit(pixels_rgb, level_bgr[::-1], light, target[::-1])


def to_template(size: tuple[int, int], template_size: tuple[int, int]) -> np.ndarray:
    """Matrix, shape (3, 3), from pixels of a crop to template coordinates, origin in the middle."""
    height, width = template_size
    matrix = scaling(width / size[1], height / size[0])
    matrix[:2, 2] -= (width - 1) / 2, (height - 1) / 2
    return matrix


def cut_out(view: View, matrix: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """
    A crop from the halving of the region whose pixels are nearest to its own.

    Parameters
    ----------
    view : View
        Its `halvings` are carried on where they are not small enough.
    matrix : ndarray of float64, shape (3, 3)
        From pixels of the crop to pixels of the region.
    size : tuple of int
        (height, width) of the crop.

    Returns
    -------
    pixels_rgb : ndarray of uint8, shape (height, width, 3)
    level_bgr : ndarray of float64, shape (3,)
        Level of the background behind the crop's middle.
    """
    height, width = size
    (a, b, _), (c, d, _), _ = matrix.tolist()
    scale = min(math.hypot(a, c), math.hypot(b, d))
    halvings = view.halvings
    while scale >= 2 ** len(halvings) and min(halvings[-1].shape[:2]) >= 2:
        halvings.append(halved(halvings[-1]))
    steps = min(max(int(math.log2(max(scale, 1.0))), 0), len(halvings) - 1)
    picture = halvings[steps]
    matrix = scaling(0.5**steps) @ matrix
    # Only what the crop shows, as four channels: OpenCV warps those in a third of the time.
    left, top, right, bottom = _extent(matrix, size)
    rows, columns = picture.shape[:2]
    left = min(max(math.floor(left) - 1, 0), columns - 1)
    top = min(max(math.floor(top) - 1, 0), rows - 1)
    right = min(max(math.ceil(right) + 2, left + 1), columns)
    bottom = min(max(math.ceil(bottom) + 2, top + 1), rows)
    source = cv2.cvtColor(picture[top:bottom, left:right], cv2.COLOR_BGR2BGRA)
    inner = matrix[:2].copy()
    inner[:, 2] -= left, top
    pixels_rgb = cv2.cvtColor(sampled(source, inner, size), cv2.COLOR_BGRA2RGB)
    x, y = (matrix @ ((width - 1) / 2, (height - 1) / 2, 1.0))[:2].tolist()
    return pixels_rgb, level_at(view.plane, (x + 0.5) / columns, (y + 0.5) / rows)


def _extent(matrix: np.ndarray, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of where the pixels of a picture of that size are led to."""
    (a, b, x), (c, d, y) = matrix[:2].tolist()
    height, width = size[0] - 1, size[1] - 1
    across, down = (a * width, b * height), (c * width, d * height)
    return (
        x + sum(min(one, 0.0) for one in across),
        y + sum(min(one, 0.0) for one in down),
        x + sum(max(one, 0.0) for one in across),
        y + sum(max(one, 0.0) for one in down),
    )


def median_level(picture: np.ndarray) -> np.ndarray:
    """Median level of each colour of a picture, shape (3,), of the means of its parts."""
    small = cv2.resize(picture, (LEVEL_SIDE, LEVEL_SIDE), interpolation=cv2.INTER_AREA)
    return np.median(small.reshape(-1, 3), axis=0).astype(np.float64)


def lit(picture: np.ndarray, level: np.ndarray, light: str, target: Sequence[float]) -> np.ndarray:
    """
    A picture as it would look with `level` at `target`.

    Parameters
    ----------
    picture : ndarray of uint8, shape (height, width, 3)
    level, target : three floats, grey levels, colours in the picture's order
    light : {'gain', 'white balance'}
        One factor for all colours, or one for each; from `LEAST_GAIN` to `MOST_GAIN`.
    """
    target = np.asarray(target, np.float64)
    if light == "gain":
        gain = float(target.mean()) / max(float(level.mean()), 1.0)
        return cv2.convertScaleAbs(picture, alpha=min(max(gain, LEAST_GAIN), MOST_GAIN))
    gains = np.clip(target / np.maximum(level, 1.0), LEAST_GAIN, MOST_GAIN)
    table = np.clip(np.rint(np.arange(256)[:, None] * gains), 0, 255).astype(np.uint8)
    return cv2.LUT(picture, table[None])


def on_frame(
    anomaly: np.ndarray,
    matrix: np.ndarray,
    frame_shape: Sequence[int],
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """
    A map of the crop, laid back on the frame.

    Parameters
    ----------
    anomaly : ndarray of float32, shape (h, w)
        A grid of any size that covers the crop.
    matrix : ndarray, shape (2, 3)
        `Aligned.matrix`.
    frame_shape : sequence of int
        (height, width, ...) of the frame.
    size : tuple of int or None
        (height, width) of the crop; None where the map has its size.

    Returns
    -------
    on_frame : ndarray of float32, shape (height, width)
        0 outside the crop.
    """
    rows, columns = anomaly.shape
    height, width = (rows, columns) if size is None else size
    to_frame = np.vstack([matrix, [0, 0, 1]])
    placed = cv2.warpAffine(
        np.ascontiguousarray(anomaly, np.float32),
        (to_frame @ scaling(width / columns, height / rows))[:2],
        (int(frame_shape[1]), int(frame_shape[0])),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    # A pixel of the frame is in the crop if its centre is.
    inverse = np.linalg.inv(to_frame)
    across = np.arange(frame_shape[1], dtype=np.float64)
    down = np.arange(frame_shape[0], dtype=np.float64)[:, None]
    x = inverse[0, 0] * across + (inverse[0, 1] * down + inverse[0, 2])
    y = inverse[1, 0] * across + (inverse[1, 1] * down + inverse[1, 2])
    inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    return np.where(inside, placed, np.float32(0))


def part_weight(alignment: Alignment, grid: tuple[int, int]) -> np.ndarray:
    """
    How much each place of the crop counts: what lies beside the part is dust, not a defect.

    Parameters
    ----------
    alignment : Alignment
    grid : tuple of int
        (height, width) of the weights wanted.

    Returns
    -------
    weight : ndarray of float32, shape `grid`
        1 where a good part lies or close by, falling to 0 on the background beyond; all 1 for the
        recipe `none`.
    """
    height, width = grid
    if alignment.recipe == "none":
        return np.ones((height, width), np.float32)
    silhouette = alignment.silhouette
    covered = (silhouette > COVERED_SHARE).astype(np.uint8)
    away = cv2.distanceTransform(1 - covered, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    margin = WEIGHT_MARGIN * max(silhouette.shape)
    # Whole for half a margin, nothing from one and a half on.
    weight = np.clip(1.5 - away / margin, 0, 1).astype(np.float32)
    finer = grid[0] > weight.shape[0] or grid[1] > weight.shape[1]
    interpolation = cv2.INTER_LINEAR if finer else cv2.INTER_AREA
    return np.clip(cv2.resize(weight, (width, height), interpolation=interpolation), 0, 1)
