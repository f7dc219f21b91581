"""
Choose: which patch scorer suits a part, from its good pictures alone.

Good pictures are held out in turn, defects are drawn on them, and each candidate is asked to tell
the two apart. What the drawn defects look like is no defect of any set; what counts is which
candidate stays quiet on good parts it has not seen and still answers to a change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edge_app.encoder import Encoder
from edge_app.enrol import Encodings, usable_maps
from edge_app.held_out import folds
from edge_app.learn_neighbours import ScorerSettings, held_out_with
from edge_app.learn_patches import (
    MOST_BYTES,
    PatchSettings,
    average_map,
    default_settings,
    fit_component,
    fitting,
    floats_of,
    hold_out,
    smoothing_of,
    standard,
)
from edge_app.patches import IMAGE_SCORES, KINDS, Component, PatchScorer, finest_grid, image_scores
from tools.drawn_defects import draw_defect

# Good pictures that take part, and pictures with a drawn defect wanted, at most and at least.
MOST_PICTURES, LEAST_DRAWN = 240, 150
# Drawn again so often where a defect misses the part.
TRIES = 8
# The share of a drawn defect that must lie on the part.
ON_PART = 0.3
RESAMPLES = 400
# A candidate replaces the default only if it was better in this share of the resamples: less may
# be chance, and drawn defects are not the real ones.
SURE = 0.95
# and by so much. Differences up to 0.015 pointed the wrong way on the screws.
LEAST_GAIN = 0.02
# Of the bytes, where `gauss` components stand beside those of another kind.
GAUSS_SHARE = 0.5
# Scoring may take this share of the encoder's measured time, of so many calls of each.
MOST_SCORE_SHARE, TIMED_CALLS = 0.5, 30


@dataclass(frozen=True)
class Trial:
    """
    One candidate and how it did.

    Attributes
    ----------
    name : str
    settings : PatchSettings or ScorerSettings or str
        A string where no scorer was tried but an alignment's recipe.
    drawn_auroc : float
        Held-out good pictures against those with a drawn defect, 0 to 1.
    low, high : float
        Its 95 % interval, by resampling the pictures.
    better : float
        Share of the resamples in which it beats the default, ties half.
    bytes : int
        Of its reference in memory; 0 where it was not measured, because it could not be chosen.
    chosen : bool
    note : str
        Why it could not be chosen, whatever its scores; empty otherwise.
    """

    name: str
    settings: PatchSettings | ScorerSettings | str
    drawn_auroc: float
    low: float
    high: float
    better: float
    bytes: int
    chosen: bool = False
    note: str = ""


def draw_on(
    pictures_rgb: Sequence[np.ndarray], part: np.ndarray, seed: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """
    Draw defects on the part.

    Parameters
    ----------
    pictures_rgb : sequence of ndarray of uint8, shape (H, W, 3)
    part : ndarray of float32, shape (H, W)
        Above 0.5 where the part is.
    seed : int

    Returns
    -------
    drawn_rgb : list of ndarray of uint8, shape (H, W, 3)
    drawn_on : ndarray of int
        Which picture each was drawn on.
    """
    rng = np.random.default_rng(seed)
    on_part = part > 0.5
    each = max(1, -(-LEAST_DRAWN // len(pictures_rgb)))
    drawn, drawn_on = [], []
    for row, picture in enumerate(pictures_rgb):
        for _ in range(each):
            for _ in range(TRIES):
                defective, mask = draw_defect(picture, rng)
                if (mask & on_part).sum() >= ON_PART * mask.sum():
                    drawn.append(defective)
                    drawn_on.append(row)
                    break
    return drawn, np.array(drawn_on, int)


def choose_scorer(
    pictures_rgb: Sequence[np.ndarray],
    encodings: Encodings,
    groups: np.ndarray,
    encoder: Encoder,
    weigh: Callable[[tuple[int, int]], np.ndarray],
    most_bytes: int = MOST_BYTES,
    seed: int = 0,
    progress: Callable[[str], None] = lambda what: None,
) -> tuple[PatchSettings | ScorerSettings, list[Trial]]:
    """
    Try the candidates and choose.

    Parameters
    ----------
    pictures_rgb : sequence of ndarray of uint8, shape (*size, 3)
        Aligned good pictures.
    encodings : Encodings
        Of these.
    groups : ndarray of int, shape (n,)
        Near-duplicates; held out together.
    encoder : Encoder
    weigh : callable
        Gives the weight of each place of a grid (h, w), 0 to 1.
    most_bytes : int
        Of a patch scorer's models in memory.
    seed : int
    progress : callable
        Called with the name of each step.

    Returns
    -------
    settings : PatchSettings or ScorerSettings
    trials : list of Trial
        Best first; empty where no defect could be drawn on the part, and the default is taken.
    """
    maps = usable_maps(encoder.map_shapes)
    default = default_settings(encoder.map_shapes, maps, most_bytes)
    rows = np.unique(
        np.linspace(0, len(encodings) - 1, min(len(encodings), MOST_PICTURES)).astype(int)
    )
    some = [pictures_rgb[row] for row in rows]
    progress("drawing defects")
    size = some[0].shape[:2]
    drawn_rgb, drawn_on = draw_on(some, weigh(size), seed)
    if not drawn_rgb:
        return default, []
    drawn = Encodings(drawn_rgb, encoder)
    held_out, _ = folds(groups[rows])
    bench = Bench(encodings, rows, drawn, drawn_on, held_out, encoder, weigh)
    scores: dict[str, tuple[PatchSettings | ScorerSettings, np.ndarray, np.ndarray]] = {}
    for name, settings in _candidates(encoder.map_shapes, most_bytes):
        progress(name)
        for kind, good, bad in bench.scores(settings):
            full = f"{name}, {kind}" if kind else name
            chosen = replace(settings, image_score=kind) if kind else settings
            scores[full] = (chosen, good, bad)
    trials = decide(scores, default, bench.cost)
    return next(trial.settings for trial in trials if trial.chosen), trials


def _candidates(
    map_shapes: Sequence[tuple[int, ...]], whole: int
) -> Iterator[tuple[str, PatchSettings | ScorerSettings]]:
    """
    Name and settings of each candidate, the default first.

    All use every map: drawn defects favour the finest, and cannot tell how deep real ones show.
    """
    maps = usable_maps(map_shapes)
    default = default_settings(map_shapes, maps, whole)
    families = {kind: fitting(kind, maps, map_shapes, whole) for kind in KINDS}
    centred = {
        kind: fitting(kind, maps, map_shapes, whole, centred=True) for kind in ("gauss", "coreset")
    }
    # Beside another family there is less room.
    gauss = fitting("gauss", maps, map_shapes, int(GAUSS_SHARE * whole))

    def settings(components: Sequence[Component]) -> PatchSettings:
        smoothing = smoothing_of(components, map_shapes)
        return PatchSettings(tuple(components), smoothing=smoothing, most_bytes=whole)

    yield "place", default
    for kind in ("gauss", "coreset", "density"):
        yield kind, settings(families[kind])
    for kind, components in centred.items():
        yield f"{kind} centred", settings(components)
    for kind in ("place", "coreset", "density"):
        yield f"gauss and {kind}", settings([*gauss, *families[kind]])
    yield "place and coreset", settings([*families["place"], *families["coreset"]])
    yield "pooled lof", ScorerSettings("lof")
    yield "pooled knn", ScorerSettings("knn")


class Bench:
    """Held-out scores of candidates; what several of them share is computed once."""

    def __init__(
        self,
        encodings: Encodings,
        rows: np.ndarray,
        drawn: Encodings,
        drawn_on: np.ndarray,
        held_out: Sequence[np.ndarray],
        encoder: Encoder,
        weigh: Callable[[tuple[int, int]], np.ndarray],
    ) -> None:
        self._encodings, self._rows = encodings, rows
        self._drawn, self._drawn_on, self._folds = drawn, drawn_on, held_out
        self.encoder, self._weigh = encoder, weigh
        self._known: dict[tuple[Component, int, float], tuple[np.ndarray, np.ndarray]] = {}

    def scores(
        self, settings: PatchSettings | ScorerSettings
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Image score (where there is a choice), scores of good and of drawn-on pictures."""
        if isinstance(settings, ScorerSettings):
            if len(self._rows) > settings.k + 1:
                yield "", *self._pooled(settings)
            return
        components = settings.components
        shapes = self.encoder.map_shapes
        distances = [
            self._distances(component, floats, settings.trim)
            for component, floats in zip(components, floats_of(settings, shapes), strict=True)
        ]
        standards = [
            standard(component, good)
            for component, (good, _) in zip(components, distances, strict=True)
        ]
        weight = self._weigh(finest_grid(components, shapes))
        good, bad = (
            average_map(components, part, standards, weight, settings.smoothing)
            for part in zip(*distances, strict=True)
        )
        for kind in IMAGE_SCORES:
            yield kind, image_scores(good, kind), image_scores(bad, kind)

    def _distances(
        self, component: Component, floats: int, trim: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Held-out maps of the good pictures and of those with a drawn defect."""
        key = (component, floats, trim)
        if key not in self._known:
            projection = self._encodings.learn_features(component, self._rows)
            self._known[key] = hold_out(
                component,
                self._encodings.features(component, projection, self._rows),
                self._folds,
                floats,
                self._drawn.features(component, projection),
                self._drawn_on,
                trim=trim,
            )
        return self._known[key]

    def _pooled(self, settings: ScorerSettings) -> tuple[np.ndarray, np.ndarray]:
        embeddings = self._encodings.embeddings[self._rows]
        return held_out_with(
            embeddings, settings, self._folds, self._drawn.embeddings, self._drawn_on
        )

    def cost(self, settings: PatchSettings) -> tuple[float, int]:
        """
        Scoring over the encoder's time, measured in turns on a grey picture; and its bytes.

        The shortest of each counts: what other work on the machine adds to the rest must not decide
        which scorer is chosen.
        """
        shapes = self.encoder.map_shapes
        arrays: dict[str, np.ndarray] = {}
        for index, (component, floats) in enumerate(
            zip(settings.components, floats_of(settings, shapes), strict=True)
        ):
            projection = self._encodings.learn_features(component, self._rows)
            good = self._encodings.features(component, projection, self._rows[:40])
            own = {
                "axes": projection.axes,
                "offset": projection.offset,
                "centre": np.zeros((1, 1), np.float32),
                "spread": np.ones((1, 1), np.float32),
                **fit_component(component, good, floats),
            }
            arrays |= {f"p{index}_{name}": array for name, array in own.items()}
        weight = self._weigh(finest_grid(settings.components, shapes))
        scorer = PatchScorer(
            settings.components, arrays, weight, settings.image_score, settings.smoothing
        )
        picture = np.full((*self.encoder.size, 3), 128, np.uint8)
        encode_s, score_s = [], []
        for _ in range(TIMED_CALLS):
            started = time.perf_counter()
            encoding = self.encoder.encode(picture)
            between = time.perf_counter()
            scorer.score(scorer.anomaly_map(encoding.maps))
            encode_s.append(between - started)
            score_s.append(time.perf_counter() - between)
        used = sum(array.size * 4 for array in arrays.values())
        return min(score_s) / min(encode_s), used


def decide(
    scores: Mapping[str, tuple[PatchSettings | ScorerSettings | str, np.ndarray, np.ndarray]],
    default: PatchSettings | str,
    cost: Callable[[PatchSettings], tuple[float, int]] | None = None,
) -> list[Trial]:
    """
    The default, unless another candidate is better by more than chance and cheap enough.

    Parameters
    ----------
    scores : mapping of str to (settings, good, bad)
        Of each candidate by its name: its settings, and the scores, shape (n,) and (m,), that it
        gave the good pictures and those with a drawn defect. All candidates scored the same ones.
    default : PatchSettings or str
        Settings of one of them.
    cost : callable, optional
        Gives the time of scoring over that of the encoder, and the reference's bytes. Asked only
        for patch scorers that would be chosen; without it none is too slow.

    Returns
    -------
    trials : list of Trial
        Highest AUROC first, of equal ones the default first. Exactly one is chosen.
    """
    names = list(scores)
    settings, goods, bads = zip(*scores.values(), strict=True)
    count, drawn = len(goods[0]), len(bads[0])
    rng = np.random.default_rng(0)
    draws = [
        (rng.integers(0, count, count), rng.integers(0, drawn, drawn)) for _ in range(RESAMPLES)
    ]
    whole, resampled = np.zeros(len(names)), np.zeros((len(names), RESAMPLES))
    notes, used = {}, {}
    for row, (good, bad) in enumerate(zip(goods, bads, strict=True)):
        if not (np.isfinite(good).all() and np.isfinite(bad).all()):
            # NaN sorts above every number, so a drawn defect would count as found.
            notes[row] = "its scores are not finite"
            continue
        whole[row] = _auroc(good, bad)
        resampled[row] = [_auroc(good[one], bad[two]) for one, two in draws]
    usual = settings.index(default)
    low, high = np.quantile(resampled, (0.025, 0.975), axis=1)
    gain = resampled - resampled[usual]
    better = (gain > 0).mean(axis=1) + 0.5 * (gain == 0).mean(axis=1)
    order = sorted(range(len(names)), key=lambda row: (-whole[row], row != usual))
    chosen = usual
    for row in order[: order.index(usual)]:
        if better[row] < SURE or whole[row] - whole[usual] < LEAST_GAIN:
            continue
        if cost is not None and isinstance(settings[row], PatchSettings):
            ratio, used[row] = cost(settings[row])
            if ratio > MOST_SCORE_SHARE:
                notes[row] = f"too slow: scoring takes {ratio:.2f} of the encoder's time"
                continue
        chosen = row
        break
    return [
        Trial(
            names[row],
            settings[row],
            float(whole[row]),
            float(low[row]),
            float(high[row]),
            float(better[row]),
            used.get(row, 0),
            row == chosen,
            notes.get(row, ""),
        )
        for row in order
    ]


def _auroc(good: np.ndarray, bad: np.ndarray) -> float:
    """Share of pairs in which the bad one scores higher, ties half."""
    ordered = np.sort(good)
    below = np.searchsorted(ordered, bad, side="left")
    equal = np.searchsorted(ordered, bad, side="right") - below
    return float((below + 0.5 * equal).sum() / (len(good) * len(bad)))


def sentence(trials: Sequence[Trial]) -> str:
    """What won, by how much and how sure that is."""
    chosen, best = next(trial for trial in trials if trial.chosen), trials[0]
    text = (
        f"chosen: {chosen.name} (drawn-defect AUROC {chosen.drawn_auroc:.3f}, "
        f"{chosen.low:.3f} to {chosen.high:.3f})"
    )
    # Only the default is chosen without beating it.
    if chosen.better != 0.5:
        return f"{text}; it beat the default in {chosen.better:.1%} of resamples"
    if best is chosen:
        return f"{text}; the default, and nothing did better"
    why = f"beat it in only {best.better:.1%} of resamples"
    if best.note:
        why = f"is {best.note}"
    elif best.better >= SURE:
        why = f"{LEAST_GAIN} more is wanted, drawn defects not being the real ones"
    return f"{text}; the default: {best.name} had {best.drawn_auroc:.3f}, but {why}"


def table(trials: Sequence[Trial], most: int = 12) -> str:
    """The best trials and the chosen one as text."""
    shown = [trial for row, trial in enumerate(trials) if row < most or trial.chosen]
    lines = ["   drawn-defect AUROC   95 % interval    what was tried"]
    for trial in shown:
        mark = "->" if trial.chosen else "  "
        note = f" ({trial.note})" if trial.note else ""
        lines.append(
            f"{mark} {trial.drawn_auroc:18.4f}   {trial.low:.3f} to {trial.high:.3f}   "
            f"{trial.name}{note}"
        )
    return "\n".join(lines)
