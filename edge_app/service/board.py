"""
The board: what the service shows of itself. The loop writes on it, the page and systemd read it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edge_app.bundle import Bundle
from edge_app.clock import iso_8601
from edge_app.errors import InputError
from edge_app.rate import Rate, averaged
from edge_app.records import Frame, Result, Verdict
from edge_app.thermal import Heat

# Points of the score history: as many as a wide screen has room for.
HISTORY = 300


class Board:
    """
    The newest of everything that is shown.

    Parameters
    ----------
    name : str
        The station's.
    triggers : bool
        Whether a part can be announced from the page.

    Attributes
    ----------
    scoring : bool
        False while somebody has stopped the inspection.
    hold : str or None
        Why every frame is UNKNOWN; None where they are judged.
    job : dict or None
        What is being learnt: `what`, `stage`, `done`, `of`.
    totals : callable
        Gives how often what has happened since the start, as `Chronicle.totals`.
    outputs : callable
        Gives the outputs' state, a list of dict.
    storage : callable
        Gives what the event store holds, a dict, or None; may read the disk.
    last_event : callable
        Gives the number of the newest event; may read the disk.
    """

    def __init__(self, name: str, triggers: bool = False) -> None:
        self.name, self.triggers = name, triggers
        self.scoring = True
        self.hold: str | None = None
        self.job: dict[str, Any] | None = None
        self.totals: Callable[[], Mapping[str, int]] = dict
        self.outputs: Callable[[], list[dict[str, Any]]] = list
        self.storage: Callable[[], dict[str, Any] | None] = lambda: None
        self.last_event: Callable[[], int] = lambda: 0
        self._lock = threading.Lock()
        self._watchers = 0
        self._picture: tuple[int, np.ndarray, str] | None = None
        self._shown = 0
        self._since_s, self._started_s = time.time(), time.monotonic()
        self._bundle: Bundle | None = None
        self._mode = ""
        self._result: Result | None = None
        # What is said without one.
        self._waiting = "start: no frame yet", "waiting for the camera"
        self._result_s = self._started_s
        self._part: Result | None = None
        self._history: deque[tuple[int, float | None, str, float | None]] = deque(maxlen=HISTORY)
        self._points = 0
        self._stages_ms: dict[str, float] = {}
        self._inspected = 0
        self._rates = Rate(), Rate()
        self._paces = 0.0, 0.0
        self._heat: Heat | None = None
        self._dropped = self._skipped = 0
        self._turned_s = self._started_s

    # The loop's side

    def judged_by(self, bundle: Bundle, mode: str) -> None:
        """From now on by this bundle; scores of another one are no history of it."""
        with self._lock:
            self._bundle, self._mode = bundle, mode
            self._history.clear()

    def saw(self, frame: Frame, results: list[Result], heat: Heat | None, skipped: int) -> None:
        """A frame has been taken, whether or not it gave results."""
        self._turned_s = now_s = time.monotonic()
        with self._lock:
            self._heat, self._dropped, self._skipped = heat, frame.dropped, skipped
            self._note(results, now_s)
            if not results and self._mode == "triggered" and frame.frame_bgr is not None:
                self._wait()
            self._paces = (
                self._rates[0].at(self._inspected, now_s),
                self._rates[1].at(frame.index, now_s),
            )

    def note(self, results: list[Result]) -> None:
        """Results that no frame of their own has given."""
        with self._lock:
            self._note(results, time.monotonic())

    def _note(self, results: list[Result], now_s: float) -> None:
        for result in results:
            self._note_one(result, now_s)

    def _note_one(self, result: Result, now_s: float) -> None:
        decision = result.decision
        closed = decision.closed is not None
        if closed:
            self._part = result
        else:
            self._result, self._result_s = result, now_s
            if decision.score is not None:
                self._inspected += 1
            for stage, ms in result.latency_ms.items():
                averaged(self._stages_ms, stage, ms)
        # The history is of parts where there are parts, else of frames.
        by_part = self._mode in ("part", "triggered")
        if closed is by_part and decision.verdict is not Verdict.EMPTY:
            self._points += 1
            self._history.append(
                (self._points, decision.score_smoothed, str(decision.verdict), result.threshold)
            )

    def _wait(self) -> None:
        """Between two announced parts: a camera lost then, or a hold, is over."""
        self._waiting = "trigger: no part announced", "waiting for a trigger"
        if self._result is not None and self._result.decision.part is None:
            self._result = None

    @property
    def watched(self) -> bool:
        """Whether anybody looks at the picture."""
        return self._watchers > 0

    def show(self, picture_bgr: np.ndarray, verdict: str) -> None:
        """The newest picture, its heatmap laid over it; it must not be written to any more."""
        with self._lock:
            self._shown += 1
            self._picture = (self._shown, picture_bgr, verdict)

    # The readers' side

    def watch(self) -> None:
        """One more looks at the picture."""
        with self._lock:
            self._watchers += 1

    def unwatch(self) -> None:
        """One fewer."""
        with self._lock:
            self._watchers = max(self._watchers - 1, 0)
            if not self._watchers:
                # Who comes next is not to be shown an old one as if it were new.
                self._picture = None

    @property
    def picture(self) -> tuple[int, np.ndarray, str] | None:
        """Number, picture (uint8, shape (height, width, 3), BGR) and verdict of the newest."""
        return self._picture

    def silent_s(self) -> float:
        """Seconds since the loop last turned; it does so at least once a second unless it hangs."""
        return time.monotonic() - self._turned_s

    def line(self) -> str:
        """How it goes, in one line for ``systemctl status``."""
        with self._lock:
            result, heat, pace = self._result, self._heat, self._paces[0]
        if result is None:
            return self._waiting[1]
        decision = result.decision
        said = [str(decision.verdict)]
        if decision.reason:
            said[0] += f" ({decision.reason})"
        said.append(f"{pace:.1f} frames/s")
        if heat is not None and heat.temperature_c is not None:
            said.append(f"{heat.temperature_c:.0f} °C")
        return ", ".join(said)

    def snapshot(self) -> dict[str, Any]:
        """Everything that is shown, as JSON holds it."""
        outputs, storage, last_event = self.outputs(), self.storage(), self.last_event()
        totals = dict(self.totals())
        now_s = time.monotonic()
        with self._lock:
            result, part, heat, bundle = self._result, self._part, self._heat, self._bundle
            decision = None if result is None else result.decision
            age_s = now_s - self._result_s
            said: dict[str, Any] = {
                "name": self.name,
                "part": "" if bundle is None else bundle.manifest["part"],
                "mode": self._mode,
                "bundle": None if bundle is None else _of(bundle),
                "verdict": str(Verdict.UNKNOWN if decision is None else decision.verdict),
                "reason": self._waiting[0] if decision is None else decision.reason,
                "score": None if decision is None else decision.score,
                "score_smoothed": None if decision is None else decision.score_smoothed,
                "threshold": None if bundle is None else bundle.manifest["threshold"]["value"],
                "seen_s": round(age_s, 3),
                "last_part": None if part is None else _part(part),
                "scoring": self.scoring,
                "hold": self.hold,
                "history": [list(point) for point in self._history],
                "counts": _sorted(totals),
                "since": iso_8601(self._since_s),
                "rate": round(self._paces[0], 2),
                "camera_rate": round(self._paces[1], 2),
                "heat": None if heat is None else _heat(heat),
                "stages_ms": {stage: round(ms, 3) for stage, ms in self._stages_ms.items()},
                "dropped": self._dropped,
                "skipped": self._skipped,
                "last_event": last_event,
                "outputs": outputs,
                "storage": storage,
                "job": self.job,
                "triggers": self.triggers,
                "uptime_s": round(now_s - self._started_s, 1),
            }
        return said


def _of(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "sha256": bundle.sha256,
        "name": bundle.path.name,
        "parent": manifest["parent_sha256"],
        "pictures": 0 if bundle.reference is None else len(bundle.reference["image_ids"]),
        "made": manifest["made"]["at"],
    }


def _part(result: Result) -> dict[str, Any]:
    decision = result.decision
    return {
        "part": decision.part,
        "verdict": str(decision.verdict),
        "score": decision.score_smoothed,
        "reason": decision.reason,
        "time": iso_8601(result.time_s),
    }


def _heat(heat: Heat) -> dict[str, Any]:
    temperature_c = None if heat.temperature_c is None else round(heat.temperature_c, 1)
    return {"state": heat.state, "temperature_c": temperature_c, "flags": sorted(heat.flags)}


def _sorted(totals: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """``part NG`` and the like, by their first word."""
    counts: dict[str, dict[str, int]] = {"part": {}, "frame": {}, "unknown": {}}
    for key, count in totals.items():
        what, _, which = key.partition(" ")
        counts.setdefault(what, {})[which] = count
    return counts


def remembered(ask: Callable[[], Any], for_s: float, unread: Any = None) -> Callable[[], Any]:
    """
    The same question, asked at most so often: several may look, and the answer is on a disk.

    `unread` is the answer where that cannot be read: the rest is shown all the same.
    """
    lock = threading.Lock()
    answer: list[Any] = [None, -for_s]

    def asked() -> Any:
        with lock:
            now_s = time.monotonic()
            if now_s - answer[1] >= for_s:
                try:
                    found = ask()
                except InputError:
                    found = unread
                answer[:] = [found, now_s]
            return answer[0]

    return asked
