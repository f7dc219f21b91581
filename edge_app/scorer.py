"""
Score: how unlike the stored embeddings of good parts a new embedding is; higher is more anomalous.

Two scores over the k nearest stored embeddings. `knn`: their mean Euclidean distance. `lof`: the
local outlier factor (Breunig et al., SIGMOD 2000), equal to the negative of scikit-learn's
``LocalOutlierFactor(novelty=True).score_samples``. What scikit-learn computes once, the fit stores;
what is computed for each frame is here, in numpy.

The nearest neighbours are found exactly, without reading the whole reference. A scan of 1000 x 1280
float32 numbers is five megabytes and costs a third of a small encoder's call, all of it memory
traffic. So the rows are kept in coordinates along their principal axes beside the length of what
lies outside these axes. With p the distance along the axes and a, b the two outside lengths, the
true squared distance is at least p^2 + (a - b)^2 (triangle inequality). Only rows whose bound is
below the k-th smallest true distance found so far can be neighbours, and only these are measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

FEATURE_SCALINGS = ("none", "l2", "minmax")
SCORERS = ("lof", "knn")

# scikit-learn adds the same to the mean reachability, so that duplicates do not divide by zero.
DENSITY_EPSILON = 1e-10
# Relative error that float32 sums of this length may carry; a row so close to a limit is measured.
BOUND_MARGIN = 1e-5
# Rows measured at first beyond k where nothing is known, and the most before a scan is cheaper.
SPARE_ROWS = 13
MOST_ROWS = 64
# How much farther than the last limit the next frame's neighbours are looked for at first.
GUESS_FACTOR = 1.1


@dataclass(frozen=True)
class FeatureScaling:
    """
    What is done to an embedding before distances are taken.

    Attributes
    ----------
    kind : {'none', 'l2', 'minmax'}
        `l2` divides by the vector's length; `minmax` is the article's MinMaxScaler: each feature
        from 0 to 1 over the good parts, not clipped outside.
    low, span : ndarray of float64, shape (d,), or None
        For `minmax`: the smallest value and the range; a feature without range has span 1.
    """

    kind: str
    low: np.ndarray | None = None
    span: np.ndarray | None = None

    @classmethod
    def learn(cls, kind: str, embeddings: np.ndarray) -> FeatureScaling:
        """Learn the scaling from good embeddings, shape (n, d)."""
        if kind not in FEATURE_SCALINGS:
            raise ValueError(f"feature scaling {kind!r} is none of {', '.join(FEATURE_SCALINGS)}")
        if kind != "minmax":
            return cls(kind)
        low = embeddings.min(axis=0).astype(np.float64)
        span = embeddings.max(axis=0).astype(np.float64) - low
        span[span < 10 * np.finfo(np.float64).eps] = 1.0  # as scikit-learn does
        return cls(kind, low, span)

    def apply(self, embeddings: np.ndarray) -> np.ndarray:
        """Scaled embeddings in float64; `embeddings` has shape (d,) or (n, d)."""
        rows = embeddings.astype(np.float64)
        if self.kind == "l2":
            length = np.linalg.norm(rows, axis=-1, keepdims=True)
            return rows / np.where(length > 0, length, 1.0)
        if self.kind == "minmax":
            return (rows - self.low) / self.span
        return rows


class NeighbourScorer:
    """
    LOF or kNN score of one embedding against a stored reference.

    Parameters
    ----------
    kind : {'lof', 'knn'}
    k : int
        Number of neighbours, 1 to n.
    embeddings : ndarray of float32, shape (n, d)
        Embeddings of good parts, unscaled.
    scaling : FeatureScaling
    axes : ndarray of float32, shape (m, d)
        Orthonormal principal axes of the scaled embeddings, m from 0 to d.
    k_distance, density : ndarray of float64, shape (n,), for `lof` only
        Distance of each row to its k-th neighbour among the others, and its local reachability
        density.
    """

    def __init__(
        self,
        kind: str,
        k: int,
        embeddings: np.ndarray,
        scaling: FeatureScaling,
        axes: np.ndarray,
        k_distance: np.ndarray | None = None,
        density: np.ndarray | None = None,
    ) -> None:
        if kind not in SCORERS:
            raise ValueError(f"scorer {kind!r} is none of {', '.join(SCORERS)}")
        if not 1 <= k <= len(embeddings):
            raise ValueError(f"k is {k}, wanted 1 to {len(embeddings)}, the number of references")
        if kind == "lof" and (k_distance is None or density is None):
            raise ValueError("the LOF score needs the references' k-distances and densities")
        self.kind, self.k = kind, k
        self._k_distance, self._density = k_distance, density
        self._unit_length = scaling.kind == "l2"
        # Distances do not change when the origin moves to the middle of the reference, but float32
        # keeps more of their digits there. The lowest value goes first: it is subtracted exactly.
        self._low = self._factor = None
        if scaling.kind == "minmax":
            self._low = scaling.low.astype(np.float32)
            self._factor = (1 / scaling.span).astype(np.float32)
        self._centre = scaling.apply(embeddings).mean(axis=0).astype(np.float32)
        # Rows and queries take the same float32 steps, so that equal ones stay equal.
        self._rows = self._centred(embeddings)
        self._axes = np.ascontiguousarray(axes, dtype=np.float32)
        rows = self._rows.astype(np.float64)
        along = rows @ self._axes.T
        total_sq = np.einsum("ij,ij->i", rows, rows)
        outside_sq = total_sq - np.einsum("ij,ij->i", along, along)
        self._total_sq = total_sq.astype(np.float32)
        # p^2 + (a - b)^2 = |row|^2 + |query|^2 - 2 (row along . query along + a b): with a as one
        # more coordinate, and the -2 multiplied in, all bounds are one product and one sum.
        outside = np.sqrt(np.maximum(outside_sq, 0.0))
        bounding = -2 * np.column_stack([along, outside])
        self._bounding = np.ascontiguousarray(bounding, dtype=np.float32)
        self._guess = -math.inf
        for array in (self._rows, self._axes, self._total_sq, self._bounding):
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self._rows)

    def score(self, embedding: np.ndarray) -> float:
        """
        Anomaly score of one embedding.

        Parameters
        ----------
        embedding : ndarray of float32, shape (d,)

        Returns
        -------
        float
            Higher is more anomalous. `knn`: a distance, at least 0. `lof`: about 1 inside the good
            parts. NaN where the embedding is not finite.
        """
        neighbours, distances = self.neighbours(embedding)
        if self.kind == "knn":
            return math.fsum(distances) / self.k
        reach = np.maximum(distances, self._k_distance[neighbours])
        density = 1.0 / (math.fsum(reach) / self.k + DENSITY_EPSILON)
        return math.fsum(self._density[neighbours]) / self.k / density

    def neighbours(self, embedding: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        The k nearest references.

        Returns
        -------
        rows : ndarray of int, shape (k,)
            Nearest first.
        distances : ndarray of float64, shape (k,)
            Euclidean, in the scaled space; NaN where the embedding is not finite.
        """
        query = self._centred(embedding)
        query_sq = float(query @ query)
        if not math.isfinite(query_sq):
            return np.arange(self.k), np.full(self.k, np.nan)
        coordinates = np.empty(len(self._axes) + 1, np.float32)
        along = np.dot(self._axes, query, out=coordinates[:-1])
        outside = math.sqrt(max(query_sq - along @ along, 0.0))
        coordinates[-1] = outside
        bound = self._bounding @ coordinates
        bound += self._total_sq
        # The last frame's limit is a good guess at this one's: it says which rows to measure first.
        # Whatever the guess, what counts is that no row outside has a bound up to the limit found.
        level = self._guess - query_sq
        rows = (bound <= level).nonzero()[0]
        if not self.k <= len(rows) <= MOST_ROWS:
            rows, level = self._lowest(bound)
        distance_sq = self._measure(rows, query)
        order = distance_sq.argsort(kind="stable")
        limit = float(distance_sq[order[self.k - 1]])
        # The length outside is a small difference of large numbers. How far it may be off, and with
        # it the bound of a row within the limit, whose own is at most that much longer.
        off = BOUND_MARGIN * query_sq / max(outside, math.sqrt(BOUND_MARGIN * query_sq), 1e-30)
        limit += BOUND_MARGIN * (limit + 2 * query_sq) + 2 * off * (outside + math.sqrt(limit))
        if limit - query_sq >= level:
            rows, distance_sq = self._widen(limit - query_sq, bound, query, rows, distance_sq)
            order = np.lexsort((rows, distance_sq))
        self._guess = GUESS_FACTOR * limit
        # Rows come in their own order, so that of equal distances the first row's counts, whichever
        # way it was found.
        nearest = order[: self.k]
        return rows[nearest], np.sqrt(distance_sq[nearest], dtype=np.float64)

    def _lowest(self, bound: np.ndarray) -> tuple[np.ndarray, float]:
        """Rows of the lowest bounds, and the bound below which no row is missing."""
        count = min(self.k + SPARE_ROWS, len(bound))
        rows = np.argpartition(bound, count - 1)[:count]
        level = math.inf if count == len(bound) else float(bound[rows[-1]])
        rows.sort()
        return rows, level

    def _widen(
        self,
        limit: float,
        bound: np.ndarray,
        query: np.ndarray,
        rows: np.ndarray,
        distance_sq: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The rows measured already and every other whose bound is at most `limit`."""
        open_rows = bound <= limit
        open_rows[rows] = False
        more = open_rows.nonzero()[0]
        if len(more) > MOST_ROWS:
            # The bounds do not tell these apart; a scan by |r|^2 - 2rq reads each row once, and
            # leaves those that its rounding cannot tell apart to be measured.
            near = self._total_sq - 2.0 * (self._rows @ query)
            least = np.partition(near, self.k - 1)[self.k - 1]
            rounding = BOUND_MARGIN * (abs(least) + 3 * (query @ query))
            rows = (near <= least + rounding).nonzero()[0]
            return rows, self._measure(rows, query)
        rows = np.concatenate([rows, more])
        return rows, np.concatenate([distance_sq, self._measure(more, query)])

    def _centred(self, embeddings: np.ndarray) -> np.ndarray:
        """Scaled and centred embeddings, float32, of the shape of `embeddings`."""
        if self._unit_length:
            length = np.linalg.norm(embeddings.astype(np.float64), axis=-1, keepdims=True)
            embeddings = embeddings / np.where(length > 0, length, 1.0)
            return (embeddings - self._centre).astype(np.float32)
        if self._factor is None:
            return embeddings - self._centre
        return (embeddings - self._low) * self._factor - self._centre

    def _measure(self, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
        """
        Squared distances, float32, shape (len(rows),).

        Differences first, then squares: |a|^2 - 2ab + |b|^2 would lose the small distances between
        near-duplicates to cancellation.
        """
        difference = np.take(self._rows, rows, axis=0)
        difference -= query
        return np.einsum("ij,ij->i", difference, difference)


def build_scorer(
    kind: str, k: int, feature_scaling: str, arrays: Mapping[str, np.ndarray]
) -> NeighbourScorer:
    """A scorer from a reference's arrays: `embeddings` and what the fit stored for its kind."""
    scaling = FeatureScaling(feature_scaling, arrays.get("scaling_low"), arrays.get("scaling_span"))
    return NeighbourScorer(
        kind,
        k,
        arrays["embeddings"],
        scaling,
        arrays["axes"],
        arrays.get("k_distance"),
        arrays.get("density"),
    )


def principal_axes(scaled: np.ndarray, most: int) -> np.ndarray:
    """
    Leading principal axes of scaled embeddings.

    Parameters
    ----------
    scaled : ndarray, shape (n, d)
    most : int
        Number of axes wanted.

    Returns
    -------
    axes : ndarray of float32, shape (min(most, n, d), d)
        Orthonormal rows.
    """
    centred = scaled - scaled.mean(axis=0)
    # Through the smaller Gram matrix: seconds become milliseconds for 30 rows of 1280.
    if centred.shape[0] < centred.shape[1]:
        _, vectors = np.linalg.eigh(centred @ centred.T)
        axes = vectors[:, ::-1][:, :most].T @ centred
    else:
        _, vectors = np.linalg.eigh(centred.T @ centred)
        axes = vectors[:, ::-1][:, :most].T
    # Orthonormal to rounding even where eigenvalues are zero: the bound relies on it.
    axes, _ = np.linalg.qr(axes.T)
    return np.ascontiguousarray(axes.T, dtype=np.float32)
