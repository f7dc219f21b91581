"""
Convolutional autoencoder: what it cannot redraw was not among the good parts.

Six levels of strided convolutions squeeze a picture of 128 px into 2 x 2 x 64 numbers, six levels
of upsampling draw it again. It learns from good parts alone; the difference between a picture and
its redraw is the heatmap, and the score is made of it. Two differences, each also the loss that the
network is trained with:

- squared: (x - f(x))^2, the article's;
- structural: 1 - SSIM(x, f(x)), the dissimilarity of local windows in brightness, contrast and
  structure, which an edge that is redrawn half a pixel off costs little.

A second heatmap moves the picture downhill on what the network cannot redraw, see
`tools.methods.gradient`.

References
----------
Bergmann, Lowe, Fauser, Sattlegger and Steger, "Improving Unsupervised Defect Segmentation by
Applying Structural Similarity to Autoencoders", arXiv 1807.02011: SSIM as the loss and as the
residual, equations 4 to 8; window of 11 px, pictures of 128 px.
Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment: From Error Visibility to Structural
Similarity", IEEE Transactions on Image Processing 13, 2004: SSIM, its Gaussian window, constants.
Dehaene, Frigo, Combrexelle and Eline, "Iterative energy-based projection on a normal data manifold
for anomaly localization", arXiv 2002.03734: the second heatmap.
Odena, Dumoulin and Olah, "Deconvolution and Checkerboard Artifacts", Distill, 2016: why the decoder
resizes and convolves.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edge_app.runtime import open_interpreter
from tools.encoder_training import CACHE_MARGIN, groups_of, split_good
from tools.methods import Fitted, Method, Part, Size, View, finished, sized
from tools.methods.gradient import Anomaly, downhill, moved_map
from tools.network import network_input
from tools.training import discard, jit_compile, learning_rate, train

if TYPE_CHECKING:
    import keras

DIFFERENCES = ("squared", "structural")

# The article's six levels. Nearly all of the work is at the first ones, so these are narrow: a
# training step of 16 pictures of 128 px then takes 0.07 s of one core (0.16 s with SSIM).
LEVELS = 6
WIDTHS = (8, 16, 32, 64, 64, 64)

# Wang's window and constants; network units span 2, from -1 to 1.
WINDOW_PX, WINDOW_SIGMA_PX = 11, 1.5
C1, C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2

# Share of the pixels that the second score looks at: a defect is small.
LARGEST_SHARE = 0.01

# A picture of no more pixels than that gains nothing from being enlarged to 128 px.
SMALL_PX = 64

# Checks on held-out pictures in a training; so many in a row without a better one end it.
CHECKS, PATIENCE = 20, 5
# Pictures in a pass of the held-out loss.
CHECK_BATCH = 32

# Of the descent. Dehaene's price of 0.05 for pictures from 0 to 1 is 0.1 in network units (the
# squared error grows fourfold with them, the L1 term twofold). Few steps of a high rate: the spots
# that are redrawn worst move first, and after thirty what the network merely blurs has moved too
# (some of the rendered nuts, pixel AUROC: squared 0.81 after thirty steps, 0.84 after ten, 0.76 of
# the difference itself; structural 0.87, 0.90, 0.75).
GRADIENT_STEPS, GRADIENT_RATE, GRADIENT_L1 = 10, 4.0, 0.1


@dataclass(frozen=True)
class Training:
    """
    How the autoencoder is trained.

    Attributes
    ----------
    size_px : int
        Side of the square input, a multiple of 64 for six levels; pictures of `SMALL_PX` get no
        more than that.
    steps, batch : int
        Steps at most, and pictures in a step.
    learning_rate : float
        Adam's at the first step; falls to 0 along a cosine.
    """

    size_px: int = 128
    steps: int = 600
    batch: int = 16
    learning_rate: float = 2e-3


class _Autoencoder(Method):
    """
    What both autoencoders share.

    Parameters
    ----------
    training : Training
    """

    difference: ClassVar[str]
    score_names = ("mean", "largest")

    def __init__(self, training: Training | None = None) -> None:
        self.training = training or Training()

    def fit(self, part: Part, seed: int, state: Path, progress: bool = True) -> Redrawing:
        """
        Train on the good pictures, or find again what was trained.

        A tenth of them, near-duplicates together, is held out; the weights that redraw these best
        are kept.

        Raises
        ------
        InputError
            If there are fewer than 20 good pictures, training diverges, or `state` holds the
            result of other pictures or settings.
        """
        side = input_side(part.good[0].frame_bgr.shape, self.training)
        pictures = sized(part.pictures((side, side)))
        settings = finished.settings_of(self.name, seed, pictures, asdict(self.training))
        folder = finished.find(state, settings)
        if folder is not None:
            return Redrawing(folder)
        import keras

        from tools.convert import to_tflite

        began = time.monotonic()
        learnt, held = split_good(groups_of(pictures), seed, part.data_dir)
        margin = round(side * CACHE_MARGIN)
        larger = [part.good[row].pixels((margin, margin)) for row in learnt]
        network, trained = train_autoencoder(
            larger,
            pictures[held],
            self.difference,
            self.training,
            side,
            seed,
            title=f"{self.name}, {part.name}",
            state=state,
            settings=settings,
            progress=progress,
        )
        notes = finished.notes_of(trained, time.monotonic() - began) | {
            "size_px": side,
            "difference": self.difference,
            "parameters": network.count_params(),
        }
        with finished.keeping(state, settings) as partial:
            content = to_tflite(difference_network(network, self.difference), "float32")
            (partial / "difference.tflite").write_bytes(content)
            # Without its optimiser, which would be two thirds of the file.
            keras.Model(network.input, network.output).save(partial / "autoencoder.keras")
            finished.write_notes(partial, notes)
        discard(state)
        return Redrawing(state / finished.FOLDER)


class Autoencoder(_Autoencoder):
    """The article's: trained on, and scored by, the squared difference."""

    name = "autoencoder"
    title = "Convolutional autoencoder, squared difference"
    paper = "arXiv 1807.02011 (its L2 autoencoder)"
    reported = "pixel AUROC 0.688 (nanofibres, in the paper on SSIM)"
    difference = "squared"


