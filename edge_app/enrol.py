"""
Enrol: from frames of good parts to a reference, a threshold and a bundle.

First the frames are gathered: aligned, cut out, and those that cannot be learnt left out with the
reason. Then they are learnt: encoded, held out in turn, scored. The workstation's ``fit`` goes
through the same functions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edge_app.align import Aligner, Alignment, alignment_arrays, alignment_section, part_weight
from edge_app.bundle import LEARNT, REFERENCE, Bundle
from edge_app.encoder import Encoder
from edge_app.errors import BundleError, InputError
from edge_app.foreground import View
from edge_app.held_out import (
    Threshold,
    blinding,
    calibrate,
    far_beyond,
    folds,
    least_like,
    near_duplicate_groups,
    thumbnail,
)
from edge_app.learn_align import LEAST_FRAMES, LearntAlignment, learn_alignment
from edge_app.learn_neighbours import (
    ScorerSettings,
    fit_scorer,
    held_out_scores,
    refuse_too_few,
)
from edge_app.learn_patches import (
    PatchSettings,
    default_settings,
    held_out_distances,
    learn_features,
    learn_patches,
    robust_scores,
)
from edge_app.learnt_pictures import GOOD, LearntPicture, fresh_id, pack, thin, unpack
from edge_app.patches import Component, Features, finest_grid, read_components
from edge_app.preprocess import Preprocessing, prepare, unusable
from edge_app.presence import EmptyView, learn_empty_view, locate, widen
from edge_app.quality import (
    MOST,
    OF_LIGHT,
    Limits,
    Measures,
    Memory,
    as_section,
    check,
    learn_limits,
    light_of,
    measure,
    read_limits,
    sees_nothing,
)
from edge_app.records import Frame

# Each image is scored against at least two others; below the second number the patch scorer's
# spread is a guess, and the threshold with it.
LEAST_IMAGES, FEW_IMAGES = 3, 20
# Where more than the first share of the pictures is unlike the rest, some are taken not to be good,
# and the second share of each place's patches, the strangest, is not stored instead of
# `ALWAYS_TRIMMED`. Up to 5.2 % of clean sets were unlike the rest. Of few pictures, so many must
# look odd at least: two of two dozen good ones happen to.
SUSPICIOUS_SHARE, LEAST_SUSPICIOUS, TRIM = 0.055, 3, 0.1
# Frames that the alignment is learnt from, at most.
ALIGN_PICTURES = 60
# Arrays of the reference: what stays in the limits whichever pictures are taken out, (2, 6)
# float64, lowest and highest, and how many pictures it stands for, () int64.
FIXED, FIXED_IMAGES = "fixed_measures", "fixed_images"
# Of the pictures that a bundle keeps for learning on.
LEARNT_BYTES = 16 * 2**20
# Good pictures whose maps the principal axes are learnt from, at most.
AXES_PICTURES = 60
# Encodings are kept in half the precision beyond this size.
FULL_PRECISION_BYTES = 256 * 2**20
# The share of good pixels that stay unpainted, and how far beyond it full red lies.
UNPAINTED_SHARE, RED_OVER_LOW = 0.995, 3.0


@dataclass
class Gathered:
    """
    What came of the frames offered for learning.

    Attributes
    ----------
    pictures : list of LearntPicture
    empty_view : EmptyView or None
    skipped : list of str
        One sentence for each frame that was not learnt.
    empty_measures : list of Measures
        Of the pictures of the empty station.
    """

    pictures: list[LearntPicture]
    empty_view: EmptyView | None
    skipped: list[str]
    empty_measures: list[Measures] = field(default_factory=list)


def gather(
    frames: Iterable[Frame],
    aligner: Aligner,
    recipe: Preprocessing,
    empty_frames: Sequence[Frame] = (),
    empty_view: EmptyView | None = None,
    known: Sequence[LearntPicture] = (),
    kind: str = "good",
    quality: Limits | None = None,
    progress: Callable[[int], None] = lambda count: None,
    views: Sequence[tuple[np.ndarray, View]] = (),
) -> Gathered:
    """
    Align good frames and cut the part out of each.

    Parameters
    ----------
    frames : iterable of Frame
        Good parts; skipped are frames that cannot be judged either, pictures that were learnt
        already, and, once an empty view is known, empty ones and those with a part cut by the edge.
    aligner : Aligner
    recipe : Preprocessing
        The encoder's size and the region of interest, in which the empty view is compared.
    empty_frames : sequence of Frame
        The station without a part; teaches a new empty view.
    empty_view : EmptyView, optional
        An empty view known already; its place is widened to where the new parts lie.
    known : sequence of LearntPicture
        Learnt already; they are not learnt again.
    kind : {'good', 'false alarm'}
    quality : Limits, optional
        Known already; frames that the device would refuse by them are not learnt.
    progress : callable
        Called with the number of frames seen so far.
    views : sequence of (ndarray, View)
        `LearntAlignment.views` of this alignment; what was seen then is not looked at again.

    Raises
    ------
    InputError
        If no frame can be learnt from, or the empty view does not differ from the good frames.
    """
    pictures: list[LearntPicture] = []
    whole_rgb: list[np.ndarray] = []
    centres: list[tuple[float, float]] = []
    skipped: list[str] = []
    # A picture learnt twice would say that nothing is as normal as it: its neighbours at distance
    # zero make every density, and the threshold with them, meaningless.
    seen_already = {picture.pixels_rgb.tobytes() for picture in known}
    taken = {picture.image_id for picture in known}
    # By identity: the frames are in `views`, so that no other has the place of one in memory.
    view_of = {id(frame_bgr): view for frame_bgr, view in views}
    empty_bgr = [frame.frame_bgr for frame in empty_frames if _unlearnable(frame, recipe) is None]
    empty_measures = [measure(picture, recipe.region) for picture in empty_bgr]
    empty_rgb = [prepare(picture, recipe) for picture in empty_bgr]
    if empty_frames and not empty_rgb:
        raise InputError("none of the pictures of the empty station can be used")
    if empty_rgb:
        # A first view from the empty pictures alone tells which frames hold a whole part.
        empty_view = learn_empty_view(empty_rgb, [])
    for count, frame in enumerate(frames, 1):
        progress(count)
        name = f"{Path(frame.source).name}#{frame.index}"
        problem = _unlearnable(frame, recipe) or _unfit(frame.frame_bgr, quality, recipe.region)
        if problem is not None:
            skipped.append(f"{name}: {problem}")
            continue
        location = None
        if empty_view is not None:
            view_rgb = prepare(frame.frame_bgr, recipe)
            location = locate(view_rgb, empty_view)
            if location.cut or not location.present:
                what = "the part is cut by the edge" if location.present else "no part in view"
                skipped.append(f"{name}: {what}")
                continue
        aligned = aligner.align(frame.frame_bgr, view_of.get(id(frame.frame_bgr)))
        if aligned.empty or aligned.problem is not None or aligned.pixels_rgb is None:
            skipped.append(f"{name}: {aligned.problem or 'no part in view'}")
            continue
        content = aligned.pixels_rgb.tobytes()
        if content in seen_already:
            skipped.append(f"{name}: the same picture has been learnt already")
            continue
        seen_already.add(content)
        image_id, measured = fresh_id(name, taken), measure(frame.frame_bgr, recipe.region)
        pictures.append(LearntPicture(image_id, aligned.pixels_rgb, kind, measured))
        taken.add(image_id)
        if location is not None:
            centres.append(location.centre)
            whole_rgb.append(view_rgb)
    if not pictures:
        first = f" (first: {skipped[0]})" if skipped else ""
        raise InputError(f"no good frame to learn from among {len(skipped)} offered{first}")
    if empty_rgb:
        empty_view = learn_empty_view(empty_rgb, whole_rgb)
    elif empty_view is not None:
        empty_view = widen(empty_view, centres)
    return Gathered(pictures, empty_view, skipped, empty_measures)


def _unlearnable(frame: Frame, recipe: Preprocessing) -> str | None:
    if frame.frame_bgr is None:
        return frame.problem or "no picture"
    return unusable(frame.frame_bgr, recipe)


def _unfit(
    frame_bgr: np.ndarray,
    quality: Limits | None,
    region: tuple[float, float, float, float] | None,
) -> str | None:
    """Why a picture is no picture of a good part, whatever it shows."""
    if sees_nothing(frame_bgr, region):
        return "quality: black or white all over"
    return check(frame_bgr, quality, Memory(), False, 2, region=region)[0]


class Encodings:
    """
    The encoder's answers for many pictures, and the features made of them.

    Parameters
    ----------
    pictures_rgb : sequence of ndarray of uint8, shape (*size, 3)
    encoder : Encoder
    progress : callable
        Called after each picture.

    Attributes
    ----------
    embeddings : ndarray of float32, shape (n, d)
    maps : list of ndarray of float16 or float32, shape (n, h, w, c)
        Map i of all pictures; the first one, the decoder's, is left empty where there are others:
        its many channels tell no more apart.
    encode_s : float
        Seconds spent in the encoder.
    """

    def __init__(
        self,
        pictures_rgb: Sequence[np.ndarray],
        encoder: Encoder,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        count = len(pictures_rgb)
        self._pictures_rgb = pictures_rgb
        # Where a part is learnt twice, with trimming, the first axes are the same.
        self._learnt_features: dict[tuple[Component, bytes], Features] = {}
        self.encode_s = 0.0
        self.embeddings = np.empty((count, encoder.embedding_dim), np.float32)
        wanted = usable_maps(encoder.map_shapes)
        numbers = count * sum(math.prod(encoder.map_shapes[index]) for index in wanted)
        dtype = np.float32 if 4 * numbers <= FULL_PRECISION_BYTES else np.float16
        self.maps = [
            np.empty((count, *shape) if index in wanted else (0, *shape), dtype)
            for index, shape in enumerate(encoder.map_shapes)
        ]
        for row, pixels_rgb in enumerate(pictures_rgb):
            started = time.perf_counter()
            encoding = encoder.encode(pixels_rgb)
            self.encode_s += time.perf_counter() - started
            self.embeddings[row] = encoding.embedding
            for index in wanted:
                self.maps[index][row] = encoding.maps[index]
            progress()

    def __len__(self) -> int:
        return len(self.embeddings)

    @cached_property
    def groups(self) -> np.ndarray:
        """Near-duplicates among the pictures, int, shape (n,)."""
        return near_duplicate_groups(np.stack([thumbnail(p) for p in self._pictures_rgb]))

    def strangeness(self, rows: np.ndarray) -> np.ndarray:
        """
        How unlike the others each of some pictures is as a whole, float64, shape (len(rows),).

        Median distance to the others of the maps' mean vectors, each channel in units of its
        median absolute deviation: no minority of pictures moves it.
        """
        means = np.concatenate(
            [
                np.stack([maps[row].mean(axis=(0, 1), dtype=np.float32) for row in rows])
                for maps in self.maps
                if len(maps)
            ],
            axis=1,
        )
        away = means - np.median(means, axis=0)
        scale = np.median(np.abs(away), axis=0)
        # A channel that hardly ever answers is not to be blown up.
        away /= np.maximum(scale, max(float(scale.mean()), 1e-6))
        squares = (away**2).sum(axis=1, dtype=np.float64)
        distance_sq = squares[:, None] + squares - 2.0 * (away @ away.T)
        return np.sqrt(np.maximum(np.median(distance_sq, axis=1), 0))

    def learn_features(self, component: Component, rows: np.ndarray | None = None) -> Features:
        """Principal axes for a component from (some of) these pictures."""
        rows = np.arange(len(self)) if rows is None else rows
        some = rows[np.linspace(0, len(rows) - 1, min(len(rows), AXES_PICTURES)).astype(int)]
        known = component, some.tobytes()
        if known not in self._learnt_features:
            maps = self.maps[component.map]
            patches = [maps[row].astype(np.float32, copy=False) for row in some]
            self._learnt_features[known] = learn_features(component, patches)
        return self._learnt_features[known]

    def features(
        self, component: Component, projection: Features, rows: np.ndarray | None = None
    ) -> np.ndarray:
        """Features of all pictures, or some, float32, shape (n, h, w, d)."""
        maps = self.maps[component.map]
        rows = np.arange(len(self)) if rows is None else rows
        height, width = component.grid(maps.shape[1:])
        features = np.empty((len(rows), height, width, projection.axes.shape[1]), np.float32)
        for place, row in enumerate(rows):
            features[place] = projection.of(maps[row].astype(np.float32, copy=False))
        return features


def choose_alignment(
    frames: Sequence[Frame],
    region: tuple[float, float, float, float] | None,
    recipe: str | None,
    empty_frames: Sequence[Frame] = (),
) -> LearntAlignment:
    """
    Learn how the part is brought to one pose.

    A recipe that finds a part in a picture of the empty station is no use: `none` is taken instead.

    Parameters
    ----------
    frames : sequence of Frame
        Good parts.
    region : tuple of float or None
    recipe : {'none', 'centre', 'pose'} or None
        None for the one that makes the good pictures agree best.
    empty_frames : sequence of Frame

    Raises
    ------
    InputError
        If no frame can be used, or the recipe asked for is impossible.
    """
    whole = Preprocessing((1, 1), region)
    usable = [frame.frame_bgr for frame in frames if _unlearnable(frame, whole) is None]
    # A picture that is there twice must not count twice; one that equals another in every eighth
    # pixel is there twice.
    pictures = list({(p.shape, p[::8, ::8].tobytes()): p for p in usable}.values())
    if not pictures:
        reasons = [_unlearnable(frame, whole) for frame in frames]
        first = f" (first: {frames[0].source}: {reasons[0]})" if reasons else ""
        raise InputError(f"no good frame to learn from among {len(frames)} offered{first}")
    learnt = learn_alignment(pictures, region, recipe)
    if learnt.alignment.recipe != "none" and empty_frames:
        aligner = Aligner(learnt.alignment, (64, 64), region)
        views = [f.frame_bgr for f in empty_frames if _unlearnable(f, whole) is None]
        found = sum(not aligner.align(view).empty for view in views)
        if found and recipe is not None:
            raise InputError(
                f"alignment {recipe} finds a part in {found} of {len(views)} pictures of the empty "
                "station: its background is not plain enough"
            )
        if found:
            learnt = learn_alignment(pictures, region, "none")
            reason = f"a part was found in {found} of {len(views)} pictures of the empty station"
            learnt = replace(learnt, reason=reason)
    return learnt


def quality_section(
    gathered: Gathered, learning: Learning, fixed: Limits | None = None
) -> dict[str, Any] | None:
    """
    The manifest's `quality`: what the frames of good parts measured, by which others are refused.

    What is no picture that could be taken out again goes into `learning.reference`, as the arrays
    `fixed_measures` and `fixed_images`.

    Parameters
    ----------
    gathered : Gathered
    learning : Learning
        Pictures it left out or that look odd set no limits.
    fixed : Limits or None
        Of the bundle that is extended, from `fixed_limits`.
    """
    odd = {*learning.uncounted, *(name for name, _ in learning.least_like)}
    good = [
        picture.measures
        for picture in learning.pictures
        if picture.measures is not None and picture.image_id not in odd
    ]
    fixed = fixed or light_of(gathered.empty_measures)
    if fixed is not None:
        spans = np.array([getattr(fixed, name) for name in MOST], np.float64)
        learning.reference[FIXED] = spans.T
        learning.reference[FIXED_IMAGES] = np.array(fixed.images, np.int64)
    return as_section(learn_limits(good, fixed))


def fixed_limits(bundle: Bundle, kept: Collection[str]) -> Limits | None:
    """
    What a bundle's limits hold beside what its kept pictures measured; None for nothing.

    It is the light of the empty station, and what was measured in pictures that are not kept, or
    in all if the bundle does not say what each measured. `learn_limits` makes of it, and of the
    kept pictures, the bundle's limits again.

    Parameters
    ----------
    bundle : Bundle
    kept : collection of str
        Ids of the pictures that it keeps.

    Raises
    ------
    BundleError
        If the arrays `measures`, `fixed_measures` or `fixed_images` are broken.
    """
    limits = read_limits(bundle.manifest["quality"])
    if bundle.reference is None:
        return None
    measured, fixed = _measures_of(bundle), _read_fixed(bundle)
    if fixed is None and "measures" not in bundle.reference:
        return limits
    if limits is None:
        return fixed
    # Those beyond the limits looked odd and set none.
    lost = [m for name, m in measured.items() if name not in kept and _within(m, limits)]
    return learn_limits(lost, fixed) if lost else fixed


def _within(measured: Measures, limits: Limits) -> bool:
    spans = {name: getattr(limits, name) for name in MOST}
    return all(low <= getattr(measured, name) <= high for name, (low, high) in spans.items())


def known_pictures(bundle: Bundle) -> list[LearntPicture] | None:
    """
    The pictures that a bundle keeps, with what their frames measured; None where it keeps none.

    Raises
    ------
    BundleError
        If they or the array `measures` are broken.
    """
    content = bundle.learnt()
    if content is None:
        return None
    pictures, measured = unpack(content, str(bundle.path / LEARNT)), _measures_of(bundle)
    return [replace(picture, measures=measured.get(picture.image_id)) for picture in pictures]


def _measures_of(bundle: Bundle) -> dict[str, Measures]:
    """What is known of what each picture's frame measured, by the picture's id."""
    ids = bundle.reference["image_ids"].tolist()
    rows = _read_measures(bundle, "measures", len(ids))
    if rows is None:
        return {}
    return {
        name: Measures(*row.tolist())
        for name, row in zip(ids, rows, strict=True)
        if not np.isnan(row).any()
    }


def _read_fixed(bundle: Bundle) -> Limits | None:
    """The arrays that `quality_section` writes; None where they are not there."""
    rows, images = _read_measures(bundle, FIXED, 2), bundle.reference.get(FIXED_IMAGES)
    if rows is None:
        return None
    where = bundle.path / REFERENCE
    if images is None or images.dtype != np.int64 or images.shape != () or images < 0:
        got = "missing" if images is None else f"{str(images)[:60]} ({images.dtype})"
        raise BundleError(f"{where}: array {FIXED_IMAGES} is {got}, wanted one int64 from 0")
    spans = dict(zip(MOST, map(tuple, rows.T.tolist()), strict=True))
    for name, (low, high) in spans.items():
        # Of the empty station, which is no picture of a part, only the light is known.
        if not low <= high and (images or name in OF_LIGHT):
            raise BundleError(
                f"{where}: array {FIXED} has {name} {low:g} to {high:g}, wanted lowest and highest"
            )
    return Limits(int(images), **spans)


def _read_measures(bundle: Bundle, name: str, count: int) -> np.ndarray | None:
    """An array of so many rows of measures, NaN where one is not known; None if it is not there."""
    rows = bundle.reference.get(name)
    if rows is None:
        return None
    where, wanted = f"{bundle.path / REFERENCE}: array {name}", (count, len(MOST))
    if rows.dtype != np.float64 or rows.shape != wanted:
        raise BundleError(
            f"{where} is {rows.dtype} of shape {rows.shape}, wanted float64 of shape {wanted}"
        )
    for column, (measure_name, most) in zip(rows.T, MOST.items(), strict=True):
        known = column[~np.isnan(column)]
        wrong = known[~((known >= 0) & (known <= most) & np.isfinite(known))]
        if len(wrong):
            raise BundleError(
                f"{where} has {measure_name} {wrong[0]:g}, wanted 0 "
                + (f"to {most:g}" if math.isfinite(most) else "or more")
            )
    return rows


def _measure_array(pictures: Sequence[LearntPicture]) -> dict[str, np.ndarray]:
    """The reference's array `measures`, a row to a picture, NaN where that is not known."""
    if all(picture.measures is None for picture in pictures):
        return {}
    unknown = (math.nan,) * len(fields(Measures))
    rows = [astuple(p.measures) if p.measures is not None else unknown for p in pictures]
    return {"measures": np.array(rows, np.float64)}


