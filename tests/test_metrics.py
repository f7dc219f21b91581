"""The figures of merit: cases worked out by hand, and agreement with slow plain definitions."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from edge_app.errors import InputError
from tools.metrics import au_pro, false_reject_rate, image_auroc, miss_rate, pixel_auroc


def _swept_au_pro(maps, masks, fpr_limit):
    """AU-PRO by its definition: one threshold after the other, one region after the other."""
    regions = []
    for heatmap, mask in zip(maps, masks, strict=True):
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [heatmap[labels == label] for label in range(1, count + 1)]
    normal = np.concatenate([heatmap[~mask] for heatmap, mask in zip(maps, masks, strict=True)])
    fpr, overlap = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([heatmap.ravel() for heatmap in maps]))[::-1]:
        fpr.append(np.mean(normal >= threshold))
        overlap.append(np.mean([np.mean(region >= threshold) for region in regions]))
    inside = np.array(fpr) < fpr_limit
    fpr_cut = np.append(np.array(fpr)[inside], fpr_limit)
    last = np.flatnonzero(inside)[-1]
    at_limit = np.interp(fpr_limit, fpr[last : last + 2], overlap[last : last + 2])
    return np.trapezoid(np.append(np.array(overlap)[inside], at_limit), fpr_cut) / fpr_limit


def _pictures(seed, levels=None):
    """Six pictures of different sizes with several regions each, two of them good."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for index, shape in enumerate([(20, 30), (31, 17), (8, 8), (25, 25), (12, 40), (1, 9)]):
        mask = np.zeros(shape, dtype=bool)
        if index not in (2, 5):
            mask[2:7, 3:6] = mask[7:9, 6:8] = mask[-2:, -4:] = True
        heatmap = rng.random(shape, dtype=np.float32) + 0.5 * mask
        maps.append(heatmap if levels is None else np.round(heatmap * levels).astype(np.float32))
        masks.append(mask)
    return maps, masks


@pytest.mark.parametrize("levels", [None, 12, 2])
@pytest.mark.parametrize("fpr_limit", [0.01, 0.05, 0.3, 1.0])
def test_au_pro_equals_a_sweep_over_all_thresholds(levels, fpr_limit):
    maps, masks = _pictures(seed=3, levels=levels)
    assert au_pro(maps, masks, fpr_limit) == pytest.approx(
        _swept_au_pro(maps, masks, fpr_limit), abs=1e-12
    )


@pytest.mark.parametrize("levels", [None, 12, 2])
def test_pixel_auroc_equals_scikit_learn(levels):
    maps, masks = _pictures(seed=4, levels=levels)
    labels = np.concatenate([mask.ravel() for mask in masks])
    scores = np.concatenate([heatmap.ravel() for heatmap in maps])
    assert pixel_auroc(maps, masks) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_au_pro_by_hand():
    # Two regions, of 1 and of 2 pixels, among 10 normal pixels. A falling threshold finds the
    # single pixel at once, half of the pair after 1 normal pixel, the rest after 4.
    mask = np.zeros((1, 13), dtype=bool)
    mask[0, [0, 5, 6]] = True
    heatmap = np.zeros((1, 13), dtype=np.float32)
    heatmap[0, [0, 5, 6]] = [9.0, 7.0, 4.0]
    heatmap[~mask] = [8.0, 6.0, 5.5, 5.0, 3.0, 2.5, 2.0, 1.5, 1.0, 0.5]
    # PRO is 1/2 up to FPR 0.1, 3/4 up to 0.4, then 1.
    assert au_pro([heatmap], [mask], 0.1) == pytest.approx(0.5)
    assert au_pro([heatmap], [mask], 0.3) == pytest.approx((0.1 * 0.5 + 0.2 * 0.75) / 0.3)
    assert au_pro([heatmap], [mask], 1.0) == pytest.approx(0.1 * 0.5 + 0.3 * 0.75 + 0.6)
    # Per pixel: 0, 1 and 4 of 10 normal pixels stand above the three.
    assert pixel_auroc([heatmap], [mask]) == pytest.approx(1 - (0 + 0.1 + 0.4) / 3)


def test_a_small_region_counts_as_much_as_a_large_one():
    mask = np.zeros((40, 40), dtype=bool)
    mask[2:22, 2:22] = True
    mask[30, 30] = True
    only_large_found = np.zeros((40, 40), dtype=np.float32)
    only_large_found[2:22, 2:22] = 1.0
    # The rest ties with all normal pixels: found at the rate at which those are rejected.
    assert au_pro([only_large_found], [mask], 0.3) == pytest.approx(0.5 + 0.5 * 0.15)
    assert pixel_auroc([only_large_found], [mask]) == pytest.approx((400 + 0.5) / 401)


