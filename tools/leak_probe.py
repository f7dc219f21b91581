"""
Leak probe: do good and defective pictures differ in something that is no defect?

JPEG works on blocks of 8x8 pixels and rounds each of their 64 cosine coefficients to a multiple of
a step. What is left of that stays in the pixels when the file is saved again without loss, or its
name changed. `past_quality` reads the steps off the pixels. `block_traces` describes the blocks for
a linear probe. Both compare the picture's own grid of blocks with grids that are shifted against
it: texture, noise and the shape of a defect look the same on all of them, and cancel.

`past_quality` does not see what was resized after JPEG: its blocks are no longer 8 pixels wide. The
probe may: where blocks were made half as wide it still tells all pictures (AUROC 1.0).

`grain` describes the finest detail as it is. Real defects change it too, so that it proves nothing
between good and defective pictures; between good and good ones it must not differ.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import cv2
import numpy as np

from tools.picture_files import luminance_steps

# Side of a block of JPEG, pixels.
BLOCK = 8
# The grids that the picture's own is compared with, shifts (down, right) in pixels.
SHIFTED = ((4, 4), (2, 5), (5, 3))
# Of large pictures this much of the middle is looked at, and of that so many blocks: more change
# the figures no more, and one picture takes about 10 ms.
MOST_SIDE, MOST_BLOCKS = 768, 1024
# The least side that leaves a block on each of the grids and a frame around it.
LEAST_SIDE = 16
# Coefficients and differences beyond this (grey levels) are edges, not traces of compression.
EDGE = 20.0
# Qualities looked for. From 98 on most steps are 1 to 3 grey levels, within the rounding of pixels.
QUALITIES = np.arange(25, 98)
# Rounding to whole grey levels moves a coefficient by 0.3 (standard deviation): from this step on
# the multiples can be told from what lies between. Larger steps than the last are rare in pictures.
LEAST_STEP, LAST_STEP = 4, 64
# Range of the histogram of coefficients, grey levels.
REACH = 128
# Share of coefficients between the multiples, over that of a shifted grid, below which a grid is
# JPEG's. Measured on 1200 pictures: at most 0.15 for JPEG of quality 30 to 97, at least 0.65 else.
BETWEEN_LIMIT = 0.3
# So many coefficients that are not zero are needed for that, and so large a share of them between
# the multiples on shifted grids.
LEAST_COEFFICIENTS, LEAST_BETWEEN = 100, 0.15
# "Never a JPEG" is said only where each quality from this on could have been told. Below, most
# coefficients of an ordinary picture are zero.
SURE_FROM = 50
# Neighbouring qualities have nearly the same steps: the best of so many is taken.
NEIGHBOURS = 8
# Noise added to the features of a probe, so that what is smaller than this does not count, however
# constant it is: on a fixed station the same edges cross the same blocks in every good picture. In
# units of the features: logarithms of energies, shares, logarithms of differences. At this size
# quality 98 is still told from lossless (AUROC 1.0), and good nuts from nuts with a scratch are not
# (0.48); without it magnetic tiles with a crack have 0.70, with it 0.57.
TRACE_NOISE = np.concatenate([np.full(14, 0.2), np.full(14, 0.06), np.full(3, 0.1)])
# In logarithms of energies: 10 % more noise, or the blur of a thermal drift of focus.
GRAIN_NOISE = 0.2
# Fewer pictures of a class give no AUROC worth a finding.
LEAST_PICTURES = 10
FOLDS, REPEATS = 5, 3


def _transform() -> np.ndarray:
    """The cosine transform of a block as one matrix, shape (64, 64), for rows of pixels."""
    k = np.arange(BLOCK)
    cosines = np.cos((2 * k + 1) * k[:, None] * np.pi / (2 * BLOCK)) / 2
    cosines[0] /= np.sqrt(2)
    return np.kron(cosines, cosines).T.astype(np.float32)


_TRANSFORM = _transform()
# The sum of the two frequencies of each coefficient: 1 to 14, 0 for the mean.
_ORDER = np.add.outer(np.arange(BLOCK), np.arange(BLOCK)).ravel()
_STEPS = np.array([luminance_steps(int(quality)) for quality in QUALITIES])
_TELLING = (_STEPS >= LEAST_STEP) & (_STEPS <= LAST_STEP)
_LEVELS = np.arange(-REACH, REACH + 1)
_EVERY = np.arange(1, LAST_STEP + 1)[:, None]
# For each step and level: does it round to something that is not 0; and lies it off the multiples?
_NOT_ZERO = (np.abs(_LEVELS) > _EVERY / 2) & (np.abs(_LEVELS) < REACH)
_OFF = _NOT_ZERO & (np.abs(_LEVELS - _EVERY * np.rint(_LEVELS / _EVERY)) > 1)
# As the columns of one matrix of floats, since products of whole numbers are slow.
_COUNTED = np.concatenate([_OFF, _NOT_ZERO]).T.astype(np.float32)


def prepare(frame_bgr: np.ndarray) -> np.ndarray | None:
    """
    What of a picture is probed.

    Parameters
    ----------
    frame_bgr : ndarray of uint8, shape (H, W, 3)
        As it is in the file: a rotation from the EXIF data would shift the blocks.

    Returns
    -------
    ndarray of float32, shape (h, w), or None
        JPEG's luminance less 128, cut at whole blocks; None where a side is below `LEAST_SIDE`.
    """
    height, width = frame_bgr.shape[:2]
    if min(height, width) < LEAST_SIDE:
        return None
    top, left = (max(side - MOST_SIDE, 0) // 2 // BLOCK * BLOCK for side in (height, width))
    middle = frame_bgr[top : top + MOST_SIDE, left : left + MOST_SIDE]
    # Not cvtColor, which rounds to whole grey levels once more.
    return middle.astype(np.float32) @ np.array([0.114, 0.587, 0.299], np.float32) - 128


def _coefficients(light: np.ndarray, down: int, right: int) -> np.ndarray:
    """Cosine coefficients of the blocks of a grid, float32, shape (blocks, 64)."""
    rows, columns = (light.shape[0] - down) // BLOCK, (light.shape[1] - right) // BLOCK
    cut = light[down : down + BLOCK * rows, right : right + BLOCK * columns]
    blocks = cut.reshape(rows, BLOCK, columns, BLOCK).transpose(0, 2, 1, 3).reshape(-1, 64)
    if len(blocks) > MOST_BLOCKS:
        blocks = blocks[np.linspace(0, len(blocks) - 1, MOST_BLOCKS).astype(int)]
    return blocks @ _TRANSFORM


def _borders(light: np.ndarray) -> np.ndarray:
    """Logarithm of the mixed difference of neighbours, by place in the 8x8 grid, shape (8, 8)."""
    mixed = np.abs(light[:-1, :-1] - light[1:, :-1] - light[:-1, 1:] + light[1:, 1:])
    rows, columns = mixed.shape[0] // BLOCK, mixed.shape[1] // BLOCK
    whole = np.minimum(mixed[: rows * BLOCK, : columns * BLOCK], EDGE)
    # A tenth of a grey level counts as none.
    return np.log(whole.reshape(rows, BLOCK, columns, BLOCK).mean(axis=(0, 2)) + 0.1)


def past_quality(light: np.ndarray) -> int | None:
    """
    Quality of the JPEG file that a picture was once, read from its pixels.

    Of the coefficients that a step would not round to zero, JPEG leaves none between the multiples
    of the step. Their share there, over the same share on shifted grids, is near 0 for the steps of
    the quality it was saved with, and near 1 where the picture never was a JPEG (Fan and de
    Queiroz, "Identification of bitmap compression history", IEEE Transactions on Image Processing
    12, 2003, from the same idea).

    Parameters
    ----------
    light : ndarray of float32, shape (h, w)
        From `prepare`.

    Returns
    -------
    int or None
        Of `QUALITIES`, within 1 of the truth on pictures saved by libjpeg; of a picture that was
        saved twice mostly the coarser of the two. 0 where there is no trace: never a JPEG, of a
        quality above the last, or resized since. None where the picture is too smooth to tell.
    """
    # Cut out of a larger picture, the grid begins where the borders show.
    row, column = np.unravel_index(np.argmax(_borders(light)), (BLOCK, BLOCK))
    grids = {(0, 0), ((int(row) + 1) % BLOCK, (int(column) + 1) % BLOCK)}
    shifted = np.sum(
        [_between(_coefficients(light, *shift)) for shift in SHIFTED if shift not in grids], axis=0
    )
    can_tell = False
    for grid in sorted(grids):
        own = _between(_coefficients(light, *grid))
        ratio = ((own[0] + 1) / (own[1] + 2)) / ((shifted[0] + 1) / (shifted[1] + 2))
        tells = (own[1] >= LEAST_COEFFICIENTS) & (shifted[0] >= LEAST_BETWEEN * shifted[1])
        ratio[~tells] = np.inf
        # Finer steps divide coarser ones and fit too: the coarsest that fit are JPEG's.
        fits = np.flatnonzero(ratio < BETWEEN_LIMIT)
        if len(fits):
            first = int(fits[0])
            return int(QUALITIES[first + np.argmin(ratio[first : first + NEIGHBOURS])])
        can_tell |= bool(tells[QUALITIES >= SURE_FROM].all())
    return 0 if can_tell else None


def _between(coefficients: np.ndarray) -> np.ndarray:
    """For each quality, how many coefficients lie between the multiples, of how many not zero."""
    levels = np.clip(np.rint(coefficients), -REACH, REACH).astype(int) + REACH
    places = levels + np.arange(64) * len(_LEVELS)
    histogram = np.bincount(places.ravel(), minlength=64 * len(_LEVELS)).reshape(64, -1)
    between, of = np.hsplit(histogram.astype(np.float32) @ _COUNTED, 2)
    at = np.arange(64), np.minimum(_STEPS, LAST_STEP) - 1
    return np.array([(counts[at] * _TELLING).sum(axis=1) for counts in (between, of)], float)


def block_traces(light: np.ndarray) -> np.ndarray:
    """
    How the picture's own grid of 8x8 blocks differs from shifted ones.

    Parameters
    ----------
    light : ndarray of float32, shape (h, w)
        From `prepare`.

    Returns
    -------
    ndarray of float64, shape (31,)
        For each order of frequency, 1 to 14: the logarithm of the coefficients' energy less that on
        shifted grids; the share of coefficients that are near zero less that on shifted grids; then
        the mixed difference across the rows, the columns and the strongest place of the grid less
        its mean. About 0 where the picture never was a JPEG.
    """
    own = _statistics(_coefficients(light, 0, 0))
    shifted = np.mean([_statistics(_coefficients(light, *shift)) for shift in SHIFTED], axis=0)
    difference = own - shifted
    orders = [difference[:, order == _ORDER].mean(axis=1) for order in range(1, 15)]
    borders = _borders(light)
    last = BLOCK - 1
    edges = np.array([borders[last].mean(), borders[:, last].mean(), borders.max()])
    return np.concatenate([np.transpose(orders).ravel(), edges - borders.mean()])


def _statistics(coefficients: np.ndarray) -> np.ndarray:
    size = np.abs(coefficients)
    # The energy of rounding, 1/12, is about the 0.1 that counts as none.
    energy = np.log(np.minimum(size, EDGE) ** 2 + 0.1).mean(axis=0)
    return np.array([energy, (size < 0.5).mean(axis=0)])


def grain(light: np.ndarray) -> np.ndarray:
    """
    The finest detail of a picture: noise, focus, what a camera's software left of both.

    Parameters
    ----------
    light : ndarray of float32, shape (h, w)
        From `prepare`.

    Returns
    -------
    ndarray of float64, shape (6,)
        Logarithms of the energies of first differences (right, down, both) and of second ones.
    """
    first, second = np.array([[-1.0, 1.0]]), np.array([[-1.0, 2.0, -1.0]])
    energies = []
    for kernel in (first, first.T, first * first.T, second, second.T, second * second.T):
        detail = cv2.filter2D(light, cv2.CV_32F, kernel)[2:-2, 2:-2]
        energies.append(np.log((np.minimum(np.abs(detail), EDGE) ** 2).mean() + 0.1))
    return np.array(energies)


@dataclass(frozen=True)
class Separation:
    """
    How well a number, or a probe, tells two groups of pictures apart.

    Attributes
    ----------
    auroc : float
        0 to 1; 0.5 for not at all.
    lower : float
        Lower end of its one-sided 95 % confidence interval.
    pictures : tuple of int
        In the two groups.
    """

    auroc: float
    lower: float
    pictures: tuple[int, int]


def separation(first: np.ndarray, second: np.ndarray) -> Separation:
    """
    Area under the ROC curve of one number per picture, with its uncertainty.

    Parameters
    ----------
    first, second : ndarray of float, shapes (n,) and (m,), n and m at least 1

    Returns
    -------
    Separation
        `auroc` is the probability that one of `second` has the higher number. `lower` counts from
        the side it is on: for 0.1 it is the lower end of 0.9's interval. Standard error after
        Hanley and McNeil (Radiology 143, 1982), at most one of 2 min(n, m) below a perfect 1.
    """
    from tools.metrics import image_auroc

    n, m = len(first), len(second)
    auroc = image_auroc(np.concatenate([first, second]), [False] * n + [True] * m)
    area = min(max(auroc, 1 - auroc), 1 - 0.5 / min(n, m))
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (m - 1) * (q1 - area**2) + (n - 1) * (q2 - area**2)) / (n * m)
    return Separation(auroc, area - 1.645 * float(np.sqrt(variance)), (n, m))


def probe(
    first: np.ndarray, second: np.ndarray, noise: np.ndarray | float, groups: np.ndarray
) -> Separation | None:
    """
    Cross-validated AUROC of a linear probe between two groups of pictures.

    Linear discriminant analysis with the covariance shrunk after Ledoit and Wolf, 5 folds three
    times over; noise is added to the features, so that what is smaller does not count.

    Parameters
    ----------
    first, second : ndarray of float, shapes (n, d) and (m, d)
        Features of each picture.
    noise : ndarray of shape (d,), or float
        Standard deviation of what is added to each.
    groups : ndarray of int, shape (n + m,)
        Near-duplicates have the same number, and are kept in one fold.

    Returns
    -------
    Separation or None
        `auroc` about 0.5 where nothing tells them apart; a little below happens by chance. None
        with fewer than `LEAST_PICTURES` pictures, or groups, of either.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.model_selection import StratifiedGroupKFold

    n, m = len(first), len(second)
    least = min(n, m, len(np.unique(groups[:n])), len(np.unique(groups[n:])))
    if least < LEAST_PICTURES:
        return None
    features = np.concatenate([first, second])
    labels = np.arange(n + m) >= n
    found = []
    for repeat in range(REPEATS):
        rng = np.random.default_rng(repeat)
        noisy = features + rng.normal(0.0, 1.0, features.shape) * noise
        scores = np.zeros(n + m)
        folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=repeat)
        with warnings.catch_warnings():
            # A large group leaves the folds uneven, which costs nothing but a little precision.
            warnings.simplefilter("ignore")
            for learn, held_out in folds.split(noisy, labels, groups):
                # Whatever the units: the shrinkage is of the correlations.
                model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
                model.fit(noisy[learn], labels[learn])
                scores[held_out] = model.decision_function(noisy[held_out])
        found.append(separation(scores[:n], scores[n:]))
    auroc = float(np.mean([one.auroc for one in found]))
    # A probe that is worse than chance on what it has not seen has found nothing.
    lower = float(np.mean([one.lower if one.auroc > 0.5 else 1 - one.lower for one in found]))
    return Separation(auroc, lower, (n, m))
