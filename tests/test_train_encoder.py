import argparse
import csv
import gzip
import struct

import cv2
import numpy as np
import pytest

from edge_app.errors import InputError
from tools import train_encoder
from tools.augment import augment
from tools.network import build_encoder, load_run

keras = pytest.importorskip("keras", reason="training needs the tools extra")

STEPS = 30


def write_parts(folder, count, colour, seed):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        picture = np.full((48, 48, 3), 60, np.uint8)
        centre = tuple(int(v) for v in rng.integers(20, 28, 2))
        cv2.circle(picture, centre, 10, colour, -1)
        cv2.imwrite(str(folder / f"{index}.png"), picture)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write_parts(root / "nut" / "train" / "good", 20, (200, 180, 160), 0)
    write_parts(root / "bolt", 12, (40, 90, 220), 1)
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(3, dtype=np.uint8), 10)
    grey = rng.integers(0, 30, (30, 28, 28), np.uint8) + 100 * labels[:, None, None]
    (root / "shapes").mkdir()
    for name, values in (("images-idx3", grey), ("labels-idx1", labels)):
        header = struct.pack(f">2xBB{values.ndim}I", 8, values.ndim, *values.shape)
        path = root / "shapes" / f"train-{name}-ubyte.gz"
        path.write_bytes(gzip.compress(header + values.tobytes()))
    keras.utils.set_random_seed(0)
    network = keras.applications.MobileNetV2((32, 32, 3), 0.35, include_top=False, weights=None)
    # Training keeps batch norm's statistics, so a random network needs true ones to begin with.
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    network(rng.uniform(-1, 1, (16, 32, 32, 3)).astype(np.float32), training=True)
    network.save_weights(root / "start.weights.h5")
    return root


def arguments(world, out, *more):
    parser = argparse.ArgumentParser()
    train_encoder.configure(parser)
    line = [
        "--data",
        world / "nut",
        world / "bolt",
        "--reference-data",
        world / "shapes",
        "--weights",
        world / "start.weights.h5",
        "--out",
        out,
        "--size",
        32,
        "--batch",
        8,
        "--embedding-layer",
        "block_3_expand_relu",
        "--patch-layer",
        "block_1_expand_relu",
        "--steps",
        STEPS,
        "--learning-rate",
        1e-3,
        "--freeze-to",
        "Conv1_relu",
        *more,
    ]
    args = parser.parse_args([str(word) for word in line])
    args.typed = ["train-encoder", *map(str, line)]
    return args


@pytest.fixture(scope="module")
def run_dir(world):
    assert train_encoder.run(arguments(world, world / "run")) == 0
    return world / "run"


def test_run_folder_is_complete(run_dir):
    names = sorted(path.name for path in run_dir.iterdir())
    assert names == ["encoder.keras", "history.csv", "run.json"]
    encoder, run = load_run(run_dir)
    assert encoder.output_names == ["embedding", "patches"]
    assert run["alpha"] == 0.35 and run["size"] == [32, 32] and run["seed"] == 0
    assert run["embedding_layer"] == "block_3_expand_relu"
    assert run["weights"]["name"] == "start.weights.h5" and len(run["weights"]["sha256"]) == 64
    assert [row["name"] for row in run["data"]] == ["nut", "bolt"]
    assert [row["held_out_images"] for row in run["data"]] == [2, 2]
    assert run["reference_classes"] == ["shapes/0", "shapes/1", "shapes/2"]


