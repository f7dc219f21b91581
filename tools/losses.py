"""Losses of the encoder's training, in backend-independent Keras operations."""

from __future__ import annotations

from typing import Any


def compactness(embeddings: Any) -> Any:
    r"""
    Compactness of a batch of good parts: its intra-batch variance, smaller is tighter.

    With n rows of k features, the paper compares each row with the mean of the *other* rows:

    .. math:: l_c = \frac{1}{nk} \sum_i z_i^T z_i, \quad z_i = x_i - m_i,
              \quad m_i = \frac{1}{n-1} \sum_{j \ne i} x_j

    With m the mean of all rows, m_i = (n m - x_i) / (n - 1), so z_i = n / (n - 1) (x_i - m) and

    .. math:: l_c = \frac{n^2}{(n-1)^2} \cdot \frac{1}{k} \sum_{c=1}^k \mathrm{var}_c

    where var_c is the biased variance of feature c. That is what is computed: one pass, no loop.

    Parameters
    ----------
    embeddings : tensor, shape (n, k), float32
        n >= 2 embeddings of one part.

    Returns
    -------
    tensor, scalar
        Compactness, 0 or more.

    References
    ----------
    Perera and Patel, "Learning Deep Features for One-Class Classification", arXiv 1801.05365,
    equations 5 and 6.
    """
    from keras import ops

    n = ops.cast(ops.shape(embeddings)[0], embeddings.dtype)
    return (n / (n - 1)) ** 2 * ops.mean(ops.var(embeddings, axis=0))
