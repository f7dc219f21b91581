"""What the headers of picture files say."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest

from tools.picture_files import read_header

pytest.importorskip("PIL", reason="needs the tools extra")

PICTURE = np.random.default_rng(0).integers(0, 255, (40, 64, 3), dtype=np.uint8)


def write(path, picture=PICTURE, suffix=None, options=()):
    data = cv2.imencode(suffix or path.suffix, picture, list(options))[1].tobytes()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("suffix", "file_format"),
    [(".png", "PNG"), (".jpg", "JPEG"), (".bmp", "BMP"), (".tiff", "TIFF"), (".webp", "WEBP")],
)
def test_formats(tmp_path, suffix, file_format):
    header = read_header(write(tmp_path / f"a{suffix}"))
    assert header.problem is None
    assert header.file_format == file_format
    assert header.size == (64, 40)
    assert header.colour == "colour"
    assert header.orientation == 1
    assert not header.suffix_lies
    assert header.file_bytes == (tmp_path / f"a{suffix}").stat().st_size


@pytest.mark.parametrize("quality", [1, 30, 49, 50, 75, 90, 95, 100])
def test_jpeg_quality(tmp_path, quality):
    path = write(tmp_path / "a.jpg", options=[cv2.IMWRITE_JPEG_QUALITY, quality])
    header = read_header(path)
    # At 1 and 100 neighbours have the same luminance table, or nearly.
    assert abs(header.jpeg_quality - quality) <= (1 if quality in (1, 100) else 0)
    assert header.saved_as == f"JPEG of quality {header.jpeg_quality}"


def test_tables_have_one_fingerprint_each(tmp_path):
    headers = [
        read_header(write(tmp_path / f"{index}.jpg", options=[cv2.IMWRITE_JPEG_QUALITY, quality]))
        for index, quality in enumerate((80, 80, 85))
    ]
    assert headers[0].jpeg_tables == headers[1].jpeg_tables != headers[2].jpeg_tables
    assert read_header(write(tmp_path / "a.png")).jpeg_tables is None


def test_colours(tmp_path):
    assert read_header(write(tmp_path / "a.png", PICTURE[..., 0])).colour == "grey"
    alpha = np.dstack([PICTURE, PICTURE[..., :1]])
    assert read_header(write(tmp_path / "b.png", alpha)).colour == "colour with alpha"


def test_the_content_counts_and_not_the_name(tmp_path):
    header = read_header(write(tmp_path / "a.png", suffix=".jpg"))
    assert header.file_format == "JPEG"
    assert header.suffix_lies


def test_orientation_of_jpeg_and_png(tmp_path):
    entry = struct.pack(">HHIHH", 274, 3, 1, 8, 0)
    tiff = b"MM\0*" + struct.pack(">IH", 8, 1) + entry + struct.pack(">I", 0)
    data = write(tmp_path / "a.jpg").read_bytes()
    body = b"Exif\0\0" + tiff
    segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    (tmp_path / "a.jpg").write_bytes(data[:2] + segment + data[2:])
    assert read_header(tmp_path / "a.jpg").orientation == 8

    import zlib

    data = write(tmp_path / "a.png").read_bytes()
    chunk = b"eXIf" + tiff
    chunk = struct.pack(">I", len(tiff)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    after_header = 8 + 25
    (tmp_path / "a.png").write_bytes(data[:after_header] + chunk + data[after_header:])
    assert read_header(tmp_path / "a.png").orientation == 8


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_what_is_no_picture_has_a_problem(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    header = read_header(tmp_path / "a.png")
    assert header.file_format is None
    assert "a.png" in header.problem
    assert not header.suffix_lies


def test_a_missing_file_has_a_problem(tmp_path):
    assert "No such file" in read_header(tmp_path / "gone.png").problem
