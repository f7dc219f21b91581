"""Learning the patch scorer: against plain loops and SciPy, within its bytes, from few pictures."""

from __future__ import annotations

import io
import itertools
import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from scipy.spatial.distance import cdist, mahalanobis
from sklearn.neighbors import NearestNeighbors

from edge_app.align import Alignment
from edge_app.encoder import Encoder
from edge_app.enrol import learn
from edge_app.held_out import folds
from edge_app.learn_neighbours import ScorerSettings
from edge_app.learn_patches import (
    DENSITY_NEIGHBOUR,
    LEAST_DEVIATION,
    LEAST_ROWS,
    MOST_APART,
    MOST_BYTES,
    MOST_PRODUCTS,
    TRIMMED_FROM,
    PatchSettings,
    affordable_bytes,
    choose,
    default_settings,
    fit_component,
    fitting,
    floats_of,
    held_out_distances,
    hold_out,
    learn_features,
    learn_patches,
    smoothing_of,
    squares_apart,
    standard,
)
from edge_app.learnt_pictures import LearntPicture
from edge_app.patches import (
    KINDS,
    Component,
    ComponentModel,
    PatchScorer,
    check_arrays,
    finest_grid,
    read_components,
)

PLENTY = 10**7


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def each_alone(count):
    return folds(np.arange(count))[0]


def learnt(components, maps, image_score="top", smoothing=0.5, most_bytes=MOST_BYTES):
    """
    Learn from maps, a list of arrays of shape (n, h, w, c).

    Gives the arrays and the section as a bundle would bring them back, held-out scores and maps.
    """
    shapes = [one.shape[1:] for one in maps]
    settings = PatchSettings(tuple(components), image_score, smoothing, most_bytes)
    projections = {c: learn_features(c, list(maps[c.map])) for c in components}
    features = {
        c: np.stack([projections[c].of(patches) for patches in maps[c.map]]) for c in components
    }
    weight = np.ones(finest_grid(components, shapes), np.float32)
    distances = held_out_distances(settings, features, each_alone(len(maps[0])), shapes)
    arrays, section, scores, held_out = learn_patches(
        settings, features, projections, weight, distances, shapes
    )
    file = io.BytesIO()
    np.savez(file, **arrays)
    file.seek(0)
    with np.load(file, allow_pickle=False) as stored:
        arrays = dict(stored)
    return arrays, json.loads(json.dumps(section)), scores, held_out


def scorer_of(arrays, section, shapes):
    components = read_components(section)
    check_arrays(components, arrays, shapes)
    weight = np.ones(finest_grid(components, shapes), np.float32)
    return PatchScorer(components, arrays, weight, section["image_score"], section["smoothing"])


def score(judges, maps):
    return judges.score(judges.anomaly_map(maps))


# The greedy choice.


def greedy(rows, count):
    """Indices by the textbook: again and again the row farthest from all chosen so far."""
    away = cdist(rows, rows)
    chosen = [int(cdist(rows, rows.mean(axis=0)[None])[:, 0].argmin())]
    while len(chosen) < count:
        chosen.append(int(away[chosen].min(axis=0).argmax()))
    return chosen


@pytest.mark.parametrize(("count", "axes"), [(1, 3), (2, 1), (17, 5), (60, 48)])
def test_choose_is_greedy_k_centre(count, axes):
    rows = normal(count, 90, axes)
    want = rows[greedy(rows.astype(np.float64), count)]
    np.testing.assert_array_equal(choose(rows, count), want)


def test_choose_keeps_all_rows_where_there_are_no_more():
    rows = normal(0, 6, 3)
    np.testing.assert_array_equal(choose(rows, 6), rows)
    np.testing.assert_array_equal(choose(rows, 100), rows)


@pytest.mark.parametrize("seed", range(8))
def test_choose_covers_within_twice_the_best_choice(seed):
    rows = normal(seed, 11, 2).astype(np.float64)
    away = cdist(rows, rows)
    best = min(away[list(some)].min(axis=0).max() for some in itertools.combinations(range(11), 4))
    chosen = choose(rows.astype(np.float32), 4)
    assert cdist(rows, chosen).min(axis=1).max() <= 2 * best + 1e-5


