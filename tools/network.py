"""
The MobileNetV2 encoder: read it, build it cut at two layers, count its cost, choose its input.

An encoder takes float32 RGB pictures (B, H, W, 3) scaled ``x / 127.5 - 1`` and gives two
outputs from one pass: the *embedding* (B, d), a layer averaged over the picture, and the
*patches* (B, h, w, c), the feature map of an earlier layer.

References
----------
Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv 1801.04381.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edge_app.errors import InputError

if TYPE_CHECKING:
    import keras

ALPHAS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
"""Width multipliers that Keras names; any of them is recognised in a weights file."""

EMBEDDING_LAYER = "out_relu"
PATCH_LAYER = "block_13_expand_relu"

PRESETS = {"fast": 20e6, "balanced": 100e6, "accurate": 300e6}
"""Budget of an encoder in multiply-adds of one picture."""

INPUT_SIZES_PX = tuple(range(96, 321, 32))

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
) -> keras.Model:
    """
    Build the encoder; no layer deeper than the deeper of the two outputs remains in it.

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

    Returns
    -------
    keras.Model
        Input float32 RGB (B, height, width, 3) scaled ``x / 127.5 - 1``; outputs
        ``[embedding (B, d), patches (B, h, w, c)]`` from layers of these names.

    Raises
    ------
    InputError
        For an unknown layer, unusable weights, a missing alpha or a size below 32.
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
    return _cut(network, embedding_layer, patch_layer)


def _cut(network: keras.Model, embedding_layer: str, patch_layer: str) -> keras.Model:
    import keras

    embedding_map = _layer(network, embedding_layer).output
    patch_map = _layer(network, patch_layer).output
    embedding = keras.layers.GlobalAveragePooling2D(name="embedding")(embedding_map)
    patches = keras.layers.Identity(name="patches")(patch_map)
    return keras.Model(network.inputs[0], [embedding, patches], name="encoder")


def _layer(network: keras.Model, name: str) -> keras.Layer:
    names = [layer.name for layer in network.layers if len(layer.output.shape) == 4]
    if name not in names:
        raise InputError(unknown_layer(name, names))
    return network.get_layer(name)


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
    Names of the MobileNetV2 layers that an encoder's two outputs come from.

    Parameters
    ----------
    encoder : keras.Model
        As from `build_encoder`, also after saving and loading.

    Returns
    -------
    embedding_layer, patch_layer : str
        As `build_encoder` takes them.
    """
    sources = [encoder.get_layer(name).input for name in ("embedding", "patches")]
    embedding, patches = (
        next(layer.name for layer in encoder.layers if layer.output is source) for source in sources
    )
    return embedding, patches


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
            weights, size, embedding_layer or EMBEDDING_LAYER, patch_layer or PATCH_LAYER, alpha
        )
    trained, run = load_run(weights)
    if alpha is not None and alpha != run["alpha"]:
        raise InputError(f"{weights}: has alpha {run['alpha']}, but alpha {alpha} was asked for")
    run_layers = (run["embedding_layer"], run["patch_layer"])
    encoder = build_encoder(None, size or tuple(run["size"]), *run_layers, alpha=run["alpha"])
    encoder.set_weights(trained.get_weights())
    wanted = (embedding_layer or run_layers[0], patch_layer or run_layers[1])
    return encoder if wanted == run_layers else _cut(encoder, *wanted)


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


def encoder_multiply_adds(alpha: float, size: int, embedding_layer: str = EMBEDDING_LAYER) -> int:
    """
    Multiply-adds of an encoder that has not been built, from the shapes of its blocks.

    Parameters
    ----------
    alpha : float
        Width multiplier.
    size : int
        Height and width in pixels.
    embedding_layer : str
        One of `CUTS`, where the network ends.

    Returns
    -------
    int
        Equal to `multiply_adds` of the built encoder.
    """
    total, side = 0, size
    for row in _convolutions(alpha):
        side = -(-side // row.stride)
        total += side * side * math.prod(row.kernel_shape)
        if row.name == CUTS[embedding_layer][0]:
            break
    return total


def choose_input(alpha: float, preset: str) -> tuple[int, str, str]:
    """
    Choose input size and cut of an encoder inside the budget of a preset.

    The rule: the largest size of `INPUT_SIZES_PX` at which the network cut at `PRESET_LAYER`
    fits; if it does not even fit at the smallest size, that size with the deepest earlier one of
    `CUTS` that fits.

    Parameters
    ----------
    alpha : float
        Width multiplier of the weights.
    preset : str
        A key of `PRESETS`.

    Returns
    -------
    size : int
        Height and width in pixels.
    embedding_layer, patch_layer : str
        For `build_encoder`.

    Raises
    ------
    InputError
        If the preset is unknown or no choice fits.
    """
    if preset not in PRESETS:
        raise InputError(f"preset {preset!r}: wanted one of {', '.join(PRESETS)}")
    choices = [(size, PRESET_LAYER) for size in reversed(INPUT_SIZES_PX)]
    layers = list(CUTS)
    earlier = layers[layers.index(PRESET_LAYER) + 1 :]
    choices += [(INPUT_SIZES_PX[0], layer) for layer in earlier]
    for size, layer in choices:
        if encoder_multiply_adds(alpha, size, layer) <= PRESETS[preset]:
            return size, layer, CUTS[layer][1]
    size, layer = choices[-1]
    raise InputError(
        f"preset {preset}: its {PRESETS[preset] / 1e6:.0f} million multiply-adds are too few for "
        f"alpha {alpha}, which needs {encoder_multiply_adds(alpha, size, layer) / 1e6:.0f} million "
        f"at {size} pixels even when cut at {layer}; use smaller weights or another preset"
    )
