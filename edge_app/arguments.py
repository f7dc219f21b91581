"""Types of command-line arguments, shared by the device's and the workstation's commands."""

from __future__ import annotations

import argparse


def whole_from_1(text: str) -> int:
    """A whole number from 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a whole number from 1")
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
