"""
Find: which pixels of a view are the part, from a background that the rim of the view shows.

The background is a plane in each colour, fitted to the rim, so that light falling off to one side
is background still. What is farther from it than Otsu's threshold ("A threshold selection method
from gray-level histograms", IEEE Trans. SMC 1979), held near the one learnt from good pictures, is
foreground; its connected pieces are what may be a part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

# The long side of the picture in which pieces are looked for, pixels. A pose found on it is only
# where the comparison with the template starts.
FIND_SIDE = 128
# Width of the rim as a share of the long side, and how many samples of it each edge gives.
RIM_SHARE, RIM_SAMPLES = 0.03, 32
# Reweighted fits of the plane after the first; each moves it away from what is not background.
REFITS = 3
# Grey levels that a rim sample may be off the plane before more than background is assumed there.
RIM_TOLERANCE = 4.0
# A view's own threshold may lie so far from the learnt one, as a factor either way.
THRESHOLD_FREEDOM = 1.6
# What touches an edge must be farther from the background than the threshold by this factor: beside
# a part the shadow fades, and often reaches the edge of the view where the part does not.
EDGE_FACTOR = 1.25
# A background darker than this many grey levels does not tell how bright the light is.
DARK = 24.0
# Light this much weaker or stronger than the good pictures' is not undone any further.
LEAST_GAIN, MOST_GAIN = 0.5, 2.0
# Poses are found on distances of at most so many thresholds. On the whole distance the glints of a
# thread outweigh the outline, and of 320 screws turned by any angle one in fifteen was laid a pitch
# aside; on little more than the outline, shadows move it.
CAP = 2.0
# Halvings of the distance map; the coarsest is what a turned template is compared with.
MAP_HALVINGS = 4
# Backgrounds kept for frames of so many sizes; a camera has one.
MOST_SIZES = 8
# Side of the grid on which the plane is computed; between its points it is interpolated.
PLANE_SIDE = 16


@dataclass(frozen=True)
class Piece:
    """
    One connected piece of foreground; lengths are in pixels of the searched picture.

    Attributes
    ----------
    area : float
        Pixels, holes filled.
    centre : tuple of float
        (x, y) of its centroid, pixel centres at whole numbers.
    contour : ndarray of int32, shape (n, 1, 2)
        Its outline as OpenCV gives it.
    """

    area: float
    centre: tuple[float, float]
    contour: np.ndarray


class Background:
    """
    Fits the background of pictures of one size; not for two threads at once.

    Parameters
    ----------
    shape : tuple of int
        (height, width) of the pictures, at least 8 pixels a side.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        height, width = shape
        self.shape = (height, width)
        # Fresh memory would cost more than what is computed in it.
        self._colours = [np.empty((height, width), np.uint8) for _ in range(3)]
        self._levels = np.empty((height, width, 3), np.uint8)
        self._reach = reach = max(1, round(RIM_SHARE * max(height, width)))
        along = (np.arange(RIM_SAMPLES) + 0.5) / RIM_SAMPLES
        near_x, near_y = reach / 2 / width, reach / 2 / height
        x = np.concatenate([along, along, np.full_like(along, near_x), 1 - near_x + 0 * along])
        y = np.concatenate([near_y + 0 * along, 1 - near_y + 0 * along, along, along])
        self._basis = np.stack([np.ones_like(x), 2 * x - 1, 2 * y - 1], axis=1)
        self._rows = np.ascontiguousarray(self._basis.T)
        # Long edges hold more of the rim.
        share = np.repeat([width, width, height, height], RIM_SAMPLES) / RIM_SAMPLES
        self._share = share / share.mean()
        weighted = self._basis.T * self._share
        self._first = np.linalg.solve(weighted @ self._basis, weighted)
        side = (np.arange(PLANE_SIDE) + 0.5) / PLANE_SIDE * 2 - 1
        grid_x, grid_y = np.meshgrid(side, side)
        ones = np.ones_like(grid_x)
        self._grid = np.stack([ones, grid_x, grid_y], axis=-1).reshape(-1, 3)

    def plane(self, picture_bgr: np.ndarray) -> np.ndarray:
        """
        The plane through the rim, by least squares reweighted towards least absolute deviations.

        Parameters
        ----------
        picture_bgr : ndarray of uint8, shape (height, width, 3)

        Returns
        -------
        plane : ndarray of float64, shape (3, 3)
            A row each for the level in the middle, the slope to the right and the slope down, grey
            levels over half the view; a column each for blue, green and red.
        """
        reach, row, column = self._reach, (RIM_SAMPLES, 1), (1, RIM_SAMPLES)
        strips = (
            cv2.resize(picture_bgr[:reach], row, interpolation=cv2.INTER_AREA),
            cv2.resize(picture_bgr[-reach:], row, interpolation=cv2.INTER_AREA),
            cv2.resize(picture_bgr[:, :reach], column, interpolation=cv2.INTER_AREA),
            cv2.resize(picture_bgr[:, -reach:], column, interpolation=cv2.INTER_AREA),
        )
        rim = np.concatenate([strip.reshape(-1, 3) for strip in strips]).astype(np.float64)
        # A row to a colour: numpy is slow along short last axes.
        colours = np.ascontiguousarray(rim.T)
        plane = self._first @ rim
        for _ in range(REFITS):
            residual = np.abs(colours - plane.T @ self._rows).max(axis=0)
            if residual.max() <= RIM_TOLERANCE:
                break
            weighted = self._rows * (self._share / np.maximum(residual, 1.0))
            plane = np.linalg.solve(weighted @ self._basis, weighted @ rim)
        return plane

    def distance(self, picture_bgr: np.ndarray, plane: np.ndarray) -> np.ndarray:
        """
        How far each pixel is from the background.

        Parameters
        ----------
        picture_bgr : ndarray of uint8, shape (height, width, 3)
        plane : ndarray, shape (3, 3)

        Returns
        -------
        distance : ndarray of uint8, shape (height, width)
            The largest difference of a colour, grey levels.
        """
        # Adding half makes the cut to whole levels a rounding.
        grid = np.clip(self._grid @ plane + 0.5, 0, 255).astype(np.uint8)
        height, width = self.shape
        grid = grid.reshape(PLANE_SIDE, PLANE_SIDE, 3)
        levels = cv2.resize(grid, (width, height), self._levels, interpolation=cv2.INTER_LINEAR)
        blue, green, red = cv2.split(cv2.absdiff(picture_bgr, levels, levels), self._colours)
        return cv2.max(cv2.max(blue, green, dst=blue), red)


