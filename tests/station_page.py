"""
What the tests of the page share: a station without a camera, and a server for it.

The board shows what it is told to, or plays the sample clip; the controls note what they were asked
to do, and do it to the board; the events are kept by the real store.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_app.config import load_config
from edge_app.errors import InputError
from edge_app.records import Counts, Event, Verdict
from edge_app.store import EventStore
from edge_app.web import WebServer
from edge_app.web.connection import Limits

OLD, NEW = "a" * 64, "b" * 64
TOKEN = "0123456789abcdef0123"
LIMITS = Limits()
ACTS = {"X-Edge-App": "1", "Content-Type": "application/json"}


def drawn(shade: int = 90, size: tuple[int, int] = (240, 320)) -> np.ndarray:
    """A grey picture with a bright square, uint8, shape (height, width, 3)."""
    picture = np.full((*size, 3), shade, np.uint8)
    picture[80:160, 120:200] = 220
    return picture


class FakeBoard:
    """What is to be seen, as the tests set it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.picture: tuple[int, np.ndarray, str] | None = (0, drawn(), "OK")
        self.watching = 0
        self.asked = 0
        self.state: dict[str, Any] = {
            "name": "line-3",
            "part": "nut",
            "mode": "part",
            "bundle": {
                "sha256": OLD,
                "name": "nut",
                "parent": None,
                "pictures": 200,
                "made": "2026-01-31T12:00:00Z",
            },
            "verdict": "OK",
            "reason": None,
            "score": 1.62,
            "score_smoothed": 1.62,
            "threshold": 2.91,
            "seen_s": 0.1,
            "last_part": None,
            "scoring": True,
            "hold": None,
            "counts": {
                "part": {"OK": 1204, "NG": 31, "UNKNOWN": 4},
                "frame": {"OK": 20301, "NG": 412, "UNKNOWN": 66},
                "unknown": {"align": 40, "camera": 22, "dark": 4},
            },
            "since": "2026-01-31T06:00:00.000Z",
            "rate": 14.8,
            "camera_rate": 15.0,
            "heat": {"state": "normal", "temperature_c": 61.3, "flags": []},
            "stages_ms": {"quality": 0.2, "align": 0.9, "encode": 0.6, "score": 0.4},
            "dropped": 0,
            "skipped": 0,
            "last_event": 0,
            "outputs": [
                {"name": "mqtt", "failing": None, "failures": 0, "dropped": 0, "waiting": 0}
            ],
            "storage": {"events": 35, "pictures": 35, "bytes": 18_400_000},
            "job": None,
            "triggers": False,
            "uptime_s": 4521.0,
        }
        self.history: list[list[Any]] = [[n, 1.5, "OK", 2.91] for n in range(40)]

    def snapshot(self) -> dict[str, Any]:
        with self.lock:
            self.asked += 1
            return {**self.state, "history": list(self.history)}

    def watch(self) -> None:
        with self.lock:
            self.watching += 1

    def unwatch(self) -> None:
        with self.lock:
            self.watching -= 1

    def show(self, verdict: str, score: float | None, picture: np.ndarray | None = None, **more):
        """One more frame."""
        with self.lock:
            number = self.picture[0] + 1
            picture = drawn(90 + number % 100) if picture is None else picture
            self.picture = number, picture, verdict
            limit = self.state["threshold"]
            self.history = [*self.history, [self.history[-1][0] + 1, score, verdict, limit]][-300:]
            self.state |= {
                "verdict": verdict,
                "score": score,
                "score_smoothed": score,
                "reason": None,
                **more,
            }


class FakeControls:
    """Notes what it is asked, and does it to the board."""

    def __init__(self, board: FakeBoard, store: EventStore) -> None:
        self._board, self._store = board, store
        self.calls: list[tuple[Any, ...]] = []
        self.learnt = False

    def learn_good(self, event_id: int) -> str:
        self.calls.append(("learn_good", event_id))
        row = self._store.get(event_id)
        if row is None or row.frame is None:
            raise InputError(f"event {event_id} has no picture to learn from")
        self._store.set_mark(event_id, "false alarm")
        self.learnt = True
        self._use(NEW, "nut-2")
        return f"Learnt event {event_id} as good; nut-2 judges from now on."

    def revert(self, sha256: str) -> str:
        self.calls.append(("revert", sha256))
        if sha256 not in (OLD, NEW):
            raise InputError(f"there is no bundle {sha256[:8]}")
        self.learnt = sha256 == NEW
        self._use(sha256, "nut")
        return "nut judges again."

    def _use(self, sha256: str, name: str) -> None:
        with self._board.lock:
            self._board.state["bundle"] = {
                **self._board.state["bundle"],
                "sha256": sha256,
                "name": name,
            }

    def bundles(self) -> list[dict[str, Any]]:
        used = self._board.state["bundle"]["sha256"]
        made = "2026-01-31T12:00:00Z"
        rows = [
            {"sha256": OLD, "name": "nut", "made": made, "what": "as enrolled", "threshold": 2.91}
        ]
        if used == NEW or self.learnt:
            rows.insert(
                0,
                {
                    "sha256": NEW,
                    "name": "nut-2",
                    "made": made,
                    "what": "learnt event 1",
                    "threshold": 3.05,
                },
            )
        return [{**row, "in_use": row["sha256"] == used} for row in rows]

    def mark_defect(self, event_id: int) -> str:
        self.calls.append(("mark_defect", event_id))
        self._store.set_mark(event_id, "true defect")
        return f"Event {event_id} is a true defect."

    def threshold(self) -> dict[str, Any]:
        value = self._board.state["threshold"]
        options = [
            {"share": share, "value": limit}
            for share, limit in (
                (0.1, 2.1), (0.05, 2.4), (0.03, 2.6), (0.01, 2.91), (0.0, 3.3), (0.0, 3.7),
            )
        ]  # fmt: skip
        share = next((o["share"] for o in options if o["value"] >= value), 0.0)
        return {
            "value": value,
            "calibrated": 2.91,
            "share": share,
            "low": 0.001,
            "high": 0.035,
            "options": options,
        }

    def set_threshold(self, value: float) -> str:
        self.calls.append(("set_threshold", value))
        if value > 4:
            raise InputError(f"the limit would be {value:g}, wanted at most 4")
        with self._board.lock:
            self._board.state["threshold"] = value
        return f"The limit is {value:.2f}."

    def take_picture(self) -> str:
        self.calls.append(("take_picture",))
        return "The picture is kept as an event."

    def start(self) -> str:
        return self._scoring(True)

    def stop(self) -> str:
        return self._scoring(False)

    def _scoring(self, on: bool) -> str:
        self.calls.append(("scoring", on))
        with self._board.lock:
            self._board.state["scoring"] = on
        return "The inspection is on." if on else "The inspection is stopped."

    def trigger(self) -> bool:
        self.calls.append(("trigger",))
        return True


