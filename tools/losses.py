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


def squared_distances(embeddings: Any) -> Any:
    """
    Squared Euclidean distance of every row to every other.

    Parameters
    ----------
    embeddings : tensor, shape (n, k), float32

    Returns
    -------
    tensor, shape (n, n)
        0 or more; rounding can make no entry negative.
    """
    from keras import ops

    lengths = ops.sum(embeddings**2, axis=1)
    products = ops.matmul(embeddings, ops.transpose(embeddings))
    return ops.maximum(lengths[:, None] + lengths[None, :] - 2.0 * products, 0.0)


MININGS = ("semi-hard", "all")


def triplet(labels: Any, embeddings: Any, margin: float = 0.2, mining: str = "semi-hard") -> Any:
    r"""
    Triplet loss over the triplets that a batch holds (online mining).

    An anchor a shall lie nearer to a positive p of its own class than to a negative n of another:

    .. math:: \max(0, d(a, p) - d(a, n) + \alpha), \quad d(x, y) = \|x - y\|^2

    ``semi-hard``: for each pair (a, p) the negative nearest to a among those farther away than p;
    where there is none, the farthest negative. The loss is the mean over all pairs. ``all``: the
    mean over all triplets of the batch that still cost something; without that choice the many
    that cost nothing would drown the rest.

    Parameters
    ----------
    labels : tensor, shape (n,) or (n, 1), int
        Class of each row.
    embeddings : tensor, shape (n, k), float32
        Of unit length, so that d lies between 0 and 4.
    margin : float
        The paper's alpha, in units of d.
    mining : {"semi-hard", "all"}

    Returns
    -------
    tensor, scalar
        0 or more; 0 where the batch holds no triplet at all.

    References
    ----------
    Schroff, Kalenichenko and Philbin, "FaceNet: A Unified Embedding for Face Recognition and
    Clustering", arXiv 1503.03832, equations 1 and 4. The mean over what still costs something:
    Hermans, Beyer and Leibe, "In Defense of the Triplet Loss", arXiv 1703.07737, section 2.
    """
    from keras import ops

    if mining not in MININGS:
        raise ValueError(f"mining {mining!r} is none of {', '.join(MININGS)}")
    labels = ops.reshape(labels, (-1,))
    distances = squared_distances(embeddings)
    same = ops.equal(labels[:, None], labels[None, :])
    is_negative = ops.logical_not(same)
    is_self = ops.eye(ops.shape(embeddings)[0], dtype="bool")
    is_positive = ops.logical_and(same, ops.logical_not(is_self))
    # Axes: anchor, positive, negative.
    to_positive, to_negative = distances[:, :, None], distances[:, None, :]
    counts = ops.logical_and(is_positive[:, :, None], is_negative[:, None, :])
    if mining == "all":
        cost = ops.where(counts, ops.maximum(to_positive - to_negative + margin, 0.0), 0.0)
        costly = ops.sum(ops.cast(cost > 0.0, cost.dtype))
        return ops.sum(cost) / ops.maximum(costly, 1.0)
    far = 1e9
    is_farther = ops.logical_and(counts, to_negative > to_positive)
    nearest_farther = ops.min(ops.where(is_farther, to_negative, far), axis=2)
    farthest = ops.max(ops.where(counts, to_negative, -far), axis=2)
    chosen = ops.where(ops.any(is_farther, axis=2), nearest_farther, farthest)
    pairs = ops.any(counts, axis=2)
    cost = ops.where(pairs, ops.maximum(distances - chosen + margin, 0.0), 0.0)
    return ops.sum(cost) / ops.maximum(ops.sum(ops.cast(pairs, cost.dtype)), 1.0)
