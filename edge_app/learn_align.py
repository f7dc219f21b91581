"""
Learn the alignment: from good pictures to the recipe, the template and the light.

The good parts vote. Under each recipe the picture of every good part is predicted by the mean of
the others, laid where the recipe says the part lies; the share of the picture that is left
unexplained decides, and a recipe that does more must leave clearly less. The template is the median
of the aligned parts, found in a few rounds from one of them: the first on few pictures at half
size, which settles the recipe, the last on all and at full size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import cv2
import numpy as np

from edge_app.align import RECIPES, Alignment, cut_out, lit, median_level, to_template
from edge_app.errors import InputError
from edge_app.foreground import (
    DARK,
    Piece,
    View,
    Viewer,
    capped,
    edge_share,
    foreground,
    held,
    light_gain,
    otsu,
    pieces,
    scaling,
)
from edge_app.held_out import at_most
from edge_app.pose import PoseSearch, similarity, warp
from edge_app.preprocess import region_box, shrink

# Pictures that the template is learnt from; more change it less than a pixel.
TEMPLATE_FRAMES = 60
# Fewer show no common shape beside their accidents.
LEAST_FRAMES = 5
# Pixels of the template to a pixel of the searched picture: as fine as half a pixel of a crop of
# some hundred needs, since the whole outline votes on the pose.
ZOOM = 2
# Pictures on which the recipes are tried.
TRIED_FRAMES = 24
# Which of a view's maps, halved so many times, the recipes are tried on. Even a part of 15 by 7
# pixels there comes out as on the whole map.
COMPARED = 1
# Rounds of aligning to the template and making it anew before the last, and parts that are tried as
# the first one.
ROUNDS, ANCHORS = 2, 3
# Shares of Otsu's threshold that are tried; the highest whose areas spread at most so much more
# than those of the best is taken. A part with one bright face needs less than the whole.
OTSU_SHARES, SPREAD_FREEDOM = (1.0, 0.8, 0.65), 1.25
# A good part's area may be off the median by this share.
AREA_FREEDOM = 0.4
# The share of defective pictures that a folder of good ones may hold, the chance left that a sample
# of it holds more than is allowed for, and the share of the sample that is allowed for at most.
DEFECTIVE_SHARE, FAILING_CHANCE, MOST_FAILING = 0.1, 0.025, 0.25
# A foreground as weak as this is noise, grey levels; as small or as large a share of the view as
# that no part.
LEAST_CONTRAST, LEAST_SHARE, MOST_SHARE = 8.0, 0.004, 0.7
# A piece of this share of the part's area beside it is a second part.
SECOND_SHARE = 0.5
# Share of an edge of the view from which on a good part counts as touching it.
TOUCHING = 0.05
# What does more must leave at most this share of what the simpler recipe leaves unexplained.
WORTH_IT = 0.7
# Where the part's rectangle takes less than this share of the view, cutting it out pays by itself:
# it gets twice as many pixels a side. It may then leave this share of the picture more.
SMALL_PART, SMALL_FREEDOM = 0.25, 0.02
# Parts that lie in one place to this share of their length, half a patch, need no alignment.
LEAST_PLAY = 0.01
# A part longer than wide by this factor is laid horizontally.
ELONGATED = 1.15
# The crop is the extent of all but this share of the parts at each place, and a margin as a share
# of its mean side.
EXTENT_SHARE, CROP_MARGIN = 0.05, 0.045
# The canvas that parts are aligned on, over the first part's extent.
CANVAS = 1.3
# A part whose correlation is this much below the median takes no part in the template.
OUTLIER = 0.1
# Light that varies by less than this share is constant.
CONSTANT_LIGHT = 0.02
# Light may be undone at the price of this much more disagreement where alignment is learnt; colours
# one by one only where that leaves this share of it.
LIGHT_FREEDOM, COLOUR_WORTH_IT = 1.05, 0.85
# Long side of the pictures that the light is compared on, pixels.
LIGHT_SIDE = 96


@dataclass(frozen=True)
class LearntAlignment:
    """
    An alignment and what stands behind it.

    Attributes
    ----------
    alignment : Alignment
    agreement : dict of str to dict
        For each recipe that could be tried: `median` and `low` (10 % quantile) of the correlation
        of a good picture with what the others predict, and `unexplained`, the median of 1 - r^2.
    reason : str
        One sentence: why this recipe.
    views : list of (ndarray, View)
        The pictures it was learnt from that an `Aligner` of it would look at, and what that would
        see; none for the recipe `none`.
    """

    alignment: Alignment
    agreement: dict[str, dict[str, float]]
    reason: str
    views: list[tuple[np.ndarray, View]] = field(default_factory=list, repr=False, compare=False)


@dataclass(frozen=True)
class _Ground:
    """What the foreground of the good pictures has in common."""

    threshold: float
    otsu_share: float
    level: float
    area: float
    touch: float


@dataclass(frozen=True)
class _Seen:
    """One good picture: its view, its pieces and whether it shows one clear part."""

    view: View
    threshold: float
    found: list[Piece]
    clear: bool


@dataclass(frozen=True)
class _Stack:
    """
    Parts on one canvas: poses and agreements, None and NaN where there is no clear part.

    `size` is the canvas's, height and width; poses lead from it to the maps ``maps[level]``.
    """

    size: tuple[int, int]
    level: int
    poses: list[np.ndarray | None]
    agreements: np.ndarray

    @property
    def kept(self) -> list[int]:
        """Those that look like the others."""
        limit = float(np.nanmedian(self.agreements)) - OUTLIER
        return [int(index) for index in np.flatnonzero(self.agreements >= limit)]


def learn_alignment(
    frames_bgr: Sequence[np.ndarray],
    region: tuple[float, float, float, float] | None,
    recipe: str | None = None,
) -> LearntAlignment:
    """
    Learn how parts are aligned, from good pictures.

    Parameters
    ----------
    frames_bgr : sequence of ndarray of uint8, shape (height, width, 3)
        Up to one in ten may be defective; the pictures may be of different sizes.
    region : tuple of float or None
        Region of interest, see `preprocess.Preprocessing`.
    recipe : {'none', 'centre', 'pose'} or None
        Forced, or chosen by what the pictures agree on.

    Raises
    ------
    InputError
        If there is no picture, or they do not allow the forced recipe.
    """
    if recipe is not None and recipe not in RECIPES:
        raise InputError(f"alignment {recipe!r} is none of {', '.join(RECIPES)}")
    if not len(frames_bgr):
        raise InputError("no good picture to learn the alignment from, wanted at least 1")
    frames = [frames_bgr[index] for index in _spread_over(len(frames_bgr), TEMPLATE_FRAMES)]
    chosen = [_cut(frame, region) for frame in frames]
    viewer = Viewer(ZOOM)
    views = [viewer.look(picture) for picture in chosen]
    ground, seen, obstacle = _common_ground(views)
    # With the maps, whose cap is the threshold where there is one.
    cap = ground.threshold if obstacle is None else None
    seen = [replace(one, view=capped(one.view, cap, ground.level)) for one in seen]
    if obstacle is not None and recipe in ("centre", "pose"):
        raise InputError(
            f"the alignment {recipe!r} cannot be learnt from these pictures: {obstacle}"
        )
    few = [seen[index] for index in _spread_over(len(seen), TRIED_FRAMES)]
    agreement = {}
    if len(few) >= 3:
        agreement["none"] = _summary(_in_place([one.view for one in few]))
    first: dict[str, _Stack] = {}
    stacks: dict[str, _Stack] = {}
    if obstacle is None and recipe != "none":
        for tried in ("centre", "pose"):
            first[tried] = _anchored(few, tried, 0)
            stacks[tried] = _settled(few, tried, first[tried])
            agreement[tried] = _summary(_predicted(few, stacks[tried]))
    if recipe is not None:
        name, reason = recipe, f"{recipe}: asked for"
    elif obstacle is not None:
        name, reason = "none", f"none: {obstacle}"
    else:
        room = math.prod(stacks["centre"].size) * 4**COMPARED / CANVAS**2
        share = room / (_search_size(views) * ZOOM**2)
        name, reason = _choose(agreement, share, _play(few, stacks["pose"]))
    if name == "none":
        light, target = _learn_light_of_regions(chosen)
        return LearntAlignment(Alignment("none", light, target), agreement, reason)
    # Had a defective part the median area, the others agree better with another one: which recipe
    # is best shows either way, but the template is of the best.
    stack, others = stacks[name], [_anchored(few, name, rank) for rank in range(1, ANCHORS)]
    best = max([first[name], *others], key=lambda one: float(np.nanmedian(one.agreements)))
    if best is not first[name]:
        stack = _settled(few, name, best)
        agreement[name] = _summary(_predicted(few, stack))
    stack = _round(seen, _median(few, _full_size(stack)), name, 0)
    # Once more to the template of all: on 54 screws the crops of 320 then agreed as well as they
    # ever did (0.9600 against 0.9585).
    stack = _round(seen, _median(seen, stack), name, 0)
    alignment, placed = _finish(name, ground, seen, stack)
    light, target = _learn_light(alignment, [seen[index].view for index in stack.kept], placed)
    alignment = replace(alignment, light=light, target_bgr=target)
    looked_at = [(frame, one.view) for frame, one in zip(frames, seen, strict=True)]
    return LearntAlignment(alignment, agreement, reason, looked_at)


def _spread_over(count: int, most: int) -> list[int]:
    """Up to `most` of so many rows, evenly spread."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def _cut(frame_bgr: np.ndarray, region: tuple[float, float, float, float] | None) -> np.ndarray:
    x0, y0, x1, y1 = region_box(region, frame_bgr.shape)
    return frame_bgr[y0:y1, x0:x1]


