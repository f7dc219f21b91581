"""The differences against TensorFlow's own SSIM, one tiny training, and both heatmaps."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from drawn_part import written

from edge_app.align import Alignment
from edge_app.errors import InputError
from tools.encoder_training import CACHE_MARGIN, groups_of, split_good
from tools.methods import Part
from tools.methods import autoencoder as methods
from tools.methods.autoencoder import Autoencoder, StructuralAutoencoder, Training
from tools.methods.gradient import downhill, moved_map
from tools.network import network_input

keras = pytest.importorskip("keras", reason="needs the tools extra")
tf = pytest.importorskip("tensorflow", reason="needs the tools extra")
ops = keras.ops

SIDE = 64
# Enough to draw the disc of `drawn` where it lies.
SHORT = Training(size_px=SIDE, steps=60, batch=8, learning_rate=4e-3)
SPOT = (slice(28, 36), slice(28, 36))


def drawn(rng):
    """A bright disc on a dark ground, a pixel or two off."""
    picture = np.full((SIDE, SIDE, 3), 60, np.uint8)
    x, y = rng.integers(-2, 3, 2) + SIDE // 2
    cv2.circle(picture, (int(x), int(y)), 18, (190, 180, 170), -1, cv2.LINE_AA)
    noise = rng.normal(0, 2, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    folder = tmp_path_factory.mktemp("discs")
    rng = np.random.default_rng(0)
    views = written(folder / "good", [drawn(rng) for _ in range(30)])
    return Part("discs", folder, views, Alignment("none"), folder / "none", ())


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return tmp_path_factory.mktemp("state") / "squared"


@pytest.fixture(scope="module")
def fitted(part, state):
    return Autoencoder(SHORT).fit(part, 0, state, progress=False)


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """Four good discs, and the same with a dark spot."""
    rng = np.random.default_rng(1)
    good = [drawn(rng) for _ in range(4)]
    bad = [one.copy() for one in good]
    for one in bad:
        one[SPOT] = 20
    folder = tmp_path_factory.mktemp("tested")
    return written(folder / "good", good), written(folder / "bad", bad)


def network_of(state):
    return keras.models.load_model(state / "finished" / "autoencoder.keras", compile=False)


def tensorflows_ssim(first, second):
    """Its map is smaller by the window: mirrored outwards first, it covers the picture."""
    first, second = (
        np.pad(one, [(5, 5), (5, 5), (0, 0)], mode="reflect")[None] for one in (first, second)
    )
    return tf.image.ssim(first, second, 2.0, return_index_map=True).numpy()[0]


def test_ssim_is_tensorflows_own():
    rng = np.random.default_rng(2)
    first = cv2.resize(rng.uniform(-1, 1, (8, 8, 3)).astype(np.float32), (40, 33))
    second = np.clip(first + rng.normal(0, 0.2, first.shape), -1, 1).astype(np.float32)
    ours = ops.convert_to_numpy(methods.ssim(first[None], second[None]))[0]
    assert ours.shape == (33, 40, 3)
    np.testing.assert_allclose(ours.mean(axis=2), tensorflows_ssim(first, second), atol=1e-4)


def test_ssim_of_the_same_picture_is_one_and_of_flat_ones_is_known():
    same = np.random.default_rng(3).uniform(-1, 1, (1, 20, 20, 3)).astype(np.float32)
    np.testing.assert_allclose(ops.convert_to_numpy(methods.ssim(same, same)), 1, atol=1e-5)
    one, other = (np.full((1, 12, 12, 1), value, np.float32) for value in (0.5, -0.25))
    # No variance: what is left is the brightness term, with c1 = (0.01 * 2)^2.
    wanted = (2 * 0.5 * -0.25 + 4e-4) / (0.25 + 0.0625 + 4e-4)
    np.testing.assert_allclose(ops.convert_to_numpy(methods.ssim(one, other)), wanted, atol=1e-4)


def test_an_unknown_difference_is_refused():
    with pytest.raises(ValueError, match="squared, structural"):
        methods.differences(np.zeros((1, 8, 8, 3)), np.zeros((1, 8, 8, 3)), "absolute")


def test_six_levels_down_and_up_again():
    network = methods.autoencoder(128)
    sides = [layer.output.shape[1] for layer in network.layers if "conv" in layer.name]
    assert sides == [64, 32, 16, 8, 4, 2, 4, 8, 16, 32, 64, 128]
    assert network.output_shape == network.input_shape == (None, 128, 128, 3)
    with pytest.raises(ValueError, match="multiple of 64"):
        methods.autoencoder(96)


def test_mean_of_the_largest_percent():
    values = np.random.default_rng(4).permutation(400).reshape(20, 20).astype(np.float32)
    assert methods.mean_of_largest(values) == np.mean([396, 397, 398, 399])
    assert methods.mean_of_largest(values[:2, :2]) == values[:2, :2].max()
    values[3, 3] = np.nan
    assert np.isnan(methods.mean_of_largest(values))


def test_a_spot_is_redrawn_worse_than_a_good_disc(fitted, tested):
    good, bad = tested
    for name in Autoencoder.score_names:
        scores = [[fitted.scores(view)[name] for view in views] for views in (good, bad)]
        assert max(scores[0]) < min(scores[1]), name
    assert fitted.notes["held_out_loss"] < 0.1


def test_scores_and_map_are_those_of_keras(fitted, state, tested):
    network, view = network_of(state), tested[1][0]
    picture = network_input(view.pixels((SIDE, SIDE)))
    redraw = network.predict_on_batch(picture[None])[0]
    wanted = ((picture.astype(np.float64) - redraw) ** 2).mean(axis=2)
    np.testing.assert_allclose(fitted.map(view, "difference"), wanted, atol=1e-4)
    scores = fitted.scores(view)
    assert scores["mean"] == pytest.approx(wanted.mean(), rel=1e-3)
    assert scores["largest"] == pytest.approx(np.sort(wanted.ravel())[-41:].mean(), rel=1e-3)


def test_both_maps_are_brightest_on_the_spot(fitted, tested):
    view = tested[1][1]
    outside = np.ones((SIDE, SIDE), bool)
    outside[SPOT] = False
    for kind in fitted.maps:
        found = fitted.map(view, kind)
        assert found.dtype == np.float32 and found.shape == (SIDE, SIDE)
        assert found[SPOT].mean() > 5 * found[outside].mean(), kind
    with pytest.raises(KeyError):
        fitted.map(view, "grad-cam")


def test_the_picture_moved_is_nearer_to_what_the_network_redraws(fitted, state, tested):
    """By Dehaene's own energy, computed here in numpy."""
    network = network_of(state)
    picture = network_input(tested[1][2].pixels((SIDE, SIDE)))

    def energy(x):
        redraw = network.predict_on_batch(x[None])[0].astype(np.float64)
        return ((x - redraw) ** 2).sum() + 0.1 * np.abs(x - picture).sum()

    anomaly = methods.redrawing_anomaly(network, "squared")
    moved = downhill(anomaly, picture, 20, 4.0, 0.1)
    assert energy(moved) < 0.8 * energy(picture)
    redraw = network.predict_on_batch(picture[None])[0]
    _, _, weight = anomaly.at(picture)
    np.testing.assert_allclose(weight, (picture - redraw) ** 2, atol=1e-4)
    # Towards the redraw: the dark spot gets brighter.
    assert (moved - picture)[SPOT].mean() > 0.2
    np.testing.assert_array_equal(
        moved_map(picture, moved), np.abs(moved - picture).mean(axis=2, dtype=np.float32)
    )


