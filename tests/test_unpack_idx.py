import argparse
import gzip
import struct

import cv2
import numpy as np
import pytest

from edge_app.errors import InputError
from tools import unpack_idx
from tools.inspection_set import read_inspection_set

TRAIN_LABELS = [7, 9, 7, 3, 7]
TEST_LABELS = [9, 7, 3, 9, 9, 7]


def write_idx(path, array):
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def idx_dir(tmp_path):
    """Grey pictures of 5 x 6 pixels, all of the value 10 * row (+ 1 in the test part)."""
    folder = tmp_path / "idx"
    folder.mkdir()
    for part, labels, extra in (("train", TRAIN_LABELS, 0), ("t10k", TEST_LABELS, 1)):
        values = 10 * np.arange(len(labels), dtype=np.uint8) + np.uint8(extra)
        images = np.tile(values[:, None, None], (1, 5, 6))
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.array(labels, np.uint8))
    return folder


def parsed(*line):
    parser = argparse.ArgumentParser()
    unpack_idx.configure(parser)
    return parser.parse_args([str(word) for word in line])


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def test_the_command_makes_an_inspection_set(idx_dir, tmp_path, capsys):
    out = tmp_path / "sets" / "sneaker"
    line = ("--idx", idx_dir, "--good", 7, "--defect", 9, 3, "--out", out)
    assert unpack_idx.run(parsed(*line)) == 0
    assert names(out) == [
        "test/3/00002.png",
        "test/9/00000.png",
        "test/9/00003.png",
        "test/9/00004.png",
        "test/good/00001.png",
        "test/good/00005.png",
        "train/good/00000.png",
        "train/good/00002.png",
        "train/good/00004.png",
    ]
    assert f"{out / 'test/9'}: 3 pictures" in capsys.readouterr().out
    found = read_inspection_set(out)
    assert len(found.train_good) == 3
    assert [picture.defect for picture in found.test] == ["good"] * 2 + ["3"] + ["9"] * 3
    for path, value in ((found.train_good[1], 20), (found.test[0].path, 11)):
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert picture.shape == (5, 6) and (picture == value).all()


def test_classes_have_the_names_they_are_given(idx_dir, tmp_path):
    classes = [*"abcdefgh", "Bag", "Ankle boot"]
    counts = unpack_idx.unpack(idx_dir, 7, [9], tmp_path / "set", classes)
    assert counts == {"train/good": 3, "test/good": 2, "test/Ankle boot": 3}
    assert len(names(tmp_path / "set" / "test" / "Ankle boot")) == 3


@pytest.mark.parametrize(
    ("good", "defects", "classes", "sentence"),
    [
        (7, [7], None, "class 7 cannot be good and a defect at once"),
        (7, [9, 9], None, "9, 9: each wanted once"),
        (7, [8], None, "no picture of class 8 for test/8, the classes are 3, 7, 9"),
        (4, [9], None, "no picture of class 4 for train/good, the classes are 3, 7, 9"),
        (7, [9], ["a", "b"], "got 2, none for class 9"),
        (7, [3, 9], ["a"] * 10, "a, a: wanted different ones"),
        (7, [9], ["good"] * 10, "none of them 'good'"),
        (7, [9], ["T-shirt/top"] * 10, "'T-shirt/top': wanted one that can be a folder's"),
        (7, [9], [".hidden"] * 10, "'.hidden': wanted one that can be a folder's"),
    ],
)
def test_what_makes_no_set_is_refused(idx_dir, tmp_path, good, defects, classes, sentence):
    with pytest.raises(InputError, match=sentence):
        unpack_idx.unpack(idx_dir, good, defects, tmp_path / "set", classes)
    assert list(tmp_path.iterdir()) == [idx_dir]


def test_damaged_and_missing_files_are_named(idx_dir, tmp_path):
    labels = idx_dir / "t10k-labels-idx1-ubyte.gz"
    write_idx(labels, np.array([9, 7], np.uint8))
    with pytest.raises(InputError, match="t10k-images.*: 6 pictures, but 2 labels in t10k-labels"):
        unpack_idx.unpack(idx_dir, 7, [9], tmp_path / "set")
    labels.write_bytes(b"no gzip")
    with pytest.raises(InputError, match="t10k-labels.*not a whole gzip file"):
        unpack_idx.unpack(idx_dir, 7, [9], tmp_path / "set")
    labels.unlink()
    with pytest.raises(InputError, match="t10k-labels.*missing"):
        unpack_idx.unpack(idx_dir, 7, [9], tmp_path / "set")
    with pytest.raises(InputError, match="nowhere: no such folder"):
        unpack_idx.unpack(tmp_path / "nowhere", 7, [9], tmp_path / "set")
    assert list(tmp_path.iterdir()) == [idx_dir]


def test_an_existing_folder_is_left_alone(idx_dir, tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(InputError, match="exists already"):
        unpack_idx.unpack(idx_dir, 7, [9], tmp_path / "set")
    assert list((tmp_path / "set").iterdir()) == []


def test_a_folder_that_cannot_be_written_leaves_nothing(idx_dir, tmp_path):
    classes = ["x" * 300] * 10
    with pytest.raises(InputError, match="set: cannot be written .File name too long."):
        unpack_idx.unpack(idx_dir, 7, [9], tmp_path / "set", classes)
    assert list(tmp_path.iterdir()) == [idx_dir]
