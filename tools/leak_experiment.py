"""
``leak-experiment``: does a model tell good parts from bad ones, or JPEG from PNG?

One of the articles had a perfect model that had learnt JPEG against PNG: with all pictures in one
format its AUROC fell from 0.98 to 0.73. Here that is made again from lossless originals. The same
test pictures are scored under three conditions:

- ``mixed``: trained on good parts as JPEG, tested with good parts as JPEG and defects as PNG;
- ``jpeg``: the same trained model, tested with JPEG alone;
- ``png``: trained and tested with PNG alone.

The *fake gain* is ``mixed`` minus ``jpeg``. It is the model's doing and not chance's: model, parts
and defects are the same in both. Beside it stands the *format alone*: the AUROC of the good test
pictures as PNG against those same pictures as JPEG, 0.5 where the model is blind to the format.

How a picture comes to the network decides whether there is anything to learn from its format:

- ``whole``: stored at full size, then reduced to the network's 64 pixels. Averaging over areas
  takes most of the artefacts of JPEG's 8 x 8 blocks away: at quality 75 what is left of them is
  1.1 grey levels (root mean square) on the rendered nuts against 4.0 of ``small``, 0.7 against 2.8
  on screws of 512 pixels.
- ``crop``: stored at full size, then a window of 64 pixels is cut from its middle.
- ``small``: reduced to 64 pixels first, and stored so. The article's pictures were of 64 and 96
  pixels, so this is likely to have been its way.

Each model is trained twice: without and with the random JPEG quality in the augmentation that the
tools use, the rest of the augmentation being the same.

References
----------
Perera and Patel, "Learning Deep Features for One-Class Classification", arXiv 1801.05365 (DOC).
Golan and El-Yaniv, "Deep Anomaly Detection Using Geometric Transformations", arXiv 1805.10917.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge_app.arguments import refuse_unwritable, seed, whole_from_1
from edge_app.errors import InputError
from edge_app.preprocess import Preprocessing, prepare
from edge_app.sources.folder import read_picture
from tools.encoder_training import CACHE_MARGIN, groups_of, refuse_too_few, split_good
from tools.inspection_set import InspectionSet, read_inspection_set, refuse_one_sided
from tools.picture_files import read_header
from tools.reference_set import Reference, open_reference

METHODS = ("doc", "dadgt")
VIEWS = ("whole", "crop", "small")
# The two ends of the matter; each view is another quarter of an hour on two cores.
DEFAULT_VIEWS = ("whole", "small")
FORMATS = ("jpeg", "png")
AUGMENTATIONS = ("without-jpeg", "with-jpeg")
# Format of the training pictures, of the good and of the defective test pictures.
CONDITIONS = {
    "mixed": ("jpeg", "jpeg", "png"),
    "jpeg": ("jpeg", "jpeg", "jpeg"),
    "png": ("png", "png", "png"),
}
# The good test pictures as PNG against themselves as JPEG.
FORMAT_ALONE = "format_alone"

SIZE_PX = 64
# Of the pooled scorers, the tools' own.
NEIGHBOURS, FEATURE_SCALING = 5, "minmax"
# Pictures to a pass when embedding.
SCORING_BATCH = 128
# Chosen on train/good alone: after 150 steps the held-out rotation loss is near its floor (0.02 on
# the rendered nuts, 0.3 on screws at any angle, where chance is 1.39), DOC's no longer falls.
STEPS = 150

# A gain of the AUROC below this misleads nobody: methods that close count as equal.
SMALLEST_GAIN = 0.005
# A gain counts where its mean over the seeds is so many times its standard deviation.
SPREADS = 2.0


@dataclass(frozen=True)
class Training:
    """
    One model of the experiment.

    Attributes
    ----------
    method : {'doc', 'dadgt'}
    view : {'whole', 'crop', 'small'}
    augmentation : {'without-jpeg', 'with-jpeg'}
    trained_on : {'jpeg', 'png'}
    seed : int
    """

    method: str
    view: str
    augmentation: str
    trained_on: str
    seed: int


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``leak-experiment``."""
    parser.description = (
        "Train DOC and a classifier of rotations on good parts as JPEG, test them with defects as\n"
        "PNG, then with JPEG alone, then all with PNG alone: how much of the AUROC was the file\n"
        "format? The pictures must be lossless originals (PNG); JPEGs are made in memory."
    )
    parser.epilog = (
        "views:\n"
        "  whole  stored at full size, then reduced to 64 px\n"
        "  crop   stored at full size, then 64 px cut from the middle\n"
        "  small  reduced to 64 px, then stored\n\n"
        "A training takes 20 to 40 s on two cores; there are 8 for each view and seed. What is\n"
        "finished is in FILE; --resume goes on from there.\n\n"
        "examples:\n"
        "  python -m tools render --out nuts --no-codec --empty 0 --no-clip\n"
        "  python -m tools leak-experiment --data nuts --reference-data fashion_mnist \\\n"
        "    --weights mobilenet_v2_0.35_224.weights.h5 --json leak_nuts.json\n"
        "  python -m tools leak-experiment --data nuts --methods dadgt --views small --seeds 0 \\\n"
        "    --json leak_quick.json"
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="a set in the layout of MVTec AD, all of PNG files that were never lossy",
    )
    add("--weights", metavar="W", help="doc: where to start, a .weights.h5 file or 'imagenet'")
    add("--alpha", type=float, metavar="A", help="width multiplier, with --weights imagenet only")
    add(
        "--reference-data",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="doc: a sub-folder per class, or Fashion-MNIST .gz files",
    )
    augmenting = "without or with random JPEG quality in training"
    for option, names, preset, what in (
        ("--methods", METHODS, METHODS, "what to train"),
        ("--views", VIEWS, DEFAULT_VIEWS, "how pictures come to the network, see below"),
        ("--augmentations", AUGMENTATIONS, AUGMENTATIONS, augmenting),
    ):
        add(
            option,
            nargs="+",
            choices=names,
            default=list(preset),
            help=what,
        )
    add(
        "--seeds",
        type=seed,
        nargs="+",
        default=[0, 1, 2],
        metavar="N",
        help="one training each",
    )
    add(
        "--quality",
        type=int,
        default=75,
        metavar="Q",
        help="of the JPEGs, 1 to 100; 75 is what most programs write",
    )
    add(
        "--steps",
        type=whole_from_1,
        default=STEPS,
        metavar="N",
        help="of each training",
    )
    add(
        "--json",
        type=Path,
        required=True,
        metavar="FILE",
        help="the figures, written again after each training",
    )
    add("--resume", action="store_true", help="keep what FILE holds and train only the rest")


