import cv2
import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="conversion needs the tools extra")
pytest.importorskip("tensorflow", reason="conversion needs the tools extra")

from edge_app.encoder import Encoder  # noqa: E402
from tools.convert import to_tflite  # noqa: E402
from tools.equalise import bias_corrected, equalised, prepared_for_int8  # noqa: E402
from tools.network import build_encoder, map_shapes_of, network_input  # noqa: E402


@pytest.fixture(scope="module")
def encoder():
    """Random, with channels as unlike as those of a trained network; block_2_add is an output."""
    keras.utils.set_random_seed(0)
    layers = ("block_4_expand_relu", "block_1_expand_relu")
    network = build_encoder(None, (32, 48), *layers, alpha=0.35, map_layers=("block_2_add",))
    rng = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            channels = layer.gamma.shape
            layer.gamma.assign(np.exp(rng.normal(0.5, 1.0, channels)))
            layer.beta.assign(rng.normal(0.5, 1.0, channels))
    return network


@pytest.fixture(scope="module")
def pictures():
    coarse = np.random.default_rng(1).integers(0, 256, (12, 6, 8, 3), np.uint8)
    return np.stack([cv2.resize(one, (48, 32)) for one in coarse])


@pytest.fixture(scope="module")
def int8(encoder, pictures):
    return to_tflite(encoder, "int8", pictures)


def outputs_of(model, layer, inputs):
    part = keras.Model(model.inputs, model.get_layer(layer).output)
    return part.predict(inputs, verbose=0)


def test_equalised_is_the_same_function(encoder, pictures):
    noise = np.random.default_rng(2).uniform(-1, 1, (4, 32, 48, 3)).astype(np.float32)
    seen = network_input(pictures)
    before = [weights.copy() for weights in encoder.get_weights()]
    even = equalised(encoder, seen)
    for inputs in (seen, noise):
        for want, have in zip(
            encoder.predict(inputs, verbose=0), even.predict(inputs, verbose=0), strict=True
        ):
            assert np.abs(have - want).max() <= 1e-4 * np.abs(want).max()
    for old, new in zip(before, encoder.get_weights(), strict=True):
        assert np.array_equal(old, new)


def test_channels_fill_the_range_of_their_tensor(encoder, pictures):
    def spread(model, layer):
        largest = np.abs(outputs_of(model, layer, network_input(pictures))).max((0, 1, 2))
        return largest.max() / largest.min()

    even = equalised(encoder, network_input(pictures))
    assert spread(encoder, "expanded_conv_project_BN") > 2
    assert spread(even, "expanded_conv_project_BN") == pytest.approx(1, abs=1e-3)


def test_what_is_an_output_keeps_its_scale(encoder, pictures):
    """Nor may what is added to it be scaled."""
    seen = network_input(pictures)
    even = equalised(encoder, seen)
    for layer in ("block_1_project_BN", "block_2_project_BN", "block_2_add"):
        want, have = (outputs_of(model, layer, seen) for model in (encoder, even))
        assert np.abs(have - want).max() <= 1e-4 * np.abs(want).max()


def test_an_addition_of_what_is_no_bottleneck_is_left_alone(pictures):
    picture = keras.Input((32, 48, 3))
    straight = keras.layers.ReLU()(keras.layers.Conv2D(4, 1)(picture))
    linear = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 1)(picture))
    joined = keras.layers.Conv2D(2, 1)(keras.layers.Add()([straight, linear]))
    model = keras.Model(picture, joined)
    even = equalised(model, network_input(pictures))
    for old, new in zip(model.get_weights(), even.get_weights(), strict=True):
        assert np.array_equal(old, new)


def test_int8_keeps_the_means_of_channels(encoder, int8, pictures):
    device = Encoder(int8, 1 / 127.5, -1.0, map_shapes=map_shapes_of(encoder))
    have = np.mean([device.encode(one).embedding for one in pictures], axis=0)
    want = encoder.predict(network_input(pictures), verbose=0)[0].mean(0)
    # 0.003 with corrected biases, 0.013 without, of 0 to 6.
    assert np.abs(have - want).mean() < 0.006


def test_int8_is_the_smaller_file(encoder, int8):
    assert len(int8) < len(to_tflite(encoder, "float32"))


def test_only_biases_are_corrected(encoder, pictures):
    corrected = bias_corrected(encoder, network_input(pictures))
    moved = {
        old.path.rpartition("/")[2]
        for old, new in zip(encoder.weights, corrected.weights, strict=True)
        if not np.array_equal(old.numpy(), new.numpy())
    }
    assert moved == {"beta"}


def test_a_model_without_batch_normalisation_stays(pictures):
    model = keras.Sequential([keras.Input((32, 48, 3)), keras.layers.Conv2D(2, 3)])
    assert prepared_for_int8(model, network_input(pictures)) is model


def network(build):
    picture = keras.Input((32, 48, 3))
    return keras.Model(picture, build(keras.layers.Conv2D(4, 3)(picture)))


def test_a_bottleneck_of_nothing_and_one_added_to_itself(pictures):
    def build(seen):
        nothing = keras.layers.BatchNormalization(gamma_initializer="zeros")(seen)
        twice = keras.layers.Add()([nothing, nothing])
        return keras.layers.Conv2D(2, 1)(twice)

    ready = prepared_for_int8(network(build), network_input(pictures))
    assert all(np.isfinite(weights).all() for weights in ready.get_weights())


@pytest.mark.parametrize(
    "build",
    [
        lambda seen: keras.layers.BatchNormalization(scale=False)(seen),
        lambda seen: keras.layers.BatchNormalization(center=False)(seen),
        lambda seen: keras.layers.Conv2D(4, 1, groups=2)(keras.layers.BatchNormalization()(seen)),
        lambda seen: keras.Sequential([keras.layers.BatchNormalization()])(seen),
        lambda seen: (again := keras.layers.BatchNormalization())(again(seen)),
    ],
)
def test_what_is_not_understood_is_converted_as_it_is(build, pictures):
    model = network(build)
    assert prepared_for_int8(model, network_input(pictures)) is model
