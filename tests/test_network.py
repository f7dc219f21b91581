import json
from pathlib import Path

import numpy as np
import pytest

from edge_app.errors import InputError
from tools.network import (
    ALPHAS,
    CUTS,
    INPUT_SIZES_PX,
    MAP_LAYERS,
    PRESETS,
    alpha_of,
    build_encoder,
    choose_input,
    encoder_from,
    encoder_multiply_adds,
    layers_of,
    load_run,
    map_layers_of,
    map_shapes_of,
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
def run_dir(weights_file, tmp_path_factory):
    """A RUN as train-encoder writes it: with embedding and patches only."""
    folder = tmp_path_factory.mktemp("run")
    encoder = build_encoder(weights_file, (96, 64), map_layers=())
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


def test_encoder_has_named_outputs(encoder):
    maps = [f"map_{layer}" for layer in MAP_LAYERS]
    assert encoder.output_names == ["embedding", "patches", *maps]
    assert tuple(encoder.outputs[0].shape) == (None, 1280)
    assert map_shapes_of(encoder) == ((6, 4, 192), (12, 8, 96), (6, 4, 24), (6, 4, 32))
    assert map_layers_of(encoder) == ("block_13_expand_relu", *MAP_LAYERS)
    assert encoder.input_shape == (None, 96, 64, 3)


def test_embedding_is_the_mean_of_its_layer(weights_file):
    layer = "block_6_expand_relu"
    encoder = build_encoder(weights_file, (64, 64), layer, layer, map_layers=())
    pictures = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    embedding, patches = encoder.predict(pictures, verbose=0)
    assert np.allclose(embedding, patches.mean(axis=(1, 2)), atol=1e-5)


def test_further_maps_are_those_of_their_layers_and_cost_no_layer(weights_file, encoder):
    plain = build_encoder(weights_file, (96, 64), map_layers=())
    assert plain.output_names == ["embedding", "patches"]
    assert multiply_adds(plain) == multiply_adds(encoder)
    inner = keras.Model(plain.inputs[0], [plain.get_layer(name).output for name in MAP_LAYERS])
    pictures = np.random.default_rng(2).uniform(-1, 1, (1, 96, 64, 3)).astype(np.float32)
    for want, have in zip(
        inner.predict(pictures, verbose=0), encoder.predict(pictures, verbose=0)[2:], strict=True
    ):
        assert np.allclose(want, have, atol=1e-5)


@pytest.mark.parametrize(
    ("embedding_layer", "patch_layer", "further"),
    [
        ("block_13_expand_relu", "block_13_expand_relu", MAP_LAYERS),
        ("block_12_add", "block_6_expand_relu", ("block_9_add", "block_12_add")),
        ("block_6_expand_relu", "block_6_expand_relu", ("block_3_expand_relu", "block_5_add")),
        ("block_5_add", "block_3_expand_relu", ("block_5_add",)),
        ("block_3_expand_relu", "block_3_expand_relu", ()),
        # Its map is shaped like that of block_9_add.
        ("block_13_expand_relu", "block_8_add", ("block_6_expand_relu", "block_12_add")),
    ],
)
def test_default_maps_of_a_cut(embedding_layer, patch_layer, further):
    encoder = build_encoder(None, (64, 64), embedding_layer, patch_layer, 0.35)
    assert layers_of(encoder) == (embedding_layer, patch_layer)
    assert map_layers_of(encoder) == (patch_layer, *further)
    assert len(set(map_shapes_of(encoder))) == 1 + len(further)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_default_maps_of_other_widths_differ_in_shape(alpha):
    # At 0.5 blocks 3 and 6 expand to equally many channels.
    shapes = map_shapes_of(build_encoder(None, (48, 64), *["block_6_expand_relu"] * 2, alpha))
    assert len(set(shapes)) == len(shapes) == 3


def test_maps_may_be_chosen(weights_file):
    layers = ("block_2_add", "block_13_expand_relu", "block_2_add", "block_15_add")
    encoder = build_encoder(weights_file, (64, 64), "block_6_expand_relu", map_layers=layers)
    assert map_layers_of(encoder) == ("block_13_expand_relu", "block_2_add", "block_15_add")
    with pytest.raises(InputError, match="'block_8_add'.* like that of 'block_9_add'"):
        build_encoder(weights_file, (64, 64), map_layers=("block_9_add", "block_8_add"))
    with pytest.raises(InputError, match="'block_12_add'"):
        build_encoder(weights_file, (64, 64), map_layers=("blok_12_add",))


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


def test_run_loads_and_gives_the_same_output_and_the_further_maps(encoder, run_dir):
    loaded, run = load_run(run_dir)
    assert loaded.output_names == ["embedding", "patches"]
    pictures = np.random.default_rng(1).uniform(-1, 1, (1, 96, 64, 3)).astype(np.float32)
    wanted = encoder.predict(pictures, verbose=0)
    for want, have in zip(wanted[:2], loaded.predict(pictures, verbose=0), strict=True):
        assert np.allclose(want, have, atol=1e-5)
    taken = encoder_from(run_dir)
    assert taken.output_names == encoder.output_names
    for want, have in zip(wanted, taken.predict(pictures, verbose=0), strict=True):
        assert np.allclose(want, have, atol=1e-5)
    assert encoder_from(run_dir, map_layers=()).output_names == ["embedding", "patches"]
    assert run["alpha"] == alpha_of(run_dir) == 0.35
    assert layers_of(loaded) == ("out_relu", "block_13_expand_relu")


def test_run_moves_to_another_size_and_cut(encoder, run_dir):
    moved = encoder_from(run_dir, (64, 64), patch_layer="block_6_expand_relu")
    assert moved.input_shape == (None, 64, 64, 3)
    assert moved.output_shape[1] == (None, 8, 8, 96)
    kernel = moved.get_layer("block_5_expand").get_weights()[0]
    assert np.array_equal(kernel, encoder.get_layer("block_5_expand").get_weights()[0])


def test_a_run_without_the_layers_that_its_record_names(run_dir, tmp_path):
    run = {**json.loads((run_dir / "run.json").read_text()), "embedding_layer": "out_relu"}
    (tmp_path / "run.json").write_text(json.dumps(run))
    cut = encoder_from(run_dir, None, "block_12_add", "block_6_expand_relu")
    cut.save(tmp_path / "encoder.keras")
    with pytest.raises(InputError, match=r"encoder\.keras has no layer block_13_expand"):
        encoder_from(tmp_path)


def test_a_run_moves_to_a_crop_that_is_not_square(run_dir):
    moved = encoder_from(run_dir, (48, 144), map_layers=("block_3_expand_relu",))
    assert moved.input_shape == (None, 48, 144, 3)
    assert map_shapes_of(moved) == ((3, 9, 192), (12, 36, 48))


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
    assert encoder_multiply_adds(1.0, (224, 224)) == pytest.approx(300e6 - 1.28e6, rel=0.01)


@pytest.mark.parametrize("layer", ["out_relu", "block_12_add", "block_3_expand_relu"])
@pytest.mark.parametrize("size", [(160, 160), (48, 144)])
def test_counted_shapes_equal_the_built_encoder(weights_file, layer, size):
    encoder = build_encoder(weights_file, size, layer, CUTS[layer][1])
    assert multiply_adds(encoder) == encoder_multiply_adds(0.35, size, layer)


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
    side, *layers = choice
    assert choose_input(alpha, preset) == ((side, side), *layers)
    assert choose_input(alpha, preset, 1.02) == choose_input(alpha, preset)


def test_every_choice_stays_inside_its_budget_and_keeps_the_aspect():
    for alpha in (alpha for alpha in ALPHAS if alpha <= 1.0):
        for preset, budget in PRESETS.items():
            for aspect in (0.2, 0.55, 0.8, 1.0, 1.1, 1.5, 448 / 144, 5.0):
                (height, width), layer, _ = choose_input(alpha, preset, aspect)
                assert encoder_multiply_adds(alpha, (height, width), layer) <= budget
                assert height % 16 == width % 16 == 0
                assert min(height, width) >= 48 and max(height, width) <= 512
                assert height * width >= INPUT_SIZES_PX[0] ** 2
                ratio = width / height / aspect
                assert max(ratio, 1 / ratio) <= 1.15


def test_a_long_crop_gets_its_own_shape_at_the_work_of_a_square():
    assert choose_input(1.0, "accurate", 448 / 144)[0] == (144, 448)
    assert choose_input(1.0, "accurate", 144 / 448)[0] == (448, 144)
    with pytest.raises(InputError, match="aspect"):
        choose_input(1.0, "accurate", float("nan"))


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


def test_what_a_killed_process_had_begun_is_cleared_away(tmp_path):
    import os
    import subprocess
    import sys

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = tmp_path / f".run.partial-{ended.pid}"
    other = tmp_path / f".run2.partial-{ended.pid}"
    alive = tmp_path / f".run.partial-{os.getppid()}"
    for folder in (dead, other, alive):
        folder.mkdir()
    with new_folder(tmp_path / "run"):
        assert not dead.exists()
    assert other.is_dir() and alive.is_dir()


@pytest.mark.parametrize(
    ("text", "words"), [("[]", "wanted an object"), ('{"x": 1}', "has no alp")]
)
def test_a_run_json_of_another_kind_is_one_sentence(run_dir, tmp_path, text, words):
    (tmp_path / "run.json").write_text(text)
    (tmp_path / "encoder.keras").write_bytes((run_dir / "encoder.keras").read_bytes())
    with pytest.raises(InputError, match=words):
        encoder_from(tmp_path)
