"""
Text in a picture, of a wanted height, measured and never guessed.

OpenCV 4 and 5 draw different fonts under the same name, of other widths and other heights. Here a
size is the height of a capital letter in pixels, which is measured once, and widths are asked for.
OpenCV 4 draws ASCII only: other characters are spelt, and the degree sign is drawn as a ring.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import cv2
import numpy as np

Colour = tuple[int, int, int]

FONT = cv2.FONT_HERSHEY_SIMPLEX
DEGREE = "°"
_SPELT = {
    "…": "...",
    "–": "-",
    "—": "-",
    "×": "x",
    "µ": "u",
    "’": "'",
    "“": '"',
    "”": '"',
    "→": "->",
    "ß": "ss",
}


def plain(text: str) -> str:
    """`text` in ASCII and degree signs."""
    said = []
    for character in text:
        if character == DEGREE or " " <= character <= "~":
            said.append(character)
            continue
        spelt = _SPELT.get(character)
        if spelt is None:
            spelt = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
        said.append(spelt or "?")
    return "".join(said)


@lru_cache(maxsize=1)
def _capital_at_1() -> float:
    """Height of a capital letter at font scale 1, pixels."""
    picture = np.zeros((240, 240), np.uint8)
    # At scale 4 a pixel more or less is 1 %.
    cv2.putText(picture, "H", (20, 180), FONT, 4.0, 255, 1, cv2.LINE_AA)
    rows = np.flatnonzero(picture.max(axis=1) > 127)
    return (rows[-1] - rows[0] + 1) / 4.0


def _scale(px: int) -> float:
    return px / _capital_at_1()


def _thickness(px: int, bold: bool) -> int:
    # A stroke of a seventh of the capital is bold, of a fourteenth regular.
    return max(2, round(px / 7)) if bold else max(1, round(px / 14))


def _ring(px: int) -> int:
    """Radius of a degree sign."""
    return max(round(px * 0.16), 2)


@lru_cache(maxsize=4096)
def width(text: str, px: int, bold: bool = False) -> int:
    """
    Width in pixels.

    Parameters
    ----------
    text : str
    px : int
        Height of a capital letter.
    bold : bool
    """
    parts = plain(text).split(DEGREE)
    total = 0
    for part in parts:
        if part:
            total += cv2.getTextSize(part, FONT, _scale(px), _thickness(px, bold))[0][0]
    return total + (len(parts) - 1) * (2 * _ring(px) + 4)


def below(px: int) -> int:
    """How far letters reach below the line, pixels."""
    return round(px * 0.4)


def draw(
    picture: np.ndarray,
    text: str,
    at: tuple[int, int],
    px: int,
    colour: Colour,
    bold: bool = False,
) -> int:
    """
    Draw text.

    Parameters
    ----------
    picture : ndarray of uint8, shape (h, w, 3)
        Drawn into.
    text : str
    at : tuple of int
        (x, y) where the line begins.
    px : int
        Height of a capital letter.
    colour : tuple of int
        BGR.
    bold : bool

    Returns
    -------
    int
        The width drawn.
    """
    x, y = at
    thickness, ring = _thickness(px, bold), _ring(px)
    for number, part in enumerate(plain(text).split(DEGREE)):
        if number:
            centre = (x + ring + 2, y - px + ring)
            cv2.circle(picture, centre, ring, colour, max(thickness // 2, 1), cv2.LINE_AA)
            x += 2 * ring + 4
        if part:
            cv2.putText(picture, part, (x, y), FONT, _scale(px), colour, thickness, cv2.LINE_AA)
            x += cv2.getTextSize(part, FONT, _scale(px), thickness)[0][0]
    return x - at[0]


def fitting(text: str, most_width: int, most_px: int, bold: bool = False) -> int:
    """The largest size up to `most_px` at which the text is at most so wide; at least 6."""
    px = most_px
    while px > 6 and width(text, px, bold) > most_width:
        px = min(px - 1, int(px * most_width / max(width(text, px, bold), 1)) + 1)
    return max(px, 6)


def shortened(text: str, most_width: int, px: int, bold: bool = False) -> str:
    """`text`, cut so that with ``...`` behind it, it is at most so wide."""
    text = plain(text)
    if width(text, px, bold) <= most_width:
        return text
    while text and width(text + "...", px, bold) > most_width:
        text = text[:-1]
    return text.rstrip() + "..."


def wrapped(text: str, most_width: int, px: int, most_lines: int, bold: bool = False) -> list[str]:
    """Lines of at most so many pixels; what does not fit in the last one is cut."""
    lines: list[str] = []
    words = plain(text).split()
    while words and len(lines) < most_lines:
        line = words.pop(0)
        while words and width(f"{line} {words[0]}", px, bold) <= most_width:
            line += " " + words.pop(0)
        lines.append(line)
    if words:
        lines[-1] += " " + " ".join(words)
    return [shortened(line, most_width, px, bold) for line in lines]
