"""
``train-encoder``: fine-tune a MobileNetV2 encoder so that good parts lie close together.

Two methods: DOC (`tools.doc`) and online triplets (`tools.triplet`). Both learn from pictures of
good parts and from a labelled reference set of other things; neither sees a defect.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from edge_app.arguments import seed
from edge_app.errors import EdgeAppError, InputError
from edge_app.preprocess import Preprocessing, shrink
from tools.encoder_training import (
    CACHE_MARGIN,
    CHECKS,
    LOSSES,
    PATIENCE,
    Recipe,
    freeze,
    groups_of,
    held_out_compactness,
    split_good,
    train_encoder,
)
from tools.losses import MININGS
from tools.reference_set import Reference, open_reference
from tools.self_made import KINDS
from tools.told_apart import FEWEST_HELD

if TYPE_CHECKING:
    import keras

    from tools.told_apart import Scores
    from tools.training import Trained

DEFAULT_SIZE_PX = 96


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``train-encoder``."""
    parser.description = (
        "Fine-tune the MobileNetV2 encoder on good parts (--data) and a labelled reference set\n"
        "of other things (--reference-data); write a RUN folder for fit, train-decoder, convert.\n"
        "A tenth of both is held out: training ends early when the loss on them stops falling,\n"
        "and defects drawn on the held-out good parts say whether the encoder has gained by it."
    )
    parser.epilog = (
        "With several --data each step takes its good parts from one of them in turn: each part\n"
        "is made compact in itself. A folder may be given as --data and as --reference-data:\n"
        "then its good pictures are also one of the classes; those held out stay out of both.\n"
        "A training that was killed goes on with the same command and --resume, to the same\n"
        "end.\n\n"
        "examples:\n"
        "  python -m tools train-encoder --data parts/nut --reference-data fashion_mnist \\\n"
        "    --weights mobilenet_v2_0.35_224.weights.h5 --out runs/nut\n"
        "  python -m tools train-encoder --data sneakers --reference-data fashion_mnist \\\n"
        "    --leave-out 7 9 --loss triplet --weights imagenet --size 64 --out runs/sneakers"
    )
    add = parser.add_argument
    folders = {"type": Path, "nargs": "+", "action": "extend", "required": True, "metavar": "DIR"}
    add("--data", help="good parts: a folder with train/good, or with pictures", **folders)
    add(
        "--reference-data",
        **folders,
        help="a sub-folder per class, Fashion-MNIST .gz files, or an inspection set",
    )
    add(
        "--leave-out",
        nargs="+",
        default=[],
        metavar="CLASS",
        help="classes of the reference data not to use, by the name of their folder or their "
        "number (default: none)",
    )
    add(
        "--loss",
        choices=LOSSES,
        default="doc",
        help="doc: compactness and descriptiveness; triplet: FaceNet's",
    )
    add(
        "--weights",
        required=True,
        metavar="W",
        help="where to start: a .weights.h5 file, 'imagenet' (downloads) or a RUN",
    )
    add("--alpha", type=float, metavar="A", help="width multiplier, with --weights imagenet only")
    add("--out", type=Path, required=True, metavar="RUN", help="folder to write, a new one")
    add(
        "--resume",
        action="store_true",
        help="go on with a training of the same arguments that was stopped (RUN.unfinished)",
    )
    add(
        "--size",
        type=int,
        metavar="PX",
        help=f"height and width of the input (default: the RUN's, else {DEFAULT_SIZE_PX})",
    )
    add(
        "--embedding-layer",
        metavar="L",
        help="layer averaged to the embedding (default: the RUN's, else out_relu)",
    )
    add(
        "--patch-layer",
        metavar="L",
        help="layer of the patch map (default: the RUN's, else block_13_expand_relu)",
    )
    add(
        "--freeze-to",
        default="none",
        metavar="BLOCK",
        help="train nothing up to the end of this block, such as block_6",
    )
    add(
        "--compactness-weight",
        type=float,
        default=0.1,
        metavar="X",
        help="doc: the paper's lambda, loss = descriptiveness + X * compactness",
    )
    add(
        "--margin",
        type=float,
        default=0.2,
        metavar="X",
        help="triplet: in squared distance of embeddings of length 1, 0 to 4",
    )
    add(
        "--mining",
        choices=MININGS,
        default=MININGS[0],
        help="triplet: which triplets of a batch count",
    )
    add(
        "--self-made",
        nargs="+",
        choices=KINDS,
        default=[],
        metavar="KIND",
        help="reference classes made from the good parts: drawn (defects drawn on them), turned "
        "(mirrored and turned by quarters, for parts that always lie alike) (default: none)",
    )
    add("--steps", type=int, default=500, metavar="N", help="training steps")
    add(
        "--patience",
        type=int,
        default=PATIENCE,
        metavar="N",
        help=f"end after N of the {CHECKS} checks in a row without a lower held-out loss; 0: never",
    )
    add(
        "--batch",
        type=int,
        default=32,
        metavar="N",
        help="good parts a step, and as many reference pictures",
    )
    add(
        "--learning-rate",
        type=float,
        default=1e-4,
        metavar="X",
        help="Adam's at the start, falling to 0 along a cosine",
    )
    add(
        "--rotation",
        type=float,
        default=5.0,
        metavar="DEG",
        help="largest turn of training pictures; 180 for parts at any angle",
    )
    add("--seed", type=seed, default=0, metavar="N", help="seed of all chance")


