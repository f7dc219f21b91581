import argparse
import csv
import gzip
import shutil
import struct

import cv2
import numpy as np
import pytest

from edge_app.errors import EdgeAppError, InputError
from tools import encoder_training, train_encoder
from tools.augment import augment
from tools.network import build_encoder, load_run
from tools.reference_set import Reference

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
    write_parts(root / "bolt", 20, (40, 90, 220), 1)
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
        "--patience",
        0,
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
    with pytest.raises(
        InputError, match=r"step \d+: the (held-out )?loss is (nan|inf); .*--learning-rate"
    ):
        train_encoder.run(arguments(world, out, *small, *wild))
    assert not list(world.glob("*diverged*"))


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--batch", 1, "2 or more"),
        ("--steps", 0, "1 or more"),
        ("--learning-rate", "nan", "more than 0"),
        ("--rotation", 181, "0 to 180"),
        ("--margin", 4, "less than 4"),
        ("--patience", -1, "0 or more"),
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
        encoder_training.freeze(encoder, stop)


def test_freezing_all_that_the_embedding_needs_is_refused():
    encoder = build_encoder(
        None, (32, 32), "block_3_expand_relu", "block_13_expand_relu", alpha=0.35, map_layers=()
    )
    with pytest.raises(InputError, match="nothing to train before the embedding"):
        encoder_training.freeze(encoder, "block_6")


def test_freezing_stops_at_the_end_of_the_block():
    encoder = build_encoder(
        None, (32, 32), "block_3_expand_relu", "block_1_expand_relu", alpha=0.35
    )
    encoder_training.freeze(encoder, "block_1")
    assert not encoder.get_layer("block_1_project_BN").trainable
    assert encoder.get_layer("block_2_expand").trainable


def test_split_is_seeded_disjoint_and_a_tenth():
    alone = np.arange(50)
    train, held = encoder_training.split_good(alone, 3, "set")
    assert len(held) == 5 and sorted(train + held) == list(range(50))
    assert encoder_training.split_good(alone, 3, "set")[1] == held
    assert encoder_training.split_good(alone, 4, "set")[1] != held


def test_near_duplicates_are_held_out_together():
    # Six exposures of each of 20 parts, then two heaps of which neither may go as a whole.
    groups = np.repeat(np.arange(20), 6)
    for seed in range(5):
        train, held = encoder_training.split_good(groups, seed, "set")
        assert not set(groups[train]) & set(groups[held])
        assert 12 <= len(held) <= 24
    train, held = encoder_training.split_good(np.repeat([0, 1], 10), 0, "set")
    assert len(held) == 2 and len(train) == 18


def test_groups_are_found_in_the_pictures():
    rng = np.random.default_rng(0)
    parts = rng.integers(0, 255, (12, 24, 24, 3), np.uint8)
    twins = [np.clip(part * 0.9, 0, 255).astype(np.uint8) for part in parts[:3]]
    groups = encoder_training.groups_of([*parts, *twins])
    assert groups[:3].tolist() == groups[12:].tolist() and len(set(groups)) == 12


def test_too_few_good_pictures():
    with pytest.raises(InputError, match="has 19 good pictures, wanted 20"):
        encoder_training.split_good(np.arange(19), 0, "set")


@pytest.fixture(scope="module")
def stopped(world):
    """What a training leaves that was stopped after its last step: a checkpoint and no RUN."""
    out = world / "stopped"

    def stop(model, path):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.Model, "save", stop)
        with pytest.raises(KeyboardInterrupt, match=r"stopped.unfinished .* add --resume"):
            train_encoder.run(arguments(world, out))
    assert not out.exists()
    return world / "stopped.unfinished"


def test_a_killed_training_resumes_to_the_same_encoder(world, run_dir, stopped):
    out = world / "killed"
    shutil.copytree(stopped, world / "killed.unfinished")
    with pytest.raises(InputError, match="killed.unfinished: .* add --resume"):
        train_encoder.run(arguments(world, out))
    with pytest.raises(InputError, match="had margin 0.2, now it is 0.3"):
        train_encoder.run(arguments(world, out, "--margin", 0.3, "--resume"))
    assert train_encoder.run(arguments(world, out, "--resume")) == 0
    assert not (world / "killed.unfinished").exists()
    (wanted, wanted_run), (got, run) = load_run(run_dir), load_run(out)
    assert all(map(np.array_equal, wanted.get_weights(), got.get_weights()))
    assert run["resumed_from"] == STEPS
    assert run["data"] == wanted_run["data"] and run["held_out_loss"] == wanted_run["held_out_loss"]


