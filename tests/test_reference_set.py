import gzip
import struct

import cv2
import numpy as np
import pytest

from edge_app.errors import InputError
from tools.reference_set import Joined, Reference, read_reference_set, read_reference_sets


def write_pictures(folder, colours_rgb):
    folder.mkdir(parents=True)
    for index, colour in enumerate(colours_rgb):
        picture = np.full((8, 10, 3), colour[::-1], np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), picture)
    return folder


def write_idx(path, values):
    header = struct.pack(f">2xBB{values.ndim}I", 8, values.ndim, *values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header + values.tobytes()))


def write_fashion(folder, pictures, labels):
    write_idx(folder / "train-images-idx3-ubyte.gz", pictures)
    write_idx(folder / "train-labels-idx1-ubyte.gz", labels)
    return folder


def test_one_subfolder_per_class(tmp_path):
    write_pictures(tmp_path / "set" / "red", [(255, 0, 0)] * 2)
    write_pictures(tmp_path / "set" / "blue", [(0, 0, 255)])
    pictures, labels, names = read_reference_set(tmp_path / "set")
    assert names == ["set/blue", "set/red"]
    assert labels.tolist() == [0, 1, 1]
    assert [pictures[i][0, 0].tolist() for i in range(3)] == [[0, 0, 255]] + [[255, 0, 0]] * 2
    assert pictures[0].dtype == np.uint8 and pictures[0].shape == (8, 10, 3)


def test_fashion_mnist_files(tmp_path):
    grey = np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)
    folder = write_fashion(tmp_path / "fashion", grey, np.array([9, 0, 9], np.uint8))
    pictures, labels, names = read_reference_set(folder)
    assert names == ["fashion/0", "fashion/9"]
    assert labels.tolist() == [1, 0, 1]
    assert len(pictures) == 3
    assert np.array_equal(pictures[2], np.stack([grey[2]] * 3, axis=-1))


def test_inspection_set_is_one_class_and_its_test_split_is_never_read(tmp_path):
    write_pictures(tmp_path / "nut" / "train" / "good", [(1, 2, 3)] * 3)
    write_pictures(tmp_path / "nut" / "test" / "crack", [(9, 9, 9)] * 5)
    pictures, labels, names = read_reference_set(tmp_path / "nut")
    assert names == ["nut"]
    assert labels.tolist() == [0, 0, 0] and len(pictures) == 3


def test_left_out_pictures_are_not_read(tmp_path):
    good = write_pictures(tmp_path / "nut" / "train" / "good", [(1, 1, 1), (2, 2, 2)])
    pictures, labels, _ = read_reference_set(tmp_path / "nut", {(good / "0.png").resolve()})
    assert len(pictures) == len(labels) == 1
    assert pictures[0][0, 0].tolist() == [2, 2, 2]


def test_classes_of_several_sets_stand_side_by_side(tmp_path):
    write_pictures(tmp_path / "a" / "x", [(1, 1, 1)])
    write_pictures(tmp_path / "a" / "y", [(2, 2, 2)])
    write_pictures(tmp_path / "b" / "x", [(3, 3, 3)])
    sets, labels, names = read_reference_sets([tmp_path / "a", tmp_path / "b"])
    assert names == ["a/x", "a/y", "b/x"]
    assert labels.tolist() == [0, 1, 2]
    assert [len(one) for one in sets] == [2, 1]


def test_one_class_alone_is_refused(tmp_path):
    write_pictures(tmp_path / "nut" / "train" / "good", [(1, 1, 1)])
    with pytest.raises(InputError, match="two classes or more"):
        read_reference_sets([tmp_path / "nut"])


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such"):
        read_reference_set(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["nothing", "pictures"])
def test_a_folder_without_classes_is_refused(tmp_path, content):
    folder = tmp_path / "set"
    if content == "pictures":
        write_pictures(folder, [(1, 1, 1)])
    else:
        folder.mkdir()
    with pytest.raises(InputError, match="one sub-folder per class"):
        read_reference_set(folder)


def test_an_empty_class_is_refused(tmp_path):
    write_pictures(tmp_path / "set" / "full", [(1, 1, 1)])
    (tmp_path / "set" / "hollow").mkdir()
    with pytest.raises(InputError, match="hollow"):
        read_reference_set(tmp_path / "set")


def test_an_unreadable_picture_is_named_when_it_is_read(tmp_path):
    write_pictures(tmp_path / "set" / "a", [(1, 1, 1)])
    (tmp_path / "set" / "a" / "0.png").write_text("not a picture")
    pictures, _, _ = read_reference_set(tmp_path / "set")
    with pytest.raises(InputError, match=r"0\.png"):
        pictures[0]


def test_a_truncated_idx_file_is_refused(tmp_path):
    folder = write_fashion(tmp_path / "f", np.zeros((2, 28, 28), np.uint8), np.zeros(2, np.uint8))
    images = folder / "train-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:-12])
    with pytest.raises(InputError, match="train-images"):
        read_reference_set(folder)


def test_idx_pictures_without_labels_are_refused(tmp_path):
    folder = write_fashion(tmp_path / "f", np.zeros((2, 28, 28), np.uint8), np.zeros(2, np.uint8))
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match="train-labels"):
        read_reference_set(folder)


def test_idx_with_another_number_of_labels_is_refused(tmp_path):
    folder = write_fashion(tmp_path / "f", np.zeros((2, 28, 28), np.uint8), np.zeros(3, np.uint8))
    with pytest.raises(InputError, match="2 pictures and 3 labels"):
        read_reference_set(folder)


def test_joined_pictures_all_have_one_size(tmp_path):
    small = [np.full((4, 4, 3), value, np.uint8) for value in (1, 2)]
    large = [np.full((16, 16, 3), value, np.uint8) for value in (3, 4, 5)]
    joined = Joined([small, large], (8, 8))
    assert [(one.shape, int(one[0, 0, 0])) for one in joined] == [
        ((8, 8, 3), value) for value in (1, 2, 3, 4, 5)
    ]
    with pytest.raises(IndexError):
        joined[5]


def test_a_checksum_tells_other_pictures_and_other_labels():
    pictures = [np.full((2, 2, 3), value, np.uint8) for value in range(4)]
    labels = np.array([0, 0, 1, 1])
    one = Reference(pictures, labels, ["a", "b"]).sha256()
    assert Reference(pictures, labels, ["a", "b"]).sha256() == one
    assert Reference(pictures, labels[::-1].copy(), ["a", "b"]).sha256() != one
    assert Reference(pictures[::-1], labels, ["a", "b"]).sha256() != one


@pytest.mark.parametrize("place", range(10, 60, 7))
def test_a_damaged_gzip_is_one_sentence(tmp_path, place):
    folder = write_fashion(
        tmp_path / "fashion",
        np.random.default_rng(0).integers(0, 255, (3, 28, 28), np.uint8),
        np.array([0, 1, 1], np.uint8),
    )
    path = folder / "train-images-idx3-ubyte.gz"
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match="not a whole gzip|IDX|header"):
        read_reference_set(folder)
