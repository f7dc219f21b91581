"""
Learnt pictures: what a bundle remembers of the good parts besides numbers.

With the prepared pictures themselves, adding to a bundle relearns as if all pictures had come at
once, and each can be taken out again. They are kept lossless: a lossy format would teach its own
traces. An archive in numpy's ``npz`` format holds

::

    image_ids   (n,) str           unique
    kinds       (n,) uint8         index into KINDS
    ends        (n,) int64         where each picture's bytes end in `pictures`
    pictures    (ends[-1],) uint8  PNG files one after the other, grey ones with one channel
"""

from __future__ import annotations

import difflib
import io
import math
import struct
import zipfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from edge_app.errors import BundleError, InputError
from edge_app.quality import Measures

GOOD, FALSE_ALARM = "good", "false alarm"
KINDS = (GOOD, FALSE_ALARM)
# Run lengths only, and without a compression level, of which OpenCV would try all row filters: real
# colour crops of 160 x 160 take 30 to 44 kB and 0.6 to 0.8 ms, grey ones 12 kB and 0.3 ms; with
# level 1 a seventh less, in half as long again. The slowest level takes 10 to 27 ms.
PNG_PARAMETERS = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)
# Bytes of the archive that are no array's content: four members' headers and a directory.
ARCHIVE_BYTES = 2048
# Unpacked pictures may take so much: 5000 of 144 x 448 in colour. A small file can ask for
# much more.
MOST_UNPACKED_BYTES = 1 << 30
# The last of Unicode; numpy breaks off with an error of Python's own at what lies beyond.
LAST_CHARACTER = 0x10FFFF
# The earliest date that a zip file can hold: the same pictures give the same bytes.
ZIP_DATE = (1980, 1, 1, 0, 0, 0)
_DTYPES = {"image_ids": "U", "kinds": "u1", "ends": "i8", "pictures": "u1"}


@dataclass(frozen=True, eq=False)
class LearntPicture:
    """
    One picture that was learnt.

    Attributes
    ----------
    image_id : str
        Unique among the pictures of a bundle.
    pixels_rgb : ndarray of uint8, shape (height, width, 3)
        As prepared for the encoder.
    kind : {'good', 'false alarm'}
        'false alarm' where it was added because it had wrongly been NG.
    measures : Measures or None
        What its frame measured; None where that was not kept. It is not part of the archive: the
        reference keeps it, see `enrol.known_pictures`.
    """

    image_id: str
    pixels_rgb: np.ndarray
    kind: str = GOOD
    measures: Measures | None = None


def pack(pictures: Sequence[LearntPicture], most_bytes: int) -> bytes:
    """
    Pictures as the content of a file; the same pictures give the same bytes.

    Parameters
    ----------
    pictures : sequence of LearntPicture
        All of one size, at least one.
    most_bytes : int
        `thin` with the same number chooses pictures that fit.

    Raises
    ------
    InputError
        If they take more than `most_bytes`.
    ValueError
        If there is none, they differ in size, an id comes twice or a kind is unknown.
    """
    if not pictures:
        raise ValueError("no picture to pack")
    ids = [picture.image_id for picture in pictures]
    if len(set(ids)) < len(ids):
        raise ValueError("an image_id comes twice")
    if len({picture.pixels_rgb.shape for picture in pictures}) > 1:
        raise ValueError("the pictures differ in size")
    files = [_encode(picture.pixels_rgb) for picture in pictures]
    arrays = {
        "image_ids": np.array(ids),
        "kinds": np.array([KINDS.index(picture.kind) for picture in pictures], np.uint8),
        "ends": np.cumsum([len(file) for file in files], dtype="<i8"),
        "pictures": np.concatenate(files),
    }
    content = io.BytesIO()
    # Stored: a PNG file does not get smaller.
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", ZIP_DATE)
            # Else it says which system wrote it.
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, member.getvalue())
    packed = content.getvalue()
    if len(packed) > most_bytes:
        raise InputError(
            f"{len(pictures)} learnt pictures take {_megabytes(len(packed))}, "
            f"wanted at most {_megabytes(most_bytes)}"
        )
    return packed


