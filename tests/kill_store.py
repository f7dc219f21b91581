"""
A fork server for `test_store_kill`: each child emits events until it is killed.

Standard input: a line with a folder and the first number for each child. Standard output: ``P`` and
the child's process id, then ``A`` and a number as soon as `emit` has returned for that event.
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np

from edge_app.clock import Now
from edge_app.config import EventsConfig
from edge_app.records import Counts, Event, Verdict
from edge_app.store import EventStore

# Evidence is dropped all the time, so that retention is cut off too.
SETTINGS = EventsConfig(keep_days=365, keep_mb=1, keep_free_mb=0, pictures_a_minute=6000)
BATCH = 3


def picture_of(number: int) -> np.ndarray:
    """A picture that its number can be told from, and that no compression makes small."""
    rng = np.random.default_rng(number)
    return rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)


def events(number: int) -> list[Event | Counts]:
    """A batch: two parts, and an episode that the next batch ends."""
    now = Now(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME))
    picture_bgr = picture_of(number)
    part = Event(
        "ng",
        now.time_s,
        now.boot_s,
        f"Part {number} is NG",
        Verdict.NG,
        part=number,
        frame_bgr=picture_bgr,
        overlay_bgr=picture_bgr,
    )
    lasting = Event(
        "unknown",
        now.time_s,
        now.boot_s,
        "Not judged",
        Verdict.UNKNOWN,
        part=-(number // 2),
        episode=f"{os.getpid()} {number // 2}",
        ended_s=now.time_s if number % 2 else None,
        frame_bgr=picture_bgr,
    )
    return [part, lasting, Counts(1, {"part NG": 1})]


def work(folder: str, number: int) -> None:
    store = EventStore(folder, SETTINGS)
    while True:
        store.emit(events(number))
        os.write(1, b"A %d\n" % number)
        number += 1


if __name__ == "__main__":
    for line in sys.stdin:
        folder, first = line.split()
        child = os.fork()
        if child == 0:
            work(folder, int(first))
        # In one write each, so that the child's lines and this one do not mix.
        os.write(1, b"P %d\n" % child)
        os.waitpid(child, 0)
        os.write(1, b"E\n")