def learnt_manifest(
    base: Mapping[str, Any],
    learning: Learning,
    region: tuple[float, float, float, float] | None,
    quality: Mapping[str, Any] | None,
    extends: bool,
) -> dict[str, Any]:
    """
    The manifest of a bundle with what was learnt in it; part, maker and parent are still `base`'s.

    Parameters
    ----------
    base : mapping
        Manifest of the bundle whose encoder was used.
    learning : Learning
    region : tuple of float or None
    quality : mapping or None
        From `quality_section`.
    extends : bool
        Whether the part is the one that `base` knows. A decoder redraws the part it was trained on
        and no other.
    """
    return {
        **base,
        **learning.sections,
        "quality": quality,
        "input": {**base["input"], "region": list(region) if region else None},
        "provenance": {**base["provenance"], "good_images": len(learning.pictures)},
        "decoder": base["decoder"] if extends else None,
    }


def kept_pictures(
    pictures: Sequence[LearntPicture], most: int | None = None
) -> tuple[bytes | None, int]:
    """The pictures that a bundle keeps, packed, and how many are too many to be kept."""
    kept = thin(pictures, LEARNT_BYTES)
    if most is not None and len(kept) > most:
        kept = [kept[row] for row in np.linspace(0, len(kept) - 1, most).astype(int)]
    return pack(kept, LEARNT_BYTES) if kept else None, len(pictures) - len(kept)


