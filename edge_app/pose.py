"""
Pose: where a template lies in a picture, and how it is turned.

The template is first turned in steps, which settles the direction of a part that looks alike from
both ends at first sight, then moved by Gauss-Newton steps from coarse to fine (inverse
compositional, Baker and Matthews, "Lucas-Kanade 20 Years On", IJCV 56, 2004), whose gradients are
those of the template and so computed once.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence

import cv2
import numpy as np

from edge_app.foreground import halved

# Steps of the search over the full turn; Gauss-Newton reaches several times as far as one.
TURNS = 60
# Side of the square picture that is turned, pixels.
TURN_SIDE = 32
# Peaks of the search that are followed, and how far below the best in correlation they may lie: a
# nut has six.
MOST_PEAKS, PEAK_MARGIN = 6, 0.08
# A peak is that much of a turn from the next, in steps.
PEAK_REACH = 4
# The template is compared at full, half and quarter size, as long as its sides have so many pixels.
LEVELS, LEAST_LEVEL_SHORT, LEAST_LEVEL_LONG = 3, 10, 24
# Gauss-Newton steps on the coarsest, the middle and the finest template, at most.
MOST_STEPS = (8, 5, 3)
# Poses this much worse than the best are not followed to the next level.
LEVEL_MARGIN = 0.02
# The move, in pixels of the level, below which the steps end; the next would be a fifth of it.
LEAST_MOVE = 0.25
# The longest step that is believed: pixels of the level, radians, log scale.
MOST_MOVE, MOST_TURN, MOST_GROW = 4.0, 0.15, 0.08
# The scale is held within this factor, 5 % and what good parts differ by: the pose of a part that
# lacks its end must not shrink to what is left.
MOST_SCALE = 1.08


def sampled(
    picture: np.ndarray,
    matrix: np.ndarray,
    size: tuple[int, int],
    out: np.ndarray | None = None,
) -> np.ndarray:
    """
    Sample a picture bilinearly at the places that `matrix` gives for the pixels of another.

    Parameters
    ----------
    picture : ndarray, shape (H, W) or (H, W, c)
        What lies outside is its nearest pixel.
    matrix : ndarray of float64, shape (2, 3)
        From pixels (x, y, 1) of the picture wanted to pixels of this one.
    size : tuple of int
        (height, width) of the picture wanted.
    out : ndarray, optional
        Of that size and the picture's dtype, to be filled.
    """
    return cv2.warpAffine(
        picture,
        matrix,
        (size[1], size[0]),
        out,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def warp(picture: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """
    `sampled` for a grid whose origin is its middle.

    Parameters
    ----------
    picture : ndarray, shape (H, W) or (H, W, c)
    matrix : ndarray, shape (3, 3)
        From grid coordinates, origin at the grid's centre, to pixels.
    size : tuple of int
        (height, width) of the grid.
    """
    height, width = size
    inner = matrix[:2].copy()
    inner[:, 2] -= inner[:, :2] @ ((width - 1) / 2, (height - 1) / 2)
    return sampled(picture, inner, size)


def similarity(scale: float, angle: float, offset: Sequence[float]) -> np.ndarray:
    """Matrix, shape (3, 3), that scales, turns by `angle` radians and then moves by `offset`."""
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    return np.array([[cosine, -sine, offset[0]], [sine, cosine, offset[1]], [0.0, 0.0, 1.0]])


# A similarity: the pixel of a map that a template coordinate z lies at is ``factor * z + offset``,
# all as complex numbers, x + i y. In the innermost loop they are much faster than matrices.
_Pose = tuple[complex, complex]
# From a pixel's centre to its corner.
_HALF = 0.5 + 0.5j


def _sample(picture: np.ndarray, pose: _Pose, size: tuple[int, int]) -> np.ndarray:
    """`warp` by a similarity."""
    factor, offset = pose
    height, width = size
    offset -= factor * complex((width - 1) / 2, (height - 1) / 2)
    a, b = factor.real, factor.imag
    return sampled(picture, np.array(((a, -b, offset.real), (b, a, offset.imag))), size)


class _Level:
    """One size of the template with what Gauss-Newton needs of it; not for two threads at once."""

    def __init__(self, picture: np.ndarray, turns: bool) -> None:
        self.size = height, width = picture.shape
        # Where the similarity's turn and growth move a pixel as far as a unit of the move.
        self._radius = math.sqrt((height**2 + width**2) / 12)
        # The maps compared with it are sharper than a mean over many parts; a little blur widens
        # the reach of the steps and costs nothing here.
        picture = cv2.GaussianBlur(picture, (0, 0), 0.8).astype(np.float64)
        normal = picture - picture.mean()
        norm = max(float(np.linalg.norm(normal)), 1e-9)
        normal = (normal / norm).ravel()
        down, across = np.gradient(picture)
        y = np.arange(height)[:, None] - (height - 1) / 2
        x = np.arange(width) - (width - 1) / 2
        columns = [across, down]
        if turns:
            columns += [
                (x * down - y * across) / self._radius,
                (x * across + y * down) / self._radius,
            ]
        # Its columns one after the other: numpy is slow along short last axes.
        jacobian = np.stack([column.ravel() for column in columns])
        jacobian /= norm
        # Brightness and contrast are free: what they could explain is taken out.
        constant = np.full(len(normal), 1 / math.sqrt(len(normal)))
        basis = np.stack([constant, normal])
        jacobian -= (jacobian @ basis.T) @ basis
        # A direction without gradients, as the turn of a disc has none, is left alone. By the
        # normal equations, whose singular values are squares: the pseudo-inverse of all pixels
        # takes ten times as long.
        solver = np.linalg.pinv(jacobian @ jacobian.T, rcond=1e-4, hermitian=True) @ jacobian
        # One product gives the moves, the correlation and the mean of a sampled picture.
        self._rows = np.concatenate([solver, normal[None], constant[None]]).astype(np.float32)
        # Fresh memory for each picture would cost as much as what is computed in it.
        self._picture, self._matrix = np.empty((height, width), np.float32), np.empty((2, 3))
        self._middle = complex((width - 1) / 2, (height - 1) / 2)

    def _sample(self, picture: np.ndarray, pose: _Pose) -> np.ndarray:
        """The picture at a pose, shape (height * width,); valid until the next."""
        factor, offset = pose
        offset -= factor * self._middle
        a, b = factor.real, factor.imag
        self._matrix.flat = (a, -b, offset.real, b, a, offset.imag)
        return sampled(picture, self._matrix, self.size, self._picture).ravel()

    def compare(self, picture: np.ndarray, pose: _Pose) -> tuple[float, _Pose, float]:
        """Correlation at a pose, the pose after one Gauss-Newton step, and the step's length."""
        flat = self._sample(picture, pose)
        *move, product, mean = (self._rows @ flat).tolist()
        norm = math.sqrt(max(float(flat @ flat) - mean * mean, 1e-6))
        agreement = product / norm
        # The slope of the picture on the template is its contrast; what is left over moves it.
        gain = 1 / (norm * max(agreement, 0.2))
        shift = complex(move[0], move[1]) * gain
        length = abs(shift)
        if length > MOST_MOVE:
            shift *= MOST_MOVE / length
        grow = 1 + 0j
        if len(move) == 4:
            turn, growth = move[2] * gain, move[3] * gain
            length = max(length, abs(turn), abs(growth))
            grow = cmath.rect(
                math.exp(min(max(growth / self._radius, -MOST_GROW), MOST_GROW)),
                min(max(turn / self._radius, -MOST_TURN), MOST_TURN),
            )
        # The step says how the template would have to move; the pose moves the other way.
        factor, offset = pose
        factor /= grow
        factor *= min(max(abs(factor), 1 / MOST_SCALE), MOST_SCALE) / abs(factor)
        return agreement, (factor, offset - factor * shift), length

    def refine(self, picture: np.ndarray, pose: _Pose, steps: int) -> tuple[float, _Pose]:
        """Gauss-Newton from `pose`; the best pose met and its correlation."""
        best_agreement, best = -2.0, pose
        for step in range(steps + 1):
            agreement, after, length = self.compare(picture, pose)
            if agreement < best_agreement - LEVEL_MARGIN:
                break
            small = length < LEAST_MOVE
            if agreement > best_agreement:
                # So small a step is taken without looking where it leads.
                best_agreement, best = agreement, after if small else pose
            if small or step == steps:
                break
            pose = after
        return best_agreement, best


