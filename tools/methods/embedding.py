"""
What DOC and the triplet embedding share: train a network, store good embeddings, score and draw.

The network is trained by `tools.encoder_training` and converted once; whatever is scored goes
through the converted one, in the device's runtime and by the device's scorers, so that the bundle
scores as this does. Keras is kept beside it for gradients only.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_app.align import alignment_arrays, alignment_section
from edge_app.bundle import write_bundle
from edge_app.encoder import Encoder
from edge_app.enrol import Gathered, kept_pictures, learn, quality_section
from edge_app.errors import EdgeAppError, InputError
from edge_app.heatmap import Decoder, difference_map
from edge_app.learn_neighbours import ScorerSettings, fit_scorer
from edge_app.learnt_pictures import LearntPicture, fresh_id
from edge_app.quality import measure
from edge_app.records import Encoding
from edge_app.scorer import FeatureScaling, build_scorer
from tools.encoder_training import (
    CACHE_MARGIN,
    Recipe,
    freeze,
    groups_of,
    held_out_compactness,
    refuse_too_few,
    split_good,
    train_encoder,
)
from tools.fit import BLUR_SHARE, COMPARED, RED_OVER_LOW
from tools.methods import Fitted, Part, Size, View
from tools.network import CUTS, shaped
from tools.new_manifest import OFFSET, SCALE, new_manifest
from tools.parity import WANTED_RATE

if TYPE_CHECKING:
    import keras

    from tools.methods.grad_cam import GradCam

# Where the network ends, and the last layer that keeps its weights. Of the settings measured
# before (docs/workstation.md) these two told sneakers from boots best.
LAYER, FREEZE_TO = "block_13_expand_relu", "block_6"
# After so many steps the held-out loss of either method hardly falls any more.
STEPS = 150
# The articles' input; pictures of fewer pixels than the second side would only be blown up.
SIDE_PX, SMALL_SIDE_PX = 96, 64
# Good embeddings that are stored, as many as in the article's own loop.
MOST_STORED = 1000
# Of the standard decoder's twenty million numbers half the precision loses nothing that shows, and
# saves as many bytes as all the rest takes.
DECODER_DTYPES = {"mobile": "float32", "standard": "float16"}
# Half the steps of `train-decoder`: a step of these twenty million numbers takes more than half a
# second on one core, and 300 gave the figures in docs/results.md.
STANDARD_STEPS = 300
# The share of good pixels that a bundle's decoder heatmap leaves unpainted.
UNPAINTED_SHARE = 0.995

_KERAS, _TFLITE, _STORED, _RECORD = (
    "encoder.keras",
    "encoder.tflite",
    "stored.npz",
    "embedding.json",
)


def input_size(part: Part, side_px: int | None = None) -> Size:
    """
    The input of the networks for a part: as many pixels as a square of 96, of 64 for small ones.

    Parameters
    ----------
    part : Part
    side_px : int, optional
        Another side of that square.

    Returns
    -------
    (int, int)
        Height and width in pixels, of the aligned part's shape, multiples of 16 unless square.
    """
    if side_px is None:
        small = max(part.good[0].frame_bgr.shape[:2]) < SMALL_SIDE_PX
        side_px = SMALL_SIDE_PX if small else SIDE_PX
    return shaped(side_px**2, part.alignment.aspect or 1.0)


@dataclass(frozen=True)
class EmbeddingNetwork:
    """
    A trained encoder, and the embeddings of good pictures that scores compare with.

    Attributes
    ----------
    state : Path
        Folder of its files.
    content : bytes
        The TFLite file, float32.
    rows : ndarray of int, shape (n,)
        Which good pictures of the part are stored.
    embeddings : ndarray of float32, shape (n, d)
        Theirs, by the TFLite file.
    record : dict
        ``size``, ``layers`` (embedding, patches), ``map_shapes``, ``parameters`` and
        ``multiply_adds`` of the network, ``weights``, ``training``; as JSON holds it.
    """

    state: Path
    content: bytes
    rows: np.ndarray
    embeddings: np.ndarray
    record: dict[str, Any]

    @property
    def size(self) -> Size:
        """(height, width) of the input."""
        height, width = self.record["size"]
        return height, width

    @cached_property
    def encoder(self) -> Encoder:
        """The TFLite file in the device's runtime, on one thread."""
        return Encoder(self.content, SCALE, OFFSET, map_shapes=self.record["map_shapes"])

    def encode(self, view: View) -> Encoding:
        """The embedding and the patches of a picture."""
        return self.encoder.encode(view.pixels(self.size))

    def keras_model(self) -> keras.Model:
        """The network for gradients."""
        import keras

        return keras.models.load_model(self.state / _KERAS, compile=False)


