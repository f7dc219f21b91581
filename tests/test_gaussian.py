"""The Gaussian scorer against scipy and by hand, and bundles that score with it."""

from __future__ import annotations

import json
import math
import shutil

import cv2
import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis

from edge_app.bundle import MANIFEST, load_bundle, write_bundle
from edge_app.cli import main
from edge_app.config import load_config
from edge_app.errors import BundleError
from edge_app.gaussian import GaussianScorer, check_gaussians, pooled, read_levels
from edge_app.inspector import Inspector
from edge_app.manifest import canonical_sha256
from edge_app.preprocess import Preprocessing, prepare
from edge_app.records import Frame, Verdict

LEVELS = (1, 3)


def arrays(dims=(5, 7), axes=(2, 7), rest=(0.5, 0.0), seed=0):
    rng = np.random.default_rng(seed)
    found = {}
    for index, (d, r, off) in enumerate(zip(dims, axes, rest, strict=True)):
        turned, _ = np.linalg.qr(rng.standard_normal((d, d)))
        found[f"mean_{index}"] = rng.standard_normal(d).astype(np.float32)
        found[f"axes_{index}"] = turned[:, :r].astype(np.float32)
        found[f"precision_{index}"] = rng.uniform(0.5, 4, r).astype(np.float32)
        found[f"rest_{index}"] = np.array([off], np.float32)
    return found


def full_precision(found, index):
    """The precision as one matrix, d x d."""
    axes = found[f"axes_{index}"].astype(np.float64)
    inside = axes * found[f"precision_{index}"] @ axes.T
    return inside + found[f"rest_{index}"] * (np.eye(len(axes)) - axes @ axes.T)


def test_by_hand():
    found = {
        "mean_0": np.array([1, 2], np.float32),
        "axes_0": np.array([[1], [0]], np.float32),
        "precision_0": np.array([4], np.float32),
        "rest_0": np.array([9], np.float32),
    }
    # 4 * (2 - 1)^2 + 9 * (5 - 2)^2
    assert GaussianScorer([0], found).score_pooled([np.float32([2, 5])]) == pytest.approx(85**0.5)
    found["rest_0"] = np.zeros(1, np.float32)
    assert GaussianScorer([0], found).score_pooled([np.float32([2, 5])]) == pytest.approx(2)


def test_equals_scipy_summed_over_the_levels_of_the_maps():
    found, rng = arrays(), np.random.default_rng(1)
    maps = [None, rng.standard_normal((4, 6, 5)), None, rng.standard_normal((2, 3, 7))]
    maps = [None if one is None else one.astype(np.float32) for one in maps]
    wanted = sum(
        mahalanobis(
            maps[level].mean(axis=(0, 1)), found[f"mean_{index}"], full_precision(found, index)
        )
        for index, level in enumerate(LEVELS)
    )
    assert GaussianScorer(LEVELS, found).score(maps) == pytest.approx(wanted, rel=1e-5)


def test_a_small_rest_beside_a_large_axis_is_not_lost_to_rounding():
    # The rest is 1e-4 of the axis' length, below what the difference of float32 squares can tell,
    # and weighs as much.
    found = {
        "mean_0": np.zeros(3, np.float32),
        "axes_0": np.array([[0.6], [0.8], [0]], np.float32),
        "precision_0": np.array([1e-6], np.float32),
        "rest_0": np.array([100], np.float32),
    }
    vector = np.array([600, 800, 0.1], np.float32)
    # 1e-6 * 1000^2 + 100 * 0.1^2
    assert GaussianScorer([0], found).score_pooled([vector]) == pytest.approx(2**0.5, rel=1e-3)


def test_pooled_is_the_mean_over_places():
    patches = np.random.default_rng(2).standard_normal((9, 11, 4)).astype(np.float32)
    np.testing.assert_allclose(pooled(patches), patches.mean(axis=(0, 1)), atol=1e-6)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_gives_a_low_score(level, value):
    rng = np.random.default_rng(3)
    maps = [rng.standard_normal((2, 2, d)).astype(np.float32) for d in (1, 5, 1, 7)]
    maps[level][0, 1, 2] = value
    score = GaussianScorer(LEVELS, arrays()).score(maps)
    assert math.isnan(score) or (math.isinf(value) and score == math.inf)


@pytest.mark.parametrize("levels", [None, [], [0, 0], [True], [-1], [0.5], "0", [999]])
def test_levels_that_are_none_are_refused(levels):
    with pytest.raises(ValueError, match="wanted a list of different map numbers"):
        read_levels({"levels": levels})


SHAPES = [(4, 4, 9), (4, 4, 5), (2, 2, 9), (2, 2, 7)]


