"""
One run of a comparison: a method fitted on a set with a seed, judged on the test split, and kept.

Every run has a folder of its own: what the fitting must remember to go on after a stop, the result,
the maps that the page shows, and the bundle of a method that has one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge_app.config import load_config
from edge_app.errors import InputError
from edge_app.inspector import SeeingInspector
from edge_app.records import Frame
from edge_app.sources.folder import printable, read_picture
from tools.inspection_set import InspectionSet, TestPicture, read_mask
from tools.methods import Aligners, Fitted, Method, Part, View

RESULT, PICTURES = "result.json", "pictures.npz"
# Pictures whose scores are timed, after one that is not.
MOST_TIMED = 30
# A map that takes longer than this, seconds, is drawn on so many pictures only, spread evenly over
# the split: a gradient descent in the picture on all of them would take hours.
SLOW_MAP_S, MOST_SLOW = 0.25, 60
# Defects whose heatmaps stand side by side in the page, and their side there, pixels.
MOST_SHOWN, SHOWN_SIDE = 6, 160
# Pictures that a bundle judges again, and how far its scores may stray, relatively.
PROVEN, MOST_STRAY = 8, 1e-3


@dataclass(frozen=True)
class MapFigures:
    """
    How well a kind of heatmap shows where the defects are.

    Attributes
    ----------
    pixel_auroc, au_pro : float
    ms : float
        Median milliseconds for one.
    pictures : int
        On how many it was measured.
    """

    pixel_auroc: float
    au_pro: float
    ms: float
    pictures: int


@dataclass(frozen=True)
class Outcome:
    """
    One run: a method fitted on a set with a seed, and judged.

    Attributes
    ----------
    data, alignment, method : str
    data_dir : str
        Where the set lay.
    seed : int
    settings : dict
        What the run depends on.
    scores : dict of str to list of float
        For each way to a score, of every test picture in the set's order.
    is_anomaly : list of bool
    image_auroc : dict of str to float
    maps : dict of str to MapFigures
    score_ms : float
        Median milliseconds from the decoded picture to the score, on one thread.
    parameters, size_bytes : int
    fit_s : float
        Seconds that fitting took, all its goes together.
    bundle : str or None
        Where the bundle lies, for a method that has one.
    bundle_stray : float or None
        Largest difference of its scores to the method's own, relative.
    notes : dict
    judge_s : float
        Seconds that scores, maps and the bundle's proof took; 0 if it was not kept yet.
    """

    data: str
    alignment: str
    method: str
    data_dir: str
    seed: int
    settings: dict[str, Any]
    scores: dict[str, list[float]]
    is_anomaly: list[bool]
    image_auroc: dict[str, float]
    maps: dict[str, MapFigures]
    score_ms: float
    parameters: int
    size_bytes: int
    fit_s: float
    bundle: str | None
    bundle_stray: float | None
    notes: dict[str, Any] = field(default_factory=dict)
    judge_s: float = 0.0


@dataclass(frozen=True)
class Run:
    """What is to be done: a method on a part with a seed, and where it is kept."""

    part: Part
    alignment: str
    inspection_set: InspectionSet
    method: Method
    seed: int
    folder: Path
    settings: dict[str, Any]


def done(one: Run) -> Outcome | None:
    """
    What a run came to when it was done before; None if it was not.

    Raises
    ------
    InputError
        If it was done with other settings.
    """
    path = one.folder / RESULT
    if not path.exists():
        return None
    outcome = read_outcome(path)
    for key, wanted in one.settings.items():
        if outcome.settings.get(key) != wanted:
            raise InputError(
                f"{printable(path)}: holds a result of other {key}, wanted that of this command: "
                "name another --out"
            )
    return outcome


def read_outcome(path: Path) -> Outcome:
    """
    What a run came to, as it is kept.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        maps = {kind: MapFigures(**figures) for kind, figures in content.pop("maps").items()}
        return Outcome(maps=maps, **content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{printable(path)}: cannot be read: {error}; remove it") from None


def kept(folder: Path) -> list[Outcome]:
    """Everything that was ever compared into a folder, of methods that there are."""
    from tools.methods.registry import METHODS

    order = list(METHODS)
    paths = [path for path in folder.glob(f"*/*/*/seed_*/{RESULT}") if path.parts[-3] in order]
    paths.sort(key=lambda path: (*path.parts[-5:-3], order.index(path.parts[-3]), path.parts[-2]))
    return [read_outcome(path) for path in paths]


def carry_out(one: Run, progress: bool = True) -> Outcome:
    """Fit, judge, and keep what came of it; `progress`: whether fitting draws bars on stderr."""
    one.folder.mkdir(parents=True, exist_ok=True)
    state = one.folder / "fitted"
    state.mkdir(exist_ok=True)
    clock = one.folder / "fit_s"
    fit_s = _read_seconds(clock)
    started_s = time.monotonic()
    try:
        fitted = one.method.fit(one.part, one.seed, state, progress)
    finally:
        # Stopped in between, the next go adds to it.
        fit_s += time.monotonic() - started_s
        _write(clock, str(fit_s))
    outcome = judge(one, fitted, fit_s)
    text = json.dumps(asdict(outcome), indent=1, allow_nan=False) + "\n"
    _write(one.folder / RESULT, text)
    clock.unlink()
    return outcome


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _read_seconds(path: Path) -> float:
    """What earlier goes took; 0 where there were none, or their number was lost."""
    try:
        return float(path.read_text())
    except (FileNotFoundError, ValueError):
        return 0.0


def judge(one: Run, fitted: Fitted, fit_s: float) -> Outcome:
    """A fitted method on the test split; also draws the maps that the page shows."""
    from tools.metrics import image_auroc

    started_s = time.monotonic()
    aligners = one.part.good[0].aligners
    test = one.inspection_set.test
    scores: dict[str, list[float]] = {name: [] for name in one.method.score_names}
    for picture in _bar(test, f"{one.method.name} judging"):
        for name, score in fitted.scores(View(picture.path, aligners)).items():
            scores[name].append(float(score))
    is_anomaly = [picture.is_anomaly for picture in test]
    for name, values in scores.items():
        if not np.isfinite(values).all():
            raise InputError(f"{one.method.name}: the score {name!r} of a picture is no number")
    bundle, stray = _bundle(one, fitted, scores)
    return Outcome(
        one.part.name,
        one.alignment,
        one.method.name,
        printable(one.part.data_dir.resolve()),
        one.seed,
        one.settings,
        scores,
        is_anomaly,
        {name: image_auroc(values, is_anomaly) for name, values in scores.items()},
        _map_figures(one, fitted, aligners),
        _score_ms(fitted, test, aligners),
        int(fitted.parameters),
        int(fitted.size_bytes),
        fit_s,
        bundle,
        stray,
        fitted.notes,
        time.monotonic() - started_s,
    )


def _score_ms(fitted: Fitted, test: Sequence[TestPicture], aligners: Aligners) -> float:
    """Milliseconds from the decoded picture to its score, the alignment among it as on a device."""
    from threadpoolctl import threadpool_limits

    took_ms = []
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with threadpool_limits(1):
            for picture in _spread(test, MOST_TIMED + 1):
                view = View(picture.path, aligners)
                _ = view.frame_bgr  # decoding is no part of it
                started = time.perf_counter()
                fitted.scores(view)
                took_ms.append((time.perf_counter() - started) * 1e3)
    finally:
        cv2.setNumThreads(threads)
    return float(np.median(took_ms[1:] or took_ms))


def _map_figures(one: Run, fitted: Fitted, aligners: Aligners) -> dict[str, MapFigures]:
    from tools.metrics import au_pro, pixel_auroc

    # Good pictures count: red where nothing is wrong is a fault of the map too.
    masked = [p for p in one.inspection_set.test if p.mask_path or not p.is_anomaly]
    shown = shown_defects(one.inspection_set)
    drawn: dict[str, np.ndarray] = {}
    figures = {}
    for kind in fitted.maps:
        pictures, took_s = masked, []
        maps, masks = [], []
        if any(picture.mask_path for picture in masked):
            fitted.map(View(masked[0].path, aligners), kind)  # the first one builds graphs
            started = time.perf_counter()
            fitted.map(View(masked[0].path, aligners), kind)
            if time.perf_counter() - started > SLOW_MAP_S:
                pictures = _spread(masked, MOST_SLOW)
            for picture in _bar(pictures, f"{one.method.name}, {kind} maps"):
                view = View(picture.path, aligners)
                _ = view.frame_bgr
                started = time.perf_counter()
                maps.append(fitted.map(view, kind))
                took_s.append(time.perf_counter() - started)
                shape = view.frame_bgr.shape[:2]
                masks.append(
                    read_mask(picture.mask_path, shape)
                    if picture.mask_path
                    else np.zeros(shape, bool)
                )
            figures[kind] = MapFigures(
                pixel_auroc(maps, masks),
                au_pro(maps, masks),
                float(np.median(took_s)) * 1e3,
                len(pictures),
            )
        # One scale for all that is shown, from what the good pictures have.
        good = [fitted.map(View(p.path, aligners), kind) for p in _spread(_good(one), 4)]
        low = float(np.quantile(np.concatenate([m.ravel() for m in good]), 0.99))
        for number, picture in enumerate(shown):
            anomaly = fitted.map(View(picture.path, aligners), kind)
            drawn[f"{kind}/{number}"] = _small(anomaly)
        drawn[f"{kind}/low"] = np.float32(low)
    if drawn:
        np.savez_compressed(one.folder / PICTURES, **drawn)
    return figures


def shown_defects(inspection_set: InspectionSet) -> list[TestPicture]:
    """Defects for the page: of each kind in turn, as many as fit."""
    by_kind: dict[str, list[TestPicture]] = {}
    for picture in inspection_set.test:
        if picture.is_anomaly:
            by_kind.setdefault(picture.defect, []).append(picture)
    shown = []
    for turn in range(MOST_SHOWN):
        for pictures in by_kind.values():
            if turn < len(pictures) and len(shown) < MOST_SHOWN:
                shown.append(pictures[turn])
    return shown


def _good(one: Run) -> list[TestPicture]:
    return [picture for picture in one.inspection_set.test if not picture.is_anomaly]


def _small(anomaly: np.ndarray) -> np.ndarray:
    height, width = anomaly.shape
    scale = min(1.0, SHOWN_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(anomaly, size, interpolation=cv2.INTER_AREA).astype(np.float32)


def _bundle(
    one: Run, fitted: Fitted, scores: dict[str, list[float]]
) -> tuple[str | None, float | None]:
    """Write the method's bundle, if it has one, and see whether it gives the same scores."""
    path = one.folder / "bundle"
    if not path.exists():
        try:
            fitted.write_bundle(path)
        except NotImplementedError:
            return None, None
    from edge_app.bundle import load_bundle
    from tools.evaluate import align_anyway

    inspector = SeeingInspector(load_bundle(path), load_config().decision, "single", heatmaps=False)
    name = fitted.notes.get("bundle_score", one.method.score_names[0])
    own = dict(zip((p.path for p in one.inspection_set.test), scores[name], strict=True))
    strays = []
    for picture in _spread(one.inspection_set.test, PROVEN):
        frame = Frame(0, str(picture.path), read_picture(picture.path))
        seen = inspector.look(frame, align_anyway(inspector, frame))
        strays.append(abs(seen.score - own[picture.path]) / max(abs(own[picture.path]), 1e-6))
    worst = max(strays)
    if worst > MOST_STRAY:
        raise InputError(
            f"{one.method.name}: the bundle's scores stray by {worst:.2g} from the method's, "
            f"wanted at most {MOST_STRAY:g}"
        )
    return printable(path), worst


def _spread(rows: Sequence[Any], count: int) -> list[Any]:
    """At most so many, evenly spread."""
    if len(rows) <= count:
        return list(rows)
    return [rows[index] for index in np.linspace(0, len(rows) - 1, count).astype(int)]


def _bar(rows: Sequence[Any], what: str) -> Any:
    from tqdm import tqdm

    return tqdm(rows, desc=what, unit="picture", delay=2, leave=False)
