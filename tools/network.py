"""
The MobileNetV2 encoder: read it, build it cut at some layers, count its cost, choose its input.

An encoder takes float32 RGB pictures (B, H, W, 3) scaled ``x / 127.5 - 1`` and gives several
outputs from one pass: the *embedding* (B, d), a layer averaged over the picture; the *patches*
(B, h, w, c), the feature map of a layer; and further *maps* of other layers that the pass computes
anyway.

References
----------
Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv 1801.04381.
"""

from __future__ import annotations

import difflib
import glob
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edge_app.errors import InputError

if TYPE_CHECKING:
    import keras

ALPHAS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
"""Width multipliers that Keras names; any of them is recognised in a weights file."""

EMBEDDING_LAYER = "out_relu"
PATCH_LAYER = "block_13_expand_relu"
# Names of the further outputs begin so: a layer of the bare name is in the network already.
MAP_PREFIX = "map_"

MAP_LAYERS = ("block_6_expand_relu", "block_9_add", "block_12_add")
"""
Layers of the further maps: what closes stride 8, and the ends of the two stages of stride 16 before
the patch layer. Their channels differ, so that the device can tell the maps apart.
"""

# Instead of them, in a network that is cut too early to hold any of them beside its patch layer.
EARLY_MAP_LAYERS = ("block_3_expand_relu", "block_5_add")

PRESETS = {"fast": 20e6, "balanced": 100e6, "accurate": 300e6}
"""Budget of an encoder in multiply-adds of one picture."""

INPUT_SIZES_PX = tuple(range(96, 321, 32))
"""Sides of square inputs. Inputs of other shapes keep between their least and most pixels."""

# Sides of inputs that are not square. 16 is the stride of the patch maps: another side would let
# the last column of cells see mostly padding. A side below 48 has too few cells to place a defect,
# one above 512 holds more than the camera gives of a part.
SIDE_STEP_PX = 16
SIDES_PX = tuple(range(48, 513, SIDE_STEP_PX))
# Up to here a crop is taken for square: rounding a side to a multiple of 16 changes as much.
SQUARE_STRETCH = 1.05
# How dear a stretched picture is: with 3, one stretched by 10 % counts as one of a quarter fewer
# pixels. A judgement, not measured.
STRETCH_POWER = 3
# Where even the smallest size is dear: what it may stretch a crop by, to save pixels.
MOST_STRETCH = 1.15

# Where a preset ends the network. On held-out good pictures against drawn defects the average of
# this layer told more apart than that of the last one (alpha 0.35, 128 px, 30 good pictures,
# AUROC: rendered nuts 0.90 against 0.84, screw_presence 0.69 against 0.65, magnetic_tile 0.76
# against 0.70), for a quarter less work.
PRESET_LAYER = "block_13_expand_relu"

# Where the network may be cut, deepest first: the last convolution each embedding layer needs,
# and the patch layer that goes with it. A patch layer is the expansion that closes a resolution
# (stride 16 at block 13, 8 at block 6, 4 at block 3): the richest map there before it is halved.
CUTS = {
    "out_relu": ("Conv_1", "block_13_expand_relu"),
    "block_15_add": ("block_15_project", "block_13_expand_relu"),
    "block_13_expand_relu": ("block_13_expand", "block_13_expand_relu"),
    "block_12_add": ("block_12_project", "block_6_expand_relu"),
    "block_9_add": ("block_9_project", "block_6_expand_relu"),
    "block_6_expand_relu": ("block_6_expand", "block_6_expand_relu"),
    "block_5_add": ("block_5_project", "block_3_expand_relu"),
    "block_3_expand_relu": ("block_3_expand", "block_3_expand_relu"),
}

# One row per block 0..16: output channels at alpha 1, stride.
_BLOCKS = (
    [(16, 1), (24, 2), (24, 1), (32, 2), (32, 1), (32, 1), (64, 2)]
    + [(64, 1)] * 3
    + [(96, 1)] * 3
    + [(160, 2), (160, 1), (160, 1), (320, 1)]
)


class _Convolution(NamedTuple):
    name: str
    kernel: int
    stride: int
    channels_in: int
    channels_out: int
    depthwise: bool

    @property
    def kernel_shape(self) -> tuple[int, int, int, int]:
        last = 1 if self.depthwise else self.channels_out
        return (self.kernel, self.kernel, self.channels_in, last)


