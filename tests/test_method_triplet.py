"""The triplet embedding, fitted once on drawn parts at 32 pixels; a training of a few steps."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="training needs the tools extra")

from drawn_part import GOOD, SIDE, drawn_part, new_pictures  # noqa: E402

from edge_app.bundle import load_bundle  # noqa: E402
from edge_app.cli import main as edge_app  # noqa: E402
from edge_app.errors import InputError  # noqa: E402
from tools.encoder_training import Recipe  # noqa: E402
from tools.methods.triplet import TripletEmbedding  # noqa: E402

ANCHORS = 20
RECIPE = Recipe(loss="triplet", steps=6, batch=8)
# Half of the network: to build, trace and convert it is what takes the time.
LAYER = "block_6_expand_relu"
METHOD = TripletEmbedding(RECIPE, SIDE, LAYER, "block_3", ANCHORS)


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    return drawn_part(tmp_path_factory.mktemp("triplet"))


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def fitted(part, state):
    return METHOD.fit(part, 0, state, progress=False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return new_pictures(tmp_path_factory.mktemp("new"))


def test_scores_are_those_of_scikit_learn(fitted, part, pictures):
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import normalize

    def embedded(views):
        encoder = fitted.network.encoder
        pixels = [view.pixels((SIDE, SIDE)) for view in views]
        return normalize(np.stack([encoder.encode(one).embedding for one in pixels]))

    anchors = [part.good[row] for row in fitted.network.rows]
    assert len(anchors) == ANCHORS < GOOD
    nearest = NearestNeighbors(n_neighbors=1).fit(embedded(anchors))
    wanted = nearest.kneighbors(embedded(pictures))[0][:, 0]
    scores = [fitted.scores(view) for view in pictures]
    assert [tuple(row) for row in scores] == [TripletEmbedding.score_names] * len(pictures)
    np.testing.assert_allclose([row["nn"] for row in scores], wanted, rtol=1e-3)
    assert wanted[:3].max() < wanted[3:].min()


def test_an_anchor_scores_nothing(fitted, part):
    at = {row: fitted.scores(part.good[row])["nn"] for row in range(GOOD)}
    anchors = set(fitted.network.rows.tolist())
    assert all((score < 1e-3) == (row in anchors) for row, score in at.items()), at


def test_training_changes_what_is_not_frozen(fitted, part):
    from tools.network import encoder_from

    start = encoder_from(part.weights, (SIDE, SIDE), LAYER, LAYER, map_layers=())
    trained = fitted.network.keras_model()
    changed = {
        layer.name
        for layer in trained.layers
        if layer.weights
        and any(
            not np.array_equal(one, other)
            for one, other in zip(
                layer.get_weights(), start.get_layer(layer.name).get_weights(), strict=True
            )
        )
    }
    assert "block_6_expand" in changed and "block_4_project" in changed
    assert not any(name.startswith(("Conv1", "block_1", "block_2", "block_3")) for name in changed)


def test_the_device_inspects_with_its_bundle(fitted, pictures, tmp_path):
    fitted.write_bundle(tmp_path / "bundle")
    out = tmp_path / "v.jsonl"
    argv = ["inspect", pictures[0].path.parent, "--bundle", tmp_path / "bundle", "--json", out]
    assert edge_app([str(arg) for arg in argv]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["score"] for line in lines] == pytest.approx(
        [fitted.scores(view)["nn"] for view in pictures], abs=1e-4
    )
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.manifest["scorer"] == {"kind": "knn", "k": 1, "feature_scaling": "l2"}
    assert bundle.manifest["decoder"] is None and bundle.decoder is None
    assert len(bundle.reference["embeddings"]) == ANCHORS


def test_grad_cam_is_its_only_map(fitted, pictures):
    assert fitted.maps == ("grad-cam",)
    drawn = fitted.map(pictures[4], "grad-cam")
    assert drawn.shape == (96, 96) and drawn.min() >= 0 and drawn.max() > 0
    with pytest.raises(KeyError):
        fitted.map(pictures[4], "decoder mobile")


def test_a_second_fit_loads_the_first(fitted, part, state, pictures):
    before = {path.name: path.stat().st_mtime_ns for path in state.iterdir()}
    again = METHOD.fit(part, 0, state, progress=False)
    assert {path.name: path.stat().st_mtime_ns for path in state.iterdir()} == before
    assert [again.scores(view) for view in pictures] == [fitted.scores(view) for view in pictures]


def test_another_recipe_is_refused(fitted, part, state):
    other = TripletEmbedding(replace(RECIPE, margin=0.5), SIDE, LAYER, "block_3", ANCHORS)
    with pytest.raises(InputError, match="another recipe"):
        other.fit(part, 0, state, progress=False)
