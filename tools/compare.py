"""
Compare: every method of the articles, and our own default, on the same pictures.

Each method is fitted on the good pictures of a set, once for each seed where chance enters, and
judged on its test split by the same evaluation. What it came to is kept in --out, run by run:
called again the command goes on where it was, and what is done is only read. The table, the CSV and
the page are made anew each time from all that --out holds, whatever was asked for this time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge_app.align import Alignment
from edge_app.arguments import refuse_unwritable, seed
from edge_app.config import load_config
from edge_app.enrol import ALIGN_PICTURES, choose_alignment
from edge_app.errors import EdgeAppError, InputError
from edge_app.inspector import SeeingInspector
from edge_app.records import Frame
from edge_app.sources.folder import printable, read_picture
from tools.inspection_set import (
    InspectionSet,
    TestPicture,
    read_inspection_set,
    read_mask,
    refuse_one_sided,
)
from tools.methods import Aligners, Fitted, Method, Part, View

ALIGNMENTS = ("auto", "none")
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


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``compare``."""
    from tools.methods.registry import METHODS

    parser.description = __doc__
    parser.epilog = (
        "methods:\n"
        + "\n".join(f"  {name:18} {method.title}" for name, method in METHODS.items())
        + "\n\nexample:\n  python -m tools compare --data parts/nut parts/bracket "
        "--weights imagenet \\\n    --reference-data fashion_mnist --out compared"
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="sets in the layout of MVTec AD",
    )
    add("--methods", nargs="+", default=list(METHODS), metavar="M", help="which (default: all)")
    add("--seeds", type=seed, nargs="+", default=[0, 1, 2], metavar="N", help="(default: 0 1 2)")
    add(
        "--align",
        nargs="+",
        choices=ALIGNMENTS,
        default=["auto"],
        help="auto: every method sees the part as our alignment cuts it out, where the good "
        "pictures agree better so; none: the whole picture; both may be named",
    )
    add(
        "--weights",
        required=True,
        metavar="W",
        help="ImageNet weights of MobileNetV2: a .weights.h5 file, or 'imagenet' (downloads)",
    )
    add(
        "--other-weights",
        type=Path,
        metavar="FILE",
        help="ImageNet weights of EfficientNet-B0 (without them it is left out)",
    )
    add(
        "--reference-data",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="labelled pictures for DOC and triplets, as of train-encoder",
    )
    add(
        "--leave-out",
        type=int,
        nargs="+",
        default=[],
        metavar="CLASS",
        help="classes of the reference data that are the part or its defects (default: none)",
    )
    add(
        "--budget",
        type=_minutes,
        metavar="MINUTES",
        help="begin no further run after so long; the same command goes on later (default: none)",
    )
    add("--out", type=Path, required=True, metavar="FOLDER", help="results, table and page")


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted minutes from 0")
    return value


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


def run(args: argparse.Namespace) -> int:
    """Compare; see the module's docstring."""
    from tqdm import tqdm

    from tools.check_data import warn
    from tools.compare_report import write_all
    from tools.methods.registry import METHODS

    unknown = [name for name in args.methods if name not in METHODS]
    if unknown:
        raise InputError(f"--methods {unknown[0]}: wanted some of {', '.join(METHODS)}")
    refuse_unwritable(args.out / "table.csv")
    if args.weights != "imagenet" and not Path(args.weights).is_file():
        raise InputError(f"--weights {args.weights}: no such file, wanted one or 'imagenet'")
    for path in args.reference_data:
        if not path.exists():
            raise InputError(f"--reference-data {printable(path)}: no such folder")
    if args.other_weights is None:
        without = [name for name in args.methods if METHODS[name].needs_other_weights]
        args.methods = [name for name in args.methods if name not in without]
        for name in without:
            print(f"{name} is left out: it needs --other-weights")
    for data_dir in args.data:
        refuse_one_sided(read_inspection_set(data_dir))
        warn(data_dir)
    runs = list(planned(args))
    began_s, left = time.monotonic(), []
    failed: list[str] = []
    with tqdm(runs, unit="run", desc="comparing", delay=2, leave=False) as bar:
        for one in bar:
            bar.set_postfix_str(f"{one.part.name}, {one.method.name}, seed {one.seed}")
            if done(one) is not None:
                continue
            if args.budget is not None and time.monotonic() - began_s >= args.budget * 60:
                left.append(one)
                continue
            try:
                carry_out(one)
            except EdgeAppError as error:
                # One method that cannot be fitted does not take the others' table away.
                failed.append(f"{one.part.name}, {one.method.name}: {error}")
            finally:
                # Each method reads and aligns for itself: its time is its own, and no picture of a
                # large set is held for the next.
                for view in one.part.good:
                    view.forget()
    outcomes = kept(args.out)
    if not outcomes:
        raise InputError(
            failed[0] if failed else "--budget: nothing was done before, and no time for anything"
        )
    write_all(args.out, outcomes, args.typed)
    for sentence in failed:
        print(f"not compared: {sentence}")
    if left:
        print(f"{len(left)} of {len(runs)} runs are left: the same command goes on with them")
    return 0