def _divisible_by_8(channels: float) -> int:
    # The rule of the MobileNet papers: nearest multiple of 8, never more than 10 % below.
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _convolutions(alpha: float) -> list[_Convolution]:
    channels = _divisible_by_8(32 * alpha)
    rows = [_Convolution("Conv1", 3, 2, 3, channels, False)]
    for index, (filters, stride) in enumerate(_BLOCKS):
        prefix = f"block_{index}" if index else "expanded_conv"
        hidden = channels * 6 if index else channels
        out = _divisible_by_8(int(filters * alpha))
        if index:
            rows.append(_Convolution(f"{prefix}_expand", 1, 1, channels, hidden, False))
        rows.append(_Convolution(f"{prefix}_depthwise", 3, stride, hidden, hidden, True))
        rows.append(_Convolution(f"{prefix}_project", 1, 1, hidden, out, False))
        channels = out
    last = _divisible_by_8(1280 * alpha) if alpha > 1.0 else 1280
    rows.append(_Convolution("Conv_1", 1, 1, channels, last, False))
    return rows


def read_alpha(weights_path: str | Path) -> float:
    """
    Read the width multiplier of a MobileNetV2 from the tensor shapes of its weights file.

    Parameters
    ----------
    weights_path : path
        Keras weights (``.weights.h5``) of a MobileNetV2 without top.

    Returns
    -------
    float
        One of `ALPHAS`.

    Raises
    ------
    InputError
        If the file is missing, is no HDF5 file, or holds another network.
    """
    import h5py

    path = Path(weights_path)
    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    shapes: Counter[tuple[int, ...]] = Counter()

    def collect(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim == 4 and not name.startswith("optimizer"):
            shapes[item.shape] += 1

    try:
        with h5py.File(path, "r") as file:
            file.visititems(collect)
    except OSError as error:
        raise InputError(f"{path}: not a Keras weights file (HDF5, .weights.h5)") from error
    for alpha in ALPHAS:
        if shapes == Counter(row.kernel_shape for row in _convolutions(alpha)):
            return alpha
    raise InputError(
        f"{path}: its {shapes.total()} convolution kernels are not those of a MobileNetV2 "
        f"without top, wanted one of alpha {', '.join(map(str, ALPHAS))}"
    )


def build_encoder(
    weights: str | Path | None,
    size: tuple[int, int],
    embedding_layer: str = EMBEDDING_LAYER,
    patch_layer: str = PATCH_LAYER,
    alpha: float | None = None,
    map_layers: Sequence[str] | None = None,
) -> keras.Model:
    """
    Build the encoder; no layer deeper than the deepest of its outputs remains in it.

    Parameters
    ----------
    weights : path, "imagenet" or None
        A ``.weights.h5`` file; "imagenet" downloads Keras' own; None starts at random.
    size : (int, int)
        Height and width of the input in pixels, 32 or more.
    embedding_layer, patch_layer : str
        Names of MobileNetV2 layers. The first is averaged over the picture.
    alpha : float, optional
        Width multiplier; read from a weights file, required otherwise.
    map_layers : sequence of str, optional
        Layers of the further maps; the patch layer among them is passed over. None takes what
        costs nothing: those of `MAP_LAYERS` that the first two outputs need anyway, or, where
        there are none beside the patch layer, those of `EARLY_MAP_LAYERS`, without those whose
        map has the shape of another. An empty sequence: no further maps.

    Returns
    -------
    keras.Model
        Input float32 RGB (B, height, width, 3) scaled ``x / 127.5 - 1``; outputs
        ``[embedding (B, d), patches (B, h, w, c), *further maps (B, h, w, c)]``, all maps of
        different shapes. The outputs are named "embedding", "patches" and "map_" + layer.

    Raises
    ------
    InputError
        For an unknown layer, map layers of the same shape, unusable weights, a missing alpha or a
        size below 32.
    """
    import keras

    height, width = size
    if min(height, width) < 32:
        raise InputError(f"input size {height}x{width}: wanted 32 pixels or more on each side")
    file = None if weights is None or str(weights) == "imagenet" else Path(weights)
    if file is not None:
        in_file = read_alpha(file)
        if alpha is not None and alpha != in_file:
            raise InputError(f"{file}: has alpha {in_file}, but alpha {alpha} was asked for")
        alpha = in_file
    elif alpha is None:
        raise InputError(f"weights {weights}: alpha must be given, for example 0.35")
    try:
        network = keras.applications.MobileNetV2(
            input_shape=(height, width, 3),
            alpha=alpha,
            include_top=False,
            weights="imagenet" if file is None and weights is not None else None,
        )
    except ValueError as error:
        raise InputError(f"weights {weights}: {str(error).splitlines()[0]}") from error
    except Exception as error:
        # Keras raises a bare Exception for whatever went wrong in a download.
        raise InputError(
            f"weights {weights}: the download failed ({error}); give a .weights.h5 file instead"
        ) from error
    if file is not None:
        try:
            network.load_weights(file)
        except Exception as error:
            # h5py and Keras raise many kinds here for a truncated or foreign file.
            raise InputError(f"{file}: {str(error).splitlines()[0]}") from error
    return _cut(network, embedding_layer, patch_layer, map_layers)


def _cut(
    network: keras.Model,
    embedding_layer: str,
    patch_layer: str,
    map_layers: Sequence[str] | None,
) -> keras.Model:
    import keras

    embedding_map = _layer(network, embedding_layer).output
    patch_map = _layer(network, patch_layer).output
    if map_layers is None:
        needed = keras.Model(network.inputs[0], [embedding_map, patch_map])
        map_layers = _maps_at_no_cost(needed, patch_layer)
    outputs = [
        keras.layers.GlobalAveragePooling2D(name="embedding")(embedding_map),
        keras.layers.Identity(name="patches")(patch_map),
    ]
    taken = {tuple(patch_map.shape[1:]): patch_layer}
    for name in dict.fromkeys(map_layers):
        if name == patch_layer:
            continue
        output = _layer(network, name).output
        shape = tuple(output.shape[1:])
        if shape in taken:
            raise InputError(
                f"map layer {name!r}: its map is {' x '.join(map(str, shape))} like that of "
                f"{taken[shape]!r}, wanted different shapes, by which the device tells maps apart"
            )
        taken[shape] = name
        outputs.append(keras.layers.Identity(name=MAP_PREFIX + name)(output))
    return keras.Model(network.inputs[0], outputs, name="encoder")


def _maps_at_no_cost(needed: keras.Model, patch_layer: str) -> list[str]:
    """The default further maps among the layers of `needed`, no two maps of one shape."""
    present = {layer.name for layer in needed.layers}
    for candidates in (MAP_LAYERS, EARLY_MAP_LAYERS):
        taken = {tuple(needed.get_layer(patch_layer).output.shape[1:])}
        chosen = []
        for name in candidates:
            shape = tuple(needed.get_layer(name).output.shape[1:]) if name in present else None
            if shape is not None and shape not in taken:
                taken.add(shape)
                chosen.append(name)
        if chosen:
            return chosen
    return []


def _layer(network: keras.Model, name: str) -> keras.Layer:
    names = [layer.name for layer in network.layers if len(layer.output.shape) == 4]
    if name not in names:
        raise InputError(unknown_layer(name, names))
    return network.get_layer(name)


def network_input(pictures: np.ndarray) -> np.ndarray:
    """
    What a network of this project takes: pictures scaled ``x / 127.5 - 1``.

    Parameters
    ----------
    pictures : ndarray of uint8, shape (..., 3)
        RGB.

    Returns
    -------
    ndarray of float32, of the same shape
        -1 to 1.
    """
    return pictures.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def pooled_by_stored_statistics(encoder: keras.Model) -> keras.Layer:
    """
    An encoder as a layer that gives its embedding and leaves batch norm's statistics alone.

    A batch of one part is far from the photographs behind those statistics and would drag them
    away from what the device needs for single frames; and where they were folded into scale and
    shift (mean 0, variance 1), updating them would destroy the network. Scale and shift still
    learn.

    Parameters
    ----------
    encoder : keras.Model
        As from `build_encoder`.

    Returns
    -------
    keras.Layer
        Pictures (B, H, W, 3) to embeddings (B, d).
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

    return StoredStatistics(encoder)


def unknown_layer(name: str, names: list[str]) -> str:
    """
    Say that a layer does not exist and which name comes nearest.

    Parameters
    ----------
    name : str
        The layer asked for.
    names : list of str
        The layers there are.

    Returns
    -------
    str
        One sentence.
    """
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return f"layer {name!r}: the encoder has none of this name, the nearest is {nearest[0]!r}"


def layers_of(encoder: keras.Model) -> tuple[str, str]:
    """
    Names of the MobileNetV2 layers that an encoder's embedding and patches come from.

    Parameters
    ----------
    encoder : keras.Model
        As from `build_encoder`, also after saving and loading.

    Returns
    -------
    embedding_layer, patch_layer : str
        As `build_encoder` takes them.
    """
    embedding, patches, *_ = output_layers(encoder).values()
    return embedding, patches


def map_layers_of(encoder: keras.Model) -> tuple[str, ...]:
    """
    Names of the MobileNetV2 layers of an encoder's maps, the patch layer first.

    Parameters
    ----------
    encoder : keras.Model
        As from `build_encoder`, also after saving and loading.

    Returns
    -------
    tuple of str
        In the order of `map_shapes_of`; as ``map_layers`` of `build_encoder` they give the same
        maps again.
    """
    return tuple(output_layers(encoder).values())[1:]


def map_shapes_of(encoder: keras.Model) -> tuple[tuple[int, int, int], ...]:
    """
    Shapes (h, w, c) of an encoder's maps, the patches first.

    Parameters
    ----------
    encoder : keras.Model
        As from `build_encoder`, also after saving and loading.

    Returns
    -------
    tuple of (int, int, int)
        As `edge_app.encoder.Encoder` and the manifest's ``encoder.map_shapes`` take them.
    """
    return tuple(tuple(output.shape[1:]) for output in encoder.outputs[1:])


def output_layers(encoder: keras.Model) -> dict[str, str]:
    """
    The MobileNetV2 layer that each output of an encoder comes from.

    Parameters
    ----------
    encoder : keras.Model
        As from `build_encoder`, also after saving and loading.

    Returns
    -------
    dict of str to str
        Name of the output to name of the layer, in the order of the outputs.
    """
    sources = {name: encoder.get_layer(name).input for name in encoder.output_names}
    return {
        name: next(layer.name for layer in encoder.layers if layer.output is source)
        for name, source in sources.items()
    }


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """
    Write a folder that appears whole or not at all.

    Parameters
    ----------
    path : path
        The folder to make; its parents are made as needed.

    Yields
    ------
    Path
        A folder of another name beside it to write into, renamed when the block ends and removed
        when it raises.

    Raises
    ------
    InputError
        If `path` exists already or cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise InputError(f"{path}: exists already, wanted the name of a new folder")
    _clear_dead(path)
    partial = path.parent / f".{path.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        yield partial
        try:
            partial.rename(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _clear_dead(path: Path) -> None:
    """Remove what processes that were killed had begun to write."""
    for partial in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        number = partial.name.rpartition("-")[2]
        if number.isdigit() and not _is_running(int(number)):
            shutil.rmtree(partial, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def load_run(run_dir: str | Path) -> tuple[keras.Model, dict]:
    """
    Load a RUN folder written by ``train-encoder``.

    Parameters
    ----------
    run_dir : path
        Folder with ``encoder.keras`` and ``run.json``.

    Returns
    -------
    encoder : keras.Model
        As from `build_encoder`.
    run : dict
        The contents of ``run.json``.

    Raises
    ------
    InputError
        If a file is missing or damaged.
    """
    import keras

    folder = Path(run_dir)
    for name in ("run.json", "encoder.keras"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: not a RUN folder, {name} is missing")
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder / 'run.json'}: not JSON ({error})") from error
    if not isinstance(run, dict):
        raise InputError(f"{folder / 'run.json'}: wanted an object, got {type(run).__name__}")
    try:
        encoder = keras.models.load_model(folder / "encoder.keras", compile=False)
    except Exception as error:
        # zipfile, h5py and Keras each raise their own kind for a damaged archive.
        raise InputError(
            f"{folder / 'encoder.keras'}: cannot be loaded ({str(error).splitlines()[0]})"
        ) from error
    return encoder, run


def encoder_from(
    weights: str | Path | None,
    size: tuple[int, int] | None = None,
    embedding_layer: str | None = None,
    patch_layer: str | None = None,
    alpha: float | None = None,
    map_layers: Sequence[str] | None = None,
) -> keras.Model:
    """
    Build an encoder from whatever a user names: a weights file, "imagenet" or a RUN folder.

    Parameters
    ----------
    weights : path, "imagenet" or None
        A folder is taken for a RUN, whose trained weights are moved to `size`.
    size : (int, int), optional
        Height and width in pixels; None keeps the RUN's.
    embedding_layer, patch_layer : str, optional
        None keeps the RUN's, or takes the defaults of `build_encoder`.
    alpha : float, optional
        As in `build_encoder`; a RUN knows its own.
    map_layers : sequence of str, optional
        As in `build_encoder`, whatever outputs a RUN was trained with.

    Returns
    -------
    keras.Model
        As from `build_encoder`.

    Raises
    ------
    InputError
        As `build_encoder` and `load_run`; also if no size is known, or if a layer asked for was
        cut off when the RUN was made.
    """
    if weights is None or str(weights) == "imagenet" or not Path(weights).is_dir():
        if size is None:
            raise InputError(f"weights {weights}: an input size must be given")
        return build_encoder(
            weights,
            size,
            embedding_layer or EMBEDDING_LAYER,
            patch_layer or PATCH_LAYER,
            alpha,
            map_layers,
        )
    trained, run = load_run(weights)
    missing = {"alpha", "size", "embedding_layer", "patch_layer"} - set(run)
    if missing:
        raise InputError(f"{weights}: run.json has no {', '.join(sorted(missing))}")
    if alpha is not None and alpha != run["alpha"]:
        raise InputError(f"{weights}: has alpha {run['alpha']}, but alpha {alpha} was asked for")
    run_layers = (run["embedding_layer"], run["patch_layer"])
    encoder = build_encoder(None, size or tuple(run["size"]), *run_layers, run["alpha"], ())
    # Layer by layer: the order of a model's weights depends on which outputs it has.
    trained_layers = {layer.name: layer for layer in trained.layers}
    for layer in encoder.layers:
        if layer.weights:
            if layer.name not in trained_layers:
                raise InputError(
                    f"{weights}: run.json names {' and '.join(run_layers)}, but encoder.keras "
                    f"has no layer {layer.name}"
                )
            layer.set_weights(trained_layers[layer.name].get_weights())
    return _cut(encoder, embedding_layer or run_layers[0], patch_layer or run_layers[1], map_layers)


def alpha_of(weights: str | Path) -> float:
    """
    Width multiplier of a weights file or a RUN folder.

    Parameters
    ----------
    weights : path
        A ``.weights.h5`` file or a RUN folder.

    Returns
    -------
    float
        The width multiplier.

    Raises
    ------
    InputError
        If it is neither.
    """
    folder = Path(weights)
    if not folder.is_dir():
        return read_alpha(folder)
    try:
        return float(json.loads((folder / "run.json").read_text(encoding="utf-8"))["alpha"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: not a RUN folder, run.json with alpha is missing") from error


def multiply_adds(model: keras.Model) -> int:
    """
    Count the multiply-adds of one picture: convolutions (plain, depthwise, transposed), Dense.

    Parameters
    ----------
    model : keras.Model
        Built, with known spatial sizes; models inside it are counted too.

    Returns
    -------
    int
        Multiply-adds; normalisation, activations, additions and pooling are left out, as in
        the figures of the MobileNetV2 paper.
    """
    import keras

    total = 0
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            total += multiply_adds(layer)
        elif isinstance(layer, keras.layers.Conv2DTranspose):
            total += math.prod(layer.input.shape[1:3]) * math.prod(layer.kernel.shape)
        elif isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
            total += math.prod(layer.output.shape[1:3]) * math.prod(layer.kernel.shape)
        elif isinstance(layer, keras.layers.Dense):
            total += math.prod(layer.output.shape[1:-1]) * math.prod(layer.kernel.shape)
    return total


def encoder_multiply_adds(
    alpha: float, size: tuple[int, int], embedding_layer: str = EMBEDDING_LAYER
) -> int:
    """
    Multiply-adds of an encoder that has not been built, from the shapes of its blocks.

    Parameters
    ----------
    alpha : float
        Width multiplier.
    size : (int, int)
        Height and width in pixels.
    embedding_layer : str
        One of `CUTS`, where the network ends.

    Returns
    -------
    int
        Equal to `multiply_adds` of the built encoder.
    """
    total, (height, width) = 0, size
    for row in _convolutions(alpha):
        height, width = -(-height // row.stride), -(-width // row.stride)
        total += height * width * math.prod(row.kernel_shape)
        if row.name == CUTS[embedding_layer][0]:
            break
    return total


def shaped(pixels: int, aspect: float) -> tuple[int, int]:
    """
    The size of about so many pixels that stretches a crop least.

    Parameters
    ----------
    pixels : int
        Height times width wanted.
    aspect : float
        Width over height of the crop; within 5 % of 1 it counts as square.

    Returns
    -------
    (int, int)
        Height and width, multiples of 16 pixels unless square.
    """
    if max(aspect, 1 / aspect) <= SQUARE_STRETCH:
        side = round(math.sqrt(pixels))
        return side, side
    step = SIDE_STEP_PX
    height = max(SIDES_PX[0], step * round(math.sqrt(pixels / aspect) / step))
    return height, max(SIDES_PX[0], step * round(height * aspect / step))


def choose_input(
    alpha: float, preset: str, aspect: float = 1.0
) -> tuple[tuple[int, int], str, str]:
    """
    Choose input size and cut of an encoder inside the budget of a preset.

    The rule: of the sizes at which the network cut at `PRESET_LAYER` fits, the one with the most
    pixels that stretches the crop least (pixels over stretch to the power `STRETCH_POWER`); if
    none fits, the fewest pixels that stretch the crop by no more than `MOST_STRETCH`, with the
    deepest earlier one of `CUTS` that fits. Sizes are the
    squares of `INPUT_SIZES_PX` where the crop is as good as square, else all sides of `SIDES_PX`
    with no fewer and no more pixels than those squares.

    Parameters
    ----------
    alpha : float
        Width multiplier of the weights.
    preset : str
        A key of `PRESETS`.
    aspect : float
        Width over height of the crop that becomes the input.

    Returns
    -------
    size : (int, int)
        Height and width in pixels.
    embedding_layer, patch_layer : str
        For `build_encoder`.

    Raises
    ------
    InputError
        If the preset is unknown, the aspect no positive number, or no choice fits.
    """
    if preset not in PRESETS:
        raise InputError(f"preset {preset!r}: wanted one of {', '.join(PRESETS)}")
    if not (math.isfinite(aspect) and aspect > 0):
        raise InputError(f"aspect {aspect}: wanted width over height, a number above 0")

    def stretch(size: tuple[int, int]) -> float:
        ratio = size[1] / size[0] / aspect
        return max(ratio, 1 / ratio)

    if stretch((1, 1)) <= SQUARE_STRETCH:
        sizes = [(side, side) for side in INPUT_SIZES_PX]
    else:
        least, most = INPUT_SIZES_PX[0] ** 2, INPUT_SIZES_PX[-1] ** 2
        sizes = [(h, w) for h in SIDES_PX for w in SIDES_PX if least <= h * w <= most]
    by_worth = sorted(sizes, key=lambda size: math.prod(size) / stretch(size) ** STRETCH_POWER)
    smallest = min(sizes, key=lambda size: (max(stretch(size), MOST_STRETCH), math.prod(size)))
    layers = list(CUTS)
    choices = [(size, PRESET_LAYER) for size in reversed(by_worth)]
    choices += [(smallest, layer) for layer in layers[layers.index(PRESET_LAYER) + 1 :]]
    for size, layer in choices:
        if encoder_multiply_adds(alpha, size, layer) <= PRESETS[preset]:
            return size, layer, CUTS[layer][1]
    size, layer = choices[-1]
    raise InputError(
        f"preset {preset}: its {PRESETS[preset] / 1e6:.0f} million multiply-adds are too few for "
        f"alpha {alpha}, which needs {encoder_multiply_adds(alpha, size, layer) / 1e6:.0f} million "
        f"at {size[0]} x {size[1]} pixels even when cut at {layer}; use smaller weights or another "
        "preset"
    )
