"""
The loop of the service: frames of one camera through a station, for months.

It runs in the main thread and waits for nothing but the next frame. Whoever wants something of it
tells it (`tell`), and it is done between two frames.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from edge_app.chronicle import Chronicle
from edge_app.clock import read_now
from edge_app.heatmap import overlay
from edge_app.inspector import SeeingInspector
from edge_app.metrics import Metrics
from edge_app.notify import Notifier
from edge_app.outbox import Outbox, bare
from edge_app.records import Counts, Event, Frame, Result, Verdict
from edge_app.service.board import Board
from edge_app.sources.camera import CameraSource
from edge_app.station import Station

# The status line is for people: once a second.
STATUS_S = 1.0
# A new bundle waits for the end of the part in view, but no longer than this, seconds: a part left
# lying there must not keep it out.
PATIENCE_S = 10.0
# Events with pictures that may wait for the disk: each is held in memory, some megabytes.
MOST_PICTURES = 16

_log = logging.getLogger(__name__)


class Loop:
    """
    Takes frame after frame until the source ends.

    `last_frame` is the newest; None where the camera gives no picture, for an old one is not it.

    Parameters
    ----------
    source : CameraSource
    station : Station
        Its inspector is a `SeeingInspector`.
    board : Board
    chronicle : Chronicle
    store : Outbox
        Gets events and counts, with pictures.
    outputs : sequence of Outbox
        Get results and events, without.
    metrics : Metrics or None
    notifier : Notifier
    camera_hang_s : float
        A camera driver that has not answered for so long ends the feeding of the watchdog.
    stream_fps : float
        Most pictures a second for whoever watches.
    """

    def __init__(
        self,
        source: CameraSource,
        station: Station,
        board: Board,
        chronicle: Chronicle,
        store: Outbox,
        outputs: Sequence[Outbox],
        metrics: Metrics | None,
        notifier: Notifier,
        camera_hang_s: float,
        stream_fps: float,
    ) -> None:
        self.station = station
        self.last_frame: Frame | None = None
        self._source, self._board, self._chronicle = source, board, chronicle
        self._store, self._outputs = store, tuple(outputs)
        self._metrics, self._notifier = metrics, notifier
        self._camera_hang_s, self._stream_s = camera_hang_s, 1.0 / stream_fps
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._next: tuple[SeeingInspector, Callable[[], None], float] | None = None
        self._stopped: str | None = None
        self._failed: str | None = None
        self._heat_state: str | None = None
        self._shown_s = self._told_s = 0.0
        self._stuck = False
        board.judged_by(station.inspector.bundle, station.inspector.mode)

    # Told by other threads

    def tell(self, command: Callable[[], None]) -> None:
        """Have something done in the loop's thread, between two frames."""
        self._commands.put(command)

    def say(self, event: Event) -> None:
        """Keep an event and hand it to every output; by any thread."""
        plain = bare(event)
        if self._store.waiting >= MOST_PICTURES and event.frame_bgr is not None:
            # The disk is slower than what happens: the event counts more than its picture.
            why = {**event.data, "pictures": "none: the disk was too slow"}
            event = replace(plain, data=why)
        self._store.offer(event)
        for output in self._outputs:
            output.offer(plain)

    def note(self, kind: str, detail: str, level: int = logging.INFO, **more: object) -> None:
        """Log and `say` something that has just happened."""
        _log.log(level, "%s", detail)
        now = read_now()
        self.say(Event(kind, now.time_s, now.boot_s, detail, **more))

    # Commands: in the loop's thread

    def use(self, inspector: SeeingInspector, then: Callable[[], None]) -> None:
        """
        Judge by this one as soon as no part is in view; `then` is called when it does.

        A part in view for longer than `PATIENCE_S` is cut off by it, and UNKNOWN.
        """
        self._next = inspector, then, time.monotonic() + PATIENCE_S

    def stop_scoring(self, on_since: str | None) -> None:
        """Judge nothing until told otherwise (None); the text says since when."""
        self._stopped = on_since
        self._board.scoring = on_since is None
        self._hold()

    def distrust(self, reason: str | None) -> None:
        """Judge nothing because the master parts were judged wrongly; None ends it."""
        self._failed = reason
        self._hold()

    def _hold(self) -> None:
        self.station.hold = self._board.hold = self._failed or self._stopped

    # The loop

    def run(self) -> None:
        """Until the source ends; what is still open then gets its verdict."""
        for frame in self._source.frames():
            self._obey()
            self.see(frame)
            self._feed()
        self._notifier.stopping()
        self._conclude(Frame(-1, "", None), self.station.finish())
        self._hand_out([], self._chronicle.finish(read_now()))

    def see(self, frame: Frame) -> None:
        """One frame."""
        self._swap(frame)
        inspector = self.station.inspector
        inspector.seen = None
        started = time.perf_counter()
        results = self.station.take(frame)
        work_s = time.perf_counter() - started
        self.last_frame = frame if frame.frame_bgr is not None else None
        watch = self.station.watch
        heat = None if watch is None else watch.heat
        self._hand_out(results, self._chronicle.see(frame, results, read_now()))
        if heat is not None and heat.state != self._heat_state:
            before, self._heat_state = self._heat_state, heat.state
            if before is not None:
                told = heat.degraded[0] if heat.degraded else f"heat: {heat.state}"
                self.note("heat", told, data={"from": before, "to": heat.state})
        if self._metrics is not None:
            self._metrics.see(frame, results, heat, work_s)
        self._board.saw(frame, results, heat, self.station.skipped)
        self._show(frame, results, heat is not None and heat.too_hot_to_draw)

    def _conclude(self, frame: Frame, results: list[Result]) -> None:
        """The verdict on a part that ends here, for all but those who look."""
        self._hand_out(results, self._chronicle.see(frame, results, read_now()))

    def _hand_out(self, results: list[Result], kept: Sequence[Event | Counts]) -> None:
        for result in results:
            plain = bare(result)
            for output in self._outputs:
                output.offer(plain)
        for item in kept:
            if isinstance(item, Event):
                self.say(item)
            else:
                self._store.offer(item)

    def _show(self, frame: Frame, results: list[Result], hot: bool) -> None:
        """A picture for whoever watches, not oftener than they can be shown it."""
        board = self._board
        now_s = time.monotonic()
        if not board.watched or frame.frame_bgr is None or now_s - self._shown_s < self._stream_s:
            return
        # A little early counts: or every other picture would be missed at the camera's own pace.
        self._shown_s = max(self._shown_s + self._stream_s, now_s - self._stream_s)
        verdict, picture = Verdict.UNKNOWN, frame.frame_bgr
        for result in results:
            if result.decision.closed is None:
                verdict = result.decision.verdict
                if result.overlay_bgr is not None:
                    picture = result.overlay_bgr
        inspector = self.station.inspector
        seen = inspector.seen
        if verdict is Verdict.NG and picture is frame.frame_bgr and seen is not None and not hot:
            if inspector.heatmap_kinds:
                picture = overlay(seen.frame.frame_bgr, inspector.heatmap(seen))
        board.show(picture, str(verdict))

    def _obey(self) -> None:
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return
            command()

    def _swap(self, frame: Frame) -> None:
        if self._next is None:
            return
        inspector, then, latest_s = self._next
        if self.station.inspector.part_open and time.monotonic() < latest_s:
            return
        results = self.station.replace_inspector(inspector)
        if results:
            self._conclude(replace(frame, frame_bgr=None), results)
            if self._metrics is not None:
                self._metrics.count(results)
            self._board.note(results)
        self._chronicle.mode = inspector.mode
        self._next = None
        self._board.judged_by(inspector.bundle, inspector.mode)
        then()

    def _feed(self) -> None:
        """Feed the watchdog, unless the camera's driver hangs; tell systemd how it goes."""
        stuck = self._source.stuck_s > self._camera_hang_s
        if stuck and not self._stuck:
            _log.error(
                "%s: the driver has not answered for %.0f s: the watchdog is no longer fed",
                self._source.name,
                self._source.stuck_s,
            )
        self._stuck = stuck
        if not stuck:
            self._notifier.watchdog()
        now_s = time.monotonic()
        if now_s - self._told_s >= STATUS_S:
            self._told_s = now_s
            self._notifier.status(self._board.line())
