"""
Learn the patch scorer: from encodings of good pictures to what `PatchScorer` compares with.

Everything is closed form or a greedy choice, nothing is trained, so the device does it too. Each
good picture is scored with its fold held out; from these maps come the standardisation of each
component and the scores behind the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import cv2
import numpy as np

from edge_app.patches import (
    PLACE_KINDS,
    Component,
    ComponentModel,
    Features,
    finest_grid,
    image_scores,
    in_blocks,
    on_grid,
    smoothed,
)

# Patches that the principal axes are computed from, and the coreset is chosen from, at most: more
# change the result less than another seed does.
AXES_FROM, CHOSEN_FROM = 40_000, 20_000
# A principal axis of less than this share of the largest variance is noise or rounding; whitening
# would blow it up.
LEAST_VARIANCE = 1e-4
# k of the density form.
DENSITY_NEIGHBOUR = 10
# The standardisation of a place is shared with the places around it, cells.
STANDARD_SMOOTHING = 1.0
# Of a patch scorer's models in memory; with axes and standards it stays below 4 MB.
MOST_BYTES = 3_500_000
# Good patches that a place holds at least, where there are so many.
PLACE_ROWS = 6
# Numbers of reference that an encoder affords; see `affordable_bytes`.
FLOATS_PER_MULTIPLY_ADD = 0.015
# Half the bytes on disk: these are rounded by a thousandth of their size.
HALVED = ("mean", "factor", "rows")
# Multiply-adds of one component that compares each place with all its rows, a picture; and rows
# that a reference by nearest patch holds whatever its bytes: fewer are none.
MOST_PRODUCTS, LEAST_ROWS = 8_000_000, 100
# Distances between good patches of one place that are kept at once, at most: 64 MB.
MOST_APART = 2**24
# The share of the good patches of a place, those least like any other picture's, that is not stored
# whatever the pictures look like: the k-centre choice takes the strangest first, and that one
# picture in ten is defective often does not show in the scores. There it took the tiles' AUROC from
# 0.65 to 0.82, that of screw_presence from 0.95 to 0.99; clean sets moved by -0.01 to 0.00.
ALWAYS_TRIMMED = 0.05
# Pictures that each one's patches are compared with before some are trimmed, at most.
TRIMMED_FROM = 240
# Principal axes of a component: more than the first told nothing more apart, fewer than the second
# much less (screws and tiles, drawn defects).
MOST_AXES, LEAST_AXES = 48, 24
# A map of more places than this is fine enough to be averaged over 3 x 3 cells.
FINE_PLACES = 500
# A place that never varied among the good parts must not explode: its spread is at least this share
# of the mean spread.
LEAST_SPREAD = 0.25
# Features have unit variance over all patches, and rounding moves a distance between them by some
# thousandths. Less than this is no variation: from a part at rest, or pictures without any detail,
# rounding would become the measure of everything.
LEAST_DEVIATION = 0.01


@dataclass(frozen=True)
class PatchSettings:
    """
    Which patch scorer to learn.

    Attributes
    ----------
    components : tuple of Component
    image_score : {'max', 'top'}
    smoothing : float
        Cells of the finest grid.
    most_bytes : int
        Of all reference arrays in memory.
    trim : float
        Share of the good patches of a place that are not stored by `place` components: those
        least like any other picture's: among the good pictures some may not be good.
    """

    components: tuple[Component, ...]
    image_score: str = "top"
    smoothing: float = 1.0
    most_bytes: int = MOST_BYTES
    trim: float = ALWAYS_TRIMMED


def affordable_bytes(multiply_adds: int | None) -> int:
    """
    Bytes of reference that are scored in well under half the encoder's time.

    Scoring reads each stored number once a picture; with `FLOATS_PER_MULTIPLY_ADD` it took a third
    of the encoder's time on the smallest encoder measured.

    Parameters
    ----------
    multiply_adds : int or None
        Of the encoder; None where the bundle does not say.
    """
    if multiply_adds is None:
        return MOST_BYTES
    return min(MOST_BYTES, int(4 * FLOATS_PER_MULTIPLY_ADD * multiply_adds))


def default_settings(
    map_shapes: Sequence[tuple[int, ...]], maps: Sequence[int], most_bytes: int = MOST_BYTES
) -> PatchSettings:
    """
    The patch scorer that is learnt where nothing chose a better one.

    A `place` component on each map, and the mean of the map's top share: on drawn defects over
    held-out good pictures it was level with the best on aligned screws and on magnetic tiles.

    Parameters
    ----------
    map_shapes : sequence of (h, w, c)
        Of the encoder's maps.
    maps : sequence of int
        Which of them to use.
    most_bytes : int
    """
    components = fitting("place", maps, map_shapes, most_bytes)
    return PatchSettings(components, "top", smoothing_of(components, map_shapes), most_bytes)


def fitting(
    kind: str,
    maps: Sequence[int],
    map_shapes: Sequence[tuple[int, ...]],
    most_bytes: int,
    centred: bool = False,
) -> tuple[Component, ...]:
    """
    One component of a kind on each of some maps, with as many axes as their bytes allow.

    A map of more than `FINE_PLACES` places is averaged over 3 x 3 cells and its places share their
    covariance two by two: beside each other they see nearly the same. Where a `place` component
    could hold only few patches of each place, cells are pooled to fewer places.
    """
    components = []
    for index in maps:
        height, width, channels = map_shapes[index]
        fine = height * width > FINE_PLACES
        blur, share = (3, 2) if fine else (1, 1)
        most = most_bytes // 4 // len(maps)
        if kind != "gauss":
            axes = min(MOST_AXES, channels)
            component = Component(kind, index, axes, blur, centred)
            while kind == "place":
                places = math.prod(component.grid((height, width)))
                if places == 1 or PLACE_ROWS * axes * places <= most:
                    break
                component = replace(component, pool=2 * component.pool)
            components.append(component)
            continue
        fits = [
            Component(kind, index, axes, blur, centred, block)
            for block in (share, 2 * share, 4 * share)
            for axes in range(min(MOST_AXES, channels), LEAST_AXES - 1, -4)
        ]
        fits = [c for c in fits if gauss_floats(c, (height, width)) <= most]
        least = Component(kind, index, min(8, channels), blur, centred, 8 * share)
        while (
            gauss_floats(least, least.grid((height, width))) > most
            and max(least.grid((height, width))) > 1
        ):
            least = replace(least, pool=2 * least.pool)
        components.append(fits[0] if fits else least)
    return tuple(components)


def smoothing_of(components: Sequence[Component], map_shapes: Sequence[tuple[int, ...]]) -> float:
    """Blur of the averaged map, cells: a fine map's neighbours are one defect more often."""
    height, width = finest_grid(components, map_shapes)
    return 1.0 if height * width > FINE_PLACES else 0.5


