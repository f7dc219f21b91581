"""
The chronicle: from results to the events and counts that a service keeps.

Where parts are told apart, each NG or UNKNOWN part is one event. Elsewhere a run of frames is: an
*episode* of NG, or of UNKNOWN for one kind of reason (``camera``, ``quality``, ...), told when it
begins and again when it has ended, with short gaps bridged. Frames outside parts that are UNKNOWN
are episodes in every mode. All else is counted by the hour.

No clock, no I/O: frames, results and the time come in, what is to be kept comes out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edge_app.clock import Now
from edge_app.records import Counts, Decision, Event, Frame, Result, Verdict

# Counts that a power cut may cost.
FLUSH_S = 10.0
# Nothing judged for longer than this: what comes next is no longer the same episode. Slowed down
# by heat a frame is judged every 10 s.
LONGEST_GAP_S = 60.0
HOUR_S = 3600


@dataclass
class _Episode:
    """What lasts: its first event, and how it goes on."""

    begun: Event
    last: Now
    frames: int
    highest: float | None
    highest_result: Result | None = None  # evidence above that of the first event
    apart: bool = False  # a frame that is not of it was seen since


class Chronicle:
    """
    Turns results into events and counts.

    Parameters
    ----------
    mode : {'single', 'continuous', 'part', 'triggered'}
        The inspector's.
    merge_s : float
        Frames in between that are not of an episode do not end it before so many seconds.

    Attributes
    ----------
    mode : str
        Another bundle may bring another one.
    totals : dict of str to int
        Counts since the start: ``part OK``, ``frame UNKNOWN``, ``unknown camera`` and so on. The
        last are UNKNOWN parts, and UNKNOWN frames outside parts, by their reason's kind.
    """

    def __init__(self, mode: str, merge_s: float = 5.0) -> None:
        self.mode = mode
        self._merge_s = merge_s
        self.totals: dict[str, int] = {}
        self._counts: Counter[str] = Counter()
        self._hour: int | None = None
        self._flushed_s: float | None = None
        self._episodes: dict[str, _Episode] = {}
        # Of the part in view: its number, its last picture, and the one that was most clearly NG.
        self._part: tuple[int, np.ndarray] | None = None
        self._ng_part: tuple[int, float, np.ndarray] | None = None

    def see(self, frame: Frame, results: Sequence[Result], now: Now) -> list[Event | Counts]:
        """
        What a frame adds.

        Parameters
        ----------
        frame : Frame
            The one that was taken from the source.
        results : sequence of Result
            All that it gave, in their order; none where it was left out.
        now : Now

        Returns
        -------
        list of Event or Counts
            With evidence: of an NG part its frame and overlay (where the inspector keeps none, the
            NG frame with the highest score), of an UNKNOWN one the last of its frames that had a
            picture.
        """
        kept: list[Event | Counts] = self._ended(now, max(LONGEST_GAP_S, self._merge_s))
        kept += self._flush(now)
        for result in results:
            decision = result.decision
            self._count(result)
            if result.event == "part":
                kept += self._see_part(frame, result, now)
            elif decision.part is not None:
                picture_bgr = _picture_of(frame, result)
                if picture_bgr is not None:
                    self._part = (decision.part, picture_bgr)
                    self._note_ng(decision, picture_bgr)
            elif decision.verdict is Verdict.UNKNOWN:
                kept += self._last(f"unknown {_kind(decision.reason)}", frame, result, now)
            elif decision.verdict is Verdict.NG and self.mode == "continuous":
                kept += self._last("ng", frame, result, now)
        if results:
            kept += self._ended(now, self._merge_s)
            for episode in self._episodes.values():
                episode.apart = episode.last != now
        return kept

    def finish(self, now: Now) -> list[Event | Counts]:
        """End what is open and hand out what was counted; also before a pause of the inspection."""
        self._part = self._ng_part = None
        return [*self._ended(now, -1.0), *self._flush(now, always=True)]

    def _count(self, result: Result) -> None:
        decision = result.decision
        names = []
        if result.event == "part":
            names.append(f"part {decision.verdict}")
        if decision.closed is None:
            names.append(f"frame {decision.verdict}")
        # A part on its way into view is UNKNOWN for a frame or two; what counts is its verdict.
        within_part = result.event == "frame" and decision.part is not None
        if decision.verdict is Verdict.UNKNOWN and not within_part:
            names.append(f"unknown {_kind(decision.reason)}")
        for name in names:
            self._counts[name] += 1
            self.totals[name] = self.totals.get(name, 0) + 1

    def _flush(self, now: Now, always: bool = False) -> list[Counts]:
        hour = int(now.time_s // HOUR_S)
        if self._hour is None or self._flushed_s is None:
            self._hour, self._flushed_s = hour, now.boot_s
        due = always or hour != self._hour or now.boot_s - self._flushed_s >= FLUSH_S
        if not due:
            return []
        # What was counted until now is of the hour before.
        flushed = [Counts(self._hour, dict(self._counts))] if self._counts else []
        self._counts.clear()
        self._hour, self._flushed_s = hour, now.boot_s
        return flushed

    def _note_ng(self, decision: Decision, picture_bgr: np.ndarray) -> None:
        """A frame of a part; the last of them often shows it half out of view already."""
        if decision.verdict is not Verdict.NG or decision.score is None:
            return
        best = self._ng_part
        if best is None or best[0] != decision.part or decision.score > best[1]:
            self._ng_part = (decision.part, decision.score, picture_bgr)

    def _see_part(self, frame: Frame, result: Result, now: Now) -> list[Event]:
        decision, closed = result.decision, result.decision.closed
        held, part = self._part, decision.part
        if held is not None and held[0] == part:
            self._part = None
        ng, self._ng_part = self._ng_part, None
        if decision.verdict not in (Verdict.NG, Verdict.UNKNOWN):
            return []
        picture_bgr = result.frame.frame_bgr
        if picture_bgr is None and ng is not None and decision.verdict is Verdict.NG:
            picture_bgr = ng[2] if ng[0] == part else None
        if picture_bgr is None and held is not None and held[0] == part:
            picture_bgr = held[1]
        if picture_bgr is None and closed is None:
            picture_bgr = _picture_of(frame, result)
        data = {"source": result.frame.source, "frame": result.frame.index}
        if closed is not None:
            data |= {
                "first_frame": closed.first_frame,
                "last_frame": closed.last_frame,
                "usable": closed.usable,
                "ng": closed.ng,
                "unknown": closed.unknown,
            }
        if decision.verdict is Verdict.NG:
            share = f" on {closed.ng} of {closed.usable} frames" if closed is not None else ""
            detail = f"Part {part} is NG{share}: {_against(result)}"
        else:
            detail = f"Part {part} could not be judged: {decision.reason}"
        event = _event(result, now, detail, picture_bgr, data)
        if closed is not None:
            event = replace(event, frames=closed.usable + closed.unknown)
        return [event]

    def _last(self, key: str, frame: Frame, result: Result, now: Now) -> list[Event]:
        """Begin an episode, or let it go on."""
        episode, score = self._episodes.get(key), result.decision.score_smoothed
        over: list[Event] = []
        if episode and episode.apart and now.boot_s - episode.last.boot_s >= self._merge_s:
            over, episode = [_end(key, self._episodes.pop(key))], None
        if episode is not None:
            episode.last, episode.apart = now, False
            episode.frames += 1
            if score is not None and (episode.highest is None or score > episode.highest):
                episode.highest = score
                if result.frame.frame_bgr is not None:
                    episode.highest_result = result
            return []
        if key == "ng":
            detail = f"The view is NG: {_against(result)}"
        else:
            detail = f"Not judged: {result.decision.reason}"
        data = {"source": result.frame.source, "frame": result.frame.index}
        event = _event(result, now, detail, _picture_of(frame, result), data)
        # With the time in it no later episode of this start of the board has the same name.
        event = replace(event, episode=f"{key} {now.boot_s:.6f}", frames=1)
        self._episodes[key] = _Episode(event, now, 1, score)
        return [*over, event]

    def _ended(self, now: Now, after_s: float) -> list[Event]:
        """End the episodes that were not seen for `after_s` seconds or more."""
        over = [key for key, it in self._episodes.items() if now.boot_s - it.last.boot_s >= after_s]
        return [_end(key, self._episodes.pop(key)) for key in over]


def _end(key: str, episode: _Episode) -> Event:
    begun, best = episode.begun, episode.highest_result
    lasted_s = episode.last.boot_s - begun.boot_s
    span = f"for {lasted_s:.1f} s ({episode.frames} frames)"
    if key == "ng":
        detail = f"The view was NG {span}, highest score {_number(episode.highest)}"
        detail += f", limit {_number(begun.threshold)}"
    else:
        detail = f"Not judged {span}: {begun.reason}"
    return replace(
        begun,
        detail=detail,
        score=episode.highest,
        frames=episode.frames,
        # By the clock that is never set, from a beginning by the one that may be.
        ended_s=begun.time_s + lasted_s,
        data={**begun.data, "lasted_s": round(lasted_s, 3)},
        frame_bgr=None if best is None else best.frame.frame_bgr,
        overlay_bgr=None if best is None else best.overlay_bgr,
    )


def _event(
    result: Result, now: Now, detail: str, picture_bgr: np.ndarray | None, data: dict[str, object]
) -> Event:
    decision = result.decision
    if result.degraded:
        data["degraded"] = list(result.degraded)
    score = decision.score if decision.score_smoothed is None else decision.score_smoothed
    return Event(
        "ng" if decision.verdict is Verdict.NG else "unknown",
        now.time_s,
        now.boot_s,
        detail,
        decision.verdict,
        decision.reason,
        decision.part,
        score,
        result.threshold,
        result.bundle_sha256,
        frames=1,
        data=data,
        frame_bgr=picture_bgr,
        overlay_bgr=result.overlay_bgr,
    )


def _picture_of(frame: Frame, result: Result) -> np.ndarray | None:
    """The picture behind a frame's result; one that was not looked at is in the frame itself."""
    if result.frame.frame_bgr is not None:
        return result.frame.frame_bgr
    return frame.frame_bgr if frame.index == result.frame.index else None


def _kind(reason: str | None) -> str:
    return (reason or "unknown").partition(":")[0]


def _against(result: Result) -> str:
    decision = result.decision
    score = decision.score if decision.score_smoothed is None else decision.score_smoothed
    return f"score {_number(score)}, limit {_number(result.threshold)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
