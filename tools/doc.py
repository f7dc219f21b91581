"""
DOC, deep one-class classification: good parts close together, a reference set told apart.

Without the second, the network would soon give every picture the same embedding.

References
----------
Perera and Patel, "Learning Deep Features for One-Class Classification", arXiv 1801.05365.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras

HEAD_GAIN = 30.0

LOGS = {
    "loss": "loss",
    "descriptiveness_loss": "descriptiveness",
    "compactness_loss": "compactness",
    "descriptiveness_accuracy": "accuracy",
}
"""Keras' names of the logs to those of the history."""


def doc_trainer(encoder: keras.Model, classes: int, batch: int) -> keras.Model:
    """
    Put an encoder into the two branches of DOC.

    A plain functional model with one loss per output, so that it trains on any Keras backend.

    Parameters
    ----------
    encoder : keras.Model
        As from `tools.network.build_encoder`; trained in place, both branches share it.
    classes : int
        Number of classes of the reference set.
    batch : int
        Good parts, and reference pictures, of a step.

    Returns
    -------
    keras.Model
        Inputs "good" and "reference", float32 (batch, H, W, 3); outputs "compactness" (the good
        parts' embeddings) and "descriptiveness" (class logits of the reference). Not compiled.
    """
    import keras

    from tools.network import pooled_by_stored_statistics

    shape = (batch, *encoder.input_shape[1:])
    good = keras.Input(batch_shape=shape, name="good")
    reference = keras.Input(batch_shape=shape, name="reference")
    # One pass over both batches is the paper's two branches, because no row sees another.
    both = keras.layers.Concatenate(axis=0)([good, reference])
    embeddings = pooled_by_stored_statistics(encoder)(both)
    good_embedding, reference_embedding = keras.ops.split(embeddings, 2)
    # The head starts from nothing while the encoder starts from ImageNet. At a rate that is gentle
    # to the encoder a plain Dense head stayed at chance for 240 steps, on an inner layer whose
    # activations are small. Normalised features and a gain on the logits let the head learn
    # `HEAD_GAIN` times as fast as the encoder, whatever the layer's scale.
    features = keras.layers.LayerNormalization(center=False, scale=False)(reference_embedding)
    head = keras.layers.Dense(classes, kernel_initializer="zeros", name="head")
    logits = HEAD_GAIN * head(features)
    return keras.Model(
        {"good": good, "reference": reference},
        {"compactness": good_embedding, "descriptiveness": logits},
    )


def compile_doc(model: keras.Model, compactness_weight: float, learning_rate: Any) -> None:
    """
    Give a trainer its loss: descriptiveness + `compactness_weight` x compactness.

    Parameters
    ----------
    model : keras.Model
        As from `doc_trainer`.
    compactness_weight : float
        The paper's lambda.
    learning_rate : float or keras schedule
        Adam's.
    """
    import keras

    from tools.losses import compactness
    from tools.training import jit_compile

    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss={
            "compactness": lambda _, embeddings: compactness(embeddings),
            "descriptiveness": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        },
        loss_weights={"compactness": compactness_weight, "descriptiveness": 1.0},
        metrics={"descriptiveness": ["accuracy"]},
        jit_compile=jit_compile(),
    )


def doc_batch(
    good: np.ndarray, reference: np.ndarray, labels: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """
    A batch as the trainer takes it.

    Parameters
    ----------
    good, reference : ndarray of float32, shape (batch, H, W, 3)
        Scaled as the encoder takes them.
    labels : ndarray of int, shape (batch,)
        Class of each reference picture, from 0.
    """
    # Compactness has no target; Keras wants one for every output.
    targets = {"compactness": np.zeros((len(good), 1), np.float32), "descriptiveness": labels}
    return {"good": good, "reference": reference}, targets