def _search_size(views: Sequence[View]) -> float:
    return float(np.median([view.search.size for view in views]))


def _common_ground(views: Sequence[View]) -> tuple[_Ground, list[_Seen], str | None]:
    """What the foregrounds share, and why they are no ground to align on, if they are not."""
    own = [otsu(view.search) for view in views]
    threshold = max(float(np.median(own)), 1.0)
    levels = [float(view.plane[0].mean()) for view in views]
    level = float(np.median(levels))
    limits = [
        held(value, threshold * light_gain(lightness, level))
        for value, lightness in zip(own, levels, strict=True)
    ]
    # Where the whole threshold lets too much touch the edge, its parts do all the more.
    touching = sum(
        edge_share(view.search, limit) > TOUCHING for view, limit in zip(views, limits, strict=True)
    )
    most = _most_failing(len(views))
    shares = OTSU_SHARES if touching <= most else OTSU_SHARES[:1]
    tried = []
    for share in shares:
        found = [
            pieces(foreground(view.search, share * limit))
            for view, limit in zip(views, limits, strict=True)
        ]
        areas = np.array([one[0].area if one else 0.0 for one in found])
        area = max(float(np.median(areas)), 1.0)
        # A tenth at each end is left to defects: it is the usual part's area that shall be firm.
        spread = float(np.subtract(*np.quantile(areas, [0.9, 0.1]))) / area
        tried.append((share, found, areas, area, spread))
    firmest = min(spread for *_, spread in tried)
    otsu_share, found, areas, area, _ = next(
        one for one in tried if one[-1] <= SPREAD_FREEDOM * firmest + 0.01
    )
    touch = [
        edge_share(view.search, otsu_share * limit)
        for view, limit in zip(views, limits, strict=True)
    ]
    stable = np.abs(areas - area) <= AREA_FREEDOM * area
    single = np.array([len(one) < 2 or one[1].area < SECOND_SHARE * area for one in found])
    inside = np.array(touch) <= TOUCHING
    seen = [
        _Seen(view, otsu_share * limit, one, bool(clear))
        for view, limit, one, clear in zip(
            views, limits, found, stable & single & inside, strict=True
        )
    ]
    # The touch of what is not clear says nothing about good parts.
    good_touch = [value for value, one in zip(touch, seen, strict=True) if one.clear] or [0.0]
    ground = _Ground(threshold, otsu_share, level, area, float(np.quantile(good_touch, 0.95)))
    share = area / _search_size(views)
    if len(views) < LEAST_FRAMES:
        obstacle = f"{len(views)} pictures, wanted at least {LEAST_FRAMES}"
    elif threshold * otsu_share < LEAST_CONTRAST:
        obstacle = (
            f"nothing stands out from the background: by {threshold:.0f} grey levels, wanted "
            f"{LEAST_CONTRAST:.0f}"
        )
    elif (~inside).sum() > most:
        obstacle = (
            f"in {(~inside).sum()} of {len(views)} pictures the foreground touches the edge of the "
            f"view, at most {most} may"
        )
    elif not LEAST_SHARE <= share <= MOST_SHARE:
        obstacle = (
            f"the foreground covers {share:.1%} of the view, wanted {LEAST_SHARE:.1%} to "
            f"{MOST_SHARE:.0%}"
        )
    elif (~(stable & single)).sum() > most:
        obstacle = (
            f"{(~(stable & single)).sum()} of {len(views)} pictures do not show one piece of the "
            f"usual size before the background, at most {most} may"
        )
    else:
        obstacle = None
    return ground, seen, obstacle