class StructuralAutoencoder(_Autoencoder):
    """Bergmann's: trained on, and scored by, the structural dissimilarity."""

    name = "autoencoder-ssim"
    title = "Convolutional autoencoder, structural dissimilarity"
    paper = "arXiv 1807.02011"
    reported = "pixel AUROC 0.966 (nanofibres)"
    difference = "structural"


class Redrawing(Fitted):
    """
    A trained autoencoder, from its finished folder.

    Scores: ``mean`` of the difference over all pixels, and of its ``largest`` percent.

    Parameters
    ----------
    folder : Path
        With difference.tflite, autoencoder.keras and notes.json.
    """

    maps = ("difference", "gradient")

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        content = (folder / "difference.tflite").read_bytes()
        self.notes: dict[str, Any] = json.loads((folder / "notes.json").read_text("utf-8"))
        self.parameters = int(self.notes["parameters"])
        self.size_bytes = len(content)
        self._size: Size = (self.notes["size_px"], self.notes["size_px"])
        self._interpreter = open_interpreter(content)
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]

    def scores(self, view: View) -> dict[str, float]:
        difference = self._difference(view)
        return {"mean": float(difference.mean()), "largest": mean_of_largest(difference)}

    def map(self, view: View, kind: str) -> np.ndarray:
        """
        ``difference``: as the score takes it. ``gradient``: how far the picture moved downhill.

        Raises
        ------
        KeyError
            For another kind.
        """
        if kind == "difference":
            return view.laid_back(self._difference(view), self._size)
        if kind == "gradient":
            picture = network_input(view.pixels(self._size))
            moved = downhill(self._anomaly, picture, GRADIENT_STEPS, GRADIENT_RATE, GRADIENT_L1)
            return view.laid_back(moved_map(picture, moved), self._size)
        raise KeyError(kind)

    def _difference(self, view: View) -> np.ndarray:
        picture = network_input(view.pixels(self._size))[None]
        self._interpreter.set_tensor(self._input, picture)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._output)[0]

    @cached_property
    def _anomaly(self) -> Anomaly:
        import keras

        network = keras.models.load_model(self._folder / "autoencoder.keras", compile=False)
        return redrawing_anomaly(network, self.notes["difference"])


