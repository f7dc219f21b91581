"""
Convert Keras encoders and decoders to TFLite, and prove that they still say the same.

A conversion is never taken on trust: `parity` runs the converted model in the device's own
runtime beside Keras, and the command refuses a file that says something else.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from edge_app.errors import EdgeAppError, InputError

if TYPE_CHECKING:
    import keras

DTYPES = ("float32", "float16", "int8")

MIN_COSINE = {"float32": 0.999, "float16": 0.999, "int8": 0.9}
"""
Lowest mean cosine between a converted model's outputs and Keras' that is accepted.

Sound int8 conversions of MobileNetV2 reach 0.93-0.98 on the pooled embedding and 0.97-0.99 on the
patches, depending on how far the pictures are from those the weights were trained on; below 0.9
something is wrong, such as ranges set on other pictures. What is left is a small shift of all
scores, which is why a threshold is calibrated on the scores of the very file that ships.
"""

# More pictures than this move the ranges of an int8 model no further and only cost time.
MAX_REPRESENTATIVE = 100
PARITY_PICTURES = 16


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``convert``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Convert the encoder of a RUN, and its decoder if it has one, to TFLite files with a\n"
        "report of how closely they follow Keras (parity.json). Refuses a file that does not."
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
        help="good parts that set the ranges of int8 and are compared (int8 needs them)",
    )


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
    from tools.network import encoder_from, new_folder

    if not args.run.is_dir():
        raise InputError(f"{args.run}: no such RUN folder")
    with new_folder(args.out) as folder:
        encoder = encoder_from(args.run)
        representative, compared = _pictures(args.data, tuple(encoder.input_shape[1:3]))
        models = {"encoder": (encoder, representative, compared)}
        if (args.run / "decoder.keras").is_file():
            decoder = _load_decoder(args.run / "decoder.keras", encoder)
            models["decoder"] = (
                decoder,
                _features(encoder, decoder, representative),
                _features(encoder, decoder, compared),
            )
        report = {}
        for name, (model, ranges, inputs) in models.items():
            content, report[name] = convert_checked(name, model, args.dtype, ranges, inputs)
            (folder / f"{name}.tflite").write_bytes(content)
        _print_table(report)
        text = json.dumps(report, indent=2, allow_nan=False) + "\n"
        (folder / "parity.json").write_text(text, encoding="utf-8")
    return 0


def _pictures(data_dir: Path | None, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    if data_dir is None:
        noise = smooth_noise(size)
        return noise, noise
    from edge_app.preprocess import Preprocessing
    from tools.inspection_set import good_pictures, read_prepared

    paths = good_pictures(data_dir)
    setting = _spread(paths, MAX_REPRESENTATIVE)
    # Compared, as far as there are enough, on pictures that did not set the ranges.
    unseen = [path for path in paths if path not in set(setting)] or setting
    compared = _spread(unseen, PARITY_PICTURES)
    recipe = Preprocessing(size)
    return tuple(np.stack(read_prepared(rows, recipe)) for rows in (setting, compared))


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
    outputs = encoder.predict(_model_inputs(pictures), verbose=0)
    return next(out for out in outputs if out.shape[1:] == tuple(decoder.input_shape[1:]))


def _outputs(entry: dict) -> dict[str, dict]:
    return {name: value for name, value in entry.items() if isinstance(value, dict)}


def _print_table(report: dict) -> None:
    print(
        f"{'file':<16}{'bytes':>9}  {'output':<24}{'layer':<22}{'cosine':>9}{'lowest':>9}"
        f"{'largest diff':>14}"
    )
    for name, entry in report.items():
        for output, figures in _outputs(entry).items():
            print(
                f"{name + '.tflite':<16}{entry['bytes']:>9}  {output:<24}"
                f"{figures.get('layer', '-'):<22}{figures['cosine']:>9.6f}"
                f"{figures['lowest_cosine']:>9.6f}{figures['max_abs_difference']:>14.6f}"
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


def refuse_strayed(name: str, dtype: str, found: dict) -> None:
    """
    Raise if a converted model does not follow its original.

    Parameters
    ----------
    name : {"encoder", "decoder"}
    dtype : {"float32", "float16", "int8"}
    found : dict
        As from `parity`.

    Raises
    ------
    EdgeAppError
        If the mean cosine of an output is below `MIN_COSINE`, or is no number.
    """
    wanted = MIN_COSINE[dtype]
    for output, figures in _outputs(found).items():
        # Written so that NaN fails too.
        if not figures["cosine"] >= wanted:
            raise EdgeAppError(
                f"{name}.tflite: mean cosine of its {output} with Keras' is "
                f"{figures['cosine']:.4f}, wanted {wanted} or more for {dtype}; it would judge "
                "differently and is not written"
            )


def to_tflite(model: keras.Model, dtype: str, representative: np.ndarray | None = None) -> bytes:
    """
    Convert a model with one input to TFLite, its batch fixed at 1.

    Parameters
    ----------
    model : keras.Model
        An encoder (pictures in, embedding, patches and further maps out) or a decoder (patches or
        embedding in, picture out).
    dtype : {"float32", "float16", "int8"}
        float16 stores half-precision weights and computes in float32. int8 is full integer:
        int8 in, int8 out, nothing in between in float.
    representative : ndarray, optional
        For int8: N inputs that set the ranges, either uint8 RGB pictures (N, H, W, 3) or
        float32 inputs (N, ...) as the model takes them.

    Returns
    -------
    bytes
        A TFLite file. Its signature names the outputs as Keras does, or "output" where there is
        only one; the device goes by their ranks and shapes.

    Raises
    ------
    InputError
        For an unknown dtype, int8 without representative inputs of the right shape, or a Keras
        that does not run on TensorFlow.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: wanted one of {', '.join(DTYPES)}")
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

    # An open batch makes tflite-runtime plan memory anew and skip its fast kernels.
    signature = tf.TensorSpec((1, *model.input_shape[1:]), tf.float32, name="input")

    # Outputs go out by name: the converter is free to reorder a list.
    @tf.function(input_signature=[signature])
    def call(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return _named(model, model(inputs, training=False))

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
        inputs = _spread(representative, MAX_REPRESENTATIVE)
        if inputs.dtype == np.uint8:
            inputs = np.concatenate([inputs, _stretched(inputs[:1])])
        inputs = _model_inputs(inputs)
        converter.representative_dataset = lambda: ([row[None]] for row in inputs)
        # Full integer on purpose: the dynamic-range models that the converter makes otherwise
        # (float activations, int8 weights) do not load in tflite-runtime 2.14.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8
    return converter.convert()


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


def _model_inputs(inputs: np.ndarray) -> np.ndarray:
    if inputs.dtype == np.uint8:
        return inputs.astype(np.float32) / np.float32(127.5) - np.float32(1.0)
    return inputs.astype(np.float32)


def parity(model: keras.Model, tflite_bytes: bytes, inputs: np.ndarray) -> dict:
    """
    Compare a converted model with its Keras original on the same inputs.

    Parameters
    ----------
    model : keras.Model
        The original.
    tflite_bytes : bytes
        Its conversion, from `to_tflite`.
    inputs : ndarray
        N inputs, uint8 RGB pictures (N, H, W, 3) or float32 (N, ...).

    Returns
    -------
    dict
        ``inputs`` (int) and per output name ``{"cosine", "lowest_cosine",
        "max_abs_difference"}``: mean and lowest cosine over the inputs, and the largest
        difference of any element, int8 dequantised; of an encoder also ``"layer"``, the
        MobileNetV2 layer that the output comes from.

    Raises
    ------
    EdgeAppError
        If the conversion's outputs have other shapes than the model's, or two of one shape.
    """
    from edge_app.encoder import quantise, read_float
    from edge_app.runtime import open_interpreter
    from tools.network import output_layers

    rows = _model_inputs(inputs)
    expected = _named(model, model.predict(rows, verbose=0))
    interpreter = open_interpreter(tflite_bytes, 1)
    (takes,) = interpreter.get_input_details()
    # By shape, as the device finds them.
    gives = {
        tuple(int(n) for n in detail["shape"][1:]): detail
        for detail in interpreter.get_output_details()
    }
    wanted = sorted(want.shape[1:] for want in expected.values())
    if sorted(gives) != wanted:
        raise EdgeAppError(
            f"conversion: outputs have shapes {sorted(gives)}, wanted {wanted}, no two the same"
        )
    got: dict[str, list[np.ndarray]] = {name: [] for name in expected}
    for row in inputs:
        # In double precision like the device's table: black and white set the range of an int8
        # input, which puts each pixel value midway between two steps, and float32 would round them
        # to and fro.
        values = row / 127.5 - 1.0 if row.dtype == np.uint8 else row
        interpreter.set_tensor(takes["index"], quantise(values[None], takes))
        interpreter.invoke()
        for name, want in expected.items():
            got[name].append(read_float(interpreter, gives[want.shape[1:]]))
    layers = output_layers(model) if "embedding" in expected else {}
    report: dict = {"inputs": len(rows)}
    for name, want in expected.items():
        have = np.stack(got[name])
        cosines = _cosine(want, have)
        report[name] = {
            **({"layer": layers[name]} if name in layers else {}),
            "cosine": float(cosines.mean()),
            "lowest_cosine": float(cosines.min()),
            "max_abs_difference": float(np.abs(want - have).max()),
        }
    return report


def _named(model: keras.Model, outputs: object) -> dict:
    if isinstance(outputs, list | tuple):
        return dict(zip(model.output_names, outputs, strict=True))
    return {"output": outputs}


def _cosine(want: np.ndarray, have: np.ndarray) -> np.ndarray:
    a = want.reshape(len(want), -1).astype(np.float64)
    b = have.reshape(len(have), -1).astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    # Two silent outputs agree; one silent output agrees with nothing.
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    return np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.where(norms > 0, norms, 1.0))