class PoseSearch:
    """
    Finds the pose of a part by a template.

    Parameters
    ----------
    template : ndarray of float32, shape (h, w)
    recipe : {'centre', 'pose'}
    """

    def __init__(self, template: np.ndarray, recipe: str) -> None:
        turns = recipe == "pose"
        self.size = height, width = template.shape
        self._diagonal = math.hypot(height, width)
        self._levels = [_Level(template, turns)]
        smaller = template
        for _ in range(1, LEVELS):
            smaller = halved(smaller)
            if min(smaller.shape) < LEAST_LEVEL_SHORT or max(smaller.shape) < LEAST_LEVEL_LONG:
                break
            self._levels.append(_Level(smaller, turns))
        # From the part's centroid, not from the middle of the rectangle.
        self._centroid = _centroid(template)
        self._angles = np.arange(TURNS if turns else 1) * (2 * math.pi / TURNS)
        self._step = self._diagonal / TURN_SIDE
        if turns:
            self._rows = self._turned(template)

    def _turned(self, template: np.ndarray) -> np.ndarray:
        """How the template looks on a part turned by each angle, a row each."""
        # Outside its own rectangle the template is background, 0; beyond four deviations OpenCV's
        # blur reaches nothing, so that the outermost pixel is 0 and what it repeats too.
        blur = 0.5 * self._step
        margin = math.ceil(4 * blur) + 2
        padded = cv2.copyMakeBorder(template, *[margin] * 4, cv2.BORDER_CONSTANT, value=0)
        blurred = cv2.GaussianBlur(padded, (0, 0), blur)
        middle = (padded.shape[1] - 1) / 2, (padded.shape[0] - 1) / 2
        size = TURN_SIDE, TURN_SIDE
        rows = np.empty((len(self._angles), *size), np.float32)
        factors = self._step * np.exp(-1j * self._angles)
        offsets = complex(*(self._centroid + middle)) - factors * (TURN_SIDE - 1) * _HALF
        ahead = np.stack([factors.real, -factors.imag, offsets.real], axis=1)
        below = np.stack([factors.imag, factors.real, offsets.imag], axis=1)
        for row, matrix in zip(rows, np.stack([ahead, below], axis=1), strict=True):
            row[:] = sampled(blurred, matrix, size)
        return _normalised(rows.reshape(len(rows), -1))

    def pose(
        self, maps: Sequence[np.ndarray], centre: tuple[float, float]
    ) -> tuple[float, np.ndarray]:
        """
        Best pose of a part whose centroid is near `centre`.

        Parameters
        ----------
        maps : sequence of ndarray of float32, shape (h, w)
            `View.maps`.
        centre : tuple of float
            (x, y), pixels of ``maps[0]``.

        Returns
        -------
        agreement : float
            Correlation with the template, -1 to 1.
        matrix : ndarray of float64, shape (3, 3)
            From template coordinates, origin at its middle, to pixels of ``maps[0]``.
        """
        middle = complex(*self._centroid)
        starts = []
        for angle in self._peaks(maps, centre):
            factor = cmath.rect(1.0, angle)
            starts.append((factor, complex(*centre) - factor * middle))
        found = [(0.0, pose) for pose in starts]
        coarsest = min(len(self._levels), len(maps)) - 1
        for index in range(coarsest, -1, -1):
            steps = MOST_STEPS[0] if index == coarsest else MOST_STEPS[LEVELS - 1 - index]
            halving = 0.5**index
            refined = []
            for _, (factor, offset) in found:
                # The same pose from the halved template to the halved map: in these, a pixel's
                # centre lies half a pixel from the corner again.
                inner = factor, (offset + _HALF) * halving - _HALF
                agreement, (factor, offset) = self._levels[index].refine(maps[index], inner, steps)
                refined.append((agreement, (factor, (offset + _HALF) / halving - _HALF)))
            refined.sort(key=lambda one: -one[0])
            # Two that cannot be told apart on the coarsest level go on to the next.
            margin = LEVEL_MARGIN if index == LEVELS - 1 else 0.0
            found = [one for one in refined[:2] if one[0] >= refined[0][0] - margin]
        agreement, (factor, offset) = found[0]
        away = abs(factor * middle + offset - complex(*centre))
        if away > self._diagonal / 2:
            # The steps ran off: nothing there looks like the part. The start is still a place.
            factor, offset = starts[0]
            agreement, _, _ = self._levels[0].compare(maps[0], starts[0])
        return agreement, similarity(abs(factor), cmath.phase(factor), (offset.real, offset.imag))

    def _peaks(self, maps: Sequence[np.ndarray], centre: tuple[float, float]) -> list[float]:
        """Angles at which the turned template looks most like the part, best first."""
        if len(self._angles) == 1:
            return [0.0]
        # The map whose pixels are as large as a step of the comparison, not larger.
        index = min(max(int(math.log2(max(self._step, 1.0))), 0), len(maps) - 1)
        place = (complex(*centre) + _HALF) * 0.5**index - _HALF
        pose = complex(self._step * 0.5**index), place
        square = _sample(maps[index], pose, (TURN_SIDE, TURN_SIDE))
        likeness = self._rows @ _normalised(square.reshape(1, -1))[0]
        ranked = np.argsort(-likeness)
        peaks: list[int] = []
        for candidate in ranked.tolist():
            if likeness[candidate] < likeness[ranked[0]] - PEAK_MARGIN:
                break
            away = [abs((candidate - peak + TURNS // 2) % TURNS - TURNS // 2) for peak in peaks]
            if min(away, default=TURNS) >= PEAK_REACH:
                peaks.append(candidate)
            if len(peaks) == MOST_PEAKS:
                break
        return [float(self._angles[peak]) for peak in peaks]


def _normalised(rows: np.ndarray) -> np.ndarray:
    """Rows of float32, each brought to mean 0 and norm 1."""
    away = rows - rows.mean(axis=1, keepdims=True)
    norms = np.sqrt(np.einsum("ij,ij->i", away, away))
    return away / np.maximum(norms, np.float32(1e-6))[:, None]


def _centroid(picture: np.ndarray) -> np.ndarray:
    """Centroid of a picture's values from its middle, (x, y)."""
    height, width = picture.shape
    total = float(picture.sum()) + 1e-9
    x = float(picture.sum(axis=0) @ (np.arange(width) - (width - 1) / 2)) / total
    y = float(picture.sum(axis=1) @ (np.arange(height) - (height - 1) / 2)) / total
    return np.array([x, y])
