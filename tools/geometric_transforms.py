"""
DADGT, deep anomaly detection by geometric transformations: was the picture turned, and how far?

A small network learns, from good parts alone, which of four rotations was applied to a picture. On
a part like those it learnt from it is sure and right; on another it is less so. The four rotations
of a picture give four softmax vectors y(T_i(x)); two normalities are made of them, and a score is a
NEGATIVE normality, so that higher is more anomalous:

- ``softmax``: the probability of the rotation that was applied, averaged over the four,
  n(x) = 1/4 sum_i y(T_i(x))_i;
- ``dirichlet``: the softmax vectors of the good pictures under rotation i follow a Dirichlet
  distribution whose parameters alpha_i are fitted by maximum likelihood;
  n(x) = sum_i (alpha_i - 1) . log y(T_i(x)), its log-density without the constant.

The article took four rotations of the paper's 72 transforms. What a rotation cannot change, a round
part or parts that lie at any angle, this method cannot learn from; whatever else tells "up" from
"left" then becomes its cue: light, background, or the artefacts of the file format.

References
----------
Golan and El-Yaniv, "Deep Anomaly Detection Using Geometric Transformations", arXiv 1805.10917.
Minka, "Estimating a Dirichlet distribution", 2000 (revised 2012): the steps of the fit.
Wicker, Muller, Kalathur and Poch, "A maximum likelihood approximation method for Dirichlet's
parameter estimation", Computational Statistics & Data Analysis 52, 2008: where the fit starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_app.errors import InputError
from tools.network import network_input

if TYPE_CHECKING:
    import keras

    from tools.training import Trained

ROTATIONS = 4
SCORES = ("dirichlet", "softmax")

# Channels of the stem and the three residual stages. A quarter of the paper's WRN-10-4, at a
# seventh of its multiply-adds: two hundred good pictures do not fill a larger one, and a step with
# 64 pictures of 64 px takes about 0.15 s on two cores.
WIDTHS = (16, 16, 32, 64)
# Of the running means of batch norm. Keras' 0.99 still holds a twentieth of the start after 300
# steps, and short trainings would be judged by it.
BATCH_NORM_MOMENTUM = 0.9
# Pictures to a pass when scoring.
SCORING_BATCH = 256

# The fit of a Dirichlet distribution ends where a step changes no parameter by more than this,
# relatively; Newton's steps converge quadratically, so what is left then is rounding.
FIT_TOLERANCE = 1e-10
MOST_FIT_STEPS = 200
# Relative to the largest term of the likelihood: some ten roundings of float64.
LIKELIHOOD_ROUNDING = 2e-15
# Vectors that are all equal have no spread, and their likelihood has no maximum: it grows with the
# parameters for ever. At a sum this large their spread is below float32's of the softmax.
MOST_CONCENTRATION = 1e12


@dataclass(frozen=True)
class TrainingSettings:
    """
    How the classifier is trained.

    Attributes
    ----------
    steps : int
    batch : int
        Pictures a step; each comes in all four rotations.
    learning_rate : float
        Adam's at the first step; falls to 0 along a cosine.
    """

    steps: int = 300
    batch: int = 16
    learning_rate: float = 1e-3


def rotated(pictures: np.ndarray) -> np.ndarray:
    """
    All four rotations of some pictures, exact: no pixel is interpolated.

    Parameters
    ----------
    pictures : ndarray, shape (n, s, s, c)
        Square pictures of any dtype.

    Returns
    -------
    ndarray, shape (4 n, s, s, c)
        First all pictures as they are, then all turned counter-clockwise by 90, 180 and 270
        degrees. `rotation_labels` names them.

    Raises
    ------
    ValueError
        If the pictures are not square: a quarter turn would change their shape.
    """
    if pictures.ndim != 4 or pictures.shape[1] != pictures.shape[2]:
        raise ValueError(f"rotations need square pictures (n, s, s, c), got {pictures.shape}")
    return np.concatenate([np.rot90(pictures, turns, axes=(1, 2)) for turns in range(ROTATIONS)])


def rotation_labels(count: int) -> np.ndarray:
    """Labels 0 to 3 of `rotated` for `count` pictures, ndarray of int64, shape (4 count,)."""
    return np.repeat(np.arange(ROTATIONS), count)


def rotation_classifier(size_px: int = 64) -> keras.Model:
    """
    The network: a pre-activation residual network of three stages, compiled for nothing yet.

    Parameters
    ----------
    size_px : int
        Side of the square input, a multiple of 8.

    Returns
    -------
    keras.Model
        Input float32 RGB (B, size_px, size_px, 3) scaled ``x / 127.5 - 1``; output float32 logits
        (B, 4). Its starting weights follow Keras' own seed.
    """
    import keras
    from keras import layers

    def activated(x: keras.KerasTensor) -> keras.KerasTensor:
        return layers.ReLU()(layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM)(x))

    def convolved(x: keras.KerasTensor, width: int, kernel: int, stride: int) -> keras.KerasTensor:
        return layers.Conv2D(
            width,
            kernel,
            stride,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
        )(x)

    inputs = keras.Input((size_px, size_px, 3))
    # The stem keeps every pixel: what only full resolution shows is decided on by the network.
    x = convolved(inputs, WIDTHS[0], 3, 1)
    for width in WIDTHS[1:]:
        first = activated(x)
        short = convolved(first, width, 1, 2)
        x = convolved(activated(convolved(first, width, 3, 2)), width, 3, 1)
        x = layers.Add()([x, short])
    x = layers.GlobalAveragePooling2D()(activated(x))
    return keras.Model(inputs, layers.Dense(ROTATIONS)(x), name="rotation_classifier")


def train_classifier(
    pictures_rgb: Sequence[np.ndarray],
    settings: TrainingSettings,
    *,
    seed: int,
    size_px: int = 64,
    augmentation: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
    held_out_rgb: np.ndarray | None = None,
    title: str = "rotations",
    progress: bool = True,
    **loop: object,
) -> tuple[keras.Model, Trained]:
    """
    Train a classifier of rotations on good parts.

    Parameters
    ----------
    pictures_rgb : sequence of ndarray of uint8, shape (H, W, 3)
        Good parts, upright. Without `augmentation` each is `size_px` square.
    settings : TrainingSettings
    seed : int
        Of the starting weights, the batches and the augmentation.
    size_px : int
        Side of the network's input.
    augmentation : callable, optional
        ``(picture, rng) -> picture`` of uint8, `size_px` square, before it is turned.
    held_out_rgb : ndarray of uint8, shape (m, size_px, size_px, 3), optional
        Good parts not trained on: their loss chooses the step whose weights are kept.
    title : str
        Named in the progress bar.
    progress : bool
        Whether to show it.
    **loop
        Handed on to `tools.training.train`, such as ``state`` or ``patience``.

    Returns
    -------
    model : keras.Model
        As from `rotation_classifier`.
    trained : Trained
        History and the best check.

    Raises
    ------
    InputError
        If there is no picture, or the loss is no number any more.
    """
    if len(pictures_rgb) == 0:
        raise InputError(f"{title}: no picture to train on")
    import keras

    from tools.training import jit_compile, learning_rate, train

    keras.utils.set_random_seed(seed)
    model = rotation_classifier(size_px)
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate(settings.learning_rate, settings.steps)),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=jit_compile(),
    )

    def batch_at(step: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([seed, step])
        count = len(pictures_rgb)
        rows = rng.choice(count, settings.batch, replace=count < settings.batch)
        pictures = [pictures_rgb[row] for row in rows]
        if augmentation is not None:
            pictures = [augmentation(picture, rng) for picture in pictures]
        return rotated(network_input(np.stack(pictures))), rotation_labels(settings.batch)

    def validate() -> float:
        return rotation_loss(log_probabilities(model, held_out_rgb))

    trained = train(
        model,
        batch_at,
        settings.steps,
        title=title,
        validate=None if held_out_rgb is None else validate,
        progress=progress,
        **loop,
    )
    return model, trained


def log_probabilities(model: keras.Model, pictures_rgb: np.ndarray) -> np.ndarray:
    """
    Logarithm of the softmax of every picture under every rotation.

    Parameters
    ----------
    model : keras.Model
        As from `rotation_classifier`.
    pictures_rgb : ndarray of uint8, shape (n, s, s, 3)

    Returns
    -------
    ndarray of float64, shape (n, 4, 4)
        ``[picture, rotation applied, rotation recognised]``. From the logits in float64: however
        sure the network is, no value is minus infinity.
    """
    logits = model.predict(
        rotated(network_input(np.asarray(pictures_rgb))), batch_size=SCORING_BATCH, verbose=0
    ).astype(np.float64)
    largest = logits.max(axis=1, keepdims=True)
    log_sum = largest + np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
    by_rotation = (logits - log_sum).reshape(ROTATIONS, -1, ROTATIONS)
    return np.ascontiguousarray(by_rotation.transpose(1, 0, 2))


def rotation_loss(log_p: np.ndarray) -> float:
    """Cross-entropy, nats, of `log_probabilities`; ln 4 = 1.386 where nothing was learnt."""
    return float(-np.diagonal(log_p, axis1=1, axis2=2).mean())


def rotation_accuracy(log_p: np.ndarray) -> float:
    """Share, 0 to 1, of rotations recognised in `log_probabilities`; 0.25 by guessing."""
    return float((log_p.argmax(axis=2) == np.arange(ROTATIONS)).mean())


def softmax_scores(log_p: np.ndarray) -> np.ndarray:
    """
    Negative probability of the rotation applied, averaged over the four.

    Parameters
    ----------
    log_p : ndarray of float64, shape (n, 4, 4)
        As from `log_probabilities`.

    Returns
    -------
    ndarray of float64, shape (n,)
        -1 (sure and right four times) to 0; higher is more anomalous. NaN gives NaN.
    """
    return -np.exp(np.diagonal(log_p, axis1=1, axis2=2)).mean(axis=1)


def dirichlet_scores(log_p: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """
    Negative Dirichlet normality, -sum_i (alpha_i - 1) . log y(T_i(x)).

    Parameters
    ----------
    log_p : ndarray of float64, shape (n, 4, 4)
        As from `log_probabilities`.
    alphas : ndarray of float64, shape (4, 4)
        Row i: parameters of the good pictures' softmax vectors under rotation i.

    Returns
    -------
    ndarray of float64, shape (n,)
        Unbounded; higher is more anomalous. NaN gives NaN.
    """
    return -np.einsum("nij,ij->n", log_p, alphas - 1.0)


@dataclass(frozen=True)
class RotationScorer:
    """
    A trained classifier and what good pictures look like to it.

    Attributes
    ----------
    model : keras.Model
        As from `rotation_classifier`.
    alphas : ndarray of float64, shape (4, 4)
        As `dirichlet_scores` takes them.
    """

    model: keras.Model
    alphas: np.ndarray

    @classmethod
    def fit(cls, model: keras.Model, good_rgb: np.ndarray) -> RotationScorer:
        """
        Fit the four Dirichlet distributions.

        Parameters
        ----------
        model : keras.Model
            Trained.
        good_rgb : ndarray of uint8, shape (n, s, s, 3)
            Good pictures, not augmented; two or more.

        Raises
        ------
        InputError
            If there are fewer than two pictures, or the network answers with NaN.
        """
        log_p = log_probabilities(model, good_rgb)
        return cls(model, np.stack([fit_dirichlet(log_p[:, i]) for i in range(ROTATIONS)]))

    def scores(self, pictures_rgb: np.ndarray) -> dict[str, np.ndarray]:
        """
        Both scores of some pictures.

        Parameters
        ----------
        pictures_rgb : ndarray of uint8, shape (n, s, s, 3)

        Returns
        -------
        dict of str to ndarray of float64, shape (n,)
            A key of `SCORES` each; higher is more anomalous.
        """
        log_p = log_probabilities(self.model, pictures_rgb)
        return {
            "dirichlet": dirichlet_scores(log_p, self.alphas),
            "softmax": softmax_scores(log_p),
        }


def fit_dirichlet(log_p: np.ndarray) -> np.ndarray:
    r"""
    Maximum-likelihood parameters of a Dirichlet distribution.

    The mean log-likelihood depends on the vectors only through l, the mean of their logarithms:

    .. math:: F(\alpha) = \ln\Gamma(s) - \sum_k \ln\Gamma(\alpha_k) + \sum_k (\alpha_k - 1) l_k,
              \quad s = \sum_k \alpha_k

    It is concave, so its maximum is the only one. Each step is Minka's of Newton, whose Hessian
    (diagonal plus a constant) is inverted in closed form. It is halved until it stays among the
    positive numbers and loses no likelihood: from far away a whole one may do either.

    Parameters
    ----------
    log_p : ndarray of float64, shape (n, k)
        Logarithms of n >= 2 vectors of k >= 2 positive numbers that sum to 1.

    Returns
    -------
    ndarray of float64, shape (k,)
        The parameters, above 0. Vectors that are all equal have no finite ones: then their
        direction, with a sum of `MOST_CONCENTRATION`.

    Raises
    ------
    InputError
        If there are fewer than two vectors or a value is not finite.
    """
    from scipy.special import digamma, gammaln, polygamma

    log_p = np.asarray(log_p, dtype=np.float64)
    if len(log_p) < 2 or not np.isfinite(log_p).all():
        raise InputError(
            f"Dirichlet fit: got {len(log_p)} softmax vectors, "
            f"{int(np.count_nonzero(~np.isfinite(log_p).all(axis=1)))} of them not finite, "
            "wanted two or more and all finite"
        )
    mean_log = log_p.mean(axis=0)
    # A rotation that no picture is taken for underflows to a mean of 0, which has no logarithm.
    mean = np.maximum(np.exp(log_p).mean(axis=0), np.finfo(np.float64).tiny)
    alpha = _start(mean, mean_log)
    value = dirichlet_log_likelihood(alpha, mean_log)
    for _ in range(MOST_FIT_STEPS):
        if alpha.sum() >= MOST_CONCENTRATION:
            return alpha * (MOST_CONCENTRATION / alpha.sum())
        gradient = digamma(alpha.sum()) - digamma(alpha) + mean_log
        diagonal = -polygamma(1, alpha)
        shared = np.sum(gradient / diagonal) / (
            1.0 / polygamma(1, alpha.sum()) + np.sum(1.0 / diagonal)
        )
        step = (gradient - shared) / diagonal
        # Near the maximum steps gain less than the logarithms of the gammas can tell.
        least = value - LIKELIHOOD_ROUNDING * max(1.0, abs(gammaln(alpha.sum())))
        while (alpha - step).min() <= 0 or (
            dirichlet_log_likelihood(alpha - step, mean_log) < least
        ):
            step /= 2
        change = np.max(np.abs(step) / alpha)
        alpha = alpha - step
        value = dirichlet_log_likelihood(alpha, mean_log)
        if change < FIT_TOLERANCE:
            break
    return alpha


def dirichlet_log_likelihood(alpha: np.ndarray, mean_log: np.ndarray) -> float:
    """
    Mean log-likelihood of vectors under a Dirichlet distribution.

    Parameters
    ----------
    alpha : ndarray of float64, shape (k,)
    mean_log : ndarray of float64, shape (k,)
        Mean of the vectors' logarithms.

    Returns
    -------
    float
        Nats a vector.
    """
    from scipy.special import gammaln

    return float(gammaln(alpha.sum()) - gammaln(alpha).sum() + (alpha - 1.0) @ mean_log)


def _start(mean: np.ndarray, mean_log: np.ndarray) -> np.ndarray:
    # Wicker's closed form for the sum of the parameters: Stirling's formula on both gammas. Their
    # mean is that of the vectors.
    from scipy.special import digamma

    spread = mean @ (np.log(mean) - mean_log)
    # By Jensen's inequality never negative, and 0 where all vectors are equal.
    least = (len(mean) - 1) * -digamma(1.0) / MOST_CONCENTRATION
    return mean * ((len(mean) - 1) * -digamma(1.0) / max(spread, least))