def _most_failing(count: int) -> int:
    """
    How many of so many pictures may show no clear part: those of a defective tenth, by chance.

    The binomial quantile, at least 1. A fixed share just above a tenth gave up an alignment that
    the other pictures agreed on in one of five draws of 49 with one in ten defective.
    """
    most, limit = 1, int(MOST_FAILING * count)
    while most < limit and at_most(most, count, DEFECTIVE_SHARE) < 1 - FAILING_CHANCE:
        most += 1
    return most


def _summary(correlations: np.ndarray) -> dict[str, float]:
    left = 1 - np.maximum(correlations, 0) ** 2
    return {
        "median": float(np.median(correlations)),
        "low": float(np.quantile(correlations, 0.1)),
        "unexplained": float(np.median(left)),
    }


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    norm = math.sqrt(float((one * one).sum()) * float((other * other).sum()))
    return float((one * other).sum()) / max(norm, 1e-9)


def _in_place(views: Sequence[View]) -> np.ndarray:
    """Correlation of each view with the mean of the others as they lie."""
    size = views[0].maps[COMPARED].shape[::-1]
    stretched = [
        cv2.resize(view.maps[COMPARED], size, interpolation=cv2.INTER_AREA) for view in views
    ]
    total = np.sum(stretched, axis=0)
    return np.array([_correlation(one, total - one) for one in stretched])


