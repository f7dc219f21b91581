import json
from pathlib import Path

import numpy as np
import pytest

from edge_app.errors import InputError
from tools.network import (
    ALPHAS,
    CUTS,
    PRESETS,
    alpha_of,
    build_encoder,
    choose_input,
    encoder_from,
    encoder_multiply_adds,
    layers_of,
    load_run,
    multiply_adds,
    new_folder,
    read_alpha,
)

keras = pytest.importorskip("keras", reason="building encoders needs the tools extra")

SHARED_WEIGHTS = Path(__file__).parents[2] / "shared" / "weights"


@pytest.fixture(scope="module")
def encoder(weights_file):
    return build_encoder(weights_file, (96, 64))


@pytest.fixture(scope="module")
def run_dir(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    encoder.save(folder / "encoder.keras")
    embedding_layer, patch_layer = layers_of(encoder)
    run = {
        "alpha": 0.35,
        "size": [96, 64],
        "embedding_layer": embedding_layer,
        "patch_layer": patch_layer,
    }
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def test_alpha_is_read_from_the_shapes(weights_file):
    assert read_alpha(weights_file) == alpha_of(weights_file) == 0.35


@pytest.mark.skipif(not SHARED_WEIGHTS.is_dir(), reason="no ../shared/weights on this machine")
@pytest.mark.parametrize(
    ("name", "alpha"),
    [
        ("mobilenet_v2_0.35_224_imagenet", 0.35),
        ("mobilenet_v2_0.50_96_imagenet_dequantised", 0.5),
        ("mobilenet_v2_1.00_224_imagenet_folded_bn", 1.0),
    ],
)
def test_alpha_of_published_weights(name, alpha):
    assert read_alpha(SHARED_WEIGHTS / f"{name}.weights.h5") == alpha


def test_alpha_of_a_file_that_is_no_weights_file(tmp_path):
    path = tmp_path / "text.weights.h5"
    path.write_text("not HDF5")
    with pytest.raises(InputError, match="not a Keras weights file"):
        read_alpha(path)
    with pytest.raises(InputError, match="no such weights file"):
        read_alpha(tmp_path / "none.weights.h5")


def test_alpha_of_another_network(tmp_path):
    network = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    network.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(InputError, match="not those of a MobileNetV2"):
        read_alpha(tmp_path / "other.weights.h5")


def test_encoder_has_two_named_outputs(encoder):
    assert encoder.output_names == ["embedding", "patches"]
    assert [tuple(out.shape) for out in encoder.outputs] == [(None, 1280), (None, 6, 4, 192)]
    assert encoder.input_shape == (None, 96, 64, 3)


def test_embedding_is_the_mean_of_its_layer(weights_file):
    encoder = build_encoder(weights_file, (64, 64), "block_6_expand_relu", "block_6_expand_relu")
    pictures = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    embedding, patches = encoder.predict(pictures, verbose=0)
    assert np.allclose(embedding, patches.mean(axis=(1, 2)), atol=1e-5)


def test_nothing_deeper_than_the_outputs_remains(weights_file):
    encoder = build_encoder(weights_file, (96, 96), "block_3_expand_relu", "block_6_expand_relu")
    names = [layer.name for layer in encoder.layers]
    assert "block_6_expand_relu" in names
    assert not [name for name in names if name.startswith(("block_6_dep", "block_7", "Conv_1"))]
    assert layers_of(encoder) == ("block_3_expand_relu", "block_6_expand_relu")


def test_an_unknown_layer_names_the_nearest(weights_file):
    with pytest.raises(InputError, match="'block_12_add'"):
        build_encoder(weights_file, (96, 96), "blok_12_add")


def test_random_weights_need_an_alpha():
    with pytest.raises(InputError, match="alpha must be given"):
        build_encoder(None, (96, 96))


def test_a_contradicting_alpha_is_refused(weights_file):
    with pytest.raises(InputError, match="has alpha 0.35, but alpha 0.5"):
        build_encoder(weights_file, (96, 96), alpha=0.5)


def test_a_tiny_size_is_refused(weights_file):
    with pytest.raises(InputError, match="32 pixels"):
        build_encoder(weights_file, (16, 96))


def test_run_loads_and_gives_the_same_output(encoder, run_dir):
    loaded, run = load_run(run_dir)
    pictures = np.random.default_rng(1).uniform(-1, 1, (1, 96, 64, 3)).astype(np.float32)
    for want, have in zip(
        encoder.predict(pictures, verbose=0), loaded.predict(pictures, verbose=0), strict=True
    ):
        assert np.allclose(want, have, atol=1e-5)
    assert run["alpha"] == alpha_of(run_dir) == 0.35
    assert layers_of(loaded) == ("out_relu", "block_13_expand_relu")


def test_run_moves_to_another_size_and_cut(encoder, run_dir):
    moved = encoder_from(run_dir, (64, 64), patch_layer="block_6_expand_relu")
    assert moved.input_shape == (None, 64, 64, 3)
    assert moved.output_shape[1] == (None, 8, 8, 96)
    kernel = moved.get_layer("block_5_expand").get_weights()[0]
    assert np.array_equal(kernel, encoder.get_layer("block_5_expand").get_weights()[0])


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match=r"run\.json is missing"):
        load_run(tmp_path)