def test_a_place_keeps_the_greedy_choice_of_its_own_patches():
    component, features = Component("place", 0, 4), normal(0, 15, 3, 2, 4)
    rows = fit_component(component, features, 5 * 6 * 4)["rows"]
    assert rows.shape == (6, 5, 4)
    for place in range(6):
        own = features.reshape(15, 6, 4)[:, place]
        want = own[greedy(own.astype(np.float64), 5)]
        np.testing.assert_array_equal(rows[place], want.astype(np.float16))
    everything = fit_component(component, features, PLENTY)["rows"]
    np.testing.assert_array_equal(
        everything, features.reshape(15, 6, 4).transpose(1, 0, 2).astype(np.float16)
    )


@pytest.mark.parametrize("trim", [0.0, 0.1])
@pytest.mark.parametrize("most", [5, 1000])
def test_pictures_left_out_are_as_if_they_had_never_been(trim, most):
    component, features = Component("place", 0, 4), normal(1, 25, 3, 2, 4)
    rows, floats = np.delete(np.arange(25), [0, 7, 8, 24]), most * 6 * 4
    alone = fit_component(component, features[rows], floats, trim=trim)["rows"]
    apart = squares_apart(features)
    for known in (None, apart):
        among = fit_component(component, features, floats, trim=trim, rows=rows, apart=known)
        np.testing.assert_array_equal(among["rows"], alone)


@pytest.mark.parametrize("trim", [0.0, 0.1])
def test_places_whose_distances_are_too_many_to_be_kept_choose_alike(trim):
    component, features = Component("place", 0, 4), normal(2, 200, 21, 20, 4)
    assert 200**2 * 21 * 20 > MOST_APART and squares_apart(features) is None
    rows = fit_component(component, features, 5 * 21 * 20 * 4, trim=trim)["rows"]
    few = fit_component(component, features[:, :3], 5 * 3 * 20 * 4, trim=trim)["rows"]
    np.testing.assert_array_equal(rows[: 3 * 20], few)


def test_radius_is_the_distance_to_the_tenth_neighbour():
    features = normal(0, 7, 4, 5, 3)
    arrays = fit_component(Component("density", 0, 3), features, 30 * 4)
    assert arrays["rows"].shape == (30, 3)
    rows = features.reshape(-1, 3)
    # One more, because each stored patch is one of the rows.
    nearest = NearestNeighbors(n_neighbors=DENSITY_NEIGHBOUR + 1).fit(rows)
    stored = choose(rows, 30)
    want = nearest.kneighbors(stored)[0][:, -1]
    np.testing.assert_allclose(arrays["radius"], want, rtol=1e-3)


def test_a_plain_background_does_not_make_the_radius_nothing():
    features = np.zeros((4, 6, 6, 3), np.float32)
    features[:, :2] = normal(0, 4, 2, 6, 3)
    radius = fit_component(Component("density", 0, 3), features, PLENTY)["radius"]
    rows = features.reshape(-1, 3)
    want = NearestNeighbors(n_neighbors=DENSITY_NEIGHBOUR + 1).fit(rows).kneighbors(rows)[0][:, -1]
    assert want.min() == 0
    np.testing.assert_allclose(radius, np.maximum(want, 0.05 * want.mean()), rtol=1e-3)
    black = fit_component(Component("density", 0, 3), np.zeros_like(features), PLENTY)["radius"]
    np.testing.assert_allclose(black, LEAST_DEVIATION)


# Gauss.


