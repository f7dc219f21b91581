"""Pictures as the device reads them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edge_app.errors import InputError
from edge_app.sources import open_source
from edge_app.sources.folder import FolderSource, is_cut_short, list_pictures, read_picture


def picture(shape=(40, 60, 3), dtype=np.uint8):
    rng = np.random.default_rng(0)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def test_natural_order_and_only_pictures(tmp_path):
    for name in ("10.png", "2.PNG", "1.jpg"):
        cv2.imwrite(str(tmp_path / name), picture())
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "sub.png").mkdir()
    assert [p.name for p in list_pictures(tmp_path)] == ["1.jpg", "2.PNG", "10.png"]


def test_16_bit_grey_and_rgba_become_8_bit_bgr(tmp_path):
    deep = picture((40, 60), np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    read = read_picture(tmp_path / "deep.png")
    assert read.dtype == np.uint8 and read.shape == (40, 60, 3)
    np.testing.assert_allclose(read[..., 0], deep / 257, atol=1)
    grey = picture((40, 60))
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    np.testing.assert_array_equal(read_picture(tmp_path / "grey.png"), np.dstack([grey] * 3))
    rgba = picture((40, 60, 4))
    cv2.imwrite(str(tmp_path / "rgba.png"), rgba)
    np.testing.assert_array_equal(read_picture(tmp_path / "rgba.png"), rgba[..., :3])


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_picture_cut_short_is_refused_wherever_it_is_cut(tmp_path, suffix):
    coded, data = cv2.imencode(suffix, cv2.resize(picture(), (320, 240)))
    whole = data.tobytes()
    path = tmp_path / f"cut{suffix}"
    for share in (0.01, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InputError, match="cut"):
            read_picture(path)
    path.write_bytes(whole)
    assert read_picture(path).shape == (240, 320, 3)


def test_an_end_marker_in_a_thumbnail_does_not_count():
    coded, data = cv2.imencode(".jpg", picture())
    whole = data.tobytes()
    thumbnail = b"\xff\xe1\x00\x08\xff\xd8\xff\xd9\x00\x00"
    with_thumbnail = whole[:2] + thumbnail + whole[2:]
    assert not is_cut_short(with_thumbnail)
    assert is_cut_short(with_thumbnail[:-100])


def test_bytes_behind_the_end_are_fine():
    coded, data = cv2.imencode(".jpg", picture())
    assert not is_cut_short(data.tobytes() + b"\x00" * 500)


def test_one_broken_picture_costs_one_frame(tmp_path):
    for name in ("a.png", "c.png"):
        cv2.imwrite(str(tmp_path / name), picture())
    (tmp_path / "b.png").write_text("no picture at all")
    frames = list(FolderSource(tmp_path).frames())
    assert [frame.frame_bgr is None for frame in frames] == [False, True, False]
    assert frames[1].problem.startswith("unreadable: ") and "b.png" in frames[1].problem


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        list_pictures(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no picture"):
        list_pictures(tmp_path)
    with pytest.raises(InputError, match="no such folder or file"):
        open_source(str(tmp_path / "nowhere"))
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(InputError, match="neither a picture nor a video"):
        open_source(str(tmp_path / "clip.mp4"))


def test_a_video_without_frames_is_refused(tmp_path):
    path = str(tmp_path / "none.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 64))
    writer.release()
    with pytest.raises(InputError, match="no frame|neither a picture nor a video"):
        open_source(path)
