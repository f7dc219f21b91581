"""
Quality: may this picture be judged at all, or is it dark, overexposed, blurred, the same again?

Only a few rows of the picture are read, each with its neighbours at full resolution, so that a
blur of two pixels is seen in a large frame too; a picture reduced without interpolation would hide
it. Exposure is the histogram of a sample of their grey levels. Sharpness is the share of the coarse
detail that is fine as well, from the structure function of the levels,

    S(d) = mean of (I(x + d) - I(x))^2        sharpness = sqrt((S(2) - S(1)) / (S(D) - S(1)))

with D a sixteenth of the view. A sharp edge of height h adds d h^2 to S(d), a blurred one d^2 h^2
divided by its width: the quotient falls as the edges widen, whatever the light and the contrast
of the part. Noise that is independent from pixel to pixel adds the same to S at every distance
and cancels (Kolmogorov's structure function; as a measure of focus it is of the kind of Brenner's
S(2), "An automated microscope for cytologic research", 1976). It is taken along and across the
rows and the smaller one counts: motion blurs one direction alone.

A view with little coarse detail says little about focus: an empty station has no edges. But one
that is so far out of focus that no outline is left is nothing but slopes, over which S(d) grows as
d^2 and the sharpness comes down to sqrt(3 / (D^2 - 1)): it is called blurred too. So may an empty
station be whose light falls off steeply; where no part is found, blurred means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from edge_app.errors import BundleError
from edge_app.preprocess import region_box

# Rows of the view that are looked at: at most 20 (a part a tenth as high as the view meets two;
# with half as many the sharpness of screws that lie at any angle scattered by half more), in a
# large frame as many as make 160 x 160 pixels, at least 8.
MOST_ROWS, LEAST_ROWS, PIXELS = 20, 8, 160 * 160
# Exposure, and whether it is the same picture again, need fewer pixels: every second row of these,
# and of their pixels so many that a sample of at most this size is left. On screws, tiles and phone
# pictures shadows and highlights were the same as of all pixels to 3 %.
SECOND, SAMPLE = 2, 2048
# The coarse distance as a share of the longer side: wider than a defocused edge, narrower than a
# part, and too short for the fall of the light towards the corners to count as detail.
COARSE_SHARE = 1 / 16
# A direction with less than this share of the coarse detail (its mean square) is not judged.
LEAST_DIRECTION = 0.1
# Grey levels: sensors and video (black is 16 there) never reach 20 where there is light; 250 is
# where the first colour of a grey pixel clips.
DARK, CLIPPED = 20, 250
# Shadows and highlights: the grey levels that a tenth of the sample lies below and above. A part in
# a plain view moves one of them, the light moves both. They are grey levels in every bundle: what
# is learnt and what is checked must have one unit.
TAIL = 0.1
# Shadows of good pictures below this are the sensor's black level and do not follow the light.
LEAST_SHADOWS = 5.0
# A view with more than this share black or white is dark or overexposed, whatever was learnt, if
# not more of the good ones was.
MOST_SHARE = 0.98
# Shares count as at least this: below it they are glints and shadows, and no matter of exposure.
LEAST_SHARE = 0.04
# Sharpness is judged in views with this share of the least contrast of a good picture, and at
# least so many grey levels (the fall of the light towards the corners makes one or two). On the
# sample clip the textured empty station has 0.49 of it, a part blurred by six pixels has 0.84.
CONTRAST_SHARE = 0.5
LEAST_CONTRAST = 2.0
# A view has no outline left where its sharpness is up to this times that of slopes: screws, tiles
# and phone pictures out of focus by 3 % of their side or more had at most 1.22 of it, in focus at
# least 1.87, the empty station 2.2; with D below 8 pixels even a sharp edge has less than 1.7.
# Slopes of fewer grey levels are the fall of the light.
SLOPES, LEAST_SLOPES_REACH, LEAST_SLOPES_CONTRAST = 1.25, 8, 4.0
# A limit lies beyond the good pictures by this share of their range, and by so many ranges divided
# by their number: one picture in n + 1 lies beyond n others on either side, so that the room must
# be wide for few pictures and hardly any for many. Limits learnt from 5, 20 or all other screws,
# tiles and phone pictures refused at most 2 in 1000 of the rest.
FAR_SHARE, FEW = 0.1, 6.0
# So much more, divided by their number, is the least of it: the range of two or three says nothing.
FEW_LEAST = 2.0
# What a limit lies beyond the good pictures at least, however equal they are, in the logarithm
# (shares: of the odds). Light: a change by 1.6 is for the scorer to bear. Shares: 8 makes of none
# 25 %, of 30 % 77 %. Sharpness: a fifth; focus by hand does not repeat better.
FAR_LIGHT = 1.6
LEAST_LIGHT = math.log(FAR_LIGHT)
LEAST_ODDS = math.log(8.0)
LEAST_SHARPNESS = 0.25


@dataclass(frozen=True)
class Measures:
    """
    What was measured in one picture.

    Attributes
    ----------
    shadows, highlights : float
        Grey level that a tenth of the pixels is below, and above, 0 to 255.
    clipped_share, dark_share : float
        Share of the pixels whose grey level is at the top, and at black, 0 to 1.
    sharpness : float
        Fine detail over coarse detail, 0 (none is fine) to about 0.7 (all of it is); 0.2 to 0.4
        in most sharp pictures. 0 also where there is no detail; see `contrast`.
    contrast : float
        Root mean square of the coarse detail, grey levels, 0 to 255, without the noise.
    """

    shadows: float
    highlights: float
    clipped_share: float
    dark_share: float
    sharpness: float
    contrast: float


@dataclass(frozen=True)
class Limits:
    """
    What good pictures measured: each as (lowest, highest), in the units of `Measures`.

    How far beyond a picture may lie is decided when it is checked.

    Attributes
    ----------
    images : int
        So many pictures were measured.
    """

    images: int
    shadows: tuple[float, float]
    highlights: tuple[float, float]
    clipped_share: tuple[float, float]
    dark_share: tuple[float, float]
    sharpness: tuple[float, float]
    contrast: tuple[float, float]


# Lets every picture pass.
ANYTHING = Limits(1, (0, 255), (0, 255), (0, 1), (0, 1), (0, 1), (0, 255))

# The highest value that each of `Measures` may have, in its order; the lowest is 0.
MOST = {
    "shadows": 255.0,
    "highlights": 255.0,
    "clipped_share": 1.0,
    "dark_share": 1.0,
    "sharpness": math.inf,
    "contrast": 255.0,
}
# Light alone is learnt from pictures of the empty station; they say nothing about sharpness.
OF_LIGHT = ("shadows", "highlights", "clipped_share", "dark_share")


@dataclass(frozen=True)
class Memory:
    """
    What `check` remembers of a live camera.

    Attributes
    ----------
    sample : bytes or None
        Rows of the last picture as the camera gave them.
    equal : int
        So many pictures in a row, the last one included, had this sample.
    """

    sample: bytes | None = None
    equal: int = 0


def measure(
    frame_bgr: np.ndarray, region: tuple[float, float, float, float] | None = None
) -> Measures:
    """
    Measure exposure, sharpness and contrast.

    Parameters
    ----------
    frame_bgr : ndarray of uint8, shape (height, width, 3)
        Its region of interest has at least `preprocess.LEAST_SIDE` pixels a side.
    region : tuple of float or None
        Region of interest as in `Preprocessing`; nothing else is looked at.
    """
    return _measure(_cut(frame_bgr, region))


def learn_limits(good: Sequence[Measures], fixed: Limits | None = None) -> Limits | None:
    """
    Learn what good pictures measure.

    Parameters
    ----------
    good : sequence of Measures
        Of pictures that are as they should be.
    fixed : Limits or None
        What counts beside them, and is no picture that could be taken out: `light_of` the empty
        station, or the limits of pictures of which it is not known what each measured.

    Returns
    -------
    limits : Limits or None
        None where there is no good picture.
    """
    images = len(good) + (fixed.images if fixed else 0)
    if not images:
        return None
    spans = {}
    for name in MOST:
        more = [v for v in (getattr(fixed, name) if fixed else ()) if not math.isnan(v)]
        spans[name] = _span([getattr(measures, name) for measures in good] + more)
    return Limits(images, **spans)


def light_of(empty: Iterable[Measures]) -> Limits | None:
    """
    What pictures of the empty station teach, as `learn_limits` takes it; None for none.

    They are no good pictures: `images` is 0, `sharpness` and `contrast` are NaN.
    """
    empty = list(empty)
    if not empty:
        return None
    spans = {name: _span(getattr(measures, name) for measures in empty) for name in OF_LIGHT}
    return Limits(0, **spans, sharpness=(math.nan, math.nan), contrast=(math.nan, math.nan))


def as_section(limits: Limits | None) -> dict[str, Any] | None:
    """Limits as the manifest's section `quality` keeps them; None for None."""
    if limits is None:
        return None
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(limits).items()
    }


