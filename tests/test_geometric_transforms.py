"""Rotations exact, the Dirichlet fit right, higher scores for what was not learnt from."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize
from scipy.special import digamma, polygamma

from edge_app.errors import InputError
from tools import geometric_transforms as dadgt
from tools.metrics import image_auroc

SIZE = 16


def test_rotations_are_exact_and_in_the_order_of_their_labels():
    pictures = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 3), np.uint8)
    turned = dadgt.rotated(pictures)
    assert turned.dtype == np.uint8 and turned.shape == (12, 5, 5, 3)
    codes = [None, cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE]
    labels = dadgt.rotation_labels(3)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    for row, (label, picture) in enumerate(zip(labels, turned, strict=True)):
        original = pictures[row % 3]
        wanted = original if label == 0 else cv2.rotate(original, codes[label])
        assert np.array_equal(picture, wanted), row


def test_only_square_pictures_are_turned():
    with pytest.raises(ValueError, match="square"):
        dadgt.rotated(np.zeros((2, 4, 5, 3), np.uint8))


@pytest.mark.parametrize(
    "alpha",
    [(1.0, 2.0, 3.0, 4.0), (0.3, 0.3, 0.3, 0.3), (200.0, 1.0, 0.5, 3.0), (0.05, 4.0, 0.1, 0.05)],
)
def test_dirichlet_parameters_are_recovered(alpha):
    drawn = stats.dirichlet(alpha).rvs(4000, random_state=1)
    log_p = np.log(np.maximum(drawn, 1e-300))
    fitted = dadgt.fit_dirichlet(log_p)
    # Four standard errors: the inverse of the Fisher information, diag(psi'(a)) - psi'(sum a).
    information = np.diag(polygamma(1, alpha)) - polygamma(1, sum(alpha))
    errors = np.sqrt(np.diag(np.linalg.inv(information)) / len(drawn))
    assert np.all(np.abs(fitted - alpha) < 4 * errors)


@pytest.mark.parametrize("alpha", [(1.0, 2.0, 3.0, 4.0), (500.0, 1.0, 0.5, 3.0), (0.2, 0.1, 9, 1)])
def test_no_optimiser_finds_a_higher_likelihood(alpha):
    drawn = np.maximum(stats.dirichlet(alpha).rvs(300, random_state=2), 1e-300)
    drawn /= drawn.sum(axis=1, keepdims=True)

    def likelihood(parameters):
        return float(np.mean([stats.dirichlet.logpdf(row, parameters) for row in drawn]))

    mean_log = np.log(drawn).mean(axis=0)
    fitted = dadgt.fit_dirichlet(np.log(drawn))
    # The closed form that is maximised is scipy's own log-density.
    assert dadgt.dirichlet_log_likelihood(fitted, mean_log) == pytest.approx(
        likelihood(fitted), rel=1e-9
    )
    found = minimize(
        lambda x: -dadgt.dirichlet_log_likelihood(np.exp(x), mean_log), np.zeros(4), tol=1e-12
    )
    assert likelihood(fitted) >= likelihood(np.exp(found.x)) - 1e-9


def test_the_gradient_is_zero_at_every_fit():
    """Also where a whole step of Newton's would leave the positive numbers."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        alpha = 10 ** rng.uniform(-2, 3, 4)
        drawn = np.maximum(rng.dirichlet(alpha, rng.integers(3, 40)), 1e-300)
        fitted = dadgt.fit_dirichlet(np.log(drawn))
        gradient = digamma(fitted.sum()) - digamma(fitted) + np.log(drawn).mean(axis=0)
        # In units of what a relative change of the parameter does to it.
        assert np.abs(gradient / (fitted * polygamma(1, fitted))).max() < 1e-6, alpha


def test_equal_vectors_keep_their_direction_and_stay_finite():
    fitted = dadgt.fit_dirichlet(np.log(np.tile([0.7, 0.1, 0.1, 0.1], (5, 1))))
    assert np.allclose(fitted / fitted.sum(), [0.7, 0.1, 0.1, 0.1])
    assert fitted.sum() <= dadgt.MOST_CONCENTRATION * (1 + 1e-9)


@pytest.mark.parametrize("log_p", [np.log([[0.25] * 4]), np.full((5, 4), np.nan)])
def test_what_has_no_fit_is_refused(log_p):
    with pytest.raises(InputError, match="wanted two or more and all finite"):
        dadgt.fit_dirichlet(log_p)


def certain(probability):
    """Log-probabilities of one picture whose four rotations are recognised so surely."""
    p = np.full((4, 4), (1 - probability) / 3)
    np.fill_diagonal(p, probability)
    return np.log(p)


