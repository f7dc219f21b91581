"""
Triplet training: a good part nearer to other good parts than to anything else, by a margin.

The embedding is the encoder's own, of unit length in the loss; on the device the same is
``--feature-scaling l2``. Every picture of a batch is an anchor: between the classes of the
reference set too, which keeps the embedding rich in what the good parts alone would not need.

References
----------
Schroff, Kalenichenko and Philbin, "FaceNet: A Unified Embedding for Face Recognition and
Clustering", arXiv 1503.03832.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras

LOGS = {"loss": "loss"}
"""Keras' names of the logs to those of the history."""


def triplet_trainer(encoder: keras.Model, batch: int) -> keras.Model:
    """
    Put an encoder before the triplet loss.

    Parameters
    ----------
    encoder : keras.Model
        As from `tools.network.build_encoder`; trained in place.
    batch : int
        Good parts, and reference pictures, of a step.

    Returns
    -------
    keras.Model
        Input float32 (2 * batch, H, W, 3); output the embeddings (2 * batch, d) of unit length.
        Not compiled.
    """
    import keras

    from tools.network import pooled_by_stored_statistics

    pictures = keras.Input(batch_shape=(2 * batch, *encoder.input_shape[1:]), name="pictures")
    embeddings = pooled_by_stored_statistics(encoder)(pictures)
    return keras.Model(pictures, keras.layers.UnitNormalization(axis=-1)(embeddings))


def compile_triplet(model: keras.Model, margin: float, mining: str, learning_rate: Any) -> None:
    """
    Give a trainer its loss.

    Parameters
    ----------
    model : keras.Model
        As from `triplet_trainer`.
    margin, mining
        As in `tools.losses.triplet`.
    learning_rate : float or keras schedule
        Adam's.
    """
    import keras

    from tools.losses import triplet
    from tools.training import jit_compile

    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss=lambda labels, embeddings: triplet(labels, embeddings, margin, mining),
        jit_compile=jit_compile(),
    )


def triplet_batch(
    good: np.ndarray, reference: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """
    A batch as the trainer takes it: the good parts are class 0, the reference's follow.

    Parameters
    ----------
    good, reference : ndarray of float32, shape (batch, H, W, 3)
        Scaled as the encoder takes them.
    labels : ndarray of int, shape (batch,)
        Class of each reference picture, from 0.
    """
    classes = np.concatenate([np.zeros(len(good), np.int64), np.asarray(labels, np.int64) + 1])
    return np.concatenate([good, reference]), classes
