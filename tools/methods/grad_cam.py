"""
Grad-CAM for embedding networks: which cells of a feature map carry a picture away from good ones.

A classifier's Grad-CAM follows the gradient of a class score; an embedding has none. Instead, as
the paper does, the gradient is that of a loss between embeddings. At inspection nobody knows a
triplet, but the nearest good embeddings are known, so the loss is the distance to them, in the
space in which the score measures it.

References
----------
Chen, Chen, Hajimirsadeghi and Mori, "Adapting Grad-CAM for Embedding Networks", arXiv 2001.06538,
section 3. Their weights come from triplets of the training set and are handed to a test picture by
its nearest neighbour; here they come from the test picture itself and several neighbours.
Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", arXiv 1610.02391, equations 1 and 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_app.scorer import FeatureScaling
from tools.network import network_input

if TYPE_CHECKING:
    import keras


def channel_weights(gradient: np.ndarray) -> np.ndarray:
    """
    Grad-CAM's weight of every channel: the mean of its gradient over the cells.

    Parameters
    ----------
    gradient : ndarray of float32, shape (h, w, c)
        Of the loss with respect to the feature map.

    Returns
    -------
    ndarray of float32, shape (c,)
        arXiv 1610.02391, equation 1.
    """
    return gradient.mean(axis=(0, 1))


def weighted_map(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """
    Grad-CAM's map: the weighted sum of the channels, what is below 0 set to 0.

    Parameters
    ----------
    activations : ndarray of float32, shape (h, w, c)
        The feature map.
    weights : ndarray of float32, shape (c,)
        As from `channel_weights`.

    Returns
    -------
    ndarray of float32, shape (h, w)
        0 or more; arXiv 1610.02391, equation 2.
    """
    return np.maximum(activations @ weights, 0)


class GradCam:
    """
    Draws where an embedding's distance to good ones comes from.

    Only what is there can be shown: a cell counts by what its channels answer, so a part that is
    missing leaves a cell with little to count.

    Parameters
    ----------
    network : keras.Model
        Input (B, H, W, 3) float32 RGB ``x / 127.5 - 1``; its first output is the embedding (B, d).
        Not changed.
    layer : str
        Name of the layer of the feature map (B, h, w, c) on the way to the embedding.
    scaling : FeatureScaling
        What the score does to an embedding before it takes distances.

    Raises
    ------
    ValueError
        If the network has no such layer.
    """

    def __init__(self, network: keras.Model, layer: str, scaling: FeatureScaling) -> None:
        import keras
        import tensorflow as tf

        both = keras.Model(network.inputs[0], [network.get_layer(layer).output, network.outputs[0]])

        # Compiled once: run operation by operation a map takes ten times as long.
        @tf.function(reduce_retracing=True)
        def gradient(inputs: tf.Tensor, nearest: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            with tf.GradientTape() as tape:
                # Without it a network that has nothing to train would record nothing.
                tape.watch(inputs)
                activations, embedding = both(inputs, training=False)
                away = _scaled(embedding, scaling) - nearest
                loss = tf.reduce_mean(tf.reduce_sum(away**2, axis=1))
            return activations[0], tape.gradient(loss, activations)[0]

        self._gradient = gradient
        self._scaling = scaling

    def map(self, pixels_rgb: np.ndarray, nearest: np.ndarray) -> np.ndarray:
        """
        The map of one picture, on the grid of the layer.

        Parameters
        ----------
        pixels_rgb : ndarray of uint8, shape (H, W, 3)
        nearest : ndarray of float32, shape (k, d)
            The good embeddings that the picture lies nearest to, unscaled. The loss is the mean
            squared distance to them.

        Returns
        -------
        ndarray of float32, shape (h, w)
            0 or more, higher where more of the distance comes from; unscaled.
        """
        scaled = self._scaling.apply(nearest).astype(np.float32)
        activations, gradient = self._gradient(network_input(pixels_rgb)[None], scaled)
        return weighted_map(activations.numpy(), channel_weights(gradient.numpy()))


def _scaled(embedding, scaling: FeatureScaling):
    """`FeatureScaling.apply` as operations with a gradient."""
    import tensorflow as tf

    if scaling.kind == "l2":
        return embedding / tf.maximum(tf.norm(embedding, axis=-1, keepdims=True), 1e-12)
    if scaling.kind == "minmax":
        low, factor = scaling.low.astype(np.float32), (1 / scaling.span).astype(np.float32)
        return (embedding - low) * factor
    return embedding
