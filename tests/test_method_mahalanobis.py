"""Gaussians of pre-trained features against scikit-learn, and their bundle on the device."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="needs the tools extra")

from sklearn.covariance import LedoitWolf  # noqa: E402
from sklearn.decomposition import PCA  # noqa: E402

from edge_app.align import Alignment  # noqa: E402
from edge_app.bundle import load_bundle  # noqa: E402
from edge_app.cli import main  # noqa: E402
from edge_app.errors import InputError  # noqa: E402
from edge_app.gaussian import GaussianScorer  # noqa: E402
from tools.methods import Aligners, Part, View, sized  # noqa: E402
from tools.methods.mahalanobis import (  # noqa: E402
    EFFICIENTNET_LEVELS,
    Mahalanobis,
    MahalanobisEfficientNet,
    distance_sum,
    efficientnet,
    fit_gaussian,
    gaussian_arrays,
    held_out_scores,
    input_size,
    mobilenet,
)
from tools.network import network_input  # noqa: E402


def rows(count, dims, seed=0, decay=1.0):
    """Correlated vectors around a mean that is not 0."""
    rng = np.random.default_rng(seed)
    turned, _ = np.linalg.qr(rng.standard_normal((dims, dims)))
    return 3 + rng.standard_normal((count, dims)) * np.arange(1.0, dims + 1) ** -decay @ turned


def distances(vectors, queries, score="full"):
    arrays = gaussian_arrays([fit_gaussian(vectors, score)])
    scorer = GaussianScorer([0], arrays)
    return [scorer.score_pooled([query.astype(np.float32)]) for query in queries]


@pytest.mark.parametrize(("count", "dims"), [(200, 12), (30, 60), (61, 60), (60, 60), (3, 200)])
def test_full_equals_scikit_learn(count, dims):
    vectors, queries = rows(count, dims), 3 + rows(10, dims, 1) * 0.3
    wanted = np.sqrt(LedoitWolf().fit(vectors).mahalanobis(queries))
    np.testing.assert_allclose(distances(vectors, queries), wanted, rtol=1e-4)
    own = np.sqrt(LedoitWolf().fit(vectors).mahalanobis(vectors))
    np.testing.assert_allclose(distances(vectors, vectors), own, rtol=1e-4)


def test_channels_that_never_answer_count_by_the_shrinkage():
    vectors = rows(40, 8)
    vectors[:, [2, 5]] = 0
    queries = rows(5, 8, 1)
    wanted = np.sqrt(LedoitWolf().fit(vectors).mahalanobis(queries))
    np.testing.assert_allclose(distances(vectors, queries), wanted, rtol=1e-4)


@pytest.mark.parametrize(("score", "count"), [("pca", 300), ("npca", 300), ("pca", 25)])
def test_pca_and_npca_equal_scikit_learn(score, count):
    vectors, queries = rows(count, 40, decay=1.5), rows(10, 40, 1)
    pca = PCA().fit(vectors)
    # As the paper's authors cut it.
    last = (pca.explained_variance_ratio_.cumsum() > 0.99).argmax()
    assert 2 < last < 38
    kept = slice(0, last + 1) if score == "pca" else slice(last - 1, None)
    wanted = LedoitWolf().fit(pca.transform(vectors)[:, kept])
    wanted = np.sqrt(wanted.mahalanobis(pca.transform(queries)[:, kept]))
    np.testing.assert_allclose(distances(vectors, queries, score), wanted, rtol=1e-4)


def test_pca_and_npca_see_what_they_should():
    vectors = rows(300, 40, decay=1.5)
    mean, axes = vectors.mean(axis=0), PCA().fit(vectors).components_
    strong, weak = mean + 0.3 * axes[0], mean + 0.3 * axes[-1]
    seen = {score: distances(vectors, [strong, weak], score) for score in ("pca", "npca")}
    assert seen["pca"][1] < 1e-3 and seen["npca"][0] < 1e-3
    assert seen["npca"][1] > 10 > seen["pca"][0] > 0.1


def test_one_strong_component_leaves_npca_all():
    vectors = rows(100, 3, decay=9)
    assert fit_gaussian(vectors, "npca").axes.shape == (3, 3)
    assert fit_gaussian(vectors, "pca").axes.shape == (3, 1)


def test_squared_distances_of_a_gaussian_are_its_dimensions_on_average():
    rng = np.random.default_rng(0)
    squared = np.square(distances(rng.standard_normal((4000, 20)), rng.standard_normal((4000, 20))))
    # Chi-squared with 20 degrees of freedom: its mean, to five standard errors.
    assert squared.mean() == pytest.approx(20, abs=5 * np.sqrt(2 * 20 / 4000))


def test_what_has_no_covariance_is_refused():
    with pytest.raises(InputError, match="too few or too alike"):
        fit_gaussian(np.ones((10, 4)))
    with pytest.raises(InputError, match="too few or too alike"):
        fit_gaussian(rows(2, 4))
    with pytest.raises(InputError, match="not finite"):
        fit_gaussian(np.full((10, 4), np.nan))
    with pytest.raises(ValueError, match="none of full, pca, npca"):
        fit_gaussian(rows(10, 4), "ica")


def test_held_out_leaves_near_duplicates_out_together():
    levels = [rows(12, 5).astype(np.float32), rows(12, 9, 1).astype(np.float32)]
    groups = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    wanted = sum(
        np.sqrt(LedoitWolf().fit(level[2:]).mahalanobis(level[:2].astype(float)))
        for level in levels
    )
    np.testing.assert_allclose(held_out_scores(levels, groups)[:2], wanted, rtol=1e-3)


@pytest.fixture(scope="module")
def part(tmp_path_factory, still_frames, weights_file):
    folder = tmp_path_factory.mktemp("part") / "train" / "good"
    folder.mkdir(parents=True)
    aligners = Aligners(Alignment("none"))
    views = []
    for index, frame in enumerate(still_frames["good"][:84:6]):
        # So small that the network's input is too: the converter takes seconds all the same.
        small = cv2.resize(frame, (64, 48), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / f"{index:02d}.png"), small)
        views.append(View(folder / f"{index:02d}.png", aligners))
    return Part("nut", folder.parents[1], tuple(views), aligners.alignment, weights_file, ())


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return tmp_path_factory.mktemp("state") / "mahalanobis"


@pytest.fixture(scope="module")
def fitted(part, state):
    return Mahalanobis().fit(part, 0, state, progress=False)


@pytest.fixture(scope="module")
def network(part):
    return mobilenet(part.weights, input_size(part))


@pytest.fixture(scope="module")
def bad(tmp_path_factory, part):
    """A good picture with a bright square, and where it is."""
    frame_bgr = part.good[2].frame_bgr.copy()
    frame_bgr[20:28, 30:40] = (255, 255, 0)
    path = tmp_path_factory.mktemp("bad") / "0.png"
    cv2.imwrite(str(path), frame_bgr)
    return View(path, Aligners(Alignment("none")))


def test_scores_equal_keras_and_scikit_learn(fitted, network, part, bad):
    size = input_size(part)
    assert size == (64, 64)
    inputs = network_input(np.stack([*part.pictures(size), bad.pixels(size)]))
    _, *maps = network.predict(inputs, verbose=0)
    assert len(maps) == 9
    wanted = 0.0
    for patches in maps:
        vectors = patches.mean(axis=(1, 2)).astype(np.float64)
        model = LedoitWolf().fit(vectors[:-1])
        wanted += np.sqrt(model.mahalanobis(vectors[[0, -1]]))
    got = [fitted.scores(view)["full"] for view in (part.good[0], bad)]
    np.testing.assert_allclose(got, wanted, rtol=2e-3)
    assert got[1] > 3 * got[0]
    assert list(fitted.scores(bad)) == list(Mahalanobis.score_names)


def test_the_gradients_anomaly_is_the_score(fitted, network, bad):
    gaussians = [
        [
            fitted._arrays["full"][f"{name}_{index}"]
            for name in ("mean", "axes", "precision", "rest")
        ]
        for index in range(9)
    ]
    got = float(distance_sum(network, gaussians)(network_input(bad.pixels((64, 64)))[None]))
    assert got == pytest.approx(fitted.scores(bad)["full"], rel=2e-3)


def test_what_was_learnt_is_loaded(fitted, part, state, bad, tmp_path):
    (model,) = state.rglob("model.tflite")
    before = model.stat()
    again = Mahalanobis().fit(part, 1, state, progress=False)
    assert (model.stat().st_ino, model.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert again.scores(bad) == fitted.scores(bad)
    assert (again.parameters, again.size_bytes) == (fitted.parameters, fitted.size_bytes)
    assert again.notes == json.loads(json.dumps(fitted.notes))
    with pytest.raises(InputError, match="was learnt with good"):
        Mahalanobis().fit(replace(part, good=part.good[1:]), 0, state, progress=False)
    gone = replace(part, weights=tmp_path / "gone")
    with pytest.raises(InputError, match="no such weights file"):
        Mahalanobis().fit(gone, 0, tmp_path / "state", progress=False)


def test_the_bundle_scores_alike_under_inspect(fitted, part, bad, tmp_path):
    fitted.write_bundle(tmp_path / "b")
    (tmp_path / "new").mkdir()
    views = [part.good[0], part.good[5], bad]
    for index, view in enumerate(views):
        cv2.imwrite(str(tmp_path / "new" / f"{index}.png"), view.frame_bgr)
    argv = ["inspect", tmp_path / "new", "--bundle", tmp_path / "b", "--json", tmp_path / "v.jsonl"]
    assert main([str(arg) for arg in argv]) == 0
    found = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    wanted = [fitted.scores(view)["full"] for view in views]
    np.testing.assert_allclose([one["score"] for one in found], wanted, rtol=1e-4)
    assert [one["verdict"] for one in found] == ["OK", "OK", "NG"]
    bundle = load_bundle(tmp_path / "b")
    manifest = bundle.manifest
    # Each held out is farther from the others than from a Gaussian that it helped to make.
    in_sample = [fitted.scores(view)["full"] for view in part.good]
    assert (bundle.reference["scores"] > in_sample).all()
    assert manifest["scorer"]["levels"] == list(range(9))
    assert manifest["threshold"]["images"] == len(part.good)
    with pytest.raises(InputError, match="exists already"):
        fitted.write_bundle(tmp_path / "b")


def test_the_map_shows_the_place(fitted, part, bad):
    anomaly = fitted.map(bad, "gradient")
    assert anomaly.dtype == np.float32 and anomaly.shape == bad.frame_bgr.shape[:2]
    assert anomaly.min() >= 0
    inside = anomaly[20:28, 30:40].mean()
    # As the same place of the picture without the square does not, and more than the rest of it.
    assert inside > 20 * fitted.map(part.good[2], "gradient")[20:28, 30:40].mean()
    assert inside > 1.2 * anomaly.mean()
    with pytest.raises(KeyError):
        fitted.map(bad, "patch")


def test_the_input_has_the_parts_shape(part, tmp_path):
    wide = replace(part, alignment=Alignment("pose", aspect=2.75))
    assert input_size(wide) == (48, 128)
    cv2.imwrite(str(tmp_path / "s.png"), np.zeros((65, 28, 3), np.uint8))
    large = replace(wide, good=(View(tmp_path / "s.png", Aligners(part.alignment)),))
    assert input_size(large) == (128, 352)
    assert input_size(replace(large, alignment=part.alignment)) == (224, 224)


@pytest.fixture(scope="module")
def efficientnet_weights(tmp_path_factory):
    keras.utils.set_random_seed(0)
    whole = keras.applications.EfficientNetB0(
        include_top=False, weights=None, input_shape=(64, 64, 3)
    )
    path = tmp_path_factory.mktemp("efficientnet") / "random.weights.h5"
    whole.save_weights(path)
    return path


@pytest.mark.slow
def test_efficientnet_standardises_as_it_was_trained(efficientnet_weights):
    # Keras' own standardisation layer, told the mean and variance of ImageNet's colours.
    whole = keras.applications.EfficientNetB0(
        include_top=False, weights=None, input_shape=(64, 64, 3)
    )
    whole.load_weights(efficientnet_weights)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    layer = next(x for x in whole.layers if isinstance(x, keras.layers.Normalization))
    layer.mean, layer.variance = mean[None, None, None], deviation[None, None, None] ** 2
    layer.finalize_state = lambda: None
    outputs = [whole.get_layer(name).output for name in EFFICIENTNET_LEVELS]
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    standard = (pictures / 255 - mean) / deviation
    body = keras.Model(whole.get_layer("stem_conv_pad").input, outputs)
    wanted = body(standard.astype(np.float32), training=False)
    _, *maps = efficientnet(efficientnet_weights, (64, 64))(network_input(pictures), training=False)
    assert len(maps) == 9
    for one, other in zip(maps, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())


def test_efficientnet_needs_its_weights(part, tmp_path, weights_file):
    method = MahalanobisEfficientNet()
    assert method.needs_other_weights and not Mahalanobis.needs_other_weights
    for weights, says in (
        (None, "left out, wanted a file with EfficientNet-B0"),
        (tmp_path / "gone", "no such weights file"),
        (weights_file, "random.weights.h5: "),
    ):
        with pytest.raises(InputError, match=says):
            method.fit(replace(part, other_weights=weights), 0, tmp_path / "state", False)
    assert not list((tmp_path / "state").glob("*"))


@pytest.mark.slow  # the converter alone takes half the time of this file
def test_efficientnet_scores_as_keras_and_scikit_learn(part, tmp_path, efficientnet_weights):
    small = replace(part, other_weights=efficientnet_weights)
    fitted = MahalanobisEfficientNet().fit(small, 0, tmp_path / "state", progress=False)
    assert fitted.notes["size"] == [64, 64]
    assert fitted.notes["levels"] == list(EFFICIENTNET_LEVELS)
    size = (64, 64)
    inputs = network_input(sized([view.pixels(size) for view in part.good]))
    _, *maps = efficientnet(efficientnet_weights, size)(inputs, training=False)
    wanted = 0.0
    for patches in maps:
        vectors = np.asarray(patches).mean(axis=(1, 2)).astype(np.float64)
        wanted += np.sqrt(LedoitWolf().fit(vectors).mahalanobis(vectors[:1]))
    assert fitted.scores(part.good[0])["full"] == pytest.approx(wanted[0], rel=2e-3)
