"""
Convert Keras encoders and decoders to TFLite, and prove that they still say the same.

A conversion is never taken on trust: `tools.parity` runs the converted model in the device's own
runtime beside Keras, and the command refuses a file that says something else.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from edge_app.arguments import rate, seed
from edge_app.encoder import Encoder
from edge_app.enrol import FEW_IMAGES, LEAST_IMAGES
from edge_app.errors import InputError
from edge_app.preprocess import Preprocessing
from tools.equalise import prepared_for_int8
from tools.inspection_set import good_pictures, read_inspection_set, read_prepared
from tools.parity import (
    CALLS,
    MAX_AUROC_LOSS,
    MIN_COSINE,
    WANTED_RATE,
    compare_judgement,
    median_ms,
    model_inputs,
    named_outputs,
    outputs_of,
    parity,
    refuse_lost,
    refuse_strayed,
)

if TYPE_CHECKING:
    import keras

DTYPES = ("float32", "float16", "int8")

# More pictures than this move the ranges of an int8 model no further. All their maps are held in
# memory at once to correct its biases, so of large ones fewer are taken: of so many pixels together
# (2 GB with width 1), but never fewer than the least.
MAX_REPRESENTATIVE, LEAST_REPRESENTATIVE, REPRESENTATIVE_PIXELS = 50, 16, 800_000
PARITY_PICTURES = 16
# Good pictures that the part is learnt from through either model, at most: with the defects drawn
# on them 240 pictures, seconds of Keras.
LEARNT_PICTURES = 60
# Of each class of the test split, at most, spread over it: enough for a standard error of 0.02.
TEST_PICTURES = 200


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``convert``."""
    parser.description = (
        "Convert the encoder of a RUN, and its decoder if it has one, to TFLite files with a\n"
        "report of how closely they follow Keras (parity.json): the numbers of every output,\n"
        "size and speed beside float32, and with --data what they judge: the part is learnt\n"
        "through Keras and through the file, drawn-defect AUROC and threshold of each.\n"
        "Refuses a file that strays, and writes nothing then (exit code 1)."
    )
    parser.epilog = (
        "example:\n"
        "  python -m tools convert --run runs/nut --dtype int8 --data parts/nut --out out/nut_int8"
    )
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="RUN", help="folder made by train-encoder")
    add("--dtype", choices=DTYPES, required=True, help="arithmetic of the TFLite files")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write, a new one")
    add(
        "--data",
        type=Path,
        metavar="DIR",
        help="good parts that set the ranges of int8 and are compared (int8 needs them); if DIR "
        "has a test folder, the AUROC on it is reported, and decides nothing",
    )
    add(
        "--accept-loss",
        type=_loss,
        default=MAX_AUROC_LOSS,
        metavar="X",
        help="refuse a file whose drawn-defect AUROC is lower than Keras' by more than X, 0 to 1",
    )
    add(
        "--rate",
        type=rate,
        default=WANTED_RATE,
        metavar="R",
        help="false-reject rate that the reported thresholds are set for, above 0, below 0.5; "
        f"{FEW_IMAGES} pictures can show the default",
    )
    add(
        "--seed",
        type=seed,
        default=0,
        metavar="N",
        help="of the drawn defects",
    )