def test_diagonal_neighbours_are_one_region():
    mask = np.array([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]], dtype=bool)
    heatmap = np.array([[2, 0, 0, 0], [0, 2, 0, -1], [0, 0, 0, 0]], dtype=np.float32)
    # Two regions, one found before any normal pixel, one after all: three regions would give 2/3.
    assert au_pro([heatmap], [mask], 0.3) == pytest.approx(0.5)


def test_perfect_constant_and_inverted_maps():
    _, masks = _pictures(seed=5)
    perfect = [mask.astype(np.float32) for mask in masks]
    assert pixel_auroc(perfect, masks) == 1.0
    assert au_pro(perfect, masks) == pytest.approx(1.0, abs=1e-12)
    constant = [np.full(mask.shape, 7.0, dtype=np.float32) for mask in masks]
    assert pixel_auroc(constant, masks) == 0.5
    assert au_pro(constant, masks, 0.3) == pytest.approx(0.15)
    inverted = [-heatmap for heatmap in perfect]
    assert pixel_auroc(inverted, masks) == 0.0
    assert au_pro(inverted, masks) == 0.0


def test_tied_pixels_get_no_credit_from_their_order():
    maps, masks = _pictures(seed=6, levels=3)
    backwards = slice(None, None, -1)
    assert au_pro(maps[backwards], masks[backwards]) == pytest.approx(au_pro(maps, masks))
    flipped = [heatmap[::-1, ::-1] for heatmap in maps], [mask[::-1, ::-1] for mask in masks]
    assert au_pro(*flipped) == pytest.approx(au_pro(maps, masks))
    assert pixel_auroc(*flipped) == pytest.approx(pixel_auroc(maps, masks))


def test_only_the_order_of_the_scores_matters():
    maps, masks = _pictures(seed=7)
    stretched = [np.exp(3.0 * heatmap) for heatmap in maps]
    assert au_pro(stretched, masks) == pytest.approx(au_pro(maps, masks), abs=1e-4)
    assert pixel_auroc(stretched, masks) == pytest.approx(pixel_auroc(maps, masks), abs=1e-4)


def test_image_auroc_by_hand():
    # Of the 6 pairs 4 are in order and one is tied.
    assert image_auroc([1.0, 2.0, 3.0, 3.0, 2.5], [False, False, True, False, True]) == (
        pytest.approx(4.5 / 6)
    )


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1.0, float("nan")], [False, True], "1 of 2 scores are not finite"),
        ([1.0, float("inf")], [False, True], "1 of 2 scores are not finite"),
        ([1.0, 2.0], [True, True], "0 good and 2 anomalous"),
        ([1.0, 2.0], [False, False], "2 good and 0 anomalous"),
        ([1.0, 2.0], [False], "one label for each score"),
        ([], [], "0 good and 0 anomalous"),
    ],
)
def test_image_auroc_refuses(scores, labels, message):
    with pytest.raises(InputError, match=message):
        image_auroc(scores, labels)


@pytest.mark.parametrize("figure", [pixel_auroc, au_pro])
def test_pixel_figures_refuse(figure):
    heatmap, mask = np.zeros((4, 5), dtype=np.float32), np.zeros((4, 5), dtype=bool)
    marked = mask.copy()
    marked[1, 1] = True
    with pytest.raises(InputError, match="20 normal and 0 defect"):
        figure([heatmap], [mask])
    with pytest.raises(InputError, match="0 normal and 20 defect"):
        figure([heatmap], [~mask])
    with pytest.raises(InputError, match=r"map 1 has shape \(4, 5\) and its mask \(5, 4\)"):
        figure([heatmap, heatmap], [marked, marked.T])
    with pytest.raises(InputError, match="1 maps and 2 masks"):
        figure([heatmap], [marked, mask])
    holed = heatmap.copy()
    holed[0, 0] = np.nan
    with pytest.raises(InputError, match="map 1 has values that are not finite"):
        figure([heatmap, holed], [marked, mask])


@pytest.mark.parametrize("fpr_limit", [0.0, -0.1, 1.1, float("nan")])
def test_au_pro_refuses_a_limit_out_of_range(fpr_limit):
    with pytest.raises(InputError, match="0 < limit <= 1"):
        au_pro([np.zeros((2, 2))], [np.eye(2, dtype=bool)], fpr_limit)


def test_rates_by_hand():
    assert false_reject_rate([0.1, 0.5, 0.6, 0.9], threshold=0.5) == 0.5
    assert miss_rate([0.1, 0.5, 0.6, 0.9], threshold=0.5) == 0.5
    assert miss_rate([0.6, 0.9], threshold=0.5) == 0.0
    for rate in (false_reject_rate, miss_rate):
        with pytest.raises(InputError, match="0 scores"):
            rate([], 0.5)
        with pytest.raises(InputError, match="1 of them NaN"):
            rate([0.1, float("nan")], 0.5)
