"""The patch scorer against scikit-learn, SciPy and plain loops; what it refuses; what NaN does."""

from __future__ import annotations

import copy
from dataclasses import asdict

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.neighbors import NearestNeighbors

from edge_app.patches import (
    IMAGE_SCORES,
    KINDS,
    Component,
    ComponentModel,
    Features,
    PatchScorer,
    check_arrays,
    component_arrays,
    finest_grid,
    image_scores,
    in_blocks,
    on_grid,
    pooled,
    read_components,
    smoothed,
)

SHAPES = [(5, 7, 6), (3, 4, 4)]


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def kind_arrays(kind, grid, axes, share=1, count=9):
    """Arrays of one kind, made up rather than learnt."""
    height, width = grid
    if kind == "gauss":
        blocks = -(-height // share) * -(-width // share)
        lower = np.tril(normal(1, blocks, axes, axes)) + 3 * np.eye(axes, dtype=np.float32)
        return {
            "mean": normal(2, height, width, axes),
            "factor": np.linalg.inv(lower).transpose(0, 2, 1).astype(np.float32),
        }
    rows = normal(3, *((height * width,) if kind == "place" else ()), count, axes)
    radius = 0.5 + np.random.default_rng(4).random(count, np.float32)
    return {"rows": rows, **({"radius": radius} if kind == "density" else {})}


def whole(components, shapes=SHAPES):
    """All arrays of a scorer of these components."""
    arrays = {}
    for index, component in enumerate(components):
        grid = component.grid(shapes[component.map])
        own = {
            "axes": normal(10 + index, shapes[component.map][2], component.axes),
            "offset": normal(20 + index, component.axes),
            "centre": 1 + 0.1 * normal(30 + index, *grid),
            "spread": np.full((1, 1), 0.5, np.float32),
            **kind_arrays(component.kind, grid, component.axes, component.share),
        }
        arrays |= {f"p{index}_{name}": array for name, array in own.items()}
    return arrays


def section(components, /, **changes):
    entries = [asdict(component) for component in components]
    return {"components": entries, "image_score": "top", "smoothing": 0.5} | changes


def scorer(components, image_score="max", smoothing=0.0, weight=None, shapes=SHAPES):
    if weight is None:
        weight = np.ones(finest_grid(components, shapes), np.float32)
    return PatchScorer(components, whole(components, shapes), weight, image_score, smoothing)


# Distances.


@pytest.mark.parametrize("count", [1, 2, 300])
def test_coreset_is_the_distance_to_the_nearest_row(count):
    rows, features = normal(0, count, 12), 1.5 * normal(1, 6, 5, 12)
    model = ComponentModel(Component("coreset", 0, 12), {"rows": rows})
    nearest = NearestNeighbors(n_neighbors=1).fit(rows.astype(np.float64))
    want, _ = nearest.kneighbors(features.reshape(-1, 12).astype(np.float64))
    np.testing.assert_allclose(model.distance(features), want.reshape(6, 5), rtol=1e-4)
    assert model.distance(features).dtype == np.float32


def test_density_divides_by_the_nearest_rows_own_radius():
    rows, features = normal(0, 40, 6), normal(1, 4, 5, 6)
    radius = np.random.default_rng(2).uniform(0.5, 3, 40).astype(np.float32)
    model = ComponentModel(Component("density", 0, 6), {"rows": rows, "radius": radius})
    got = model.distance(features)
    for y in range(4):
        for x in range(5):
            away = np.linalg.norm(rows.astype(np.float64) - features[y, x], axis=1)
            want = away.min() / radius[away.argmin()]
            assert got[y, x] == pytest.approx(want, rel=1e-4)


def test_place_looks_only_at_its_own_place():
    rows, features = normal(0, 3 * 5, 7, 4), normal(1, 3, 5, 4)
    got = ComponentModel(Component("place", 0, 4), {"rows": rows}).distance(features)
    for y in range(3):
        for x in range(5):
            away = np.linalg.norm(rows[y * 5 + x] - features[y, x], axis=1)
            assert got[y, x] == pytest.approx(away.min(), rel=1e-4)


@pytest.mark.parametrize("share", [1, 2, 3, 8])
def test_gauss_is_the_mahalanobis_distance(share):
    grid, axes = (5, 7), 4
    arrays = kind_arrays("gauss", grid, axes, share)
    features = normal(5, *grid, axes)
    got = ComponentModel(Component("gauss", 0, axes, share=share), arrays).distance(features)
    across = -(-grid[1] // share)
    for y in range(grid[0]):
        for x in range(grid[1]):
            factor = arrays["factor"][(y // share) * across + x // share].astype(np.float64)
            want = mahalanobis(features[y, x], arrays["mean"][y, x], factor @ factor.T)
            assert got[y, x] == pytest.approx(want, rel=1e-4)


def test_a_stored_row_is_at_distance_nothing_whatever_its_length():
    rows = np.float32(1e3) * normal(0, 50, 8)
    model = ComponentModel(Component("coreset", 0, 8), {"rows": rows})
    distance = model.distance(rows.reshape(5, 10, 8))
    # Rounding of squares of about 1e7 in float32; never the root of a negative number.
    assert np.isfinite(distance).all() and distance.min() >= 0 and distance.max() < 3


@pytest.mark.parametrize("grid", [(4, 4), (5, 7), (1, 3), (2, 1)])
@pytest.mark.parametrize("share", [1, 2, 3, 16])
def test_blocks_hold_each_place_once_and_nothing_beyond_the_edge(grid, share):
    features = normal(0, *grid, 3)
    blocks, places = in_blocks(features, share)
    inside = places >= 0
    assert sorted(places[inside]) == list(range(grid[0] * grid[1]))
    rows = blocks.reshape(-1, 3)
    np.testing.assert_array_equal(rows[inside], features.reshape(-1, 3)[places[inside]])
    assert not rows[~inside].any()
    for block in places.reshape(len(blocks), -1):
        y, x = np.divmod(block[block >= 0], grid[1])
        assert len(set(zip(y // share, x // share, strict=True))) == 1


# Features.


def brute_blur(features):
    """Mean of 3 x 3 cells; beyond the edge the map is mirrored with its edge cell repeated."""
    padded = np.pad(features, ((1, 1), (1, 1), (0, 0)), mode="symmetric")
    height, width = features.shape[:2]
    shifted = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.mean(shifted, axis=0)


@pytest.mark.parametrize("axes", [1, 2, 5])
@pytest.mark.parametrize("size", [(6, 7), (1, 4), (1, 1)])
def test_blur_is_the_mean_of_three_by_three_cells(axes, size):
    turn, offset = normal(0, 6, axes), normal(1, axes)
    patches = normal(2, *size, 6)
    plain = Features(turn, offset, 1, False).of(patches)
    np.testing.assert_allclose(plain, patches @ turn - offset, atol=1e-5)
    got = Features(turn, offset, 3, False).of(patches)
    assert got.shape == (*size, axes)
    np.testing.assert_allclose(got, brute_blur(plain), atol=1e-5)


@pytest.mark.parametrize("blur", [1, 3])
def test_centred_takes_the_pictures_own_mean(blur):
    features = Features(normal(0, 6, 4), normal(1, 4), blur, True)
    patches = normal(2, 5, 4, 6)
    got = features.of(patches)
    np.testing.assert_allclose(features.of(patches + normal(3, 6)), got, atol=1e-4)
    if blur == 1:
        np.testing.assert_allclose(got.mean(axis=(0, 1)), 0, atol=1e-5)
    fixed = Features(features.axes, features.offset, blur, False)
    assert abs(fixed.of(patches + 1) - fixed.of(patches)).max() > 0.1


@pytest.mark.parametrize(("size", "pool"), [((4, 6), 2), ((5, 7), 2), ((5, 7), 3), ((3, 2), 4)])
def test_pool_is_the_mean_of_blocks(size, pool):
    features = normal(0, *size, 3)
    got = pooled(features, pool)
    assert got.shape[:2] == Component("place", 0, 3, pool=pool).grid((*size, 3))
    for y in range(got.shape[0]):
        for x in range(got.shape[1]):
            # A last row or column stands in for what its block lacks.
            down = np.minimum(np.arange(y * pool, (y + 1) * pool), size[0] - 1)
            across = np.minimum(np.arange(x * pool, (x + 1) * pool), size[1] - 1)
            want = features[np.ix_(down, across)].mean(axis=(0, 1))
            np.testing.assert_allclose(got[y, x], want, atol=1e-6)
    through = Features(np.eye(3, dtype=np.float32), np.zeros(3, np.float32), 1, False, pool)
    np.testing.assert_allclose(through.of(features), got, atol=1e-6)


def test_pooling_a_map_to_one_place():
    features = normal(0, 4, 4, 2)
    np.testing.assert_allclose(pooled(features, 4)[0, 0], features.mean(axis=(0, 1)), atol=1e-6)


# The map and the score.


def test_map_is_the_weighted_mean_of_standardised_distances():
    components = (Component("coreset", 0, 4), Component("gauss", 0, 3, blur=3, share=2))
    weight = np.random.default_rng(0).random((5, 7), np.float32)
    arrays = whole(components)
    maps = [normal(50, *shape) for shape in SHAPES]
    want = 0
    for index, component in enumerate(components):
        own = component_arrays(arrays, index)
        features = Features(own["axes"], own["offset"], component.blur, component.centred)
        distance = ComponentModel(component, own).distance(features.of(maps[0]))
        want = want + (distance - own["centre"]) / own["spread"] / len(components)
    assert want.min() < 0 < want.max()
    got = scorer(components, weight=weight).anomaly_map(maps)
    np.testing.assert_allclose(got, np.maximum(want, 0) * weight, rtol=1e-4, atol=1e-5)


def test_a_coarse_map_is_brought_to_the_finest_grid():
    fine, coarse = Component("coreset", 0, 4), Component("coreset", 1, 4)
    assert finest_grid((coarse, fine), SHAPES) == (5, 7)
    assert finest_grid((coarse, Component("coreset", 0, 4, pool=3)), SHAPES) == (3, 4)
    even = np.full((3, 4), 2.5, np.float32)
    np.testing.assert_allclose(on_grid(even, (5, 7)), 2.5)
    assert on_grid(even, (3, 4)) is even
    maps = [normal(50, *shape) for shape in SHAPES]
    assert scorer((coarse, fine)).anomaly_map(maps).shape == (5, 7)


def test_a_map_is_never_below_what_good_parts_have():
    anomaly = np.array([[-5, 3], [0, 1]], np.float32)
    weight = np.array([[1, 1], [1, 0.5]], np.float32)
    np.testing.assert_array_equal(smoothed(anomaly, weight, 0), [[0, 3], [0, 0.5]])
    np.testing.assert_array_equal(anomaly, [[-5, 3], [0, 1]])


@pytest.mark.parametrize("smoothing", [0.5, 1.0, 3.0])
def test_smoothing_spreads_a_cell_as_a_gaussian(smoothing):
    anomaly = np.zeros((41, 41), np.float32)
    anomaly[20, 20] = 1
    bell = np.exp(-((np.arange(41) - 20) ** 2) / (2 * smoothing**2))
    got = smoothed(anomaly, np.ones_like(anomaly), smoothing)
    np.testing.assert_allclose(got, np.outer(bell, bell) / bell.sum() ** 2, atol=1e-4)


def test_scores_worked_out_by_hand():
    maps = np.stack([np.arange(100.0).reshape(10, 10), np.zeros((10, 10))])
    np.testing.assert_array_equal(image_scores(maps, "max"), [99, 0])
    # Two in a hundred cells.
    np.testing.assert_array_equal(image_scores(maps, "top"), [98.5, 0])
    np.testing.assert_array_equal(image_scores(maps[:, :1, :3], "top"), [2, 0])
    assert image_scores(np.arange(51.0).reshape(1, 3, 17), "top") == [49.5]


# NaN is never a low score.


@pytest.mark.parametrize("image_score", IMAGE_SCORES)
def test_one_nan_cell_makes_the_score_nan(image_score):
    maps = normal(0, 4, 9, 11)
    maps[2, 3, 4] = np.nan
    got = image_scores(maps, image_score)
    assert np.isnan(got).tolist() == [False, False, True, False]


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_nan_survives_resizing_smoothing_and_no_weight(smoothing):
    coarse = np.zeros((3, 4), np.float32)
    coarse[1, 2] = np.nan
    fine = on_grid(coarse, (6, 9))
    assert np.isnan(smoothed(fine, np.zeros((6, 9), np.float32), smoothing)).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("image_score", IMAGE_SCORES)
@pytest.mark.parametrize(
    ("blur", "centred", "pool", "smoothing"),
    [(1, False, 1, 0.0), (3, False, 1, 1.0), (1, True, 1, 0.5), (3, True, 2, 0.0)],
)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_and_infinity_in_a_map(kind, image_score, blur, centred, pool, smoothing, bad):
    components = (
        Component("coreset", 0, 4),
        Component(kind, 1, 3, blur, centred, share=2, pool=pool),
    )
    judges = scorer(components, image_score, smoothing)
    maps = [normal(50, *shape) for shape in SHAPES]
    assert np.isfinite(judges.score(judges.anomaly_map(maps)))
    maps[1][2, 1, 3] = bad
    score = judges.score(judges.anomaly_map(maps))
    assert np.isnan(score) or (np.isinf(bad) and score == np.inf)


# What comes from a file.


def test_components_are_read_as_they_were_written():
    components = (Component("gauss", 1, 24, 3, True, 2, 1), Component("place", 0, 8, pool=4))
    assert read_components(section(components)) == components
    assert read_components(section(components, smoothing=0, image_score="max")) == components


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("kind", "lof", "components[1].kind is 'lof', wanted one of"),
        ("kind", ["gauss"], "components[1].kind is ['gauss'], wanted one of"),
        ("map", -1, "components[1].map is -1, wanted a whole number 0 to"),
        ("map", True, "components[1].map is True, wanted a whole number"),
        ("map", None, "components[1].map is None, wanted a whole number"),
        ("axes", 0, "components[1].axes is 0, wanted a whole number 1 to"),
        ("axes", 513, "components[1].axes is 513, wanted a whole number 1 to 512"),
        ("axes", 2.0, "components[1].axes is 2.0, wanted a whole number"),
        ("blur", "3", "components[1].blur is '3', wanted a whole number"),
        ("blur", 10**9, "components[1].blur is 1000000000, wanted a whole number 1 to"),
        ("share", 0, "components[1].share is 0, wanted a whole number 1 to"),
        ("pool", 100_000, "components[1].pool is 100000, wanted a whole number 1 to"),
        ("centred", 1, "components[1].centred is 1, wanted true or false"),
    ],
)
def test_a_damaged_field_is_named(field, value, sentence):
    damaged = section((Component("coreset", 0, 4), Component("place", 1, 4)))
    damaged["components"][1][field] = value
    with pytest.raises(ValueError) as caught:
        read_components(damaged)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"components": None}, "components is None, wanted a list"),
        ({"components": []}, r"components is \[\], wanted a list"),
        ({"components": {"kind": "place"}}, "components is .*, wanted a list"),
        ({"components": ["place"]}, r"components\[0\] is place, wanted axes, blur, "),
        ({"components": [{"kind": "place"}]}, r"components\[0\] is .*, wanted axes, blur, "),
        ({"image_score": "mean"}, "image_score is 'mean', wanted one of"),
        ({"image_score": None}, "image_score is None, wanted one of"),
        ({"smoothing": None}, "smoothing is None, wanted a number of cells"),
        ({"smoothing": True}, "smoothing is True, wanted a number of cells"),
        ({"smoothing": "1"}, "smoothing is '1', wanted a number of cells"),
        ({"smoothing": -0.1}, "smoothing is -0.1, wanted 0 to 100 cells"),
        ({"smoothing": 101}, "smoothing is 101, wanted 0 to 100 cells"),
        ({"smoothing": float("nan")}, "smoothing is nan, wanted 0 to 100 cells"),
        ({"smoothing": float("inf")}, "smoothing is inf, wanted 0 to 100 cells"),
    ],
)
def test_a_damaged_section_is_named(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_components(section((Component("coreset", 0, 4),), **changes))


def test_a_field_too_many_is_refused():
    entry = asdict(Component("coreset", 0, 4)) | {"sigma": 1}
    with pytest.raises(ValueError, match=r"components\[0\] is .*, wanted axes, blur"):
        read_components(section((), components=[entry]))


FOUR = (
    Component("coreset", 0, 4),
    Component("density", 1, 3),
    Component("place", 0, 5, pool=2),
    Component("gauss", 1, 2, share=2),
)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_that_fit_are_accepted(dtype):
    arrays = {name: array.astype(dtype) for name, array in whole(FOUR).items()}
    check_arrays(FOUR, arrays, SHAPES)
    check_arrays(FOUR, arrays | {"scores": np.zeros(3)}, SHAPES)


def names_of(components):
    return sorted(whole(components))


@pytest.mark.parametrize("name", names_of(FOUR))
def test_a_missing_array_is_named(name):
    arrays = whole(FOUR)
    del arrays[name]
    with pytest.raises(ValueError, match=f"array {name} is missing"):
        check_arrays(FOUR, arrays, SHAPES)


def blamed(name):
    """Whatever is wrong with the axes' shape shows in the arrays beside them as well."""
    return f"array p{name[1]}_" if name.endswith("_axes") else f"array {name} "


@pytest.mark.parametrize("name", names_of(FOUR))
@pytest.mark.parametrize("damage", ["cut", "longer", "flat", "scalar", "nothing"])
def test_an_array_of_another_shape_is_named(name, damage):
    arrays = whole(FOUR)
    array = arrays[name]
    # Rows may be any number: there it is the axes that are cut.
    at = (..., slice(1)) if name.endswith("rows") else slice(1)
    arrays[name] = {
        "cut": array[at] if array.size > 1 else np.ones((2, 1), array.dtype),
        "longer": np.concatenate([array, array], axis=-1),
        "flat": array.reshape(-1) if array.ndim > 1 else array[None],
        "scalar": array.reshape(-1)[0],
        "nothing": array[:0],
    }[damage]
    with pytest.raises(ValueError, match=blamed(name)):
        check_arrays(FOUR, arrays, SHAPES)


@pytest.mark.parametrize("name", names_of(FOUR))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_named(name, bad):
    arrays = whole(FOUR)
    arrays[name] = arrays[name].copy()
    arrays[name].reshape(-1)[-1] = bad
    with pytest.raises(ValueError, match=f"array {name} holds what is not a finite number"):
        check_arrays(FOUR, arrays, SHAPES)


@pytest.mark.parametrize("name", names_of(FOUR))
@pytest.mark.parametrize("dtype", [np.int32, bool, "U8", complex])
def test_an_array_of_another_dtype_is_named(name, dtype):
    arrays = whole(FOUR)
    arrays[name] = arrays[name].astype(dtype)
    with pytest.raises(ValueError, match=f"array {name} holds what is not a finite number"):
        check_arrays(FOUR, arrays, SHAPES)


@pytest.mark.parametrize("name", ["p0_spread", "p1_radius", "p2_spread"])
@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_a_divisor_that_is_not_above_nothing_is_named(name, bad):
    arrays = whole(FOUR)
    arrays[name] = arrays[name].copy()
    arrays[name].reshape(-1)[0] = bad
    with pytest.raises(ValueError, match=f"array {name} holds numbers that are not above 0"):
        check_arrays(FOUR, arrays, SHAPES)


def test_arrays_of_another_encoder_are_named():
    arrays = whole(FOUR)
    with pytest.raises(ValueError, match=r"components\[1\].map is 1, the encoder gives 1"):
        check_arrays(FOUR, arrays, SHAPES[:1])
    with pytest.raises(ValueError, match=r"array p0_axes is of shape \(6, 4\), wanted \(9, 4\)"):
        check_arrays(FOUR, arrays, [(5, 7, 9), SHAPES[1]])
    with pytest.raises(ValueError, match=r"array p0_centre is of shape \(5, 7\), wanted \(6, 7\)"):
        check_arrays(FOUR, arrays, [(6, 7, 6), SHAPES[1]])


def test_more_axes_than_the_component_names_are_refused():
    fewer = (Component("coreset", 0, 3),)
    with pytest.raises(ValueError, match="array p0_axes holds 4 axes, wanted at most 3"):
        check_arrays(fewer, whole(FOUR[:1]), SHAPES)


# Arrays belong to whoever made them.


def test_the_callers_arrays_stay_as_they_were():
    arrays, weight = whole(FOUR), np.ones((5, 7), np.float32)
    before = copy.deepcopy(arrays)
    maps = [normal(50, *shape) for shape in SHAPES]
    kept = [one.copy() for one in maps]
    judges = PatchScorer(FOUR, arrays, weight, "max", 0.5)
    judges.score(judges.anomaly_map(maps))
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name])
        assert array.flags.writeable
    assert weight.flags.writeable
    for one, was in zip(maps, kept, strict=True):
        np.testing.assert_array_equal(one, was)


def test_labels_name_the_layer():
    assert Component("place", 1, 4).label(("a", "b")) == "place b"
    assert Component("gauss", 2, 4, centred=True).label(("a", "b")) == "gauss map 2 centred"