def read_limits(section: Mapping[str, Any] | None) -> Limits | None:
    """
    Limits from the manifest's section `quality`; None where nothing was learnt.

    Raises
    ------
    BundleError
        If the section is not as `as_section` writes it.
    """
    if section is None:
        return None
    if set(section) != {"images", *MOST}:
        raise BundleError(
            f"manifest.json: quality holds {', '.join(sorted(section)) or 'nothing'}, "
            f"wanted {', '.join(sorted(('images', *MOST)))}"
        )
    images = section["images"]
    if not isinstance(images, int) or isinstance(images, bool) or images < 1:
        raise BundleError(
            f"manifest.json: quality.images is {images!r}, wanted a whole number from 1"
        )
    spans = {}
    for name, most in MOST.items():
        value = section[name]
        numbers = isinstance(value, list) and [
            v for v in value if isinstance(v, int | float) and not isinstance(v, bool)
        ]
        if not (
            numbers
            and len(numbers) == len(value) == 2
            and all(map(math.isfinite, numbers))
            and 0 <= numbers[0] <= numbers[1] <= most
        ):
            raise BundleError(
                f"manifest.json: quality.{name} is {value!r}, wanted lowest and highest"
                + (f", 0 to {most:g}" if math.isfinite(most) else "")
            )
        spans[name] = (float(numbers[0]), float(numbers[1]))
    return Limits(images, **spans)