def input_side(frame_shape: tuple[int, ...], training: Training) -> int:
    """Side of the network's input in pixels for pictures of this shape (height, width, ...)."""
    return min(training.size_px, SMALL_PX) if max(frame_shape[:2]) <= SMALL_PX else training.size_px


def autoencoder(size_px: int = 128) -> keras.Model:
    """
    The network.

    Parameters
    ----------
    size_px : int
        Side of the square input, a multiple of 2^6.

    Returns
    -------
    keras.Model
        Input and output float32 RGB (B, size_px, size_px, 3) in network units. Its starting weights
        follow Keras' own seed.
    """
    import keras
    from keras import layers

    def convolved(x: keras.KerasTensor, width: int, stride: int) -> keras.KerasTensor:
        return layers.Conv2D(
            width,
            3,
            stride,
            padding="same",
            activation="relu",
            kernel_initializer="he_normal",
        )(x)

    if size_px % 2**LEVELS:
        raise ValueError(f"size_px {size_px} is no multiple of {2**LEVELS}")
    inputs = x = keras.Input((size_px, size_px, 3))
    for width in WIDTHS:
        x = convolved(x, width, 2)
    for width in WIDTHS[-2::-1]:
        x = convolved(layers.UpSampling2D(2)(x), width, 1)
    x = layers.UpSampling2D(2)(x)
    # Linear: a squashed output would learn black and white, the most common colours of a
    # background, slowest.
    return keras.Model(inputs, layers.Conv2D(3, 3, padding="same")(x), name="autoencoder")