def test_scores_are_the_papers_formulas_turned_round():
    rng = np.random.default_rng(3)
    log_p = np.log(rng.dirichlet([1.0] * 4, (5, 4)))
    alphas = rng.uniform(0.5, 5, (4, 4))
    for picture, softmax, dirichlet in zip(
        log_p, dadgt.softmax_scores(log_p), dadgt.dirichlet_scores(log_p, alphas), strict=True
    ):
        assert softmax == pytest.approx(-np.mean([np.exp(picture[i, i]) for i in range(4)]))
        assert dirichlet == pytest.approx(-sum((alphas[i] - 1) @ picture[i] for i in range(4)))


def test_the_less_sure_picture_scores_higher_and_nan_stays_nan():
    log_p = np.stack([certain(0.99), certain(0.6), certain(0.25), np.full((4, 4), np.nan)])
    alphas = np.full((4, 4), 1.5)
    np.fill_diagonal(alphas, 60.0)
    for scores in (dadgt.softmax_scores(log_p), dadgt.dirichlet_scores(log_p, alphas)):
        assert scores[0] < scores[1] < scores[2] and np.isnan(scores[3])
    assert dadgt.softmax_scores(log_p)[0] == pytest.approx(-0.99)


def test_loss_and_accuracy_of_known_probabilities():
    log_p = np.stack([certain(0.7), certain(0.25)])
    assert dadgt.rotation_loss(log_p[:1]) == pytest.approx(-np.log(0.7))
    assert dadgt.rotation_loss(log_p[1:]) == pytest.approx(np.log(4))
    assert dadgt.rotation_accuracy(log_p[:1]) == 1.0


def arrows(count, rng, point=True):
    """Pictures with an arrow that points up, or with a bar that points nowhere."""
    pictures = rng.integers(40, 70, (count, SIZE, SIZE, 3)).astype(np.uint8)
    for picture in pictures:
        x, y = rng.integers(6, 10), rng.integers(5, 7)
        picture[y : y + 7, x] = 220
        if point:
            picture[y + 1, x - 1 : x + 2] = picture[y + 2, x - 2 : x + 3] = 220
    return pictures


@pytest.fixture(scope="module")
def trained():
    pytest.importorskip("keras", reason="training needs the tools extra")
    rng = np.random.default_rng(4)
    good, held = arrows(40, rng), arrows(8, rng)
    model, trained = dadgt.train_classifier(
        good,
        dadgt.TrainingSettings(steps=60, batch=8, learning_rate=3e-3),
        seed=0,
        size_px=SIZE,
        held_out_rgb=held,
        progress=False,
    )
    return model, trained, good, rng


def test_a_part_of_another_kind_scores_higher(trained):
    model, history, good, rng = trained
    assert history.best < 0.5 < history.history[0]["loss"]
    scorer = dadgt.RotationScorer.fit(model, good)
    pictures = np.concatenate([arrows(20, rng), arrows(20, rng, point=False)])
    scores = scorer.scores(pictures)
    assert sorted(scores) == sorted(dadgt.SCORES)
    for name, values in scores.items():
        assert image_auroc(values, [False] * 20 + [True] * 20) > 0.9, name


def test_rows_of_the_answer_are_pictures_and_their_rotations(trained):
    model, _, good, _ = trained
    log_p = dadgt.log_probabilities(model, good[:3])
    assert log_p.shape == (3, 4, 4) and log_p.dtype == np.float64
    assert np.allclose(np.exp(log_p).sum(axis=2), 1)
    # One picture turned by hand: its rotations are the others', one place on.
    turned = dadgt.log_probabilities(model, np.rot90(good[:3], 1, axes=(1, 2)))
    assert np.allclose(turned[:, :3], log_p[:, 1:], atol=1e-4)
    assert np.allclose(turned[:, 3], log_p[:, 0], atol=1e-4)


def test_a_network_that_is_as_sure_as_can_be_gives_no_infinity(trained):
    model, _, good, _ = trained
    head = model.layers[-1]
    kept = head.get_weights()
    head.set_weights([kept[0] * 1e6, kept[1]])
    try:
        log_p = dadgt.log_probabilities(model, good[:4])
    finally:
        head.set_weights(kept)
    assert np.isfinite(log_p).all() and log_p.min() < -1000


def test_the_same_seed_trains_the_same_network(trained):
    good = trained[2]
    few = dadgt.TrainingSettings(steps=2, batch=8)

    def weights():
        model, _ = dadgt.train_classifier(good, few, seed=5, size_px=SIZE, progress=False)
        return model.get_weights()

    assert all(map(np.array_equal, weights(), weights()))


def test_nothing_to_train_on():
    with pytest.raises(InputError, match="no picture"):
        dadgt.train_classifier([], dadgt.TrainingSettings(), seed=0)