def test_arrays_that_fit_are_taken():
    check_gaussians(LEVELS, arrays(), SHAPES)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("mean_0", lambda a: a[1:], r"mean_0 is of shape \(4,\)"),
        ("mean_1", lambda a: a * np.nan, "mean_1 holds what is not a finite number"),
        ("axes_0", lambda a: a[1:], "axes_0 is of shape"),
        ("axes_0", lambda a: a[0], "axes_0 is of shape"),
        ("axes_0", lambda a: np.ones((5, 6), np.float32), "axes_0 holds 6 axes of 5"),
        ("axes_1", lambda a: a.astype(str), "axes_1 holds what is not"),
        ("precision_0", lambda a: -a, "precision_0 or rest_0 holds numbers below 0"),
        ("precision_1", lambda a: a[1:], "precision_1 is of shape"),
        ("rest_0", lambda a: -a, "precision_0 or rest_0 holds numbers below 0"),
        ("rest_0", lambda a: a[0], "rest_0 is of shape"),
        ("rest_1", None, "rest_1 is missing"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(name, change, says):
    found = arrays()
    if change is None:
        del found[name]
    else:
        found[name] = change(found[name])
    with pytest.raises(ValueError, match=says):
        check_gaussians(LEVELS, found, SHAPES)


def test_a_gaussian_that_measures_nothing_is_refused():
    found = arrays(axes=(0, 7), rest=(0.0, 0.0))
    with pytest.raises(ValueError, match="measure no direction"):
        check_gaussians(LEVELS, found, SHAPES)
    with pytest.raises(ValueError, match=r"levels\[1\] is 3, the encoder gives 3"):
        check_gaussians(LEVELS, arrays(), SHAPES[:3])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, base_path, still_frames, encoder):
    """A bundle over two maps of the base encoder, with the Gaussians of a few good pictures."""
    base = load_bundle(base_path)
    frames = still_frames["good"][:84:7]
    maps = [encoder.encode(prepare(one, Preprocessing(base.size))).maps for one in frames]
    reference = {}
    for index, level in enumerate(LEVELS):
        vectors = np.stack([one[level].mean(axis=(0, 1)) for one in maps])
        _, singular, rows = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
        reference |= {
            f"mean_{index}": vectors.mean(axis=0),
            f"axes_{index}": rows[:4].T,
            f"precision_{index}": len(frames) / singular[:4] ** 2,
            f"rest_{index}": np.array([len(frames) / singular[4] ** 2]),
        }
    scorer = GaussianScorer(LEVELS, reference)
    scores = np.array([scorer.score(one) for one in maps])
    reference |= {"scores": scores, "image_ids": np.array([str(n) for n in range(len(frames))])}
    manifest = {
        **{k: v for k, v in base.manifest.items() if k not in ("files", "manifest_sha256")},
        "scorer": {
            "kind": "mahalanobis", "k": 1, "feature_scaling": "none", "levels": list(LEVELS),
        },
        "threshold": {
            "value": 1.5 * scores.max(), "method": "test", "wanted_rate": 0.01,
            "supported_rate": 0.1, "images": len(frames),
        },
    }  # fmt: skip
    return write_bundle(
        tmp_path_factory.mktemp("gaussian") / "b", manifest, base.encoder, None, reference
    )


def test_the_inspector_gives_the_score_and_a_verdict(bundle, encoder, still_frames):
    inspector = Inspector(bundle, load_config().decision, "single", 1)
    assert inspector.heatmap_kinds == ()
    for name, verdict in (("good", Verdict.OK), ("empty", Verdict.NG)):
        frame_bgr = still_frames[name][3]
        (result,) = inspector.inspect(Frame(0, "a", frame_bgr))
        maps = encoder.encode(prepare(frame_bgr, Preprocessing(bundle.size))).maps
        wanted = sum(
            mahalanobis(
                maps[level].mean(axis=(0, 1)),
                bundle.reference[f"mean_{index}"],
                full_precision(bundle.reference, index),
            )
            for index, level in enumerate(LEVELS)
        )
        assert result.decision.score == pytest.approx(wanted, rel=1e-3)
        assert result.decision.verdict is verdict


def test_maps_of_no_level_are_not_read(bundle, still_frames):
    inspector = Inspector(bundle, load_config().decision, "single", 1)
    maps = inspector.encoder.encode(prepare(still_frames["good"][0], inspector.recipe)).maps
    assert [one is None for one in maps] == [False, False, True, False]  # the first always is


def test_a_nan_in_the_network_is_unknown(bundle, still_frames):
    inspector = Inspector(bundle, load_config().decision, "single", 1)
    encode = inspector.encoder.encode

    class Broken:
        def encode(self, pixels_rgb):
            encoding = encode(pixels_rgb)
            encoding.maps[LEVELS[1]][0, 0, 0] = math.nan
            return encoding

    inspector.encoder = Broken()
    (result,) = inspector.inspect(Frame(0, "a", still_frames["good"][0]))
    assert result.decision.verdict is Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"levels": [0, 0]}, "different map numbers"),
        ({"levels": [1, 7]}, r"levels\[1\] is 7, the encoder gives 4"),
        ({"levels": [3, 1]}, "mean_0 is of shape"),
        ({"kind": "mahalanobi"}, r"field scorer\.kind"),
        ({"kind": "lof"}, "array embeddings is missing"),
    ],
)
def test_a_well_hashed_manifest_that_does_not_fit_is_refused(bundle, tmp_path, change, says):
    path = tmp_path / "b"
    shutil.copytree(bundle.path, path)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["scorer"] |= change
    manifest["manifest_sha256"] = canonical_sha256(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=says):
        load_bundle(path)


def test_the_commands_take_it_or_say_why_not(bundle, tmp_path, still_frames, capsys):
    (tmp_path / "good").mkdir()
    cv2.imwrite(str(tmp_path / "good" / "0.png"), still_frames["good"][40])
    argv = ["inspect", tmp_path / "good", "--bundle", bundle.path, "--json", tmp_path / "v.jsonl"]
    assert main([str(arg) for arg in argv]) == 0
    assert json.loads((tmp_path / "v.jsonl").read_text())["verdict"] == "OK"
    argv = ["enroll", tmp_path / "good", "--bundle", bundle.path, "--add", "--out", tmp_path / "n"]
    assert main([str(arg) for arg in argv]) == 2
    assert "does not hold the pictures it learnt" in capsys.readouterr().err
