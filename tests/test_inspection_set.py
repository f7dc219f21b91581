"""Reading the folder layout of MVTec AD, from folders made here."""

import cv2
import numpy as np
import pytest

from edge_app.errors import InputError
from tools.inspection_set import good_pictures, read_inspection_set, read_mask


def _write(path, height=6, width=8, value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width), value, dtype=np.uint8))
    return path


@pytest.fixture
def station(tmp_path):
    root = tmp_path / "nut"
    for name in ("10.png", "2.PNG", "1.png"):
        _write(root / "train" / "good" / name)
    (root / "train" / "good" / "notes.txt").write_text("not a picture")
    _write(root / "train" / "empty" / "0.png")
    _write(root / "test" / "good" / "0.bmp")
    _write(root / "test" / "scratch" / "0.png")
    _write(root / "test" / "scratch" / "1.png")
    _write(root / "test" / "crack" / "0.jpg")
    _write(root / "ground_truth" / "scratch" / "0_mask.png")
    _write(root / "ground_truth" / "crack" / "0.png")
    return root


def test_reads_the_layout(station):
    found = read_inspection_set(station)
    assert found.name == "nut"
    assert [path.name for path in found.train_good] == ["1.png", "2.PNG", "10.png"]
    assert [path.name for path in found.train_empty] == ["0.png"]
    rows = [
        (picture.defect, picture.path.name, picture.mask_path and picture.mask_path.name)
        for picture in found.test
    ]
    assert rows == [
        ("good", "0.bmp", None),
        ("crack", "0.jpg", "0.png"),
        ("scratch", "0.png", "0_mask.png"),
        ("scratch", "1.png", None),
    ]
    assert [picture.is_anomaly for picture in found.test] == [False, True, True, True]


def test_empty_station_pictures_are_optional(station):
    (station / "train" / "empty" / "0.png").unlink()
    (station / "train" / "empty").rmdir()
    assert read_inspection_set(station).train_empty == ()


def test_good_pictures_from_a_layout_and_from_a_plain_folder(station):
    in_layout = good_pictures(station)
    assert [path.name for path in in_layout] == ["1.png", "2.PNG", "10.png"]
    assert good_pictures(station / "train" / "good") == in_layout


def test_one_sentence_for_each_missing_piece(station, tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        read_inspection_set(tmp_path / "nowhere")
    with pytest.raises(InputError, match="nowhere: no such folder"):
        good_pictures(tmp_path / "nowhere")
    with pytest.raises(InputError, match="has no folder train/good"):
        read_inspection_set(station / "test")
    with pytest.raises(InputError, match="holds no picture"):
        good_pictures(station / "ground_truth")

    for path in read_inspection_set(station).train_good:
        path.unlink()
    with pytest.raises(InputError, match=r"train/good: holds no picture"):
        read_inspection_set(station)


def test_a_set_without_test_pictures_is_refused(tmp_path):
    _write(tmp_path / "train" / "good" / "0.png")
    with pytest.raises(InputError, match="has no folder test"):
        read_inspection_set(tmp_path)
    (tmp_path / "test").mkdir()
    with pytest.raises(InputError, match="holds no folder of pictures"):
        read_inspection_set(tmp_path)
    (tmp_path / "test" / "scratch").mkdir()
    with pytest.raises(InputError, match="scratch: holds no picture"):
        read_inspection_set(tmp_path)


def test_mask_is_true_where_it_is_bright(tmp_path):
    mask = np.zeros((5, 7), dtype=np.uint8)
    mask[1:3, 2:6] = 255
    mask[4, 0] = 60
    path = tmp_path / "mask.png"
    cv2.imwrite(str(path), mask)
    read = read_mask(path, (5, 7))
    assert read.dtype == bool
    np.testing.assert_array_equal(read, mask == 255)


def test_mask_of_another_size_is_refused(tmp_path):
    path = _write(tmp_path / "mask.png", height=5, width=7)
    with pytest.raises(InputError, match="the mask is 7x5 pixels, wanted 5x7"):
        read_mask(path, (7, 5))


def test_a_mask_that_is_marked_too_dark_is_refused(tmp_path):
    mask = np.zeros((5, 7), dtype=np.uint8)
    path = tmp_path / "mask.png"
    cv2.imwrite(str(path), mask)
    assert not read_mask(path, (5, 7)).any()
    mask[1:3, 2:6] = 1
    cv2.imwrite(str(path), mask)
    with pytest.raises(InputError, match="marked with 1 at most, wanted 255"):
        read_mask(path, (5, 7))