def _predicted(seen: Sequence[_Seen], stack: _Stack) -> np.ndarray:
    """
    Correlation of each view with the mean of the other aligned parts, laid where the part lies.

    On all pixels of the view, as `_in_place`: only so can the two be compared. A view without a
    clear part is explained by nothing.
    """
    size = stack.size
    kept = set(stack.kept)
    aligned = {
        index: warp(seen[index].view.maps[stack.level], pose, size)
        for index, pose in enumerate(stack.poses)
        if pose is not None
    }
    total = np.sum([aligned[index] for index in kept], axis=0)
    correlations = np.zeros(len(seen))
    for index, own in aligned.items():
        others = total - own if index in kept else total
        view = seen[index].view
        place = stack.poses[index] @ similarity(1.0, 0.0, (-(size[1] - 1) / 2, -(size[0] - 1) / 2))
        compared = view.maps[stack.level]
        predicted = cv2.warpAffine(others, place[:2], compared.shape[::-1])
        correlations[index] = _correlation(predicted, compared)
    return correlations


def _anchored(seen: Sequence[_Seen], recipe: str, rank: int) -> _Stack:
    """
    The clear parts aligned to one of them, on the maps that recipes are compared on.

    `rank` 0 is the part whose area is nearest to the median, 1 the next.
    """
    clear = [one for one in seen if one.clear]
    areas = np.array([one.found[0].area for one in clear])
    nearest = np.argsort(np.abs(areas - np.median(areas)), kind="stable")
    anchor = clear[nearest[min(rank, len(clear) - 1)]]
    return _round(seen, _first_template(anchor, recipe), recipe, COMPARED)


def _settled(seen: Sequence[_Seen], recipe: str, stack: _Stack) -> _Stack:
    """The same aligned to the template of all."""
    for _ in range(ROUNDS - 1):
        stack = _round(seen, _median(seen, stack), recipe, COMPARED)
    return stack


def _map_centre(piece: Piece, level: int = 0) -> np.ndarray:
    """The piece's centre in pixels of the map that has been halved so many times."""
    return (np.array(piece.centre) + 0.5) * ZOOM * 0.5**level - 0.5


def _first_template(one: _Seen, recipe: str) -> np.ndarray:
    """One part on a canvas that has room for the others; elongated ones lie horizontally."""
    piece, pixel = one.found[0], ZOOM * 0.5**COMPARED
    centre = _map_centre(piece, COMPARED)
    points = (piece.contour[:, 0] - np.array(piece.centre)) * pixel
    angle = 0.0
    if recipe == "pose":
        angle = _long_axis(cv2.moments(piece.contour))
    turned = points @ similarity(1.0, angle, (0, 0))[:2, :2]
    low, high = turned.min(axis=0), turned.max(axis=0)
    pose = similarity(1.0, angle, centre)
    pose[:2, 2] += pose[:2, :2] @ ((low + high) / 2)
    width, height = (high - low + 2 * pixel) * CANVAS
    # Multiples of 4 are halved twice without losing a row.
    size = 4 * math.ceil(height / 4), 4 * math.ceil(width / 4)
    return warp(one.view.maps[COMPARED], pose, size)


