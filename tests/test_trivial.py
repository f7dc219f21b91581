"""Trivial figures: each must find what it looks at, and nothing else."""

import cv2
import numpy as np
import pytest

from edge_app.errors import InputError
from tools.inspection_set import read_inspection_set
from tools.trivial import TRIVIAL_NUMBERS, trivial_figures, trivial_numbers


def _write(root, folder, name, grey):
    path = root / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.clip(grey, 0, 255).astype(np.uint8))


def _station(root, spoil, masked=False):
    """A textured part; `spoil` makes a defect in place and returns the picture."""
    rng = np.random.default_rng(0)
    part = cv2.GaussianBlur(rng.uniform(60, 180, (80, 96)), (0, 0), 3)
    for index in range(8):
        _write(root, "train/good", f"{index}.png", part + rng.normal(0, 2, part.shape))
        _write(root, "test/good", f"{index}.png", part + rng.normal(0, 2, part.shape))
        spoilt = spoil(part + rng.normal(0, 2, part.shape))
        _write(root, "test/spoilt", f"{index}.png", spoilt)
        if masked:
            mask = np.zeros(part.shape)
            mask[20:40, 30:50] = 255
            _write(root, "ground_truth/spoilt", f"{index}_mask.png", mask)
    return read_inspection_set(root)


def test_numbers_by_hand(tmp_path):
    path = tmp_path / "half.png"
    frame_bgr = np.zeros((4, 10, 3), dtype=np.uint8)
    frame_bgr[:, 5:] = 200
    path.write_bytes(b"x" * 20)
    numbers = trivial_numbers(path, frame_bgr)
    assert numbers["brightness"] == 100.0
    assert numbers["contrast"] == 100.0
    assert numbers["bytes_per_pixel"] == 0.5
    # The Laplacian is 200 left of the edge, -200 right of it, 0 in the other 8 columns.
    assert numbers["sharpness"] == pytest.approx(2 * 200**2 / 10)


def test_darker_defects_are_found_by_brightness_and_the_mean_picture(tmp_path):
    figures = trivial_figures(_station(tmp_path, lambda part: part - 30), progress=False)
    assert figures["brightness"] == 1.0
    assert figures["mean_picture"] == 1.0
    assert figures["contrast"] < 0.9
    assert figures["mean_picture_pixel_auroc"] is None
    assert figures["mean_picture_au_pro"] is None


def test_blurred_defects_are_found_by_sharpness_and_not_by_brightness(tmp_path):
    station = _station(tmp_path, lambda part: cv2.GaussianBlur(part, (0, 0), 1.5))
    figures = trivial_figures(station, progress=False)
    assert figures["sharpness"] == 1.0
    assert figures["bytes_per_pixel"] == 1.0
    assert figures["brightness"] < 0.9


def test_a_stain_with_a_mask_is_found_at_its_place(tmp_path):
    def stain(part):
        part[20:40, 30:50] += 60
        return part

    figures = trivial_figures(_station(tmp_path, stain, masked=True), progress=False)
    assert set(figures) == {
        *TRIVIAL_NUMBERS,
        "mean_picture",
        "mean_picture_pixel_auroc",
        "mean_picture_au_pro",
    }
    assert figures["mean_picture"] == 1.0
    assert figures["mean_picture_pixel_auroc"] > 0.99
    assert figures["mean_picture_au_pro"] > 0.97


def test_a_test_split_of_one_class_is_refused(tmp_path):
    station = _station(tmp_path, lambda part: part)
    for picture in station.test:
        if picture.is_anomaly:
            picture.path.unlink()
    (tmp_path / "test" / "spoilt").rmdir()
    with pytest.raises(InputError, match="8 good and 0 defective"):
        trivial_figures(read_inspection_set(tmp_path), progress=False)