def test_history_has_every_step_and_the_cosine(run_dir):
    with (run_dir / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates[0] == pytest.approx(1e-3) and rates == sorted(rates, reverse=True)
    assert rates[-1] < 1e-5
    row = rows[3]
    assert float(row["loss"]) == pytest.approx(
        float(row["descriptiveness"]) + 0.1 * float(row["compactness"]), rel=1e-4
    )


def test_training_learns_the_reference_set(run_dir):
    with (run_dir / "history.csv").open() as file:
        losses = [float(row["descriptiveness"]) for row in csv.DictReader(file)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_batch_norm_keeps_its_statistics_and_learns_its_scale(world, run_dir):
    start = build_encoder(
        world / "start.weights.h5", (32, 32), "block_3_expand_relu", "block_1_expand_relu"
    )
    trained, _ = load_run(run_dir)
    name = "block_2_project_BN"
    gamma, beta, mean, variance = trained.get_layer(name).get_weights()
    gamma_0, beta_0, mean_0, variance_0 = start.get_layer(name).get_weights()
    assert np.array_equal(mean, mean_0) and np.array_equal(variance, variance_0)
    assert not np.array_equal(gamma, gamma_0) and not np.array_equal(beta, beta_0)


def test_frozen_layers_stay_and_the_others_move(world, run_dir):
    start = build_encoder(
        world / "start.weights.h5", (32, 32), "block_3_expand_relu", "block_1_expand_relu"
    )
    trained, _ = load_run(run_dir)
    for name, same in (("Conv1", True), ("bn_Conv1", True), ("block_1_expand", False)):
        before, after = start.get_layer(name).get_weights(), trained.get_layer(name).get_weights()
        assert all(map(np.array_equal, before, after)) is same, name


def test_an_existing_run_is_refused_and_left_alone(world, run_dir):
    before = (run_dir / "run.json").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        train_encoder.run(arguments(world, run_dir))
    assert (run_dir / "run.json").read_bytes() == before


def test_a_diverging_loss_ends_in_one_sentence_and_leaves_nothing(world):
    out = world / "diverged"
    small = ["--embedding-layer", "Conv1_relu", "--patch-layer", "Conv1_relu"]
    wild = ["--learning-rate", 1e38, "--steps", 20, "--freeze-to", "none"]
    with pytest.raises(InputError, match=r"step \d+: the loss is (nan|inf); .*--learning-rate"):
        train_encoder.run(arguments(world, out, *small, *wild))
    assert not out.exists() and not list(world.glob(".diverged*"))


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--batch", 1, "2 or more"),
        ("--steps", 0, "1 or more"),
        ("--learning-rate", "nan", "more than 0"),
        ("--rotation", 181, "0 to 180"),
    ],
)
def test_options_out_of_range(world, option, value, words):
    with pytest.raises(InputError, match=words):
        train_encoder.run(arguments(world, world / "never", option, value))


@pytest.mark.parametrize("stop", ["block_99", "block_3_expand_relu"])
def test_freezing_an_unknown_block_or_everything(world, stop):
    encoder = build_encoder(
        None, (32, 32), "block_3_expand_relu", "block_1_expand_relu", alpha=0.35
    )
    with pytest.raises(InputError, match="nearest|nothing to train"):
        train_encoder.freeze(encoder, stop)


def test_freezing_stops_at_the_end_of_the_block():
    encoder = build_encoder(
        None, (32, 32), "block_3_expand_relu", "block_1_expand_relu", alpha=0.35
    )
    train_encoder.freeze(encoder, "block_1")
    assert not encoder.get_layer("block_1_project_BN").trainable
    assert encoder.get_layer("block_2_expand").trainable


def test_split_is_seeded_disjoint_and_a_tenth(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(50)]
    train, held = train_encoder.split_good(paths, 3, tmp_path)
    assert len(held) == 5 and sorted(train + held) == sorted(paths)
    assert train_encoder.split_good(paths, 3, tmp_path)[1] == held
    assert train_encoder.split_good(paths, 4, tmp_path)[1] != held


def test_too_few_good_pictures(tmp_path):
    with pytest.raises(InputError, match="has 3 good pictures"):
        train_encoder.split_good([tmp_path / "x"] * 3, 0, tmp_path)


def test_classes_are_drawn_equally_often():
    labels = np.array([0] * 90 + [1] * 10)
    pictures = [np.full((2, 2, 3), label, np.uint8) for label in labels]
    reference = train_encoder.Reference(pictures, labels, ["many", "few"])
    drawn, drawn_labels = reference.draw(np.random.default_rng(0), 2000)
    assert abs(drawn_labels.mean() - 0.5) < 0.05
    assert [picture[0, 0, 0] for picture in drawn] == drawn_labels.tolist()


def test_augmentation_is_seeded_and_changes_the_picture():
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    kept = picture.copy()
    one = augment(picture, np.random.default_rng(5))
    assert np.array_equal(one, augment(picture, np.random.default_rng(5)))
    assert not np.array_equal(one, augment(picture, np.random.default_rng(6)))
    assert one.dtype == np.uint8 and one.shape == picture.shape
    assert np.array_equal(picture, kept)


def test_augmentation_keeps_the_colour_order_and_sets_the_size():
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[...] = (200, 100, 30)
    rng = np.random.default_rng(0)
    means = np.mean([augment(picture, rng, 180, (32, 24)).mean(axis=(0, 1)) for _ in range(40)], 0)
    assert augment(picture, rng, 180, (32, 24)).shape == (32, 24, 3)
    assert np.allclose(means, (200, 100, 30), atol=15)


def test_augmentation_turns_no_further_than_asked():
    picture = np.zeros((81, 81, 3), np.uint8)
    picture[39:42] = 255
    rng = np.random.default_rng(0)

    def largest_slope_deg(rotation_deg):
        slopes = []
        for _ in range(30):
            bright = augment(picture, rng, rotation_deg)[:, 10:71].mean(axis=2)
            rows = (bright > 128).argmax(axis=0)
            slopes.append(abs(np.degrees(np.arctan(np.polyfit(np.arange(61), rows, 1)[0]))))
        return max(slopes)

    assert largest_slope_deg(0) < 1.5
    assert 5 < largest_slope_deg(10) < 11.5
