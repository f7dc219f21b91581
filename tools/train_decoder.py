"""
``train-decoder``: teach a decoder to redraw good parts from what the frozen encoder kept of them.

The ``standard`` decoder learns as in the articles: good picture in, same picture out. The
``mobile`` decoder learns to restore: the features of a good picture with a defect drawn on it in,
the picture without the defect out, so that at a real defect it draws what should be there. The
encoder is run once over all pictures and its features are kept; only the decoder is trained.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edge_app.arguments import refuse_unwritable, seed
from edge_app.errors import InputError
from tools.drawn_defects import draw_defect
from tools.network import network_input

if TYPE_CHECKING:
    import keras

HELD_OUT_SHARE = 0.1
BATCH = 32

# Feature rows kept in memory, clean and drawn-on together; more good pictures, fewer drawings
# of each.
MOST_ROWS = 2000
MOST_DRAWINGS = 7

STEPS = {"mobile": 500, "standard": 600}
PEAK_LEARNING_RATE = {"mobile": 3e-3, "standard": 1e-3}
MOST_EPOCHS = 120
PATIENCE_SHARE = 0.34


class _Features(NamedTuple):
    """Inputs of the decoder and, for each, which picture it shall redraw."""

    rows: np.ndarray  # (n, ...) float16
    target: np.ndarray  # (n,) int, index into `pictures`
    pictures: np.ndarray  # (m, H, W, 3) uint8; the first m rows are their own features


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``train-decoder``."""
    parser.description = (
        "Train a decoder for the heatmap on the good pictures of one part, with the RUN's frozen\n"
        "encoder; write decoder.keras into the RUN. No defects are needed."
    )
    parser.epilog = (
        "example:\n"
        "  python -m tools train-decoder --run runs/nut --data parts/nut --kind mobile \\\n"
        "    --redraws redraws.png"
    )
    add = parser.add_argument
    add(
        "--run",
        type=Path,
        required=True,
        metavar="RUN",
        help="folder written by train-encoder; decoder.keras and run.json in it are replaced",
    )
    add(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="good parts: a folder with train/good, or with pictures",
    )
    add(
        "--kind",
        choices=("mobile", "standard"),
        default="mobile",
        help="ours, from the patches, or the articles', from the embedding",
    )
    add(
        "--epochs",
        type=int,
        metavar="N",
        help="most passes over the features (default: as many as a few hundred steps take)",
    )
    add("--seed", type=seed, default=0, metavar="N", help="seed of all chance")
    add(
        "--resume",
        action="store_true",
        help="go on with a training of the same arguments that was stopped",
    )
    add(
        "--redraws",
        type=Path,
        metavar="FILE.png",
        help="draw a sheet of held-out good pictures, without and with a drawn defect: each with "
        "its redraw and the difference",
    )


def run(args: argparse.Namespace) -> int:
    """
    Train a decoder into a RUN folder.

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
        For unusable arguments, folders or pictures, or a file that cannot be written.
    """
    if args.epochs is not None and args.epochs < 1:
        raise InputError(f"--epochs {args.epochs}: wanted 1 or more")
    if args.redraws is not None and args.redraws.suffix.lower() != ".png":
        raise InputError(f"--redraws {args.redraws}: wanted a name ending in .png")
    if args.redraws is not None:
        refuse_unwritable(args.redraws)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from edge_app.preprocess import Preprocessing
    from tools.check_data import warn
    from tools.inspection_set import good_pictures, read_prepared
    from tools.network import load_run
    from tools.training import discard, saying_how_to_go_on, state_folder

    paths = good_pictures(args.data)
    encoder, run_record = load_run(args.run)
    warn(args.data)
    state = state_folder(args.run / "decoder", args.resume)
    recipe = Preprocessing(tuple(encoder.input_shape[1:3]))
    pictures_rgb = np.stack(read_prepared(paths, recipe))
    settings = {
        "pictures_sha256": hashlib.sha256(pictures_rgb.tobytes()).hexdigest(),
        "encoder_sha256": hashlib.sha256((args.run / "encoder.keras").read_bytes()).hexdigest(),
        "seed": args.seed,
    }
    with saying_how_to_go_on(state):
        decoder, report = train_decoder(
            encoder, pictures_rgb, args.kind, args.seed, args.epochs, state=state, settings=settings
        )

    run_record["decoder"] = {
        "data": args.data.resolve().name,
        "command_line": args.typed,
        **report,
    }
    text = json.dumps(run_record, indent=2, allow_nan=False) + "\n"
    # The model first: a run.json that names a decoder always has it beside it.
    _replace(args.run / "decoder.keras", decoder.save)
    _replace(args.run / "run.json", lambda path: path.write_text(text, encoding="utf-8"))
    discard(state)
    if args.redraws is not None:
        _, held_at = split_held_out(len(pictures_rgb), args.seed)
        sheet_rgb = redraw_sheet(encoder, decoder, args.kind, pictures_rgb[held_at], args.seed)
        _replace(args.redraws, lambda path: _write_png(path, sheet_rgb))
        print(f"{args.redraws}: picture, redraw, difference; without and with a drawn defect")
    print(
        f"{args.run / 'decoder.keras'}: {report['kind']} decoder, {report['parameters']} "
        f"parameters, redraw error {report['redraw_mae']:.4f} (mean, of 0 to 1) on "
        f"{report['held_out_images']} held-out good pictures, {report['epochs']} epochs in "
        f"{report['seconds']:.0f} s"
    )
    return 0


