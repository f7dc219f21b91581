"""
Equalise: prepare a Keras model so that its int8 conversion follows it closely.

Two steps, both without training. `equalised` gives the channels of a linear bottleneck like ranges:
an int8 tensor has one step for all channels, and those of a small range would drown in it; as a
function of its input the model stays the same. `bias_corrected` then moves biases so that the mean
of each channel survives rounding: a weight that is rounded up adds its error at every place where
its input is positive, and after a ReLU all inputs are. The second does most: of the distance
between int8 and float (1 - cosine) rounding of single values makes the smaller part.

References
----------
Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
arXiv 1906.04721. Ranges and means are observed here on pictures of the part, which are at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import keras

# A channel is scaled up by no more: one that hardly moves on good parts must keep room for a
# defect. Trained networks stayed below it (width 1: the same files with 4, 16 and 100).
MOST_SCALE = 16.0
# Inputs of one pass, where passes need not be whole.
BATCH = 25
# Steps of a signed and of a whole 8-bit range.
WEIGHT_STEPS, TENSOR_STEPS = 127, 255


def prepared_for_int8(model: keras.Model, inputs: np.ndarray) -> keras.Model:
    """
    Equalise channels, then correct biases.

    Parameters
    ----------
    model : keras.Model
        A functional model with one input, in which each layer is called once.
    inputs : ndarray of float32, shape (N, ...)
        Representative inputs, as the model takes them.

    Returns
    -------
    keras.Model
        A copy to convert to int8. In float it is not the same function as `model`: its biases
        make up for a rounding that float does not do. Without batch normalisation, and of a kind
        that is not understood here, `model` itself.
    """
    if not _understood(model, inputs[:1]):
        return model
    return bias_corrected(equalised(model, inputs), inputs)


def _understood(model: keras.Model, inputs: np.ndarray) -> bool:
    """Whether all that the steps below rely on is so; of this project's encoders it is."""
    import keras

    norms = [one for one in model.layers if isinstance(one, keras.layers.BatchNormalization)]
    if not norms or not all(norm.scale and norm.center for norm in norms):
        return False
    if any(getattr(layer, "groups", 1) != 1 for layer in model.layers):
        return False
    try:
        made = dict(enumerate(_outputs(model, inputs)))
        rows = {id(layer.output): row for row, layer in enumerate(model.layers)}
        have = [made[rows[id(tensor)]] for tensor in model.outputs]
    except (KeyError, AttributeError, ValueError):
        return False  # a model as a layer
    # A layer that is called twice has one place in the list, and comes out wrong.
    want = keras.tree.flatten(model(inputs))
    return all(np.allclose(one, other, 1e-3, 1e-4) for one, other in zip(have, want, strict=True))


def equalised(model: keras.Model, inputs: np.ndarray) -> keras.Model:
    """
    Scale the channels of linear bottlenecks to one range, and the kernels after them back.

    A bottleneck is a batch normalisation without activation; those that additions join share their
    scales. Where one is an output of the model, or anything but a convolution takes it, it stays.

    Parameters
    ----------
    model, inputs
        As for `prepared_for_int8`.

    Returns
    -------
    keras.Model
        A copy; the same function, to the precision of float32.
    """
    import keras

    copy = _copied(model)
    magnitudes = _largest(copy, inputs)
    takers = _takers(copy)
    linear = (keras.layers.BatchNormalization, keras.layers.Add)
    convolutions = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
    given = {id(tensor) for tensor in copy.outputs}
    for members in _joined(copy):
        layers = [copy.layers[row] for row in members]
        users = [copy.layers[user] for row in members for user in takers[row] - members]
        if not (
            users
            and all(isinstance(user, convolutions) for user in users)
            and all(isinstance(one, linear) and id(one.output) not in given for one in layers)
        ):
            continue
        largest = np.max([magnitudes[row] for row in members], axis=0)
        scale = np.clip(largest.max() / np.maximum(largest, 1e-6), 1, MOST_SCALE)
        for layer in layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.gamma.assign(layer.gamma * scale)
                layer.beta.assign(layer.beta * scale)
        for user in users:
            # The third axis of either kernel are the channels that come in.
            kernel, *biases = user.get_weights()
            user.set_weights([kernel / scale[:, None], *biases])
    return copy