def unpack(content: bytes, where: str) -> list[LearntPicture]:
    """
    Pictures from the content of a file that `pack` made.

    Parameters
    ----------
    content : bytes
    where : str
        The file's path, for errors.

    Returns
    -------
    list of LearntPicture
        Their pixels are read-only.

    Raises
    ------
    BundleError
        Naming `where` and the array that is wrong. Nothing large is made before its size is known.
    """
    arrays = _read_arrays(content, where)
    kinds, ends, joined = arrays["kinds"], arrays["ends"], arrays["pictures"]
    if not len(arrays["image_ids"]):
        raise BundleError(f"{where}: array image_ids is empty, wanted at least one picture")
    if arrays["image_ids"].view("<u4").max() > LAST_CHARACTER:
        raise BundleError(f"{where}: array image_ids holds what is no text")
    ids = arrays["image_ids"].tolist()
    count = len(ids)
    for name in ("kinds", "ends"):
        if len(arrays[name]) != count:
            raise BundleError(
                f"{where}: array {name} has {len(arrays[name])} entries, image_ids has {count}"
            )
    if len(set(ids)) < count:
        raise BundleError(f"{where}: array image_ids names a picture twice")
    if kinds.max() >= len(KINDS):
        raise BundleError(f"{where}: array kinds holds {kinds.max()}, wanted 0 to {len(KINDS) - 1}")
    starts = np.concatenate([[0], ends[:-1]])
    if ends[-1] != len(joined) or starts[0] != 0 or not (starts < ends).all():
        raise BundleError(f"{where}: array ends does not cut pictures into {count} files")
    files = [joined[start:end] for start, end in zip(starts, ends, strict=True)]
    size = _png_size(files[0])
    for image_id, file in zip(ids, files, strict=True):
        own = _png_size(file)
        if own is None:
            raise BundleError(
                f"{where}: array pictures: {image_id!r} is no 8-bit grey or colour PNG"
            )
        if own != size:
            raise BundleError(
                f"{where}: array pictures: {image_id!r} is {own[0]} x {own[1]}, "
                f"wanted {size[0]} x {size[1]} like the first"
            )
    unpacked = count * size[0] * size[1] * 3
    if unpacked > MOST_UNPACKED_BYTES:
        raise BundleError(
            f"{where}: array pictures would take {_megabytes(unpacked)} unpacked, "
            f"wanted at most {_megabytes(MOST_UNPACKED_BYTES)}"
        )
    what = f"{where}: array pictures"
    return [
        LearntPicture(image_id, _decode(file, f"{what}: {image_id!r}"), KINDS[kind])
        for image_id, file, kind in zip(ids, files, kinds, strict=True)
    ]


def thin(pictures: Sequence[LearntPicture], most_bytes: int) -> list[LearntPicture]:
    """
    The pictures that fit in a file, in their order.

    All, if they fit. Else all false alarms, which are known to be hard, and good ones evenly spread
    over the sequence; where not even the false alarms fit, an even spread of them alone.

    Parameters
    ----------
    pictures : sequence of LearntPicture
    most_bytes : int

    Returns
    -------
    list of LearntPicture
        ``len(pictures) - len(result)`` were left out.

    Raises
    ------
    InputError
        If not even one picture fits.
    """
    if not pictures:
        return []
    longest = max(len(picture.image_id) for picture in pictures)
    each = 4 * max(longest, 1) + 1 + 8
    # A PNG file is never much larger than the pixels in it: what fits even so need not be encoded.
    most = sum(int(1.01 * picture.pixels_rgb.nbytes) + 1024 + each for picture in pictures)
    if most <= most_bytes - ARCHIVE_BYTES:
        return list(pictures)
    # The picture's own bytes, its place in the text array of four bytes a character, kind and end.
    cost = np.array([len(_encode(picture.pixels_rgb)) for picture in pictures])
    cost += each
    room = most_bytes - ARCHIVE_BYTES
    is_alarm = np.array([picture.kind == FALSE_ALARM for picture in pictures])
    alarms, good = np.flatnonzero(is_alarm), np.flatnonzero(~is_alarm)
    kept = _spread_that_fits(alarms, cost, room)
    if len(kept) == len(alarms):
        kept = np.concatenate([kept, _spread_that_fits(good, cost, room - cost[kept].sum())])
    if len(kept) == 0:
        raise InputError(
            f"not one learnt picture fits in {_megabytes(most_bytes)}, the smallest takes "
            f"{_megabytes(int(cost.min()) + ARCHIVE_BYTES)}"
        )
    return [pictures[index] for index in np.sort(kept)]