def _long_axis(moments: dict[str, float]) -> float:
    """Angle of the long axis, -pi/2 to pi/2; 0 for what is not longer than wide."""
    across, down, mixed = moments["mu20"], moments["mu02"], moments["mu11"]
    mean, half = (across + down) / 2, math.hypot((across - down) / 2, mixed)
    if mean + half < ELONGATED**2 * (mean - half):
        return 0.0
    return 0.5 * math.atan2(2 * mixed, across - down)


def _round(seen: Sequence[_Seen], template: np.ndarray, recipe: str, level: int) -> _Stack:
    """Align all clear parts to a template, on the maps halved `level` times."""
    search = PoseSearch(template, recipe)
    poses: list[np.ndarray | None] = [None] * len(seen)
    agreements = np.full(len(seen), np.nan)
    for index, one in enumerate(seen):
        if one.clear:
            centre = tuple(_map_centre(one.found[0], level).tolist())
            agreements[index], poses[index] = search.pose(one.view.maps[level:], centre)
    stack = _Stack(template.shape, level, poses, agreements)
    # Otherwise the template would grow or shrink a little every round.
    scales = [math.sqrt(abs(np.linalg.det(poses[index][:2, :2]))) for index in stack.kept]
    steady = np.diag([1 / np.mean(scales), 1 / np.mean(scales), 1.0])
    return replace(stack, poses=[None if pose is None else pose @ steady for pose in poses])


def _median(seen: Sequence[_Seen], stack: _Stack) -> np.ndarray:
    """Template of the parts that look like the others: deaf to a defect, sharper than the mean."""
    aligned = [
        warp(seen[index].view.maps[stack.level], stack.poses[index], stack.size)
        for index in stack.kept
    ]
    return _median_picture(aligned)


def _share(
    masks: Sequence[np.ndarray], poses: Sequence[np.ndarray], size: tuple[int, int]
) -> np.ndarray:
    """Share of the masks, uint8 of 0 and 1, that cover each pixel when laid in their poses."""
    total = np.zeros(size, np.float32)
    for mask, pose in zip(masks, poses, strict=True):
        total += warp(mask.astype(np.float32), pose, size)
    return total / len(masks)


