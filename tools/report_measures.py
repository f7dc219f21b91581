"""
What the page of ``evaluate`` measures beside the figures of merit.

How sure the AUROC is, where the threshold may stand and what each place costs, and whether the
encoder's first filters have learnt anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_app.bundle import LEARNT, Bundle
from edge_app.dial import Dial
from edge_app.enrol import TRIM
from edge_app.held_out import (
    NEVER,
    blinding,
    calibrate,
    false_reject_interval,
    least_like,
    near_duplicate_groups,
    thumbnail,
)
from edge_app.learnt_pictures import GOOD, unpack
from edge_app.records import Verdict
from edge_app.runtime import open_interpreter
from tools.leak_probe import separation

if TYPE_CHECKING:
    from tools.evaluate import Judged

RESAMPLES = 2000
# The share of good parts that the low working point lets a person look at: one in twenty keeps the
# attention awake and does not tire it.
LOW_RATE = 0.05
# Energy in high frequencies over what white noise of the same shape has: 16 random filters of 3 x 3
# have 0.75 to 1.3, the first layers of ImageNet encoders of widths 0.35 to 1.0 have 0.3 to 0.4.
SMOOTH, NOISY = 0.55, 0.7
# A filter with less than this share of the strongest one's energy answers to nothing.
DEAD_ENERGY = 1e-6
# What the device has judged; EMPTY and UNKNOWN are neither good nor bad.
JUDGED = (Verdict.OK, Verdict.NG)


@dataclass(frozen=True)
class Count:
    """
    So many of so many.

    Attributes
    ----------
    count, of : int
        `count` from 0 to `of`; `of` may be 0.
    """

    count: int
    of: int

    @property
    def share(self) -> float:
        """0 to 1; NaN of none."""
        return self.count / self.of if self.of else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The exact interval of confidence 95 % (Clopper and Pearson), 0 to 1."""
        return false_reject_interval(self.count, self.of) if self.of else (0.0, 1.0)


@dataclass(frozen=True)
class WorkingPoint:
    """
    A place for the threshold, set by held-out good pictures alone.

    Attributes
    ----------
    name : {'low', 'own', 'high'}
    threshold : float
        Scores above it are called.
    method : str
        How it was found, in words.
    wanted_rate : float
        Of good parts above it, 0 to 1, for which it was set.
    expected : (float, float, float)
        Share of held-out good pictures above it and its interval of confidence 95 %,
        near-duplicates counted once.
    """

    name: str
    threshold: float
    method: str
    wanted_rate: float
    expected: tuple[float, float, float]


def auroc_interval(
    good: Sequence[float], bad: Sequence[float], seed: int = 0
) -> tuple[float, float]:
    """
    The 95 % interval of the image AUROC, by resampling good and defective pictures.

    Percentiles of a bootstrap of each class by itself (Efron and Tibshirani, 1993). Where all
    defective pictures score above all good ones, so they do in every resample, however few they
    are: towards 0.5 the interval reaches at least as far as that of `leak_probe.separation`, whose
    standard error is never that of a perfect 1 (Hanley and McNeil, 1982).

    Parameters
    ----------
    good, bad : sequence of float, at least one each
        Finite scores, higher is more anomalous.
    seed : int

    Returns
    -------
    low, high : float
        0 to 1.
    """
    n_good, n_bad = len(good), len(bad)
    # Ranks are enough: a resample is how often each of the different scores comes.
    _, place = np.unique(np.concatenate([good, bad]), return_inverse=True)
    places = int(place.max()) + 1
    good_at, bad_at = place[:n_good], place[n_good:]
    rng = np.random.default_rng(seed)
    aurocs = np.empty(RESAMPLES)
    for row in range(RESAMPLES):
        goods = np.bincount(good_at[rng.integers(0, n_good, n_good)], minlength=places)
        bads = np.bincount(bad_at[rng.integers(0, n_bad, n_bad)], minlength=places)
        below = np.cumsum(goods) - goods / 2
        aurocs[row] = bads @ below / (n_good * n_bad)
    low, high = np.quantile(aurocs, (0.025, 0.975))
    found = separation(np.asarray(good), np.asarray(bad))
    lower = max(found.lower, 0.0)
    if found.auroc >= 0.5:
        low = min(low, lower)
    if found.auroc <= 0.5:
        high = max(high, 1 - lower)
    return float(low), float(high)


def working_points(bundle: Bundle, threshold: float) -> list[WorkingPoint]:
    """
    The bundle's own threshold, one that catches what is different, one that sorts out.

    The low one is calibrated as the bundle's own is, to a rate of `LOW_RATE`. The high one is
    calibrated to `NEVER` over the number of held-out pictures, the rate beyond which `far_beyond`
    takes a picture not to be good: of sets as large of good parts alone, one in a hundred would
    have one beyond it. No test picture has a say.

    Parameters
    ----------
    bundle : Bundle
        With a reference.
    threshold : float
        The one in use.

    Returns
    -------
    list of WorkingPoint
        Rising thresholds; of equal ones first that of the higher wanted rate.
    """
    section = bundle.manifest["threshold"]
    scores, groups, odd, counted = _held_out(bundle)
    dial = Dial.of(scores, section)
    points = []
    for name, rate in (("low", LOW_RATE), ("high", NEVER / len(scores))):
        found = calibrate(scores[counted], rate, groups[counted], odd)
        points.append((name, found.value, found.method, rate))
    points.insert(1, ("own", threshold, section["method"], section["wanted_rate"]))
    return [
        WorkingPoint(name, value, method, rate, replace(dial, value=value).expected())
        for name, value, method, rate in sorted(points, key=lambda point: (point[1], -point[3]))
    ]


