"""Rendered nuts: repeatable, masks true, defects visible, the folder and the clip as promised."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_app.errors import InputError
from tools import nut, render
from tools.metal_part import DEFECTS, FINISHES, KINDS, Part
from tools.shading import Pose

SMALL = "160x120"


def options(out: Path, *extra: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    render.configure(parser)
    return parser.parse_args(["--out", str(out), "--size", SMALL, *extra])


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("render") / "nuts"
    counts = ["--train", "5", "--test-good", "3", "--per-defect", "2", "--empty", "2"]
    assert render.run(options(out, *counts, "--clip-parts", "5", "--seed", "4")) == 0
    return out


@pytest.fixture(scope="module")
def station() -> nut.Station:
    return nut.make_station(np.random.default_rng(0))


def test_layout_and_counts(rendered):
    pictures = [name for name in files(rendered) if name.endswith(".png")]
    count = {}
    for name in pictures:
        folder = str(Path(name).parent)
        count[folder] = count.get(folder, 0) + 1
    expected = {"train/good": 5, "train/empty": 2, "test/good": 3}
    expected |= {f"test/{defect}": 2 for defect in DEFECTS}
    expected |= {f"ground_truth/{defect}": 2 for defect in DEFECTS}
    assert count == expected
    for name in pictures:
        picture = read(rendered / name)
        assert picture.dtype == np.uint8
        if name.startswith("ground_truth"):
            assert picture.shape == (120, 160)
            assert set(np.unique(picture)) == {0, 255}
            assert (rendered / name.replace("ground_truth", "test").replace("_mask", "")).is_file()
        else:
            assert picture.shape == (120, 160, 3)


def test_same_seed_same_bytes_and_another_seed_others(tmp_path):
    counts = ["--train", "2", "--test-good", "1", "--per-defect", "1", "--empty", "1"]
    for name, seed in (("a", "7"), ("b", "7"), ("c", "8")):
        render.run(options(tmp_path / name, *counts, "--clip-parts", "1", "--seed", seed))
    first, again, other = (files(tmp_path / name) for name in "abc")
    assert first == again
    pictures = [name for name in first if name.startswith(("train", "test"))]
    assert all(first[name] != other[name] for name in pictures)


def test_one_count_does_not_change_another_folder(tmp_path):
    for name, train in (("a", "1"), ("b", "3")):
        counts = ["--train", train, "--test-good", "2", "--per-defect", "0", "--empty", "0"]
        render.run(options(tmp_path / name, *counts, "--no-clip", "--no-codec"))
    few, many = files(tmp_path / "a"), files(tmp_path / "b")
    assert few["test/good/001.png"] == many["test/good/001.png"]
    assert few["train/good/000.png"] == many["train/good/000.png"]
    assert not (tmp_path / "a" / "clip.mp4").exists()


@pytest.mark.parametrize("defect", [d for d in DEFECTS if d != "missing_nut"])
def test_mask_covers_what_differs_and_every_defect_is_visible(station, defect):
    rng = np.random.default_rng(11)
    good = Part()
    for _ in range(2):
        pose, look = nut.random_pose(rng, station), nut.random_appearance(rng, station)
        state = rng.bit_generator.state
        light, mask = nut.draw_view(rng, station, defect, pose=pose, appearance=look)
        rng.bit_generator.state = state
        clean, _ = nut.draw_view(rng, station, None, pose=pose, appearance=look)
        step = cv2.absdiff(nut.expose(light, None), nut.expose(clean, None)).max(axis=2).astype(int)
        inside = mask > 0
        assert inside.sum() >= 20
        assert step[inside].mean() >= 12
        # nothing plain to see lies outside, and nothing marked lies far from a difference
        assert (step[~inside] > 25).sum() == 0
        far = cv2.dilate((step >= 5).astype(np.uint8), np.ones((5, 5), np.uint8)) == 0
        assert not (inside & far).any()
        if defect in ("crack", "scratch", "stain", "chipped_corner", "wrong_thread"):
            _, outline = nut.draw_light(station, good, pose, look)
            assert inside.sum() < 0.5 * outline.sum()


def test_missing_nut_is_the_empty_station_with_the_place_of_the_nut_marked(station):
    rng = np.random.default_rng(1)
    pose, look = nut.random_pose(rng, station), nut.random_appearance(rng, station)
    light, mask = nut.draw_view(rng, station, "missing_nut", pose=pose, appearance=look)
    empty, none = nut.draw_view(rng, station, part_present=False, pose=pose, appearance=look)
    assert np.array_equal(light, empty)
    assert not none.any()
    _, outline = nut.draw_light(station, Part(), pose, look)
    assert np.array_equal(mask > 0, outline > 0.5)


def test_the_same_part_at_rest_differs_by_noise_only(station):
    rng = np.random.default_rng(2)
    pose, look = nut.random_pose(rng, station), nut.random_appearance(rng, station)
    views = [nut.draw_view(rng, station, pose=pose, appearance=look) for _ in range(2)]
    views.append(nut.draw_view(rng, station))
    one, two, another = (nut.expose(light, rng) for light, _ in views)
    noise = cv2.absdiff(one, two)
    assert 0 < noise.mean() < 3
    assert cv2.absdiff(one, another).mean() > 2 * noise.mean()


def test_unknown_defect_is_refused(station):
    with pytest.raises(ValueError, match="chipped_corner"):
        nut.draw_view(np.random.default_rng(0), station, "bent")


def test_part_outside_the_picture_leaves_the_empty_station(station):
    look = nut.random_appearance(np.random.default_rng(0), station)
    light, outline = nut.draw_light(station, Part(), Pose(x_px=900.0), look)
    empty, _ = nut.draw_light(station, None, Pose(), look)
    assert not outline.any()
    assert np.allclose(light, empty, atol=1e-3)


def test_clip_agrees_with_its_truth(rendered):
    truth = json.loads((rendered / "clip.json").read_text())
    video = cv2.VideoCapture(str(rendered / "clip.mp4"))
    frames = []
    while True:
        ok, frame = video.read()
        if not ok:
            break
        frames.append(frame)
    assert len(frames) == truth["frames"]
    assert frames[0].shape == (truth["height"], truth["width"], 3)
    assert [part["part"] for part in truth["parts"]] == [1, 2, 3, 4, 5]
    defects = [part["defect"] for part in truth["parts"]]
    assert sum(defect is not None for defect in defects) == 2
    assert "missing_nut" not in defects
    end = 0
    empty = read(rendered / "train/empty/000.png").astype(int)
    middle = np.s_[20:100, 30:130]
    for part in truth["parts"]:
        assert end < part["first_frame"] <= part["still_first_frame"]
        assert part["still_last_frame"] - part["still_first_frame"] == 11
        end = part["last_frame"]
        still = frames[part["still_last_frame"]].astype(int)
        gap = frames[part["first_frame"] - 1].astype(int)
        assert np.abs(still - empty)[middle].mean() > 25
        assert np.abs(gap - empty)[middle].mean() < 10


def test_good_parts_of_the_clip_look_like_the_train_pictures(rendered):
    """The codec's softening would make each part of the clip odd if training had not seen it."""

    def sharpness(picture: np.ndarray) -> float:
        return float(cv2.Laplacian(picture[20:100, 30:130, 1], cv2.CV_32F).std())

    train = [sharpness(read(path)) for path in (rendered / "train/good").iterdir()]
    truth = json.loads((rendered / "clip.json").read_text())
    video = cv2.VideoCapture(str(rendered / "clip.mp4"))
    still = {part["still_last_frame"] for part in truth["parts"] if part["defect"] is None}
    clip = [
        sharpness(video.read()[1]) if number in still else video.grab() and None
        for number in range(truth["frames"])
    ]
    clip = [value for value in clip if value is not None]
    assert len(clip) == 3
    assert 0.75 < np.mean(clip) / np.mean(train) < 1.33


