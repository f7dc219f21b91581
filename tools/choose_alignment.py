"""
Choose the alignment: which recipe suits a part, from its good pictures alone.

How well the good pictures agree says where the part lies, not whether a defect shows there. So
defects are drawn on whole frames, before any alignment, and each recipe is asked to tell them from
held-out good frames: with what it misplaces, loses, or leaves too small to see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import cv2
import numpy as np

from edge_app.align import RECIPES, Aligned, Aligner, Alignment, on_frame, part_weight
from edge_app.encoder import Encoder
from edge_app.enrol import Encodings, choose_alignment, usable_maps
from edge_app.errors import InputError
from edge_app.foreground import halved
from edge_app.held_out import LEAST_LEFT, folds, near_duplicate_groups, thumbnail
from edge_app.learn_align import LearntAlignment
from edge_app.learn_patches import default_settings
from edge_app.preprocess import Preprocessing, unusable
from edge_app.records import Frame
from tools.choose import LEAST_GAIN, ON_PART, TRIES, Bench, Trial, decide, sentence
from tools.drawn_defects import draw_defect

# Fewer held-out pictures say too little, whatever their resamples.
LEAST_PICTURES = 8
# Good frames that take part at most, and frames with a drawn defect wanted.
MOST_PICTURES, DRAWN = 60, 120
# Where another recipe than the default leads by enough, as many defects again are drawn before it
# is decided: of brackets at rest, one draw in six favoured `centre` over `pose` in all resamples,
# the five others did not.
DRAWS = 2
# Beyond this share of the part a drawn defect leaves too little of it to be found by: that is an
# empty station or another part, and no recipe shall be judged by it.
MOST_COVERED = 0.5
# The least side of a picture that `draw_defect` takes, pixels.
LEAST_BOX = 16

EncoderOf = Callable[[float], tuple[Encoder, int]]


@dataclass(frozen=True)
class AlignmentChoice:
    """
    The alignment chosen, and the recipes that were tried for it.

    Attributes
    ----------
    learnt : LearntAlignment
    trials : list of Trial
        One for each recipe, its `settings` the recipe's name, the best first; empty where there
        was nothing to try.
    good, drawn : int
        Frames that took part.
    unaligned : dict of str to (int, int)
        How many of the good and of the drawn-on frames each recipe could not align.
    """

    learnt: LearntAlignment
    trials: list[Trial] = field(default_factory=list)
    good: int = 0
    drawn: int = 0
    unaligned: dict[str, tuple[int, int]] = field(default_factory=dict)

    def sentence(self) -> str:
        """What won, by how much and how sure that is."""
        return f"alignment {sentence(self.trials)}"

    def figures(self) -> str:
        """How each recipe did, the best first."""
        figures = ", ".join(f"{trial.name} {trial.drawn_auroc:.3f}" for trial in self.trials)
        return f"AUROC on drawn defects: {figures}"

    def table(self) -> str:
        """The recipes as text, the chosen one marked."""
        lines = ["   recipe   drawn-defect AUROC   95 % interval    agreement   not aligned"]
        for trial in self.trials:
            mark = "->" if trial.chosen else "  "
            good, drawn = self.unaligned[trial.name]
            note = f"   ({trial.note})" if trial.note else ""
            lines.append(
                f"{mark} {trial.name:<6}   {trial.drawn_auroc:18.4f}   {trial.low:.3f} to "
                f"{trial.high:.3f}   {self._agreement(trial.name):9.3f}   {good} of {self.good} "
                f"good, {drawn} of {self.drawn} drawn{note}"
            )
        return "\n".join(lines)

    def section(self) -> list[dict[str, Any]]:
        """The trials as the manifest keeps them, ready for JSON."""
        return [
            {
                "recipe": trial.name,
                "drawn_auroc": trial.drawn_auroc,
                "low": trial.low,
                "high": trial.high,
                "agreement": self._agreement(trial.name),
                "unaligned": list(self.unaligned[trial.name]),
                "note": trial.note,
            }
            for trial in self.trials
        ]

    def _agreement(self, recipe: str) -> float:
        return float(self.learnt.agreement[recipe]["median"])


def choose_recipe(
    frames: Sequence[Frame],
    region: tuple[float, float, float, float] | None,
    learnt: LearntAlignment,
    encoder_of: EncoderOf,
    empty_frames: Sequence[Frame] = (),
    seed: int = 0,
    progress: Callable[[str], None] = lambda what: None,
) -> AlignmentChoice:
    """
    Try the recipes that can be learnt, and choose.

    The recipe that the good pictures agree on stays, unless another is better by more than chance
    and by enough (`choose.SURE`, `choose.LEAST_GAIN`). A frame that a recipe cannot align counts
    against it: a good one as the highest score, one with a defect as the lowest.

    Parameters
    ----------
    frames : sequence of Frame
        Good parts.
    region : tuple of float or None
    learnt : LearntAlignment
        What these frames agree on.
    encoder_of : callable
        Gives the encoder for crops of an aspect ratio (width over height), and the bytes that a
        reference may take beside it.
    empty_frames : sequence of Frame
        The station without a part; a recipe that finds one there is not tried.
    seed : int
        Of the defects.
    progress : callable
        Called with the name of each step, once for each frame or picture in it.
    """
    good = _different(frames, region)
    if len(good) < LEAST_PICTURES:
        return AlignmentChoice(learnt)
    candidates = _learnable(frames, region, learnt, empty_frames)
    if len(candidates) < 2:
        return AlignmentChoice(learnt)
    encoders = {name: encoder_of(one.alignment.aspect or 1.0) for name, one in candidates.items()}
    aligners = {
        name: Aligner(one.alignment, encoders[name][0].size, region)
        for name, one in candidates.items()
    }
    crops, good = _good_crops(good, aligners, progress)
    # The best-located crops show best which pictures are nearly the same.
    best = [next(one[row] for one in crops.values() if one[row]) for row in range(len(good))]
    groups = near_duplicate_groups(np.stack([thumbnail(one.pixels_rgb) for one in best]))
    held_out, _ = folds(groups)
    for name in list(candidates):
        if not _enough(crops[name], held_out):
            del candidates[name]
    if learnt.alignment.recipe not in candidates or len(candidates) < 2:
        return AlignmentChoice(learnt)
    drawn: dict[str, list[Aligned | None]] = {name: [] for name in candidates}
    drawn_on = np.empty(0, int)
    for draw in range(DRAWS):
        more, more_on = _drawn_crops(good, crops, aligners, (seed, draw), progress)
        drawn_on = np.concatenate([drawn_on, more_on])
        if not len(drawn_on):
            return AlignmentChoice(learnt)
        scores = {}
        for name, one in candidates.items():
            drawn[name] += more[name]
            scores[name] = (
                name,
                *_scores(
                    one.alignment,
                    crops[name],
                    drawn[name],
                    drawn_on,
                    held_out,
                    encoders[name],
                    lambda name=name: progress(f"encoding, {name}"),
                ),
            )
        trials = decide(scores, learnt.alignment.recipe)
        usual = next(t for t in trials if t.name == learnt.alignment.recipe)
        if trials[0].drawn_auroc - usual.drawn_auroc < LEAST_GAIN:
            break
    chosen = next(trial for trial in trials if trial.chosen)
    unaligned = {name: (crops[name].count(None), drawn[name].count(None)) for name in candidates}
    if chosen.name != learnt.alignment.recipe:
        reason = (
            f"{chosen.name}: tells drawn defects from good parts better than "
            f"{learnt.alignment.recipe}, on which the pictures agree"
        )
        learnt = replace(candidates[chosen.name], agreement=learnt.agreement, reason=reason)
    return AlignmentChoice(learnt, trials, len(good), len(drawn_on), unaligned)


def _different(
    frames: Sequence[Frame], region: tuple[float, float, float, float] | None
) -> list[np.ndarray]:
    """Pictures of usable frames, none twice; evenly chosen where there are too many."""
    whole = Preprocessing((1, 1), region)
    pictures = {
        sha256(frame.frame_bgr.tobytes()).digest(): frame.frame_bgr
        for frame in frames
        if frame.frame_bgr is not None and unusable(frame.frame_bgr, whole) is None
    }
    rows = list(pictures.values())
    count = min(len(rows), MOST_PICTURES)
    return [rows[int(row)] for row in np.linspace(0, len(rows) - 1, count)] if rows else []


def _learnable(
    frames: Sequence[Frame],
    region: tuple[float, float, float, float] | None,
    learnt: LearntAlignment,
    empty_frames: Sequence[Frame],
) -> dict[str, LearntAlignment]:
    """Each recipe that can be learnt, the one that locates the part best first."""
    candidates = {}
    for recipe in reversed(RECIPES):
        if recipe == learnt.alignment.recipe:
            candidates[recipe] = learnt
        # What agreement could not try cannot be learnt.
        elif recipe in learnt.agreement:
            try:
                candidates[recipe] = choose_alignment(frames, region, recipe, empty_frames)
            except InputError:
                continue
    return candidates


def _aligned(aligner: Aligner, frame_bgr: np.ndarray) -> Aligned | None:
    """The crop that the device would judge; None where it would judge none."""
    aligned = aligner.align(frame_bgr)
    if aligned.empty or aligned.problem is not None or aligned.pixels_rgb is None:
        return None
    return aligned


def _good_crops(
    good: Sequence[np.ndarray], aligners: dict[str, Aligner], progress: Callable[[str], None]
) -> tuple[dict[str, list[Aligned | None]], Sequence[np.ndarray]]:
    """Each recipe's crops of the good frames, and the frames, no finer than any crop needs."""
    crops: dict[str, list[Aligned | None]] = {name: [] for name in aligners}
    for frame_bgr in good:
        progress("aligning")
        for name, aligner in aligners.items():
            crops[name].append(_aligned(aligner, frame_bgr))
    scales = [
        min(np.linalg.norm(one.matrix[:, axis]) for axis in (0, 1))
        for row in crops.values()
        for one in row
        if one
    ]
    # An aligner halves frames that far itself; drawing on finer ones would only take longer.
    steps = int(math.log2(max(min(scales, default=1.0), 1.0)))
    if not steps:
        return crops, good
    for _ in range(steps):
        good = [halved(frame_bgr) for frame_bgr in good]
    return _good_crops(good, aligners, progress)


