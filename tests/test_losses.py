import numpy as np
import pytest

from tools.losses import MININGS, compactness, squared_distances, triplet

pytest.importorskip("keras", reason="training needs the tools extra")


def compactness_by_the_paper(rows):
    n, k = rows.shape
    total = 0.0
    for i in range(n):
        others = np.mean([rows[j] for j in range(n) if j != i], axis=0)
        z = rows[i] - others
        total += z @ z
    return total / (n * k)


@pytest.mark.parametrize(("n", "k"), [(2, 1), (3, 4), (17, 31)])
def test_equals_the_double_loop_of_the_paper(n, k):
    rows = np.random.default_rng(n).normal(3.0, 2.0, (n, k)).astype(np.float32)
    assert float(compactness(rows)) == pytest.approx(compactness_by_the_paper(rows), rel=1e-5)


def test_known_value():
    # Two rows 0 and 2: each lies 2 from the mean of the other, so z^2 is 4 for both.
    assert float(compactness(np.array([[0.0], [2.0]], np.float32))) == 4.0


def test_identical_rows_are_perfectly_compact():
    assert float(compactness(np.full((5, 7), 2.5, np.float32))) == 0.0


def distances_by_hand(rows):
    return [[float(((a - b) ** 2).sum()) for b in rows] for a in rows]


def triplet_by_hand(labels, rows, margin, mining):
    d, n = distances_by_hand(rows), len(rows)
    costs = []
    for a in range(n):
        negatives = [d[a][q] for q in range(n) if labels[q] != labels[a]]
        for p in range(n):
            if p == a or labels[p] != labels[a] or not negatives:
                continue
            if mining == "all":
                costs += [d[a][p] - far + margin for far in negatives]
                continue
            farther = [far for far in negatives if far > d[a][p]]
            costs.append(d[a][p] - (min(farther) if farther else max(negatives)) + margin)
    costs = [max(0.0, cost) for cost in costs]
    if mining == "all":
        costs = [cost for cost in costs if cost > 0]
    return sum(costs) / max(1, len(costs))


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("seed", range(4))
def test_triplets_equal_the_triple_loop(mining, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 11)
    rows = rng.normal(size=(11, 5)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    wanted = triplet_by_hand(labels, rows, 0.2, mining)
    assert wanted > 0
    assert float(triplet(labels, rows, 0.2, mining)) == pytest.approx(wanted, rel=1e-4)
    assert float(triplet(labels[:, None], rows, 0.2, mining)) == pytest.approx(wanted, rel=1e-4)


def test_a_triplet_known_by_hand():
    # Anchor and positive at one point, the negative at squared distance 0.1: 0 - 0.1 + 0.2, from
    # both ends of the pair.
    rows = np.array([[0.0, 0.0], [0.0, 0.0], [np.sqrt(0.1), 0.0]], np.float32)
    for mining in MININGS:
        assert float(triplet([0, 0, 1], rows, 0.2, mining)) == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_a_batch_without_triplets_costs_nothing(mining, labels):
    rows = np.eye(3, dtype=np.float32)
    assert float(triplet(labels, rows, 0.2, mining)) == 0.0


def test_squared_distances_equal_those_by_hand():
    rows = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    assert np.allclose(squared_distances(rows), distances_by_hand(rows), atol=1e-5)
