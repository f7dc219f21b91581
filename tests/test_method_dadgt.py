"""One tiny training: both scores through TFLite are Keras' own, and another shape scores higher."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from drawn_part import written
from scipy import stats
from scipy.special import digamma, polygamma

from edge_app.align import Alignment
from edge_app.errors import InputError
from tools import geometric_transforms
from tools.geometric_transforms import TrainingSettings
from tools.methods import Part, dadgt
from tools.methods.dadgt import Dadgt, FourRotations
from tools.network import network_input

keras = pytest.importorskip("keras", reason="needs the tools extra")
pytest.importorskip("tensorflow", reason="needs the tools extra")

SIDE = dadgt.SIZE_PX
# Enough to tell which way the wedge of `drawn` points.
SHORT = TrainingSettings(steps=40, batch=6, learning_rate=3e-3)


def drawn(rng, shape="wedge"):
    """A wedge that points up, or a disc that points nowhere, a pixel or two off."""
    picture = np.full((SIDE, SIDE, 3), 60, np.uint8)
    x, y = (int(v) for v in rng.integers(-2, 3, 2) + SIDE // 2)
    if shape == "wedge":
        corners = np.array([[x, y - 22], [x - 16, y + 18], [x + 16, y + 18]])
        cv2.fillPoly(picture, [corners], (190, 180, 170), cv2.LINE_AA)
    else:
        cv2.circle(picture, (x, y), 18, (190, 180, 170), -1, cv2.LINE_AA)
    return np.clip(picture + rng.normal(0, 2, picture.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wedges")
    rng = np.random.default_rng(0)
    views = written(folder / "good", [drawn(rng) for _ in range(24)])
    return Part("wedges", folder, views, Alignment("none"), folder / "none", ())


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return tmp_path_factory.mktemp("state") / "dadgt"


@pytest.fixture(scope="module")
def fitted(part, state):
    return Dadgt(SHORT).fit(part, 0, state, progress=False)


def test_a_disc_is_more_anomalous_than_a_wedge(fitted, tmp_path):
    rng = np.random.default_rng(1)
    good = written(tmp_path / "good", [drawn(rng) for _ in range(4)])
    bad = written(tmp_path / "bad", [drawn(rng, "disc") for _ in range(4)])
    assert fitted.notes["held_out_accuracy"] > 0.9
    for name in Dadgt.score_names:
        scores = [[fitted.scores(view)[name] for view in views] for views in (good, bad)]
        assert max(scores[0]) < min(scores[1]), name


def test_scores_are_the_papers_by_scipy_on_the_files_own_softmax(fitted, state, tmp_path):
    """The Dirichlet score is scipy's log-density of the four softmax vectors, but for constants."""
    rng = np.random.default_rng(2)
    views = written(tmp_path / "test", [drawn(rng), drawn(rng, "disc")])
    classifier = FourRotations((state / "finished" / "rotations.tflite").read_bytes())
    alphas = fitted._scorer.alphas
    found, wanted = [], []
    for view in views:
        picture = network_input(view.pixels((SIDE, SIDE)))
        turned = np.stack([np.rot90(picture, turns) for turns in range(4)])
        logits = classifier.predict(turned).astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        scores = fitted.scores(view)
        assert tuple(scores) == ("softmax", "dirichlet")
        assert scores["softmax"] == pytest.approx(-np.exp(np.diag(log_p)).mean(), abs=1e-6)
        found.append(scores["dirichlet"])
        flat = np.full(4, 0.25)
        wanted.append(0.0)
        for alpha, row in zip(alphas, log_p, strict=True):
            # scipy's density without its constant, which it has at any point.
            constant = stats.dirichlet.logpdf(flat, alpha) - (alpha - 1) @ np.log(flat)
            softmax = np.exp(row) / np.exp(row).sum()
            wanted[-1] -= stats.dirichlet.logpdf(softmax, alpha) - constant
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_alphas_are_the_maximum_likelihood_of_the_good_pictures(fitted, part, state):
    """First-order condition of the Dirichlet likelihood, one distribution a rotation."""
    classifier = FourRotations((state / "finished" / "rotations.tflite").read_bytes())
    pictures = np.stack(part.pictures((SIDE, SIDE)))
    log_p = geometric_transforms.log_probabilities(classifier, pictures)
    for alpha, rows in zip(fitted._scorer.alphas, log_p.transpose(1, 0, 2), strict=True):
        gradient = digamma(alpha.sum()) - digamma(alpha) + rows.mean(axis=0)
        # In units of what a relative change of the parameter does to it.
        assert np.abs(gradient / (alpha * polygamma(1, alpha))).max() < 1e-5


def test_four_pictures_a_call_are_keras_own_logits():
    keras.utils.set_random_seed(0)
    network = geometric_transforms.rotation_classifier(16)
    pictures = np.random.default_rng(3).uniform(-1, 1, (12, 16, 16, 3)).astype(np.float32)
    from tools.convert import to_tflite

    classifier = FourRotations(to_tflite(network, "float32", batch=4))
    logits = classifier.predict(pictures)
    assert logits.shape == (12, 4)
    np.testing.assert_allclose(logits, network.predict_on_batch(pictures), atol=1e-4)


def test_what_was_trained_is_found_again(fitted, part, state):
    files = {one: one.stat().st_mtime_ns for one in state.rglob("*")}
    assert not list(state.rglob("state.npz"))
    again = Dadgt(SHORT).fit(part, 0, state, progress=False)
    assert {one: one.stat().st_mtime_ns for one in state.rglob("*")} == files
    assert again.scores(part.good[0]) == fitted.scores(part.good[0])
    assert again.parameters == fitted.parameters and again.size_bytes == fitted.size_bytes
    with pytest.raises(InputError, match="seed 0"):
        Dadgt(SHORT).fit(part, 1, state, progress=False)


def test_it_draws_no_map_and_writes_no_bundle(fitted, part, tmp_path):
    assert fitted.maps == ()
    with pytest.raises(KeyError):
        fitted.map(part.good[0], "difference")
    with pytest.raises(NotImplementedError):
        fitted.write_bundle(tmp_path / "bundle")


def test_too_few_good_pictures_are_refused(part, tmp_path):
    few = Part("few", part.data_dir, part.good[:19], part.alignment, part.weights, ())
    with pytest.raises(InputError, match="19 good pictures"):
        Dadgt(SHORT).fit(few, 0, tmp_path / "state", progress=False)