@dataclass(frozen=True)
class View:
    """
    What is known of the region of one frame before anything is looked for.

    Attributes
    ----------
    halvings : list of ndarray of uint8, shape (height, width, 3)
        The region, then halved again and again by exact 2 x 2 averages as far as was needed.
    plane : ndarray of float64, shape (3, 3)
        See `Background.plane`.
    maps : list of ndarray of float32, shape (h, w)
        Distance from the background, grey levels, on the working picture, then halved; at most
        `CAP` times the threshold. While that is not known the first alone, uint8; see `capped`.
    search : ndarray of uint8
        The distance whose long side is `FIND_SIDE`.
    to_view : ndarray of float64, shape (3, 3)
        From pixels of ``maps[0]`` to pixels of the region.
    """

    halvings: list[np.ndarray]
    plane: np.ndarray
    maps: list[np.ndarray]
    search: np.ndarray
    to_view: np.ndarray


class Viewer:
    """
    Makes views; what depends on a frame's size alone is computed once.

    Parameters
    ----------
    zoom : int
        1, 2 or 4: the working picture's long side over `FIND_SIDE`.
    threshold, level : float or None
        Learnt threshold and level of the background, grey levels; None while they are not known.
    """

    def __init__(self, zoom: int, threshold: float | None = None, level: float = 0.0) -> None:
        self.zoom, self._threshold, self._level = zoom, threshold, level
        self._backgrounds: dict[tuple[int, int], Background] = {}

    def look(self, region_bgr: np.ndarray) -> View:
        """A view of the region of interest, ndarray of uint8, shape (height, width, 3)."""
        height, width = region_bgr.shape[:2]
        scale = self.zoom * FIND_SIDE / max(height, width)
        # A strip thinner than this has no rim and inside.
        rows, columns = max(8, round(height * scale)), max(8, round(width * scale))
        halvings = [region_bgr]
        while halvings[-1].shape[0] >= 2 * rows and halvings[-1].shape[1] >= 2 * columns:
            halvings.append(halved(halvings[-1]))
        picture = halvings[-1]
        to_view = scaling(picture.shape[1] / columns, picture.shape[0] / rows)
        to_view = scaling(2.0 ** (len(halvings) - 1)) @ to_view
        if picture.shape[:2] != (rows, columns):
            picture = cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_LINEAR)
        background = self._background((rows, columns))
        plane = background.plane(picture)
        distance = background.distance(picture, plane)
        search = distance
        for _ in range(self.zoom // 2):
            search = halved(search)
        view = View(halvings, plane, [distance], search, to_view)
        if self._threshold is None:
            return view
        return capped(view, self._threshold, self._level)

    def _background(self, shape: tuple[int, int]) -> Background:
        if shape not in self._backgrounds:
            if len(self._backgrounds) >= MOST_SIZES:
                self._backgrounds.clear()
            self._backgrounds[shape] = Background(shape)
        return self._backgrounds[shape]


def capped(view: View, threshold: float | None, level: float) -> View:
    """
    The view with the maps on which a `Viewer` of that threshold and level finds poses.

    Of the view only ``maps[0]`` is needed; it must not have been capped lower before.
    """
    distance = view.maps[0].astype(np.uint8, copy=False)
    if threshold is not None:
        gain = light_gain(float(view.plane[0].mean()), level)
        distance = cv2.min(distance, min(CAP * threshold * gain, 255.0))
    maps = [distance.astype(np.float32)]
    while len(maps) <= MAP_HALVINGS and min(distance.shape) >= 8:
        distance = halved(distance)
        maps.append(distance.astype(np.float32))
    return replace(view, maps=maps)


def halved(picture: np.ndarray) -> np.ndarray:
    """Exact 2 x 2 averages; an odd last row or column is left out."""
    rows, columns = picture.shape[0] // 2, picture.shape[1] // 2
    even = picture[: 2 * rows, : 2 * columns]
    return cv2.resize(even, (columns, rows), interpolation=cv2.INTER_AREA)


def scaling(across: float, down: float | None = None) -> np.ndarray:
    """
    Matrix, shape (3, 3), from pixels of a shrunken picture to pixels of the picture.

    A pixel's centre has whole coordinates, so that its edge is half a pixel before it: that is what
    has to be scaled.
    """
    down = across if down is None else down
    return np.array([[across, 0, (across - 1) / 2], [0, down, (down - 1) / 2], [0, 0, 1.0]])


def level_at(plane: np.ndarray, x: float, y: float) -> np.ndarray:
    """
    Level of the background at a place, shape (3,), blue, green, red.

    `x` and `y` are shares of the view's width and height, 0 to 1.
    """
    x, y = min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)
    return np.clip(np.array([1.0, 2 * x - 1, 2 * y - 1]) @ plane, 0, 255)