def refuse_too_few_images(count: int) -> None:
    """Raise `InputError` if so few good images cannot be held out in turn."""
    if count < LEAST_IMAGES:
        raise InputError(
            f"{count} good images are too few to hold any of them out, "
            f"wanted at least {LEAST_IMAGES}"
        )


def settings_of(
    section: Mapping[str, Any], most_bytes: int
) -> tuple[ScorerSettings, PatchSettings | None]:
    """The settings behind a manifest's `scorer` section, for references of so many bytes."""
    settings = ScorerSettings(section["kind"], section["k"], section["feature_scaling"])
    if settings.kind != "patches":
        return settings, None
    components = read_components(section)
    smoothing = section["smoothing"]
    return settings, PatchSettings(components, section["image_score"], smoothing, most_bytes)


def usable_maps(map_shapes: Sequence[tuple[int, ...]]) -> list[int]:
    """Which of an encoder's maps patches are compared on: all but the first, if there are more."""
    return list(range(1, len(map_shapes))) or [0]


@dataclass(frozen=True)
class Learning:
    """
    What good pictures taught.

    Attributes
    ----------
    reference : dict of str to ndarray
        For ``reference.npz``.
    sections : dict
        The manifest's `scorer`, `threshold`, `presence` and `alignment`.
    pictures : list of LearntPicture
        Those that were learnt.
    least_like : list of (str, float)
        Id and held-out score of the pictures least like the rest, the strangest first.
    dropped : list of (str, float)
        Those of them that were left out.
    uncounted : list of str
        Ids of those that were learnt but have no say in the threshold, being too unlike the rest.
    groups : int
        Groups of near-duplicates among the pictures; as many as pictures where there are none.
    encode_s : float
        Seconds spent in the encoder.
    """

    reference: dict[str, np.ndarray]
    sections: dict[str, Any]
    pictures: list[LearntPicture]
    least_like: list[tuple[str, float]]
    dropped: list[tuple[str, float]]
    uncounted: list[str]
    groups: int
    encode_s: float