def train_autoencoder(
    pictures_rgb: Sequence[np.ndarray],
    held_out_rgb: np.ndarray,
    difference: str,
    training: Training,
    size_px: int,
    seed: int,
    *,
    title: str = "autoencoder",
    **loop: Any,
) -> tuple[keras.Model, Any]:
    """
    Train an autoencoder on good parts.

    Parameters
    ----------
    pictures_rgb : sequence of ndarray of uint8, shape (H, W, 3)
        Good parts of any size; changed as a camera would and brought to the input's size.
    held_out_rgb : ndarray of uint8, shape (m, size_px, size_px, 3)
        Good parts whose loss chooses the step whose weights are kept.
    difference : {"squared", "structural"}
        The loss is its mean.
    training : Training
    size_px : int
    seed : int
        Of the starting weights, the batches and the changes.
    title : str
        Named in the progress bar.
    **loop
        Handed on to `tools.training.train`.

    Returns
    -------
    network : keras.Model
        As from `autoencoder`.
    trained : tools.training.Trained

    Raises
    ------
    InputError
        If the loss is no number any more.
    """
    import keras
    from keras import ops

    from tools.augment import augment

    keras.utils.set_random_seed(seed)
    network = autoencoder(size_px)
    network.compile(
        optimizer=keras.optimizers.Adam(learning_rate(training.learning_rate, training.steps)),
        loss=lambda target, redraw: ops.mean(differences(target, redraw, difference)),
        jit_compile=jit_compile(),
    )
    held_out = network_input(held_out_rgb)

    def batch_at(step: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([seed, step])
        count = len(pictures_rgb)
        rows = rng.choice(count, training.batch, replace=count < training.batch)
        changed = [augment(pictures_rgb[row], rng, size=(size_px, size_px)) for row in rows]
        batch = network_input(np.stack(changed))
        return batch, batch

    def validate() -> float:
        total = 0.0
        for first in range(0, len(held_out), CHECK_BATCH):
            batch = held_out[first : first + CHECK_BATCH]
            redraw = network.predict_on_batch(batch)
            total += float(ops.mean(differences(batch, redraw, difference))) * len(batch)
        return total / len(held_out)

    trained = train(
        network,
        batch_at,
        training.steps,
        title=title,
        validate=validate,
        check_every=max(1, training.steps // CHECKS),
        patience=PATIENCE,
        **loop,
    )
    return network, trained


def differences(pictures: Any, redraws: Any, difference: str) -> Any:
    """
    How far pictures are from their redraws, value by value.

    Parameters
    ----------
    pictures, redraws : tensor of float32, shape (B, h, w, 3)
        In network units; sides of at least 6 px for ``structural``.
    difference : {"squared", "structural"}

    Returns
    -------
    tensor of float32, shape (B, h, w, 3)
        ``squared``: 0 or more. ``structural``: 0 (the same) to 2.
    """
    if difference not in DIFFERENCES:
        raise ValueError(f"difference {difference!r} is none of {', '.join(DIFFERENCES)}")
    if difference == "squared":
        return (pictures - redraws) ** 2
    return 1.0 - ssim(pictures, redraws)


def ssim(first: Any, second: Any) -> Any:
    r"""
    Structural similarity around every value, each colour by itself.

    .. math:: \frac{(2 \mu_p \mu_q + c_1)(2 \sigma_{pq} + c_2)}
              {(\mu_p^2 + \mu_q^2 + c_1)(\sigma_p^2 + \sigma_q^2 + c_2)}

    with means and (co)variances over a Gaussian window; the picture is mirrored at its border.

    Parameters
    ----------
    first, second : tensor of float32, shape (B, h, w, c)
        In network units, sides of at least 6 px.

    Returns
    -------
    tensor of float32, shape (B, h, w, c)
        -1 to 1; 1 where both are the same.
    """
    from keras import ops

    half = WINDOW_PX // 2
    taps = np.exp(-0.5 * (np.arange(-half, half + 1) / WINDOW_SIGMA_PX) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    first, second = ops.convert_to_tensor(first), ops.convert_to_tensor(second)
    stacked = ops.concatenate([first, second, first**2, second**2, first * second], axis=-1)
    stacked = ops.pad(stacked, [[0, 0], [half, half], [half, half], [0, 0]], mode="reflect")
    for shape in ((WINDOW_PX, 1), (1, WINDOW_PX)):
        kernel = np.tile(taps.reshape(*shape, 1, 1), (1, 1, stacked.shape[-1], 1))
        stacked = ops.depthwise_conv(stacked, ops.convert_to_tensor(kernel), padding="valid")
    mean_p, mean_q, square_p, square_q, product = ops.split(stacked, 5, axis=-1)
    both, squares = mean_p * mean_q, mean_p**2 + mean_q**2
    covariance, variances = product - both, square_p + square_q - squares
    return (2 * both + C1) * (2 * covariance + C2) / ((squares + C1) * (variances + C2))


def difference_network(network: keras.Model, difference: str) -> keras.Model:
    """
    An autoencoder and its difference as one network, so that one file gives the heatmap.

    Parameters
    ----------
    network : keras.Model
        As from `autoencoder`.
    difference : {"squared", "structural"}

    Returns
    -------
    keras.Model
        Input as of `network`; output float32 (B, h, w), the mean over the colours.
    """
    import keras
    from keras import ops

    class Difference(keras.Layer):
        def call(self, pictures: Any, redraws: Any) -> Any:
            return ops.mean(differences(pictures, redraws, difference), axis=-1)

    inputs = keras.Input(network.input_shape[1:])
    return keras.Model(inputs, Difference()(inputs, network(inputs)))


def redrawing_anomaly(network: keras.Model, difference: str) -> Anomaly:
    """
    What an autoencoder cannot redraw of a picture, to go downhill on.

    Its value is the sum of all differences, and a pixel is the readier to move the worse it is
    redrawn: by (x - f(x))^2, see `tools.methods.gradient`.
    """
    from keras import ops

    def value(x: Any) -> Any:
        return ops.sum(differences(x, network(x, training=False), difference))

    return Anomaly(value, lambda x: (x - network(x, training=False)) ** 2)


def mean_of_largest(difference: np.ndarray) -> float:
    """Mean of the largest `LARGEST_SHARE` of a map's values, one at least; NaN gives NaN."""
    count = math.ceil(LARGEST_SHARE * difference.size)
    # NaN sorts last, and so is among the largest.
    return float(np.partition(difference, -count, axis=None)[-count:].mean())