def run(args: argparse.Namespace) -> int:
    """
    Run the experiment, print its table, write its figures.

    Parameters
    ----------
    args : argparse.Namespace
        The arguments that `configure` adds.

    Returns
    -------
    int
        Exit code 0.

    Raises
    ------
    InputError
        For unusable arguments or pictures, pictures that are not PNG, an existing file without
        ``--resume``, or one of other settings with it.
    """
    _check(args)
    inspection_set = read_inspection_set(args.data)
    refuse_lossy(inspection_set)
    refuse_one_sided(inspection_set)
    refuse_too_few(len(inspection_set.train_good), args.data)
    settings = _settings(args, inspection_set)
    figures = _open_figures(args, settings)
    plan = planned(args.methods, args.views, args.augmentations, args.seeds)
    left = remaining(plan, figures["trainings"])
    # Beside the models: what the file alone says, and what check-data makes of the folder.
    for storage in dict.fromkeys(_storage(view) for view in args.views):
        if storage not in figures["stored"]:
            figures["stored"][storage] = judge_folders(inspection_set, storage, args.quality)
            _write(args.json, figures)
    if left:
        _train_all(args, inspection_set, left, figures)
    for line in table(figures):
        print(line)
    print(f"figures: {args.json}")
    return 0


def _check(args: argparse.Namespace) -> None:
    if not 1 <= args.quality <= 100:
        raise InputError(f"--quality {args.quality}: wanted 1 to 100")
    if "doc" in args.methods:
        for option, value in (
            ("--weights", args.weights),
            ("--reference-data", args.reference_data),
        ):
            if not value:
                raise InputError(f"{option}: is missing, DOC needs it (--methods dadgt does not)")
    refuse_unwritable(args.json)
    if args.json.exists() and not args.resume:
        raise InputError(
            f"{args.json}: exists already; add --resume to go on with it, or remove it"
        )


