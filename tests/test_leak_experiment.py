"""The leak experiment: pictures stored as they should be, the table right, nothing done twice."""

from __future__ import annotations

import argparse
import json
import math

import cv2
import numpy as np
import pytest

from edge_app.errors import InputError
from tools import leak_experiment as leak
from tools.inspection_set import read_inspection_set


def write_set(root, train=20, side=96, grey=False):
    """Noisy discs: what a camera gives, with detail for JPEG to take away."""
    rng = np.random.default_rng(0)
    for folder, count in (("train/good", train), ("test/good", 6), ("test/hole", 6)):
        (root / folder).mkdir(parents=True)
        for index in range(count):
            picture = rng.normal(80, 12, (side, side, 1 if grey else 3))
            cv2.circle(canvas := np.zeros((side, side), np.uint8), (side // 2, 40), 25, 90, -1)
            picture += canvas[..., None]
            if folder == "test/hole":
                picture[35:50, 35:50] = 20
            picture = np.clip(picture, 0, 255).astype(np.uint8)
            cv2.imwrite(str(root / folder / f"{index}.png"), picture)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("leak") / "discs")


def arguments(data, out, *more):
    parser = argparse.ArgumentParser()
    leak.configure(parser)
    line = ["--data", data, "--json", out, "--methods", "dadgt", "--views", "small"]
    line += ["--augmentations", "without-jpeg", "--seeds", 0, "--steps", 2, *more]
    return parser.parse_args([str(word) for word in line])


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    pytest.importorskip("keras", reason="training needs the tools extra")
    out = tmp_path_factory.mktemp("figures") / "leak.json"
    assert leak.run(arguments(data, out)) == 0
    return out


def test_a_run_holds_every_condition_and_what_stands_beside(finished):
    figures = json.loads(finished.read_text())
    assert figures["settings"]["data"] == "discs" and figures["settings"]["test_good"] == 6
    on_jpeg, on_png = figures["trainings"]
    assert (on_jpeg["trained_on"], on_png["trained_on"]) == ("jpeg", "png")
    assert set(on_jpeg["auroc"]) == {"dirichlet", "softmax"}
    assert set(on_jpeg["auroc"]["dirichlet"]) == {"mixed", "jpeg", leak.FORMAT_ALONE}
    assert set(on_png["auroc"]["dirichlet"]) == {"png"}
    stored = figures["stored"]["small"]
    # The size of the file alone tells the mixed folder's classes apart, and check-data says so.
    assert stored["mixed"]["trivial"]["bytes_per_pixel"] == 1.0
    formats = {name: row["check_data"]["format"] for name, row in stored.items()}
    assert "JPEG" in formats["mixed"] and formats["jpeg"] is formats["png"] is None
    text = "\n".join(leak.table(figures))
    assert "check-data, mixed: format flagged: " in text
    assert "check-data, png: format not flagged: " in text


def test_resume_trains_nothing_twice_and_only_what_is_missing(data, finished, tmp_path, capsys):
    figures = json.loads(finished.read_text())
    for row in figures["trainings"]:
        row["seconds"] = -1.0
        row["auroc"] = {"dirichlet": {name: 0.5 for name in row["auroc"]["dirichlet"]}}
    out = tmp_path / "half.json"
    out.write_text(json.dumps(figures))
    assert leak.run(arguments(data, out, "--resume")) == 0
    assert json.loads(out.read_text()) == figures
    assert "0.500" in capsys.readouterr().out

    dropped = figures["trainings"].pop()
    out.write_text(json.dumps(figures))
    assert leak.run(arguments(data, out, "--resume")) == 0
    kept, made = json.loads(out.read_text())["trainings"]
    assert kept == figures["trainings"][0]
    assert made["seconds"] > 0 and made["trained_on"] == dropped["trained_on"] == "png"


def test_a_file_is_neither_overwritten_nor_mixed_with_other_settings(data, tmp_path):
    out = tmp_path / "there.json"
    settings = leak._settings(arguments(data, out), read_inspection_set(data))
    out.write_text(json.dumps({"settings": settings, "stored": {}, "trainings": []}))
    before = out.read_bytes()
    with pytest.raises(InputError, match="exists already; add --resume"):
        leak.run(arguments(data, out))
    with pytest.raises(InputError, match="made with quality 75, now it is 50"):
        leak.run(arguments(data, out, "--resume", "--quality", 50))
    assert out.read_bytes() == before
    out.write_text("{}")
    with pytest.raises(InputError, match="holds no figures of leak-experiment"):
        leak.run(arguments(data, out, "--resume"))


def test_a_jpeg_is_refused_whatever_its_name(tmp_path):
    root = write_set(tmp_path / "discs")
    picture = cv2.imread(str(root / "test/good/3.png"))
    _, jpeg = cv2.imencode(".jpg", picture)
    (root / "test/good/3.png").write_bytes(jpeg.tobytes())
    out = tmp_path / "leak.json"
    with pytest.raises(InputError, match=r"1 of 32 .*3\.png, is JPEG\); .*lossless originals"):
        leak.run(arguments(root, out))
    assert not out.exists()


def test_a_test_split_without_defects_is_refused(tmp_path):
    root = write_set(tmp_path / "discs")
    (root / "test" / "hole").rename(tmp_path / "hole")
    with pytest.raises(InputError, match="6 good and 0 defective"):
        leak.run(arguments(root, tmp_path / "leak.json"))


def test_too_few_good_pictures_are_refused_at_once(tmp_path):
    root = write_set(tmp_path / "discs", train=19)
    with pytest.raises(InputError, match="has 19 good pictures"):
        leak.run(arguments(root, tmp_path / "leak.json"))
    assert not (tmp_path / "leak.json").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--quality", 0], "--quality 0: wanted 1 to 100"),
        (["--methods", "doc"], "--weights: is missing"),
        (["--methods", "doc", "--weights", "w"], "--reference-data: is missing"),
    ],
)
def test_arguments_that_cannot_be_used(data, tmp_path, more, words):
    with pytest.raises(InputError, match=words):
        leak.run(arguments(data, tmp_path / "leak.json", *more))