def otsu(distance: np.ndarray) -> float:
    """Otsu's threshold of a distance map of uint8, grey levels."""
    value, _ = cv2.threshold(distance, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return float(value)


def held(own: float, learnt: float) -> float:
    """A view's own threshold, held near the learnt one: noise has an Otsu threshold too."""
    return min(max(own, learnt / THRESHOLD_FREEDOM), learnt * THRESHOLD_FREEDOM)


def light_gain(level: float, learnt: float) -> float:
    """How much brighter the background is than the learnt one; 1 where that is too dark to say."""
    if learnt < DARK:
        return 1.0
    return min(max(level / learnt, LEAST_GAIN), MOST_GAIN)


def foreground(distance: np.ndarray, threshold: float) -> np.ndarray:
    """Mask, uint8 of 0 and 1, of what is farther than `threshold`; gaps of a pixel are closed."""
    _, mask = cv2.threshold(distance, threshold, 1, cv2.THRESH_BINARY)
    return cv2.morphologyEx(mask, cv2.MORPH_CLOSE, _ELEMENT)


def pieces(mask: np.ndarray) -> list[Piece]:
    """Connected pieces of a mask, largest first; specks of a few pixels are left out."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    found = []
    for contour in contours:
        moments = cv2.moments(contour)
        # A polygon of less has no centroid worth the name.
        if moments["m00"] < 4:
            continue
        centre = moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]
        # The polygon runs through the pixels' centres: half the outline is added.
        found.append(Piece(moments["m00"] + len(contour) / 2 + 1, centre, contour))
    return sorted(found, key=lambda piece: -piece.area)


def edge_share(distance: np.ndarray, threshold: float) -> float:
    """The largest share of an edge of the view, 0 to 1, that foreground clearly covers."""
    limit = threshold * EDGE_FACTOR
    edges = (distance[0], distance[-1], distance[:, 0], distance[:, -1])
    return max(np.count_nonzero(edge > limit) / len(edge) for edge in edges)


_ELEMENT = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
