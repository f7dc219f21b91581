"""``evaluate``: each picture through the device's own code, once; its report asked for in time."""

from __future__ import annotations

import json
import os
import shutil

import cv2
import numpy as np
import pytest

pytest.importorskip("tqdm", reason="needs the tools extra")

from edge_app.config import load_config  # noqa: E402
from edge_app.inspector import Inspector  # noqa: E402
from tools.__main__ import main as tools  # noqa: E402
from tools.evaluate import SeeingInspector, figures_of, judge  # noqa: E402
from tools.inspection_set import read_inspection_set  # noqa: E402


class CountingEncoder:
    """An encoder that counts its calls."""

    def __init__(self, encoder) -> None:
        self._encoder = encoder
        self.calls = 0

    def encode(self, pixels_rgb):
        self.calls += 1
        return self._encoder.encode(pixels_rgb)


@pytest.fixture(scope="module")
def parts(tmp_path_factory, still_frames):
    """Good, defective and missing parts of the clip; one defect with a mask."""
    root = tmp_path_factory.mktemp("parts")
    chosen = {
        "train/good": still_frames["good"][0:84:28],
        "test/good": still_frames["good"][4:84:20],
        "test/bent": still_frames["bad"][::20][:4],
        "test/gone": still_frames["empty"][:2],
    }
    for folder, frames in chosen.items():
        (root / folder).mkdir(parents=True)
        for index, frame in enumerate(frames):
            cv2.imwrite(str(root / folder / f"{index}.png"), frame)
    mask = np.zeros(still_frames["bad"][0].shape[:2], np.uint8)
    mask[80:140, 120:200] = 255
    (root / "ground_truth" / "bent").mkdir(parents=True)
    cv2.imwrite(str(root / "ground_truth" / "bent" / "0_mask.png"), mask)
    return root


def judged_by(kind, bundle, parts):
    inspector = kind(bundle, load_config().decision, "single", 1, heatmaps=False)
    inspector.encoder = CountingEncoder(inspector.encoder)
    judged = judge(inspector, read_inspection_set(parts), progress=False)
    return inspector, judged


def test_each_picture_is_encoded_once(parts, nut_bundle):
    seeing, judged = judged_by(SeeingInspector, nut_bundle, parts)
    assert len(judged) == seeing.encoder.calls == 9
    plain, again = judged_by(Inspector, nut_bundle, parts)
    stopped = sum(one.loop_ms is None for one in again)
    # What the device stops before the encoder is encoded for its score only.
    assert stopped >= 2 and plain.encoder.calls == 18 - stopped
    for one, other in zip(judged, again, strict=True):
        assert (one.picture, one.verdict, one.score) == (other.picture, other.verdict, other.score)
        assert np.array_equal(one.embedding, other.embedding)
        assert one.maps.keys() == other.maps.keys()
        assert all(np.array_equal(one.maps[kind], other.maps[kind]) for kind in one.maps)


def test_what_the_device_does_not_judge_has_a_score_of_its_own(parts, nut_bundle):
    _, judged = judged_by(SeeingInspector, nut_bundle, parts)
    gone = [one for one in judged if one.picture.defect == "gone"]
    assert [one.verdict for one in gone] == ["EMPTY", "EMPTY"]
    good = [one.score for one in judged if not one.picture.is_anomaly]
    # Not that of the picture before, which was another one's.
    assert gone[0].score != judged[judged.index(gone[0]) - 1].score
    assert min(one.score for one in gone) > max(good)


def test_maps_are_kept_where_a_pixel_figure_counts_them(parts, nut_bundle):
    _, judged = judged_by(SeeingInspector, nut_bundle, parts)
    kept = {(one.picture.defect, one.picture.path.stem) for one in judged if one.maps}
    assert kept == {("bent", "0"), *(("good", str(index)) for index in range(4))}
    (masked,) = [one for one in judged if one.mask is not None and one.mask.any()]
    assert masked.mask.sum() == 60 * 80


