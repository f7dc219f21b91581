"""
The two decoders that redraw a picture from what the encoder kept of it.

``standard`` is the decoder of the articles: from the pooled embedding, through two Dense layers,
to the picture. ``mobile`` is ours, for the device: from the patch map, so that a part may lie
anywhere, through a trunk at 1/16 of the picture's size that sees the whole of it. Copying is
what a decoder of patches does best and must not do; three things keep it from that: few channels
enter, the trunk can fill any place from its surroundings, and it is trained to restore
(`tools.train_decoder`). A code of a few numbers for the whole picture is spread over the trunk's
cells by one small Dense layer: it knows where things usually are, also when they are missing.

Both end in a sigmoid: RGB from 0 to 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

KINDS = ("mobile", "standard")

TRUNK_STRIDE = 16
BOTTLENECK_CHANNELS = 32
TRUNK_CHANNELS = 96
TRUNK_BLOCKS = 4
TRUNK_KERNEL = 5
CODE_LENGTH = 24
CODE_CHANNELS = 16
UPSAMPLED_CHANNELS = (64, 40, 24)

# Keras' 0.99 needs thousands of steps to forget its start; a decoder takes a few hundred.
BATCH_NORM_MOMENTUM = 0.9


def build_decoder(
    kind: str, size: tuple[int, int], embedding_dim: int, patch_shape: tuple[int, int, int]
) -> keras.Model:
    """
    Build an untrained decoder.

    Parameters
    ----------
    kind : {"mobile", "standard"}
        ``mobile`` takes patches (B, h, w, c), ``standard`` embeddings (B, d); float32.
    size : tuple of int
        (height, width) of the picture, pixels, multiples of 16.
    embedding_dim : int
        d, length of the embedding.
    patch_shape : tuple of int
        (h, w, c) of the patch map; the picture is 4, 8, 16 or 32 times as large as (h, w).

    Returns
    -------
    keras.Model
        Output (B, height, width, 3) float32, RGB from 0 to 1.

    Raises
    ------
    ValueError
        If the kind is unknown or the shapes do not fit together.
    """
    height, width = size
    if kind not in KINDS:
        raise ValueError(f"decoder kind {kind!r}: wanted one of {', '.join(KINDS)}")
    if height < 32 or width < 32 or height % 16 or width % 16:
        raise ValueError(
            f"picture size {height} x {width}: wanted multiples of 16 pixels, at least 32"
        )
    if kind == "standard":
        return _standard(height, width, embedding_dim)
    stride = height // patch_shape[0]
    covered = (patch_shape[0] * stride, patch_shape[1] * stride)
    if stride not in (4, 8, 16, 32) or covered != (height, width):
        raise ValueError(
            f"patch map of {patch_shape[0]} x {patch_shape[1]} cells: wanted 1/4, 1/8, 1/16 or "
            f"1/32 of the picture's {height} x {width} pixels"
        )
    return _mobile(tuple(patch_shape), stride)


def _batch_norm(x):
    from keras import layers

    return layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM)(x)


def _point(x, channels: int, active: bool = True):
    from keras import layers

    x = _batch_norm(layers.Conv2D(channels, 1, use_bias=False)(x))
    return layers.ReLU(6.0)(x) if active else x


def _depthwise(x, kernel: int, stride: int = 1):
    from keras import layers

    x = layers.DepthwiseConv2D(kernel, strides=stride, padding="same", use_bias=False)(x)
    return layers.ReLU(6.0)(_batch_norm(x))


def _separable(x, channels: int, kernel: int = 3):
    return _point(_depthwise(x, kernel), channels)


def _mobile(patch_shape: tuple[int, int, int], stride: int):
    import keras
    from keras import layers

    patches = keras.Input(patch_shape, name="patches")
    x = _point(patches, BOTTLENECK_CHANNELS)
    while stride < TRUNK_STRIDE:
        x = _separable(_depthwise(x, 3, stride=2), 2 * x.shape[-1])
        stride *= 2

    code = layers.Dense(CODE_LENGTH)(layers.GlobalAveragePooling2D()(x))
    rows, columns = x.shape[1:3]
    spread = layers.Dense(rows * columns * CODE_CHANNELS)(layers.ReLU(6.0)(code))
    spread = layers.Reshape((rows, columns, CODE_CHANNELS))(spread)
    x = _point(layers.Concatenate()([x, spread]), TRUNK_CHANNELS, active=False)
    for _ in range(TRUNK_BLOCKS):
        block = _point(_depthwise(x, TRUNK_KERNEL), TRUNK_CHANNELS, active=False)
        x = layers.Add()([x, block])

    if stride > TRUNK_STRIDE:
        x = _separable(layers.UpSampling2D(interpolation="bilinear")(x), TRUNK_CHANNELS)
    for channels in UPSAMPLED_CHANNELS:
        x = _separable(layers.UpSampling2D(interpolation="bilinear")(x), channels)
    # Drawn at half size: the difference is smoothed further than this anyway, and the last
    # doubling at full width would cost as much as all the rest.
    x = layers.Conv2D(3, 3, padding="same", activation="sigmoid")(x)
    picture = layers.UpSampling2D(interpolation="bilinear", name="picture")(x)
    return keras.Model(patches, picture, name="mobile_decoder")


def _standard(height: int, width: int, embedding_dim: int):
    import keras
    from keras import layers

    embedding = keras.Input((embedding_dim,), name="embedding")
    x = layers.ReLU()(_batch_norm(layers.Dense(1024)(embedding)))
    x = layers.Dense(height // 8 * (width // 8) * 128)(x)
    x = layers.ReLU()(_batch_norm(x))
    x = layers.Reshape((height // 8, width // 8, 128))(x)
    for first, second in ((128, 128), (64, 32)):
        x = layers.UpSampling2D(interpolation="nearest")(x)
        x = _separable(_separable(x, first), second)
    x = layers.UpSampling2D(interpolation="nearest")(x)
    picture = layers.Conv2D(3, 5, padding="same", activation="sigmoid", name="picture")(x)
    return keras.Model(embedding, picture, name="standard_decoder")
