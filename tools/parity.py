"""
Parity: whether a converted model still says what its Keras original says.

Three questions, each weaker in what it assumes than the one before. Are the numbers the same
(`parity`: cosine and largest difference of every output)? Does the part look the same through them
(`compare_judgement`: the same scorer learnt from either, AUROC and threshold of both)? What did the
conversion gain (`median_ms`)?
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_app.align import Alignment, part_weight
from edge_app.encoder import Encoder, quantise, read_float
from edge_app.enrol import Encodings, Learning, learn, usable_maps
from edge_app.errors import EdgeAppError, InputError
from edge_app.held_out import folds
from edge_app.learn_neighbours import ScorerSettings
from edge_app.learn_patches import PatchSettings, affordable_bytes, default_settings
from edge_app.learnt_pictures import LearntPicture
from edge_app.patches import PatchScorer, finest_grid, read_components
from edge_app.records import Encoding
from edge_app.runtime import open_interpreter
from edge_app.scorer import build_scorer
from tools.choose import Bench, draw_on
from tools.metrics import image_auroc
from tools.network import map_shapes_of, multiply_adds, network_input, output_layers

if TYPE_CHECKING:
    import keras

MIN_COSINE = {"float32": 0.999, "float16": 0.999, "int8": 0.97}
"""
Lowest mean cosine between a converted model's outputs and Keras' that is accepted.

Sound int8 conversions of MobileNetV2 reach 0.999 on the pooled embedding and 0.993-0.999 on the
maps, after `tools.equalise` (without it 0.90-0.998); below 0.97 something is wrong, such as ranges
set on other pictures. What is left is a small shift of all scores, which is why a threshold is
calibrated on the scores of the very file that ships.
"""

MAX_AUROC_LOSS = 0.02
"""
By how much the drawn-defect AUROC may fall in a conversion.

Drawn defects stand in for real ones, and differences between recipes of up to 0.015 on them pointed
the wrong way on real defects (see `tools.choose`): a smaller loss than this is none that they can
show.
"""

# What both encoders are learnt by: the scorer that `fit` falls back on, on the maps, and the pooled
# one, on the embedding. Together they see every output but the first of several maps.
JUDGES = ("patches", "lof")
# The rate that 19 pictures support without extrapolation, so that the false rejects counted on a
# few dozen can be compared with it.
WANTED_RATE = 0.05

THRESHOLD_NOTE = (
    "a conversion moves all scores a little, good parts' too: Keras' threshold on the converted "
    "file's scores keeps no promise about false rejects, so each file gets its own"
)
TEST_NOTE = "test split: shows what became of the model; nothing may be chosen by it"

CALLS, BLOCK, WARM_UP = 50, 10, 10


class KerasEncoder:
    """
    A Keras encoder behind the interface of `edge_app.encoder.Encoder`.

    Parameters
    ----------
    model : keras.Model
        As from `tools.network.build_encoder`.

    Attributes
    ----------
    size, embedding_dim, map_shapes, patch_shape, runtime_name
        As of `edge_app.encoder.Encoder`.
    """

    runtime_name = "keras"

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self.size = tuple(int(side) for side in model.input_shape[1:3])
        self.embedding_dim = int(model.outputs[0].shape[1])
        self.map_shapes = map_shapes_of(model)
        self.patch_shape = self.map_shapes[0]

    def encode(self, pixels_rgb: np.ndarray) -> Encoding:
        """Run the network on one picture, uint8 RGB of shape (*size, 3)."""
        # Not `predict`: it builds a data set for every call, which costs more than the network.
        embedding, *maps = self._model.predict_on_batch(model_inputs(pixels_rgb[None]))
        own = tuple(np.asarray(one[0], np.float32) for one in maps)
        return Encoding(np.asarray(embedding[0], np.float32), own[0], own)


def model_inputs(inputs: np.ndarray) -> np.ndarray:
    """
    What Keras takes: float32 inputs as they are, uint8 pictures scaled ``x / 127.5 - 1``.

    Parameters
    ----------
    inputs : ndarray of uint8 or float, shape (N, ...)

    Returns
    -------
    ndarray of float32, shape (N, ...)
    """
    if inputs.dtype == np.uint8:
        return network_input(inputs)
    return inputs.astype(np.float32)


def named_outputs(model: keras.Model, outputs: object) -> dict[str, Any]:
    """What a model gave, by the names of its outputs; "output" where there is only one."""
    if isinstance(outputs, list | tuple):
        return dict(zip(model.output_names, outputs, strict=True))
    return {"output": outputs}


def parity(model: keras.Model, tflite_bytes: bytes, inputs: np.ndarray) -> dict:
    """
    Compare a converted model with its Keras original on the same inputs.

    Parameters
    ----------
    model : keras.Model
        The original.
    tflite_bytes : bytes
        Its conversion of batch 1, from `tools.convert.to_tflite`.
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
    rows = model_inputs(inputs)
    expected = named_outputs(model, model.predict(rows, verbose=0))
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
        interpreter.set_tensor(takes["index"], _tensor(row[None], takes))
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


