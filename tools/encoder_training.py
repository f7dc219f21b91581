"""
Train an encoder by DOC or by triplets: what the command and the experiments share.

The pictures of a step are drawn and changed by a generator that is seeded with the step's number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_app.errors import InputError
from edge_app.held_out import near_duplicate_groups, thumbnail
from tools.network import network_input, unknown_layer
from tools.reference_set import Reference
from tools.self_made import WithSelfMade
from tools.training import Trained, learning_rate, train

if TYPE_CHECKING:
    import keras

LOSSES = ("doc", "triplet")
HELD_OUT_SHARE = 0.1
# The search for near-duplicates takes memory with the square of their number.
MOST_GROUPED = 2000
# What fewer pictures have in common is as likely to be chance as to be the part.
FEWEST_GOOD = 20

# Pictures are kept in memory a little larger than the input, so that turning and shifting them
# costs no sharpness against what the device will see.
CACHE_MARGIN = 1.15

# The held-out loss is taken so many times in a training; so many checks in a row without a better
# one end it.
CHECKS, PATIENCE = 20, 7
# Batches of held-out pictures behind one figure: one of 32 reference pictures is mostly noise.
LEAST_CHECK_BATCHES, MOST_CHECK_BATCHES = 4, 8


@dataclass(frozen=True)
class Recipe:
    """
    How an encoder is trained.

    Attributes
    ----------
    loss : {"doc", "triplet"}
    compactness_weight : float
        Of DOC: loss = descriptiveness + compactness_weight * compactness.
    margin, mining
        Of the triplet loss, see `tools.losses.triplet`.
    steps, batch : int
        Steps, and pictures of each kind in a step.
    learning_rate : float
        Adam's at the first step; falls to 0 along a cosine.
    rotation_deg : float
        Largest turn of a training picture.
    patience : int
        So many of the `CHECKS` checks in a row without a lower held-out loss end the training; 0
        never ends it early.
    recompress : bool
        Whether every training picture goes through JPEG at a random quality; see `tools.augment`.
    self_made : tuple of str
        Kinds of reference classes made from the good parts, of `tools.self_made.KINDS`.
    seed : int
        Of batches and augmentation. The start of new layers follows Keras' own seed.
    """

    loss: str = "doc"
    compactness_weight: float = 0.1
    margin: float = 0.2
    mining: str = "semi-hard"
    steps: int = 500
    batch: int = 32
    learning_rate: float = 1e-4
    rotation_deg: float = 5.0
    patience: int = PATIENCE
    recompress: bool = True
    self_made: tuple[str, ...] = ()
    seed: int = 0


def train_encoder(
    encoder: keras.Model,
    good: Sequence[Sequence[np.ndarray]],
    held: Sequence[Sequence[np.ndarray]],
    reference: Reference,
    recipe: Recipe,
    state: Path | None = None,
    settings: dict[str, Any] | None = None,
    progress: bool = True,
) -> Trained:
    """
    Train an encoder, in place; it is left with the weights of the lowest held-out loss.

    Parameters
    ----------
    encoder : keras.Model
        As from `tools.network.build_encoder`.
    good, held : sequence of sequences of ndarray
        For each part its good pictures to train on and those held out, uint8 RGB (H, W, 3); the
        held-out ones of the encoder's input size. Each step trains one part, in turn.
    reference : Reference
        The labelled pictures; a tenth of each class is held out.
    recipe : Recipe
    state, settings, progress
        As in `tools.training.train`.

    Returns
    -------
    Trained
        Its history has loss, and of DOC descriptiveness, compactness, accuracy.

    Raises
    ------
    InputError
        If the loss is no longer finite.
    """
    size = tuple(encoder.input_shape[1:3])
    shown, unseen = reference.split(HELD_OUT_SHARE, recipe.seed)
    if recipe.self_made:
        # The softmax of DOC must know the good parts to tell the near misses from them; among
        # triplets they are a class already.
        kinds = recipe.self_made if recipe.loss == "triplet" else ("good", *recipe.self_made)
        shown = WithSelfMade(shown, good, kinds)
        unseen = WithSelfMade(unseen, held, kinds)
    model, as_batch, names = _method(encoder, len(shown.class_names), recipe)
    checks = _check_batches(held, unseen, recipe, size)

    def batch_at(step: int) -> tuple[Any, Any]:
        rng = np.random.default_rng([recipe.seed, step])
        part = good[(step - 1) % len(good)]
        rows = rng.choice(len(part), recipe.batch, replace=len(part) < recipe.batch)
        others, labels = shown.draw(rng, recipe.batch)
        return as_batch(
            _changed([part[row] for row in rows], rng, recipe, size),
            _changed(others, rng, recipe, size),
            labels,
        )

    def validate() -> float:
        if recipe.loss == "triplet":
            return _held_out_triplet_loss(model, as_batch, checks, recipe.margin)
        model.reset_metrics()
        logs = [
            model.test_on_batch(*as_batch(*batch), return_dict=True)["loss"] for batch in checks
        ]
        # The logs are running means: the last one is that of all batches.
        return float(logs[-1])

    try:
        return train(
            model,
            batch_at,
            recipe.steps,
            title=f"training by {recipe.loss}",
            validate=validate,
            check_every=max(1, recipe.steps // CHECKS),
            patience=recipe.patience or None,
            state=state,
            settings=settings,
            names=names,
            progress=progress,
        )
    except InputError as error:
        if "diverged" not in str(error):
            raise
        raise InputError(
            f"{error}: lower --learning-rate (now {recipe.learning_rate:g})"
            + (
                f" or --compactness-weight (now {recipe.compactness_weight:g})"
                if recipe.loss == "doc"
                else ""
            )
        ) from None


def _held_out_triplet_loss(
    model: keras.Model,
    as_batch: Callable[..., tuple[Any, Any]],
    checks: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    margin: float,
) -> float:
    # Semi-hard whatever is mined in training: a mean over what still costs something rises when
    # the easy triplets are solved.
    from tools.losses import triplet

    losses = []
    for batch in checks:
        pictures, labels = as_batch(*batch)
        losses.append(float(triplet(labels, model.predict_on_batch(pictures), margin)))
    return float(np.mean(losses))


def _method(
    encoder: keras.Model, classes: int, recipe: Recipe
) -> tuple[keras.Model, Callable[..., tuple[Any, Any]], dict[str, str]]:
    rate = learning_rate(recipe.learning_rate, recipe.steps)
    if recipe.loss == "doc":
        from tools.doc import LOGS, compile_doc, doc_batch, doc_trainer

        model = doc_trainer(encoder, classes, recipe.batch)
        compile_doc(model, recipe.compactness_weight, rate)
        return model, doc_batch, LOGS
    if recipe.loss != "triplet":
        raise ValueError(f"loss {recipe.loss!r} is none of {', '.join(LOSSES)}")
    from tools.triplet import LOGS, compile_triplet, triplet_batch, triplet_trainer

    model = triplet_trainer(encoder, recipe.batch)
    compile_triplet(model, recipe.margin, recipe.mining, rate)
    return model, triplet_batch, LOGS


def _changed(
    pictures: Sequence[np.ndarray],
    rng: np.random.Generator,
    recipe: Recipe,
    size: tuple[int, int],
) -> np.ndarray:
    from tools.augment import augment

    return network_input(
        np.stack(
            [augment(one, rng, recipe.rotation_deg, size, recipe.recompress) for one in pictures]
        )
    )


def _check_batches(
    held: Sequence[Sequence[np.ndarray]],
    unseen: Reference | WithSelfMade,
    recipe: Recipe,
    size: tuple[int, int],
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    # The same pictures at every check, as the device will see them: not changed.
    from edge_app.preprocess import shrink

    rng = np.random.default_rng([recipe.seed, 0])
    most = max(len(part) for part in held)
    wanted = max(LEAST_CHECK_BATCHES, len(held) * math.ceil(most / recipe.batch))
    rounds = math.ceil(min(wanted, MOST_CHECK_BATCHES) / len(held))
    batches = []
    for number in range(rounds):
        for part in held:
            at = np.arange(number * recipe.batch, (number + 1) * recipe.batch) % len(part)
            others, labels = unseen.draw(rng, recipe.batch)
            sized = [shrink(one, size) for one in others]
            batches.append(
                (
                    network_input(np.stack([part[i] for i in at])),
                    network_input(np.stack(sized)),
                    labels,
                )
            )
    return batches


def refuse_too_few(count: int, data_dir: Path | str) -> None:
    """Raise `InputError` if so many good pictures are too few to train an encoder on."""
    if count < FEWEST_GOOD:
        raise InputError(
            f"{data_dir}: has {count} good pictures, wanted {FEWEST_GOOD} or more to train an "
            "encoder on; fit trains none and works from 3"
        )


def split_good(groups: np.ndarray, seed: int, data_dir: Path | str) -> tuple[list[int], list[int]]:
    """
    Hold out a tenth of the good pictures, two at least, near-duplicates together.

    Parameters
    ----------
    groups : ndarray of int, shape (n,)
        Of each picture, see `groups_of`.
    seed : int
        The same seed holds out the same pictures.
    data_dir : Path or str
        Named in the error.

    Returns
    -------
    train, held_out : list of int
        Rows, ascending.

    Raises
    ------
    InputError
        If there are fewer than `FEWEST_GOOD` pictures.
    """
    count = len(groups)
    refuse_too_few(count, data_dir)
    wanted = max(2, round(count * HELD_OUT_SHARE))
    held = np.zeros(count, bool)
    for group in np.random.default_rng(seed).permutation(np.unique(groups)):
        rows = groups == group
        # A group that would take most of the pictures away stays whole on the other side.
        if held.sum() < wanted and held.sum() + rows.sum() <= max(2 * wanted, 2):
            held |= rows
    if held.sum() < 2:
        held[np.random.default_rng(seed).choice(count, wanted, replace=False)] = True
    return np.flatnonzero(~held).tolist(), np.flatnonzero(held).tolist()


def groups_of(pictures_rgb: Sequence[np.ndarray]) -> np.ndarray:
    """
    Which good pictures show the same part, or nearly.

    Parameters
    ----------
    pictures_rgb : sequence of ndarray
        uint8 RGB (H, W, 3).

    Returns
    -------
    ndarray of int, shape (n,)
        As from `edge_app.held_out.near_duplicate_groups`; each picture by itself where there are
        more than `MOST_GROUPED`.
    """
    if len(pictures_rgb) > MOST_GROUPED:
        return np.arange(len(pictures_rgb))
    return near_duplicate_groups(np.stack([thumbnail(one) for one in pictures_rgb]))


def freeze(encoder: keras.Model, block: str) -> None:
    """
    Keep the first layers of an encoder as they are.

    Parameters
    ----------
    encoder : keras.Model
        As from `tools.network.build_encoder`; changed in place.
    block : str
        Name of a block ("block_6") or of one layer; everything up to its end keeps its weights.
        "none" trains all.

    Raises
    ------
    InputError
        For an unknown name, or if nothing would be left to train.
    """
    if block == "none":
        return
    names = [layer.name for layer in encoder.layers]
    hits = [i for i, name in enumerate(names) if name == block or name.startswith(f"{block}_")]
    if not hits:
        raise InputError(f"--freeze-to: {unknown_layer(block, names)}")
    for layer in encoder.layers[: hits[-1] + 1]:
        layer.trainable = False
    import keras

    # The losses see the embedding alone: what lies beyond it is not trained by them.
    if not keras.Model(encoder.inputs, encoder.outputs[0]).trainable_weights:
        raise InputError(
            f"--freeze-to {block}: leaves nothing to train before the embedding, wanted an "
            "earlier block"
        )


def held_out_compactness(encoder: keras.Model, pictures_rgb: Sequence[np.ndarray]) -> float:
    """
    Compactness of good parts that were not trained on, as the device will see them.

    Parameters
    ----------
    encoder : keras.Model
        As from `tools.network.build_encoder`.
    pictures_rgb : sequence of ndarray
        Two or more uint8 RGB pictures of the encoder's input size, not augmented.

    Returns
    -------
    float
        See `tools.losses.compactness`.
    """
    from tools.losses import compactness

    embeddings = encoder.predict(network_input(np.stack(pictures_rgb)), verbose=0)[0]
    return float(compactness(embeddings))
