"""The workstation's road from pictures to a measured bundle, walked on a small rendered set."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="fit needs the tools extra")

from edge_app.bundle import load_bundle  # noqa: E402
from edge_app.cli import main as edge_app  # noqa: E402
from edge_app.enrol import Encodings  # noqa: E402
from edge_app.inspector import build_encoder  # noqa: E402
from edge_app.learnt_pictures import unpack  # noqa: E402
from tools.__main__ import main as tools  # noqa: E402

SIZE = 64


@pytest.fixture(scope="module")
def nuts(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "nuts"
    argv = ["--train", "24", "--test-good", "4", "--per-defect", "2", "--empty", "4"]
    assert tools(["render", "--out", str(out), *argv, "--size", "160x120", "--no-clip"]) == 0
    return out


def fit_argv(nuts, weights_file, out, *more):
    argv = ["fit", "--data", nuts, "--weights", weights_file, "--out", out, "--size", SIZE]
    return [str(arg) for arg in (*argv, *more)]


@pytest.fixture(scope="module")
def fitted(nuts, weights_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "nut"
    assert tools(fit_argv(nuts, weights_file, out, "--epochs", 3, "--activate")) == 0
    return out


def test_a_fitted_bundle_is_whole(fitted):
    bundle = load_bundle(fitted.parent / "current")
    manifest = bundle.manifest
    assert manifest["part"] == "nut" and bundle.size == (SIZE, SIZE)
    assert manifest["threshold"]["images"] == 24
    assert manifest["scorer"]["kind"] in ("patches", "lof", "knn")
    tried = manifest["scorer"]["trials"]
    assert len(tried) > 10 and all(0 <= trial["drawn_auroc"] <= 1 for trial in tried)
    assert manifest["alignment"]["recipe"] in ("none", "pose")
    assert (manifest["presence"] is not None) == (manifest["alignment"]["recipe"] == "none")
    scale = manifest["decoder"]["colour_scale"]
    assert 0 < scale["low"] < scale["high"]
    assert manifest["decoder"]["kind"] == "mobile" and manifest["decoder"]["source"] == "patches"
    assert "fit --data" in manifest["provenance"]["remake"][-1]
    assert len(manifest["provenance"]["weights_sha256"]) == 64


def test_the_device_inspects_with_it(fitted, nuts, tmp_path):
    out = tmp_path / "v.jsonl"
    argv = ["inspect", nuts / "test" / "missing_nut", "--bundle", fitted, "--json", out]
    assert edge_app([str(arg) for arg in argv]) == 0
    assert {json.loads(line)["verdict"] for line in out.read_text().splitlines()} == {"EMPTY"}


def test_the_same_seed_gives_the_same_bundle(fitted, nuts, weights_file, tmp_path):
    again = tmp_path / "again"
    assert tools(fit_argv(nuts, weights_file, again, "--epochs", 3)) == 0
    one, other = load_bundle(fitted), load_bundle(again)
    assert one.encoder == other.encoder
    for name, array in one.reference.items():
        np.testing.assert_array_equal(array, other.reference[name], err_msg=name)
    assert one.manifest["threshold"] == other.manifest["threshold"]
    assert one.manifest["decoder"]["colour_scale"] == other.manifest["decoder"]["colour_scale"]


def test_evaluate_writes_every_figure(fitted, nuts, tmp_path, capsys):
    out = tmp_path / "figures.json"
    argv = ["evaluate", "--bundle", fitted, "--data", nuts, "--json", out]
    assert tools([str(arg) for arg in argv]) == 0
    figures = json.loads(out.read_text())
    assert set(figures) >= {
        "image_auroc", "pixel_auroc", "au_pro", "per_defect", "trivial", "threshold",
        "false_reject_rate", "miss_rate", "latency_ms", "images", "bundle_sha256", "heatmaps",
    }  # fmt: skip
    assert figures["bundle_sha256"] == load_bundle(fitted).sha256
    assert set(figures["heatmaps"]) == {"patch", "decoder"}
    assert figures["heatmaps"]["patch"] == {
        "pixel_auroc": figures["pixel_auroc"], "au_pro": figures["au_pro"]
    }  # fmt: skip
    assert set(figures["per_defect"]) == {
        "chipped_corner", "crack", "missing_nut", "scratch", "stain", "wrong_size", "wrong_thread"
    }  # fmt: skip
    assert figures["images"]["test_defective"]["images"] == 14
    # An empty station has a score and counts as found, though no defect was seen on a part.
    assert figures["per_defect"]["missing_nut"]["image_auroc"] == 1.0
    assert figures["images"]["test_defective"]["EMPTY"] == 2
    assert all(0 <= figures[name] <= 1 for name in ("image_auroc", "pixel_auroc", "au_pro"))
    assert set(figures["latency_ms"]) == {"p50", "p95"}
    assert "image AUROC" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [pytest.param("float16", marks=pytest.mark.slow), "int8"])
def test_other_dtypes_judge_like_float32(fitted, nuts, weights_file, tmp_path, dtype):
    out = tmp_path / dtype
    assert tools(fit_argv(nuts, weights_file, out, "--dtype", dtype, "--no-decoder")) == 0
    whole, small = load_bundle(fitted), load_bundle(out)
    assert len(small.encoder) < 0.7 * len(whole.encoder)
    assert small.manifest["encoder"]["dtype"] == dtype and small.decoder is None
    pixels = [picture.pixels_rgb for picture in unpack(whole.learnt(), "learnt.npz")]
    one, other = (Encodings(pixels, build_encoder(b, 1)).embeddings for b in (whole, small))
    cosine = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert cosine.min() > (0.9999 if dtype == "float16" else 0.95)


def test_encoder_only_needs_no_pictures_and_enrols(weights_file, nuts, tmp_path, capsys):
    base = tmp_path / "base"
    argv = ["fit", "--encoder-only", "--weights", weights_file, "--size", SIZE, "--out", base]
    assert tools([str(arg) for arg in argv]) == 0
    assert load_bundle(base).reference is None
    out = tmp_path / "enrolled"
    argv = ["enroll", nuts / "train" / "good", "--bundle", base, "--out", out]
    assert edge_app([str(arg) for arg in argv]) == 0
    bundle = load_bundle(out)
    assert bundle.manifest["parent_sha256"] == load_bundle(base).sha256
    assert math.isfinite(bundle.manifest["threshold"]["value"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--data": "{tmp}/nowhere"}, "no such folder"),
        ({"--weights": "{tmp}/nowhere.h5"}, "no such weights file"),
        ({"--weights": "{tmp}/text.h5"}, "not a Keras weights file"),
        ({"--out": "{tmp}/text.h5"}, "exists already"),
        ({"--embedding-layer": "block_99"}, "nearest is"),
    ],
)
def test_bad_input(capsys, nuts, weights_file, tmp_path, change, says):
    (tmp_path / "text.h5").write_text("text")
    options = {"--data": nuts, "--weights": weights_file, "--out": tmp_path / "b", "--size": SIZE}
    options |= {key: str(value).format(tmp=tmp_path) for key, value in change.items()}
    argv = [str(word) for pair in options.items() for word in pair]
    assert tools(["fit", *argv]) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["text.h5"]


def test_too_few_good_images_say_how_many(capsys, nuts, weights_file, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted((nuts / "train" / "good").iterdir())[:5]:
        (few / path.name).write_bytes(path.read_bytes())
    argv = fit_argv(few, weights_file, tmp_path / "b", "--no-decoder", "--scorer", "lof")
    assert tools(argv) == 2
    assert "5 good images are too few for 5 neighbours" in capsys.readouterr().err


def test_help_of_every_command_is_instant_and_has_an_example(capsys):
    from tools.__main__ import COMMANDS

    for command in COMMANDS:
        with pytest.raises(SystemExit) as stopped:
            tools([command, "--help"])
        assert stopped.value.code == 0
        assert "example" in capsys.readouterr().out, command