def _tensor(inputs: np.ndarray, detail: dict) -> np.ndarray:
    # In double precision like the device's table: black and white set the range of an int8 input,
    # which puts each pixel value midway between two steps, and float32 would round them to and fro.
    values = inputs / 127.5 - 1.0 if inputs.dtype == np.uint8 else inputs
    return quantise(values, detail)


def _cosine(want: np.ndarray, have: np.ndarray) -> np.ndarray:
    a = want.reshape(len(want), -1).astype(np.float64)
    b = have.reshape(len(have), -1).astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    # Two silent outputs agree; one silent output agrees with nothing.
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    return np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.where(norms > 0, norms, 1.0))


def outputs_of(found: Mapping[str, Any]) -> dict[str, dict]:
    """Of a report that holds what `parity` found: the figures of each output by its name."""
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, dict) and "cosine" in value
    }


def refuse_strayed(name: str, dtype: str, found: Mapping[str, Any]) -> None:
    """
    Raise if a converted model does not follow its original.

    Parameters
    ----------
    name : {"encoder", "decoder"}
    dtype : {"float32", "float16", "int8"}
    found : mapping
        As from `parity`.

    Raises
    ------
    EdgeAppError
        If the mean cosine of an output is below `MIN_COSINE`, or is no number.
    """
    wanted = MIN_COSINE[dtype]
    for output, figures in outputs_of(found).items():
        # Written so that NaN fails too.
        if not figures["cosine"] >= wanted:
            raise EdgeAppError(
                f"{name}.tflite: mean cosine of its {output} with Keras' is "
                f"{figures['cosine']:.4f}, wanted {wanted} or more for {dtype}; it would judge "
                "differently and is not written"
            )