def _loss(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a number from 0 to 1")
    return value


def run(args: argparse.Namespace) -> int:
    """
    Convert, compare, write.

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
        For an unusable RUN or DIR, or int8 without pictures.
    EdgeAppError
        If a converted model does not follow Keras closely enough (exit code 1); nothing is
        written then.
    """
    if args.dtype == "int8" and args.data is None:
        raise InputError("--dtype int8: wanted --data DIR with good parts, which set its ranges")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from tools.network import encoder_from, map_shapes_of, new_folder

    if not args.run.is_dir():
        raise InputError(f"{args.run}: no such RUN folder")
    with new_folder(args.out) as folder:
        encoder = encoder_from(args.run)
        pictures = _pictures(args.data, tuple(encoder.input_shape[1:3]))
        representative, compared = pictures.representative, pictures.compared
        models = {"encoder": (encoder, representative, compared)}
        if (args.run / "decoder.keras").is_file():
            decoder = _load_decoder(args.run / "decoder.keras", encoder)
            models["decoder"] = (
                decoder,
                _features(encoder, decoder, representative),
                _features(encoder, decoder, compared),
            )
        report: dict[str, Any] = {}
        for name, (model, ranges, inputs) in models.items():
            content, report[name] = convert_checked(name, model, args.dtype, ranges, inputs)
            report[name] |= _beside_float32(model, args.dtype, content, inputs)
            (folder / f"{name}.tflite").write_bytes(content)
        if len(pictures.learnt) >= LEAST_IMAGES:
            content = (folder / "encoder.tflite").read_bytes()
            device = Encoder(content, 1 / 127.5, -1.0, map_shapes=map_shapes_of(encoder))
            report["judgement"] = _judge(encoder, device, pictures, args)
            refuse_lost(args.dtype, report["judgement"], args.accept_loss)
        _print_tables(report)
        if "judgement" not in report:
            print(
                f"what the files judge was not compared: {len(pictures.learnt)} good pictures, "
                f"wanted at least {LEAST_IMAGES} (--data)"
            )
        text = json.dumps(report, indent=2, allow_nan=False) + "\n"
        (folder / "parity.json").write_text(text, encoding="utf-8")
    return 0


@dataclass(frozen=True)
class _Pictures:
    """uint8 RGB pictures of each step; `in_ranges`: whether those learnt also set the ranges."""

    representative: np.ndarray
    compared: np.ndarray
    learnt: Sequence[np.ndarray] = ()
    in_ranges: bool = False
    test: Sequence[np.ndarray] = ()
    is_anomaly: Sequence[bool] = ()


def _pictures(data_dir: Path | None, size: tuple[int, int]) -> _Pictures:
    if data_dir is None:
        noise = smooth_noise(size)
        return _Pictures(noise, noise)
    recipe = Preprocessing(size)
    paths = good_pictures(data_dir)
    setting = _spread(paths, MAX_REPRESENTATIVE)
    # Compared, as far as there are enough, on pictures that did not set the ranges.
    others = sorted(set(paths) - set(setting), key=paths.index)
    compared = _spread(others or setting, PARITY_PICTURES)
    in_ranges = len(others) < FEW_IMAGES
    learnt = read_prepared(_spread(paths if in_ranges else others, LEARNT_PICTURES), recipe)
    # A picture that is there twice would be its own neighbour, and every density meaningless.
    learnt = list({picture.tobytes(): picture for picture in learnt}.values())
    test_rgb, is_anomaly = [], []
    if (data_dir / "train" / "good").is_dir() and (data_dir / "test").is_dir():
        test = read_inspection_set(data_dir).test
        halves = [
            [one for one in test if one.is_anomaly == defective] for defective in (False, True)
        ]
        if all(halves):
            rows = [one for half in halves for one in _spread(half, TEST_PICTURES)]
            test_rgb = read_prepared([one.path for one in rows], recipe, "test pictures")
            is_anomaly = [one.is_anomaly for one in rows]
    return _Pictures(
        np.stack(read_prepared(setting, recipe)),
        np.stack(read_prepared(compared, recipe)),
        learnt,
        in_ranges,
        test_rgb,
        is_anomaly,
    )


def _judge(
    model: keras.Model, device: Encoder, pictures: _Pictures, args: argparse.Namespace
) -> dict[str, Any]:
    from tqdm import tqdm

    with tqdm(desc="judging by both", unit="picture", delay=2, leave=False) as bar:

        def progress(total: int) -> None:
            bar.total = total
            bar.update()

        found = compare_judgement(
            model,
            device,
            pictures.learnt,
            pictures.test,
            pictures.is_anomaly,
            args.rate,
            args.seed,
            progress,
        )
    return {
        "accept_loss": args.accept_loss,
        # The part is taken as it lies: what counts here is the difference between the two.
        "alignment": "none",
        "good_set_the_ranges": args.dtype == "int8" and pictures.in_ranges,
        **found,
    }


def _beside_float32(
    model: keras.Model, dtype: str, content: bytes, inputs: np.ndarray
) -> dict[str, Any]:
    """Size and speed of a file beside its float32 form, of which the second is measured anew."""
    plain = content if dtype == "float32" else to_tflite(model, "float32")
    files = {"float32": plain, dtype: content}
    ms = median_ms(files, inputs)
    return {
        "float32_bytes": len(plain),
        "latency": {
            "threads": 1,
            "calls": CALLS,
            "ms": ms[dtype],
            "float32_ms": ms["float32"],
            "float32_over_this": ms["float32"] / ms[dtype],
        },
    }


def smooth_noise(size: tuple[int, int]) -> np.ndarray:
    """
    Seeded pictures to compare a conversion on where there are none.

    Smooth, because white noise would die in the first convolutions and compare nothing.

    Returns
    -------
    ndarray of uint8, shape (PARITY_PICTURES, *size, 3)
    """
    coarse = np.random.default_rng(0).integers(0, 256, (PARITY_PICTURES, 12, 12, 3), np.uint8)
    return np.stack([cv2.resize(one, size[::-1]) for one in coarse])


def _load_decoder(path: Path, encoder: keras.Model) -> keras.Model:
    import keras

    try:
        decoder = keras.models.load_model(path, compile=False)
    except Exception as error:
        # zipfile, h5py and Keras each raise their own kind for a damaged archive.
        raise InputError(f"{path}: cannot be loaded ({str(error).splitlines()[0]})") from error
    shapes = [tuple(output.shape[1:]) for output in encoder.outputs]
    if tuple(decoder.input_shape[1:]) not in shapes:
        raise InputError(
            f"{path}: takes {tuple(decoder.input_shape[1:])}, but the encoder beside it gives "
            + " and ".join(map(str, shapes))
        )
    return decoder


def _features(encoder: keras.Model, decoder: keras.Model, pictures: np.ndarray) -> np.ndarray:
    outputs = encoder.predict(model_inputs(pictures), verbose=0)
    return next(out for out in outputs if out.shape[1:] == tuple(decoder.input_shape[1:]))


def _print_tables(report: dict[str, Any]) -> None:
    files = {name: report[name] for name in ("encoder", "decoder") if name in report}
    print(f"{'file':<16}{'output':<24}{'layer':<22}{'cosine':>9}{'lowest':>9}{'largest diff':>14}")
    for name, entry in files.items():
        for output, figures in outputs_of(entry).items():
            print(
                f"{name + '.tflite':<16}{output:<24}{figures.get('layer', '-'):<22}"
                f"{figures['cosine']:>9.6f}{figures['lowest_cosine']:>9.6f}"
                f"{figures['max_abs_difference']:>14.6f}"
            )
    print(
        f"\n{'file':<16}{'dtype':<9}{'bytes':>9}{'as float32':>12}{'ms':>9}{'float32 ms':>12}"
        f"{'float32 / this':>16}"
    )
    for name, entry in files.items():
        latency = entry["latency"]
        print(
            f"{name + '.tflite':<16}{entry['dtype']:<9}{entry['bytes']:>9}"
            f"{entry['float32_bytes']:>12}{latency['ms']:>9.3f}{latency['float32_ms']:>12.3f}"
            f"{latency['float32_over_this']:>16.2f}"
        )
    if "judgement" in report:
        _print_judgement(report["judgement"])


def _print_judgement(judgement: dict[str, Any]) -> None:
    print(f"\n{'scorer, figure':<52}{'Keras':>9}{'converted':>11}")

    def row(what: str, before: float | None, after: float | None) -> None:
        if before is not None and after is not None:
            print(f"{what:<52}{before:>9.4f}{after:>11.4f}")

    for kind, figures in judgement["scorers"].items():
        before, after = figures["keras"], figures["converted"]
        row(f"{kind}, drawn-defect AUROC", before["drawn_auroc"], after["drawn_auroc"])
        row(f"{kind}, own threshold", before["threshold"], after["threshold"])
        rates = figures["false_reject_rate"]
        row(
            f"{kind}, good ones the file rejects at threshold of",
            rates["keras_threshold"],
            rates["own_threshold"],
        )
        row(f"{kind}, image AUROC on test*", before["test_auroc"], after["test_auroc"])
    print(
        f"{judgement['good']} good pictures held out in turn, {judgement['drawn_defects']} defects "
        f"drawn on them, thresholds for a false-reject rate of {judgement['wanted_rate']:.1%}; "
        f"no alignment\n{judgement['threshold_note']}"
    )
    if judgement["good_set_the_ranges"]:
        print("the same good pictures set the ranges of int8: there are too few to keep them apart")
    if judgement["test"]:
        print(
            f"* {judgement['test']['good']} good, {judgement['test']['defective']} defective; "
            f"{judgement['test']['note']}"
        )


def convert_checked(
    name: str,
    model: keras.Model,
    dtype: str,
    representative: np.ndarray | None,
    compared: np.ndarray,
) -> tuple[bytes, dict]:
    """
    Convert a model and refuse a conversion that says something else.

    Parameters
    ----------
    name : {"encoder", "decoder"}
        Named in the error.
    model, dtype, representative
        As in `to_tflite`.
    compared : ndarray
        Inputs to compare on, as in `parity`.

    Returns
    -------
    content : bytes
        The TFLite file.
    report : dict
        dtype, bytes, min_cosine, and what `parity` found.

    Raises
    ------
    EdgeAppError
        If the mean cosine of an output is below `MIN_COSINE`.
    """
    content = to_tflite(model, dtype, representative)
    found = parity(model, content, compared)
    refuse_strayed(name, dtype, found)
    bound = MIN_COSINE[dtype]
    return content, {"dtype": dtype, "bytes": len(content), "min_cosine": bound, **found}


def to_tflite(
    model: keras.Model,
    dtype: str,
    representative: np.ndarray | None = None,
    batch: int = 1,
) -> bytes:
    """
    Convert a model with one input to TFLite, its batch fixed.

    Parameters
    ----------
    model : keras.Model
        An encoder (pictures in, embedding, patches and further maps out) or a decoder (patches or
        embedding in, picture out).
    dtype : {"float32", "float16", "int8"}
        float16 stores half-precision weights and computes in float32. int8 is full integer:
        int8 in, int8 out, nothing in between in float; what takes pictures goes through
        `tools.equalise` first.
    representative : ndarray, optional
        For int8: N inputs that set the ranges, either uint8 RGB pictures (N, H, W, 3) or
        float32 inputs (N, ...) as the model takes them.
    batch : int
        Inputs of one call. Bundles hold models of batch 1, the device refuses others.

    Returns
    -------
    bytes
        A TFLite file. Its signature names the outputs as Keras does, or "output" where there is
        only one; the device goes by their ranks and shapes.

    Raises
    ------
    InputError
        For an unknown dtype, a batch below 1, int8 without representative inputs of the right
        shape, or a Keras that does not run on TensorFlow.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: wanted one of {', '.join(DTYPES)}")
    if batch < 1:
        raise InputError(f"batch {batch}: wanted 1 or more inputs a call")
    import keras

    if keras.backend.backend() != "tensorflow":
        raise InputError(
            f"conversion needs Keras on TensorFlow, got {keras.backend.backend()}; "
            "set KERAS_BACKEND=tensorflow"
        )
    if dtype == "int8":
        shape = tuple(model.input_shape[1:])
        if representative is None or len(representative) == 0:
            raise InputError("int8 needs representative inputs that set its ranges, got none")
        if representative.shape[1:] != shape:
            raise InputError(
                f"representative inputs have shape {representative.shape[1:]}, wanted {shape}"
            )
    import tensorflow as tf

    if dtype == "int8":
        inputs = _spread(representative, MAX_REPRESENTATIVE)
        if inputs.dtype == np.uint8:
            affordable = REPRESENTATIVE_PIXELS // math.prod(inputs.shape[1:3])
            inputs = _spread(inputs, max(LEAST_REPRESENTATIVE, affordable))
            inputs = model_inputs(np.concatenate([inputs, _stretched(inputs[:1])]))
            # With the very inputs that the converter sees, so that its grids are those reckoned
            # with. Decoders, whose inputs are no pictures, follow closely as they are (0.9999).
            model = prepared_for_int8(model, inputs)
        inputs = model_inputs(inputs)

    # An open batch makes tflite-runtime plan memory anew and skip its fast kernels.
    signature = tf.TensorSpec((batch, *model.input_shape[1:]), tf.float32, name="input")

    # Outputs go out by name: the converter is free to reorder a list.
    @tf.function(input_signature=[signature])
    def call(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return named_outputs(model, model(inputs, training=False))

    # The converter turns into constants only the variables that it finds on the tracked object,
    # and it does not find them on a Keras 3 model.
    tracked = tf.Module()
    tracked.weights = [variable.value for variable in model.variables]
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [call.get_concrete_function()], tracked
    )
    if dtype != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if dtype == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if dtype == "int8":
        converter.representative_dataset = lambda: ([rows] for rows in _batches(inputs, batch))
        # Full integer on purpose: the dynamic-range models that the converter makes otherwise
        # (float activations, int8 weights) do not load in tflite-runtime 2.14.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8
    return converter.convert()


def _batches(inputs: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    for first in range(0, len(inputs), batch):
        # The last one is filled up from the front: a repeated input moves no range.
        yield inputs[np.arange(first, first + batch) % len(inputs)]


def _spread(rows: Sequence, count: int) -> Sequence:
    # Over the whole sequence: neighbouring files are often neighbouring moments.
    if len(rows) <= count:
        return rows
    chosen = np.linspace(0, len(rows) - 1, count).round().astype(int)
    return rows[chosen] if isinstance(rows, np.ndarray) else [rows[i] for i in chosen]


def _stretched(pictures: np.ndarray) -> np.ndarray:
    # The input range must reach black and white even if the sample never does: a brighter
    # frame on the device would otherwise be clipped, and a bright defect with it.
    low, high = int(pictures.min()), int(pictures.max())
    scale = 255.0 / max(high - low, 1)
    return ((pictures.astype(np.float32) - low) * scale).round().astype(np.uint8)