def planned(args: argparse.Namespace) -> Iterator[Run]:
    """All runs, the first seed of everything before the second, so that a table is there early."""
    from tools.methods.registry import METHODS

    digest = _weights_digest(args.weights)
    parts = []
    for data_dir in args.data:
        inspection_set = read_inspection_set(data_dir)
        for alignment in args.align:
            part = _part(args, inspection_set, data_dir, alignment)
            if alignment == "auto" and part.alignment.recipe == "none" and "none" in args.align:
                continue  # it would be the same once more
            settings = {
                "data": _set_digest(inspection_set),
                "weights": digest,
                "alignment": part.alignment.recipe,
                "reference": sorted(printable(path.name) for path in part.reference),
                "leave_out": list(part.leave_out),
            }
            parts.append((part, inspection_set, settings))
    for number, seed_ in enumerate(args.seeds):
        for part, inspection_set, settings in parts:
            for name in args.methods:
                method = METHODS[name]()
                if number and not method.chance:
                    continue
                recipe = part.alignment.recipe
                folder = args.out / part.name / recipe / name / f"seed_{seed_}"
                yield Run(part, recipe, inspection_set, method, seed_, folder, settings)


def _part(
    args: argparse.Namespace, inspection_set: InspectionSet, data_dir: Path, alignment: str
) -> Part:
    paths = inspection_set.train_good
    step = max(1, -(-len(paths) // ALIGN_PICTURES))
    frames = [Frame(i, str(path), read_picture(path)) for i, path in enumerate(paths[::step])]
    recipe: Alignment = choose_alignment(
        frames, None, "none" if alignment == "none" else None
    ).alignment
    aligners = Aligners(recipe)
    own = data_dir.resolve()
    return Part(
        printable(inspection_set.name),
        data_dir,
        tuple(View(path, aligners) for path in paths),
        recipe,
        args.weights if args.weights == "imagenet" else Path(args.weights),
        tuple(path for path in args.reference_data if path.resolve() != own),
        tuple(args.leave_out),
        args.other_weights,
        any(picture.mask_path for picture in inspection_set.test),
    )


def _weights_digest(weights: str) -> str:
    path = Path(weights)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else str(weights)


def _set_digest(inspection_set: InspectionSet) -> str:
    """Of names and sizes of all pictures: other pictures are another comparison."""
    paths = [*inspection_set.train_good, *(picture.path for picture in inspection_set.test)]
    lines = [f"{path.parent.name}/{path.name} {path.stat().st_size}" for path in paths]
    content = "\n".join(lines).encode("utf-8", "backslashreplace")
    return hashlib.sha256(content).hexdigest()


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


def carry_out(one: Run) -> Outcome:
    """Fit, judge, and keep what came of it."""
    one.folder.mkdir(parents=True, exist_ok=True)
    state = one.folder / "fitted"
    state.mkdir(exist_ok=True)
    clock = one.folder / "fit_s"
    fit_s = float(clock.read_text()) if clock.is_file() else 0.0
    started_s = time.monotonic()
    try:
        fitted = one.method.fit(one.part, one.seed, state)
    finally:
        # Stopped in between, the next go adds to it.
        fit_s += time.monotonic() - started_s
        clock.write_text(str(fit_s))
    outcome = judge(one, fitted, fit_s)
    text = json.dumps(asdict(outcome), indent=1, allow_nan=False) + "\n"
    temporary = one.folder / f".{RESULT}"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, one.folder / RESULT)
    clock.unlink()
    return outcome


def judge(one: Run, fitted: Fitted, fit_s: float) -> Outcome:
    """A fitted method on the test split; also draws the maps that the page shows."""
    from tools.metrics import image_auroc

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