def learn_embedding(
    part: Part,
    recipe: Recipe,
    state: Path,
    side_px: int | None = None,
    layer: str = LAYER,
    freeze_to: str = FREEZE_TO,
    most_stored: int = MOST_STORED,
    progress: bool = True,
) -> EmbeddingNetwork:
    """
    Train an encoder on a part, convert it, store embeddings; or load all that from its folder.

    Parameters
    ----------
    part : Part
        Its `reference` gives the other classes.
    recipe : Recipe
    state : Path
        Folder for checkpoint and result.
    side_px : int, optional
        Side of a square input, see `input_size`.
    layer, freeze_to : str
        Where the network ends, one of `tools.network.CUTS`, and up to where it keeps its weights,
        see `tools.encoder_training.freeze`.
    most_stored : int
        Good pictures stored at most, spread over all; the same picture twice counts once.
    progress : bool
        Whether to show a progress bar on stderr.

    Returns
    -------
    EmbeddingNetwork

    Raises
    ------
    InputError
        If there are too few good pictures, no usable reference set, the training diverges, or the
        folder holds a run of other settings.
    EdgeAppError
        If the files cannot be written, or the conversion says something else than Keras.
    """
    from tools.train_encoder import weights_origin

    refuse_too_few(len(part.good), part.data_dir)
    size = input_size(part, side_px)
    weights = weights_origin(str(part.weights))
    settings = {
        "recipe": asdict(recipe),
        "weights": weights,
        "size": list(size),
        "layer": layer,
        "freeze_to": freeze_to,
        "most_stored": most_stored,
        "good_sha256": _good_sha256(part),
        "reference": [path.resolve().name for path in part.reference],
        "leave_out": list(part.leave_out),
    }
    if (state / _RECORD).is_file():
        return _load(state, settings)
    network, training = _train(
        part, recipe, state, size, layer, freeze_to, settings, progress=progress
    )
    from tools.convert import convert_checked
    from tools.network import layers_of, map_shapes_of, multiply_adds
    from tools.training import discard

    rows = stored_rows(part, size, most_stored)
    compared = np.stack([part.good[row].pixels(size) for row in rows[:COMPARED]])
    content, _ = convert_checked("encoder", network, "float32", None, compared)
    record = {
        "size": list(size),
        "layers": list(layers_of(network)),
        "map_shapes": [list(shape) for shape in map_shapes_of(network)],
        "parameters": network.count_params(),
        "multiply_adds": multiply_adds(network),
        "weights": weights,
        "training": training,
        "settings": settings,
    }
    made = EmbeddingNetwork(state, content, rows, np.empty((0, 0), np.float32), record)
    embeddings = np.stack([made.encode(part.good[row]).embedding for row in rows])
    made = replace(made, embeddings=embeddings)
    write_whole(state / _KERAS, network.save)
    write_whole(state / _TFLITE, lambda path: path.write_bytes(content))
    write_whole(state / _STORED, lambda path: np.savez(path, rows=rows, embeddings=embeddings))
    # Last: where it is, the others are.
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    write_whole(state / _RECORD, lambda path: path.write_text(text, encoding="utf-8"))
    discard(state)
    return made