def learn_features(component: Component, patches: Sequence[np.ndarray], seed: int = 0) -> Features:
    """
    Principal axes of one map's patches, scaled to unit variance.

    Parameters
    ----------
    component : Component
    patches : sequence of ndarray of float32, shape (h, w, c)
        The component's map of some good pictures.
    seed : int
        Of the patches chosen, where there are more than are needed.

    Returns
    -------
    Features
        Of fewer axes than asked for where the patches vary along fewer.
    """
    if component.centred:
        patches = [one - one.mean(axis=(0, 1)) for one in patches]
    lots = [one.reshape(-1, one.shape[2]) for one in patches]
    count = sum(map(len, lots))
    if count > AXES_FROM:
        lots, count = [_some(np.concatenate(lots), AXES_FROM, seed)], AXES_FROM
    # A picture at a time stays in the cache; in double precision the mean may be taken off last.
    total, scatter = np.zeros(lots[0].shape[1]), 0.0
    for lot in lots:
        rows = lot.astype(np.float64)
        total += rows.sum(axis=0)
        scatter = scatter + rows.T @ rows
    mean = total / count
    scatter -= count * np.outer(mean, mean)
    variances, axes = np.linalg.eigh(scatter / max(count - 1, 1))
    variances, axes = variances[::-1], axes[:, ::-1]
    kept = max(1, min(component.axes, int((variances > LEAST_VARIANCE * variances[0]).sum())))
    scaled = axes[:, :kept] / np.sqrt(np.maximum(variances[:kept], 1e-12))
    return Features(
        scaled.astype(np.float32),
        (mean @ scaled).astype(np.float32),
        component.blur,
        component.centred,
        component.pool,
    )


