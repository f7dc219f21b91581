"""
The threads behind the window: one runs the source through the station, others learn and write.

The worker never waits for the window: what it shows goes into a slot, what it is told comes from a
bounded queue that it looks into between two frames.
"""

from __future__ import annotations

import math
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edge_app.bundle import Bundle
from edge_app.enrol import LEAST_IMAGES
from edge_app.errors import EdgeAppError
from edge_app.inspector import Inspector, SeeingInspector, Seen
from edge_app.live.journal import Journal
from edge_app.live.scene import Scene
from edge_app.quality import measure
from edge_app.rate import Rate, averaged
from edge_app.records import Frame, Result, Verdict
from edge_app.slot import Slot
from edge_app.sources import Source
from edge_app.station import Station
from edge_app.thermal import Heat, ThermalWatch

# Commands that may wait for the worker: more than a person types in the second that it may wait
# for a lost camera.
MOST_COMMANDS = 64
# Scores that the strip shows at most: as many as a wide screen has room for.
HISTORY = 400
# Files are played at this pace, seconds a frame: a film as filmed, pictures so that one sees them.
FILM_S, PICTURES_S = 1 / 15, 1.0
# A burst takes a frame at most so often, seconds, so that it shows the part more than once.
BURST_EVERY_S = 0.1
# Frames that were found EMPTY are kept for learning another region: so many, so far apart, seconds.
MOST_EMPTIES, EMPTIES_EVERY_S = 5, 1.0


class LiveInspector(SeeingInspector):
    """An inspector that remembers what it scored last, and whose threshold can be moved."""

    def move_threshold(self, bundle: Bundle) -> None:
        """Go on with the same bundle but for its threshold."""
        self.bundle = bundle
        self.threshold = float(bundle.manifest["threshold"]["value"])
        self._rules = replace(self._rules, threshold=self.threshold)


@dataclass
class _Burst:
    wanted: int
    refuse: Callable[[Frame], str | None]
    most_bytes: float
    frames: list[Frame] = field(default_factory=list)
    last_s: float = 0.0
    refused: str = ""