@pytest.mark.parametrize("view", leak.VIEWS)
def test_png_changes_nothing_and_jpeg_does(view):
    frame = np.random.default_rng(1).integers(0, 256, (96, 128, 3), np.uint8)
    png = leak.seen(frame, view, None)
    assert png.shape == (64, 64, 3) and png.dtype == np.uint8
    if view == "crop":
        assert np.array_equal(png, frame[16:80, 32:96, ::-1])
    assert not np.array_equal(png, leak.seen(frame, view, 75))


def test_reducing_takes_most_of_the_artefacts_away():
    rng = np.random.default_rng(2)
    frame = np.clip(rng.normal(120, 25, (512, 512, 3)), 0, 255).astype(np.uint8)

    def artefacts(view):
        png, jpeg = (leak.seen(frame, view, quality).astype(float) for quality in (None, 75))
        return np.sqrt(np.mean((png - jpeg) ** 2))

    assert artefacts("whole") < artefacts("small") / 2
    assert artefacts("whole") < artefacts("crop") / 2


def test_a_window_larger_than_the_picture():
    with pytest.raises(InputError, match="50 x 80 pixels, too small for a window of 64"):
        leak.seen(np.zeros((80, 50, 3), np.uint8), "crop", None)


def test_colours_stay_in_their_places():
    frame = np.zeros((64, 64, 3), np.uint8)
    frame[...] = (30, 100, 200)
    for view in leak.VIEWS:
        for quality in (None, 90):
            assert np.allclose(leak.seen(frame, view, quality)[32, 32], (200, 100, 30), atol=4)


@pytest.mark.parametrize("storage", ["full", "small"])
@pytest.mark.parametrize("grey", [False, True])
def test_the_folder_of_a_condition_holds_the_formats_it_says(tmp_path, storage, grey):
    originals = read_inspection_set(write_set(tmp_path / "discs", train=3, grey=grey))
    leak.write_folder(originals, "mixed", storage, 75, tmp_path / "mixed")
    written = read_inspection_set(tmp_path / "mixed")
    formats = {
        folder: {path.suffix for path in paths}
        for folder, paths in (
            ("train", written.train_good),
            ("good", [one.path for one in written.test if not one.is_anomaly]),
            ("bad", [one.path for one in written.test if one.is_anomaly]),
        )
    }
    assert formats == {"train": {".jpg"}, "good": {".jpg"}, "bad": {".png"}}
    side = 96 if storage == "full" else leak.SIZE_PX
    for path in (written.train_good[0], written.test[-1].path):
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        # The formats must not differ in what else a file may tell: colour mode and size.
        assert picture.shape == ((side, side) if grey else (side, side, 3))
    signature = written.train_good[0].read_bytes()[:3], written.test[-1].path.read_bytes()[:4]
    assert signature == (b"\xff\xd8\xff", b"\x89PNG")


def test_the_first_seed_of_all_comes_before_the_second_of_any():
    plan = leak.planned(("doc", "dadgt"), ("small",), leak.AUGMENTATIONS, (0, 1, 0))
    assert len(plan) == 16 and [one.seed for one in plan] == [0] * 8 + [1] * 8
    assert len(set(plan)) == 16


def test_what_is_finished_is_left_out():
    plan = leak.planned(("dadgt",), ("small",), ("with-jpeg",), (0, 1))
    done = [{**vars(plan[1]), "auroc": {}, "seconds": 3.0}]
    assert leak.remaining(plan, done) == [plan[0], plan[2], plan[3]]