def compare_judgement(
    model: keras.Model,
    converted: Encoder,
    pictures_rgb: Sequence[np.ndarray],
    test_rgb: Sequence[np.ndarray] = (),
    is_anomaly: Sequence[bool] = (),
    wanted_rate: float = WANTED_RATE,
    seed: int = 0,
    progress: Callable[[int], None] = lambda total: None,
) -> dict[str, Any]:
    """
    Learn the part by each of `JUDGES` through Keras and through the converted encoder.

    Everything but the encoder is the same: pictures, drawn defects, folds, settings. Good pictures
    are scored with their fold held out, and so are the defects drawn on them.

    Parameters
    ----------
    model : keras.Model
        The original encoder.
    converted : Encoder
        Its conversion, with the model's `map_shapes`.
    pictures_rgb : sequence of ndarray of uint8, shape (*size, 3)
        Good parts, 3 or more, no two the same.
    test_rgb : sequence of ndarray of uint8, shape (*size, 3)
        Labelled pictures that were not learnt, or none.
    is_anomaly : sequence of bool
        Of each of these.
    wanted_rate : float
        False-reject rate that the thresholds are set for, above 0, below 0.5.
    seed : int
        Of the drawn defects.
    progress : callable
        Called after each picture that one of the two encoders has encoded, with the number of all.

    Returns
    -------
    dict
        `good`, `drawn_defects`, `wanted_rate`, `threshold_note`; `test` (None without labelled
        pictures): `good`, `defective`, `note`; and `scorers`, by the kind of scorer, of "keras"
        and "converted" each: `drawn_auroc` (held-out good pictures against drawn defects, 0 to 1;
        None where none could be drawn), `threshold`, from its own held-out scores, and
        `test_auroc` (None without labelled pictures); beside them `drawn_auroc_loss`,
        `false_reject_rate`, the share of held-out good pictures that the converted file rejects
        at its `own_threshold` and at `keras_threshold`.

    Raises
    ------
    InputError
        If there are fewer than 3 good pictures, or the answers are not finite.
    """
    alignment = Alignment("none")
    pictures = [
        LearntPicture(f"{row:04d}", picture, "good") for row, picture in enumerate(pictures_rgb)
    ]
    whole = np.ones(pictures_rgb[0].shape[:2], np.float32)
    drawn_rgb, drawn_on = draw_on(pictures_rgb, whole, seed)
    total = 2 * (len(pictures) + len(drawn_rgb) + len(test_rgb))
    shapes = converted.map_shapes
    patches = default_settings(shapes, usable_maps(shapes), affordable_bytes(multiply_adds(model)))
    judges = [ScorerSettings(kind) for kind in JUDGES]
    judges = [one for one in judges if one.kind == "patches" or len(pictures) > one.k + 1]
    found: dict[str, dict[str, dict[str, Any]]] = {one.kind: {} for one in judges}
    held_out: dict[str, dict[str, np.ndarray]] = {one.kind: {} for one in judges}
    for name, encoder in (("keras", KerasEncoder(model)), ("converted", converted)):
        encodings = Encodings(pictures_rgb, encoder, lambda: progress(total))
        drawn = Encodings(drawn_rgb, encoder, lambda: progress(total))
        rows = np.arange(len(encodings))
        bench = Bench(
            encodings, rows, drawn, drawn_on, folds(encodings.groups)[0], encoder, _everywhere
        )
        learnings = {
            one.kind: learn(
                pictures, encoder, alignment, one, wanted_rate, None, patches, encodings
            )
            for one in judges
        }
        scorers = [_scorer(learning, encoder) for learning in learnings.values()]
        test_scores = np.empty((len(test_rgb), len(judges)))
        for row, picture in enumerate(test_rgb):
            encoding = encoder.encode(picture)
            test_scores[row] = [score(encoding) for score in scorers]
            progress(total)
        for column, one in enumerate(judges):
            learning = learnings[one.kind]
            held_out[one.kind][name] = learning.reference["scores"]
            found[one.kind][name] = {
                "drawn_auroc": _drawn_auroc(bench, one, patches) if len(drawn_rgb) else None,
                "threshold": learning.sections["threshold"]["value"],
                "test_auroc": (
                    image_auroc(test_scores[:, column], is_anomaly) if len(test_rgb) else None
                ),
            }
    for kind, figures in found.items():
        before, after = figures["keras"], figures["converted"]
        figures["drawn_auroc_loss"] = (
            before["drawn_auroc"] - after["drawn_auroc"] if len(drawn_rgb) else None
        )
        scores = held_out[kind]["converted"]
        figures["false_reject_rate"] = {
            "own_threshold": float((scores > after["threshold"]).mean()),
            "keras_threshold": float((scores > before["threshold"]).mean()),
        }
    test = None
    if len(test_rgb):
        defective = int(np.count_nonzero(is_anomaly))
        test = {"good": len(test_rgb) - defective, "defective": defective, "note": TEST_NOTE}
    return {
        "good": len(pictures),
        "drawn_defects": len(drawn_rgb),
        "wanted_rate": wanted_rate,
        "threshold_note": THRESHOLD_NOTE,
        "scorers": found,
        "test": test,
    }