def test_classes_writes_a_folder_for_each_kind_and_finish(tmp_path):
    render.run(options(tmp_path / "classes", "--classes", "--per-class", "1", "--format", "jpeg"))
    names = {path.name for path in (tmp_path / "classes").iterdir()}
    assert names == {f"{kind}_{finish}" for kind in KINDS for finish in FINISHES}
    pictures = [cv2.imread(str(path)) for path in (tmp_path / "classes").rglob("*.jpg")]
    assert len(pictures) == len(names)
    assert all(picture.shape == (120, 160, 3) and picture.std() > 8 for picture in pictures)


@pytest.mark.parametrize(
    "extra",
    [
        ["--size", "320"],
        ["--size", "0x240"],
        ["--size=-4x240"],
        ["--size", "321x240"],
        ["--size", "widextall"],
        ["--train", "-1"],
        ["--per-defect", "-2"],
        ["--clip-parts", "-1"],
        ["--fps", "0"],
        ["--fps", "nan"],
        ["--rotation", "-5"],
        ["--rotation", "181"],
    ],
)
def test_bad_options_are_refused_in_one_sentence(tmp_path, extra):
    with pytest.raises(InputError, match=r"^--[a-z-]+: .*want [^\n]*\.$"):
        render.run(options(tmp_path / "out", *extra))
    assert not (tmp_path / "out").exists()


def test_folder_that_is_not_empty_or_not_a_folder_is_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        render.run(options(tmp_path / "full"))
    with pytest.raises(InputError, match="cannot make the folder"):
        render.run(options(tmp_path / "full" / "note.txt"))
    with pytest.raises(InputError, match="cannot make the folder"):
        render.run(options(tmp_path / "full" / "note.txt" / "below"))
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["note.txt"]
