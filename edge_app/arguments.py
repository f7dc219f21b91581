"""Types of command-line arguments, shared by the device's and the workstation's commands."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_app.errors import InputError


def whole_from_0(text: str) -> int:
    """A whole number from 0."""
    return _whole(text, 0)


def whole_from_1(text: str) -> int:
    """A whole number from 1."""
    return _whole(text, 1)


def seed(text: str) -> int:
    """A seed: a whole number from 0 to 4294967295, what every source of chance takes."""
    value = _whole(text, 0)
    if value >= 2**32:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted at most {2**32 - 1}")
    return value


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a whole number from {least}")
    return value


def rate(text: str) -> float:
    """A false-reject rate above 0, below 0.5."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 0.5:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a number above 0, below 0.5")
    return value


def region(text: str) -> tuple[float, float, float, float]:
    """A region of interest as left,top,right,bottom, shares of the frame from 0 to 1."""
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError:
        left = top = right = bottom = -1.0
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, wanted left,top,right,bottom from 0 to 1 such as 0.25,0.1,0.75,0.9"
        )
    return left, top, right, bottom


def refuse_unwritable(path: Path | str) -> None:
    """
    Find out before minutes of work, not after, that a result cannot be written.

    Raises
    ------
    InputError
        Naming the path and why.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        with open(path, "ab"):
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
