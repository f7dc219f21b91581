"""A part drawn here, its reference set and random weights: what a method is fitted to in tests."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterable
from pathlib import Path

import cv2
import keras
import numpy as np

from edge_app.align import Alignment
from tools.methods import Aligners, Part, View

SIDE = 32
GOOD = 24
# The spot of a defective part, in both directions.
SPOT = slice(30, 45)


def draw(rng: np.random.Generator, spot: bool = False) -> np.ndarray:
    """A grey disc on a darker ground, BGR, 96 x 96; with a bright spot at its upper left."""
    picture = np.full((96, 96, 3), 70, np.uint8)
    cv2.circle(picture, (48, 48), int(rng.integers(26, 30)), (150, 160, 170), -1)
    if spot:
        picture[SPOT, SPOT] = (20, 250, 250)
    return np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)


def views_of(folder: Path) -> list[View]:
    """The pictures of a folder, whole."""
    aligners = Aligners(Alignment("none"))
    return [View(path, aligners) for path in sorted(folder.iterdir())]


def written(folder: Path, pictures_rgb: Iterable[np.ndarray]) -> tuple[View, ...]:
    """Pictures, RGB, as files of a new folder, seen whole."""
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures_rgb):
        cv2.imwrite(str(folder / f"{number:03d}.png"), picture[..., ::-1])
    return tuple(views_of(folder))


def drawn_part(root: Path) -> Part:
    """A part of `GOOD` pictures, with a reference set of four shades of which one is left out."""
    folder = root / "disc" / "train" / "good"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(GOOD):
        cv2.imwrite(str(folder / f"{index:02d}.png"), draw(rng))
    (root / "shades").mkdir()
    labels = np.repeat(np.arange(4, dtype=np.uint8), 8)
    grey = rng.integers(0, 30, (32, 28, 28), np.uint8) + 60 * labels[:, None, None]
    for name, values in (("images-idx3", grey), ("labels-idx1", labels)):
        header = struct.pack(f">2xBB{values.ndim}I", 8, values.ndim, *values.shape)
        path = root / "shades" / f"train-{name}-ubyte.gz"
        path.write_bytes(gzip.compress(header + values.tobytes()))
    keras.utils.set_random_seed(0)
    shape = (SIDE, SIDE, 3)
    network = keras.applications.MobileNetV2(shape, 0.35, include_top=False, weights=None)
    # A random network needs true statistics, or all embeddings are equal.
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    network(rng.uniform(-1, 1, (16, *shape)).astype(np.float32), training=True)
    weights = root / "start.weights.h5"
    network.save_weights(weights)
    good, alignment = tuple(views_of(folder)), Alignment("none")
    reference = (root / "shades",)
    return Part("disc", root / "disc", good, alignment, weights, reference, leave_out=(3,))


def new_pictures(folder: Path) -> list[View]:
    """Three new good parts, then three with a spot."""
    rng = np.random.default_rng(1)
    for index in range(6):
        cv2.imwrite(str(folder / f"{index}.png"), draw(rng, spot=index >= 3))
    return views_of(folder)