def learn(
    pictures: Sequence[LearntPicture],
    encoder: Encoder,
    alignment: Alignment,
    settings: ScorerSettings,
    wanted_rate: float,
    empty_view: EmptyView | None = None,
    patch_settings: PatchSettings | None = None,
    encodings: Encodings | None = None,
    drop_outliers: bool = False,
) -> Learning:
    """
    Learn from gathered pictures.

    Parameters
    ----------
    pictures : sequence of LearntPicture
    encoder : Encoder
    alignment : Alignment
    settings : ScorerSettings
        Of kind 'patches', 'lof' or 'knn'.
    wanted_rate : float
        False-reject rate, above 0, below 0.5.
    empty_view : EmptyView, optional
    patch_settings : PatchSettings, optional
        For kind 'patches'; by default what suits the encoder's maps.
    encodings : Encodings, optional
        Of these pictures, where they have been encoded already.
    drop_outliers : bool
        Whether the pictures least like the rest are left out and the rest learnt again.

    Raises
    ------
    InputError
        If there are too few pictures.
    """
    count = len(pictures)
    refuse_too_few_images(count)
    if settings.kind != "patches":
        refuse_too_few(count, settings)
    if encodings is None:
        encodings = Encodings([picture.pixels_rgb for picture in pictures], encoder)
    finite = np.isfinite(encodings.embeddings).all(axis=1)
    if not finite.all():
        name = pictures[int(np.argmin(finite))].image_id
        raise InputError(f"{name}: the encoder's answer for it is not finite")
    kept = np.arange(count)
    dropped: list[tuple[str, float]] = []
    groups = encodings.groups
    # What a person has said is good, though it was called NG, is good.
    believed = np.array([picture.kind != GOOD for picture in pictures])
    patch_settings = patch_settings or default_settings(
        encoder.map_shapes, usable_maps(encoder.map_shapes)
    )
    before: np.ndarray | None = None
    least = LEAST_IMAGES if settings.kind == "patches" else max(LEAST_IMAGES, settings.k + 1)
    while True:
        reference, scorer, scores, apart = _learn_kind(
            encodings,
            kept,
            groups[kept],
            encoder,
            alignment,
            settings,
            patch_settings,
            believed[kept],
        )
        odd = least_like(scores, groups[kept])
        # What was kept out of the standardisation and scores above all that was not is odd too: of
        # a dozen scores the quartiles are far apart.
        ordinary = np.setdiff1d(np.arange(len(kept)), [*odd, *apart])
        above = apart[scores[apart] > scores[ordinary].max(initial=-np.inf)]
        odd = odd if np.isin(above, odd).all() else np.union1d(odd, above)
        odd = odd[np.argsort(-scores[odd], kind="stable")]
        many = max(SUSPICIOUS_SHARE * len(kept), LEAST_SUSPICIOUS - 1)
        suspicious = len(odd) > many and len(kept) >= FEW_IMAGES
        if settings.kind == "patches" and suspicious and patch_settings.trim < TRIM:
            patch_settings, before = replace(patch_settings, trim=TRIM), odd
            continue
        # Trimming makes every picture look a little odd, so those that stood out before count.
        odd, before = (odd, None) if before is None else (before, None)
        odd = odd[~believed[kept[odd]]]
        if not drop_outliers or not len(odd) or len(kept) - len(odd) < least:
            break
        dropped += [(pictures[kept[row]].image_id, float(scores[row])) for row in odd]
        kept = np.delete(kept, odd)
        # What stands out once the strangest are gone stood in their shadow: once more, no further,
        # or ordinary pictures would be peeled off round by round.
        drop_outliers = len(dropped) == len(odd)
    chosen = [pictures[row] for row in kept]
    # A picture that is not good must not set the limit that it should have been found by. Where so
    # many look odd that some are surely not good, none of them counts.
    many_odd = patch_settings.trim >= TRIM
    uncounted = odd if many_odd else blinding(scores, groups[kept], odd, wanted_rate)
    counted = _without(np.arange(len(kept)), uncounted)
    odd_left = np.flatnonzero(np.isin(counted, odd))
    threshold = calibrate(scores[counted], wanted_rate, groups[kept][counted], odd_left)
    if not math.isfinite(threshold.value):
        raise InputError("the good images' scores are not finite, so no threshold can be set")
    reference |= {
        "image_ids": np.array([picture.image_id for picture in chosen]),
        "scores": scores,
        **_measure_array(chosen),
        **alignment_arrays(alignment),
    }
    sections: dict[str, Any] = {
        "scorer": scorer,
        "threshold": asdict(threshold),
        "alignment": alignment_section(alignment),
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
    return Learning(
        reference,
        sections,
        chosen,
        [(chosen[row].image_id, float(scores[row])) for row in odd],
        dropped,
        [chosen[row].image_id for row in np.setdiff1d(np.arange(len(kept)), counted)],
        len(np.unique(groups[kept])) if folds(groups[kept])[1] else len(kept),
        encodings.encode_s,
    )


def _learn_kind(
    encodings: Encodings,
    rows: np.ndarray,
    groups: np.ndarray,
    encoder: Encoder,
    alignment: Alignment,
    settings: ScorerSettings,
    patch_settings: PatchSettings,
    believed: np.ndarray,
) -> tuple[dict[str, np.ndarray], dict[str, Any], np.ndarray, np.ndarray]:
    """Arrays, the manifest's `scorer`, held-out scores, and which rows had no say in the scale."""
    held_out, _ = folds(groups)
    if settings.kind != "patches":
        embeddings = encodings.embeddings[rows]
        arrays = {"embeddings": embeddings, **fit_scorer(embeddings, settings)}
        scores = held_out_scores(embeddings, settings, held_out)
        return arrays, asdict(settings), scores, np.empty(0, int)
    components, map_shapes = patch_settings.components, encoder.map_shapes
    weight = part_weight(alignment, finest_grid(components, map_shapes))
    # A picture that no good one would be must not have a say in what is strange. Those that are so
    # as a whole are kept out of axes and standardisation from the start: the axes would be their
    # own. If others are so in some place, both are taken once more without them.
    ordinary = _without(np.arange(len(rows)), _strange(encodings.strangeness(rows), groups))
    for last in (False, True):
        projections = {c: encodings.learn_features(c, rows[ordinary]) for c in components}
        features = {c: encodings.features(c, projections[c], rows) for c in components}
        distances = held_out_distances(patch_settings, features, held_out, map_shapes, believed)
        odd = _strange(robust_scores(patch_settings, distances, weight), groups)
        if last or not np.isin(odd, ordinary).any():
            break
        ordinary = _without(ordinary, odd)
    arrays, section, scores, maps = learn_patches(
        patch_settings,
        features,
        projections,
        weight,
        distances,
        map_shapes,
        ordinary,
        believed,
    )
    low = max(float(np.quantile(maps[ordinary], UNPAINTED_SHARE)), 1e-6)
    scale = {"low": low, "high": RED_OVER_LOW * low}
    apart = np.setdiff1d(np.arange(len(rows)), ordinary)
    return arrays, {**asdict(settings), **section, "colour_scale": scale}, scores, apart


def _strange(scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    odd = least_like(scores, groups)
    # Of few pictures each weighs too much to wait for a tail to tell.
    return odd if len(scores) < FEW_IMAGES else far_beyond(scores, groups, odd)


def _without(rows: np.ndarray, odd: np.ndarray) -> np.ndarray:
    """`rows` but those in `odd`; all of them where too few would be left."""
    rest = np.setdiff1d(rows, odd)
    return rest if len(rest) >= LEAST_IMAGES else rows


def threshold_of(section: Mapping[str, Any]) -> Threshold:
    """The threshold that a manifest holds."""
    fields = Threshold.__dataclass_fields__
    return Threshold(**{name: value for name, value in section.items() if name in fields})


def promise(learning: Learning) -> list[str]:
    """What cannot be promised with so few pictures, one sentence each."""
    count = len(learning.pictures)
    sentences = []
    if count < LEAST_FRAMES and learning.sections["alignment"]["recipe"] == "none":
        sentences.append(
            f"with {count} good images no alignment is learnt: if the part may lie differently, "
            f"learn anew from {LEAST_FRAMES} or more"
        )
    if learning.groups < FEW_IMAGES:
        what = f"{count} good images" if learning.groups == count else f"{learning.groups} views"
        sentences.append(
            f"{what} say little about how good parts vary: expect false alarms on parts that "
            "differ from these, and missed defects where the threshold had to be set far above "
            f"them; add more with enroll --add (from about {FEW_IMAGES} different parts on, the "
            "held-out scores are steady)"
        )
    scorer = learning.sections["scorer"]
    kinds = {component["kind"] for component in scorer.get("components", ())}
    if scorer.get("trim", 0) >= TRIM and "place" in kinds:
        sentences.append(
            "so many pictures are unlike the rest that some may not be good: the strangest "
            f"{scorer['trim']:.0%} of the good patches of each place were not "
            "stored; look at the pictures named, take the bad ones away and learn again"
        )
    if learning.uncounted:
        sentences.append(
            f"the threshold does not count {', '.join(learning.uncounted)}: far from all the rest; "
            "look at them, and if one is good, say so with enroll --add --false-alarms"
        )
    if learning.groups < count:
        sentences.append(
            f"{count} good images are {learning.groups} different views: near-duplicates were "
            "held out together"
        )
    return sentences
