"""The baselines against scikit-learn, scipy, plain numpy and pictures whose answer is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from drawn_part import written
from scipy.fft import dctn

from edge_app.align import Alignment
from edge_app.errors import InputError
from tools.methods import Part
from tools.methods.trivial import (
    Brightness,
    MeanImage,
    PcaResidual,
    PerceptualHash,
    perceptual_hash,
)

METHODS = (Brightness, MeanImage, PcaResidual, PerceptualHash)
SIDE = 64


def part_of(views, folder):
    return Part("drawn", folder, views, Alignment("none"), folder / "none", ())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Thirty pictures that two numbers decide, a little noise, and the part of them."""
    folder = tmp_path_factory.mktemp("drawn")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    waves = np.stack([np.sin(6 * x), np.cos(9 * y)])[..., None] * np.array([1.0, 0.6, 0.3])
    pictures = []
    for _ in range(30):
        picture = 128 + np.tensordot(rng.uniform(-40, 40, 2), waves, 1)
        pictures.append(np.clip(picture + rng.normal(0, 1, picture.shape), 0, 255).astype(np.uint8))
    pictures = np.stack(pictures)
    return pictures, part_of(written(folder / "good", pictures), folder)


def test_pca_residual_is_what_scikit_learn_cannot_draw_again(drawn, tmp_path):
    from sklearn.decomposition import PCA

    pictures, part = drawn
    fitted = PcaResidual().fit(part, 0, tmp_path / "state", progress=False)
    assert fitted.notes["components"] == 2
    model = PCA(2).fit(pictures.reshape(len(pictures), -1).astype(np.float64))
    marked = pictures[3].copy()
    marked[20:28, 30:38] = (255, 0, 0)
    (view,) = written(tmp_path / "marked", [marked])
    row = marked.reshape(1, -1).astype(np.float64)
    residual = row - model.inverse_transform(model.transform(row))
    assert fitted.scores(view)[""] == pytest.approx(np.sqrt((residual**2).mean()), rel=1e-4)
    wanted = np.abs(residual).reshape(SIDE, SIDE, 3).mean(axis=2)
    found = fitted.map(view, "residual")
    assert found.dtype == np.float32 and found.shape == (SIDE, SIDE)
    np.testing.assert_allclose(found, wanted, atol=1e-2)
    assert found[20:28, 30:38].min() > 5 * found[:16].max()


def test_components_leave_a_residual_on_the_good_pictures_too(tmp_path):
    """With all of the variance kept, every good picture would be drawn without a residual."""
    noise = np.random.default_rng(1).integers(0, 256, (40, SIDE, SIDE, 3), np.uint8)
    views = written(tmp_path / "good", noise)
    fitted = PcaResidual().fit(part_of(views, tmp_path), 0, tmp_path / "state", progress=False)
    assert fitted.notes["components"] < 39
    assert max(fitted.scores(view)[""] for view in views) > 1


def test_mean_image_by_hand(drawn, tmp_path):
    pictures, part = drawn
    fitted = MeanImage().fit(part, 0, tmp_path / "state", progress=False)
    mean = pictures.astype(np.float64).mean(axis=0)
    difference = pictures[5] - mean
    view = part.good[5]
    assert fitted.scores(view)[""] == pytest.approx(np.sqrt((difference**2).mean()), rel=1e-5)
    np.testing.assert_allclose(
        fitted.map(view, "difference"), np.abs(difference).mean(axis=2), atol=1e-3
    )


def test_brightness_is_the_distance_either_way(tmp_path):
    grey = [np.full((SIDE, SIDE, 3), level, np.uint8) for level in (90, 110)]
    part = part_of(written(tmp_path / "good", grey), tmp_path)
    fitted = Brightness().fit(part, 0, tmp_path / "state", progress=False)
    levels = [70, 100, 140]
    views = written(tmp_path / "test", [np.full((SIDE, SIDE, 3), v, np.uint8) for v in levels])
    assert [fitted.scores(view)[""] for view in views] == [30.0, 0.0, 40.0]


def test_hash_bits_are_the_signs_of_scipys_cosine_transform():
    rng = np.random.default_rng(2)
    coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
    picture = cv2.resize(coarse, (32, 32), interpolation=cv2.INTER_CUBIC)
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float64)
    low = dctn(grey, norm="ortho")[1:9, 1:9]
    assert np.array_equal(perceptual_hash(picture), (low > np.median(low)).ravel())
    assert perceptual_hash(picture).sum() == 32


def test_hash_score_counts_the_bits_to_the_nearest_good_picture(tmp_path):
    rng = np.random.default_rng(3)
    good = [cv2.resize(rng.integers(0, 256, (6, 6, 3), np.uint8), (32, 32)) for _ in range(5)]
    views = written(tmp_path / "good", [*good, good[0]])
    fitted = PerceptualHash().fit(part_of(views, tmp_path), 0, tmp_path / "state", progress=False)
    assert fitted.notes["different_hashes"] == 5
    assert [fitted.scores(view)[""] for view in views] == [0.0] * 6
    turned = good[2][::-1].copy()
    (view,) = written(tmp_path / "test", [turned])
    bits = [int((perceptual_hash(turned) ^ perceptual_hash(one)).sum()) for one in good]
    assert fitted.scores(view)[""] == min(bits) > 0
    # Brighter by a constant is the same hash: frequency 0 is left out.
    (view,) = written(tmp_path / "bright", [good[1] // 2 + 100])
    (dark,) = written(tmp_path / "dark", [good[1] // 2 + 20])
    assert fitted.scores(view) == fitted.scores(dark)


@pytest.mark.parametrize("method", METHODS)
def test_what_was_learnt_is_found_again_and_not_taken_for_another_part(method, drawn, tmp_path):
    pictures, part = drawn
    fitted = method().fit(part, 0, tmp_path / "state", progress=False)
    assert fitted.size_bytes > 0 and fitted.parameters > 0
    assert tuple(fitted.scores(part.good[0])) == method.score_names
    kept = {one: one.stat().st_mtime_ns for one in (tmp_path / "state").rglob("*")}
    again = method().fit(part, 1, tmp_path / "state", progress=False)
    assert {one: one.stat().st_mtime_ns for one in (tmp_path / "state").rglob("*")} == kept
    assert again.scores(part.good[3]) == fitted.scores(part.good[3])
    other = part_of(part.good[:-1], part.data_dir)
    with pytest.raises(InputError, match="pictures_sha256"):
        method().fit(other, 0, tmp_path / "state", progress=False)


def test_other_kinds_of_map_are_refused(drawn, tmp_path):
    for number, method in enumerate(METHODS):
        fitted = method().fit(drawn[1], 0, tmp_path / str(number), progress=False)
        with pytest.raises(KeyError):
            fitted.map(drawn[1].good[0], "gradient")