def bias_corrected(model: keras.Model, inputs: np.ndarray) -> keras.Model:
    """
    Move the biases of batch normalisations so that int8 keeps the mean of each channel.

    Layer by layer from the input on, each after those before it, with weights and tensors rounded
    as the converter does: weights by output channel, tensors as a whole.

    Parameters
    ----------
    model, inputs
        As for `prepared_for_int8`.

    Returns
    -------
    keras.Model
        A copy with other ``beta``.
    """
    import keras

    copy, rounded = _copied(model), _copied(model)
    for layer in rounded.layers:
        _round_weights(layer)
    takers = _takers(model)
    fused = (keras.layers.BatchNormalization, keras.layers.ReLU)
    streams = (_outputs(one, inputs) for one in (model, copy, rounded))
    for row, (wanted, moved, coarse) in enumerate(zip(*streams, strict=True)):
        if isinstance(model.layers[row], keras.layers.BatchNormalization):
            shift = _by_channel(wanted).mean(0) - _by_channel(coarse).mean(0)
            copy.layers[row].beta.assign_add(shift)
            moved += shift
            coarse += shift
        after = [model.layers[user] for user in takers[row]]
        # The converter draws these into the layer before: no tensor lies between them.
        if not (len(after) == 1 and isinstance(after[0], fused)):
            # The range that the converter will see. It matters to the step: a plain background is
            # one value, and all of it is shifted by what rounding makes of that value.
            _round(coarse, float(moved.min()), float(moved.max()))
    return copy


def _copied(model: keras.Model) -> keras.Model:
    import keras

    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def _givers(model: keras.Model) -> list[list[int]]:
    """Of each layer of ``model.layers`` those, by place there, whose outputs it takes."""
    import keras

    maker = {id(layer.output): row for row, layer in enumerate(model.layers)}
    return [
        []
        if isinstance(layer, keras.layers.InputLayer)
        else [maker[id(tensor)] for tensor in keras.tree.flatten(layer.input)]
        for layer in model.layers
    ]


def _takers(model: keras.Model) -> list[set[int]]:
    """Of each layer those that take its output."""
    givers = _givers(model)
    return [
        {user for user, row in enumerate(givers) if giver in row} for giver in range(len(givers))
    ]


def _joined(model: keras.Model) -> list[set[int]]:
    """Batch normalisations without activation, in one set what additions join."""
    import keras

    takers = _takers(model)
    sets: dict[int, set[int]] = {}
    for row, (layer, givers) in enumerate(zip(model.layers, _givers(model), strict=True)):
        if isinstance(layer, keras.layers.Add):
            members = {row}.union(*(sets.get(giver, {giver}) for giver in givers))
            sets |= dict.fromkeys(members, members)
        elif isinstance(layer, keras.layers.BatchNormalization):
            after = [model.layers[user] for user in takers[row]]
            if not any(isinstance(user, keras.layers.ReLU) for user in after):
                sets[row] = {row}
    return list({id(members): members for members in sets.values()}.values())


def _outputs(model: keras.Model, inputs: np.ndarray) -> Iterator[np.ndarray]:
    """What each layer gives, in turn; what is changed in place goes on so."""
    givers, takers = _givers(model), _takers(model)
    outputs: dict[int, np.ndarray] = {}
    for row, layer in enumerate(model.layers):
        taken = [outputs[giver] for giver in givers[row]]
        outputs[row] = np.array(layer(taken[0] if len(taken) == 1 else taken) if taken else inputs)
        yield outputs[row]
        # Large maps: only those still needed are kept.
        for giver in givers[row]:
            if max(takers[giver]) == row:
                outputs.pop(giver, None)  # an addition may take it twice
        del taken


def _largest(model: keras.Model, inputs: np.ndarray) -> list[np.ndarray]:
    """Largest magnitude of each channel of what each layer gives."""
    largest: list[np.ndarray] = [np.float32(0)] * len(model.layers)
    for batch in np.array_split(inputs, -(-len(inputs) // BATCH)):
        for row, outputs in enumerate(_outputs(model, batch)):
            largest[row] = np.maximum(largest[row], np.abs(_by_channel(outputs)).max(0))
    return largest


def _by_channel(outputs: np.ndarray) -> np.ndarray:
    return outputs.reshape(-1, outputs.shape[-1])


def _round_weights(layer: keras.Layer) -> None:
    """Round a kernel to the grid of int8, which each output channel has of its own."""
    import keras

    if isinstance(layer, keras.layers.DepthwiseConv2D):
        axes: tuple[int, ...] = (0, 1, 3)
    elif isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
        axes = tuple(range(layer.kernel.ndim - 1))
    else:
        return
    kernel, *biases = layer.get_weights()
    step = np.abs(kernel).max(axes, keepdims=True) / WEIGHT_STEPS
    step = np.where(step > 0, step, 1.0).astype(np.float32)
    layer.set_weights([np.round(kernel / step) * step, *biases])


def _round(values: np.ndarray, low: float, high: float) -> None:
    """Put values, in place, on the grid of an int8 tensor with this range, which always holds 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / TENSOR_STEPS
    if step == 0:
        return
    lowest = round(low / step)
    values /= step
    np.rint(values, out=values)
    np.clip(values, lowest, lowest + TENSOR_STEPS, out=values)
    values *= step
