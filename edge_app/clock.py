"""Now, on the two clocks that an event is kept with. Standard library only."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Now:
    """
    A moment.

    Attributes
    ----------
    time_s : float
        Seconds since 1970 UTC; wrong on a board without a battery until the network has told it.
    boot_s : float
        Seconds since the board started, suspended or not; never set, so durations come from it.
    """

    time_s: float
    boot_s: float


def read_now() -> Now:
    """This moment."""
    return Now(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME))


def iso_8601(time_s: float | None) -> str | None:
    """UTC with milliseconds, such as ``2026-01-31T12:00:00.000Z``; None where there is no date."""
    if time_s is None:
        return None
    try:
        moment = datetime.fromtimestamp(time_s, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def boot_id() -> str:
    """A name that this start of the board has for itself."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return "unknown"