def check(
    frame_bgr: np.ndarray,
    limits: Limits | None,
    memory: Memory,
    live: bool,
    frozen_frames: int,
    margin: float = 1.0,
    region: tuple[float, float, float, float] | None = None,
) -> tuple[str | None, Memory]:
    """
    Whether a picture may be judged.

    Parameters
    ----------
    frame_bgr : ndarray of uint8, shape (height, width, 3)
    limits : Limits or None
        None looks for a frozen camera only.
    memory : Memory
        `Memory()` before the first picture, then what the last call gave back.
    live : bool
        Whether the pictures come from a camera; only a camera can be frozen.
    frozen_frames : int
        So many equal pictures in a row are a frozen camera.
    margin : float
        How far beyond the good pictures a picture may lie. 1 lets nearly every good picture pass,
        with few learnt pictures more generously than with many; 0 takes what was learnt as the
        limits.
    region : tuple of float or None
        Region of interest; nothing else is looked at.

    Returns
    -------
    reason : str or None
        Why not, as ``kind: detail``.
    memory : Memory
    """
    if limits is None and not live:
        return None, memory
    view = _cut(frame_bgr, region)
    look = _look(view.shape)
    if live:
        # All colours of all the sampled rows: of a still scene the noise alone is new.
        content = view[look.sampled].tobytes()
        same = content == memory.sample
        memory = Memory(content, memory.equal + 1 if same else 1)
    reason = None
    if limits is not None:
        bounds = _bounds(limits, margin)
        sharpness, contrast = _detail(view, look)
        # Nearly every picture is plainly well lit; only of others is more looked at.
        sample = _sample(view, look)
        if not _well_lit(sample, bounds):
            measures = Measures(*_light(sample), sharpness, contrast)
            reason = _exposure(measures, limits, margin)
    if reason is None and memory.equal >= frozen_frames:
        reason = f"camera: frozen (the same picture {memory.equal} times)"
    if reason is None and limits is not None and sharpness < bounds.least_sharpness:
        reason = _blur(sharpness, contrast, look.slopes, limits, margin)
    return reason, memory


