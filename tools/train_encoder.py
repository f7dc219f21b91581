"""
``train-encoder``: fine-tune a MobileNetV2 encoder so that good parts lie close together.

DOC (deep one-class classification) pulls the embeddings of good parts together while a labelled
reference set, told apart by a softmax on the same embeddings, keeps the network from collapsing to
a constant. The two branches of the paper share all weights.

References
----------
Perera and Patel, "Learning Deep Features for One-Class Classification", arXiv 1801.05365.
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
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from edge_app.errors import InputError

if TYPE_CHECKING:
    import keras

DEFAULT_SIZE_PX = 96
HELD_OUT_SHARE = 0.1

# Pictures are kept in memory a little larger than the input, so that turning and shifting them
# costs no sharpness against what the device will see.
CACHE_MARGIN = 1.15

HEAD_GAIN = 30.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``train-encoder``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Fine-tune the MobileNetV2 encoder on good parts (--data) and a labelled reference set\n"
        "of other things (--reference-data); write a RUN folder for fit, train-decoder, convert."
    )
    parser.epilog = (
        "With several --data each step takes its good parts from one of them in turn: each part\n"
        "is made compact in itself. A folder may be given as --data and as --reference-data:\n"
        "then its good pictures are also one of the classes; those held out stay out of both.\n\n"
        "example:\n"
        "  python -m tools train-encoder --data parts/nut --reference-data fashion_mnist \\\n"
        "    --weights mobilenet_v2_0.35_224.weights.h5 --out runs/nut"
    )
    add = parser.add_argument
    folders = {"type": Path, "nargs": "+", "action": "extend", "required": True, "metavar": "DIR"}
    add("--data", help="good parts: a folder with train/good, or with pictures", **folders)
    add(
        "--reference-data",
        **folders,
        help="a sub-folder per class, Fashion-MNIST .gz files, or an inspection set",
    )
    add("--loss", choices=("doc",), default="doc", help="training method (default: doc)")
    add(
        "--weights",
        required=True,
        metavar="W",
        help="where to start: a .weights.h5 file, 'imagenet' (downloads) or a RUN",
    )
    add("--alpha", type=float, metavar="A", help="width multiplier, with --weights imagenet only")
    add("--out", type=Path, required=True, metavar="RUN", help="folder to write, a new one")
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
        help="train nothing up to the end of this block, such as block_6 (default: none)",
    )
    add(
        "--compactness-weight",
        type=float,
        default=0.1,
        metavar="X",
        help="the paper's lambda (default: 0.1)",
    )
    add("--steps", type=int, default=500, metavar="N", help="training steps (default: 500)")
    add(
        "--batch",
        type=int,
        default=32,
        metavar="N",
        help="good parts a step, and as many reference pictures (default: 32)",
    )
    add(
        "--learning-rate",
        type=float,
        default=1e-4,
        metavar="X",
        help="Adam's at the start, falling to 0 along a cosine (default: 1e-4)",
    )
    add(
        "--rotation",
        type=float,
        default=5.0,
        metavar="DEG",
        help="largest turn of training pictures; 180 for parts at any angle (default: 5)",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of all chance (default: 0)")


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
    """
    _check(args)
    from tools.inspection_set import good_pictures
    from tools.network import encoder_from, layers_of, multiply_adds, new_folder

    started = time.monotonic()
    with new_folder(args.out) as folder:
        splits = [split_good(good_pictures(data), args.seed, data) for data in args.data]
        held_out = {path.resolve() for _, held in splits for path in held}

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
        good = [_decoded(train, cache_size, "good parts") for train, _ in splits]
        held = [_decoded(held, size, "held-out parts") for _, held in splits]
        reference = _open_reference(args.reference_data, held_out, cache_size)

        before = [held_out_compactness(encoder, pictures) for pictures in held]
        history = train_doc(
            encoder,
            good,
            reference,
            compactness_weight=args.compactness_weight,
            steps=args.steps,
            batch=args.batch,
            learning_rate=args.learning_rate,
            rotation_deg=args.rotation,
            seed=args.seed,
        )
        after = [held_out_compactness(encoder, pictures) for pictures in held]

        encoder.trainable = True
        encoder.save(folder / "encoder.keras")
        _write_history(folder / "history.csv", history)
        embedding_layer, patch_layer = layers_of(encoder)
        last = history[-max(1, len(history) // 10) :]
        record = {
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
            "seed": args.seed,
            "weights": weights_origin(args.weights),
            "alpha": _alpha(args),
            "size": list(size),
            "embedding_layer": embedding_layer,
            "patch_layer": patch_layer,
            "multiply_adds": multiply_adds(encoder),
            "input": {"colour": "RGB", "scale": 1 / 127.5, "offset": -1.0},
            "loss": args.loss,
            "compactness_weight": args.compactness_weight,
            "freeze_to": args.freeze_to,
            "steps": args.steps,
            "batch": args.batch,
            "learning_rate": args.learning_rate,
            "rotation_deg": args.rotation,
            "reference_classes": reference.class_names,
            "losses": {
                name: float(np.mean([row[name] for row in last]))
                for name in ("loss", "descriptiveness", "compactness", "accuracy")
            },
            "data": [
                {
                    "name": data.resolve().name,
                    "good_images": len(train),
                    "held_out_images": len(held_paths),
                    "held_out_compactness_before": tight_before,
                    "held_out_compactness": tight_after,
                }
                for data, (train, held_paths), tight_before, tight_after in zip(
                    args.data, splits, before, after, strict=True
                )
            ],
            "seconds": round(time.monotonic() - started, 1),
        }
        text = json.dumps(record, indent=2, allow_nan=False) + "\n"
        (folder / "run.json").write_text(text, encoding="utf-8")
    _print_summary(args.out, record)
    return 0


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


def split_good(paths: Sequence[Path], seed: int, data_dir: Path) -> tuple[list[Path], list[Path]]:
    """
    Hold out a tenth of the good pictures, two at least.

    Parameters
    ----------
    paths : sequence of Path
        All good pictures of one part.
    seed : int
        The same seed holds out the same pictures.
    data_dir : Path
        Named in the error.

    Returns
    -------
    train, held_out : list of Path
        Each in the order of `paths`.

    Raises
    ------
    InputError
        If there are fewer than four pictures.
    """
    if len(paths) < 4:
        raise InputError(
            f"{data_dir}: has {len(paths)} good pictures, wanted 4 or more, "
            "two to train on and two to hold out"
        )
    count = max(2, round(len(paths) * HELD_OUT_SHARE))
    held = set(np.random.default_rng(seed).choice(len(paths), count, replace=False).tolist())
    return (
        [path for index, path in enumerate(paths) if index not in held],
        [path for index, path in enumerate(paths) if index in held],
    )


def _decoded(paths: Sequence[Path], size: tuple[int, int], what: str) -> list[np.ndarray]:
    # Decoded and resized once: decoding again every step would cost more than the training itself.
    from edge_app.preprocess import Preprocessing
    from tools.inspection_set import read_prepared

    return read_prepared(paths, Preprocessing(size), what)


class Reference:
    """
    The labelled pictures of the descriptiveness branch, drawn class by class.

    Parameters
    ----------
    pictures : sequence of ndarray
        uint8 RGB (H, W, 3), any sizes.
    labels : ndarray of int, shape (N,)
        Index into `class_names`; each class has a picture.
    class_names : list of str
        Names of the classes.
    """

    def __init__(
        self, pictures: Sequence[np.ndarray], labels: np.ndarray, class_names: list[str]
    ) -> None:
        self.pictures = pictures
        self.class_names = class_names
        self._members = [np.flatnonzero(labels == label) for label in range(len(class_names))]

    def draw(self, rng: np.random.Generator, count: int) -> tuple[list[np.ndarray], np.ndarray]:
        """
        Draw pictures, every class equally often however many pictures it has.

        Parameters
        ----------
        rng : numpy.random.Generator
            The source of chance.
        count : int
            How many.

        Returns
        -------
        pictures : list of ndarray
            uint8 RGB.
        labels : ndarray of int64, shape (count,)
        """
        labels = rng.integers(len(self.class_names), size=count)
        rows = [self._members[label][rng.integers(len(self._members[label]))] for label in labels]
        return [self.pictures[row] for row in rows], labels


def _open_reference(
    folders: Sequence[Path], held_out: set[Path], cache_size: tuple[int, int]
) -> Reference:
    from tools.reference_set import PictureFiles, read_reference_sets

    sets, labels, class_names = read_reference_sets(folders, held_out)
    pictures: list[np.ndarray] = []
    for one in sets:
        if isinstance(one, PictureFiles):
            pictures += _decoded(one.paths, cache_size, "the reference set")
        else:
            pictures += one
    return Reference(pictures, labels, class_names)


def freeze(encoder: keras.Model, block: str) -> None:
    """
    Keep the first layers of an encoder as they are.

    Parameters
    ----------
    encoder : keras.Model
        As from `tools.network.build_encoder`; changed in place.
    block : str
        Name of a block ("block_6") or of one layer; everything up to its end keeps its weights.
        "none" trains all.

    Raises
    ------
    InputError
        For an unknown name, or if nothing would be left to train.
    """
    from tools.network import unknown_layer

    if block == "none":
        return
    names = [layer.name for layer in encoder.layers]
    hits = [i for i, name in enumerate(names) if name == block or name.startswith(f"{block}_")]
    if not hits:
        raise InputError(f"--freeze-to: {unknown_layer(block, names)}")
    for layer in encoder.layers[: hits[-1] + 1]:
        layer.trainable = False
    if not encoder.trainable_weights:
        raise InputError(f"--freeze-to {block}: leaves nothing to train, wanted an earlier block")


def doc_trainer(encoder: keras.Model, classes: int, batch: int) -> keras.Model:
    """
    Put an encoder into the two branches of DOC.

    A plain functional model with one loss per output, so that it trains on any Keras backend.

    Parameters
    ----------
    encoder : keras.Model
        Trained in place, both branches share it.
    classes : int
        Number of classes of the reference set.
    batch : int
        Good parts, and reference pictures, of a step.

    Returns
    -------
    keras.Model
        Inputs "good" and "reference", float32 (batch, H, W, 3); outputs "compactness" (the good
        parts' embeddings) and "descriptiveness" (class logits of the reference). Not compiled.
    """
    import keras

    class StoredStatistics(keras.layers.Layer):
        # A layer of its own, because the training flag of an outer functional model overrides one
        # that was given when the graph was drawn: encoder(x, training=False) alone does nothing.
        def __init__(self, network: keras.Model) -> None:
            super().__init__()
            self.network = network

        def call(self, pictures: keras.KerasTensor) -> keras.KerasTensor:
            return self.network(pictures, training=False)[0]

    shape = (batch, *encoder.input_shape[1:])
    good = keras.Input(batch_shape=shape, name="good")
    reference = keras.Input(batch_shape=shape, name="reference")
    # One pass over both batches is the paper's two branches, because no row sees another: batch
    # norm stays on its stored statistics (its scale and shift still learn). A batch of one part is
    # far from the photographs behind those statistics and would drag them away from what the
    # device needs for single frames; and where they were folded into scale and shift (mean 0,
    # variance 1), updating them would destroy the network.
    both = keras.layers.Concatenate(axis=0)([good, reference])
    good_embedding, reference_embedding = keras.ops.split(StoredStatistics(encoder)(both), 2)
    # The head starts from nothing while the encoder starts from ImageNet. At a rate that is gentle
    # to the encoder a plain Dense head stayed at chance for 240 steps, on an inner layer whose
    # activations are small. Normalised features and a gain on the logits let the head learn
    # `HEAD_GAIN` times as fast as the encoder, whatever the layer's scale.
    features = keras.layers.LayerNormalization(center=False, scale=False)(reference_embedding)
    head = keras.layers.Dense(classes, kernel_initializer="zeros", name="head")
    logits = HEAD_GAIN * head(features)
    return keras.Model(
        {"good": good, "reference": reference},
        {"compactness": good_embedding, "descriptiveness": logits},
    )


def train_doc(
    encoder: keras.Model,
    good: Sequence[Sequence[np.ndarray]],
    reference: Reference,
    *,
    compactness_weight: float,
    steps: int,
    batch: int,
    learning_rate: float,
    rotation_deg: float,
    seed: int,
) -> list[dict[str, float]]:
    """
    Train an encoder with DOC, in place.

    Parameters
    ----------
    encoder : keras.Model
        As from `tools.network.build_encoder`.
    good : sequence of sequences of ndarray
        For each part its good pictures, uint8 RGB (H, W, 3).
    reference : Reference
        The labelled pictures.
    compactness_weight : float
        Loss = descriptiveness + compactness_weight * compactness.
    steps, batch : int
        Steps, and pictures of each kind in a step.
    learning_rate : float
        Adam's at the first step; falls to 0 along a cosine.
    rotation_deg : float
        Largest turn of a training picture.
    seed : int
        Seed of batches and augmentation. Weights of the head follow Keras' own seed.

    Returns
    -------
    list of dict
        Per step: step, loss, descriptiveness, compactness, accuracy, learning_rate, seconds.

    Raises
    ------
    InputError
        If the loss is no longer finite.
    """
    import keras
    from tqdm import tqdm

    from tools.losses import compactness

    model = doc_trainer(encoder, len(reference.class_names), batch)
    model.compile(
        optimizer=keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(learning_rate, steps)
        ),
        loss={
            "compactness": lambda _, embeddings: compactness(embeddings),
            "descriptiveness": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        },
        loss_weights={"compactness": compactness_weight, "descriptiveness": 1.0},
        metrics={"descriptiveness": ["accuracy"]},
        # Compiling for a few hundred steps on a CPU takes longer than it saves.
        jit_compile=False,
    )
    size = tuple(encoder.input_shape[1:3])
    batches = _batches(good, reference, batch, size, rotation_deg, seed)
    history = []
    with tqdm(total=steps, desc="train-encoder", unit="step") as bar:
        for step in range(1, steps + 1):
            rate, began = float(model.optimizer.learning_rate), time.monotonic()
            # Keras averages its metrics until told to forget.
            model.reset_metrics()
            logs = model.train_on_batch(*next(batches), return_dict=True)
            row = {
                "step": step,
                "loss": float(logs["loss"]),
                "descriptiveness": float(logs["descriptiveness_loss"]),
                "compactness": float(logs["compactness_loss"]),
                "accuracy": float(logs["descriptiveness_accuracy"]),
                "learning_rate": rate,
                "seconds": round(time.monotonic() - began, 4),
            }
            if not math.isfinite(row["loss"]):
                raise InputError(
                    f"step {step}: the loss is {row['loss']}; training has diverged, lower "
                    f"--learning-rate (now {learning_rate:g}) or "
                    f"--compactness-weight (now {compactness_weight:g})"
                )
            history.append(row)
            bar.set_postfix(loss=f"{row['loss']:.3f}", compact=f"{row['compactness']:.4f}")
            bar.update()
    return history


def _batches(
    good: Sequence[Sequence[np.ndarray]],
    reference: Reference,
    batch: int,
    size: tuple[int, int],
    rotation_deg: float,
    seed: int,
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    from tools.augment import augment

    rng = np.random.default_rng(seed)

    def network_input(pictures: Sequence[np.ndarray]) -> np.ndarray:
        return _scaled(np.stack([augment(one, rng, rotation_deg, size) for one in pictures]))

    while True:
        for part in good:
            rows = rng.choice(len(part), batch, replace=len(part) < batch)
            others, labels = reference.draw(rng, batch)
            yield (
                {
                    "good": network_input([part[row] for row in rows]),
                    "reference": network_input(others),
                },
                # Compactness has no target; Keras wants one for every output.
                {"compactness": np.zeros((batch, 1), np.float32), "descriptiveness": labels},
            )


def _scaled(pictures_rgb: np.ndarray) -> np.ndarray:
    return pictures_rgb.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def held_out_compactness(encoder: keras.Model, pictures_rgb: Sequence[np.ndarray]) -> float:
    """
    Compactness of good parts that were not trained on, as the device will see them.

    Parameters
    ----------
    encoder : keras.Model
        As from `tools.network.build_encoder`.
    pictures_rgb : sequence of ndarray
        Two or more uint8 RGB pictures of the encoder's input size, not augmented.

    Returns
    -------
    float
        See `tools.losses.compactness`.
    """
    from tools.losses import compactness

    embeddings = encoder.predict(_scaled(np.stack(pictures_rgb)), verbose=0)[0]
    return float(compactness(embeddings))


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
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def _print_summary(out: Path, record: dict) -> None:
    losses = record["losses"]
    print(
        f"{out}: alpha {record['alpha']}, {record['size'][0]} px, "
        f"{record['multiply_adds'] / 1e6:.1f} M multiply-adds, {record['seconds']:.0f} s; "
        f"loss {losses['loss']:.4f}, reference accuracy {losses['accuracy']:.3f}"
    )
    for row in record["data"]:
        print(
            f"  {row['name']}: compactness of {row['held_out_images']} held-out good pictures "
            f"{row['held_out_compactness_before']:.5f} -> {row['held_out_compactness']:.5f}"
        )
