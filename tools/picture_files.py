"""
Picture files: what their headers say, without decoding a pixel.

The format is that of the content, whatever the file is called.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_app.sources.folder import printable

# What each suffix promises, in Pillow's names of formats. MPO is a JPEG file with further pictures
# behind the first, as phones write it.
PROMISED = {
    ".png": ("PNG",),
    ".jpg": ("JPEG",),
    ".jpeg": ("JPEG",),
    ".bmp": ("BMP",),
    ".tif": ("TIFF",),
    ".tiff": ("TIFF",),
    ".webp": ("WEBP",),
}
# Pillow's names of modes in words.
COLOURS = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey with alpha",
    "P": "palette",
    "RGB": "colour",
    "RGBA": "colour with alpha",
    "CMYK": "CMYK",
}
# Pillow's modes of TIFF files with whole or floating-point numbers of 32 bits.
DEEP_MODES = ("I", "F")
LOSSLESS = ("PNG", "BMP", "TIFF")
# Pillow's names of what a TIFF file may hold inside that loses something.
LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")
ORIENTATION = 274  # the EXIF tag
HASH_CHARACTERS = 6
# Table K.1 of the JPEG standard (ITU-T T.81), luminance, by rows.
LUMINANCE = np.array(
    """
    16 11 10 16  24  40  51  61
    12 12 14 19  26  58  60  55
    14 13 16 24  40  57  69  56
    14 17 22 29  51  87  80  62
    18 22 37 56  68 109 103  77
    24 35 55 64  81 104 113  92
    49 64 78 87 103 121 120 101
    72 92 95 98 112 100 103  99
    """.split(),
    dtype=int,
)


def luminance_steps(quality: int) -> np.ndarray:
    """
    Quantisation table of libjpeg for luminance.

    Parameters
    ----------
    quality : int
        1 to 100.

    Returns
    -------
    ndarray of int, shape (64,)
        Steps in grey levels, 1 to 255, by rows.
    """
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((LUMINANCE * scale + 50) // 100, 1, 255)


_LOG_STEPS = np.log([luminance_steps(quality) for quality in range(1, 101)])


@dataclass(frozen=True)
class Header:
    """
    What the header of a picture file says.

    Attributes
    ----------
    path : Path
    file_bytes : int
    file_format : str or None
        ``PNG``, ``JPEG``, ``BMP``, …; None where the file is no picture.
    colour : str
        In words: grey, colour, …
    size : tuple of int
        Width and height in pixels as stored, before any rotation; (0, 0) where unknown.
    orientation : int
        From the EXIF data, 1 to 8; 1 for none.
    jpeg_tables : str or None
        Short fingerprint of the quantisation tables of a JPEG file.
    jpeg_quality : int or None
        libjpeg's quality, 1 to 100, whose luminance table comes nearest.
    lossless : bool
        Whether all files of this format hold the pixels as they were. WebP may or may not.
    problem : str or None
        Why the picture cannot be read, as far as the header tells.
    """

    path: Path
    file_bytes: int
    file_format: str | None = None
    colour: str = ""
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    jpeg_tables: str | None = None
    jpeg_quality: int | None = None
    lossless: bool = False
    problem: str | None = None

    @property
    def saved_as(self) -> str:
        """Format, and for JPEG the quality: what leaves its traces in the pixels."""
        if self.jpeg_quality is not None:
            return f"JPEG of quality {self.jpeg_quality}"
        return self.file_format or "no picture"

    @property
    def suffix_lies(self) -> bool:
        """Whether the file is called by the suffix of another format."""
        promised = PROMISED.get(self.path.suffix.lower())
        return bool(self.file_format and promised and self.file_format not in promised)


def read_header(path: Path) -> Header:
    """
    Read the header of a picture file.

    Parameters
    ----------
    path : Path

    Returns
    -------
    Header
        With its `problem` where the file cannot be read or is no picture; nothing is raised.
    """
    from PIL import Image, UnidentifiedImageError

    file_bytes = 0
    try:
        file_bytes = path.stat().st_size
        # Pillow warns of EXIF data it cannot read and of very large pictures; neither matters here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as picture:
                tables = getattr(picture, "quantization", None)
                file_format = "JPEG" if picture.format == "MPO" else str(picture.format)
                problem = None
                if file_format == "TIFF" and picture.mode in DEEP_MODES:
                    problem = "32 bits a channel, which OpenCV does not decode as a picture"
                    problem = f"{printable(path)}: {problem}"
                return Header(
                    path=path,
                    file_bytes=file_bytes,
                    file_format=file_format,
                    colour=COLOURS.get(picture.mode, picture.mode),
                    size=picture.size,
                    orientation=_orientation(picture),
                    jpeg_tables=_fingerprint(tables) if tables else None,
                    jpeg_quality=_quality(tables[min(tables)]) if tables else None,
                    lossless=_lossless(file_format, picture.info.get("compression")),
                    problem=problem,
                )
    except UnidentifiedImageError:
        problem = "is no picture" if file_bytes else "is empty"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problem = str(getattr(error, "strerror", None) or error)
    return Header(path, file_bytes, problem=f"{printable(path)}: {problem}")


def _lossless(file_format: str, compression: object) -> bool:
    return file_format in LOSSLESS and not (file_format == "TIFF" and compression in LOSSY_TIFF)


def _orientation(picture) -> int:
    from PIL import Image

    if picture.format in ("PNG", "WEBP"):
        # getexif would decode a whole PNG file to look behind its pixels.
        exif = Image.Exif()
        exif.load(picture.info.get("exif", b""))
    else:
        exif = picture.getexif()
    value = exif.get(ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _fingerprint(tables: dict[int, list[int]]) -> str:
    text = repr(sorted((key, list(table)) for key, table in tables.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_CHARACTERS]


def _quality(table: list[int]) -> int:
    """The quality whose luminance table is nearest, by the mean difference of the logarithms."""
    steps = np.log(np.clip(np.asarray(table, float), 1, 255))
    return int(np.abs(_LOG_STEPS - steps).mean(axis=1).argmin()) + 1