def test_the_figures_are_those_of_the_json(parts, nut_bundle, nut_path, tmp_path, capsys):
    out = tmp_path / "figures.json"
    argv = ["evaluate", "--bundle", nut_path, "--data", parts, "--json", out]
    assert tools([str(arg) for arg in argv]) == 0
    written = json.loads(out.read_text())
    config = load_config()
    inspector = Inspector(
        nut_bundle, config.decision, "single", 1, heatmaps=False, quality=config.quality
    )
    whole = read_inspection_set(parts)
    judged = judge(inspector, whole, False)
    wanted = json.loads(json.dumps(figures_of(inspector, whole, judged, False)))
    for figures in (written, wanted):
        assert figures.pop("latency_ms")["p50"] > 0
    assert written == wanted
    assert "image AUROC" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_what_cannot_be_written_is_said_before_the_work(parts, nut_path, tmp_path, capsys, option):
    (tmp_path / "file").write_text("")
    argv = ["evaluate", "--bundle", nut_path, "--data", parts, option, tmp_path / "file" / "out"]
    assert tools([str(arg) for arg in argv]) == 2
    said = capsys.readouterr()
    assert "cannot be written" in said.err and said.out == ""


def test_a_picture_that_the_device_refuses_is_unknown(parts, nut_path, tmp_path, capsys):
    root = tmp_path / "s"
    shutil.copytree(parts, root)
    bent = root / "test" / "bent" / "2.png"
    cv2.imwrite(str(bent), cv2.GaussianBlur(cv2.imread(str(bent)), (0, 0), 4))
    argv = ["evaluate", "--bundle", nut_path, "--data", root, "--json", tmp_path / "figures.json"]
    argv += ["--report", tmp_path / "page.html"]
    assert tools([str(arg) for arg in argv]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["images"]["test_defective"] == {"images": 5, "NG": 2, "EMPTY": 2, "UNKNOWN": 1}
    assert "quality: blurred" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("kept", ["good", "bent"])
def test_one_kind_of_picture_alone_is_refused_before_the_work(
    parts, nut_path, tmp_path, capsys, kept
):
    shutil.copytree(parts / "train", tmp_path / "s" / "train")
    shutil.copytree(parts / "test" / kept, tmp_path / "s" / "test" / kept)
    out = tmp_path / "new" / "figures.json"
    argv = ["evaluate", "--bundle", nut_path, "--data", tmp_path / "s", "--json", out]
    assert tools([str(arg) for arg in argv]) == 2
    said = capsys.readouterr()
    counts = "4 good and 0 defective" if kept == "good" else "0 good and 3 defective"
    assert f"s: the test split has {counts} pictures, wanted at least one of each" in said.err
    # Nothing was begun.
    assert said.out == "" and not out.parent.exists()


def test_figures_and_page_in_one_file_are_refused(parts, nut_path, tmp_path, capsys):
    argv = ["evaluate", "--bundle", nut_path, "--data", parts, "--json", tmp_path / "out"]
    argv += ["--report", tmp_path / "." / "new" / ".." / "out"]
    assert tools([str(arg) for arg in argv]) == 2
    said = capsys.readouterr()
    assert "got for both --json and --report" in said.err and said.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_sentence(parts, nut_path, capsys):
    argv = ["evaluate", "--bundle", nut_path, "--data", parts, "--json", "/dev/full"]
    assert tools([str(arg) for arg in argv]) == 2
    said = capsys.readouterr().err
    assert "/dev/full: cannot be written: No space left on device" in said


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
def test_a_name_that_is_not_utf8_is_written_with_escapes(parts, nut_path, tmp_path, capsys):
    """As a ZIP archive from a computer with Latin-1 leaves it."""
    root = os.path.join(tmp_path, os.fsdecode(b"tr\xe4ger"))
    try:
        shutil.copytree(parts, root)
        os.rename(f"{root}/test/bent", os.fsdecode(os.fsencode(root) + b"/test/n\xe4sse"))
    except OSError:
        pytest.skip("the file system keeps no such names")
    argv = ["evaluate", "--bundle", nut_path, "--data", root]
    argv += ["--json", tmp_path / "figures.json", "--report", tmp_path / "page.html"]
    assert tools([str(arg) for arg in argv]) == 0
    said = capsys.readouterr().out.encode()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["data"] == "tr\\xe4ger" and list(figures["per_defect"]) == ["gone", "n\\xe4sse"]
    assert figures["per_defect"]["n\\xe4sse"]["images"] == 3 and b"n\\xe4sse" in said
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<bdi>n\\xe4sse</bdi></td><td>3</td>" in page