def _train(
    part: Part,
    recipe: Recipe,
    state: Path,
    size: Size,
    layer: str,
    freeze_to: str,
    settings: dict[str, Any],
    progress: bool,
) -> tuple[keras.Model, dict[str, Any]]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras

    from tools.network import encoder_from
    from tools.reference_set import open_reference

    if not part.reference:
        raise InputError(
            f"{part.name}: no reference set, wanted labelled pictures of other things "
            f"to train by {recipe.loss}"
        )
    began = time.monotonic()
    cache_size = tuple(math.ceil(side * CACHE_MARGIN) for side in size)
    pictures = part.pictures(cache_size)
    train_at, held_at = split_good(groups_of(pictures), recipe.seed, part.data_dir)
    held = [part.good[row].pixels(size) for row in held_at]
    reference = open_reference(
        part.reference,
        cache_size,
        {part.good[row].path.resolve() for row in held_at},
        [str(name) for name in part.leave_out],
    )
    keras.utils.set_random_seed(recipe.seed)
    network = encoder_from(part.weights, size, layer, CUTS[layer][1], map_layers=())
    freeze(network, freeze_to)
    before = held_out_compactness(network, held)
    trained = train_encoder(
        network,
        [[pictures[row] for row in train_at]],
        [held],
        reference,
        recipe,
        state,
        settings,
        progress,
    )
    network.trainable = True
    earlier = sum(row["seconds"] for row in trained.history[: trained.resumed_from])
    return network, {
        "steps": len(trained.history),
        "best_step": trained.best_step,
        "held_out_loss": trained.best,
        "held_out_compactness": [before, held_out_compactness(network, held)],
        "train_images": len(train_at),
        "held_out_images": len(held_at),
        "reference_classes": len(reference.class_names),
        "seconds": round(earlier + time.monotonic() - began, 1),
    }


def stored_rows(part: Part, size: Size, most: int) -> np.ndarray:
    """
    Which good pictures are stored: at most so many, spread over all, none twice.

    Parameters
    ----------
    part : Part
    size : (int, int)
        At which two pictures that are equal are the same.
    most : int

    Returns
    -------
    ndarray of int, shape (n,)
        Ascending.
    """
    # A picture stored twice has itself for a neighbour: its density would be without end.
    first = {view.pixels(size).tobytes(): row for row, view in reversed([*enumerate(part.good)])}
    rows = np.array(sorted(first.values()))
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]


def _good_sha256(part: Part) -> str:
    """Of the files of the good pictures and of how they are aligned."""
    digest = hashlib.sha256(json.dumps(alignment_section(part.alignment)).encode())
    for array in alignment_arrays(part.alignment).values():
        digest.update(np.ascontiguousarray(array).tobytes())
    for view in part.good:
        digest.update(hashlib.sha256(view.path.read_bytes()).digest())
    return digest.hexdigest()


