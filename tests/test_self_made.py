import numpy as np
import pytest

from tools.reference_set import Reference
from tools.self_made import KINDS, WithSelfMade


def arrow():
    """A picture that no turn and no mirror leaves as it is."""
    picture = np.full((32, 32, 3), 90, np.uint8)
    picture[4:28, 6:10] = 200
    picture[4:8, 6:24] = 200
    return picture


@pytest.fixture
def reference():
    pictures = [np.full((8, 8, 3), value, np.uint8) for value in (1, 2)]
    return Reference(pictures, np.array([0, 1]), ["one", "two"])


def drawn_by_class(reference, kinds, count=300, seed=0):
    both = WithSelfMade(reference, [[arrow()]], kinds)
    pictures, labels = both.draw(np.random.default_rng(seed), count)
    assert len(pictures) == len(labels) == count
    return both, {
        name: [one for one, at in zip(pictures, labels, strict=True) if at == label]
        for label, name in enumerate(both.class_names)
    }


def test_classes_stand_side_by_side_and_come_equally_often(reference):
    both, by_class = drawn_by_class(reference, ("good", *KINDS), 2000)
    assert both.class_names[:3] == ["one", "two", "good"]
    assert len(both.class_names) == 8
    assert all(180 < len(pictures) < 320 for pictures in by_class.values())
    assert {int(one[0, 0, 0]) for one in by_class["one"]} == {1}
    assert all(np.array_equal(one, arrow()) for one in by_class["good"])


def test_turned_pictures_are_the_four_that_are_not_the_part(reference):
    _, by_class = drawn_by_class(reference, ("turned",))
    seen = [by_class[name][0] for name in list(by_class)[2:]]
    seen.append(arrow())
    assert len({one.tobytes() for one in seen}) == 5
    assert np.array_equal(by_class["mirrored"][0], arrow()[:, ::-1])
    assert all(one.flags.c_contiguous for one in seen)


def test_every_drawn_defect_is_another_one(reference):
    _, by_class = drawn_by_class(reference, ("drawn",))
    pictures = by_class["drawn"]
    assert len({one.tobytes() for one in pictures}) == len(pictures)
    assert all((one != arrow()).any() for one in pictures)


def test_the_same_chance_gives_the_same_pictures(reference):
    first, again = (drawn_by_class(reference, KINDS)[1] for _ in range(2))
    assert all(
        np.array_equal(one, other)
        for name in first
        for one, other in zip(first[name], again[name], strict=True)
    )