def test_what_was_trained_is_found_again(fitted, part, state, tested):
    files = {one: one.stat().st_mtime_ns for one in state.rglob("*")}
    assert not (state / "state.npz").exists()
    again = Autoencoder(SHORT).fit(part, 0, state, progress=False)
    assert {one: one.stat().st_mtime_ns for one in state.rglob("*")} == files
    assert again.scores(tested[0][0]) == fitted.scores(tested[0][0])
    assert again.parameters == methods.autoencoder(SIDE).count_params()
    with pytest.raises(InputError, match="seed 0"):
        Autoencoder(SHORT).fit(part, 1, state, progress=False)
    with pytest.raises(InputError, match="method"):
        StructuralAutoencoder(SHORT).fit(part, 0, state, progress=False)


def test_the_structural_one_learns_and_scores_by_ssim(part, tested, tmp_path):
    few = Training(size_px=SIDE, steps=3, batch=4)
    fitted = StructuralAutoencoder(few).fit(part, 0, tmp_path / "state", progress=False)
    network, view = network_of(tmp_path / "state"), tested[1][0]
    picture = network_input(view.pixels((SIDE, SIDE)))
    redraw = network.predict_on_batch(picture[None])[0]
    found = fitted.map(view, "difference")
    np.testing.assert_allclose(found, 1 - tensorflows_ssim(picture, redraw), atol=1e-3)
    assert fitted.scores(view)["mean"] == pytest.approx(float(found.mean()), rel=1e-4)
    assert fitted.map(view, "gradient").shape == (SIDE, SIDE)
    first = fitted.notes["held_out_loss"]
    assert 0 < first < 2


@pytest.mark.slow  # the loop's own is in tests/test_training.py
def test_a_training_that_was_stopped_goes_on(fitted, part, state, tested, tmp_path):
    """Stopped in its fourth step, it ends with the scores of a training in one go."""

    class Stop(Exception):
        pass

    class UntilStopped(list):
        asked = 0

        def __getitem__(self, row):
            self.asked += 1
            if self.asked > 3 * SHORT.batch:
                raise Stop
            return super().__getitem__(row)

    pictures = np.stack(part.pictures((SIDE, SIDE)))
    learnt, held = split_good(groups_of(pictures), 0, part.data_dir)
    margin = round(SIDE * CACHE_MARGIN)
    larger = UntilStopped([part.good[row].pixels((margin, margin)) for row in learnt])
    stored = json.loads((state / "finished" / "settings.json").read_text())
    stopped = tmp_path / "stopped"
    with pytest.raises(Stop):
        methods.train_autoencoder(
            larger,
            pictures[held],
            "squared",
            SHORT,
            SIDE,
            0,
            state=stopped,
            settings=stored,
            progress=False,
        )
    assert (stopped / "state.npz").is_file()
    resumed = Autoencoder(SHORT).fit(part, 0, stopped, progress=False)
    assert resumed.notes["resumed_from"] == 1
    # Two trainings of sixty steps differ by roundings alone; of two seeds, by a tenth and more.
    view = tested[1][0]
    assert resumed.scores(view) == pytest.approx(fitted.scores(view), rel=0.02)


def test_small_pictures_are_not_enlarged():
    assert methods.input_side((28, 28, 3), Training()) == 64
    assert methods.input_side((64, 60, 3), Training()) == 64
    assert methods.input_side((65, 28, 3), Training()) == 128