class FakeMetrics:
    def render(self) -> bytes:
        return b"# TYPE edge_app_frames counter\nedge_app_frames_total 412.0\n"


class Station:
    """A board, controls and a store, and what is to happen to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.board = FakeBoard()
        self.store = EventStore(folder / "events", load_config().events)
        self.controls = FakeControls(self.board, self.store)
        self._closing = threading.Event()
        self._player: threading.Thread | None = None

    def happen(self, kind: str, detail: str, **more: Any) -> int:
        """Keep an event; its number."""
        event = Event(kind, time.time(), time.monotonic(), detail, **more)
        self.store.emit([event])
        number = self.store.last_id()
        with self.board.lock:
            self.board.state["last_event"] = number
        return number

    def ng(self, part: int = 7, score: float = 12.71) -> int:
        """An NG part with its pictures."""
        frame = drawn(100)
        overlay = frame.copy()
        overlay[90:130, 130:170] = (0, 0, 255)
        return self.happen(
            "ng",
            f"Part {part} is NG: score {score}, limit 2.91.",
            verdict=Verdict.NG,
            part=part,
            score=score,
            threshold=2.91,
            bundle_sha256=OLD,
            frames=21,
            frame_bgr=frame,
            overlay_bgr=overlay,
        )

    def count(self, **counts: int) -> None:
        names = {name.replace("_", " "): value for name, value in counts.items()}
        self.store.emit([Counts(int(time.time() // 3600), names)])

    def play(self, frames: list[tuple[np.ndarray, str, float | None, dict | None]], fps: float):
        """Show frames again and again in a thread: picture, verdict, score, last part."""

        def run() -> None:
            at = 0
            while not self._closing.wait(1 / fps):
                picture, verdict, score, part = frames[at % len(frames)]
                if self.controls.learnt and verdict == "NG":
                    verdict, score = "OK", 2.0
                more = {"last_part": part} if part else {}
                self.board.show(verdict, score, picture, **more)
                at += 1

        self._player = threading.Thread(target=run, daemon=True)
        self._player.start()

    def close(self) -> None:
        self._closing.set()
        if self._player is not None:
            self._player.join(5)
        self.store.close()


def settings(**changes: Any):
    return replace(load_config().web, **{"port": 0, "stream_fps": 20.0, **changes})


@contextlib.contextmanager
def serving(
    station: Station, metrics: Any = None, limits: Limits = LIMITS, **changes: Any
) -> Iterator[WebServer]:
    """A server of the station on a free port, while the context lasts."""
    board, controls, store = station.board, station.controls, station.store
    server = WebServer(settings(**changes), board, controls, store, metrics, "line-3", limits)
    server.start()
    assert server.listening.wait(20), server.problem
    try:
        yield server
    finally:
        assert server.stop(10)


class Client:
    """Asks a server; keeps no cookies but those it is given."""

    def __init__(self, server: WebServer, **headers: str) -> None:
        self.port = int(server.url.rsplit(":", 1)[1].strip("/"))
        self.headers = headers

    def open(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = {**self.headers, **{name.replace("_", "-"): v for name, v in headers.items()}}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        connection.request(method, path, body, sent)
        return connection, connection.getresponse()

    def ask(self, method: str, path: str, body: Any = None, **headers: str):
        """Status, headers, and what came: JSON where it is JSON."""
        connection, response = self.open(method, path, body, **headers)
        with contextlib.closing(connection):
            data = response.read()
        if data and response.headers.get_content_type() == "application/json":
            data = json.loads(data)
        return response.status, response.headers, data

    def get(self, path: str, **headers: str):
        return self.ask("GET", path, **headers)

    def act(self, path: str, body: Any = None, **headers: str):
        given = {name.replace("-", "_"): value for name, value in ACTS.items()} | headers
        return self.ask("POST", path, {} if body is None else body, **given)