def test_a_damaged_run(run_dir, tmp_path):
    (tmp_path / "run.json").write_text((run_dir / "run.json").read_text())
    (tmp_path / "encoder.keras").write_bytes(b"no zip")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_run(tmp_path)


def test_multiply_adds_by_hand():
    model = keras.Sequential(
        [
            keras.Input((8, 6, 3)),
            keras.layers.Conv2D(5, 3, strides=2, padding="same"),  # 4*3 * 3*3*3*5 = 1620
            keras.layers.DepthwiseConv2D(3, padding="same"),  # 4*3 * 3*3*5 = 540
            keras.layers.Conv2DTranspose(2, 2, strides=2),  # 4*3 * 2*2*5*2 = 480
            keras.layers.Flatten(),
            keras.layers.Dense(7),  # 8*6*2 * 7 = 672
        ]
    )
    assert multiply_adds(model) == 1620 + 540 + 480 + 672


def test_multiply_adds_of_mobilenet_v2_as_published():
    # 300 million in the paper, of which the classifier, absent here, is 1.28 million.
    assert encoder_multiply_adds(1.0, 224) == pytest.approx(300e6 - 1.28e6, rel=0.01)


@pytest.mark.parametrize("layer", ["out_relu", "block_12_add", "block_3_expand_relu"])
def test_counted_shapes_equal_the_built_encoder(weights_file, layer):
    encoder = build_encoder(weights_file, (160, 160), layer, CUTS[layer][1])
    assert multiply_adds(encoder) == encoder_multiply_adds(0.35, 160, layer)


@pytest.mark.parametrize(
    ("alpha", "preset", "choice"),
    [
        (0.35, "fast", (128, "block_13_expand_relu", "block_13_expand_relu")),
        (0.35, "accurate", (320, "block_13_expand_relu", "block_13_expand_relu")),
        (1.0, "balanced", (128, "block_13_expand_relu", "block_13_expand_relu")),
        (1.0, "accurate", (256, "block_13_expand_relu", "block_13_expand_relu")),
        (0.75, "fast", (96, "block_6_expand_relu", "block_6_expand_relu")),
    ],
)
def test_choice_of_a_preset(alpha, preset, choice):
    assert choose_input(alpha, preset) == choice


def test_every_choice_stays_inside_its_budget():
    for alpha in (alpha for alpha in ALPHAS if alpha <= 1.0):
        for preset, budget in PRESETS.items():
            size, layer, _ = choose_input(alpha, preset)
            assert encoder_multiply_adds(alpha, size, layer) <= budget


def test_an_impossible_preset_and_an_unknown_one():
    with pytest.raises(InputError, match="too few for alpha 1.4"):
        choose_input(1.4, "fast")
    with pytest.raises(InputError, match="fast, balanced, accurate"):
        choose_input(0.35, "quick")


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    with new_folder(tmp_path / "a" / "run") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "a" / "run").exists()
    assert (tmp_path / "a" / "run" / "file").read_text() == "x"
    with pytest.raises(RuntimeError), new_folder(tmp_path / "b") as folder:
        (folder / "file").write_text("x")
        raise RuntimeError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_an_existing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="exists already"), new_folder(tmp_path):
        pass