def test_conditions_of_known_scores():
    scores = {
        ("good", "jpeg"): np.array([1.0, 2.0]),
        ("good", "png"): np.array([1.5, 3.0]),
        ("bad", "jpeg"): np.array([1.5, 2.5]),
        ("bad", "png"): np.array([3.0, 4.0]),
    }
    assert leak.aurocs("jpeg", scores) == {"mixed": 1.0, "jpeg": 0.75, leak.FORMAT_ALONE: 0.75}
    assert leak.aurocs("png", scores) == {"png": pytest.approx(3.5 / 4)}


def training(seed, trained_on, **auroc):
    one = leak.Training("doc", "small", "without-jpeg", trained_on, seed)
    return {**vars(one), "auroc": {"knn": auroc}}


def test_the_rows_of_made_up_results():
    trainings = [
        training(0, "jpeg", mixed=0.98, jpeg=0.73, format_alone=0.9),
        training(1, "jpeg", mixed=0.96, jpeg=0.75, format_alone=0.8),
        training(2, "jpeg", mixed=1.00, jpeg=0.71, format_alone=1.0),
        training(0, "png", png=0.75),
        training(1, "png", png=0.77),
    ]
    (row,) = leak.summarise(trainings)
    assert (row.method, row.score, row.seeds) == ("doc", "knn", 3)
    assert row.mean == pytest.approx(
        {"mixed": 0.98, "jpeg": 0.73, "format_alone": 0.9, "png": 0.76}
    )
    assert row.spread["mixed"] == pytest.approx(0.02) and row.spread["png"] == pytest.approx(
        math.sqrt(0.0002)
    )
    # Of the same models: 0.25, 0.21 and 0.29, not the difference of the spreads.
    assert row.gain == pytest.approx(0.25) and row.gain_spread == pytest.approx(0.04)
    assert row.word == "fake gain"
    text = "\n".join(leak.table({"settings": SETTINGS, "stored": {}, "trainings": trainings}))
    assert "0.980 +- 0.020" in text and "+0.250 +- 0.040" in text and "fake gain" in text


SETTINGS = {
    "data": "made up",
    "train_good": 1,
    "test_good": 1,
    "test_defective": 1,
    "quality": 75,
    "steps": 1,
}


@pytest.mark.parametrize(
    ("gain", "spread", "word"),
    [
        (0.25, 0.04, "fake gain"),
        (0.25, 0.2, "not clear"),  # as likely chance
        (0.004, 0.0001, "none"),  # misleads nobody
        (-0.1, 0.01, "fake loss"),
        (0.25, math.nan, "one seed"),
        (0.0, math.nan, "one seed"),
        (0.001, 0.02, "not clear"),
        (math.nan, math.nan, "-"),
    ],
)
def test_a_gain_in_words(gain, spread, word):
    assert leak.gain_word(gain, spread) == word


def test_a_training_on_png_alone_has_no_gain():
    (row,) = leak.summarise([training(0, "png", png=0.8)])
    assert row.seeds == 0 and row.word == "-" and row.mean == {"png": 0.8}


def test_neighbour_scores_rise_with_distance():
    good = np.random.default_rng(3).normal(0, 1, (40, 8)).astype(np.float32)
    tests = {"near": good[:5] * 0.9, "far": good[:5] + 8}
    for kind in ("lof", "knn"):
        scores = leak.neighbour_scores(kind, good, tests)
        assert scores["near"].max() < scores["far"].min()


@pytest.mark.slow
def test_doc_goes_the_same_way(data, tmp_path, weights_file):
    pytest.importorskip("keras", reason="training needs the tools extra")
    rng = np.random.default_rng(5)
    for name in ("cups", "pens"):
        (tmp_path / "things" / name).mkdir(parents=True)
        for index in range(6):
            picture = rng.integers(0, 256, (40, 40, 3), np.uint8)
            cv2.imwrite(str(tmp_path / "things" / name / f"{index}.png"), picture)
    out = tmp_path / "leak.json"
    doc = ["--methods", "doc", "--weights", weights_file, "--reference-data", tmp_path / "things"]
    assert leak.run(arguments(data, out, *doc)) == 0
    on_jpeg, on_png = json.loads(out.read_text())["trainings"]
    assert set(on_jpeg["auroc"]) == {"lof", "knn"} and set(on_png["auroc"]["lof"]) == {"png"}
    # DADGT alone, without weights, goes on in the same file.
    more = arguments(data, out, "--resume", "--methods", "dadgt")
    assert leak.run(more) == 0
    figures = json.loads(out.read_text())
    assert [row["method"] for row in figures["trainings"]] == ["doc", "doc", "dadgt", "dadgt"]
    assert figures["settings"]["reference_data"] == ["things"]