def covariances_by_hand(features, share):
    """Of each place: its block's covariance, shrunk to that of all with d pictures' strength."""
    features = features.astype(np.float64)
    count, height, width, axes = features.shape
    away = features - features.mean(axis=0)
    blocks = {}
    for y, x in np.ndindex(height, width):
        own = blocks.setdefault((y // share, x // share), [])
        own.append(sum(np.outer(one, one) for one in away[:, y, x]))
    scatter = {block: np.mean(own, axis=0) for block, own in blocks.items()}
    shared = np.mean(list(scatter.values()), axis=0) / (count - 1)
    shared += (0.01 * np.diag(shared).mean() + 0.01**2) * np.eye(axes)
    return {
        (y, x): (scatter[y // share, x // share] + axes * shared) / (count - 1 + axes)
        for y, x in np.ndindex(height, width)
    }


@pytest.mark.parametrize("share", [1, 2, 3])
@pytest.mark.parametrize("count", [2, 3, 30])
@pytest.mark.parametrize("grid", [(4, 4), (5, 3), (1, 1)])
def test_gauss_has_the_stated_mean_and_covariance(share, count, grid):
    scale = np.random.default_rng(9).uniform(0.2, 2, (*grid, 1)).astype(np.float32)
    features = normal(count, count, *grid, 4) * scale
    arrays = fit_component(Component("gauss", 0, 4, share=share), features, PLENTY)
    query = normal(8, *grid, 4)
    got = ComponentModel(Component("gauss", 0, 4, share=share), arrays).distance(query)
    covariances = covariances_by_hand(features, share)
    mean = features.astype(np.float64).mean(axis=0)
    for place in np.ndindex(grid):
        want = mahalanobis(query[place], mean[place], np.linalg.inv(covariances[place]))
        # Mean and factor are kept in half the precision.
        assert got[place] == pytest.approx(want, rel=5e-3)


def test_gauss_trusts_a_places_own_covariance_once_it_has_many_pictures():
    quiet = np.ones((2, 2, 1), np.float32)
    quiet[0, 0] = 0.1
    component, query = Component("gauss", 0, 3), np.ones((2, 2, 3), np.float32)
    few, many = (
        ComponentModel(
            component, fit_component(component, normal(1, count, 2, 2, 3) * quiet, PLENTY)
        ).distance(query)[0, 0]
        for count in (3, 3000)
    )
    assert many == pytest.approx(math.sqrt(3) / 0.1, rel=0.1)
    assert few < 0.5 * many


# Principal axes.


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("pool", [1, 2])
def test_features_of_the_learnt_patches_are_white(centred, pool):
    mixed = normal(0, 20, 5, 6, 10) @ (normal(1, 10, 10) + 2 * np.eye(10, dtype=np.float32))
    mixed += 5 * normal(2, 10) + 3 * normal(3, 20, 1, 1, 10)
    features = learn_features(Component("coreset", 0, 7, centred=centred, pool=pool), list(mixed))
    assert features.axes.shape == (10, 7) and features.pool == pool
    one = type(features)(features.axes, features.offset, features.blur, features.centred)
    rows = np.concatenate([one.of(patches).reshape(-1, 7) for patches in mixed]).astype(float)
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(rows.T), np.eye(7), atol=1e-3)


def test_the_axes_kept_are_those_of_most_variance():
    patches = normal(0, 30, 4, 4, 3) * np.array([0.5, 5, 2], np.float32)
    axes = learn_features(Component("coreset", 0, 2), list(patches)).axes
    assert abs(axes[1, 0]) == pytest.approx(1 / 5, rel=0.1)
    assert abs(axes[2, 1]) == pytest.approx(1 / 2, rel=0.1)
    assert abs(axes[0]).max() < 0.1


@pytest.mark.parametrize("rank", [1, 3])
def test_axes_along_which_nothing_varies_are_left_out(rank):
    patches = normal(0, 6, 4, 4, rank) @ normal(1, rank, 12)
    features = learn_features(Component("coreset", 0, 8), list(patches))
    assert features.axes.shape == (12, rank) and features.offset.shape == (rank,)


# Held out.


@pytest.mark.parametrize(
    "held", [each_alone(9), [np.array([0, 4]), np.arange(1, 4), np.arange(5, 9)]]
)
def test_held_out_distances_are_those_to_the_other_folds(held):
    features, probes = normal(0, 9, 2, 3, 4), normal(1, 5, 2, 3, 4)
    probe_of = np.array([4, 0, 8, 4, 2])
    good, probe = hold_out(Component("coreset", 0, 4), features, held, PLENTY, probes, probe_of)

    def from_others(query, row):
        fold = next(fold for fold in held if row in fold)
        rest = np.delete(features, fold, axis=0).reshape(-1, 4)
        return cdist(query.reshape(-1, 4), rest).min(axis=1).reshape(2, 3)

    for row in range(9):
        np.testing.assert_allclose(good[row], from_others(features[row], row), atol=2e-3)
    for row, of in enumerate(probe_of):
        np.testing.assert_allclose(probe[row], from_others(probes[row], of), atol=2e-3)


def test_a_strange_picture_has_no_say_in_the_robust_standard():
    held_out = np.abs(normal(3, 12, 4, 4)) + 1
    strange = held_out.copy()
    strange[0] = 100
    component = Component("place", 0, 4)
    clean = standard(component, held_out, robust=True)
    for got, wanted in zip(standard(component, strange, robust=True), clean, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0.6)
    # Mean and standard deviation are its own.
    assert (standard(component, strange)[0] > 5 * clean[0]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_odd_picture_is_odd_only_while_it_is_held_out(kind):
    maps = 0.3 * normal(0, 12, 5, 6, 8) + normal(1, 5, 6, 8)
    # Of its own kind somewhere, and like nothing else.
    maps[7, 2:4, 2:4] += 6 * normal(2, 8)
    arrays, section, scores, _ = learnt([Component(kind, 0, 8)], [maps])
    others = np.delete(scores, 7)
    assert scores.argmax() == 7 and scores[7] > 2 * others.max()
    judges = scorer_of(arrays, section, [maps.shape[1:]])
    assert score(judges, [maps[7]]) < 0.5 * scores[7]


def test_a_bundles_scorer_gives_the_held_out_maps():
    # Each component in one: whoever builds a scorer of the rest gets what was written down.
    maps = [normal(0, 7, 6, 5, 9), normal(1, 7, 3, 4, 6)]
    components = (
        Component("place", 0, 6, pool=2),
        Component("coreset", 1, 5, blur=3),
        Component("density", 1, 5, centred=True),
        Component("gauss", 0, 4, share=2),
    )
    shapes = [one.shape[1:] for one in maps]
    for image_score, smoothing in (("top", 0.5), ("max", 0.0)):
        arrays, section, scores, held_out = learnt(components, maps, image_score, smoothing)
        floats = floats_of(PatchSettings(components, image_score, smoothing), shapes)
        for row in range(7):
            without = dict(arrays)
            for index, component in enumerate(components):
                projection = learn_features(component, list(maps[component.map]))
                rest = [projection.of(one) for one in np.delete(maps[component.map], row, axis=0)]
                fitted = fit_component(component, np.stack(rest), floats[index])
                without |= {f"p{index}_{name}": array for name, array in fitted.items()}
            judges = scorer_of(without, section, shapes)
            anomaly = judges.anomaly_map([one[row] for one in maps])
            np.testing.assert_allclose(anomaly, held_out[row], rtol=1e-4, atol=1e-4)
            assert judges.score(anomaly) == pytest.approx(scores[row], rel=1e-4)


def test_what_is_stored_is_read_back_in_half_the_precision():
    maps = [normal(0, 6, 4, 5, 8)]
    components = [Component(kind, 0, 4) for kind in KINDS]
    arrays, section, _, _ = learnt(components, maps)
    halves = {name[3:] for name, array in arrays.items() if array.dtype == np.float16}
    assert halves == {"rows", "mean", "factor"}
    assert {array.dtype.name for array in arrays.values()} == {"float16", "float32"}
    assert read_components(section) == tuple(components)
    check_arrays(components, arrays, [(4, 5, 8)])


# What held-out pictures gave.


@pytest.mark.parametrize("kind", ["coreset", "density"])
def test_a_kind_without_places_has_one_standard(kind):
    held_out = np.random.default_rng(0).gamma(2, size=(8, 4, 5)).astype(np.float32)
    centre, spread = standard(Component(kind, 0, 4), held_out)
    assert centre.shape == spread.shape == (1, 1)
    assert centre.item() == pytest.approx(held_out.mean(), rel=1e-5)
    assert spread.item() == pytest.approx(held_out.std(), rel=1e-5)


@pytest.mark.parametrize("kind", ["place", "gauss"])
def test_a_kind_with_places_has_a_standard_for_each(kind):
    rng = np.random.default_rng(0)
    mean = np.linspace(1, 6, 20)[:, None] + np.zeros((20, 16))
    deviation = np.where(np.arange(16) < 8, 1.0, 4.0)
    held_out = (mean + deviation * rng.standard_normal((800, 20, 16))).astype(np.float32)
    centre, spread = standard(Component(kind, 0, 4), held_out)
    assert centre.shape == spread.shape == (20, 16) and centre.dtype == np.float32
    # Away from edges and from the step, where neighbours share.
    np.testing.assert_allclose(centre[4:-4], mean[4:-4], atol=0.4)
    np.testing.assert_allclose(spread[:, 1:5], 1, rtol=0.15)
    np.testing.assert_allclose(spread[:, 11:15], 4, rtol=0.15)


@pytest.mark.parametrize("kind", ["place", "gauss"])
def test_few_pictures_take_their_spread_from_all_places(kind):
    held_out = normal(0, 3, 20, 20) + 5
    _, spread = standard(Component(kind, 0, 4), held_out)
    # Three numbers' own deviations lie anywhere from nearly 0 to 2.
    assert held_out.std(axis=0).min() < 0.05
    assert 0.7 < spread.min() and spread.max() < 1.3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 1e-30, 7.5, 1e6])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 5), (40, 1, 7)])