def sees_nothing(
    frame_bgr: np.ndarray, region: tuple[float, float, float, float] | None = None
) -> bool:
    """
    Whether a picture is black or white all over: a covered lens, a lamp in it.

    A view that `check` refuses and in which no part is found is an empty station, which may well
    be darker than any part; unless it is this. Light of one colour is light, though the grey level
    of blue is a ninth of it: black is what is black as the mean of its colours as well.
    """
    view = _cut(frame_bgr, region)
    look = _look(view.shape)
    _, _, clipped_share, dark_share = _light(_sample(view, look))
    if dark_share <= MOST_SHARE:
        return clipped_share > MOST_SHARE
    sums = view[look.sampled].sum(axis=2)
    return float((sums <= 3 * DARK).mean()) > MOST_SHARE


@dataclass(frozen=True)
class _Bounds:
    """Limits with their margin, ready for comparison."""

    most_dark: float
    most_clipped: float
    shadows: tuple[float, float]
    highlights: tuple[float, float]
    least_contrast: float
    least_sharpness: float
    # For `_well_lit`: which of five ranges each level lies in, and of the lower four, the share
    # of a well-lit picture that may lie in it and those below it, from and up to.
    ranges: bytes
    shares: tuple[tuple[int, float, float], ...]


@lru_cache(maxsize=16)
def _bounds(limits: Limits, margin: float) -> _Bounds:
    def most_share(span: tuple[float, float]) -> float:
        odds = math.exp(_beyond(span, _log_odds, LEAST_ODDS, limits.images, margin)[1])
        return max(min(odds / (1 + odds), MOST_SHARE), span[1])

    def levels(span: tuple[float, float]) -> tuple[float, float]:
        low, high = _beyond(span, _log, LEAST_LIGHT, limits.images, margin)
        return math.exp(low), math.exp(high)

    most_dark, most_clipped = most_share(limits.dark_share), most_share(limits.clipped_share)
    highlights = levels(limits.highlights)
    edges = sorted(
        (
            (DARK + 1, 0.0, most_dark),
            (math.ceil(highlights[0]), 0.0, 1 - TAIL),
            (math.floor(highlights[1]) + 1, 1 - TAIL, math.inf),
            (CLIPPED, 1 - most_clipped, math.inf),
        )
    )
    return _Bounds(
        most_dark,
        most_clipped,
        # The sensor's black level does not follow the light: it is no witness against dark.
        (
            math.inf if limits.shadows[0] < LEAST_SHADOWS else levels(limits.shadows)[0],
            levels(limits.shadows)[1],
        ),
        highlights,
        max(CONTRAST_SHARE * limits.contrast[0], LEAST_CONTRAST),
        lowest_sharpness(limits, margin),
        bytes(sum(level >= edge for edge, _, _ in edges) for level in range(256)),
        tuple((index, least, most) for index, (_, least, most) in enumerate(edges)),
    )


def lowest_sharpness(limits: Limits, margin: float) -> float:
    """The sharpness below which `check` calls a picture with edges blurred."""
    return math.exp(_beyond(limits.sharpness, _log, LEAST_SHARPNESS, limits.images, margin)[0])