def fit_component(
    component: Component,
    features: np.ndarray,
    most_floats: int,
    seed: int = 0,
    trim: float = 0.0,
    rows: np.ndarray | None = None,
    apart: np.ndarray | None = None,
    believed: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """
    Fit one component to features of good pictures.

    Parameters
    ----------
    component : Component
    features : ndarray of float32, shape (n, h, w, d)
    most_floats : int
        How many numbers its arrays may hold.
    seed : int
    trim : float
        As in `PatchSettings`.
    rows : ndarray of int, optional
        The pictures to fit to, rising; by default all.
    apart : ndarray of float32, shape (h * w, n, n), optional
        For `place`: `squares_apart` of these features, where it is known already.
    believed : ndarray of bool, shape (n,), optional
        Pictures of which nothing is trimmed, because a person said that they are good.

    Returns
    -------
    dict of str to ndarray
        As `ComponentModel` takes them: those in `HALVED` of float16, as they are stored, so that
        held-out distances are rounded like those of the frame loop. The others of float32.
    """
    rows = np.arange(len(features)) if rows is None else rows
    believed = np.zeros(len(features), bool) if believed is None else believed
    fitted = None
    if component.kind == "place":
        fitted = _fit_places(features, most_floats, trim, rows, apart, believed)
    if fitted is None:
        fitted = _fit(component, features[rows], most_floats, seed, trim, believed[rows])
    return {
        name: array.astype(np.float16, copy=False) if name in HALVED else array
        for name, array in fitted.items()
    }


def _fit(
    component: Component,
    features: np.ndarray,
    most_floats: int,
    seed: int,
    trim: float,
    believed: np.ndarray,
) -> dict[str, np.ndarray]:
    count, height, width, axes = features.shape
    places = height * width
    by_place = features.reshape(count, places, axes)
    if component.kind == "gauss":
        return _fit_gauss(features, component.share)
    if component.kind == "place":
        most = max(1, most_floats // (places * axes))
        rows = np.ascontiguousarray(by_place.transpose(1, 0, 2))
        if _staying(count, trim) < count:
            rows = _trimmed(rows, trim, believed)
        return {"rows": rows if rows.shape[1] <= most else _choose_each(rows, most)}
    rows = _some(by_place.reshape(-1, axes), CHOSEN_FROM, seed)
    stored = choose(rows, max(DENSITY_NEIGHBOUR, most_floats // (axes + 1)))
    arrays = {"rows": stored}
    if component.kind == "density":
        arrays["radius"] = _radius(stored, rows)
    return arrays


def _fit_gauss(features: np.ndarray, share: int) -> dict[str, np.ndarray]:
    """
    Mean of each place and inverse Cholesky factor of each block of places.

    The covariance of a block is that of its own patches, shrunk to the mean covariance of all
    with the strength of d further pictures: the posterior mean under an inverse Wishart prior.
    With few pictures the blocks share one covariance, with many each has its own. To the shared
    one a hundredth of its mean variance is added, and `LEAST_DEVIATION` squared.
    """
    count, _, _, axes = features.shape
    mean = features.mean(axis=0)
    # One picture at a time, so that no second copy of all features is held.
    scatter: np.ndarray | None = None
    for picture in features:
        away, _ = in_blocks(picture - mean, share)
        product = np.matmul(away.transpose(0, 2, 1), away)
        scatter = product if scatter is None else np.add(scatter, product, out=scatter)
    _, places = in_blocks(mean, share)
    rows = (places >= 0).reshape(len(scatter), -1).sum(axis=1)[:, None, None]
    scatter /= rows
    shared = scatter.mean(axis=0) / max(count - 1, 1)
    ridge = 0.01 * np.trace(shared) / axes + LEAST_DEVIATION**2
    shared += ridge * np.eye(axes, dtype=np.float32)
    # Patches beside each other are nearly one: a block counts its pictures, not its patches.
    covariance = (scatter + axes * shared) / (max(count - 1, 0) + axes)
    factor = np.linalg.inv(np.linalg.cholesky(covariance.astype(np.float64)))
    return {"mean": mean, "factor": factor.transpose(0, 2, 1).astype(np.float32)}


def choose(rows: np.ndarray, count: int) -> np.ndarray:
    """
    Greedy k-centre: again and again the row farthest from all chosen so far (Gonzalez, 1985).

    Parameters
    ----------
    rows : ndarray of float32, shape (n, d)
    count : int

    Returns
    -------
    ndarray of float32, shape (min(n, count), d)
    """
    if len(rows) <= count:
        return rows
    squares = np.einsum("ij,ij->i", rows, rows)
    away = rows - rows.mean(axis=0)
    # From the middle outwards: the first row is the most ordinary one.
    at = int(np.einsum("ij,ij->i", away, away).argmin())
    chosen = np.empty(count, int)
    nearest_sq = np.full(len(rows), np.inf, np.float32)
    for index in range(count):
        chosen[index] = at
        np.minimum(nearest_sq, squares + (squares[at] - 2 * (rows @ rows[at])), out=nearest_sq)
        at = int(nearest_sq.argmax())
    return rows[chosen]


def squares_apart(features: np.ndarray) -> np.ndarray | None:
    """
    Squared distances between the patches of one place, for every place.

    Parameters
    ----------
    features : ndarray of float32, shape (n, h, w, d)

    Returns
    -------
    ndarray of float32, shape (h * w, n, n), or None
        None where they are more than `MOST_APART` numbers.
    """
    count, height, width, axes = features.shape
    if count**2 * height * width > MOST_APART:
        return None
    rows = np.ascontiguousarray(features.reshape(count, -1, axes).transpose(1, 0, 2))
    squares = np.einsum("pnd,pnd->pn", rows, rows)
    apart = np.matmul(rows, rows.transpose(0, 2, 1))
    apart *= -2
    apart += squares[:, None, :]
    apart += squares[:, :, None]
    return apart


def _fit_places(
    features: np.ndarray,
    most_floats: int,
    trim: float,
    rows: np.ndarray,
    apart: np.ndarray | None,
    believed: np.ndarray,
) -> dict[str, np.ndarray] | None:
    """As `_trimmed` and `_choose_each`, from the distances; None where they are too many."""
    apart = squares_apart(features) if apart is None else apart
    if apart is None:
        return None
    places, count, _ = apart.shape
    by_place = features.reshape(count, places, -1)
    most = max(1, most_floats // (places * by_place.shape[2]))
    left_out = np.setdiff1d(np.arange(count), rows)
    picked = _picked(apart, most, trim, left_out, believed)
    return {"rows": by_place[picked, np.arange(places)[:, None]]}


def _picked(
    apart: np.ndarray, most: int, trim: float, left_out: np.ndarray, believed: np.ndarray
) -> np.ndarray:
    """Which pictures' patches are stored of each place, int, shape (places, up to `most`)."""
    places, own = np.arange(len(apart)), np.arange(apart.shape[1])
    stays = np.ones(apart.shape[:2], np.float32)
    stays[:, left_out] = 0
    kept = np.broadcast_to(np.delete(own, left_out), (len(apart), len(own) - len(left_out)))
    if _staying(kept.shape[1], trim) < kept.shape[1]:
        others = apart.copy()
        others[:, own, own] = others[:, :, left_out] = np.inf
        nearest_sq = others.min(axis=2)
        nearest_sq[:, believed] = 0
        nearest_sq = np.delete(nearest_sq, left_out, axis=1)
        kept = np.take_along_axis(kept, _least(nearest_sq, trim), axis=1)
        stays[:] = 0
        np.put_along_axis(stays, kept, 1, axis=1)
    if kept.shape[1] <= most:
        return kept
    # The row nearest to their mean has the least sum of squared distances to them.
    sums = np.matmul(apart, stays[:, :, None])[:, :, 0]
    at = np.where(stays, sums, np.inf).argmin(axis=1)
    nearest_sq = np.where(stays, np.float32(np.inf), np.float32(-np.inf))
    chosen = np.empty((len(apart), most), int)
    for index in range(most):
        chosen[:, index] = at
        np.minimum(nearest_sq, apart[places, at], out=nearest_sq)
        at = nearest_sq.argmax(axis=1)
    return chosen


def _staying(count: int, share: float) -> int:
    """How many of so many rows stay; what goes is rounded down: of a dozen each is needed."""
    return max(1, count - int(share * count + 1e-9))


def _least(nearest_sq: np.ndarray, share: float) -> np.ndarray:
    """Each place's rows but the share that is farthest from the others, in their order."""
    kept = _staying(nearest_sq.shape[1], share)
    return np.sort(np.argsort(nearest_sq, axis=1, kind="stable")[:, :kept], axis=1)


def _trimmed(rows: np.ndarray, share: float, believed: np.ndarray) -> np.ndarray:
    """
    Each place's rows without the share that is farthest from any other picture's.

    The k-centre choice takes the strangest patches first, so a defect in a picture that is taken
    for good would be stored as good (SoftPatch, Jiang et al., arXiv 2403.14233). `rows` has shape
    (places, n, d); of more than `TRIMMED_FROM` pictures each is compared with an even spread.
    """
    count = rows.shape[1]
    some = np.unique(np.linspace(0, count - 1, min(count, TRIMMED_FROM)).astype(int))
    itself = np.arange(len(some))
    nearest_sq = np.empty(rows.shape[:2], np.float32)
    # As many places at once as stay in the cache: one by one, numpy's own time is half of it.
    at_once = max(1, 2**18 // (count * len(some)))
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once]
        squares = np.einsum("pnd,pnd->pn", part, part)
        distance_sq = np.matmul(part, part[:, some].transpose(0, 2, 1))
        distance_sq *= -2
        distance_sq += squares[:, None, some]
        distance_sq += squares[:, :, None]
        distance_sq[:, some, itself] = np.inf
        nearest_sq[start : start + at_once] = distance_sq.min(axis=2)
    nearest_sq[:, believed] = 0
    return np.take_along_axis(rows, _least(nearest_sq, share)[:, :, None], axis=1)


def _choose_each(rows: np.ndarray, count: int) -> np.ndarray:
    """Greedy k-centre at each place; `rows` has shape (places, n, d)."""
    places = np.arange(len(rows))
    squares = np.einsum("pnd,pnd->pn", rows, rows)
    away = rows - rows.mean(axis=1, keepdims=True)
    at = np.einsum("pnd,pnd->pn", away, away).argmin(axis=1)
    nearest_sq = np.full(squares.shape, np.inf, np.float32)
    chosen = np.empty((len(rows), count), int)
    for index in range(count):
        chosen[:, index] = at
        product = np.matmul(rows, rows[places, at][:, :, None])[:, :, 0]
        np.minimum(nearest_sq, squares + squares[places, at][:, None] - 2 * product, out=nearest_sq)
        at = nearest_sq.argmax(axis=1)
    return rows[places[:, None], chosen]


def _radius(stored: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Distance of each stored patch to its k-th neighbour among the good patches."""
    squares = np.einsum("ij,ij->i", rows, rows)
    kth = min(DENSITY_NEIGHBOUR, len(rows) - 1)
    radius_sq = np.empty(len(stored), np.float32)
    for start in range(0, len(stored), 256):
        part = stored[start : start + 256]
        distance_sq = squares - 2 * part @ rows.T + np.einsum("ij,ij->i", part, part)[:, None]
        radius_sq[start : start + 256] = np.partition(distance_sq, kth, axis=1)[:, kth]
    radius = np.sqrt(np.maximum(radius_sq, 0))
    # Patches that are all alike (a plain background) have no distance to divide by.
    least = max(0.05 * float(radius.mean()), LEAST_DEVIATION)
    return np.maximum(radius, least).astype(np.float32)


def _some(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    if len(rows) <= most:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False))]


def standard(
    component: Component, held_out: np.ndarray, robust: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """
    What a component's distances are on held-out good pictures.

    Parameters
    ----------
    component : Component
    held_out : ndarray of float32, shape (n, h, w)
    robust : bool
        Median and median absolute deviation in place of mean and standard deviation: fewer than
        half the pictures, however strange, do not hide themselves.

    Returns
    -------
    centre, spread : ndarray of float32, shape (h, w) for `PLACE_KINDS`, else (1, 1)
        Mean and standard deviation, the second never below `LEAST_DEVIATION` for all patches
        together.
    """
    middle, deviation = (np.median, _median_deviation) if robust else (np.mean, np.std)
    overall = max(float(deviation(held_out)), LEAST_DEVIATION)
    if component.kind not in PLACE_KINDS:
        shape = (1, 1)
        return np.full(shape, middle(held_out), np.float32), np.full(shape, overall, np.float32)
    centre, spread = middle(held_out, axis=0), deviation(held_out, axis=0)
    # With few pictures a place's own spread is a guess; all places' together is not.
    count = len(held_out)
    spread = np.sqrt((count * spread**2 + 10 * overall**2) / (count + 10))
    centre = cv2.GaussianBlur(centre, (0, 0), STANDARD_SMOOTHING, borderType=cv2.BORDER_REFLECT)
    spread = cv2.GaussianBlur(spread, (0, 0), STANDARD_SMOOTHING, borderType=cv2.BORDER_REFLECT)
    spread = np.maximum(spread, LEAST_SPREAD * spread.mean())
    return centre.astype(np.float32), spread.astype(np.float32)


def _median_deviation(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Median absolute deviation, times what makes it the standard deviation of a normal."""
    away = np.abs(values - np.median(values, axis=axis, keepdims=True))
    return 1.4826 * np.median(away, axis=axis)


def gauss_floats(component: Component, grid: tuple[int, int]) -> int:
    """How many numbers a `gauss` component holds."""
    height, width = grid
    blocks = -(-height // component.share) * -(-width // component.share)
    return height * width * component.axes + blocks * component.axes**2


def floats_of(settings: PatchSettings, map_shapes: Sequence[tuple[int, ...]]) -> list[int]:
    """
    How many numbers each component may hold.

    Those of a `gauss` component are fixed by its axes; the others share what is left, and those
    that compare each place with all rows hold no more rows than `MOST_PRODUCTS` allows.
    """
    components = settings.components
    grids = [component.grid(map_shapes[component.map]) for component in components]
    fixed = [
        gauss_floats(component, grid) if component.kind == "gauss" else 0
        for component, grid in zip(components, grids, strict=True)
    ]
    free = sum(component.kind != "gauss" for component in components)
    each = max((settings.most_bytes // 4 - sum(fixed)) // free, 0) if free else 0
    floats = []
    for component, grid, size in zip(components, grids, fixed, strict=True):
        if component.kind in ("coreset", "density"):
            places = grid[0] * grid[1]
            rows = min(each // (component.axes + 1), MOST_PRODUCTS // (places * component.axes))
            size = max(rows, LEAST_ROWS) * (component.axes + 1)
        floats.append(size or each)
    return floats


def hold_out(
    component: Component,
    features: np.ndarray,
    folds: Sequence[np.ndarray],
    most_floats: int,
    probes: np.ndarray | None = None,
    probe_of: np.ndarray | None = None,
    trim: float = 0.0,
    believed: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Distance map of each good picture by a component fitted to the other folds.

    Only what is stored is fitted anew; the features' axes come from all pictures.

    Parameters
    ----------
    component : Component
    features : ndarray of float32, shape (n, h, w, d)
    folds : sequence of ndarray of int
        Rows that are held out together.
    most_floats : int
    probes : ndarray of float32, shape (m, h, w, d), optional
        Features of pictures that each belong to a good one.
    probe_of : ndarray of int, shape (m,)
        The row of that good one.
    trim : float
        As in `PatchSettings`.
    believed : ndarray of bool, shape (n,), optional
        As in `fit_component`.

    Returns
    -------
    good : ndarray of float32, shape (n, h, w)
    probe : ndarray of float32, shape (m, h, w)
    """
    good = np.empty(features.shape[:3], np.float32)
    probe = np.empty((0,) if probes is None else probes.shape[:3], np.float32)
    # The distances between pictures are the same whatever is held out.
    apart = squares_apart(features) if component.kind == "place" else None
    # What is picked by known distances is only copied: it may be rounded all at once before.
    copied = features if apart is None else features.astype(np.float16)
    for held in folds:
        rest = np.delete(np.arange(len(features)), held)
        fitted = fit_component(
            component, copied, most_floats, trim=trim, rows=rest, apart=apart, believed=believed
        )
        model = ComponentModel(component, fitted)
        for row in held:
            good[row] = model.distance(features[row])
        if probes is not None:
            for row in np.flatnonzero(np.isin(probe_of, held)):
                probe[row] = model.distance(probes[row])
    return good, probe


def average_map(
    components: Sequence[Component],
    distances: Sequence[np.ndarray],
    standards: Sequence[tuple[np.ndarray, np.ndarray]],
    weight: np.ndarray,
    smoothing: float,
) -> np.ndarray:
    """
    Standardised, averaged and smoothed maps of many pictures, as `PatchScorer.anomaly_map` of one.

    Returns
    -------
    ndarray of float32, shape (n, H, W)
    """
    grid = weight.shape
    out = np.empty((len(distances[0]), *grid), np.float32)
    for row in range(len(out)):
        total = np.zeros(grid, np.float32)
        for distance, (centre, spread) in zip(distances, standards, strict=True):
            total += on_grid((distance[row] - centre) / spread, grid)
        out[row] = smoothed(total / len(components), weight, smoothing)
    return out


def held_out_distances(
    settings: PatchSettings,
    features: Mapping[Component, np.ndarray],
    folds: Sequence[np.ndarray],
    map_shapes: Sequence[tuple[int, ...]],
    believed: np.ndarray | None = None,
) -> list[np.ndarray]:
    """
    Distance maps of each component, each good picture's with its fold held out.

    Parameters
    ----------
    settings : PatchSettings
    features : mapping of Component to ndarray of float32, shape (n, h, w, d)
    folds : sequence of ndarray of int
        Rows that are held out together.
    map_shapes : sequence of (h, w, c)
    believed : ndarray of bool, shape (n,), optional
        As in `fit_component`.

    Returns
    -------
    list of ndarray of float32, shape (n, h, w)
    """
    floats = floats_of(settings, map_shapes)
    return [
        hold_out(
            component, features[component], folds, most, trim=settings.trim, believed=believed
        )[0]
        for component, most in zip(settings.components, floats, strict=True)
    ]


def robust_scores(
    settings: PatchSettings, distances: Sequence[np.ndarray], weight: np.ndarray
) -> np.ndarray:
    """
    Scores of held-out good pictures among which some may not be good.

    The standardisation is by median and median absolute deviation. With mean and standard
    deviation one strange picture among twelve sets the spread of every place by itself and scores
    like the others.

    Parameters
    ----------
    settings : PatchSettings
    distances : sequence of ndarray of float32, shape (n, h, w)
        From `held_out_distances`.
    weight : ndarray of float32, shape (H, W)

    Returns
    -------
    ndarray of float64, shape (n,)
    """
    components = settings.components
    standards = [
        standard(component, distance, robust=True)
        for component, distance in zip(components, distances, strict=True)
    ]
    maps = average_map(components, distances, standards, weight, settings.smoothing)
    return image_scores(maps, settings.image_score).astype(np.float64)


def learn_patches(
    settings: PatchSettings,
    features: Mapping[Component, np.ndarray],
    projections: Mapping[Component, Features],
    weight: np.ndarray,
    distances: Sequence[np.ndarray],
    map_shapes: Sequence[tuple[int, ...]],
    ordinary: np.ndarray | None = None,
    believed: np.ndarray | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, Any], np.ndarray, np.ndarray]:
    """
    Everything that features of good pictures teach.

    Parameters
    ----------
    settings : PatchSettings
    features : mapping of Component to ndarray of float32, shape (n, h, w, d)
    projections : mapping of Component to Features
        What they were made with.
    weight : ndarray of float32, shape (H, W)
    distances : sequence of ndarray of float32, shape (n, h, w)
        From `held_out_distances`.
    map_shapes : sequence of (h, w, c)
    ordinary : ndarray of int, optional
        Rows of the pictures that the standardisation is taken from; by default all.
    believed : ndarray of bool, shape (n,), optional
        As in `fit_component`.

    Returns
    -------
    arrays : dict of str to ndarray
        For ``reference.npz``.
    section : dict
        For the manifest: the settings.
    scores : ndarray of float64, shape (n,)
        Each picture's when it was held out.
    maps : ndarray of float32, shape (n, H, W)
        The held-out maps, for the colour scale.
    """
    components = settings.components
    rows = slice(None) if ordinary is None else ordinary
    arrays: dict[str, np.ndarray] = {}
    standards = []
    for index, most in enumerate(floats_of(settings, map_shapes)):
        component = components[index]
        fitted = fit_component(
            component, features[component], most, trim=settings.trim, believed=believed
        )
        centre, spread = standard(component, distances[index][rows])
        standards.append((centre, spread))
        own = {
            "axes": projections[component].axes,
            "offset": projections[component].offset,
            "centre": centre,
            "spread": spread,
            **fitted,
        }
        arrays |= {f"p{index}_{name}": array for name, array in own.items()}
    maps = average_map(components, distances, standards, weight, settings.smoothing)
    scores = image_scores(maps, settings.image_score).astype(np.float64)
    section = {
        "components": [asdict(component) for component in components],
        "image_score": settings.image_score,
        "smoothing": settings.smoothing,
        "trim": settings.trim,
    }
    return arrays, section, scores, maps