def test_distances_that_never_vary_have_a_spread(kind, value, shape):
    centre, spread = standard(Component(kind, 0, 4), np.full(shape, value, np.float32))
    np.testing.assert_allclose(centre, value, rtol=1e-4, atol=1e-20)
    assert (spread > 1e-3).all() and np.isfinite(spread).all()


@pytest.mark.parametrize("kind", ["place", "gauss"])
def test_a_place_that_never_varied_does_not_explode(kind):
    held_out = normal(0, 3000, 24, 4) + 5
    held_out[:, :16] = 5
    _, spread = standard(Component(kind, 0, 4), held_out)
    assert spread[:12].min() > 0.2 * spread.mean()


# Bytes.

ENCODERS = [
    [(20, 20, 64)],
    [(11, 13, 24), (5, 7, 40)],
    [(1, 33, 12)],
    [(9, 2, 30), (16, 16, 20), (3, 3, 8)],
    [(1, 1, 100)],
    [(2, 45, 8), (45, 2, 9)],
]


def stored_bytes(settings, map_shapes, count=9):
    """Bytes in float32 of each component fitted to pictures of full rank."""
    sizes = []
    for component, floats in zip(settings.components, floats_of(settings, map_shapes), strict=True):
        axes = min(component.axes, map_shapes[component.map][2])
        grid = component.grid(map_shapes[component.map])
        arrays = fit_component(component, normal(0, count, *grid, axes), floats)
        if "rows" in arrays:
            assert arrays["rows"].shape[-2] >= 1
        sizes.append(4 * sum(array.size for array in arrays.values()))
    return sizes


