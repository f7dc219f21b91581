import numpy as np
import pytest

from tools.losses import compactness

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