def called(judged: Sequence[Judged], threshold: float) -> tuple[Count, Count]:
    """
    What the device would say of pictures at a threshold.

    Parameters
    ----------
    judged : sequence of Judged
    threshold : float

    Returns
    -------
    ng, ok : Count
        Of all the pictures. What it cannot judge, EMPTY or UNKNOWN, it calls neither, whatever its
        score.
    """
    sure = [one.score > threshold for one in judged if one.verdict in JUDGED]
    ng = sum(sure)
    return Count(ng, len(judged)), Count(len(sure) - ng, len(judged))


def _held_out(bundle: Bundle) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    Held-out scores, groups of near-duplicates, the odd ones and who counts, as ``learn`` had them.

    The odd ones are rows of those that count. Groups and kinds come from the pictures that the
    bundle kept; where it kept only some, each counts as a part of its own.
    """
    ids = [str(name) for name in bundle.reference["image_ids"]]
    scores = np.asarray(bundle.reference["scores"], np.float64)
    groups = np.arange(len(scores))
    content = bundle.learnt()
    kept = {} if content is None else {p.image_id: p for p in unpack(content, LEARNT)}
    section = bundle.manifest["threshold"]
    alike = (section.get("groups") or section["images"]) < section["images"]
    if alike and set(ids) <= set(kept):
        groups = near_duplicate_groups(np.stack([thumbnail(kept[i].pixels_rgb) for i in ids]))
    odd = least_like(scores, groups)
    # A picture added because it was called NG is good, however odd.
    odd = np.array([row for row in odd if ids[row] not in kept or kept[ids[row]].kind == GOOD], int)
    uncounted = odd
    if bundle.manifest["scorer"].get("trim", 0) < TRIM:
        uncounted = blinding(scores, groups, odd, section["wanted_rate"])
    counted = np.setdiff1d(np.arange(len(scores)), uncounted)
    return scores, groups, np.flatnonzero(np.isin(counted, odd)), counted


def first_layer(model: bytes) -> np.ndarray | None:
    """
    The filters of the encoder's first convolution, read from the TFLite file.

    They are known by their shape: the only weights of several rows that look at three channels.

    Parameters
    ----------
    model : bytes
        Content of ``encoder.tflite``.

    Returns
    -------
    ndarray of float32, shape (k, height, width, 3), or None
        Full-int8 weights scaled back, each filter by its own step; None where there are none.
    """
    interpreter = open_interpreter(model)
    found: list[tuple[bool, Mapping[str, Any]]] = []
    for detail in interpreter.get_tensor_details():
        shape = [int(n) for n in detail["shape"]]
        # Pictures are larger, and batch 1; depthwise filters begin with 1.
        if len(shape) == 4 and shape[0] > 1 and shape[3] == 3 and 2 <= min(shape[1:3]) <= 11:
            # With float16 weights there is a float32 tensor too, which only a run of it fills.
            found.append((detail["dtype"] == np.float32, detail))
    for _, detail in sorted(found, key=lambda row: row[0]):
        try:
            weights = interpreter.get_tensor(detail["index"])
        except ValueError:
            continue
        step = np.asarray(detail["quantization_parameters"]["scales"], np.float32)
        weights = weights.astype(np.float32)
        if len(step):
            # Weights are quantised around zero.
            weights = weights * (step if len(step) == 1 else step[:, None, None, None])
        if np.isfinite(weights).all() and weights.any():
            return weights
    return None


def dead_filters(filters: np.ndarray) -> np.ndarray:
    """Which filters are as good as zero, bool, shape (k,)."""
    energy = (filters.astype(np.float64) ** 2).sum(axis=(1, 2, 3))
    return energy <= DEAD_ENERGY * energy.max()


def high_frequency_share(filters: np.ndarray) -> float:
    """
    Share of the filters' energy that lies in high frequencies, mean over the filters.

    High are the coefficients (u, v) of the discrete cosine transform (DCT-II) with u + v at least
    the filter's side: for 3 x 3, three of nine, so that white noise has a third.

    Parameters
    ----------
    filters : ndarray of float32, shape (k, height, width, 3)
        Not all zero.

    Returns
    -------
    float
        0 (smooth) to 1.
    """
    from scipy.fft import dctn

    alive = filters[~dead_filters(filters)].astype(np.float64)
    energy = dctn(alive, axes=(1, 2), norm="ortho") ** 2
    rows, columns = alive.shape[1:3]
    high = np.add.outer(np.arange(rows), np.arange(columns)) >= max(rows, columns)
    shares = energy[:, high].sum(axis=(1, 2)) / energy.sum(axis=(1, 2, 3))
    return float(shares.mean())


def noise_share(filters: np.ndarray) -> float:
    """What `high_frequency_share` is for white noise of this shape, 0 to 1."""
    rows, columns = filters.shape[1:3]
    high = np.add.outer(np.arange(rows), np.arange(columns)) >= max(rows, columns)
    return float(high.mean())
