"""Our own default among the methods: the bundle of ``fit``, scored as ``evaluate`` scores it."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

pytest.importorskip("keras", reason="needs the tools extra")

from edge_app.align import Alignment  # noqa: E402
from edge_app.bundle import load_bundle  # noqa: E402
from edge_app.cli import main  # noqa: E402
from edge_app.config import load_config  # noqa: E402
from edge_app.errors import InputError  # noqa: E402
from edge_app.inspector import SeeingInspector  # noqa: E402
from tools.evaluate import judge  # noqa: E402
from tools.inspection_set import read_inspection_set  # noqa: E402
from tools.methods import Aligners, Part, View  # noqa: E402
from tools.methods.ours import LOG, Ours, fit_command  # noqa: E402


@pytest.fixture(scope="module")
def part(tmp_path_factory, still_frames, weights_file):
    root = tmp_path_factory.mktemp("part")
    chosen = {
        "train/good": still_frames["good"][0:84:9],
        "test/good": still_frames["good"][4:84:40],
        "test/bent": still_frames["bad"][::60][:2],
        "test/dark": [still_frames["good"][0] // 8],
    }
    for folder, frames in chosen.items():
        (root / folder).mkdir(parents=True)
        for index, frame in enumerate(frames):
            cv2.imwrite(str(root / folder / f"{index}.png"), frame)
    (root / "ground_truth" / "bent").mkdir(parents=True)
    mask = np.zeros(still_frames["bad"][0].shape[:2], np.uint8)
    mask[80:140, 120:200] = 255
    cv2.imwrite(str(root / "ground_truth" / "bent" / "0_mask.png"), mask)
    aligners = Aligners(Alignment("none"))
    good = tuple(View(path, aligners) for path in sorted((root / "train" / "good").iterdir()))
    return Part("nut", root, good, aligners.alignment, weights_file, ())


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return tmp_path_factory.mktemp("state") / "ours"


@pytest.fixture(scope="module")
def fitted(part, state):
    return Ours().fit(part, 3, state, progress=False)


@pytest.fixture(scope="module")
def views(part):
    """The test pictures, in `evaluate`'s order."""
    pictures = read_inspection_set(part.data_dir).test
    return [View(one.path, Aligners(part.alignment)) for one in pictures]


@pytest.mark.slow  # a whole fit, as tests/test_fit.py does one
def test_scores_and_maps_are_those_of_evaluate(fitted, part, state, views):
    bundle = load_bundle(state / "bundle")
    config = load_config()
    inspector = SeeingInspector(
        bundle, config.decision, "single", 1, heatmaps=False, quality=config.quality
    )
    judged = judge(inspector, read_inspection_set(part.data_dir), progress=False)
    assert {str(one.verdict) for one in judged} >= {"UNKNOWN"}  # the dark one, scored all the same
    assert [fitted.scores(view) for view in views] == [{"": one.score} for one in judged]
    assert fitted.maps == ("patch",)
    compared = 0
    for view, one in zip(views, judged, strict=True):
        if one.maps:
            np.testing.assert_array_equal(fitted.map(view, "patch"), one.maps["patch"])
            compared += 1
    assert compared == 3
    with pytest.raises(KeyError):
        fitted.map(views[0], "decoder")


@pytest.mark.slow  # a whole fit, as tests/test_fit.py does one
def test_it_is_fits_own_default_without_decoder(fitted, part, state):
    manifest = load_bundle(state / "bundle").manifest
    assert manifest["decoder"] is None and manifest["part"] == "nut"
    assert manifest["alignment"]["recipe"] == fitted.notes["alignment"] == "none"
    assert "--seed 3" in manifest["made"]["command"]
    # Chosen among trials, as by `fit` without --scorer.
    assert len(manifest["scorer"]["trials"]) > 1
    assert "bundle: " in (state / LOG).read_text()
    files = manifest["files"]
    needed = files["encoder.tflite"]["bytes"] + files["reference.npz"]["bytes"]
    assert fitted.size_bytes == needed
    # Four bytes each, but for names and file heads; in the file the four numbers of each channel's
    # batch norm are one.
    assert 0.9 * needed / 4 < fitted.parameters < 1.5 * needed / 4


def test_alignment_is_told_only_where_there_is_none(part, tmp_path):
    assert fit_command(part, 0, tmp_path)[-2:] == ["--align", "none"]
    assert "--no-decoder" in fit_command(part, 0, tmp_path)
    aligned = replace(part, alignment=Alignment("pose"))
    assert "--align" not in fit_command(aligned, 0, tmp_path)
    assert fit_command(aligned, 0, tmp_path) == fit_command(part, 0, tmp_path)[:-2]


@pytest.mark.slow  # a whole fit, as tests/test_fit.py does one
def test_what_was_fitted_is_loaded(fitted, part, state, views):
    # Other pictures, or no weights, would be refused if they were looked at again.
    other = replace(part, good=part.good[1:], weights=state / "gone")
    again = Ours().fit(other, 3, state, progress=False)
    assert again.scores(views[0]) == fitted.scores(views[0])
    assert (again.parameters, again.notes) == (fitted.parameters, fitted.notes)


def test_pictures_that_are_not_the_folders_are_refused(part, tmp_path):
    with pytest.raises(InputError, match="its 10 good pictures are not the 9 of the part nut"):
        Ours().fit(replace(part, good=part.good[1:]), 0, tmp_path / "state", progress=False)
    assert not (tmp_path / "state").exists()


@pytest.mark.slow  # a whole fit, as tests/test_fit.py does one
def test_the_bundle_scores_alike_under_inspect(fitted, views, tmp_path):
    fitted.write_bundle(tmp_path / "b")
    assert load_bundle(tmp_path / "b").sha256 == fitted.notes["bundle_sha256"]
    out = tmp_path / "v.jsonl"
    argv = ["inspect", views[0].path.parent, "--bundle", tmp_path / "b", "--json", out]
    assert main([str(arg) for arg in argv]) == 0
    found = [json.loads(line)["score"] for line in out.read_text().splitlines()]
    wanted = [fitted.scores(view)[""] for view in views[: len(found)]]
    assert len(found) == 2
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    with pytest.raises(InputError, match="exists already"):
        fitted.write_bundle(tmp_path / "b")