def _median_picture(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """
    Median of each pixel over pictures of float32; equal to numpy's, in a fifth of its time.

    Whole pictures are exchanged, the smaller values for the larger, along a sorting network; they
    are written over.
    """
    ranked, count = list(pictures), len(pictures)
    spare = np.empty_like(ranked[0])
    for low, high in _exchanges(count):
        one, other = ranked[low], ranked[high]
        np.minimum(one, other, out=spare)
        np.maximum(one, other, out=other)
        ranked[low], spare = spare, one
    return (ranked[(count - 1) // 2] + ranked[count // 2]) / 2


@lru_cache(maxsize=8)
def _exchanges(count: int) -> tuple[tuple[int, int], ...]:
    """
    Which pairs of so many values to put in order, one after the other, to have the middle ones.

    Batcher's merge exchange (Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M), without
    what the middle does not depend on.
    """
    top = 1 << max(count - 1, 1).bit_length() - 1
    pairs, width = [], top
    while width:
        gap, rest, reach = top, 0, width
        while True:
            pairs += [(i, i + reach) for i in range(count - reach) if i & width == rest]
            if gap == width:
                break
            gap, rest, reach = gap // 2, width, gap - width
        width //= 2
    wanted, needed = {(count - 1) // 2, count // 2}, []
    for pair in reversed(pairs):
        if not wanted.isdisjoint(pair):
            wanted.update(pair)
            needed.append(pair)
    return tuple(reversed(needed))


def _full_size(stack: _Stack) -> _Stack:
    """The same on the full maps."""
    grow = 2**stack.level
    to_map, to_canvas = scaling(grow), np.diag([1 / grow, 1 / grow, 1.0])
    poses = [None if pose is None else to_map @ pose @ to_canvas for pose in stack.poses]
    height, width = stack.size
    return _Stack((grow * height, grow * width), 0, poses, stack.agreements)


def _play(seen: Sequence[_Seen], stack: _Stack) -> float:
    """How far the parts' corners lie from their median place, share of the part's long side."""
    height, width = (side / CANVAS for side in stack.size)
    corners = np.array([[-1, 1, -1, 1], [-1, -1, 1, 1]]) * [[width / 2], [height / 2]]
    corners = np.vstack([corners, np.ones(4)])
    # Relative to the view's middle and size: the pictures may be of different sizes.
    places = []
    for index in stack.kept:
        rows, columns = seen[index].view.maps[stack.level].shape
        middle = np.array([[(columns - 1) / 2], [(rows - 1) / 2]])
        places.append((stack.poses[index] @ corners)[:2] - middle)
    away = np.linalg.norm(np.array(places) - np.median(places, axis=0), axis=1)
    return float(np.median(away.mean(axis=1))) / max(height, width)


def _choose(agreement: dict[str, dict[str, float]], share: float, play: float) -> tuple[str, str]:
    """
    The recipe and why.

    `share` is the area of the part's own rectangle over the view's; `play` how far the parts lie
    from their median place over their long side.
    """
    left = {name: values["unexplained"] for name, values in agreement.items()}
    name = "none"
    why = "as they lie, the pictures agree about as well as in one pose"
    if play < LEAST_PLAY and share >= SMALL_PART:
        return name, f"none: all parts lie in one place to {play:.1%} of their length"
    if left["centre"] <= WORTH_IT * left[name]:
        name, why = "centre", "once moved to the middle, the parts agree clearly better"
    elif share < SMALL_PART and left["centre"] <= left[name] + SMALL_FREEDOM:
        name, why = "centre", f"the part covers only {share:.0%} of the view"
    if left["pose"] <= WORTH_IT * left[name]:
        name, why = "pose", "once moved and turned to one pose, the parts agree clearly better"
    shares = ", ".join(f"{one} {left[one]:.0%}" for one in RECIPES)
    return name, f"{name}: {why} (share of a picture that the others leave unexplained: {shares})"


def _silhouette(one: _Seen, area: float) -> np.ndarray:
    """The part on the map, uint8 of 0 and 1, holes filled, dust left out."""
    mask = foreground(one.view.maps[0].astype(np.uint8), one.threshold)
    filled = np.zeros_like(mask)
    # The map has ZOOM^2 pixels to one of the searched picture.
    large = [piece for piece in pieces(mask) if piece.area >= 0.1 * area * ZOOM**2]
    cv2.drawContours(filled, [piece.contour for piece in large], -1, 1, cv2.FILLED)
    return filled


def _finish(
    recipe: str, ground: _Ground, seen: Sequence[_Seen], stack: _Stack
) -> tuple[Alignment, list[np.ndarray]]:
    """Cut the template out of its canvas; the alignment and the poses of the parts kept for it."""
    size = stack.size
    kept = [seen[index] for index in stack.kept]
    poses = [stack.poses[index] for index in stack.kept]
    masks = [_silhouette(one, ground.area) for one in kept]
    silhouette = _share(masks, poses, size)
    turn = 0.0
    if recipe == "pose":
        turn = _long_axis(cv2.moments((silhouette > 0.5).astype(np.uint8), binaryImage=True))
    rows, columns = (silhouette > EXTENT_SHARE).nonzero()
    points = np.stack([columns - (size[1] - 1) / 2, rows - (size[0] - 1) / 2], axis=1)
    points = points @ similarity(1.0, turn, (0, 0))[:2, :2]
    low, high = points.min(axis=0), points.max(axis=0)
    inner = similarity(1.0, turn, (0, 0))
    inner[:2, 2] = inner[:2, :2] @ ((low + high) / 2)
    width, height = high - low + 1
    margin = CROP_MARGIN * math.sqrt(width * height)
    crop = (4 * math.ceil((height + 2 * margin) / 4), 4 * math.ceil((width + 2 * margin) / 4))
    poses = [pose @ inner for pose in poses]
    aligned = [warp(one.view.maps[0], pose, crop) for one, pose in zip(kept, poses, strict=True)]
    alignment = Alignment(
        recipe,
        template=_median_picture(aligned),
        silhouette=_share(masks, poses, crop).clip(0, 1),
        zoom=ZOOM,
        threshold=ground.threshold,
        otsu_share=ground.otsu_share,
        level=ground.level,
        area=ground.area,
        touch=ground.touch,
        aspect=crop[1] / crop[0],
    )
    # Against the template as the device will have it.
    search = PoseSearch(alignment.template, recipe)
    agreements = [
        search.pose(kept[index].view.maps, tuple(_map_centre(kept[index].found[0]).tolist()))[0]
        for index in _spread_over(len(kept), TRIED_FRAMES)
    ]
    return replace(alignment, agreement=float(np.median(agreements))), poses


def _learn_light(
    alignment: Alignment, views: Sequence[View], poses: Sequence[np.ndarray]
) -> tuple[str, tuple[float, float, float] | None]:
    """Light of aligned crops; what counts is the part, the background agrees by itself."""
    height, width = alignment.template.shape
    scale = LIGHT_SIDE / max(height, width)
    size = max(8, round(height * scale)), max(8, round(width * scale))
    inner = to_template(size, alignment.template.shape)
    crops, levels = [], []
    for view, pose in zip(views, poses, strict=True):
        pixels_rgb, level_bgr = cut_out(view, view.to_view @ pose @ inner, size)
        crops.append(cv2.cvtColor(pixels_rgb, cv2.COLOR_RGB2BGR))
        levels.append(level_bgr)
    part = cv2.resize(alignment.silhouette, size[::-1], interpolation=cv2.INTER_AREA) > 0.5
    return _choose_light(crops, np.array(levels), part, aligned=True)


def _learn_light_of_regions(
    regions: Sequence[np.ndarray],
) -> tuple[str, tuple[float, float, float] | None]:
    small = [shrink(picture, (LIGHT_SIDE, LIGHT_SIDE)) for picture in regions]
    levels = np.array([median_level(picture) for picture in small])
    return _choose_light(small, levels, np.ones((LIGHT_SIDE, LIGHT_SIDE), bool), aligned=False)


def _choose_light(
    pictures: Sequence[np.ndarray], levels: np.ndarray, part: np.ndarray, aligned: bool
) -> tuple[str, tuple[float, float, float] | None]:
    """The light to undo, by how well grey levels agree once it is undone."""
    if len(pictures) < LEAST_FRAMES:
        return "none", None
    target = np.median(levels, axis=0)
    if target.min() < DARK:
        return "none", None
    tuple_bgr = tuple(float(value) for value in target)
    changed = {"none": pictures}
    for light in ("gain", "white balance"):
        changed[light] = [
            lit(picture, level, light, tuple_bgr)
            for picture, level in zip(pictures, levels, strict=True)
        ]
    left = {light: _disagreement(some, part) for light, some in changed.items()}
    grey = levels.mean(axis=1)
    varies = _spread(np.log(np.maximum(grey, 1))) > CONSTANT_LIGHT
    ratios = np.log(np.maximum(levels, 1)) - np.log(np.maximum(grey, 1))[:, None]
    colour_varies = max(_spread(ratios[:, colour]) for colour in range(3)) > CONSTANT_LIGHT
    light = "none"
    if aligned:
        if left["gain"] <= LIGHT_FREEDOM * left["none"]:
            light = "gain"
    elif varies and left["gain"] <= left["none"]:
        light = "gain"
    if colour_varies and left["white balance"] <= COLOUR_WORTH_IT * left[light]:
        light = "white balance"
    return light, None if light == "none" else tuple_bgr


def _spread(values: np.ndarray) -> float:
    """Standard deviation by the median absolute deviation, for a normal distribution."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def _disagreement(pictures: Sequence[np.ndarray], part: np.ndarray) -> float:
    """Median over pictures of the deviation from the mean of the others, grey levels."""
    count, inside = len(pictures), np.flatnonzero(part)
    rows = np.stack([picture.reshape(-1, 3).take(inside, axis=0) for picture in pictures])
    rows = rows.reshape(count, -1).astype(np.float32)
    rows -= rows.mean(axis=0)
    # From the mean of the others a picture lies farther than from that of all, by this factor.
    apart = count / (count - 1)
    squares = np.einsum("ij,ij->i", rows, rows) / rows.shape[1]
    return float(np.median(np.sqrt(squares))) * apart + 1e-6
