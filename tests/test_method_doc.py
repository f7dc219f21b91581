"""DOC, fitted once on drawn parts at 32 pixels; a training of a few steps."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="training needs the tools extra")

from drawn_part import GOOD, SIDE, SPOT, drawn_part, new_pictures  # noqa: E402

from edge_app.align import Alignment  # noqa: E402
from edge_app.bundle import load_bundle  # noqa: E402
from edge_app.cli import main as edge_app  # noqa: E402
from edge_app.config import load_config  # noqa: E402
from edge_app.errors import InputError  # noqa: E402
from edge_app.heatmap import ColourScale  # noqa: E402
from edge_app.inspector import SeeingInspector  # noqa: E402
from edge_app.records import Frame  # noqa: E402
from tools.encoder_training import Recipe  # noqa: E402
from tools.methods import Aligners, View  # noqa: E402
from tools.methods.doc import Doc  # noqa: E402
from tools.methods.embedding import input_size, stored_rows  # noqa: E402

# Half of the network: to build, trace and convert it is what takes the time.
LAYER = "block_6_expand_relu"
METHOD = Doc(Recipe(loss="doc", steps=6, batch=8), SIDE, LAYER, "block_3", epochs=3)


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    return drawn_part(tmp_path_factory.mktemp("doc"))


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def fitted(part, state):
    return METHOD.fit(part, 0, state, progress=False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return new_pictures(tmp_path_factory.mktemp("new"))


def test_scores_are_those_of_scikit_learn(fitted, pictures):
    from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
    from sklearn.preprocessing import MinMaxScaler

    encoder = fitted.network.encoder
    good = fitted.network.embeddings
    new = np.stack([encoder.encode(view.pixels((SIDE, SIDE))).embedding for view in pictures])
    scaler = MinMaxScaler().fit(good)
    lof = LocalOutlierFactor(5, novelty=True).fit(scaler.transform(good))
    nearest = NearestNeighbors(n_neighbors=5).fit(scaler.transform(good))
    scores = [fitted.scores(view) for view in pictures]
    assert [tuple(row) for row in scores] == [("lof", "knn")] * len(pictures)
    assert Doc.score_names == ("lof", "knn")
    np.testing.assert_allclose(
        [row["lof"] for row in scores], -lof.score_samples(scaler.transform(new)), rtol=1e-4
    )
    np.testing.assert_allclose(
        [row["knn"] for row in scores],
        nearest.kneighbors(scaler.transform(new))[0].mean(axis=1),
        rtol=1e-4,
    )


def test_spotted_parts_score_higher(fitted, pictures):
    for name in Doc.score_names:
        scores = [fitted.scores(view)[name] for view in pictures]
        assert max(scores[:3]) < min(scores[3:])


def test_what_was_trained_on_what(fitted):
    notes = fitted.notes
    assert notes["steps"] == 6 and notes["train_images"] == GOOD - 2
    # The class to leave out is left out.
    assert notes["reference_classes"] == 3
    assert notes["stored"] == GOOD and notes["size"] == [SIDE, SIDE]
    assert set(notes["decoders"]) == {"mobile", "standard"}
    json.dumps(notes, allow_nan=False)


def test_what_it_holds(fitted):
    dimension = fitted.network.embeddings.shape[1]
    network = fitted.network.keras_model()
    assert network.output_shape[0] == (None, dimension)
    # Network, embeddings, range of each feature, axes of the search, distance and density of each.
    axes = min(96, GOOD, dimension)
    stored = GOOD * dimension + 2 * dimension + axes * dimension + 2 * GOOD
    assert fitted.parameters == network.count_params() + stored
    assert fitted.size_bytes > len(fitted.network.content) + 4 * stored


def test_a_second_fit_loads_the_first(fitted, part, state, pictures):
    before = {path.name: path.stat().st_mtime_ns for path in state.iterdir()}
    assert {"encoder.keras", "decoder_mobile.tflite", "decoder_standard.tflite"} <= set(before)
    assert not any(name.startswith((".partial", "state")) for name in before)
    again = METHOD.fit(part, 0, state, progress=False)
    assert {path.name: path.stat().st_mtime_ns for path in state.iterdir()} == before
    for view in pictures:
        assert again.scores(view) == fitted.scores(view)
    assert again.notes == fitted.notes and again.size_bytes == fitted.size_bytes


def test_a_run_of_another_seed_or_set_is_refused(fitted, part, state):
    with pytest.raises(InputError, match="another recipe"):
        METHOD.fit(part, 1, state, progress=False)
    fewer = replace(part, good=part.good[1:])
    with pytest.raises(InputError, match="another good_sha256"):
        METHOD.fit(fewer, 0, state, progress=False)


def test_decoder_maps_show_the_spot(fitted, pictures):
    assert fitted.maps == ("decoder mobile", "decoder standard", "grad-cam")
    for kind in fitted.maps[:2]:
        drawn = fitted.map(pictures[4], kind)
        assert drawn.shape == (96, 96) and drawn.dtype == np.float32
        inside = drawn[SPOT, SPOT].mean()
        assert inside > 1.5 * (drawn.sum() - inside * 225) / (96**2 - 225)


def test_the_standard_map_is_the_difference_to_the_redraw(fitted, pictures):
    # The article's |original - decoder(features)|, from the file alone.
    from edge_app.runtime import open_interpreter

    pixels_rgb = pictures[4].pixels((SIDE, SIDE))
    network = open_interpreter((fitted.network.state / "decoder_standard.tflite").read_bytes())
    embedding = fitted.network.encoder.encode(pixels_rgb).embedding
    network.set_tensor(network.get_input_details()[0]["index"], embedding[None])
    network.invoke()
    redraw = network.get_tensor(network.get_output_details()[0]["index"])[0]
    difference = np.abs(cv2.GaussianBlur(pixels_rgb / 255 - redraw, (0, 0), 0.01 * SIDE)).mean(2)
    wanted = cv2.GaussianBlur(difference, (0, 0), 0.02 * SIDE)
    got = fitted.map(pictures[4], "decoder standard")
    # Three pixels of the picture to one of the network: their middles coincide.
    np.testing.assert_allclose(got[1::3, 1::3], wanted, atol=2e-3)


def test_grad_cam_covers_the_picture(fitted, pictures):
    drawn = fitted.map(pictures[4], "grad-cam")
    assert drawn.shape == (96, 96) and drawn.dtype == np.float32
    assert np.isfinite(drawn).all() and drawn.min() >= 0 and drawn.max() > 0
    with pytest.raises(KeyError):
        fitted.map(pictures[4], "patch")


def test_the_device_inspects_with_its_bundle(fitted, pictures, tmp_path):
    fitted.write_bundle(tmp_path / "bundle")
    out = tmp_path / "v.jsonl"
    argv = ["inspect", pictures[0].path.parent, "--bundle", tmp_path / "bundle", "--json", out]
    assert edge_app([str(arg) for arg in argv]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["score"] for line in lines] == pytest.approx(
        [fitted.scores(view)["lof"] for view in pictures], abs=1e-4
    )
    assert all((line["verdict"] == "NG") == (line["score"] > line["threshold"]) for line in lines)
    bundle = load_bundle(tmp_path / "bundle")
    manifest = bundle.manifest
    assert manifest["scorer"] == {"kind": "lof", "k": 5, "feature_scaling": "minmax"}
    assert manifest["threshold"]["images"] == GOOD and manifest["quality"] is not None
    assert manifest["encoder"]["embedding_layer"] == LAYER
    assert len(manifest["provenance"]["weights_sha256"]) == 64
    assert "--methods doc" in manifest["provenance"]["remake"][0]
    inspector = SeeingInspector(bundle, load_config().decision, "single")
    view = pictures[4]
    inspector.inspect(Frame(0, "spot", view.frame_bgr))
    drawn = inspector.heatmap(inspector.seen, "decoder", ColourScale(0.0, 1.0))
    np.testing.assert_allclose(drawn, fitted.map(view, "decoder mobile"), atol=1e-5)


def test_without_reference_or_with_too_few_pictures_it_is_refused(part, tmp_path):
    with pytest.raises(InputError, match="no reference set"):
        METHOD.fit(replace(part, reference=()), 0, tmp_path / "a", progress=False)
    with pytest.raises(InputError, match="19 good pictures, wanted 20"):
        METHOD.fit(replace(part, good=part.good[:19]), 0, tmp_path / "b", progress=False)
    with pytest.raises(InputError, match="0 good pictures, wanted 20"):
        METHOD.fit(replace(part, good=()), 0, tmp_path / "c", progress=False)


def test_stored_pictures_are_spread_and_none_is_stored_twice(part):
    twice = replace(part, good=(*part.good, part.good[3]))
    assert stored_rows(twice, (SIDE, SIDE), 1000).tolist() == list(range(GOOD))
    assert stored_rows(part, (SIDE, SIDE), 3).tolist() == [0, 12, 23]


def test_the_input_follows_the_pictures(part, tmp_path):
    assert input_size(part) == (96, 96)
    long = replace(part, alignment=replace(Alignment("pose"), aspect=2.75))
    assert input_size(long) == (64, 176)
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((28, 28, 3), np.uint8))
    small = replace(part, good=(View(tmp_path / "small.png", Aligners(Alignment("none"))),))
    assert input_size(small) == (64, 64)
