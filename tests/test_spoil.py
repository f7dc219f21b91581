"""Sets spoilt on purpose: what is drawn, what is linked, what is refused."""

import cv2
import numpy as np
import pytest

from tools.__main__ import main
from tools.inspection_set import read_inspection_set


@pytest.fixture
def data_dir(tmp_path):
    folder = tmp_path / "part"
    for where, count in {
        "train/good": 20,
        "train/empty": 2,
        "test/good": 3,
        "test/dent": 6,
    }.items():
        (folder / where).mkdir(parents=True)
        for row in range(count):
            picture = np.full((8, 8), row, np.uint8)
            cv2.imwrite(str(folder / where / f"{row}.png"), picture)
    (folder / "ground_truth/dent").mkdir(parents=True)
    for row in range(6):
        cv2.imwrite(str(folder / f"ground_truth/dent/{row}_mask.png"), np.zeros((8, 8), np.uint8))
    return folder


def spoil(*words):
    return main(["spoil", *map(str, words)])


def test_defective_pictures_take_the_places_of_good_ones_and_leave_the_test(
    data_dir, tmp_path, capsys
):
    assert spoil("--data", data_dir, "--intruders", 0.1, "--out", tmp_path / "out") == 0
    made = read_inspection_set(tmp_path / "out")
    intruders = [path for path in made.train_good if "_is_dent_" in path.name]
    assert len(made.train_good) == 20 and len(intruders) == 2 and len(made.train_empty) == 2
    learnt = {path.resolve() for path in made.train_good}
    measured = {one.path.resolve() for one in made.test}
    assert len(measured) == 3 + 4 and not learnt & measured
    assert all(one.mask_path is not None for one in made.test if one.is_anomaly)
    for path in intruders:
        number = int(path.name.split("_is_")[0])
        assert data_dir / f"train/good/{number}.png" not in learnt
    out = capsys.readouterr().out
    assert "18 good pictures and 2 defective ones" in out and out.count("defective: dent/") == 2


def test_a_seed_is_a_draw(data_dir, tmp_path):
    names = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / str(number)
        assert spoil("--data", data_dir, "--good", 5, "--seed", seed, "--out", out) == 0
        names.append([path.name for path in read_inspection_set(out).train_good])
    assert len(names[0]) == 5 and names[0] == names[1] != names[2]


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "nothing to spoil"),
        (["--good", 21], "has 20 good pictures in train, wanted 21"),
        (["--intruders", 0.3], "has 6 defective pictures in test, wanted more than 6"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_nothing_is_written(
    data_dir, tmp_path, capsys, words, said
):
    assert spoil("--data", data_dir, "--out", tmp_path / "out", *words) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
