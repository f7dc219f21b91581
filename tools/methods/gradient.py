"""
Heatmap by gradient: move a picture downhill until it is no longer anomalous, and see what moved.

The picture x goes downhill on an energy, the anomaly A plus what it costs to leave the original x0:

    E(x) = A(x) + l1 * sum |x - x0|

A is any differentiable anomaly of a picture: the Mahalanobis distance of a network's features, as
one of the articles has it, or the reconstruction error of an autoencoder, as in the paper. The L1
term leaves every pixel alone that would gain less than `l1` by moving; what did move is the map.

Each step is one of the proximal gradient (ISTA): along the gradient of A, then the soft threshold
that minimises the L1 term exactly,

    x <- x0 + S(x - rate * w * grad A(x) - x0, rate * w * l1),   S(d, t) = sign(d) max(|d| - t, 0)

where the paper adds the L1 term's own gradient, whose sign flips at x0 and never lets a pixel rest
there. The weight w of each pixel is 1, or, for an autoencoder f, the paper's (x - f(x))^2 (its
update rule, "x_t - f(x_t)" squared and multiplied into the gradient): it holds pixels that are
redrawn well, and pushes those that are not. A step that raises E is not taken, and the rate is
halved from there on.

References
----------
Dehaene, Frigo, Combrexelle and Eline, "Iterative energy-based projection on a normal data manifold
for anomaly localization", arXiv 2002.03734, section 3: the energy and the weight.
Beck and Teboulle, "A Fast Iterative Shrinkage-Thresholding Algorithm for Linear Inverse Problems",
SIAM Journal on Imaging Sciences 2, 2009, section 3: the steps (ISTA, without the acceleration).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from edge_app.errors import InputError

# Halvings after which no step helps: the energy's change is lost in float32 long before.
MOST_HALVINGS = 24
# Relative: some eight roundings of float32. Near the minimum a step gains less than that, and would
# look like one that raises the energy.
ENERGY_ROUNDING = 1e-6
# What a network of this project takes, see `tools.network.network_input`.
LOWEST, HIGHEST = -1.0, 1.0


class Anomaly:
    """
    A differentiable anomaly of a picture, traced once for all pictures of a size.

    Parameters
    ----------
    value : callable
        ``value(x)`` of a tensor (1, h, w, 3), float32 in network units (-1 to 1), gives a scalar
        tensor: higher is more anomalous.
    weight : callable, optional
        ``weight(x)`` gives how readily each pixel moves, a tensor (1, h, w, 3) of 0 or more; 1
        everywhere if there is none.

    Raises
    ------
    InputError
        If Keras does not run on TensorFlow, whose gradients these are.
    """

    def __init__(
        self, value: Callable[[Any], Any], weight: Callable[[Any], Any] | None = None
    ) -> None:
        import keras

        if keras.backend.backend() != "tensorflow":
            raise InputError(
                f"a heatmap by gradient needs Keras on TensorFlow, got {keras.backend.backend()}; "
                "set KERAS_BACKEND=tensorflow"
            )
        import tensorflow as tf

        @tf.function(reduce_retracing=True)
        def traced(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(x)
                anomaly = tf.reshape(value(x), ())
            gradient = tape.gradient(anomaly, x, unconnected_gradients="zero")
            return anomaly, gradient, tf.ones_like(x) if weight is None else weight(x)

        self._traced = traced

    def at(self, picture: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """
        The anomaly at a picture, float32 of shape (h, w, 3), its gradient and its weight there.

        Returns
        -------
        anomaly : float
        gradient, weight : ndarray of float32, shape (h, w, 3)
        """
        import tensorflow as tf

        found = self._traced(tf.constant(picture[None], tf.float32))
        anomaly, gradient, weight = (tensor.numpy() for tensor in found)
        return float(anomaly), gradient[0], weight[0]


def downhill(
    anomaly: Anomaly | Callable[[Any], Any],
    picture: np.ndarray,
    steps: int,
    rate: float,
    l1: float,
) -> np.ndarray:
    """
    Move a picture to where it is less anomalous and still close to what it was.

    Parameters
    ----------
    anomaly : Anomaly or callable
        A callable as `Anomaly` takes it, which is then traced anew for this picture; for more than
        one picture make an `Anomaly` of it.
    picture : ndarray of float32, shape (h, w, 3)
        In network units, -1 to 1.
    steps : int
        Of descent at most, each one pass forward and one back; steps that raised the energy and
        were not taken count.
    rate : float
        Of the first step, above 0. Below the reciprocal of the gradient's Lipschitz constant every
        step is taken; a larger one is halved until it fits.
    l1 : float
        Price of moving one value of one pixel by 1, in units of the anomaly; 0 or more.

    Returns
    -------
    ndarray of float32, shape (h, w, 3)
        -1 to 1. Its energy is no higher than the original's, but for rounding. All NaN where the
        anomaly of the picture or its gradient is not finite.

    Raises
    ------
    ValueError
        If `rate`, `l1` or `steps` is outside of its range.
    """
    if steps < 0 or not rate > 0 or not l1 >= 0:
        raise ValueError(f"wanted steps >= 0, rate > 0, l1 >= 0; got {steps}, {rate}, {l1}")
    anomaly = anomaly if isinstance(anomaly, Anomaly) else Anomaly(anomaly)
    original = np.asarray(picture, np.float32)
    x, halvings = original, 0
    value, gradient, weight = anomaly.at(x)
    if not (math.isfinite(value) and np.isfinite(gradient).all() and np.isfinite(weight).all()):
        return np.full_like(original, np.nan)
    lowest = value
    for _ in range(steps):
        pace = np.float32(rate) * weight
        moved = x - pace * gradient - original
        moved = np.sign(moved) * np.maximum(np.abs(moved) - pace * np.float32(l1), 0)
        # The soft threshold, cut off at the range, is still the exact minimum: each value's own
        # problem is convex.
        trial = np.clip(original + moved, LOWEST, HIGHEST)
        if np.array_equal(trial, x):
            break
        value, trial_gradient, trial_weight = anomaly.at(trial)
        trial_energy = value + l1 * float(np.abs(trial - original).sum(dtype=np.float64))
        # Written so that a NaN is not taken either. Against the lowest yet, so that roundings do
        # not add up.
        bound = lowest + ENERGY_ROUNDING * abs(lowest)
        if trial_energy <= bound and np.isfinite(trial_gradient).all():
            x, gradient, weight = trial, trial_gradient, trial_weight
            lowest = min(lowest, trial_energy)
            continue
        rate, halvings = rate / 2, halvings + 1
        if halvings == MOST_HALVINGS:
            break
    return x


def moved_map(picture: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """
    How far each pixel moved: the mean of the absolute differences over its colours.

    Parameters
    ----------
    picture, moved : ndarray of float32, shape (h, w, 3)

    Returns
    -------
    ndarray of float32, shape (h, w)
        0 where nothing moved; higher is more anomalous. NaN gives NaN.
    """
    return np.abs(moved - picture).mean(axis=2, dtype=np.float32)
