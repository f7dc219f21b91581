"""Learnt pictures: lossless, deterministic, guarded, thinned evenly, removed by name."""

from __future__ import annotations

import io
import zipfile

import cv2
import numpy as np
import pytest

from edge_app.errors import BundleError, InputError
from edge_app.learnt_pictures import (
    FALSE_ALARM,
    GOOD,
    LearntPicture,
    fresh_id,
    pack,
    remove,
    thin,
    unpack,
)

PLENTY = 10**8


def _pictures(count: int, alarms: tuple[int, ...] = ()) -> list[LearntPicture]:
    rng = np.random.default_rng(count)
    result = []
    for index in range(count):
        pixels = rng.integers(0, 256, (24, 40, 3), np.uint8)
        if index % 2:
            pixels[:] = pixels[..., :1]
        kind = FALSE_ALARM if index in alarms else GOOD
        result.append(LearntPicture(f"{index:03d}.png#0", pixels, kind))
    return result


def _ids(pictures: list[LearntPicture]) -> list[str]:
    return [picture.image_id for picture in pictures]


def _npy(array: np.ndarray) -> bytes:
    member = io.BytesIO()
    np.lib.format.write_array(member, array, allow_pickle=True)
    return member.getvalue()


def _changed(content: bytes, compress: int = zipfile.ZIP_STORED, **members: bytes | None) -> bytes:
    """The archive with other members; None leaves one out."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        kept = {name: archive.read(name) for name in archive.namelist()}
    kept |= {f"{name}.npy": member for name, member in members.items()}
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w", compress) as archive:
        for name, member in kept.items():
            if member is not None:
                archive.writestr(name, member)
    return changed.getvalue()


def test_pictures_come_back_bit_by_bit():
    pictures = _pictures(6, alarms=(2,))
    # One grey level in one channel of one pixel is colour.
    almost_grey = pictures[1].pixels_rgb.copy()
    almost_grey[3, 4, 2] ^= 1
    pictures.append(LearntPicture("fast grau \udce4.png", almost_grey))
    back = unpack(pack(pictures, PLENTY), "pictures.npz")
    assert _ids(back) == _ids(pictures)
    assert [p.kind for p in back] == [p.kind for p in pictures]
    for ours, theirs in zip(back, pictures, strict=True):
        assert ours.pixels_rgb.dtype == np.uint8
        assert np.array_equal(ours.pixels_rgb, theirs.pixels_rgb)
        assert not ours.pixels_rgb.flags.writeable


def test_grey_pictures_are_stored_as_one_channel():
    colour, grey = _pictures(2)
    sizes = {name: len(pack([p], PLENTY)) for name, p in (("colour", colour), ("grey", grey))}
    # Noise does not compress: 24 x 40 pixels of three channels against one.
    assert sizes["colour"] - sizes["grey"] == pytest.approx(2 * 24 * 40, rel=0.1)


def test_the_same_pictures_give_the_same_bytes_and_numpy_reads_them():
    content = pack(_pictures(3), PLENTY)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    repacked = pack(unpack(content, "x"), PLENTY)
    assert repacked == content == pack(_pictures(3), PLENTY)
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        assert archive["image_ids"].tolist() == _ids(_pictures(3))
        assert archive["ends"][-1] == len(archive["pictures"])


def test_pack_refuses_what_does_not_fit_and_what_is_a_bug():
    pictures = _pictures(4)
    with pytest.raises(InputError, match="4 learnt pictures take .* MB, wanted at most 0.001 MB"):
        pack(pictures, 1000)
    with pytest.raises(ValueError, match="comes twice"):
        pack([pictures[0], pictures[0]], PLENTY)
    with pytest.raises(ValueError, match="differ in size"):
        pack([pictures[0], LearntPicture("small", pictures[1].pixels_rgb[:8])], PLENTY)
    with pytest.raises(ValueError, match="uint8 of shape"):
        pack([LearntPicture("float", pictures[0].pixels_rgb.astype(np.float32))], PLENTY)


def _png(shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    return cv2.imencode(".png", np.zeros(shape, dtype))[1].reshape(-1)


def _claiming(width: int, height: int) -> np.ndarray:
    """A small PNG whose header claims another size."""
    file = _png((24, 40)).copy()
    file[16:24] = np.array([width, height], ">u4").view(np.uint8)
    return file


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"kinds": None}, "array kinds is missing"),
        ({"kinds": _npy(np.zeros(2, np.uint8))}, "kinds has 2 entries, image_ids has 1"),
        ({"kinds": _npy(np.full(1, 9, np.uint8))}, "kinds holds 9, wanted 0 to 1"),
        ({"kinds": _npy(np.zeros(1, np.float32))}, "kinds is of float32.*wanted uint8"),
        ({"image_ids": _npy(np.array([{}], object))}, "image_ids is of object"),
        ({"image_ids": _npy(np.array([b"a"]))}, r"image_ids is of \|S1.*wanted text"),
        ({"image_ids": _npy(np.array([["a"]]))}, r"shape \(1, 1\), wanted text, shape \(n,\)"),
        ({"image_ids": _npy(np.array([], "U3"))}, "image_ids is empty"),
        ({"image_ids": _npy(np.array([0x7FFFFFFF], "<u4")).replace(b"<u4", b"<U1")}, "no text"),
        ({"ends": _npy(np.array([7]))}, "ends does not cut pictures into 1 files"),
        ({"ends": b"no array"}, "array ends cannot be read"),
        ({"pictures": _npy(np.zeros(0, np.uint8))}, "ends does not cut"),
    ],
)
def test_a_wrong_array_is_named(members, message):
    content = pack(_pictures(1), PLENTY)
    with pytest.raises(BundleError, match="^b/pictures.npz: .*" + message):
        unpack(_changed(content, **members), "b/pictures.npz")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([np.zeros(60, np.uint8)], "'0' is no 8-bit grey or colour PNG"),
        ([_png((24, 40), np.uint16)], "'0' is no 8-bit grey or colour PNG"),
        ([_png((24, 40, 4))], "'0' is no 8-bit grey or colour PNG"),
        ([_png((24, 40)), _png((24, 41))], "'1' is 24 x 41, wanted 24 x 40 like the first"),
        ([_claiming(60000, 60000)], "would take 1.08e.04 MB unpacked, wanted at most"),
        ([_png((24, 40))[:30]], "'0' cannot be decoded"),
    ],
)
def test_a_wrong_picture_is_named(files, message):
    members = {
        "image_ids": _npy(np.array([str(index) for index in range(len(files))])),
        "kinds": _npy(np.zeros(len(files), np.uint8)),
        "ends": _npy(np.cumsum([len(file) for file in files])),
        "pictures": _npy(np.concatenate(files)),
    }
    content = _changed(pack(_pictures(1), PLENTY), **members)
    with pytest.raises(BundleError, match="^f: array pictures:? " + message):
        unpack(content, "f")


def test_a_picture_named_twice_is_refused():
    content = _changed(pack(_pictures(2), PLENTY), image_ids=_npy(np.array(["a", "a"])))
    with pytest.raises(BundleError, match="f: array image_ids names a picture twice"):
        unpack(content, "f")


def test_a_header_that_asks_for_too_much_is_refused_before_anything_is_made():
    content = pack(_pictures(1), PLENTY)
    honest = _npy(np.zeros(10, np.uint8))
    huge = honest.replace(b"(10,), }" + b" " * 13, b"(10000000000000,), } ")
    assert huge != honest and len(huge) == len(honest)
    with pytest.raises(BundleError, match="holds 10 bytes, its header asks for 10000000000000"):
        unpack(_changed(content, pictures=huge), "f")
    # numpy makes text of one character from text of none.
    no_text = _npy(np.array([], "U3")).replace(b"<U3", b"<U0")
    no_text = no_text.replace(b"(0,), }" + b" " * 12, b"(1000000000000,), }")
    assert b"1000000000000" in no_text
    with pytest.raises(BundleError, match="image_ids is of <U0"):
        unpack(_changed(content, image_ids=no_text), "f")
    with pytest.raises(BundleError, match="is compressed, wanted it stored"):
        unpack(_changed(content, zipfile.ZIP_DEFLATED), "f")


def test_what_is_no_archive_or_was_cut_or_changed_is_refused():
    content = pack(_pictures(2), PLENTY)
    for broken in (b"", b"PK", content[: len(content) // 2], b"x" * 500):
        with pytest.raises(BundleError, match="^f: is not a plain array archive"):
            unpack(broken, "f")
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.integers(0, len(content), 200):
        changed = bytearray(content)
        changed[place] ^= 0xFF
        try:
            unpack(bytes(changed), "f")
        except BundleError:
            refused += 1
    # The rest changed a date or a permission, which no picture depends on.
    assert refused > 180


def test_a_thinned_set_keeps_false_alarms_and_spreads_evenly():
    pictures = _pictures(60, alarms=(3, 50, 51))
    whole = len(pack(pictures, PLENTY))
    assert _ids(thin(pictures, PLENTY)) == _ids(pictures)
    kept = thin(pictures, whole // 3)
    assert len(pack(kept, whole // 3)) <= whole // 3
    places = [int(picture.image_id[:3]) for picture in kept]
    assert places == sorted(places) and {3, 50, 51} <= set(places)
    good = [place for place in places if place not in (3, 50, 51)]
    assert len(good) >= 10
    # Even: no gap twice the mean one, the ends included.
    gaps = np.diff([-1, *good, 60])
    assert gaps.max() <= 2 * 60 / len(good)


def test_thinned_sets_fit_at_every_limit_and_use_the_room():
    pictures = _pictures(12, alarms=(1, 7))
    pictures.append(LearntPicture("a much longer name " * 9, pictures[0].pixels_rgb))
    whole = len(pack(pictures, PLENTY))
    for most in range(4000, whole + 3000, 700):
        kept = thin(pictures, most)
        assert len(pack(kept, most)) <= most
    assert len(kept) == len(pictures)


def test_too_many_false_alarms_are_spread_themselves():
    pictures = _pictures(20, alarms=tuple(range(0, 20, 2)))
    kept = thin(pictures, 20000)
    assert 2 <= len(kept) < 10 and {picture.kind for picture in kept} == {FALSE_ALARM}
    with pytest.raises(InputError, match="not one learnt picture fits in 0.003 MB"):
        thin(pictures, 3000)
    assert thin([], 0) == []


def test_removing_names_the_nearest_where_there_is_none():
    pictures = _pictures(4)
    assert _ids(remove(pictures, ["002.png#0", "000.png#0"])) == ["001.png#0", "003.png#0"]
    with pytest.raises(InputError, match="called '02.png#0', the nearest is '002.png#0'"):
        remove(pictures, ["001.png#0", "02.png#0"])
    with pytest.raises(InputError, match="there are none"):
        remove([], ["x"])


def test_fresh_ids():
    taken = ["a.png", "b.png", "b.png~2"]
    assert [fresh_id(name, taken) for name in "a.png b.png c.png".split()] == [
        "a.png~2",
        "b.png~3",
        "c.png",
    ]