def _well_lit(sample: bytes, bounds: _Bounds) -> bool:
    """
    Whether `_exposure` has surely nothing to say; it may have nothing to say otherwise too.

    Bytes count themselves several times faster than a histogram is begun: after the encoder's
    call nothing of it is in the cache any more, and each further function costs 10 microseconds.
    """
    count, total = sample.translate(bounds.ranges).count, len(sample)
    below = 0
    for index, least, most in bounds.shares:
        below += count(index)
        if not least * total <= below < most * total:
            return False
    return True


def _exposure(measures: Measures, limits: Limits, margin: float) -> str | None:
    bounds = _bounds(limits, margin)
    if measures.dark_share > bounds.most_dark:
        return (
            f"quality: too dark ({measures.dark_share:.0%} of it black, "
            f"good pictures up to {limits.dark_share[1]:.0%})"
        )
    if measures.clipped_share > bounds.most_clipped:
        return (
            f"quality: overexposed ({measures.clipped_share:.0%} of it white, "
            f"good pictures up to {limits.clipped_share[1]:.0%})"
        )
    # A part in a plain view, or its absence, moves shadows or highlights; the light moves both. A
    # covered lens shows a flat view of its own level, far from any good picture.
    low, high = bounds.highlights
    flat = measures.contrast < bounds.least_contrast
    if measures.highlights < low and (
        measures.shadows < bounds.shadows[0] or (flat and measures.highlights < low / FAR_LIGHT)
    ):
        return (
            f"quality: too dark (light parts at {measures.highlights:.0f} of 255, "
            f"good pictures from {limits.highlights[0]:.0f})"
        )
    if measures.highlights > high and measures.shadows > bounds.shadows[1]:
        return (
            f"quality: overexposed (dark parts at {measures.shadows:.0f} of 255, "
            f"good pictures up to {limits.shadows[1]:.0f})"
        )
    return None


def _blur(
    sharpness: float, contrast: float, slopes: float, limits: Limits, margin: float
) -> str | None:
    """Whether a picture below the lowest sharpness is blurred, or has nothing to be sharp."""
    # No blur is less sharp than slopes. Good pictures that are show nothing but noise or even fine
    # texture, whose share of coarse detail is chance: of such, sharpness says nothing.
    if limits.sharpness[0] <= slopes / SLOPES:
        return None
    good = f"good pictures from {limits.sharpness[0]:.2f}"
    if contrast >= _bounds(limits, margin).least_contrast:
        return f"quality: blurred (sharpness {sharpness:.2f}, {good})"
    if contrast >= LEAST_SLOPES_CONTRAST and sharpness <= slopes:
        return f"quality: blurred (no outline left: sharpness {sharpness:.2f}, {good})"
    return None


def _beyond(
    span: tuple[float, float], scale: Any, least: float, images: int, margin: float
) -> tuple[float, float]:
    """
    The limits (low, high) of a measure, on its scale. Wide for few pictures; see `FAR_SHARE`.
    """
    low, high = scale(span[0]), scale(span[1])
    room = margin * max(least * (1 + FEW_LEAST / images), (high - low) * (FAR_SHARE + FEW / images))
    return low - room, high + room


def _log(value: float) -> float:
    # A thousandth: less than any level or sharpness that says something.
    return math.log(max(value, 1e-3))


def _log_odds(share: float) -> float:
    share = min(max(share, LEAST_SHARE), MOST_SHARE)
    return math.log(share / (1 - share))


def _span(values: Iterable[float]) -> tuple[float, float]:
    values = list(values)
    return min(values), max(values)


def _cut(frame_bgr: np.ndarray, region: tuple[float, float, float, float] | None) -> np.ndarray:
    if region is None:
        return frame_bgr
    x0, y0, x1, y1 = region_box(region, frame_bgr.shape)
    return frame_bgr[y0:y1, x0:x1]


