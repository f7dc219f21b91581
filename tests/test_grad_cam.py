import numpy as np
import pytest

from edge_app.scorer import FeatureScaling

keras = pytest.importorskip("keras", reason="gradients need the tools extra")

from tools.methods.grad_cam import GradCam, channel_weights, weighted_map  # noqa: E402
from tools.network import network_input  # noqa: E402

SIDE = 4


@pytest.fixture(scope="module")
def linear():
    """Two channels: red minus 0.2 and blue minus red; the embedding is their mean over 4 x 4."""
    pictures = keras.Input((SIDE, SIDE, 3))
    grid = keras.layers.Conv2D(2, 1, name="grid")(pictures)
    network = keras.Model(pictures, keras.layers.GlobalAveragePooling2D()(grid))
    kernel = np.array([[1, -1], [0, 0], [0, 1]], np.float32).reshape(1, 1, 3, 2)
    network.get_layer("grid").set_weights([kernel, np.array([-0.2, 0.0], np.float32)])
    return network


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def channels(picture):
    """What the linear network's layer answers, written out."""
    red, _, blue = np.moveaxis(network_input(picture), -1, 0)
    return np.stack([red - 0.2, blue - red], axis=-1)


def by_hand(picture, gradient):
    """The map where the loss has this gradient by the embedding: each cell has 1/16 of it."""
    return np.maximum(channels(picture) @ (gradient / SIDE**2), 0)


def test_plain_distance_by_hand(linear, picture):
    nearest = np.array([[0.5, 0.1], [-0.3, 0.7]], np.float32)
    embedding = channels(picture).mean(axis=(0, 1))
    gradient = 2 * (embedding - nearest).mean(axis=0)
    got = GradCam(linear, "grid", FeatureScaling("none")).map(picture, nearest)
    assert got.shape == (SIDE, SIDE) and got.dtype == np.float32
    assert got.max() > 0
    np.testing.assert_allclose(got, by_hand(picture, gradient), rtol=1e-4, atol=1e-7)


def test_unit_length_by_hand(linear, picture):
    # d/df |f / |f| - g|^2 = 2 (I - u u') (u - g) / |f|, u = f / |f|.
    good = np.array([[3.0, 4.0]], np.float32)
    embedding = channels(picture).mean(axis=(0, 1))
    length = np.linalg.norm(embedding)
    unit = embedding / length
    gradient = 2 * (np.eye(2) - np.outer(unit, unit)) @ (unit - [0.6, 0.8]) / length
    got = GradCam(linear, "grid", FeatureScaling("l2")).map(picture, good)
    assert got.max() > 0
    np.testing.assert_allclose(got, by_hand(picture, gradient), rtol=1e-4, atol=1e-7)


def test_scaled_features_by_hand(linear, picture):
    scaling = FeatureScaling("minmax", np.array([-0.5, 0.25]), np.array([2.0, 0.1]))
    nearest = np.array([[0.4, -0.2]], np.float32)
    embedding = channels(picture).mean(axis=(0, 1))
    gradient = 2 * (embedding - nearest[0]) / scaling.span**2
    got = GradCam(linear, "grid", scaling).map(picture, nearest)
    assert got.max() > 0
    np.testing.assert_allclose(got, by_hand(picture, gradient), rtol=1e-4, atol=1e-7)


def test_what_is_strange_lights_up_and_where_it_is(linear):
    grey = np.full((SIDE, SIDE, 3), 128, np.uint8)
    good = channels(grey).mean(axis=(0, 1))[None].astype(np.float32)
    spotted = grey.copy()
    spotted[1, 2] = (10, 128, 250)
    got = GradCam(linear, "grid", FeatureScaling("none")).map(spotted, good)
    assert np.unravel_index(got.argmax(), got.shape) == (1, 2)
    assert got[1, 2] > 10 * np.delete(got.ravel(), 1 * SIDE + 2).max()


def test_a_good_picture_stays_dark(linear, picture):
    good = channels(picture).mean(axis=(0, 1))[None].astype(np.float32)
    got = GradCam(linear, "grid", FeatureScaling("none")).map(picture, good)
    np.testing.assert_allclose(got, 0, atol=1e-6)


def test_a_network_without_weights_by_hand(picture):
    # Nothing in it is trained: what is followed is the way from the picture.
    pictures = keras.Input((SIDE, SIDE, 3))
    grid = keras.layers.Rescaling(0.5, name="grid")(pictures)
    network = keras.Model(pictures, keras.layers.GlobalAveragePooling2D()(grid))
    answer = network_input(picture) / 2
    good = np.array([[-1.0, 0.2, 0.1]], np.float32)
    gradient = 2 * (answer.mean(axis=(0, 1)) - good[0]) / SIDE**2
    got = GradCam(network, "grid", FeatureScaling("none")).map(picture, good)
    assert got.max() > 0
    np.testing.assert_allclose(got, np.maximum(answer @ gradient, 0), rtol=1e-4, atol=1e-7)


def test_a_layer_that_is_not_there_is_refused(linear):
    with pytest.raises(ValueError, match="no_such"):
        GradCam(linear, "no_such", FeatureScaling("none"))


def test_weights_and_map_of_the_paper():
    # Selvaraju et al., equations 1 and 2, with numbers.
    gradient = np.array([[[1.0, -2.0], [3.0, 0.0]]], np.float32)
    assert channel_weights(gradient).tolist() == [2.0, -1.0]
    activations = np.array([[[1.0, 1.0], [1.0, 5.0]]], np.float32)
    assert weighted_map(activations, channel_weights(gradient)).tolist() == [[1.0, 0.0]]