def run(args: argparse.Namespace) -> int:
    """
    Train and write the RUN folder.

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
        For unusable arguments, folders, pictures or weights, or a loss that is not finite.
    EdgeAppError
        If the disk is full.
    """
    _check(args)
    from tools.check_data import warn
    from tools.inspection_set import good_pictures
    from tools.network import encoder_from, new_folder
    from tools.training import discard, saying_how_to_go_on, state_folder

    started = time.monotonic()
    state = state_folder(args.out, args.resume)
    with saying_how_to_go_on(state), new_folder(args.out) as folder:
        paths = [good_pictures(data) for data in args.data]
        for data in args.data:
            warn(data)

        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        import keras

        keras.utils.set_random_seed(args.seed)
        encoder = encoder_from(
            args.weights,
            _size(args),
            embedding_layer=args.embedding_layer,
            patch_layer=args.patch_layer,
            alpha=args.alpha,
            # Further maps need no training: whoever loads the RUN takes them from its layers.
            map_layers=(),
        )
        freeze(encoder, args.freeze_to)
        size = tuple(encoder.input_shape[1:3])
        cache_size = tuple(math.ceil(side * CACHE_MARGIN) for side in size)
        parts = [
            _part(data, files, cache_size, size, args.seed)
            for data, files in zip(args.data, paths, strict=True)
        ]
        held_out = {path.resolve() for part in parts for path in part.held_paths}
        reference = open_reference(args.reference_data, cache_size, held_out, args.leave_out)
        before = [_figures(encoder, part, args) for part in parts]
        recipe = _recipe(args)
        trained = train_encoder(
            encoder,
            [part.train for part in parts],
            [part.held for part in parts],
            reference,
            recipe,
            state,
            _settings(args, recipe, encoder, parts, reference),
        )
        after = [_figures(encoder, part, args) for part in parts]

        encoder.trainable = True
        record = _record(args, recipe, encoder, reference, parts, before, after, trained)
        # Of all processes that had a part in it, if one was killed.
        earlier = sum(row["seconds"] for row in trained.history[: trained.resumed_from])
        record["seconds"] = round(earlier + time.monotonic() - started, 1)
        try:
            _write_run(folder, encoder, record, trained.history)
        except (OSError, RuntimeError) as error:
            # h5py and zipfile raise either for a full disk.
            raise EdgeAppError(
                f"{args.out}: cannot be written ({str(error).splitlines()[0]}); the training is "
                f"kept in {state}: make room and add --resume"
            ) from error
    discard(state)
    _print_summary(args.out, record)
    return 0


class _Part(NamedTuple):
    data: Path
    held_paths: list[Path]
    train: list[np.ndarray]
    held: list[np.ndarray]