def _spread_that_fits(indices: np.ndarray, cost: np.ndarray, room: int) -> np.ndarray:
    """As many as possible of `indices`, evenly spread, whose costs sum to at most `room`."""
    for count in range(len(indices), 0, -1):
        # The middle of each of `count` equal pieces.
        chosen = indices[(2 * np.arange(count) + 1) * len(indices) // (2 * count)]
        if cost[chosen].sum() <= room:
            return chosen
    return indices[:0]


def remove(pictures: Sequence[LearntPicture], image_ids: Iterable[str]) -> list[LearntPicture]:
    """
    The pictures without those named.

    Raises
    ------
    InputError
        If there is no picture of such a name; it names the nearest.
    """
    unwanted = set()
    known = {picture.image_id for picture in pictures}
    for image_id in image_ids:
        if image_id not in known:
            near = difflib.get_close_matches(image_id, sorted(known), n=1, cutoff=0.0)
            hint = f", the nearest is {near[0]!r}" if near else ", there are none"
            raise InputError(f"no learnt picture is called {image_id!r}{hint}")
        unwanted.add(image_id)
    return [picture for picture in pictures if picture.image_id not in unwanted]


def fresh_id(name: str, taken: Collection[str]) -> str:
    """`name`, or where it is taken the first free one of ``name~2``, ``name~3`` and so on."""
    if name not in taken:
        return name
    number = 2
    while f"{name}~{number}" in taken:
        number += 1
    return f"{name}~{number}"


def _encode(pixels_rgb: np.ndarray) -> np.ndarray:
    if pixels_rgb.dtype != np.uint8 or pixels_rgb.ndim != 3 or pixels_rgb.shape[2] != 3:
        raise ValueError(
            f"a learnt picture must be uint8 of shape (height, width, 3), "
            f"got {pixels_rgb.dtype} of shape {pixels_rgb.shape}"
        )
    red, green, blue = cv2.split(pixels_rgb)
    is_grey = np.array_equal(red, green) and np.array_equal(red, blue)
    picture = red if is_grey else cv2.cvtColor(pixels_rgb, cv2.COLOR_RGB2BGR)
    done, file = cv2.imencode(".png", picture, PNG_PARAMETERS)
    if not done:
        raise ValueError(f"a picture of shape {pixels_rgb.shape} cannot be encoded")
    return file.reshape(-1)


def _decode(file: np.ndarray, what: str) -> np.ndarray:
    try:
        picture = cv2.imdecode(file, cv2.IMREAD_COLOR)
    except cv2.error:
        picture = None
    if picture is None:
        raise BundleError(f"{what} cannot be decoded")
    pixels_rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    pixels_rgb.setflags(write=False)
    return pixels_rgb


def _png_size(file: np.ndarray) -> tuple[int, int] | None:
    """(height, width) from a PNG's header; None if it is no 8-bit grey or RGB one."""
    # Signature, then the header's length and name, width, height, bit depth, colour type: RFC 2083.
    header = file[:26].tobytes()
    if len(header) < 26 or header[:16] != b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR":
        return None
    width, height, depth, colour = struct.unpack(">IIBB", header[16:])
    if depth != 8 or colour not in (0, 2) or not width or not height:
        return None
    return height, width


def _read_arrays(content: bytes, where: str) -> dict[str, np.ndarray]:
    """The four arrays, each checked for its size before it is made."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            members = {
                name: archive.read(entries[f"{name}.npy"])
                for name in _DTYPES
                # What is stored is no larger than the file; what is compressed could be.
                if f"{name}.npy" in entries
                and entries[f"{name}.npy"].compress_type == zipfile.ZIP_STORED
            }
    # An encrypted member is a RuntimeError, one of another method a NotImplementedError.
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"{where}: is not a plain array archive: {error}") from None
    for name in _DTYPES:
        if name not in members:
            state = "compressed, wanted it stored" if f"{name}.npy" in entries else "missing"
            raise BundleError(f"{where}: array {name} is {state}")
    return {
        name: _read_array(member, _DTYPES[name], f"{where}: array {name}")
        for name, member in members.items()
    }


def _read_array(member: bytes, wanted: str, what: str) -> np.ndarray:
    """A one-dimensional array; numpy's own reader would make it before it looks at the bytes."""
    stream = io.BytesIO(member)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("of a format other than 1.0")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    # A header that is cut or is no Python literal fails in as many ways.
    except (ValueError, TypeError, SyntaxError, KeyError, EOFError) as error:
        raise BundleError(f"{what} cannot be read: {error}") from None
    fits = dtype.str.startswith("<U") if wanted == "U" else dtype == np.dtype(f"<{wanted}")
    # Text of no length would be given a length, times whatever number the header asks for.
    if not fits or len(shape) != 1 or dtype.itemsize == 0:
        described = {"U": "text"}.get(wanted, str(np.dtype(wanted)))
        raise BundleError(f"{what} is of {dtype}, shape {shape}, wanted {described}, shape (n,)")
    rest = len(member) - stream.tell()
    if math.prod(shape) * dtype.itemsize != rest:
        raise BundleError(
            f"{what} holds {rest} bytes, its header asks for {math.prod(shape) * dtype.itemsize}"
        )
    return np.frombuffer(member, dtype, offset=stream.tell()) if rest else np.empty(0, dtype)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.3g} MB"
