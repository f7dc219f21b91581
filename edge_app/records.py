"""What the stages hand to each other: small frozen records, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

# What a service keeps of what happens; the first two with evidence pictures.
EVENT_KINDS = (
    "ng",
    "unknown",
    "bundle",
    "threshold",
    "heat",
    "verify",
    "scoring",
    "learn",
    "revert",
    "mark",
    "picture",
    "output",
    "storage",
    "config",
    "service",
)

# The stages between a frame in memory and its decision.
LOOP_STAGES = ("quality", "locate", "align", "encode", "score", "decide")


class Verdict(StrEnum):
    """What is said of a frame or a part."""

    OK = "OK"
    NG = "NG"
    UNKNOWN = "UNKNOWN"
    EMPTY = "EMPTY"


@dataclass(frozen=True)
class Frame:
    """
    One picture from a source.

    Attributes
    ----------
    index : int
        Number of the frame in its source, from 0.
    source : str
        The file or device it came from.
    frame_bgr : ndarray of uint8, shape (height, width, 3), or None
        None where the source could not deliver it; `problem` then says why.
    problem : str or None
        ``kind: detail``.
    read_ms : float
        Time the source took to deliver it, in milliseconds.
    captured_s : float or None
        When a live source had it, seconds of `time.monotonic`; None from files.
    dropped : int
        Frames that a live source had delivered so far and nobody took.
    """

    index: int
    source: str
    frame_bgr: np.ndarray | None
    problem: str | None = None
    read_ms: float = 0.0
    captured_s: float | None = None
    dropped: int = 0


@dataclass(frozen=True)
class Encoding:
    """
    The encoder's answer for one picture.

    Attributes
    ----------
    embedding : ndarray of float32, shape (d,)
    patches : ndarray of float32, shape (h, w, c)
    maps : tuple of ndarray of float32, shape (h, w, c) each, or None
        All maps in the order of `Encoder.map_shapes`, each of its own shape; the first is
        `patches`. None stands for a map that the encoder was told not to read.
    """

    embedding: np.ndarray
    patches: np.ndarray
    maps: tuple[np.ndarray | None, ...] = ()


@dataclass(frozen=True)
class Finding:
    """
    What the stages before the decision found out about one frame.

    Attributes
    ----------
    score : float or None
        Higher is more anomalous; None where no score could be computed.
    empty : bool
        True where no part is in the frame.
    reason : str or None
        Why there is no score, as ``kind: detail``.
    in_part : bool
        False where a frame could not be seen at all, so that nobody knows whether a part is in it.
    lost : bool
        True where nobody looked for a while: the part in view may be another one by now.
    """

    score: float | None
    empty: bool = False
    reason: str | None = None
    in_part: bool = True
    lost: bool = False


@dataclass(frozen=True)
class Decision:
    """
    What is said of one frame, and of the part that it ended, if it ended one.

    Attributes
    ----------
    verdict : Verdict
    score : float or None
        This frame's own score; None where the verdict is UNKNOWN or EMPTY.
    score_smoothed : float or None
        The score that decided: in `continuous` mode the moving average; for a part seen on several
        frames the one that its NG share of frames reaches; the score itself elsewhere.
    reason : str or None
    part : int or None
        The part this frame belongs to, from 0; None outside parts and in `continuous` mode.
    closed : PartVerdict or None
        The verdict on the part that ended with (before) this frame.
    """

    verdict: Verdict
    score: float | None = None
    score_smoothed: float | None = None
    reason: str | None = None
    part: int | None = None
    closed: PartVerdict | None = None


@dataclass(frozen=True)
class PartVerdict:
    """
    The one verdict on a part that was seen on several frames.

    Attributes
    ----------
    part : int
    verdict : Verdict
    reason : str or None
    score : float or None
        The score that its NG share of frames reaches: above the threshold exactly if it is NG;
        None where it is UNKNOWN.
    frame : int
        Index of the frame with that score, or of its first frame where none was usable.
    first_frame, last_frame : int
    usable, ng, unknown : int
        Counts of its frames.
    """

    part: int
    verdict: Verdict
    reason: str | None
    score: float | None
    frame: int
    first_frame: int
    last_frame: int
    usable: int
    ng: int
    unknown: int


@dataclass(frozen=True)
class Result:
    """
    Everything known about one inspected frame or part, as the sinks get it.

    Attributes
    ----------
    event : str
        ``frame``, or ``part`` where it is the verdict on a whole part.
    time_s : float
        When it was judged, seconds since 1970 UTC.
    overlay_bgr : ndarray of uint8 or None
        The frame with the heatmap over it; only where the verdict is NG.
    map_01 : ndarray of float32, shape (height, width) of the frame, or None
        The heatmap on its fixed colour scale, 0 to 1.
    heatmap : str or None
        The file the overlay was written to.
    announced_s : float or None
        When the part was announced by its trigger, or first seen, seconds of `time.monotonic`; None
        outside parts and from files.
    """

    event: str
    frame: Frame
    decision: Decision
    time_s: float
    threshold: float | None
    bundle_sha256: str
    degraded: tuple[str, ...] = ()
    latency_ms: dict[str, float] = field(default_factory=dict)
    overlay_bgr: np.ndarray | None = None
    map_01: np.ndarray | None = None
    heatmap: str | None = None
    announced_s: float | None = None

    @property
    def loop_ms(self) -> float | None:
        """Milliseconds from the frame to its decision, without heatmap; None if it has no score."""
        if "score" not in self.latency_ms:
            return None
        return sum(self.latency_ms.get(stage, 0.0) for stage in LOOP_STAGES)


@dataclass(frozen=True)
class Event:
    """
    Something that a service keeps: an NG or UNKNOWN part or episode, or a change of what judges.

    Attributes
    ----------
    kind : str
        One of `EVENT_KINDS`.
    time_s : float
        Seconds since 1970 UTC, as the clock was; a board without a battery may have had it wrong.
    boot_s : float
        Seconds since the board started, the clock of `time.CLOCK_BOOTTIME`.
    detail : str
        One sentence.
    verdict : Verdict or None
    reason : str or None
        ``kind: detail`` where UNKNOWN.
    part : int or None
    score, threshold : float or None
        Higher is more anomalous.
    bundle_sha256 : str or None
        Which bundle judged, or judges from now on.
    episode : str or None
        Where it lasts: the same event comes again with this name when it has ended, and takes the
        place of the first.
    ended_s : float or None
        When the episode ended, seconds since 1970 UTC.
    frames : int
        How many frames it has lasted so far.
    data : dict
        More, as JSON holds it.
    frame_bgr, overlay_bgr : ndarray of uint8, shape (height, width, 3), or None
        Evidence: the frame that decided, and the same with its heatmap.
    """

    kind: str
    time_s: float
    boot_s: float
    detail: str
    verdict: Verdict | None = None
    reason: str | None = None
    part: int | None = None
    score: float | None = None
    threshold: float | None = None
    bundle_sha256: str | None = None
    episode: str | None = None
    ended_s: float | None = None
    frames: int = 0
    data: dict[str, Any] = field(default_factory=dict)
    frame_bgr: np.ndarray | None = None
    overlay_bgr: np.ndarray | None = None


@dataclass(frozen=True)
class Counts:
    """
    How often what happened within an hour, to be added to what was counted of it before.

    Attributes
    ----------
    hour : int
        Hours since 1970 UTC.
    counts : dict of str to int
        By ``part OK``, ``part NG``, ``part UNKNOWN``, ``frame OK`` and so on, ``unknown camera``
        (the reason's kind).
    """

    hour: int
    counts: dict[str, int]