def test_nothing_to_resume(world):
    with pytest.raises(InputError, match="new.unfinished holds no checkpoint"):
        train_encoder.run(arguments(world, world / "new", "--resume"))


def test_triplets_pull_good_parts_together(world):
    out = world / "triplet"
    assert train_encoder.run(arguments(world, out, "--loss", "triplet", "--leave-out", "1")) == 0
    _, run = load_run(out)
    assert run["loss"] == "triplet" and run["reference_classes"] == ["shapes/0", "shapes/2"]
    with (out / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["loss"]) for row in rows]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert min(float(row["held_out"]) for row in rows if row["held_out"]) == run["held_out_loss"]


@pytest.mark.parametrize(
    ("classes", "words"), [(["7"], "no class 7 to leave out"), (["0", "1"], "two classes or more")]
)
def test_leaving_out_classes_that_are_not_there_or_too_many(world, classes, words):
    with pytest.raises(InputError, match=words):
        train_encoder.run(arguments(world, world / "never", "--leave-out", *classes))
    assert not list(world.glob("*never*"))


def test_a_run_that_cannot_be_written_keeps_its_training(world, run_dir, stopped):
    resource = pytest.importorskip("resource", reason="limits of file sizes are POSIX")
    out = world / "full"
    shutil.copytree(stopped, world / "full.unfinished")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The training is finished, its checkpoint there: the kernel refuses the RUN like a full disk.
    half = (run_dir / "encoder.keras").stat().st_size // 2
    resource.setrlimit(resource.RLIMIT_FSIZE, (half, limits[1]))
    try:
        with pytest.raises(EdgeAppError, match="full: cannot be written .* add --resume"):
            train_encoder.run(arguments(world, out, "--resume"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not out.exists()
    assert train_encoder.run(arguments(world, out, "--resume")) == 0
    wanted, got = load_run(run_dir)[0], load_run(out)[0]
    assert all(map(np.array_equal, wanted.get_weights(), got.get_weights()))


def test_other_pictures_under_the_same_names_are_not_gone_on_with(world, stopped):
    out, nuts = world / "other", world / "nut" / "train" / "good"
    first = sorted(nuts.iterdir())[0]
    kept = first.read_bytes()

    shutil.copytree(stopped, world / "other.unfinished")
    try:
        cv2.imwrite(str(first), 255 - cv2.imread(str(first)))
        with pytest.raises(InputError, match="had pictures_sha256"):
            train_encoder.run(arguments(world, out, "--resume"))
    finally:
        first.write_bytes(kept)
        shutil.rmtree(world / "other.unfinished")


def test_classes_are_drawn_equally_often():
    labels = np.array([0] * 90 + [1] * 10)
    pictures = [np.full((2, 2, 3), label, np.uint8) for label in labels]
    reference = Reference(pictures, labels, ["many", "few"])
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


def test_a_tenth_of_each_class_is_held_out_and_never_shown():
    labels = np.array([0] * 30 + [1])
    pictures = [np.full((2, 2, 3), row, np.uint8) for row in range(31)]
    shown, unseen = Reference(pictures, labels, ["many", "one"]).split(0.1, 0)
    rng = np.random.default_rng(0)

    def rows_of(reference, label):
        drawn, drawn_labels = reference.draw(rng, 400)
        return {
            int(one[0, 0, 0]) for one, at in zip(drawn, drawn_labels, strict=True) if at == label
        }

    assert len(rows_of(unseen, 0)) == 3
    assert rows_of(shown, 0) | rows_of(unseen, 0) == set(range(30))
    assert not rows_of(shown, 0) & rows_of(unseen, 0)
    assert rows_of(shown, 1) == rows_of(unseen, 1) == {30}


def test_without_recompression_a_picture_keeps_what_jpeg_would_take():
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[::2, ::2] = 255
    kept = augment(picture, np.random.default_rng(3), 0.0, recompress=False)
    lossy = augment(picture, np.random.default_rng(3), 0.0)
    assert not np.array_equal(kept, lossy)
    assert np.abs(kept.astype(int) - lossy).mean() < 60


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