def refuse_lossy(inspection_set: InspectionSet) -> None:
    """
    Refuse a set whose pictures are not all PNG files, whatever their names say.

    Parameters
    ----------
    inspection_set : InspectionSet

    Raises
    ------
    InputError
        Naming how many are not and the first of them.
    """
    paths = [*inspection_set.train_good, *(picture.path for picture in inspection_set.test)]
    formats = {path: read_header(path).file_format for path in paths}
    others = [
        (path, "JPEG" if found == "JPEG" else "not PNG")
        for path, found in formats.items()
        if found != "PNG"
    ]
    if others:
        path, found = others[0]
        raise InputError(
            f"{inspection_set.name}: {len(others)} of {len(paths)} pictures are no PNG files (the "
            f"first, {path}, is {found}); the experiment needs lossless originals, because what "
            "JPEG took away once does not come back"
        )


def _settings(args: argparse.Namespace, inspection_set: InspectionSet) -> dict[str, Any]:
    """What every figure of a file depends on; a file of others is not gone on with."""
    return {
        "data": inspection_set.name,
        "train_good": len(inspection_set.train_good),
        "test_good": sum(not picture.is_anomaly for picture in inspection_set.test),
        "test_defective": sum(picture.is_anomaly for picture in inspection_set.test),
        "quality": args.quality,
        "steps": args.steps,
        "size_px": SIZE_PX,
        "weights": Path(args.weights).name if args.weights else None,
        "reference_data": [path.resolve().name for path in args.reference_data or ()],
    }