class Worker:
    """
    Runs a source through a station in a thread of its own.

    Parameters
    ----------
    source : Source
    make_station : callable
        Gives a `Station` for an inspector.
    watch : ThermalWatch or None
    journal : Journal
    inspector : LiveInspector or None
        None where no part is known yet.

    Attributes
    ----------
    scenes : Slot of Scene
        The newest.
    bursts : queue.Queue of list of Frame
        Bursts that are complete.
    refused : int
        Commands that found the queue full.
    empties : tuple of Frame
        Some frames that were found EMPTY by the inspector in use.
    problem : BaseException or None
        Why the thread has ended, if not by `close` or at the end of the source.
    """

    def __init__(
        self,
        source: Source,
        make_station: Callable[[Inspector], Station],
        watch: ThermalWatch | None,
        journal: Journal,
        inspector: LiveInspector | None,
    ) -> None:
        self.scenes: Slot[Scene] = Slot()
        self.bursts: queue.Queue[list[Frame]] = queue.Queue()
        self.refused = 0
        self.empties: tuple[Frame, ...] = ()
        self._emptied_s = 0.0
        self.problem: BaseException | None = None
        self._source, self._make_station = source, make_station
        self._watch, self._journal = watch, journal
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._inspector: LiveInspector | None = None
        self._station: Station | None = None
        self._scoring = True
        self._map_mode, self._map_kind = "auto", None
        self._aim: tuple[Any, ...] | None = None
        self._burst: _Burst | None = None
        self._resting = False
        self._ended = False
        self._picture: np.ndarray | None = None
        self._result: Result | None = None
        self._result_s = 0.0
        self._part: Result | None = None
        self._part_s = 0.0
        self._history: deque[tuple[float | None, Verdict]] = deque(maxlen=HISTORY)
        self._stages_ms: dict[str, float] = {}
        self._inspected = 0
        self._rates = Rate(), Rate()
        self._scene: Scene | None = None
        self._thread = threading.Thread(target=self._run, name="inspection", daemon=True)
        self.use(inspector)

    def start(self) -> None:
        self._thread.start()

    def tell(self, command: Callable[[], None]) -> bool:
        """Have something done between two frames; False if too much is waiting already."""
        if self._commands.qsize() >= MOST_COMMANDS:
            self.refused += 1
            return False
        self._commands.put(command)
        return True

    def insist(self, command: Callable[[], None]) -> None:
        """As `tell`, and never refused: for what goes with something that has been done."""
        self._commands.put(command)

    def close(self) -> None:
        """End the thread and close the source."""
        self._closing.set()
        self._source.close()
        if self._thread.is_alive():
            self._thread.join(5.0)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    # Commands: called in the worker's thread, through `tell` or `insist`, or before it starts

    def use(self, inspector: LiveInspector | None) -> None:
        """
        Inspect with this one from now on; None stops it.

        A part in view is cut off by another one, UNKNOWN. What is still seen of it is judged anew,
        with the next number: who taught something looks at this very part to see what came of it.
        """
        if inspector is None:
            self._finish()
        elif self._station is None:
            self._station = self._make_station(inspector)
        else:
            self._note(self._station.replace_inspector(inspector), time.monotonic())
            self._station.finish()  # of the part that was cut off, which has had its verdict
        self._inspector = inspector
        self._resting = False
        self._forget()

    def go_on(self) -> None:
        """Judge again by what was known before a burst, of which nothing was learnt."""
        self._resting = False

    def score(self, on: bool) -> None:
        """Start or stop scoring."""
        if not on:
            self._finish()
        self._scoring = on
        self._forget()

    def move_threshold(self, bundle: Bundle) -> None:
        """Judge by this threshold from the next frame on."""
        if self._inspector is not None:
            self._inspector.move_threshold(bundle)

    def draw_maps(self, mode: str, kind: str | None) -> None:
        """Heatmaps: 'auto' (NG only), 'always' or 'off', by 'patch' or 'decoder'."""
        self._map_mode, self._map_kind = mode, kind

    def aim(self, region: tuple[Any, ...] | None) -> None:
        """Measure each picture, within ``(region,)``; None stops it."""
        self._aim = region

    def collect(
        self,
        wanted: int,
        refuse: Callable[[Frame], str | None],
        most_bytes: float = math.inf,
    ) -> None:
        """
        Take a burst of frames.

        Parameters
        ----------
        wanted : int
        refuse : callable
            Says of a frame that shows no good part why not.
        most_bytes : float
            The burst ends where one frame more would be more than this, if it has as many as can
            be learnt from.
        """
        self._finish()
        self._burst = _Burst(wanted, refuse, most_bytes)
        self._forget()

    def stop_collecting(self, keep: bool) -> None:
        """
        End the burst, with what there is or without.

        With it nothing is judged until `use` or `go_on`: the part in view may be another one than
        the reference is of.
        """
        burst, self._burst = self._burst, None
        if burst is not None and keep:
            self._resting = True
            self.bursts.put(burst.frames)
        elif not keep:
            self._resting = False

    def map_of(self, seen: Seen) -> np.ndarray | None:
        """The heatmap of a frame, asked for later."""
        inspector = self._inspector
        if inspector is None or not inspector.heatmap_kinds:
            return None
        return inspector.heatmap(seen, self._kind(inspector))

    # The thread

    def _run(self) -> None:
        try:
            for frame in self._paced():
                self.obey()
                if self._closing.is_set():
                    return
                self.see(frame)
            self.end()
            self._wait_at_the_end()
        except EdgeAppError as error:
            self.problem = error
        except Exception as error:
            # The window ends with it: a view that inspects nothing must not look alive.
            traceback.print_exc()
            self.problem = error
        finally:
            self._finish()

    def _paced(self) -> Iterator[Frame]:
        source = self._source
        pace_s = 0.0 if source.live else PICTURES_S if source.separate_parts else FILM_S
        due_s = time.monotonic()
        for frame in source.frames():
            while (left_s := due_s - time.monotonic()) > 0 and not self._closing.is_set():
                self.obey(min(left_s, 0.05))
            due_s = max(due_s + pace_s, time.monotonic())
            yield frame

    def obey(self, wait_s: float = 0.0) -> bool:
        """
        Do what was told, waiting so long for the first; the thread does so between frames.

        Returns
        -------
        bool
            Whether anything was.
        """
        done = False
        try:
            command = self._commands.get(timeout=wait_s) if wait_s else self._commands.get_nowait()
            while True:
                command()
                done = True
                command = self._commands.get_nowait()
        except queue.Empty:
            return done

    def end(self) -> None:
        """The source has come to its end; the thread says so itself."""
        self._finish()
        # Nothing more comes: what there is of a burst is all there will be.
        self.stop_collecting(keep=True)
        self._ended = True
        if self._scene is not None:
            self._scene = replace(
                self._scene, part=self._part, part_s=self._part_s, collected=None, ended=True
            )
            self.scenes.put(self._scene)

    def see_again(self) -> None:
        """Show the last frame as it is judged now, after a command; no verdict counts twice."""
        if self._scene is not None:
            self.see(self._scene.frame)

    def _wait_at_the_end(self) -> None:
        """The last picture stays, and keys go on having an effect on it."""
        while not self._closing.is_set():
            if self.obey(0.1):
                self.see_again()

    def see(self, frame: Frame) -> None:
        """Inspect one frame and put its scene into the slot; the thread does so for each."""
        results: list[Result] = []
        inspector, now_s = self._inspector, time.monotonic()
        if inspector is not None:
            inspector.seen = None
        if self._burst is not None:
            self._collect(self._burst, frame, now_s)
        elif self._resting:
            if self._watch is not None:
                self._watch.due()
        elif self._scoring and inspector is not None:
            results = self._station.take(frame)
            if self._ended:
                # One frame is no part, and that of the last frames has had its verdict.
                self._station.finish()
        elif self._watch is not None:
            self._watch.due()  # reads the sensors, so that they are shown
        heat = None if self._watch is None else self._watch.heat
        fresh, map_01, seen = self._note(results, now_s), None, None
        if fresh and inspector is not None and inspector.seen is not None:
            seen = inspector.seen
            map_01 = self._map(inspector, seen, heat)
        measures = None
        if frame.frame_bgr is not None:
            self._picture = frame.frame_bgr
            if self._aim is not None:
                measures = measure(frame.frame_bgr, self._aim[0])
        burst = self._burst
        self._scene = Scene(
            frame,
            self._picture,
            self._result,
            fresh,
            self._result_s,
            self._part,
            seen,
            map_01,
            tuple(self._history),
            self._rates[0].at(frame.index, now_s),
            self._rates[1].at(self._inspected, now_s),
            dict(self._stages_ms),
            frame.dropped,
            0 if self._station is None else self._station.skipped,
            heat,
            measures,
            None if burst is None else (len(burst.frames), burst.wanted),
            "" if burst is None else burst.refused,
            self._ended,
            self._part_s,
        )
        self.scenes.put(self._scene)

    def _note(self, results: list[Result], now_s: float) -> bool:
        """Keep and log results; whether one is on a frame."""
        fresh = False
        for result in results:
            if self._ended:
                if result.decision.closed is None:
                    fresh, self._result, self._result_s = True, result, now_s
                continue
            self._journal.result(result)
            if result.decision.closed is not None:
                self._part, self._part_s = result, now_s
                continue
            fresh = True
            self._result, self._result_s = result, now_s
            if result.decision.verdict is Verdict.EMPTY:
                if now_s - self._emptied_s >= EMPTIES_EVERY_S:
                    self.empties = (*self.empties, result.frame)[-MOST_EMPTIES:]
                    self._emptied_s = now_s
            self._history.append((result.decision.score, result.decision.verdict))
            self._inspected += 1
            for stage, ms in result.latency_ms.items():
                averaged(self._stages_ms, stage, ms)
        return fresh

    def _map(self, inspector: LiveInspector, seen: Seen, heat: Heat | None) -> np.ndarray | None:
        wanted = self._map_mode == "always" or (
            self._map_mode == "auto" and self._result.decision.verdict is Verdict.NG
        )
        if not wanted or not inspector.heatmap_kinds:
            return None
        if heat is not None and heat.too_hot_to_draw:
            return None
        started = time.perf_counter()
        map_01 = inspector.heatmap(seen, self._kind(inspector))
        averaged(self._stages_ms, "heatmap", (time.perf_counter() - started) * 1e3)
        return map_01

    def _kind(self, inspector: LiveInspector) -> str:
        kinds = inspector.heatmap_kinds
        return self._map_kind if self._map_kind in kinds else kinds[0]

    def _collect(self, burst: _Burst, frame: Frame, now_s: float) -> None:
        if now_s - burst.last_s < BURST_EVERY_S:
            return
        burst.refused = burst.refuse(frame) or ""
        if burst.refused:
            return
        burst.frames.append(frame)
        burst.last_s = now_s
        count, size = len(burst.frames), frame.frame_bgr.nbytes
        full = (count + 1) * size > burst.most_bytes and count >= LEAST_IMAGES
        if count == burst.wanted or full:
            self.stop_collecting(keep=True)

    def _finish(self) -> None:
        """The verdict on a part that is still open."""
        if self._station is not None:
            self._note(self._station.finish(), time.monotonic())

    def _forget(self) -> None:
        """What was seen by another inspector, or before a break, is no history."""
        self._result = self._part = None
        self._history.clear()
        self._stages_ms.clear()