def _load(state: Path, settings: dict[str, Any]) -> EmbeddingNetwork:
    try:
        record = json.loads((state / _RECORD).read_text(encoding="utf-8"))
        content = (state / _TFLITE).read_bytes()
        with np.load(state / _STORED, allow_pickle=False) as file:
            rows, embeddings = file["rows"], file["embeddings"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{state}: not a whole run ({error}); remove the folder") from error
    stored, asked = record["settings"], json.loads(json.dumps(settings))
    if stored != asked:
        name = next(name for name in asked if stored.get(name) != asked[name])
        raise InputError(
            f"{state}: holds a run with another {name} ({stored.get(name)!r}, now "
            f"{asked[name]!r}); go on with the same, or remove the folder"
        )
    return EmbeddingNetwork(state, content, rows, embeddings, record)


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """
    Write a file whole or not at all.

    Parameters
    ----------
    path : Path
    write : callable
        Writes to the path it is given, which ends as `path` does.

    Raises
    ------
    EdgeAppError
        If it cannot be written.
    """
    partial = path.with_name(f".partial-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        # h5py and zipfile raise either for a full disk.
        raise EdgeAppError(f"{path}: cannot be written ({str(error).splitlines()[0]})") from None
    finally:
        partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class LearntDecoder:
    """
    A trained decoder.

    Attributes
    ----------
    content : bytes
        The TFLite file.
    report : dict
        As from `tools.train_decoder.train_decoder`.
    decoder : Decoder
        Ready to redraw.
    """

    content: bytes
    report: dict[str, Any]
    decoder: Decoder


def learn_decoder(
    network: EmbeddingNetwork,
    part: Part,
    kind: str,
    seed: int,
    epochs: int | None = None,
    progress: bool = True,
) -> LearntDecoder:
    """
    Train a decoder on the stored pictures, or load it from the network's folder.

    Parameters
    ----------
    network : EmbeddingNetwork
    part : Part
    kind : {"mobile", "standard"}
        See `tools.decoders`.
    seed : int
    epochs, progress
        As in `tools.train_decoder.train_decoder`; None gives ``standard`` as many passes as
        `STANDARD_STEPS` take.

    Returns
    -------
    LearntDecoder

    Raises
    ------
    InputError
        As `tools.train_decoder.train_decoder`, or if the files in the folder are damaged.
    EdgeAppError
        If the files cannot be written, or the conversion says something else than Keras.
    """
    record, file = (network.state / f"decoder_{kind}.{ending}" for ending in ("json", "tflite"))
    if record.is_file():
        try:
            report, content = json.loads(record.read_text(encoding="utf-8")), file.read_bytes()
        except (OSError, ValueError) as error:
            raise InputError(f"{record}: not a whole run ({error}); remove the folder") from error
    else:
        content, report = _train_decoder(network, part, kind, seed, epochs, progress)
        text = json.dumps(report, indent=2, allow_nan=False) + "\n"
        write_whole(file, lambda path: path.write_bytes(content))
        write_whole(record, lambda path: path.write_text(text, encoding="utf-8"))
    encoder = network.encoder
    source, shape = "embedding", (encoder.embedding_dim,)
    if kind == "mobile":
        source, shape = "patches", encoder.patch_shape
    return LearntDecoder(content, report, Decoder(content, source, shape, network.size))


def _train_decoder(
    network: EmbeddingNetwork,
    part: Part,
    kind: str,
    seed: int,
    epochs: int | None,
    progress: bool,
) -> tuple[bytes, dict[str, Any]]:
    from tools.convert import convert_checked
    from tools.train_decoder import BATCH, train_decoder

    if epochs is None and kind == "standard":
        epochs = max(1, round(STANDARD_STEPS * BATCH / len(network.rows)))
    views = [part.good[row] for row in network.rows]
    pictures = np.stack([view.pixels(network.size) for view in views])
    # Not checkpointed: what the optimiser keeps of twenty million numbers takes longer to write
    # than the steps between two checkpoints.
    model, report = train_decoder(
        network.keras_model(), pictures, kind, seed, epochs, progress=progress
    )
    encodings = [network.encode(view) for view in views[:COMPARED]]
    compared = np.stack([one.patches if kind == "mobile" else one.embedding for one in encodings])
    return convert_checked("decoder", model, DECODER_DTYPES[kind], None, compared)[0], report


class FittedEmbedding(Fitted):
    """
    An embedding that scores a picture by its nearest stored neighbours.

    Parameters
    ----------
    name : str
        The method's.
    part : Part
    network : EmbeddingNetwork
    scorers : mapping of str to ScorerSettings
        By name of the score, that of the bundle first. All take distances in one space.
    decoders : mapping of str to LearntDecoder
        By kind.

    Raises
    ------
    InputError
        If fewer embeddings are stored than a score has neighbours.
    """

    def __init__(
        self,
        name: str,
        part: Part,
        network: EmbeddingNetwork,
        scorers: Mapping[str, ScorerSettings],
        decoders: Mapping[str, LearntDecoder] | None = None,
    ) -> None:
        self.network = network
        self._name, self._part = name, part
        self._settings, self._decoders = dict(scorers), dict(decoders or {})
        arrays = {"embeddings": network.embeddings}
        for settings in self._settings.values():
            arrays |= fit_scorer(network.embeddings, settings)
        self._scorers = {
            score: build_scorer(settings.kind, settings.k, settings.feature_scaling, arrays)
            for score, settings in self._settings.items()
        }
        first = next(iter(self._settings.values()))
        self._scaling = FeatureScaling.learn(first.feature_scaling, network.embeddings)
        self._grad_cam: GradCam | None = None
        self.parameters = network.record["parameters"] + sum(a.size for a in arrays.values())
        self.size_bytes = len(network.content) + sum(a.nbytes for a in arrays.values())
        self.maps = (*(f"decoder {kind}" for kind in self._decoders), "grad-cam")
        self.notes = {
            **network.record["training"],
            "size": network.record["size"],
            "layers": network.record["layers"],
            "multiply_adds": network.record["multiply_adds"],
            "stored": len(network.embeddings),
            "decoders": {
                kind: {key: value for key, value in one.report.items() if key != "held_out"}
                for kind, one in self._decoders.items()
            },
        }

    def scores(self, view: View) -> dict[str, float]:
        """See `tools.methods.Fitted.scores`; a picture without finite embedding scores NaN."""
        embedding = self.network.encode(view).embedding
        return {name: scorer.score(embedding) for name, scorer in self._scorers.items()}

    def map(self, view: View, kind: str) -> np.ndarray:
        """See `tools.methods.Fitted.map`."""
        if kind not in self.maps:
            raise KeyError(kind)
        pixels_rgb = view.pixels(self.network.size)
        encoding = self.network.encoder.encode(pixels_rgb)
        if kind == "grad-cam":
            values = self._grad_cam_of(pixels_rgb, encoding.embedding)
        else:
            redraw_01 = self._decoders[kind.removeprefix("decoder ")].decoder.redraw(encoding)
            values = difference_map(pixels_rgb, redraw_01, BLUR_SHARE)
        return view.laid_back(values, self.network.size)

    def _grad_cam_of(self, pixels_rgb: np.ndarray, embedding: np.ndarray) -> np.ndarray:
        if self._grad_cam is None:
            from tools.methods.grad_cam import GradCam

            layer = self.network.record["layers"][0]
            self._grad_cam = GradCam(self.network.keras_model(), layer, self._scaling)
        rows, _ = next(iter(self._scorers.values())).neighbours(embedding)
        return self._grad_cam.map(pixels_rgb, self.network.embeddings[rows])

    def write_bundle(self, path: Path) -> None:
        """
        Write the bundle that ``edge-app inspect`` takes; it scores as the first of `scores` does.

        Threshold, quality limits and what else the device asks for are learnt from the stored
        pictures, as ``fit`` learns them. The mobile decoder goes with it where there is one.

        Raises
        ------
        InputError
            If `path` exists or cannot be written.
        """
        network, part = self.network, self._part
        pictures, taken = [], set()
        for row in network.rows:
            view = part.good[row]
            image_id = fresh_id(view.path.name, taken)
            taken.add(image_id)
            pixels_rgb, measured = view.pixels(network.size), measure(view.frame_bgr)
            pictures.append(LearntPicture(image_id, pixels_rgb, measures=measured))
        settings = next(iter(self._settings.values()))
        learning = learn(pictures, network.encoder, part.alignment, settings, WANTED_RATE)
        sections = dict(learning.sections)
        sections["quality"] = quality_section(Gathered(pictures, None, []), learning)
        decoder = self._decoders.get("mobile")
        if decoder is not None:
            sections["decoder"] = self._decoder_section(decoder, pictures)
        packed, _ = kept_pictures(learning.pictures)
        write_bundle(
            path,
            {**self._manifest(path, len(pictures)), **sections},
            network.content,
            None if decoder is None else decoder.content,
            learning.reference,
            packed,
        )

    def _decoder_section(
        self, decoder: LearntDecoder, pictures: list[LearntPicture]
    ) -> dict[str, Any]:
        # On pictures the decoder was not trained on: on its own it would look better than it is.
        shown = [pictures[row].pixels_rgb for row in decoder.report["held_out"]]
        redraws = [decoder.decoder.redraw(self.network.encoder.encode(one)) for one in shown]
        maps = [
            difference_map(one, redraw_01, BLUR_SHARE)
            for one, redraw_01 in zip(shown, redraws, strict=True)
        ]
        low = float(np.quantile(np.stack(maps), UNPAINTED_SHARE))
        return {
            "kind": "mobile",
            "source": "patches",
            "blur_share": BLUR_SHARE,
            "colour_scale": {"low": low, "high": RED_OVER_LOW * low},
            "training": decoder.report,
        }

    def _manifest(self, path: Path, images: int) -> dict[str, Any]:
        """What of a manifest is not learnt, as `tools.fit` writes it."""
        record, encoder = self.network.record, self.network.encoder
        embedding_layer, patch_layer = record["layers"]
        command = shlex.join(
            ["python", "-m", "tools", "compare", "--data", str(self._part.data_dir)]
            + ["--methods", self._name]
        )
        return new_manifest(
            path.name,
            command,
            encoder.size,
            {
                "dtype": "float32",
                "embedding_shape": [encoder.embedding_dim],
                "patch_shape": list(encoder.patch_shape),
                "map_shapes": [list(shape) for shape in encoder.map_shapes],
                "map_layers": [patch_layer],
                "embedding_layer": embedding_layer,
                "patch_layer": patch_layer,
                "multiply_adds": record["multiply_adds"],
            },
            {
                "weights": record["weights"]["name"],
                "weights_sha256": record["weights"]["sha256"],
                "run": {"method": self._name, **record["training"], **record["settings"]["recipe"]},
                "good_images": images,
            },
        )