def _everywhere(grid: tuple[int, int]) -> np.ndarray:
    return part_weight(Alignment("none"), grid)


def _drawn_auroc(bench: Bench, judge: ScorerSettings, patches: PatchSettings) -> float:
    settings = patches if judge.kind == "patches" else judge
    wanted = patches.image_score if judge.kind == "patches" else ""
    good, bad = next((good, bad) for kind, good, bad in bench.scores(settings) if kind == wanted)
    return image_auroc(np.concatenate([good, bad]), [False] * len(good) + [True] * len(bad))


def _scorer(learning: Learning, encoder: Encoder | KerasEncoder) -> Callable[[Encoding], float]:
    """The device's scorer of what was learnt."""
    section, reference = learning.sections["scorer"], learning.reference
    if section["kind"] != "patches":
        scorer = build_scorer(section["kind"], section["k"], section["feature_scaling"], reference)
        return lambda encoding: scorer.score(encoding.embedding)
    components = read_components(section)
    weight = _everywhere(finest_grid(components, encoder.map_shapes))
    patches = PatchScorer(
        components, reference, weight, section["image_score"], section["smoothing"]
    )
    return lambda encoding: patches.score(patches.anomaly_map(encoding.maps))


def refuse_lost(dtype: str, judgement: Mapping[str, Any], most: float = MAX_AUROC_LOSS) -> None:
    """
    Raise if the converted encoder tells drawn defects clearly worse from good parts.

    Parameters
    ----------
    dtype : {"float32", "float16", "int8"}
    judgement : mapping
        As from `compare_judgement`. Test figures have no say.
    most : float
        By how much the AUROC may fall.

    Raises
    ------
    EdgeAppError
        If a scorer's drawn-defect AUROC falls by more than `most`, or is no number.
    """
    for kind, figures in judgement["scorers"].items():
        loss = figures["drawn_auroc_loss"]
        # Written so that NaN fails too.
        if loss is not None and not loss <= most:
            raise EdgeAppError(
                f"encoder.tflite: as {dtype} its drawn-defect AUROC ({kind}) is "
                f"{figures['converted']['drawn_auroc']:.4f}, Keras' is "
                f"{figures['keras']['drawn_auroc']:.4f}, wanted a loss of {most:g} at most; it "
                "would judge worse and is not written"
            )


def median_ms(files: Mapping[str, bytes], inputs: np.ndarray, calls: int = CALLS) -> dict:
    """
    Milliseconds of one call of each model, on one thread, in blocks that take turns.

    Whatever else the machine does meets all of them, and within a block each finds the caches as
    it leaves them itself.

    Parameters
    ----------
    files : mapping of str to bytes
        TFLite models with one input of the same shape, batch 1.
    inputs : ndarray
        As for `parity`; the first one is used.
    calls : int
        Of each model, after a warm-up.

    Returns
    -------
    dict of str to float
        Median of the calls of each.
    """
    if calls < 1:
        raise InputError(f"{calls} calls to time, wanted 1 or more")
    interpreters = {}
    for name, content in files.items():
        interpreter = open_interpreter(content, 1)
        (takes,) = interpreter.get_input_details()
        interpreters[name] = interpreter, takes["index"], _tensor(inputs[:1], takes)
    times: dict[str, list[float]] = {name: [] for name in files}
    clock = time.perf_counter
    for first in range(-WARM_UP, calls, BLOCK):
        for name, (interpreter, index, tensor) in interpreters.items():
            for _ in range(min(BLOCK, calls - first)):
                started = clock()
                interpreter.set_tensor(index, tensor)
                interpreter.invoke()
                times[name].append((clock() - started) * 1e3)
    return {name: float(np.median(values[WARM_UP:])) for name, values in times.items()}