def train_decoder(
    encoder: keras.Model,
    pictures_rgb: np.ndarray,
    kind: str,
    seed: int,
    epochs: int | None = None,
    progress: bool = True,
    state: Path | None = None,
    settings: dict | None = None,
) -> tuple[keras.Model, dict]:
    """
    Train a decoder on good pictures alone.

    A tenth of the pictures, two at least, is held out; the weights of the epoch that redraws them
    best are kept.

    Parameters
    ----------
    encoder : keras.Model
        Input (B, H, W, 3) float32 RGB ``x / 127.5 - 1``; outputs embedding (B, d) and patches
        (B, h, w, c). It is not changed.
    pictures_rgb : ndarray of uint8, shape (N, H, W, 3)
        Good parts at the encoder's input size, RGB; 4 or more.
    kind : {"mobile", "standard"}
    seed : int
        The same seed and pictures give the same decoder on the same machine and versions.
    epochs : int, optional
        Passes over the cached features at most; None for as many as a few hundred steps take.
    progress : bool
        Whether to show progress bars on stderr.
    state, settings
        Where the checkpoint is kept, and what the pictures and the encoder were, as in
        `tools.training.train`; None keeps none.

    Returns
    -------
    decoder : keras.Model
        As from `tools.decoders.build_decoder`.
    report : dict
        kind, seed, parameters, epochs (run), best_epoch, seconds, train_images, held_out_images,
        held_out (their indices), drawings_per_image, and on the held-out good pictures redraw_mae
        and redraw_mse (of RGB from 0 to 1); mobile: also restored_mae, inside drawn defects
        against the good picture.

    Raises
    ------
    InputError
        If there are fewer than four pictures, `epochs` is below 1, or the loss is not finite.
    ValueError
        If the pictures are not uint8 of the encoder's input size.
    """
    import keras
    from tqdm import tqdm

    from tools.decoders import build_decoder
    from tools.training import learning_rate
    from tools.training import train as run_training

    size = tuple(encoder.input_shape[1:3])
    if pictures_rgb.shape[1:] != (*size, 3) or pictures_rgb.dtype != np.uint8:
        raise ValueError(
            f"pictures must be uint8 (N, {size[0]}, {size[1]}, 3), "
            f"got {pictures_rgb.dtype} {pictures_rgb.shape}"
        )
    if len(pictures_rgb) < 4:
        raise InputError(
            f"decoder: got {len(pictures_rgb)} good pictures, wanted 4 or more, "
            "two to train on and two to hold out"
        )
    if epochs is not None and epochs < 1:
        raise InputError(f"epochs {epochs}: wanted 1 or more")

    started = time.monotonic()
    keras.utils.set_random_seed(seed)
    try:
        decoder = build_decoder(kind, size, encoder.output_shape[0][1], encoder.output_shape[1][1:])
    except ValueError as error:
        raise InputError(f"{kind} decoder: {error}") from None
    rng = np.random.default_rng(seed)
    train_at, held_at = split_held_out(len(pictures_rgb), seed)
    if len(train_at) > MOST_ROWS // 2:
        train_at = np.sort(rng.choice(train_at, MOST_ROWS // 2, replace=False))
    drawings = 0
    if kind == "mobile":
        drawings = min(MOST_DRAWINGS, MOST_ROWS // len(train_at) - 1)
    with tqdm(
        total=len(train_at) * (1 + drawings) + len(held_at) * (2 if drawings else 1),
        desc="features for the decoder",
        unit="picture",
        leave=False,
        disable=not progress,
    ) as bar:
        train = _features(encoder, pictures_rgb[train_at], kind, drawings, rng, bar)[0]
        held, held_masks = _features(
            encoder, pictures_rgb[held_at], kind, min(drawings, 1), rng, bar
        )

    batch = min(BATCH, len(train.rows))
    steps_per_epoch = len(train.rows) // batch
    if epochs is None:
        epochs = min(MOST_EPOCHS, math.ceil(STEPS[kind] / steps_per_epoch))
    steps = epochs * steps_per_epoch
    rate = learning_rate(PEAK_LEARNING_RATE[kind], steps, warmup_steps=steps_per_epoch)
    decoder.compile(optimizer=keras.optimizers.Adam(rate), loss="mse")

    def batch_at(step: int) -> tuple[np.ndarray, np.ndarray]:
        epoch, place = divmod(step - 1, steps_per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(train.rows))
        # Batches of one size: every new size costs seconds of compiling.
        at = order[place * batch : (place + 1) * batch]
        return train.rows[at].astype(np.float32), _unit(train.pictures[train.target[at]])

    def held_out_mse() -> float:
        difference = _redraw(decoder, held.rows) - _unit(held.pictures[held.target])
        return float(np.mean(difference**2))

    trained = run_training(
        decoder,
        batch_at,
        steps,
        title=f"training the {kind} decoder",
        validate=held_out_mse,
        check_every=steps_per_epoch,
        patience=max(5, round(PATIENCE_SHARE * epochs)),
        state=state,
        settings=None if settings is None else {**settings, "kind": kind, "epochs": epochs},
        progress=progress,
    )

    error = np.abs(_redraw(decoder, held.rows) - _unit(held.pictures[held.target]))
    good = error[: len(held_at)]
    report = {
        "kind": kind,
        "seed": seed,
        "parameters": decoder.count_params(),
        "epochs": len(trained.history) // steps_per_epoch,
        "best_epoch": trained.best_step // steps_per_epoch,
        "seconds": round(time.monotonic() - started, 1),
        "train_images": len(train_at),
        "held_out_images": len(held_at),
        "held_out": held_at.tolist(),
        "drawings_per_image": drawings,
        "redraw_mae": float(good.mean()),
        "redraw_mse": float((good**2).mean()),
    }
    if drawings:
        report["restored_mae"] = float(error[len(held_at) :][held_masks].mean())
    return decoder, report


def decoder_of_run(weights: str | Path, encoder: keras.Model) -> tuple[keras.Model, dict] | None:
    """
    The decoder that ``train-decoder`` left in a RUN, if it fits the encoder.

    Parameters
    ----------
    weights : path or "imagenet"
        What the encoder was built from.
    encoder : keras.Model
        As built from it, perhaps at another size or cut at other layers than the RUN.

    Returns
    -------
    (decoder, report) or None
        As from `train_decoder`, but ``held_out`` is empty: it counts the pictures of the RUN's
        data, which need not be the caller's. None if `weights` is no RUN, has no decoder, or has
        one for other features or another size.

    Raises
    ------
    InputError
        If ``decoder.keras`` or its entry in ``run.json`` is damaged.
    """
    import keras

    path = Path(weights) / "decoder.keras"
    if not path.is_file():
        return None
    try:
        decoder = keras.models.load_model(path, compile=False)
    except Exception as error:
        # zipfile, h5py and Keras each raise their own kind for a damaged archive.
        raise InputError(f"{path}: cannot be loaded ({str(error).splitlines()[0]})") from error
    try:
        report = json.loads((path.parent / "run.json").read_text(encoding="utf-8"))["decoder"]
        output = encoder.output_shape[1 if report["kind"] == "mobile" else 0]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path.parent / 'run.json'}: does not describe the decoder beside it ({error!r})"
        ) from error
    fits = decoder.input_shape[1:] == output[1:] and decoder.output_shape == encoder.input_shape
    return (decoder, {**report, "held_out": []}) if fits else None


def redraw_sheet(
    encoder: keras.Model,
    decoder: keras.Model,
    kind: str,
    pictures_rgb: np.ndarray,
    seed: int,
    most_rows: int = 8,
) -> np.ndarray:
    """
    Lay pictures beside their redraws, to be looked at.

    Parameters
    ----------
    encoder, decoder : keras.Model
    kind : {"mobile", "standard"}
        Of the decoder.
    pictures_rgb : ndarray of uint8, shape (N, H, W, 3)
        Good pictures the decoder was not trained on.
    seed : int
        Of the drawn defects.
    most_rows : int
        At most so many pictures are shown.

    Returns
    -------
    sheet_rgb : ndarray of uint8, shape (rows * H, 6 * W, 3)
        A row a picture: picture, redraw, difference; with a defect drawn on it, redraw,
        difference. White is a difference of half the range or more.
    """
    good = pictures_rgb[:most_rows]
    rng = np.random.default_rng(seed)
    columns = []
    for shown in (good, np.stack([draw_defect(picture, rng)[0] for picture in good])):
        redrawn = _redraw(decoder, _encode(encoder, shown, kind))
        difference = np.abs(_unit(shown) - redrawn).mean(axis=3, keepdims=True)
        grey = np.repeat(np.clip(2.0 * difference, 0.0, 1.0), 3, axis=3)
        columns += [shown, np.rint(255.0 * redrawn), np.rint(255.0 * grey)]
    return np.vstack([np.hstack(row) for row in zip(*columns, strict=True)]).astype(np.uint8)


def split_held_out(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Indices of the pictures to train on and to hold out: a tenth, two at least.

    Parameters
    ----------
    count : int
        Number of pictures, 4 or more.
    seed : int
        The same seed holds out the same pictures.

    Returns
    -------
    train, held_out : ndarray of int
        Ascending.
    """
    held = max(2, round(count * HELD_OUT_SHARE))
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def _unit(pictures: np.ndarray) -> np.ndarray:
    return pictures.astype(np.float32) / 255.0


def _encode(encoder, pictures: np.ndarray, kind: str) -> np.ndarray:
    output = 1 if kind == "mobile" else 0
    return _predict(lambda x: encoder.predict_on_batch(network_input(x))[output], pictures)


def _features(encoder, pictures, kind, drawings, rng, bar) -> tuple[_Features, np.ndarray]:
    rows, masks = [], []
    for drawing in range(1 + drawings):
        for start in range(0, len(pictures), BATCH):
            batch = pictures[start : start + BATCH]
            if drawing:
                drawn = [draw_defect(picture, rng) for picture in batch]
                batch = np.stack([picture for picture, _ in drawn])
                masks += [mask for _, mask in drawn]
            rows.append(_encode(encoder, batch, kind).astype(np.float16))
            bar.update(len(batch))
    target = np.tile(np.arange(len(pictures)), 1 + drawings)
    return _Features(np.concatenate(rows), target, pictures), np.array(masks)


def _redraw(decoder, rows: np.ndarray) -> np.ndarray:
    return _predict(decoder.predict_on_batch, rows)


def _predict(network, rows: np.ndarray) -> np.ndarray:
    outputs = []
    for start in range(0, len(rows), BATCH):
        chunk = rows[start : start + BATCH].astype(np.float32)
        # Filled up for the same reason as above.
        filled = np.resize(chunk, (BATCH, *chunk.shape[1:]))
        outputs.append(np.asarray(network(filled), np.float32)[: len(chunk)])
    return np.concatenate(outputs)


def _write_png(path: Path, sheet_rgb: np.ndarray) -> None:
    import cv2

    path.write_bytes(cv2.imencode(".png", cv2.cvtColor(sheet_rgb, cv2.COLOR_RGB2BGR))[1].tobytes())


def _replace(path: Path, write) -> None:
    partial = path.with_name(f".partial-{path.name}")
    try:
        write(partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        # h5py and zipfile raise either for a full disk.
        raise InputError(f"{path}: cannot be written ({str(error).splitlines()[0]})") from None
    finally:
        partial.unlink(missing_ok=True)
