"""
Figures of merit for image scores and heatmaps; every score is HIGHER for more anomalous.

The two pixel figures are exact: no threshold grid stands behind them. One sort of the normal pixels
gives, for every defect pixel, the false-positive rates at which a falling threshold begins and ends
to include it; both figures are closed forms of these two numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from edge_app.errors import InputError


def image_auroc(scores: Sequence[float], is_anomaly: Sequence[bool]) -> float:
    """
    Area under the ROC curve of one score per picture.

    Parameters
    ----------
    scores : sequence of float, shape (n,)
        Higher is more anomalous.
    is_anomaly : sequence of bool, shape (n,)
        True for a defective picture.

    Returns
    -------
    float
        Probability, 0 to 1, that a defective picture scores above a good one, a tie counting half.

    Raises
    ------
    InputError
        If a score is not finite, the lengths differ or one of the two classes is missing.
    """
    from sklearn.metrics import roc_auc_score

    scores = np.asarray(scores, dtype=np.float64)
    is_anomaly = np.asarray(is_anomaly, dtype=bool)
    if scores.ndim != 1 or scores.shape != is_anomaly.shape:
        raise InputError(
            f"image AUROC: got scores of shape {scores.shape} for labels of shape "
            f"{is_anomaly.shape}, wanted one label for each score"
        )
    n_not_finite = int(np.count_nonzero(~np.isfinite(scores)))
    if n_not_finite:
        raise InputError(
            f"image AUROC: {n_not_finite} of {scores.size} scores are not finite, "
            "wanted a number for every picture"
        )
    n_anomalies = int(is_anomaly.sum())
    if n_anomalies in (0, is_anomaly.size):
        raise InputError(
            f"image AUROC: got {is_anomaly.size - n_anomalies} good and {n_anomalies} anomalous "
            "pictures, wanted at least one of each"
        )
    return float(roc_auc_score(is_anomaly, scores))


def pixel_auroc(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> float:
    """
    Area under the ROC curve over all pixels of all pictures.

    Parameters
    ----------
    maps : sequence of ndarray, each of shape (H, W)
        Heatmaps at full picture size, compared as float32; higher is more anomalous. Sizes may
        differ between pictures.
    masks : sequence of bool ndarray, each of its map's shape (H, W)
        True on the defect; all False for a good picture.

    Returns
    -------
    float
        0 to 1, exact; a tie between a defect pixel and a normal pixel counts half.

    Raises
    ------
    InputError
        If a map and its mask differ in shape, a value is not finite or one class of pixels is
        missing.
    """
    fpr_first, fpr_last, _ = _defect_pixels(maps, masks)
    return float(1.0 - (fpr_first.mean() + fpr_last.mean()) / 2.0)


def au_pro(
    maps: Sequence[np.ndarray], masks: Sequence[np.ndarray], fpr_limit: float = 0.3
) -> float:
    """
    Area under the per-region-overlap curve up to a false-positive rate, divided by that rate.

    A region is one connected component (8 neighbours) of a mask. The per-region overlap at a
    threshold is the mean over the regions of all pictures of the share of each region's pixels at
    or above the threshold; the false-positive rate is taken over all normal pixels of all pictures.
    Between the points of the curve, at tied scores and at the limit, it is a straight line.

    Parameters
    ----------
    maps : sequence of ndarray, each of shape (H, W)
        Heatmaps at full picture size, compared as float32; higher is more anomalous. Sizes may
        differ between pictures.
    masks : sequence of bool ndarray, each of its map's shape (H, W)
        True on the defect; all False for a good picture.
    fpr_limit : float
        End of the integral, above 0 and at most 1.

    Returns
    -------
    float
        0 to 1, exact: 1 for a perfect map, ``fpr_limit / 2`` for a constant one.

    Raises
    ------
    InputError
        If the limit is out of range, a map and its mask differ in shape, a value is not finite or
        one class of pixels is missing.

    References
    ----------
    Bergmann, Batzner, Fauser, Sattlegger, Steger: The MVTec Anomaly Detection Dataset. IJCV 129,
    2021.
    """
    if not 0.0 < fpr_limit <= 1.0:
        raise InputError(
            f"AU-PRO: got a false-positive limit of {fpr_limit}, wanted 0 < limit <= 1"
        )
    fpr_first, fpr_last, weights = _defect_pixels(maps, masks)
    # The curve is a sum of one ramp per defect pixel, from 0 at fpr_first to 1 at fpr_last, so its
    # area is the sum of the ramps' areas left of the limit: a (cut) triangle and a rectangle.
    width = fpr_last - fpr_first
    on_ramp = np.clip(fpr_limit - fpr_first, 0.0, width)
    triangle = np.divide(on_ramp**2, 2.0 * width, out=np.zeros_like(width), where=width > 0.0)
    rectangle = np.maximum(fpr_limit - fpr_last, 0.0)
    return float(np.sum(weights * (triangle + rectangle)) / fpr_limit)


def false_reject_rate(good_scores: Sequence[float], threshold: float) -> float:
    """
    Share of good pictures that the threshold rejects.

    Parameters
    ----------
    good_scores : sequence of float, shape (n,)
        Scores of good pictures; higher is more anomalous.
    threshold : float
        A score above it is NG.

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    InputError
        If there is no score or one is NaN.
    """
    return float(np.mean(_rated_scores(good_scores, "false-reject rate") > threshold))


def miss_rate(anomaly_scores: Sequence[float], threshold: float) -> float:
    """
    Share of defective pictures that the threshold lets pass.

    Parameters
    ----------
    anomaly_scores : sequence of float, shape (n,)
        Scores of defective pictures; higher is more anomalous.
    threshold : float
        A score above it is NG.

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    InputError
        If there is no score or one is NaN.
    """
    return float(np.mean(_rated_scores(anomaly_scores, "miss rate") <= threshold))


def _rated_scores(scores: Sequence[float], rate: str) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.size == 0 or np.isnan(scores).any():
        raise InputError(
            f"{rate}: got {scores.size} scores, {int(np.isnan(scores).sum())} of them NaN, "
            "wanted at least one and a number for every picture"
        )
    return scores


def _defect_pixels(
    maps: Sequence[np.ndarray], masks: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    False-positive rates between which each defect pixel is found, and its weight in the overlap.

    Returns
    -------
    fpr_first, fpr_last : float64 ndarray, shape (n_defect_pixels,)
        Share of all normal pixels that score above, and at or above, the defect pixel. They differ
        only at ties.
    weights : float64 ndarray, shape (n_defect_pixels,)
        ``1 / (pixels of its region * number of regions)``; their sum is 1.
    """
    if len(maps) != len(masks):
        raise InputError(f"pixel figures: got {len(maps)} maps and {len(masks)} masks")
    shapes = [(np.shape(one), np.shape(mask)) for one, mask in zip(maps, masks, strict=True)]
    for index, (map_shape, mask_shape) in enumerate(shapes):
        if len(map_shape) != 2 or map_shape != mask_shape:
            raise InputError(
                f"pixel figures: map {index} has shape {map_shape} and its mask {mask_shape}, "
                "wanted the same height and width"
            )
    n_pixels = sum(int(np.prod(map_shape)) for map_shape, _ in shapes)
    n_defect_pixels = sum(int(np.count_nonzero(mask)) for mask in masks)
    n_normal_pixels = n_pixels - n_defect_pixels
    if n_defect_pixels == 0 or n_normal_pixels == 0:
        raise InputError(
            f"pixel figures: got {n_normal_pixels} normal and {n_defect_pixels} defect pixels, "
            "wanted at least one of each"
        )

    # One allocation for the normal pixels: joining a list of parts would hold them all twice.
    normal_scores = np.empty(n_normal_pixels, dtype=np.float32)
    defect_scores = np.empty(n_defect_pixels, dtype=np.float32)
    weights = np.empty(n_defect_pixels, dtype=np.float64)
    n_regions = n_normal = n_defect = 0
    for index, (heatmap, mask) in enumerate(zip(maps, masks, strict=True)):
        heatmap = np.asarray(heatmap, dtype=np.float32)
        mask = np.asarray(mask, dtype=bool)
        if not np.isfinite(heatmap).all():
            raise InputError(f"pixel figures: map {index} has values that are not finite")
        found = heatmap[mask]
        normal = heatmap.ravel() if found.size == 0 else heatmap[~mask]
        normal_scores[n_normal : n_normal + normal.size] = normal
        n_normal += normal.size
        if found.size:
            count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
            sizes = np.bincount(labels.ravel(), minlength=count)
            defect_scores[n_defect : n_defect + found.size] = found
            weights[n_defect : n_defect + found.size] = 1.0 / sizes[labels[mask]]
            n_defect += found.size
            n_regions += count - 1
    weights /= n_regions

    normal_scores.sort()
    # Sorted queries walk through the normal scores once instead of jumping about in them.
    order = np.argsort(defect_scores)
    defect_scores = defect_scores[order]
    above = n_normal_pixels - np.searchsorted(normal_scores, defect_scores, side="right")
    at_or_above = n_normal_pixels - np.searchsorted(normal_scores, defect_scores, side="left")
    return above / n_normal_pixels, at_or_above / n_normal_pixels, weights[order]