def _part(
    data: Path,
    paths: Sequence[Path],
    cache_size: tuple[int, int],
    size: tuple[int, int],
    seed: int,
) -> _Part:
    from tools.inspection_set import read_prepared

    # Decoded and resized once: decoding again every step would cost more than the training itself.
    pictures = read_prepared(paths, Preprocessing(cache_size), "good parts")
    train, held = split_good(groups_of(pictures), seed, data)
    return _Part(
        data,
        [paths[row] for row in held],
        [pictures[row] for row in train],
        [shrink(pictures[row], size) for row in held],
    )


def _recipe(args: argparse.Namespace) -> Recipe:
    return Recipe(
        loss=args.loss,
        compactness_weight=args.compactness_weight,
        margin=args.margin,
        mining=args.mining,
        steps=args.steps,
        batch=args.batch,
        learning_rate=args.learning_rate,
        rotation_deg=args.rotation,
        patience=args.patience,
        self_made=tuple(args.self_made),
        seed=args.seed,
    )


def _settings(
    args: argparse.Namespace,
    recipe: Recipe,
    encoder: keras.Model,
    parts: Sequence[_Part],
    reference: Reference,
) -> dict[str, Any]:
    """Whatever decides what a training comes to; one that goes on must have the same."""
    from tools.network import layers_of

    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part.train)} {len(part.held)}".encode())
        for picture in (*part.train, *part.held):
            digest.update(picture.tobytes())
    return {
        **asdict(recipe),
        "weights": weights_origin(args.weights),
        "alpha": _alpha(args),
        "freeze_to": args.freeze_to,
        "size": list(encoder.input_shape[1:3]),
        "layers": list(layers_of(encoder)),
        "pictures_sha256": digest.hexdigest(),
        "reference_classes": reference.class_names,
        "reference_sha256": reference.sha256(),
    }


def _figures(encoder: keras.Model, part: _Part, args: argparse.Namespace) -> tuple[float, Scores]:
    """What an encoder makes of the held-out good pictures of a part."""
    from tools.told_apart import drawn_scores

    scaling = "l2" if args.loss == "triplet" else "minmax"
    return (
        held_out_compactness(encoder, part.held),
        drawn_scores(encoder, part.train, part.held, scaling, args.seed),
    )


