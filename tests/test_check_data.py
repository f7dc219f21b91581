"""What check-data finds in folders made here, and what it leaves in peace."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import struct
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_app.errors import InputError
from tools.check_data import Finding, check, run, verdict, warn
from tools.data_report import report
from tools.data_survey import survey
from tools.duplicates import near_duplicates
from tools.inspection_set import read_inspection_set
from tools.picture_files import read_header

pytest.importorskip("PIL", reason="needs the tools extra")

SIDE = 96
# Enough for the probe; and too few, for what has nothing to do with it, because it takes longest.
COUNTS = {"train/good": 24, "test/good": 14, "test/scratch": 14}
FEW = {"train/good": 24, "test/good": 9, "test/scratch": 9}


def part(seed: int, light: float = 0.0, scratched: bool = False) -> np.ndarray:
    """A surface with grain of its own, one dark hole, and a scratch where it is defective."""
    rng = np.random.default_rng(seed)
    coarse = cv2.GaussianBlur(rng.normal(0, 1, (SIDE, SIDE)), (0, 0), 2)
    grey = 130 + light + 80 * coarse + rng.normal(0, 4, (SIDE, SIDE))
    grey[34:62, 34:62] -= 60
    if scratched:
        start, end = rng.integers(5, SIDE - 5, (2, 2)).tolist()
        grey += cv2.line(np.zeros((SIDE, SIDE)), start, end, 12, 1)
    picture = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return np.repeat(picture[..., None], 3, axis=2)


def png(picture):
    return ".png", cv2.imencode(".png", picture)[1].tobytes()


def jpeg(quality):
    def save(picture):
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        return ".jpg", cv2.imencode(".jpg", picture, options)[1].tobytes()

    return save


def hidden(quality):
    """Saved as JPEG, and then as PNG: the file does not show it."""

    def save(picture):
        data = np.frombuffer(jpeg(quality)(picture)[1], np.uint8)
        return png(cv2.imdecode(data, cv2.IMREAD_COLOR))

    return save


def webp_before(picture):
    """Saved as WebP, and then as PNG."""
    data = cv2.imencode(".webp", picture, [cv2.IMWRITE_WEBP_QUALITY, 60])[1]
    return png(cv2.imdecode(data, cv2.IMREAD_COLOR))


def halved(picture):
    """Taken at twice the size, saved as JPEG, made half as large and saved as PNG."""
    large = cv2.resize(picture, (2 * SIDE, 2 * SIDE))
    data = cv2.imencode(".jpg", large, [cv2.IMWRITE_JPEG_QUALITY, 60])[1]
    large = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return png(cv2.resize(large, (SIDE, SIDE), interpolation=cv2.INTER_AREA))


def bmp(picture):
    return ".bmp", cv2.imencode(".bmp", picture)[1].tobytes()


def make(root, saves=None, lights=None, counts=COUNTS):
    """An inspection set; how each folder is saved and lit by its name, else PNG and the same."""
    seed = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            seed += 1
            light = (lights or {}).get(name, 0.0)
            picture = part(seed, light, scratched=name.startswith("test/scratch"))
            suffix, data = (saves or {}).get(name, png)(picture)
            (root / name / f"{index:03d}{suffix}").write_bytes(data)
    for name in counts:
        if name.startswith("test/scratch"):
            kind = name.removeprefix("test/")
            (root / "ground_truth" / kind).mkdir(parents=True)
            for path in (root / name).iterdir():
                mask = np.zeros((SIDE, SIDE), np.uint8)
                mask[10:20, 10:20] = 255
                cv2.imwrite(str(root / "ground_truth" / kind / f"{path.stem}_mask.png"), mask)
    return root


@pytest.fixture(scope="module")
def clean_once(tmp_path_factory):
    return make(tmp_path_factory.mktemp("clean") / "set", counts=FEW)


@pytest.fixture
def clean(clean_once, tmp_path):
    """A set without any fault, to be changed."""
    return Path(shutil.copytree(clean_once, tmp_path / "set"))


def found(root, **options):
    """Severity and sentence of what is found, notes left out."""
    sentences = check(root, progress=False, **options).sentences
    return [one for one in sentences if one[0] != "note"]


def only(root, **options):
    (one,) = found(root, **options)
    return one


def as_nobody():
    """As a user who may not read what its mode forbids, which root may; skips where none is."""
    if not hasattr(os, "geteuid"):
        pytest.skip("modes forbid nothing here")
    stack = contextlib.ExitStack()
    if os.geteuid() == 0:
        os.seteuid(65534)
        stack.callback(os.seteuid, 0)
    return stack


@pytest.fixture
def open_folder():
    """A folder that every user may enter, which those of pytest are not."""
    folder = Path(tempfile.mkdtemp(prefix="check-data-"))
    folder.chmod(0o755)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


def with_orientation(data: bytes, orientation: int) -> bytes:
    """A JPEG file with an EXIF segment that says how it is to be turned."""
    entry = struct.pack(">HHIHH", 274, 3, 1, orientation, 0)
    tiff = b"MM\0*" + struct.pack(">IH", 8, 1) + entry + struct.pack(">I", 0)
    body = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def test_a_clean_set_has_no_finding(tmp_path):
    findings = check(make(tmp_path / "set"), progress=False)
    assert [one for one in findings.sentences if one[0] != "note"] == []
    assert findings.exit_code == 0
    assert findings.verdict == "Nothing found that would spoil figures on this set."
    assert findings.figures["leaks"]["good_defective"]["block_traces"]["auroc"] < 0.7
    row = findings.figures["folders"]["test/scratch"]
    assert row["pictures"] == 14
    assert row["sizes"] == {"96x96": 14}
    assert row["saved_as"] == {"PNG": 14}
    json.dumps(findings.figures, allow_nan=False)


@pytest.mark.parametrize("quick", [True, False])
def test_good_jpeg_against_defective_png(tmp_path, quick):
    saves = {"train/good": jpeg(75), "test/good": jpeg(75)}
    findings = check(make(tmp_path / "set", saves), progress=False, quick=quick)
    assert findings.exit_code == 1
    severity, sentence = findings.sentences[0]
    assert severity == "red"
    assert "good pictures are JPEG of quality 75, the defective ones PNG" in sentence
    assert findings.verdict.startswith("Do not trust any figure on this set: the good pictures")


@pytest.mark.parametrize(("who", "quality"), [("good", 50), ("good", 95), ("defective", 75)])
def test_the_mix_is_found_when_all_was_saved_as_png_again(tmp_path, who, quality):
    names = ["test/scratch"] if who == "defective" else ["train/good", "test/good"]
    findings = check(make(tmp_path / "set", dict.fromkeys(names, hidden(quality))), progress=False)
    assert findings.exit_code == 1
    assert f"JPEG of quality about {quality}" in findings.sentences[0][1]
    assert findings.figures["leaks"]["good_defective"]["saved_as"] == 0
    assert findings.figures["leaks"]["good_defective"]["block_traces"]["auroc"] > 0.95


def test_a_quality_beyond_those_looked_for_is_found_by_the_probe(tmp_path):
    saves = dict.fromkeys(["train/good", "test/good"], hidden(99))
    findings = check(make(tmp_path / "set", saves), progress=False)
    assert findings.figures["folders"]["test/good"]["pixels_were"] == {"no JPEG": 14}
    severity, sentence = findings.sentences[0]
    assert severity == "amber"
    assert "differ on the grid of 8x8 pixels" in sentence


@pytest.mark.parametrize("save", [webp_before, halved])
def test_a_past_that_is_no_jpeg_of_this_size_is_red_where_a_number_tells_it_too(tmp_path, save):
    counts = {**COUNTS, "test/scratch": 30, "test/good": 30}
    root = make(tmp_path / "set", {"test/scratch": save}, counts=counts)
    # What touches few pictures is not what the verdict names.
    for index in range(2):
        picture = cv2.imread(str(root / f"train/good/00{index}.png"))
        picture = cv2.convertScaleAbs(picture, alpha=1.1)
        cv2.imwrite(str(root / f"test/good/again{index}.png"), picture)
    findings = check(root, progress=False)
    assert findings.exit_code == 1
    severity, sentence = findings.sentences[0]
    assert severity == "red"
    assert "differ on the grid of 8x8 pixels" in sentence
    assert "bytes a pixel (AUROC 1.00)" in sentence
    assert "or as WebP, or resized" in sentence
    assert "differ on the grid" in findings.verdict


def test_leaks_come_before_duplicates_in_the_verdict(tmp_path):
    saves = dict.fromkeys(["train/good", "test/good"], hidden(99))
    root = make(tmp_path / "set", saves)
    for index in range(2):
        picture = cv2.imread(str(root / f"train/good/00{index}.png"))
        picture = cv2.convertScaleAbs(picture, alpha=1.1)
        cv2.imwrite(str(root / f"test/good/again{index}.png"), picture)
    findings = check(root, progress=False)
    assert any(
        "2 of 30 test pictures are nearly in train too" in one.what for one in findings.found
    )
    assert "differ on the grid of 8x8 pixels" in findings.verdict


def test_few_pictures_each_of_its_own_size_are_no_leak(tmp_path):
    root = make(tmp_path / "set", counts={"train/good": 3, "test/good": 2, "test/scratch": 2})
    for index, path in enumerate(sorted(root.rglob("*/*/*.png"))):
        if "ground_truth" not in path.parts:
            cv2.imwrite(str(path), cv2.imread(str(path))[index:, 2 * index :])
    assert not [one for one in found(root, quick=True) if "pixels" in one[1]]


def test_few_pictures_without_exception_are_a_leak(tmp_path):
    counts = {"train/good": 24, "test/good": 2, "test/scratch": 2}
    root = make(tmp_path / "set", {"test/scratch": jpeg(80)}, counts=counts)
    assert any("defective ones JPEG" in one[1] for one in found(root, quick=True))


def test_formats_without_loss_are_no_history(tmp_path):
    root = make(tmp_path / "set", {"test/scratch": bmp})
    for quick in (True, False):
        findings = check(root, progress=False, quick=quick)
        assert findings.exit_code == 0
        severity, sentence = findings.sentences[0]
        assert severity == "amber"
        assert sentence.startswith("The good pictures are PNG, the defective ones BMP: all without")
        assert sentence.endswith("Save all in one format.")


def test_a_tiff_file_may_hold_a_jpeg(tmp_path):
    from PIL import Image

    picture = Image.fromarray(part(1))
    picture.save(tmp_path / "a.tif", compression="tiff_lzw")
    picture.save(tmp_path / "b.tif", compression="jpeg")
    assert read_header(tmp_path / "a.tif").lossless
    assert not read_header(tmp_path / "b.tif").lossless


def test_folders_that_evaluate_refuses_or_passes_over(clean):
    (clean / "test/crack/day1").mkdir(parents=True)
    cv2.imwrite(str(clean / "test/crack/day1/0.png"), part(900))
    (clean / "test/scratch/day2/deep").mkdir(parents=True)
    cv2.imwrite(str(clean / "test/scratch/day2/deep/0.png"), part(901))
    (clean / "train/bad").mkdir()
    cv2.imwrite(str(clean / "train/bad/0.png"), part(902))
    findings = check(clean, progress=False, quick=True)
    assert findings.exit_code == 1
    assert findings.verdict.startswith("Not usable as it is: folders without a picture")
    (red, empty), (amber, passed_over) = findings.sentences[:2]
    assert (red, amber) == ("red", "amber")
    assert empty.startswith("Folders without a picture: test/crack. ")
    assert (
        "looked at by any command: train/bad, test/crack/day1, test/scratch/day2. " in passed_over
    )
    with pytest.raises(InputError):
        read_inspection_set(clean)


def test_an_empty_test_folder_is_red_and_a_missing_one_is_not(clean):
    shutil.rmtree(clean / "test")
    shutil.rmtree(clean / "ground_truth")
    assert found(clean, quick=True) == []
    (clean / "test").mkdir()
    severity, sentence = only(clean, quick=True)
    assert severity == "red"
    assert "Folders without a picture: test. " in sentence


def test_sub_folders_beside_the_pictures_of_a_plain_folder(clean):
    (clean / "train/good/more").mkdir()
    cv2.imwrite(str(clean / "train/good/more/0.png"), part(900))
    severity, sentence = only(clean / "train/good", quick=True)
    assert severity == "amber"
    assert "not looked at by any command: more. " in sentence


def test_masks_that_may_not_be_read(clean_once, open_folder):
    root = Path(shutil.copytree(clean_once, open_folder / "set"))
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755)
    check(root, progress=False, quick=True)  # what is imported late is there
    (root / "ground_truth/scratch").chmod(0)
    with as_nobody():
        if os.access(root, os.R_OK, effective_ids=True) is False:
            pytest.skip("the folder for temporary files is closed")
        findings = check(root, progress=False, quick=True)
        with pytest.raises(InputError, match="scratch.*cannot be read: Permission denied"):
            read_inspection_set(root)
    assert findings.exit_code == 1
    assert findings.found[0].stops
    assert "masks cannot be read: ground_truth/scratch: Permission" in findings.sentences[0][1]


def test_masks_of_another_type_are_not_to_be_deleted(clean):
    for path in (clean / "ground_truth/scratch").iterdir():
        cv2.imwrite(str(path.with_suffix(".bmp")), cv2.imread(str(path)))
        path.unlink()
    sentences = [one[1] for one in found(clean, quick=True)]
    assert sentences[0].startswith("9 masks not used because of the suffix: ")
    assert "Save them as .png" in sentences[0]
    assert sentences[1].startswith("No defective picture has a mask that is used")
    assert not any("delete" in one for one in sentences)


def test_one_mask_for_two_pictures_of_one_name(clean):
    cv2.imwrite(str(clean / "test/scratch/000.bmp"), part(900))
    assert found(clean, quick=True) == []


def test_masks_of_0_and_1_are_not_empty(clean):
    for path in (clean / "ground_truth/scratch").iterdir():
        cv2.imwrite(str(path), (cv2.imread(str(path), 0) > 0).astype(np.uint8))
    findings = check(clean, progress=False)
    assert findings.figures["masks"]["empty"] == []
    severity, sentence = findings.sentences[0]
    assert severity == "red"
    assert sentence.startswith("9 masks marked with 1 instead of 255: ")
    assert sentence.endswith("Multiply them by 255.")


@pytest.mark.parametrize("quick", [True, False])
def test_why_the_first_file_cannot_be_read(clean, quick):
    # 32 bits a channel: Pillow opens it, OpenCV does not.
    from PIL import Image

    Image.fromarray(np.ones((SIDE, SIDE), np.float32)).save(clean / "test/good/a.tif")
    severity, sentence = only(clean, quick=quick)
    assert severity == "red"
    assert "1 file cannot be read: test/good/a.tif (" in sentence
    assert "OpenCV" in sentence
    assert str(clean) not in sentence


def test_the_legend_is_of_the_layout(tmp_path, clean):
    root = tmp_path / "classes"
    for name in ("good", "scratch"):
        shutil.copytree(clean / "test" / name, root / name)
    text = report(check(root, progress=False).figures)
    assert "train" not in text.split("leak test")[0]
    assert "from the mean of the (other) good pictures" in text
    assert "from train's mean, good against" in report(check(clean, progress=False).figures)
    shutil.rmtree(clean / "test/scratch")
    text = report(check(clean, progress=False).figures)
    assert "AUROC: of the distance" not in text
    assert "train/test: of the number itself" in text


def test_the_good_pictures_are_measured_from_the_mean_of_the_others(tmp_path):
    # Each is a third nearer to a mean that holds it, and all three defective ones are between.
    for name, greys in {"good": (80, 100, 120), "bad": (84, 76, 124)}.items():
        (tmp_path / name).mkdir()
        for index, grey in enumerate(greys):
            picture = np.full((SIDE, SIDE), grey, np.uint8)
            cv2.imwrite(str(tmp_path / name / f"{index}.png"), picture)
    row = check(tmp_path, progress=False).figures["trivial"]["brightness"]
    # Good: 30, 0, 30; defective: 16, 24, 24.
    assert row["auroc"] == pytest.approx(3 / 9, abs=1e-4)


def test_too_few_pictures_for_the_leak_test(clean):
    findings = check(clean, progress=False)
    assert findings.found[0].what == "Too few pictures for the leak test (10 of each)"
    assert findings.found[0].detail == (
        "good and defective, 9 and 9; good of train and of test, 24 and 9"
    )
    words = "Nothing found that would spoil figures on this set; not tried: the leak test"
    assert findings.verdict == f"{words}."
    for index in range(9, 12):
        cv2.imwrite(str(clean / f"test/good/{index}.png"), part(900 + index))
    assert check(clean, progress=False).verdict == f"{words} (good and defective)."


def test_one_near_duplicate_is_a_note_and_two_are_not_red(clean):
    severities = []
    for index in range(2):
        picture = cv2.imread(str(clean / f"train/good/00{index}.png"))
        picture = cv2.convertScaleAbs(picture, alpha=1.1)
        cv2.imwrite(str(clean / f"test/good/again{index}.png"), picture)
        severities += [
            one.severity
            for one in check(clean, progress=False).found
            if "nearly in train too" in one.what
        ]
    assert severities == ["note", "amber"]


def test_pictures_that_the_device_refuses(clean):
    cv2.imwrite(str(clean / "test/good/tiny.png"), part(900)[:7])
    severity, sentence = only(clean, quick=True)
    assert severity == "red"
    assert "1 picture of less than 8 pixels a side" in sentence
    cv2.imwrite(str(clean / "test/good/tiny.png"), part(900)[:8])
    assert not [one for one in found(clean, quick=True) if "less than 8" in one[1]]


def test_a_format_that_no_command_reads_is_not_to_be_renamed(clean):
    from PIL import Image

    Image.fromarray(part(900)).save(clean / "train/good/a.gif")
    _, sentence = only(clean, quick=True)
    assert "Rename" not in sentence
    assert "No command reads GIF: save them as the others are." in sentence


def test_a_file_is_no_folder(clean):
    with pytest.raises(InputError, match=r"000.png: is a file, wanted a folder"):
        check(clean / "train/good/000.png", progress=False)


@pytest.mark.skipif(os.name == "nt", reason="no such names on Windows")
def test_a_folder_with_a_newline_in_its_name_keeps_its_line(clean):
    (clean / "test/scratch").rename(clean / "test/scr\natch")
    (clean / "ground_truth/scratch").rename(clean / "ground_truth/scr\natch")
    findings = check(clean, progress=False, quick=True)
    assert list(findings.figures["folders"])[-1] == "test/scr\\natch"
    (line,) = [one for one in report(findings.figures).splitlines() if "natch" in one]
    assert line.split()[1] == "9"


def test_a_mix_between_train_and_test(tmp_path):
    findings = check(make(tmp_path / "set", {"train/good": hidden(85)}), progress=False)
    assert findings.exit_code == 1
    assert (
        "good pictures of train are JPEG of quality about 85, those of test no JPEG"
        in (findings.sentences[0][1])
    )


def test_all_compressed_alike_is_no_leak(tmp_path):
    findings = check(make(tmp_path / "set", dict.fromkeys(COUNTS, jpeg(80))), progress=False)
    assert [one for one in findings.sentences if one[0] != "note"] == []


def test_one_kind_of_defect_from_elsewhere_is_named(tmp_path):
    counts = {**COUNTS, "test/scratch": 30, "test/scratch_web": 12}
    saves = {"test/scratch_web": jpeg(70)}
    severity, sentence = only(make(tmp_path / "set", saves, counts=counts), quick=True)
    assert severity == "amber"
    assert "above all test/scratch_web" in sentence


def test_darker_good_pictures_in_test_are_named(tmp_path):
    sentence = dict(found(make(tmp_path / "set", lights={"test/good": -30.0})))["amber"]
    assert "The good pictures of test are darker" in sentence
    assert "calls good parts defective" in sentence


def test_light_that_gives_the_defects_away_is_named(tmp_path):
    severity, sentence = only(make(tmp_path / "set", lights={"test/scratch": 40.0}))
    assert severity == "amber"
    assert "told apart by nothing but brightness (AUROC 1.00)" in sentence


def test_the_same_file_as_good_and_as_defective(clean):
    (clean / "test/scratch/copy.png").write_bytes((clean / "test/good/003.png").read_bytes())
    for quick in (True, False):
        findings = check(clean, progress=False, quick=quick)
        assert findings.exit_code == 1
        assert (
            "1 picture in two classes at once: test/good/003.png and test/scratch/copy.png"
            in (findings.sentences[0][1])
        )


def test_the_same_pixels_in_another_format(clean):
    picture = cv2.imread(str(clean / "train/good/005.png"))
    cv2.imwrite(str(clean / "test/good/copy.bmp"), picture)
    assert check(clean, progress=False, quick=True).figures["duplicates"]["exact"] == []
    exact = check(clean, progress=False).figures["duplicates"]["exact"]
    assert exact == [["train/good/005.png", "test/good/copy.bmp"]]


def test_near_duplicates_across_the_splits(clean):
    changes = {
        3: hidden(50),
        7: lambda picture: png(cv2.convertScaleAbs(picture, alpha=1.1)),
        11: lambda picture: png(cv2.resize(picture, (72, 72), interpolation=cv2.INTER_AREA)),
    }
    for index, change in changes.items():
        picture = cv2.imread(str(clean / f"train/good/{index:03d}.png"))
        (clean / f"test/good/again{index}.png").write_bytes(change(picture)[1])
    findings = check(clean, progress=False)
    assert findings.figures["duplicates"]["near"] == [
        [f"train/good/{index:03d}.png", f"test/good/again{index}.png"] for index in changes
    ]
    assert ("red", "3 of 21 test pictures are nearly in train too") in [
        (severity, sentence.split(",")[0]) for severity, sentence in findings.sentences
    ]


def test_a_part_both_good_and_defective(clean):
    severities = {}
    for count, name in enumerate(("007.png", "008.png"), 1):
        picture = cv2.imread(str(clean / "test/good" / name))
        cv2.line(picture, (5, 8), (30, 14), (220, 220, 220), 2)
        cv2.imwrite(str(clean / "test/scratch" / f"more{name}"), picture)
        for severity, sentence in check(clean, progress=False).sentences:
            if "both among the good and the defective" in sentence:
                severities[count] = severity, sentence[:7].rstrip()
    # A single pair may be chance.
    assert severities == {1: ("note", "1 part"), 2: ("amber", "2 parts")}


def test_copies_count_as_one_and_none_are_made_up():
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 1, (30, 8, 8)).astype(np.float32)
    rows[20] = rows[3] + 0.05 * rng.normal(0, 1, (8, 8))
    rows /= np.linalg.norm(rows.reshape(30, -1), axis=1)[:, None, None]
    # What only looks alike on the device's own thumbnails is told apart by the fine ones.
    groups = near_duplicates(np.zeros_like(rows), rows)
    assert groups[20] == groups[3]
    assert len(np.unique(groups)) == 29


def test_exif_rotation(tmp_path):
    root = make(tmp_path / "set", dict.fromkeys(FEW, jpeg(90)), counts=FEW)
    path = root / "test/good/002.jpg"
    path.write_bytes(with_orientation(path.read_bytes(), 6))
    for quick in (True, False):
        severity, sentence = only(root, quick=quick)
        assert severity == "amber"
        assert "1 of 42 pictures turned by EXIF data" in sentence
        assert "test/good/002.jpg" in sentence


def test_the_traces_are_those_of_the_picture_as_it_is_stored(tmp_path):
    data = jpeg(90)(part(1)[:90, :75])[1]
    (tmp_path / "0.jpg").write_bytes(data)
    (tmp_path / "1.jpg").write_bytes(with_orientation(data, 3))
    upright, turned = survey(tmp_path, progress=False).looks.values()
    np.testing.assert_array_equal(turned.traces, upright.traces)
    assert turned.pixels != upright.pixels


def test_a_suffix_that_lies(clean):
    data = (clean / "train/good/001.png").read_bytes()
    (clean / "train/good/001.png").unlink()
    (clean / "train/good/001.jpg").write_bytes(data)
    severity, sentence = only(clean, quick=True)
    assert severity == "amber"
    assert "1 file with the suffix of another format (PNG as .jpg): train/good/001.jpg" in sentence


def test_a_picture_that_is_passed_over(clean):
    cv2.imwrite(str(clean / "train/good/spare.png"), part(999))
    (clean / "train/good/spare.png").rename(clean / "train/good/spare.jfif")
    (clean / "train/good/notes.txt").write_text("not a picture")
    severity, sentence = only(clean, quick=True)
    assert severity == "amber"
    assert "1 picture passed over because of the suffix (.jfif)" in sentence


def test_broken_files_are_red_and_no_reason_to_stop(clean):
    for index, kept in enumerate((0, 9, 2000)):
        path = clean / f"test/good/{index:03d}.png"
        path.write_bytes(path.read_bytes()[:kept])
    findings = check(clean, progress=False)
    assert findings.exit_code == 1
    assert findings.verdict.startswith("Not usable as it is: 3 files cannot be read")
    assert "test/good/000.png, test/good/001.png, test/good/002.png" in findings.sentences[0][1]
    assert findings.figures["folders"]["test/good"]["broken"] == 3


def test_masks(clean):
    folder = clean / "ground_truth/scratch"
    cv2.imwrite(str(folder / "000_mask.png"), np.zeros((SIDE, SIDE), np.uint8))
    cv2.imwrite(str(folder / "001_mask.png"), np.full((SIDE, SIDE + 1), 255, np.uint8))
    (folder / "002_mask.png").rename(folder / "x_mask.png")
    (folder / "003_mask.png").write_bytes(b"no picture")
    findings = check(clean, progress=False)
    assert findings.figures["masks"] == {
        "masks": 9,
        "unreadable": ["ground_truth/scratch/003_mask.png"],
        "wrong_size": ["ground_truth/scratch/001_mask.png"],
        "empty": ["ground_truth/scratch/000_mask.png"],
        "faint": [],
        "wrong_suffix": [],
        "without_picture": ["ground_truth/scratch/x_mask.png"],
        "pictures_without": {"scratch": 1},
    }
    severities = [one[0] for one in findings.sentences if "mask" in one[1]]
    assert severities == ["red", "red", "amber", "amber", "amber"]


def test_a_blank_picture(clean):
    cv2.imwrite(str(clean / "train/good/000.png"), np.full((SIDE, SIDE, 3), 90, np.uint8))
    severity, sentence = only(clean)
    assert severity == "amber"
    assert "1 picture of a single colour: train/good/000.png" in sentence


def test_too_few_good_pictures(tmp_path):
    root = make(tmp_path / "set", counts={"train/good": 6})
    severity, sentence = only(root, quick=True)
    assert severity == "amber"
    assert sentence.startswith("Only 6 good pictures to learn from")


def test_a_plain_folder_of_good_pictures(clean):
    findings = check(clean / "train/good", progress=False)
    assert findings.figures["layout"] == "folder of good pictures"
    assert findings.sentences == []


def test_a_folder_for_each_class(tmp_path):
    counts = {"boot": 8, "shoe": 8, "bag": 8}
    root = make(tmp_path / "set", {"bag": jpeg(80)}, counts=counts)
    findings = check(root, progress=False)
    assert findings.figures["layout"] == "a folder for each class"
    severity, sentence = findings.sentences[0]
    assert severity == "red"
    assert "The pictures of bag are JPEG of quality 80, the others PNG" in sentence


def test_no_pictures(tmp_path):
    (tmp_path / "void" / "inside").mkdir(parents=True)
    for path in (tmp_path / "nowhere", tmp_path / "void"):
        with pytest.raises(InputError, match=path.name):
            check(path, progress=False)


class Arguments:
    quick = False

    def __init__(self, data, json_path=None):
        self.data, self.json = data, json_path


def test_the_command_prints_and_writes(clean, tmp_path, capsys):
    assert run(Arguments(clean, tmp_path / "out" / "figures.json")) == 0
    printed = capsys.readouterr().out
    assert "Nothing found that would spoil figures" in printed
    assert all(len(line) <= 100 for line in printed.splitlines() if "figures:" not in line)
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert figures["verdict"] in printed


def test_a_json_path_that_cannot_be_written(clean, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "figures.json", tmp_path):
        with pytest.raises(InputError, match="cannot be written"):
            run(Arguments(clean, path))


def test_warnings_are_few_and_nothing_is_raised(clean, tmp_path):
    def warned(path):
        out = io.StringIO()
        warn(path, out)
        return out.getvalue()

    assert warned(clean) == ""
    assert warned(tmp_path / "nowhere") == ""
    (clean / "test/scratch/copy.png").write_bytes((clean / "test/good/003.png").read_bytes())
    (clean / "train/good/001.png").write_bytes(b"")
    (clean / "train/good/002.png").rename(clean / "train/good/002.jpg")
    for index in range(3, 9):
        (clean / f"train/good/{index:03d}.png").unlink()
    lines = warned(clean).splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["warning"] * 3
    assert len(lines) == 4
    assert "2 more" in lines[3]


def test_the_verdict_names_the_worst():
    red = Finding("red", "The light differs")
    stops = Finding("red", "1 file cannot be read", stops=True)
    amber = Finding("amber", "Few pictures")
    assert verdict([]).startswith("Nothing found")
    assert verdict([amber]) == "Usable, with care: few pictures."
    assert verdict([stops, red, amber]) == (
        "Do not trust any figure on this set: the light differs (2 more findings)."
    )


def test_the_report_of_a_quick_check_says_what_it_left_out(clean):
    text = report(check(clean, progress=False, quick=True).figures)
    assert "no pixels were read" in text
    assert "mean of" not in text