def _open_figures(args: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    if not args.json.exists():
        return {"settings": settings, "stored": {}, "trainings": []}
    try:
        figures = json.loads(args.json.read_text(encoding="utf-8"))
        there = figures["settings"]
        remaining([], figures["trainings"])
        dict(figures["stored"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{args.json}: holds no figures of leak-experiment; remove it") from error
    for name, value in settings.items():
        # A run of DADGT alone names neither; it may go on in a file of both, and the reverse.
        is_open = name in ("weights", "reference_data") and not (value and there.get(name))
        if there.get(name) != value and not is_open:
            raise InputError(
                f"{args.json}: was made with {name} {there.get(name)!r}, now it is {value!r}; go "
                "on with the same arguments, or write another file"
            )
    figures["settings"] = {name: value or there.get(name) for name, value in settings.items()}
    return figures


def planned(
    methods: Iterable[str],
    views: Iterable[str],
    augmentations: Iterable[str],
    seeds: Iterable[int],
) -> list[Training]:
    """
    The trainings of an experiment; a first seed of all comes before the second of any.

    Returns
    -------
    list of Training
        ``mixed`` and ``jpeg`` share the one on JPEG.
    """
    return [
        Training(method, view, augmentation, trained_on, seed)
        for seed in dict.fromkeys(seeds)
        for view in dict.fromkeys(views)
        for augmentation in dict.fromkeys(augmentations)
        for method in dict.fromkeys(methods)
        for trained_on in FORMATS
    ]


def remaining(plan: Sequence[Training], finished: Iterable[Mapping[str, Any]]) -> list[Training]:
    """
    What of a plan is still to be trained.

    Parameters
    ----------
    plan : sequence of Training
    finished : iterable of dict
        Rows of the file's ``trainings``.
    """
    names = Training.__dataclass_fields__
    done = {Training(**{name: row[name] for name in names}) for row in finished}
    return [training for training in plan if training not in done]


def seen(
    frame_bgr: np.ndarray, view: str, quality: int | None, size_px: int = SIZE_PX
) -> np.ndarray:
    """
    A picture as the network gets it, after it was stored.

    Parameters
    ----------
    frame_bgr : ndarray of uint8, shape (H, W, 3)
        The original.
    view : {'whole', 'crop', 'small'}
        See the module's docstring.
    quality : int or None
        Of the JPEG it is stored as, 1 to 100; None: as PNG, which changes nothing.
    size_px : int
        Side of the result; for ``crop`` the window, too.

    Returns
    -------
    ndarray of uint8, shape (size_px, size_px, 3)
        RGB.

    Raises
    ------
    InputError
        If the picture is smaller than the window of ``crop``.
    """
    if view == "small":
        small_rgb = prepare(frame_bgr, Preprocessing((size_px, size_px)))
        return _swapped(stored(_swapped(small_rgb), quality))
    frame_bgr = stored(frame_bgr, quality)
    if view == "whole":
        return prepare(frame_bgr, Preprocessing((size_px, size_px)))
    height, width = frame_bgr.shape[:2]
    if min(height, width) < size_px:
        raise InputError(
            f"a picture is {width} x {height} pixels, too small for a window of {size_px}; leave "
            "crop out of --views"
        )
    top, left = (height - size_px) // 2, (width - size_px) // 2
    return _swapped(frame_bgr[top : top + size_px, left : left + size_px])


def stored(frame_bgr: np.ndarray, quality: int | None) -> np.ndarray:
    """The picture, uint8 (H, W, 3), as it comes back from a JPEG of a quality; None: from a PNG."""
    if quality is None:
        return frame_bgr
    return cv2.imdecode(np.frombuffer(as_jpeg(frame_bgr, quality), np.uint8), cv2.IMREAD_COLOR)


def as_jpeg(frame_bgr: np.ndarray, quality: int) -> bytes:
    """
    The bytes of a JPEG file, chroma at half resolution; a grey picture is stored as grey.

    Parameters
    ----------
    frame_bgr : ndarray of uint8, shape (H, W, 3)
    quality : int
        1 to 100.
    """
    is_grey = np.ptp(frame_bgr, axis=2).max() == 0
    picture = frame_bgr[..., 0] if is_grey else frame_bgr
    _, data = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, quality))
    return data.tobytes()


def _swapped(picture: np.ndarray) -> np.ndarray:
    """BGR from RGB, or the reverse."""
    return np.ascontiguousarray(picture[..., ::-1])


@dataclass(frozen=True)
class Pictures:
    """
    The pictures of a set, in one view and one format.

    Attributes
    ----------
    train : ndarray of uint8, shape (n, s, s, 3)
        Good parts to learn from, RGB, at the network's size.
    train_cache : ndarray of uint8, shape (n, c, c, 3)
        The same for the augmentation, a little larger where the view reduces them.
    good, bad : ndarray of uint8, shape (m, s, s, 3)
        Test pictures.
    """

    train: np.ndarray
    train_cache: np.ndarray
    good: np.ndarray
    bad: np.ndarray


def read_pictures(
    inspection_set: InspectionSet, views: Sequence[str], quality: int, progress: bool = True
) -> dict[tuple[str, str], Pictures]:
    """
    Read every original once and make all it is seen as.

    Parameters
    ----------
    inspection_set : InspectionSet
    views : sequence of str
    quality : int
        Of the JPEGs.
    progress : bool
        Whether to show a progress bar on stderr.

    Returns
    -------
    dict of (view, format) to Pictures
    """
    from tqdm import tqdm

    cases = [(view, kind) for view in views for kind in FORMATS]
    lists: dict[tuple[str, str], dict[str, list[np.ndarray]]] = {
        case: {"train": [], "train_cache": [], "good": [], "bad": []} for case in cases
    }
    splits = [(path, "train") for path in inspection_set.train_good]
    splits += [
        (picture.path, "bad" if picture.is_anomaly else "good") for picture in inspection_set.test
    ]
    bar = tqdm(splits, desc="storing", unit="picture", delay=2, leave=False, disable=not progress)
    for path, split in bar:
        frame_bgr = read_picture(path)
        for view, kind in cases:
            of_case, level = lists[view, kind], quality if kind == "jpeg" else None
            of_case[split].append(seen(frame_bgr, view, level))
            if split == "train":
                larger = math.ceil(SIZE_PX * CACHE_MARGIN) if view == "whole" else SIZE_PX
                of_case["train_cache"].append(seen(frame_bgr, view, level, larger))
    return {
        case: Pictures(**{name: np.stack(rows) for name, rows in of_case.items()})
        for case, of_case in lists.items()
    }


def _train_all(
    args: argparse.Namespace,
    inspection_set: InspectionSet,
    left: Sequence[Training],
    figures: dict[str, Any],
) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras
    from tqdm import tqdm

    views = list(dict.fromkeys(training.view for training in left))
    pictures = read_pictures(inspection_set, views, args.quality)
    needs_reference = any(training.method == "doc" for training in left)
    reference = None
    if needs_reference:
        side = math.ceil(SIZE_PX * CACHE_MARGIN)
        reference = open_reference(args.reference_data, (side, side))
    with tqdm(left, desc="leak-experiment", unit="training") as bar:
        for training in bar:
            bar.set_postfix_str(
                f"{training.method} {training.view} {training.trained_on}, "
                f"{training.augmentation}, seed {training.seed}"
            )
            # Dozens of models in one process: each is forgotten before the next.
            keras.utils.clear_session()
            keras.utils.set_random_seed(training.seed)
            began = time.monotonic()
            of_view = {kind: pictures[training.view, kind] for kind in FORMATS}
            if training.method == "doc":
                scores, record = _train_doc(training, of_view, reference, args)
            else:
                scores, record = _train_dadgt(training, of_view, args.steps)
            figures["trainings"].append(
                {
                    **asdict(training),
                    "auroc": {
                        name: aurocs(training.trained_on, one) for name, one in scores.items()
                    },
                    **record,
                    "seconds": round(time.monotonic() - began, 1),
                }
            )
            _write(args.json, figures)


def aurocs(trained_on: str, scores: Mapping[tuple[str, str], np.ndarray]) -> dict[str, float]:
    """
    Image AUROC under every condition that a training serves.

    Parameters
    ----------
    trained_on : {'jpeg', 'png'}
    scores : dict of (split, format) to ndarray of float, shape (m,)
        Of the test pictures, split 'good' or 'bad'; higher is more anomalous.

    Returns
    -------
    dict of str to float
        The conditions of `CONDITIONS` with these training pictures; of a training on JPEG
        `FORMAT_ALONE`, too.

    Raises
    ------
    InputError
        If a score is not finite.
    """
    from tools.metrics import image_auroc

    def against(low: np.ndarray, high: np.ndarray) -> float:
        return image_auroc([*low, *high], [False] * len(low) + [True] * len(high))

    figures = {
        condition: against(scores["good", good], scores["bad", bad])
        for condition, (train, good, bad) in CONDITIONS.items()
        if train == trained_on
    }
    if trained_on == "jpeg":
        figures[FORMAT_ALONE] = against(scores["good", "jpeg"], scores["good", "png"])
    return figures


def _split(of_view: Mapping[str, Pictures], training: Training) -> tuple[list[int], list[int]]:
    """Rows of the good pictures to train on and to hold out: the same in every format."""
    return split_good(groups_of(of_view["png"].train), training.seed, training.view)


def _test_pictures(of_view: Mapping[str, Pictures]) -> dict[tuple[str, str], np.ndarray]:
    return {
        (split, kind): getattr(pictures, split)
        for kind, pictures in of_view.items()
        for split in ("good", "bad")
    }


def _train_dadgt(
    training: Training, of_view: Mapping[str, Pictures], steps: int
) -> tuple[dict[str, dict[tuple[str, str], np.ndarray]], dict[str, Any]]:
    from tools import geometric_transforms as dadgt
    from tools.augment import augment

    own = of_view[training.trained_on]
    train, held = _split(of_view, training)

    def augmentation(picture_rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return augment(
            picture_rgb,
            rng,
            size=(SIZE_PX, SIZE_PX),
            recompress=training.augmentation == "with-jpeg",
        )

    model, trained = dadgt.train_classifier(
        own.train_cache[train],
        dadgt.TrainingSettings(steps=steps),
        seed=training.seed,
        size_px=SIZE_PX,
        augmentation=augmentation,
        held_out_rgb=own.train[held],
        progress=False,
    )
    scorer = dadgt.RotationScorer.fit(model, own.train)
    scores: dict[str, dict[tuple[str, str], np.ndarray]] = {name: {} for name in dadgt.SCORES}
    for case, pictures in _test_pictures(of_view).items():
        for name, values in scorer.scores(pictures).items():
            scores[name][case] = values
    accuracy = dadgt.rotation_accuracy(dadgt.log_probabilities(model, own.train[held]))
    return scores, {
        "best_step": trained.best_step,
        "held_out_loss": trained.best,
        "held_out_accuracy": accuracy,
    }


def _train_doc(
    training: Training,
    of_view: Mapping[str, Pictures],
    reference: Reference,
    args: argparse.Namespace,
) -> tuple[dict[str, dict[tuple[str, str], np.ndarray]], dict[str, Any]]:
    from edge_app.scorer import SCORERS
    from tools.encoder_training import Recipe, train_encoder
    from tools.network import encoder_from, network_input

    own = of_view[training.trained_on]
    train, held = _split(of_view, training)
    encoder = encoder_from(args.weights, (SIZE_PX, SIZE_PX), alpha=args.alpha, map_layers=())
    trained = train_encoder(
        encoder,
        [own.train_cache[train]],
        [own.train[held]],
        reference,
        Recipe(
            steps=args.steps,
            recompress=training.augmentation == "with-jpeg",
            seed=training.seed,
        ),
        progress=False,
    )

    def embedded(pictures_rgb: np.ndarray) -> np.ndarray:
        return encoder.predict(network_input(pictures_rgb), batch_size=SCORING_BATCH, verbose=0)[0]

    good = embedded(own.train)
    tests = {case: embedded(one) for case, one in _test_pictures(of_view).items()}
    scores = {kind: neighbour_scores(kind, good, tests) for kind in SCORERS}
    return scores, {"best_step": trained.best_step, "held_out_loss": trained.best}


def neighbour_scores(
    kind: str, good: np.ndarray, tests: Mapping[Any, np.ndarray]
) -> dict[Any, np.ndarray]:
    """
    The device's pooled score of test embeddings against those of all good parts.

    Parameters
    ----------
    kind : {'lof', 'knn'}
    good : ndarray of float32, shape (n, d)
    tests : dict to ndarray of float32, shape (m, d)

    Returns
    -------
    dict to ndarray of float64, shape (m,)
        Higher is more anomalous.
    """
    from edge_app.learn_neighbours import ScorerSettings, learn_scorer

    scorer = learn_scorer(good, ScorerSettings(kind, NEIGHBOURS, FEATURE_SCALING))
    return {case: np.array([scorer.score(row) for row in rows]) for case, rows in tests.items()}


def _storage(view: str) -> str:
    """Whether a view's files are kept at 'full' size or 'small'."""
    return "small" if view == "small" else "full"


def judge_folders(
    inspection_set: InspectionSet, storage: str, quality: int, progress: bool = True
) -> dict[str, Any]:
    """
    What the files alone give away: trivial figures and `check-data`, of each condition's folder.

    Parameters
    ----------
    inspection_set : InspectionSet
        Of PNG files.
    storage : {'full', 'small'}
        The pictures as they are, or reduced to the network's size.
    quality : int
        Of the JPEGs.
    progress : bool
        Whether to show progress bars on stderr.

    Returns
    -------
    dict of condition to dict
        ``trivial`` (image AUROC of each trivial score), ``check_data`` (``verdict``; ``red``: its
        red findings; ``format``: the one of them that is about JPEG against PNG, or None).
    """
    from tools.check_data import check
    from tools.trivial import trivial_figures

    figures = {}
    for condition in CONDITIONS:
        with tempfile.TemporaryDirectory(prefix="leak-experiment-") as folder:
            root = Path(folder) / inspection_set.name
            write_folder(inspection_set, condition, storage, quality, root)
            trivial = trivial_figures(read_inspection_set(root), progress=progress)
            findings = check(root, progress=progress)
        red = [sentence for severity, sentence in findings.sentences if severity == "red"]
        figures[condition] = {
            # Without masks in the folder there are no pixel figures.
            "trivial": {name: value for name, value in trivial.items() if value is not None},
            "check_data": {"verdict": findings.verdict, "red": red, "format": _on_format(red)},
        }
    return figures


def _on_format(sentences: Iterable[str]) -> str | None:
    # A folder may be refused for other reasons, too; those do not answer this experiment.
    return next((one for one in sentences if "JPEG" in one and "PNG" in one), None)


def write_folder(
    inspection_set: InspectionSet, condition: str, storage: str, quality: int, root: Path
) -> None:
    """
    Write the files of a condition in the layout of MVTec AD, without masks.

    Parameters
    ----------
    inspection_set : InspectionSet
        Of PNG files; at full size these are linked to, so that not a byte of them differs.
    condition : str
        A key of `CONDITIONS`.
    storage : {'full', 'small'}
    quality : int
        Of the JPEGs.
    root : Path
        A new folder.
    """
    train, good, bad = CONDITIONS[condition]
    files = [(path, "train/good", train) for path in inspection_set.train_good]
    files += [
        (picture.path, f"test/{picture.defect}", bad if picture.is_anomaly else good)
        for picture in inspection_set.test
    ]
    for path, folder, kind in files:
        target = root / folder / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if kind == "png" and storage == "full":
            target.symlink_to(path.resolve())
            continue
        frame_bgr = read_picture(path)
        if storage == "small":
            frame_bgr = _swapped(prepare(frame_bgr, Preprocessing((SIZE_PX, SIZE_PX))))
        if kind == "jpeg":
            target.with_suffix(".jpg").write_bytes(as_jpeg(frame_bgr, quality))
        else:
            is_grey = np.ptp(frame_bgr, axis=2).max() == 0
            cv2.imwrite(str(target), frame_bgr[..., 0] if is_grey else frame_bgr)


def _write(path: Path, figures: dict[str, Any]) -> None:
    # By rename: a kill while writing must not cost what was there.
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


@dataclass(frozen=True)
class Row:
    """
    One line of the table: a score under one view and one augmentation, over the seeds.

    Attributes
    ----------
    view, method, score, augmentation : str
    mean, spread : dict of str to float
        Of each condition and `FORMAT_ALONE`: mean over the seeds, and standard deviation (n - 1;
        NaN for a single seed). A condition that nothing was trained for is missing.
    seeds : int
        Number of seeds with both `mixed` and `jpeg`.
    gain, gain_spread : float
        Mean and standard deviation over the seeds of mixed minus jpeg, of the same model each;
        NaN where there are none.
    """

    view: str
    method: str
    score: str
    augmentation: str
    mean: dict[str, float]
    spread: dict[str, float]
    seeds: int
    gain: float
    gain_spread: float

    @property
    def word(self) -> str:
        """The gain in words, see `gain_word`."""
        return gain_word(self.gain, self.gain_spread)


def gain_word(gain: float, spread: float) -> str:
    """
    A gain in words.

    Parameters
    ----------
    gain : float
        Mean over the seeds of AUROC under ``mixed`` minus under ``jpeg``.
    spread : float
        Its standard deviation; NaN for a single seed.

    Returns
    -------
    str
        ``none`` where it is smaller than `SMALLEST_GAIN` and its spread too, ``fake gain`` or,
        below zero, ``fake loss`` where it is larger than `SPREADS` times its spread; ``not clear``
        between the two; ``one seed`` where a single seed leaves it open, ``-`` where there is
        nothing.
    """
    if math.isnan(gain):
        return "-"
    if math.isnan(spread):
        return "one seed"
    if max(abs(gain), spread) < SMALLEST_GAIN:
        return "none"
    if abs(gain) < max(SMALLEST_GAIN, SPREADS * spread):
        return "not clear"
    return "fake gain" if gain > 0 else "fake loss"


def summarise(trainings: Iterable[Mapping[str, Any]]) -> list[Row]:
    """
    The rows of the table.

    Parameters
    ----------
    trainings : iterable of dict
        As in the file: the fields of `Training`, and ``auroc`` by score and condition.

    Returns
    -------
    list of Row
        In the order of `VIEWS`, `METHODS`, the scores' names and `AUGMENTATIONS`.
    """
    by_row: dict[tuple[str, str, str, str], dict[str, dict[int, float]]] = {}
    for training in trainings:
        for score, figures in training["auroc"].items():
            key = (training["view"], training["method"], score, training["augmentation"])
            for condition, value in figures.items():
                of_condition = by_row.setdefault(key, {}).setdefault(condition, {})
                of_condition[training["seed"]] = value
    rows = []
    for key, by_condition in sorted(by_row.items(), key=lambda item: _order(item[0])):
        mixed, jpeg = by_condition.get("mixed", {}), by_condition.get("jpeg", {})
        gains = [mixed[seed] - jpeg[seed] for seed in sorted(mixed.keys() & jpeg.keys())]
        gain, gain_spread = _mean_and_spread(gains)
        figures = {
            name: _mean_and_spread(list(values.values())) for name, values in by_condition.items()
        }
        rows.append(
            Row(
                *key,
                mean={name: mean for name, (mean, _) in figures.items()},
                spread={name: spread for name, (_, spread) in figures.items()},
                seeds=len(gains),
                gain=gain,
                gain_spread=gain_spread,
            )
        )
    return rows


def _order(key: tuple[str, str, str, str]) -> tuple[int, int, str, int]:
    view, method, score, augmentation = key
    return VIEWS.index(view), METHODS.index(method), score, AUGMENTATIONS.index(augmentation)


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    mean = float(np.mean(values)) if values else math.nan
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


_STORAGE_WORDS = {
    "whole": "stored at full size, then reduced to 64 px",
    "crop": "stored at full size, 64 px cut from the middle",
    "small": "reduced to 64 px, then stored",
}


def table(figures: Mapping[str, Any]) -> list[str]:
    """
    The lines that are printed.

    Parameters
    ----------
    figures : dict
        As in the file.

    Returns
    -------
    list of str
        For each view the image AUROC, mean +- standard deviation over the seeds; beside it the
        trivial scores and what `check-data` says.
    """
    settings, rows = figures["settings"], summarise(figures["trainings"])
    lines = [
        f"{settings['data']}: {settings['train_good']} good to train on, {settings['test_good']} "
        f"good and {settings['test_defective']} defective to test; JPEG quality "
        f"{settings['quality']}, {settings['steps']} steps"
    ]
    for view in dict.fromkeys(row.view for row in rows):
        lines += ["", f"{view}: {_STORAGE_WORDS[view]}"]
        lines.append(
            f"{'model':16} {'augmented':13} {'mixed':13} {'all JPEG':13} {'all PNG':13} "
            f"{'mixed - JPEG':15} {'':9} format alone"
        )
        for row in (row for row in rows if row.view == view):
            cells = [
                _cell(row.mean.get(name, math.nan), row.spread.get(name, math.nan))
                for name in (*CONDITIONS, FORMAT_ALONE)
            ]
            gain = _cell(row.gain, row.gain_spread, signed=True)
            lines.append(
                f"{row.method + ' ' + row.score:16} {row.augmentation:13} {cells[0]:13} "
                f"{cells[1]:13} {cells[2]:13} {gain:15} {row.word:9} {cells[3]}"
            )
        lines += _beside(figures["stored"].get(_storage(view), {}))
    return lines


def _cell(mean: float, spread: float, signed: bool = False) -> str:
    if math.isnan(mean):
        return "-"
    text = f"{mean:+.3f}" if signed else f"{mean:.3f}"
    return text if math.isnan(spread) else f"{text} +- {spread:.3f}"


def _beside(stored_figures: Mapping[str, Any]) -> list[str]:
    """The trivial scores and the verdicts of check-data, under a view's table."""
    lines = []
    if stored_figures:
        for name in stored_figures["mixed"]["trivial"]:
            values = [stored_figures[condition]["trivial"][name] for condition in CONDITIONS]
            lines.append(
                f"trivial {name:22} {values[0]:<13.3f} {values[1]:<13.3f} {values[2]:<13.3f} "
                f"{values[0] - values[1]:+.3f}"
            )
    for condition, row in stored_figures.items():
        check = row["check_data"]
        word = "format flagged" if check["format"] else "format not flagged"
        lines.append(f"check-data, {condition}: {word}: {check['format'] or check['verdict']}")
    return lines
