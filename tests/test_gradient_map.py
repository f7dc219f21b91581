"""Downhill ends at the minimum known in closed form, whatever the rate, and refuses to hide NaN."""

from __future__ import annotations

import numpy as np
import pytest

from tools.methods.gradient import Anomaly, downhill, moved_map

pytest.importorskip("tensorflow", reason="needs the tools extra")
ops = pytest.importorskip("keras", reason="needs the tools extra").ops

SHAPE = (4, 5, 3)


def quadratic(curvature, goal):
    """1/2 sum a (x - b)^2, as an anomaly."""

    def value(x):
        return 0.5 * ops.sum(curvature[None] * (x - goal[None]) ** 2)

    return value


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    curvature = rng.uniform(0.5, 2.0, SHAPE).astype(np.float32)
    goal = rng.uniform(-0.9, 0.9, SHAPE).astype(np.float32)
    original = rng.uniform(-0.9, 0.9, SHAPE).astype(np.float32)
    return curvature, goal, original


def soft_threshold(distance, threshold):
    return np.sign(distance) * np.maximum(np.abs(distance) - threshold, 0)


@pytest.mark.parametrize("l1", [0.0, 0.3, 5.0])
def test_the_minimum_of_a_quadratic_with_l1_is_the_soft_threshold(problem, l1):
    curvature, goal, original = problem
    found = downhill(quadratic(curvature, goal), original, 200, 0.4, l1)
    wanted = original + soft_threshold(goal - original, l1 / curvature)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    # What gains less than the price does not creep: it is the very same number.
    resting = np.abs(goal - original) < l1 / curvature - 1e-4
    assert np.array_equal(found[resting], original[resting])
    assert resting.any() == (l1 > 0)


def test_a_rate_far_too_large_ends_at_the_same_minimum(problem):
    curvature, goal, original = problem
    found = downhill(quadratic(curvature, goal), original, 300, 300.0, 0.3)
    wanted = original + soft_threshold(goal - original, 0.3 / curvature)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_pixels_that_pull_at_each_other_end_where_no_subgradient_is_left(problem):
    """At the minimum |grad A| <= l1 where a pixel rests, = -l1 sign of its move where it moved."""
    _, goal, original = problem
    rng = np.random.default_rng(1)
    mixing = rng.normal(0, 0.15, (original.size, original.size)) + np.eye(original.size)
    matrix = (mixing.T @ mixing).astype(np.float32)

    def value(x):
        rest = ops.reshape(x, (-1,)) - goal.reshape(-1)
        return 0.5 * ops.sum(rest * ops.squeeze(ops.matmul(matrix, rest[:, None]), 1))

    l1 = 0.4
    rate = 1 / np.linalg.eigvalsh(matrix)[-1]
    found = downhill(value, original, 2000, rate, l1)
    inside = np.abs(found) < 1
    gradient = (matrix @ (found - goal).reshape(-1)).reshape(SHAPE)
    moved = found != original
    assert 5 < moved.sum() < moved.size - 5
    assert np.abs(gradient[~moved]).max() <= l1 + 1e-3
    at = moved & inside
    np.testing.assert_allclose(gradient[at], -l1 * np.sign(found - original)[at], atol=1e-3)


def test_one_step_is_weighted_by_the_pixels_own_readiness(problem):
    curvature, goal, original = problem
    weight = np.random.default_rng(2).uniform(0, 1, SHAPE).astype(np.float32)
    weight[0] = 0
    anomaly = Anomaly(quadratic(curvature, goal), lambda x: ops.convert_to_tensor(weight[None]))
    rate, l1 = 0.1, 0.2
    found = downhill(anomaly, original, 1, rate, l1)
    step = -rate * weight * curvature * (original - goal)
    wanted = original + soft_threshold(step, rate * weight * l1)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert np.array_equal(found[0], original[0]) and not np.array_equal(found[1], original[1])


def test_no_pixel_leaves_the_range_of_a_picture(problem):
    curvature, goal, original = problem
    found = downhill(quadratic(curvature, goal * 5), original, 200, 0.4, 0.0)
    np.testing.assert_allclose(found, np.clip(goal * 5, -1, 1), atol=1e-5)


def test_no_step_is_no_move_and_the_picture_given_is_not_changed(problem):
    curvature, goal, original = problem
    kept = original.copy()
    assert np.array_equal(downhill(quadratic(curvature, goal), original, 0, 0.1, 0.1), kept)
    downhill(quadratic(curvature, goal), original, 3, 0.1, 0.1)
    assert np.array_equal(original, kept)


def test_nan_in_is_nan_out(problem):
    curvature, goal, original = problem
    original[1, 2, 0] = np.nan
    found = downhill(quadratic(curvature, goal), original, 5, 0.1, 0.1)
    assert np.isnan(found).all()
    assert np.isnan(moved_map(original, found)).all()


def test_a_step_into_nan_is_not_taken():
    """log has no value below 0: the first, whole step of rate 2 would go there."""
    original = np.full(SHAPE, 0.5, np.float32)
    found = downhill(lambda x: ops.sum(ops.log(x)) + ops.sum(x) * 4, original, 40, 2.0, 5.0)
    assert np.isfinite(found).all()


def test_pictures_of_one_size_are_traced_once(problem):
    curvature, goal, original = problem
    traced = []

    def value(x):
        traced.append(x.shape)
        return quadratic(curvature, goal)(x)

    anomaly = Anomaly(value)
    first = downhill(anomaly, original, 5, 0.1, 0.1)
    second = downhill(anomaly, -original, 5, 0.1, 0.1)
    assert len(traced) == 1 and not np.array_equal(first, second)


def test_what_an_anomaly_does_not_look_at_has_no_gradient():
    value, gradient, weight = Anomaly(lambda x: ops.convert_to_tensor(2.0)).at(np.zeros(SHAPE))
    assert value == 2.0 and not gradient.any() and (weight == 1).all()


def test_the_map_is_the_mean_absolute_move():
    picture = np.zeros((1, 2, 3), np.float32)
    moved = np.array([[[0.3, -0.3, 0.0], [0, 0, 0]]], np.float32)
    np.testing.assert_allclose(moved_map(picture, moved), [[0.2, 0.0]], atol=1e-7)


@pytest.mark.parametrize("wrong", [(-1, 0.1, 0.1), (1, 0.0, 0.1), (1, 0.1, -0.1), (1, np.nan, 0)])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="rate > 0"):
        downhill(lambda x: ops.sum(x), np.zeros(SHAPE, np.float32), *wrong)
