"""
Enrol: from embeddings of good parts to a reference, a threshold and a bundle.

The only module of the device that imports scikit-learn, and only inside the fit. The workstation's
``fit`` goes through the same functions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_app.encoder import Encoder
from edge_app.errors import InputError
from edge_app.preprocess import Preprocessing, prepare, unusable
from edge_app.presence import EmptyView, learn_empty_view, locate, widen
from edge_app.records import Frame
from edge_app.scorer import DENSITY_EPSILON, FeatureScaling, build_scorer, principal_axes

# Axes kept for the scorer's bounds. In the frame loop, caches cold from the encoder, 32 to 128 cost
# within a tenth of each other; fewer leave more rows to measure, more leave more to read.
SCORER_AXES = 96
# Up to so many images each is held out alone; beyond, in this many groups.
LEAVE_ONE_OUT_UP_TO = 20
FOLDS = 10
# Each image is scored against at least two others.
LEAST_IMAGES = 3


@dataclass(frozen=True)
class ScorerSettings:
    """Which scorer to fit: `kind` 'lof' or 'knn', `k` neighbours, `feature_scaling`."""

    kind: str = "lof"
    k: int = 5
    feature_scaling: str = "minmax"


@dataclass(frozen=True)
class Threshold:
    """
    A threshold and what stands behind it.

    Attributes
    ----------
    value : float
    method : str
        How it was found, in words.
    wanted_rate : float
        False-reject rate asked for, 0 to 1.
    supported_rate : float
        Smallest rate that so many images can support without extrapolation, ``1 / (images + 1)``.
    images : int
        Number of good images whose held-out scores stand behind it.
    """

    value: float
    method: str
    wanted_rate: float
    supported_rate: float
    images: int

    def sentence(self) -> str:
        """One sentence for a person."""
        text = f"threshold {self.value:.4g} from the held-out scores of {self.images} good images"
        if self.wanted_rate >= self.supported_rate:
            return f"{text}, for a false-reject rate of {self.wanted_rate:.2%}"
        needed = math.ceil(1 / self.wanted_rate) - 1
        return (
            f"{text}; they support a false-reject rate of {self.supported_rate:.2%}, the wanted "
            f"{self.wanted_rate:.2%} is extrapolated and needs {needed} images to be supported"
        )


def refuse_too_few(count: int, settings: ScorerSettings) -> None:
    """Raise `InputError` if so many good images are too few to fit the scorer."""
    if count < settings.k + 1:
        raise InputError(
            f"{count} good images are too few for {settings.k} neighbours, "
            f"wanted at least {settings.k + 1}"
        )


def fit_scorer(embeddings: np.ndarray, settings: ScorerSettings) -> dict[str, np.ndarray]:
    """
    Fit what a `NeighbourScorer` needs.

    Parameters
    ----------
    embeddings : ndarray of float32, shape (n, d)
    settings : ScorerSettings

    Returns
    -------
    dict of str to ndarray
        `axes`, and as the settings ask `scaling_low`, `scaling_span`, `k_distance`, `density`.

    Raises
    ------
    InputError
        If there are fewer than k + 1 embeddings.
    """
    refuse_too_few(len(embeddings), settings)
    scaling = FeatureScaling.learn(settings.feature_scaling, embeddings)
    scaled = scaling.apply(embeddings)
    arrays = {"axes": principal_axes(scaled, SCORER_AXES)}
    if settings.feature_scaling == "minmax":
        arrays |= {"scaling_low": scaling.low, "scaling_span": scaling.span}
    if settings.kind == "lof":
        from sklearn.neighbors import NearestNeighbors

        # The same brute-force search and order of ties as LocalOutlierFactor's own.
        search = NearestNeighbors(n_neighbors=settings.k).fit(scaled)
        distances, neighbours = search.kneighbors()
        k_distance = distances[:, -1]
        reach = np.maximum(distances, k_distance[neighbours])
        arrays |= {
            "k_distance": k_distance,
            "density": 1.0 / (reach.mean(axis=1) + DENSITY_EPSILON),
        }
    return arrays


def folds(count: int) -> list[np.ndarray]:
    """
    Which images are held out together.

    In the order of the images, in one piece each: frames of a video and pictures of one batch,
    which stand next to each other, leave together, so that no image is judged by its own twin.
    """
    groups = count if count <= LEAVE_ONE_OUT_UP_TO else FOLDS
    return np.array_split(np.arange(count), groups)


def held_out_scores(embeddings: np.ndarray, settings: ScorerSettings) -> np.ndarray:
    """
    The score of every good image against the others, itself and its fold left out.

    Returns
    -------
    scores : ndarray of float64, shape (n,)
        Higher is more anomalous.
    """
    scores = np.empty(len(embeddings))
    for held_out in folds(len(embeddings)):
        rest = np.delete(embeddings, held_out, axis=0)
        # With only k + 1 images, those left are one too few for k neighbours among themselves.
        k = min(settings.k, len(rest) - 1)
        fold = ScorerSettings(settings.kind, k, settings.feature_scaling)
        arrays = {"embeddings": rest, **fit_scorer(rest, fold)}
        scorer = build_scorer(fold.kind, k, fold.feature_scaling, arrays)
        scores[held_out] = [scorer.score(embeddings[row]) for row in held_out]
    return scores


def calibrate(scores: np.ndarray, wanted_rate: float) -> Threshold:
    """
    Threshold from held-out scores of good images.

    With enough images it is the split-conformal quantile: the ``ceil((n + 1) (1 - rate))``-th
    smallest score (Vovk, Gammerman and Shafer, 2005), which a further good image exceeds with
    probability at most `wanted_rate`. With fewer than ``1 / rate - 1`` no score is that rare.
    Then the largest score is taken plus a margin: the upper half of the scores is continued as an
    exponential tail, so the distance from the median to the largest score, reached at rate 1 / (n
    + 1), grows by ``ln(1 / (2 rate)) / ln((n + 1) / 2)``.

    Parameters
    ----------
    scores : ndarray of float64, shape (n,), n at least 2
    wanted_rate : float
        False-reject rate, above 0, below 0.5.
    """
    ordered = np.sort(scores)
    count = len(ordered)
    supported = 1 / (count + 1)
    rank = math.ceil((count + 1) * (1 - wanted_rate))
    if rank <= count:
        value, method = float(ordered[rank - 1]), "conformal quantile of held-out scores"
    else:
        median = float(np.median(ordered))
        growth = math.log(1 / (2 * wanted_rate)) / math.log((count + 1) / 2)
        value = median + (float(ordered[-1]) - median) * max(growth, 1.0)
        method = f"largest held-out score, its distance to the median times {max(growth, 1.0):.2f}"
    return Threshold(value, method, wanted_rate, supported, count)


@dataclass(frozen=True)
class Learnt:
    """Embeddings of good images; `image_ids` names the image of each row."""

    embeddings: np.ndarray
    image_ids: np.ndarray


def learn_reference(
    learnt: Learnt, settings: ScorerSettings, wanted_rate: float, empty_view: EmptyView | None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """
    Everything that good embeddings teach.

    Returns
    -------
    reference : dict of str to ndarray
        For ``reference.npz``.
    sections : dict
        The manifest's `scorer`, `threshold` and `presence`.

    Raises
    ------
    InputError
        If there are too few images for the scorer.
    """
    if len(learnt.embeddings) < LEAST_IMAGES:
        raise InputError(
            f"{len(learnt.embeddings)} good images are too few to hold any of them out, "
            f"wanted at least {LEAST_IMAGES}"
        )
    fitted = fit_scorer(learnt.embeddings, settings)
    scores = held_out_scores(learnt.embeddings, settings)
    reference = {
        "embeddings": learnt.embeddings,
        "image_ids": learnt.image_ids,
        "scores": scores,
        **fitted,
    }
    threshold = calibrate(scores, wanted_rate)
    if not math.isfinite(threshold.value):
        raise InputError("the good images' scores are not finite, so no threshold can be set")
    sections: dict[str, Any] = {
        "scorer": asdict(settings),
        "threshold": asdict(threshold),
        "presence": None,
    }
    if empty_view is not None:
        reference["empty_view"] = empty_view.picture
        sections["presence"] = {
            "kind": "empty view",
            "difference": empty_view.difference,
            "least_share": empty_view.least_share,
            "place": list(empty_view.place),
        }
    return reference, sections


@dataclass
class Enrolment:
    """
    What came of the frames offered for learning.

    Attributes
    ----------
    learnt : Learnt
    empty_view : EmptyView or None
    skipped : list of str
        One sentence for each frame that was not learnt.
    encode_s : float
        Seconds spent in the encoder.
    """

    learnt: Learnt
    empty_view: EmptyView | None
    skipped: list[str]
    encode_s: float


def enrol(
    frames: Iterable[Frame],
    encoder: Encoder,
    recipe: Preprocessing,
    empty_frames: Sequence[Frame] = (),
    empty_view: EmptyView | None = None,
    known_embeddings: Iterable[np.ndarray] = (),
    progress: Callable[[int], None] = lambda count: None,
) -> Enrolment:
    """
    Encode good frames.

    Parameters
    ----------
    frames : iterable of Frame
        Good parts; skipped are frames that cannot be judged either, pictures that were learnt
        already, and, once an empty view is known, empty ones and those with a part cut by the edge.
    encoder : Encoder
    recipe : Preprocessing
    empty_frames : sequence of Frame
        The station without a part; teaches a new empty view.
    empty_view : EmptyView, optional
        An empty view known already; its place is widened to where the new parts lie.
    known_embeddings : iterable of ndarray of float32, shape (d,)
        Learnt already; their pictures are not learnt again.
    progress : callable
        Called with the number of frames seen so far.

    Raises
    ------
    InputError
        If no frame can be learnt from, or the empty view does not differ from the good frames.
    """
    embeddings: list[np.ndarray] = []
    image_ids: list[str] = []
    whole_rgb: list[np.ndarray] = []
    centres: list[tuple[float, float]] = []
    skipped: list[str] = []
    encode_s = 0.0
    # A picture learnt twice would say that nothing is as normal as it: its neighbours at distance
    # zero make every density, and the threshold with them, meaningless.
    known = {row.tobytes() for row in known_embeddings}
    empty_rgb = [
        prepare(frame.frame_bgr, recipe)
        for frame in empty_frames
        if frame.frame_bgr is not None and unusable(frame.frame_bgr, recipe) is None
    ]
    if empty_frames and not empty_rgb:
        raise InputError("none of the pictures of the empty station can be used")
    if empty_rgb:
        # A first view from the empty pictures alone tells which frames hold a whole part.
        empty_view = learn_empty_view(empty_rgb, [])
    for seen, frame in enumerate(frames, 1):
        progress(seen)
        name = f"{Path(frame.source).name}#{frame.index}"
        problem = _unlearnable(frame, recipe)
        if problem is not None:
            skipped.append(f"{name}: {problem}")
            continue
        pixels_rgb = prepare(frame.frame_bgr, recipe)
        location = None if empty_view is None else locate(pixels_rgb, empty_view)
        if location is not None and (location.cut or not location.present):
            what = "the part is cut by the edge" if location.present else "no part in view"
            skipped.append(f"{name}: {what}")
            continue
        started = time.perf_counter()
        embedding = encoder.encode(pixels_rgb).embedding
        encode_s += time.perf_counter() - started
        if not np.isfinite(embedding).all():
            skipped.append(f"{name}: the embedding is not finite")
            continue
        if embedding.tobytes() in known:
            skipped.append(f"{name}: the same picture has been learnt already")
            continue
        known.add(embedding.tobytes())
        embeddings.append(embedding)
        image_ids.append(name)
        if empty_rgb:
            whole_rgb.append(pixels_rgb)
        if location is not None:
            centres.append(location.centre)
    if not embeddings:
        first = f" (first: {skipped[0]})" if skipped else ""
        raise InputError(f"no good frame to learn from among {len(skipped)} offered{first}")
    if empty_rgb:
        empty_view = learn_empty_view(empty_rgb, whole_rgb)
    elif empty_view is not None:
        empty_view = widen(empty_view, centres)
    learnt = Learnt(np.stack(embeddings), np.array(image_ids))
    return Enrolment(learnt, empty_view, skipped, encode_s)


def _unlearnable(frame: Frame, recipe: Preprocessing) -> str | None:
    if frame.frame_bgr is None:
        return frame.problem or "no picture"
    return unusable(frame.frame_bgr, recipe)