@pytest.mark.parametrize("map_shapes", ENCODERS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_family_keeps_to_its_bytes(kind, map_shapes):
    maps = range(len(map_shapes))
    for each in (600, 2_000, 20_000, 45_000, 150_000):
        most = each * len(map_shapes)
        components = fitting(kind, maps, map_shapes, most)
        assert [c.map for c in components] == list(maps)
        settings = PatchSettings(components, most_bytes=most)
        limit = most
        if kind in ("coreset", "density"):
            # So many rows it has at least.
            limit = max(most, 4 * LEAST_ROWS * sum(c.axes + 1 for c in components))
        assert sum(stored_bytes(settings, map_shapes)) <= limit
        # What is chosen can be written down and read again.
        entries = [asdict(component) for component in components]
        section = {"components": entries, "image_score": "top", "smoothing": 1.0}
        assert read_components(section) == components


@pytest.mark.parametrize("map_shapes", ENCODERS, ids=str)
@pytest.mark.parametrize("beside", ["place", "coreset", "density"])
def test_gauss_beside_another_family_keeps_to_the_bytes(beside, map_shapes):
    maps = range(len(map_shapes))
    for each in (60_000, 150_000):
        most = each * len(map_shapes)
        components = fitting("gauss", maps, map_shapes, most // 2)
        components += fitting(beside, maps, map_shapes, most)
        assert sum(stored_bytes(PatchSettings(components, most_bytes=most), map_shapes)) <= most


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("map_shapes", [[(88, 88, 96)], [(40, 14, 144), (20, 7, 192)]], ids=str)
def test_large_maps_keep_to_the_bytes_by_count_alone(kind, map_shapes):
    components = fitting(kind, range(len(map_shapes)), map_shapes, MOST_BYTES)
    floats = floats_of(PatchSettings(components), map_shapes)
    assert 4 * sum(floats) <= MOST_BYTES
    for component, most in zip(components, floats, strict=True):
        places = math.prod(component.grid(map_shapes[component.map]))
        if kind == "place":
            assert most >= 6 * places * component.axes
        if kind in ("coreset", "density"):
            rows = most // (component.axes + 1)
            assert rows >= LEAST_ROWS
            assert rows == LEAST_ROWS or rows * places * component.axes <= MOST_PRODUCTS


def test_a_generous_budget_neither_pools_nor_drops_axes():
    for kind in KINDS:
        (component,) = fitting(kind, [0], [(10, 10, 64)], PLENTY)
        assert component == Component(kind, 0, 48)
    (fine,) = fitting("gauss", [0], [(40, 40, 64)], 10**9)
    assert fine == Component("gauss", 0, 48, blur=3, share=2)


def test_the_default_on_one_map_and_on_four():
    one = default_settings([(10, 10, 192)], [0])
    assert one == PatchSettings((Component("place", 0, 48),), "top", 0.5)
    shapes = [(40, 40, 96), (40, 40, 48), (20, 20, 64), (10, 10, 24)]
    four = default_settings(shapes, [1, 2, 3])
    assert [(c.kind, c.map, c.axes, c.blur) for c in four.components] == [
        ("place", 1, 48, 3), ("place", 2, 48, 1), ("place", 3, 24, 1)
    ]  # fmt: skip
    # 1600 places of 6 patches of 48 axes are more than a third of the bytes, 400 are not.
    assert [c.pool for c in four.components] == [2, 1, 1]
    assert four.smoothing == smoothing_of(four.components, shapes) == 0.5
    assert default_settings(shapes, [1, 2, 3], PLENTY).smoothing == 1.0
    assert default_settings(shapes, [2], 40_000).most_bytes == 40_000


def test_a_small_encoder_affords_fewer_bytes():
    assert affordable_bytes(None) == MOST_BYTES == affordable_bytes(10**12)
    small, larger = affordable_bytes(5_000_000), affordable_bytes(10_000_000)
    assert 0 < small < larger < MOST_BYTES


# Few pictures, and pictures without anything in them.


def scenes(name, count):
    return {
        "parts": normal(0, count, 6, 7, 12),
        "bright": np.full((count, 6, 7, 12), 0.7, np.float32),
        "black": np.zeros((count, 6, 7, 12), np.float32),
        "one picture": np.repeat(normal(1, 1, 6, 7, 12), count, axis=0),
        "two black": np.concatenate(
            [np.zeros((2, 6, 7, 12), np.float32), normal(2, count - 2, 6, 7, 12)]
        ),
    }[name]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [3, 5, 10])
@pytest.mark.parametrize("name", ["parts", "bright", "black", "one picture", "two black"])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.filterwarnings("error")
def test_few_pictures_are_learnt(kind, count, name, centred):
    maps = scenes(name, count)
    arrays, section, scores, held_out = learnt([Component(kind, 0, 8, 1, centred, 2)], [maps])
    assert np.isfinite(scores).all() and np.isfinite(held_out).all()
    judges = scorer_of(arrays, section, [maps.shape[1:]])
    good = [score(judges, [one]) for one in maps]
    assert np.isfinite(good).all()
    # In one cell all that was learnt, many times over.
    defect = maps[0].copy()
    defect[3, 3] += 40 * normal(3, 12)
    # Of two black pictures and one with a part, nothing can be learnt but that they differ.
    if (name, count) != ("two black", 3):
        assert score(judges, [defect]) > max(scores.max(), max(good))


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_at_rest_is_not_judged_by_rounding(kind):
    # Video of one part: the pictures differ by less than halves can hold.
    scene = normal(0, 6, 7, 12)
    maps = scene + 1e-5 * normal(1, 20, 6, 7, 12)
    arrays, section, scores, _ = learnt([Component(kind, 0, 8)], [maps])
    judges = scorer_of(arrays, section, [maps.shape[1:]])
    fresh = [score(judges, [scene + 1e-5 * normal(seed, 6, 7, 12)]) for seed in range(2, 8)]
    assert max(fresh) < scores.max() + 0.3
    defect = scene.copy()
    defect[3, 3] += normal(9, 12)
    assert score(judges, [defect]) > 5 * (scores.max() + 0.3)


@pytest.mark.parametrize("count", [3, 5])
def test_black_pictures_are_enrolled_to_finite_scores(base_path, count):
    manifest = json.loads((base_path / "manifest.json").read_text())
    encoder = Encoder(
        (base_path / "encoder.tflite").read_bytes(),
        manifest["input"]["scale"],
        manifest["input"]["offset"],
    )
    black = np.zeros((*encoder.size, 3), np.uint8)
    pictures = [LearntPicture(str(row), black) for row in range(count)]
    last = len(encoder.map_shapes) - 1
    components = tuple(Component(kind, last, 16) for kind in KINDS)
    learning = learn(
        pictures,
        encoder,
        Alignment("none"),
        ScorerSettings("patches"),
        0.01,
        patch_settings=PatchSettings(components),
    )
    assert np.isfinite(learning.reference["scores"]).all()
    assert math.isfinite(learning.sections["threshold"]["value"])
    check_arrays(components, learning.reference, encoder.map_shapes)


def test_trimming_leaves_out_what_no_other_picture_shows():
    # One picture in ten is strange at one place: stored, it would hide its like.
    rng = np.random.default_rng(0)
    features = rng.normal(0, 1, (40, 3, 3, 4)).astype(np.float32)
    strange = np.array([9, -9, 9, -9], np.float32)
    features[::10, 1, 1] = strange + rng.normal(0, 3, (4, 4))
    component = Component("place", 0, 4)
    plain, trimmed = (
        ComponentModel(component, fit_component(component, features, 10**6, trim=trim))
        for trim in (0.0, 0.1)
    )
    probe = np.zeros((3, 3, 4), np.float32)
    probe[1, 1] = features[0, 1, 1]
    assert plain.distance(probe)[1, 1] < 0.1 < 5 < trimmed.distance(probe)[1, 1]
    assert trimmed.distance(probe)[0, 0] == pytest.approx(plain.distance(probe)[0, 0], rel=0.5)


@pytest.mark.parametrize("distances", ["known", "too many to be kept"])
def test_of_what_a_person_called_good_nothing_is_trimmed(distances, monkeypatch):
    features = normal(3, 40, 3, 3, 4)
    features[7, 1, 1] += 30
    component, believed = Component("place", 0, 4), np.arange(40) == 7
    if distances != "known":
        monkeypatch.setattr("edge_app.learn_patches.MOST_APART", 1)
    doubted = fit_component(component, features, PLENTY, trim=0.05)["rows"]
    trusted = fit_component(component, features, PLENTY, trim=0.05, believed=believed)["rows"]
    middle = 3 * 1 + 1
    assert doubted.shape == trusted.shape == (9, 38, 4)
    assert doubted[middle].max() < 10 < trusted[middle].max()


def test_more_pictures_than_are_compared_are_all_kept_but_the_strangest(monkeypatch):
    monkeypatch.setattr("edge_app.learn_patches.MOST_APART", 1)
    features = normal(4, TRIMMED_FROM + 60, 2, 2, 4)
    features[-3:] += 30 * np.arange(1, 4)[:, None, None, None]
    rows = fit_component(Component("place", 0, 4), features, PLENTY, trim=0.01)["rows"]
    assert rows.shape == (4, TRIMMED_FROM + 57, 4) and rows.max() < 10


def test_the_default_is_not_blinded_by_one_defective_picture_in_ten():
    # Each shows something else at its own place: none looks like another.
    features = normal(5, 80, 4, 4, 6)
    for row, place in zip(range(0, 80, 10), range(8), strict=True):
        features[row].reshape(16, 6)[place] += 12 * np.sign(normal(row, 6))
    component, settings = Component("place", 0, 6), PatchSettings((Component("place", 0, 6),))
    arrays = fit_component(component, features, PLENTY, trim=settings.trim)
    model = ComponentModel(component, arrays)
    for row, place in zip(range(0, 80, 10), range(8), strict=True):
        assert model.distance(features[row]).ravel()[place] > 10