def _enough(crops: Sequence[Aligned | None], held_out: Sequence[np.ndarray]) -> bool:
    """Whether so many good frames are aligned that each fold leaves some to learn from."""
    is_aligned = np.array([one is not None for one in crops])
    most_held = max(int(is_aligned[rows].sum()) for rows in held_out)
    return int(is_aligned.sum()) >= max(LEAST_PICTURES, most_held + LEAST_LEFT)


def _drawn_crops(
    good: Sequence[np.ndarray],
    crops: dict[str, list[Aligned | None]],
    aligners: dict[str, Aligner],
    seed: Sequence[int],
    progress: Callable[[str], None],
) -> tuple[dict[str, list[Aligned | None]], np.ndarray]:
    """
    Draw defects on the part as it lies in the frames, and align these.

    Returns
    -------
    drawn : dict of str to list of Aligned or None
        Of each recipe, from the same drawn-on frames.
    drawn_on : ndarray of int
        Which good frame each was drawn on.
    """
    rng = np.random.default_rng(seed)
    located = [
        next((n for n in crops if n != "none" and crops[n][row]), None) for row in range(len(good))
    ]
    # As many as are wanted in all, spread over the frames.
    share = np.cumsum([name is not None for name in located])
    wanted = np.diff(DRAWN * share // max(share[-1], 1), prepend=0)
    drawn: dict[str, list[Aligned | None]] = {name: [] for name in aligners}
    drawn_on: list[int] = []
    for row, name in enumerate(located):
        progress("drawing defects")
        if name is None:
            continue
        alignment, size = aligners[name].alignment, aligners[name].size
        weight = part_weight(alignment, alignment.template.shape)
        on_part = on_frame(weight, crops[name][row].matrix, good[row].shape, size) > 0.5
        for defective_bgr in _drawings(good[row], on_part, int(wanted[row]), rng):
            drawn_on.append(row)
            for tried, aligner in aligners.items():
                drawn[tried].append(_aligned(aligner, defective_bgr))
    return drawn, np.array(drawn_on, int)


def _drawings(
    frame_bgr: np.ndarray, on_part: np.ndarray, count: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Frames with a defect each, drawn at the part's scale, that lie on it and leave most of it."""
    x, y, width, height = cv2.boundingRect(on_part.astype(np.uint8))
    if min(width, height) < LEAST_BOX:
        return []
    box = np.s_[y : y + height, x : x + width]
    part_rgb, part = cv2.cvtColor(frame_bgr[box], cv2.COLOR_BGR2RGB), on_part[box]
    drawings = []
    for _ in range(count):
        for _ in range(TRIES):
            defective_rgb, mask = draw_defect(part_rgb, rng)
            on = int((mask & part).sum())
            if on >= ON_PART * mask.sum() and on <= MOST_COVERED * part.sum():
                defective_bgr = frame_bgr.copy()
                defective_bgr[box] = cv2.cvtColor(defective_rgb, cv2.COLOR_RGB2BGR)
                drawings.append(defective_bgr)
                break
    return drawings


def _scores(
    alignment: Alignment,
    crops: Sequence[Aligned | None],
    drawn: Sequence[Aligned | None],
    drawn_on: np.ndarray,
    held_out: Sequence[np.ndarray],
    encoder_and_bytes: tuple[Encoder, int],
    progress: Callable[[], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of all good and all drawn-on frames by the default scorer, held out."""
    encoder, most_bytes = encoder_and_bytes
    shapes = encoder.map_shapes
    settings = default_settings(shapes, usable_maps(shapes), most_bytes)
    rows = np.array([row for row, one in enumerate(crops) if one])
    probes = np.array([row for row, one in enumerate(drawn) if one], int)
    good, bad = np.full(len(crops), np.nan), np.full(len(drawn), np.nan)
    place = np.full(len(crops), -1)
    place[rows] = np.arange(len(rows))
    inner = [kept for fold in held_out if len(kept := place[fold][place[fold] >= 0])]
    fold_of = np.empty(len(crops), int)
    for number, fold in enumerate(held_out):
        fold_of[fold] = number
    # A defect on a frame that could not be aligned itself goes with another frame of its fold; of
    # a fold without any, nothing is learnt from, and it may go with any frame.
    stand_in = np.array(
        [
            place[row] if place[row] >= 0 else max(int(place[held_out[fold_of[row]]].max()), 0)
            for row in drawn_on[probes]
        ],
        int,
    )
    encodings = Encodings([crops[row].pixels_rgb for row in rows], encoder, progress)
    probed = Encodings([drawn[row].pixels_rgb for row in probes], encoder, progress)
    bench = Bench(
        encodings, np.arange(len(rows)), probed, stand_in, inner, encoder,
        lambda grid: part_weight(alignment, grid),
    )  # fmt: skip
    good[rows], bad[probes] = next(
        pair for kind, *pair in bench.scores(settings) if kind == settings.image_score
    )
    known = np.concatenate([good[rows], bad[probes]])
    good[place < 0] = known.max() + 1
    bad[np.setdiff1d(np.arange(len(drawn)), probes)] = known.min() - 1
    return good, bad
