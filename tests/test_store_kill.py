"""Killed at any point, the event store keeps what it acknowledged, and nothing by halves."""

from __future__ import annotations

import os
import random
import select
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from kill_store import SETTINGS, picture_of

from edge_app.evidence import PICTURES
from edge_app.store import EventStore

ROOT = Path(__file__).resolve().parent.parent
# Longer than two batches take: kills fall anywhere within one.
LONGEST_S = 0.06


class Killer:
    """Starts children one after the other on a folder, kills each, and remembers what they said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.acknowledged: list[int] = []
        self.next = 0
        self._server = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "kill_store.py")],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._held = b""

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait(10)
        self._server.stdout.close()

    def _lines(self, until_s: float) -> list[str]:
        """What was said until a time, or until something is said if that is infinite."""
        lines: list[str] = []
        while True:
            left_s = until_s - time.monotonic()
            ready = select.select([self._server.stdout], [], [], min(max(left_s, 0), 30))[0]
            if ready:
                self._held += os.read(self._server.stdout.fileno(), 1 << 16)
                *whole, self._held = self._held.split(b"\n")
                lines += [line.decode() for line in whole]
            if (lines and until_s == float("inf")) or left_s <= 0:
                return lines

    def kill_one(self, after_s: float, wait_for_first: bool) -> None:
        """Let a child work, kill it `after_s` after its start or its first acknowledgement."""
        self._server.stdin.write(f"{self.folder} {self.next}\n".encode())
        self._server.stdin.flush()
        child, ended, lines = None, False, []
        while child is None or (wait_for_first and not any(line[0] == "A" for line in lines)):
            lines += self._lines(float("inf"))
            child = next((int(line[2:]) for line in lines if line[0] == "P"), None)
        lines += self._lines(time.monotonic() + after_s)
        os.kill(child, signal.SIGKILL)
        while not ended:
            lines += self._lines(float("inf"))
            ended = "E" in lines
        told = [int(line[2:]) for line in lines if line[0] == "A"]
        self.acknowledged += told
        # One more may be in the store: killed between its commit and its word.
        self.next = (told[-1] if told else self.next) + 2


def check(killer: Killer) -> None:
    """All that was acknowledged is there, once; every picture that a row names is whole."""
    folder = killer.folder
    database = sqlite3.connect(folder / "events.sqlite")
    assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    rows = database.execute("SELECT kind, part, frame, overlay, bytes FROM events").fetchall()
    counted = database.execute("SELECT count FROM counts").fetchone()
    database.close()
    parts = [part for kind, part, *_ in rows if kind == "ng"]
    assert len(parts) == len(set(parts))
    assert set(killer.acknowledged) <= set(parts)
    # Each transaction is whole: its counts are there with its event.
    assert (counted or (0,))[0] == len(parts)
    named = set()
    for kind, part, frame, overlay, size in rows:
        names = [name for name in (frame, overlay) if name]
        named |= set(names)
        sizes = [(folder / PICTURES / name).stat().st_size for name in names]
        assert sum(sizes) == size
        for name in names:
            picture_bgr = cv2.imread(str(folder / PICTURES / name))
            assert picture_bgr is not None, name
            if kind == "ng" and name == frame:
                assert np.array_equal(picture_bgr, picture_of(part))
    store = EventStore(folder, SETTINGS)
    found = {str(path.relative_to(folder / PICTURES)) for path in folder.glob("pictures/*/*")}
    assert found == named  # swept, and nothing but the remains
    assert store.last_id() >= len(rows)
    store.close()


def kill(folder: Path, times: int) -> Killer:
    chance = random.Random(20)
    killer = Killer(folder)
    try:
        for number in range(times):
            # Some at the start, where the store is opened and swept.
            killer.kill_one(chance.uniform(0, LONGEST_S), wait_for_first=number % 4 != 3)
            if number % 20 == 19 or times < 20:
                check(killer)
    finally:
        killer.close()
    check(killer)
    return killer


def test_killed_at_8_points(tmp_path):
    assert len(kill(tmp_path / "events", 8).acknowledged) >= 6


@pytest.mark.slow
def test_killed_at_200_points(tmp_path):
    assert len(kill(tmp_path / "events", 200).acknowledged) >= 150