@dataclass(frozen=True)
class _Look:
    """
    Where a view of one size is looked at.

    Attributes
    ----------
    lines : slice
        The rows that sharpness is measured in.
    below : tuple of slice
        The rows 1, 2 and `reach` below them.
    sampled : slice
        The rows that are sampled for the exposure and compared with those of the last picture.
    stride : int
        Every so many of their pixels are sampled.
    reach : int
        The coarse distance, pixels.
    slopes : float
        The sharpness up to which there is no outline; 0 where that cannot be told.
    """

    lines: slice
    below: tuple[slice, slice, slice]
    sampled: slice
    stride: int
    reach: int
    slopes: float


@lru_cache(maxsize=16)
def _look(shape: tuple[int, int, int]) -> _Look:
    height, width = shape[:2]
    # At least 4, so that it is coarse beside 2.
    reach = min(max(round(COARSE_SHARE * max(height, width)), 4), min(height, width) - 2)
    room = height - reach
    count = min(max(PIXELS // width, LEAST_ROWS), MOST_ROWS, room)
    step = room // count
    first = (room - step * (count - 1) - 1) // 2
    end = first + step * (count - 1) + 1
    # Out of step with the rows, or the same columns would be sampled in each.
    stride = -(-(-(-count // SECOND) * width) // SAMPLE)
    while math.gcd(stride, width) > 1:
        stride += 1
    return _Look(
        slice(first, end, step),
        tuple(slice(first + d, end + d, step) for d in (1, 2, reach)),
        slice(first, end, SECOND * step),
        stride,
        reach,
        SLOPES * math.sqrt(3 / (reach**2 - 1)) if reach >= LEAST_SLOPES_REACH else 0.0,
    )


def _measure(view: np.ndarray) -> Measures:
    look = _look(view.shape)
    return Measures(*_light(_sample(view, look)), *_detail(view, look))


def _sample(view: np.ndarray, look: _Look) -> bytes:
    """
    Grey levels of some pixels.

    Of whole rows, and then some of them: OpenCV copies what is not in one piece before it turns it
    into grey, which costs more than the pixels that are thrown away.
    """
    return cv2.cvtColor(view[look.sampled], cv2.COLOR_BGR2GRAY).tobytes()[:: look.stride]


def _light(sample: bytes) -> tuple[float, float, float, float]:
    """Shadows, highlights, clipped and dark share."""
    total = len(sample)
    up_to = np.bincount(np.frombuffer(sample, np.uint8), minlength=256).cumsum()
    shadows, highlights = up_to.searchsorted((TAIL * total, (1 - TAIL) * total)).tolist()
    clipped_share, dark_share = 1 - int(up_to[CLIPPED - 1]) / total, int(up_to[DARK]) / total
    return float(shadows), float(highlights), clipped_share, dark_share


def _detail(view: np.ndarray, look: _Look) -> tuple[float, float]:
    """Sharpness and contrast."""
    lines, reach = view[look.lines], look.reach
    below, second, far = look.below
    # Over the three colours, which saves turning the neighbours into grey.
    one = _unlike(lines[:, 1:], lines[:, :-1])
    along = _unlike(lines[:, reach:], lines[:, :-reach]) - one
    along_fine = _unlike(lines[:, 2:], lines[:, :-2]) - one
    one = _unlike(lines, view[below])
    across = _unlike(lines, view[far]) - one
    across_fine = _unlike(lines, view[second]) - one
    together = max(along, 0.0) + max(across, 0.0)
    if together == 0:
        return 0.0, 0.0
    least = LEAST_DIRECTION * together
    sharpness = math.inf
    if along >= least:
        sharpness = along_fine / along
    if across >= least:
        sharpness = min(sharpness, across_fine / across)
    return math.sqrt(max(sharpness, 0.0)), math.sqrt(together / 2)


def _unlike(one: np.ndarray, other: np.ndarray) -> float:
    """
    Mean square difference of two pictures.

    By way of the peak signal-to-noise ratio, 10 log10(255^2 / mean square): of OpenCV's functions
    that square differences it is the one whose call costs least, `norm` twice as much.
    """
    return 65025.0 * 10.0 ** (-0.1 * cv2.PSNR(one, other))
