"""The device's encoder on a network of several maps, and what a manifest may say of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edge_app.bundle import load_bundle, write_bundle
from edge_app.encoder import Encoder
from edge_app.errors import BundleError
from edge_app.inspector import build_encoder as encoder_of

keras = pytest.importorskip("keras", reason="building encoders needs the tools extra")
pytest.importorskip("tensorflow", reason="conversion needs the tools extra")

from tools.convert import to_tflite  # noqa: E402
from tools.network import build_encoder, map_layers_of, map_shapes_of  # noqa: E402

SCALE, OFFSET = 1 / 127.5, -1.0
SIZE = (32, 80)


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    layers = ("block_1_expand_relu", "block_2_add", "block_4_add")
    return build_encoder(None, SIZE, "block_5_add", "block_3_expand_relu", 0.35, layers)


@pytest.fixture(scope="module")
def shapes(network):
    return map_shapes_of(network)


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (6, *SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def models(network, pictures):
    return {dtype: to_tflite(network, dtype, pictures) for dtype in ("float32", "int8")}


def cosine(one, other):
    return float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.99999), ("int8", 0.97)])
def test_every_map_is_that_of_its_layer(network, models, pictures, shapes, dtype, least):
    encoder = Encoder(models[dtype], SCALE, OFFSET, map_shapes=shapes)
    assert encoder.size == SIZE
    assert encoder.map_shapes == shapes == ((8, 20, 48), (16, 40, 48), (8, 20, 8), (4, 10, 16))
    encoding = encoder.encode(pictures[0])
    embedding, *maps = network.predict(pictures[:1].astype(np.float32) * SCALE + OFFSET, verbose=0)
    assert cosine(encoding.embedding, embedding[0]) > least
    assert encoding.maps[0] is encoding.patches
    for have, want in zip(encoding.maps, maps, strict=True):
        assert have.dtype == np.float32 and have.shape == want.shape[1:]
        assert cosine(have, want[0]) > least


def test_the_order_asked_for_is_the_order_given(models, pictures, shapes):
    one = Encoder(models["float32"], SCALE, OFFSET, map_shapes=shapes).encode(pictures[0])
    turned = Encoder(models["float32"], SCALE, OFFSET, map_shapes=[list(s) for s in shapes[::-1]])
    assert turned.patch_shape == shapes[-1]
    for have, want in zip(turned.encode(pictures[0]).maps, one.maps[::-1], strict=True):
        np.testing.assert_array_equal(have, want)


def test_without_an_order_the_finest_and_richest_comes_first(models):
    encoder = Encoder(models["float32"], SCALE, OFFSET)
    assert encoder.map_shapes == ((16, 40, 48), (8, 20, 48), (8, 20, 8), (4, 10, 16))


def test_maps_that_are_not_wanted_are_not_read(models, pictures, shapes):
    every = Encoder(models["float32"], SCALE, OFFSET, map_shapes=shapes).encode(pictures[0])
    few = Encoder(models["float32"], SCALE, OFFSET, 1, shapes, maps_wanted={2}).encode(pictures[0])
    assert [map_ is None for map_ in few.maps] == [False, True, False, True]
    np.testing.assert_array_equal(few.patches, every.patches)
    np.testing.assert_array_equal(few.maps[2], every.maps[2])
    with pytest.raises(BundleError, match="has 4 maps"):
        Encoder(models["float32"], SCALE, OFFSET, 1, shapes, maps_wanted={4})


def test_maps_are_their_own(models, pictures, shapes):
    encoder = Encoder(models["float32"], SCALE, OFFSET, map_shapes=shapes)
    first = encoder.encode(pictures[0])
    kept = [map_.copy() for map_ in first.maps]
    encoder.encode(pictures[1])
    for map_, copy in zip(first.maps, kept, strict=True):
        np.testing.assert_array_equal(map_, copy)


def test_other_shapes_than_the_network_has_are_refused(models, shapes):
    for wrong in (shapes[:3], (*shapes[:3], (9, 9, 9)), (*shapes, shapes[0])):
        with pytest.raises(BundleError, match=r"encoder\.tflite: its maps have shapes"):
            Encoder(models["float32"], SCALE, OFFSET, map_shapes=wrong)


def test_two_maps_of_one_shape_are_refused():
    picture = keras.Input((16, 16, 3))
    maps = [keras.layers.Conv2D(4, 3, padding="same")(picture) for _ in range(2)]
    twins = keras.Model(picture, [keras.layers.GlobalAveragePooling2D()(maps[0]), *maps])
    with pytest.raises(BundleError, match="of different shapes"):
        Encoder(to_tflite(twins, "float32"), SCALE, OFFSET)


def test_a_network_without_embedding_or_without_maps_is_refused():
    picture = keras.Input((16, 16, 3))
    map_ = keras.layers.Conv2D(4, 3, padding="same")(picture)
    pooled = keras.layers.GlobalAveragePooling2D()(map_)
    for outputs in (map_, pooled):
        with pytest.raises(BundleError, match="wanted one embedding"):
            Encoder(to_tflite(keras.Model(picture, outputs), "float32"), SCALE, OFFSET)


@pytest.fixture
def bundle(network, models, shapes, base_path, tmp_path):
    """A bundle of several maps, encoder only."""

    def write(**changes):
        base = load_bundle(base_path).manifest
        encoder = {
            **base["encoder"],
            "embedding_shape": [network.output_shape[0][1]],
            "patch_shape": list(shapes[0]),
            "map_shapes": [list(shape) for shape in shapes],
            "map_layers": list(map_layers_of(network)),
            **changes,
        }
        manifest = {**base, "input": {**base["input"], "size": list(SIZE)}, "encoder": encoder}
        return load_bundle(write_bundle(tmp_path / "bundle", manifest, models["float32"]).path)

    return write


def test_a_bundle_names_its_maps_in_order(bundle, shapes):
    assert encoder_of(bundle(), 1).map_shapes == shapes


def test_a_bundle_from_before_there_were_maps_gives_its_patches(nut_bundle):
    keras.utils.set_random_seed(0)
    network = build_encoder(None, SIZE, "block_5_add", "block_3_expand_relu", 0.35, ())
    section = {
        key: value
        for key, value in nut_bundle.manifest["encoder"].items()
        if not key.startswith("map_")
    }
    section |= {
        "embedding_shape": [network.output_shape[0][1]],
        "patch_shape": list(network.output_shape[1][1:]),
    }
    given = {**nut_bundle.manifest["input"], "size": list(SIZE)}
    manifest = {**nut_bundle.manifest, "encoder": section, "input": given}
    old = dataclasses.replace(nut_bundle, manifest=manifest, encoder=to_tflite(network, "float32"))
    encoder = encoder_of(old, 1)
    assert encoder.map_shapes == (encoder.patch_shape,)
    assert encoder.patch_shape == tuple(section["patch_shape"])
    encoding = encoder.encode(np.zeros((*encoder.size, 3), np.uint8))
    assert len(encoding.maps) == 1 and encoding.maps[0] is encoding.patches


def test_a_manifest_of_other_maps_names_the_bundle(nut_bundle):
    section = {**nut_bundle.manifest["encoder"], "map_shapes": [[1, 2, 3]]}
    other = dataclasses.replace(nut_bundle, manifest={**nut_bundle.manifest, "encoder": section})
    with pytest.raises(BundleError, match=r"nut: encoder\.tflite: .* wanted \[1, 2, 3\]"):
        encoder_of(other, 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("map_shapes", None),
        ("map_shapes", []),
        ("map_shapes", [[8, 20]]),
        ("map_shapes", [[8, 20, 48.0]]),
        ("map_shapes", ["8x20x48"]),
        ("map_shapes", [[16, 40, 48], [8, 20, 48], [8, 20, 8], [4, 10, 16]]),
        ("map_shapes", [[8, 20, 48], [16, 40, 48], [8, 20, 48], [4, 10, 16]]),
        ("map_layers", "block_3_expand_relu"),
        ("map_layers", [1, 2, 3, 4]),
        ("map_layers", ["block_3_expand_relu"]),
    ],
)
def test_a_manifest_that_describes_no_maps_is_refused(bundle, field, value):
    with pytest.raises(BundleError, match=rf"field encoder\.{field} is .*wanted"):
        bundle(**{field: value})