def _record(
    args: argparse.Namespace,
    recipe: Recipe,
    encoder: keras.Model,
    reference: Reference,
    parts: Sequence[_Part],
    before: Sequence[tuple[float, Scores]],
    after: Sequence[tuple[float, Scores]],
    trained: Trained,
) -> dict[str, Any]:
    import keras

    from tools.network import layers_of, multiply_adds
    from tools.told_apart import gain

    embedding_layer, patch_layer = layers_of(encoder)
    last = trained.history[-max(1, len(trained.history) // 10) :]
    logs = [name for name in last[0] if name not in ("step", "learning_rate", "seconds")]
    return {
        "command": "train-encoder",
        "command_line": args.typed,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "keras": keras.__version__,
            "backend": keras.backend.backend(),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
        },
        "weights": weights_origin(args.weights),
        "alpha": _alpha(args),
        "size": list(encoder.input_shape[1:3]),
        "embedding_layer": embedding_layer,
        "patch_layer": patch_layer,
        "multiply_adds": multiply_adds(encoder),
        "input": {"colour": "RGB", "scale": 1 / 127.5, "offset": -1.0},
        **asdict(recipe),
        "freeze_to": args.freeze_to,
        "reference_classes": reference.class_names,
        "steps_run": len(trained.history),
        "best_step": trained.best_step,
        "held_out_loss": trained.best,
        "resumed_from": trained.resumed_from,
        "losses": {
            name: float(np.mean([row[name] for row in last])) for name in logs if name != "held_out"
        },
        "data": [
            {
                "name": part.data.resolve().name,
                "good_images": len(part.train),
                "held_out_images": len(part.held),
                "held_out_compactness_before": tight_before,
                "held_out_compactness": tight,
                "drawn_auroc_before": drawn_before.auroc,
                "drawn_auroc": drawn.auroc,
                "drawn_gain_interval": gain(drawn_before, drawn, args.seed),
            }
            for part, (tight_before, drawn_before), (tight, drawn) in zip(
                parts, before, after, strict=True
            )
        ],
    }


def _write_run(
    folder: Path, encoder: keras.Model, record: dict[str, Any], history: Sequence[dict]
) -> None:
    encoder.save(folder / "encoder.keras")
    _write_history(folder / "history.csv", history)
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    (folder / "run.json").write_text(text, encoding="utf-8")


def _check(args: argparse.Namespace) -> None:
    limits = (
        ("--steps", args.steps, args.steps >= 1, "1 or more"),
        # Compactness compares each part of a batch with the others.
        ("--batch", args.batch, args.batch >= 2, "2 or more"),
        ("--learning-rate", args.learning_rate, args.learning_rate > 0, "more than 0"),
        (
            "--compactness-weight",
            args.compactness_weight,
            args.compactness_weight >= 0,
            "0 or more",
        ),
        ("--rotation", args.rotation, 0 <= args.rotation <= 180, "0 to 180 degrees"),
        ("--margin", args.margin, 0 < args.margin < 4, "more than 0, less than 4"),
        ("--patience", args.patience, args.patience >= 0, "0 or more"),
    )
    for option, value, is_fine, wanted in limits:
        if not is_fine or not math.isfinite(value):
            raise InputError(f"{option} {value}: wanted {wanted}")


def _size(args: argparse.Namespace) -> tuple[int, int] | None:
    if args.size is None:
        return None if Path(args.weights).is_dir() else (DEFAULT_SIZE_PX, DEFAULT_SIZE_PX)
    return args.size, args.size


def _alpha(args: argparse.Namespace) -> float:
    from tools.network import alpha_of

    return args.alpha if args.weights == "imagenet" else alpha_of(args.weights)


def weights_origin(weights: str) -> dict[str, str | None]:
    """
    Say which file training started from.

    Parameters
    ----------
    weights : str
        A weights file, "imagenet" or a RUN folder.

    Returns
    -------
    dict
        ``name`` (of the file or the RUN) and ``sha256`` (of the weights file or the RUN's
        ``encoder.keras``; None for "imagenet", which Keras itself verifies).
    """
    path = Path(weights)
    if weights == "imagenet":
        return {"name": weights, "sha256": None}
    file = path / "encoder.keras" if path.is_dir() else path
    return {
        "name": path.resolve().name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }


def _write_history(path: Path, history: Sequence[dict[str, float]]) -> None:
    # Only some steps were checked, so that the first row need not have every column.
    names = list(dict.fromkeys(name for row in history for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=names)
        writer.writeheader()
        writer.writerows(history)


def _print_summary(out: Path, record: dict) -> None:
    losses = ", ".join(f"{name} {value:.4f}" for name, value in record["losses"].items())
    print(
        f"{out}: alpha {record['alpha']}, {record['size'][0]} px, "
        f"{record['multiply_adds'] / 1e6:.1f} M multiply-adds, {record['seconds']:.0f} s; {losses}"
    )
    ended = "" if record["steps_run"] == record["steps"] else ", ended early"
    print(
        f"  kept step {record['best_step']} of {record['steps_run']}{ended}: "
        f"held-out loss {record['held_out_loss']:.4f}"
    )
    for row in record["data"]:
        low, high = row["drawn_gain_interval"]
        print(
            f"  {row['name']}: compactness of {row['held_out_images']} held-out good pictures "
            f"{row['held_out_compactness_before']:.5f} -> {row['held_out_compactness']:.5f}"
        )
        print(
            f"    defects drawn on them, kNN over the pooled embedding: AUROC "
            f"{row['drawn_auroc_before']:.3f} -> {row['drawn_auroc']:.3f} "
            f"(95 % interval of the gain {low:+.3f} to {high:+.3f})"
        )
        if row["held_out_images"] < FEWEST_HELD:
            print(f"    too few held-out pictures to tell: {FEWEST_HELD} would begin to")
        elif high < 0:
            print(
                "    worse than before the training: use the weights it started from, or try "
                "--self-made, an earlier --embedding-layer, or --freeze-to"
            )
        elif low < 0:
            print("    no clear gain: for such defects the weights it started from may do as well")
