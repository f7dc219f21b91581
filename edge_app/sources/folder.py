"""Pictures from a folder, or a single picture, in natural order of their names."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from edge_app.errors import InputError
from edge_app.records import Frame

# The last chunk, which is empty, with its checksum; other programs may write more behind it.
PNG_END = b"IEND\xaeB`\x82"
PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})


def printable(path: Path | str) -> str:
    """The name of a file with what is not UTF-8 in it written as backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_picture(path: Path) -> bool:
    """Whether the name of `path` ends like a picture's."""
    return path.suffix.lower() in PICTURE_SUFFIXES


def list_pictures(folder: Path | str) -> list[Path]:
    """
    The pictures directly inside a folder, in natural order (``2.png`` before ``10.png``).

    Raises
    ------
    InputError
        If the folder does not exist, cannot be read or holds no picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{printable(folder)}: no such folder")
    try:
        found = [path for path in folder.iterdir() if is_picture(path) and path.is_file()]
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from None
    if not found:
        wanted = " ".join(sorted(PICTURE_SUFFIXES))
        raise InputError(f"{folder}: holds no picture (wanted files ending in {wanted})")
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[tuple[int, int | str]]:
    parts = re.split(r"(\d+)", path.name.lower())
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts if part]


def read_picture(path: Path | str) -> np.ndarray:
    """
    Decode a picture file as the device sees it.

    16-bit pictures are reduced to their upper 8 bits, grey becomes three equal channels, an alpha
    channel is dropped and the rotation in the EXIF data is applied.

    Returns
    -------
    frame_bgr : ndarray of uint8, shape (height, width, 3)

    Raises
    ------
    InputError
        If the file cannot be read, is not a picture, or breaks off before its end.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be read: {error.strerror}") from None
    # OpenCV fills the missing rest of a truncated file with grey, and says so on stderr only:
    # a part half made of grey would be judged as if it had been seen.
    if is_cut_short(data):
        raise InputError(
            f"{printable(path)}: the picture breaks off before its end ({len(data)} bytes)"
        )
    try:
        frame_bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error:
        frame_bgr = None
    if frame_bgr is None:
        raise InputError(
            f"{printable(path)}: is not a picture that OpenCV can decode ({len(data)} bytes)"
        )
    return frame_bgr


def is_cut_short(data: bytes) -> bool:
    """Whether the bytes of a JPEG or PNG file end before the picture does; other formats: False."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return PNG_END not in data
    if data[:2] != b"\xff\xd8":
        return False
    # Walk the segments up to the first scan: an EXIF thumbnail holds an end marker of its own.
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xFF:  # fill byte
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if data[at + 1] == 0xDA:
            # Inside a scan 0xFF is followed by 0x00 or a restart marker, so this is the real end.
            return data.find(b"\xff\xd9", at + 2 + length) < 0
        at += 2 + length
    return True


class FolderSource:
    """
    The pictures of a folder, or one picture, each a part of its own.

    A file that cannot be decoded comes as a frame without pixels and with its reason, so that one
    broken picture costs one verdict and not the run.
    """

    live = False
    separate_parts = True

    def __init__(self, path: Path | str) -> None:
        path = Path(path)
        if path.is_file():
            self._paths = [path]
        else:
            self._paths = list_pictures(path)

    def __len__(self) -> int:
        return len(self._paths)

    def frames(self) -> Iterator[Frame]:
        for index, path in enumerate(self._paths):
            name = printable(path)
            try:
                frame_bgr = read_picture(path)
            except InputError as error:
                yield Frame(index, name, None, problem=f"unreadable: {error}")
            else:
                yield Frame(index, name, frame_bgr)

    def close(self) -> None:
        """Nothing is held open."""
