"""What the window shows: a scene from the worker, and with it what the session adds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edge_app.inspector import Seen
from edge_app.quality import Measures
from edge_app.records import Frame, Result, Verdict
from edge_app.thermal import Heat


@dataclass(frozen=True)
class Scene:
    """
    What the window shows of one moment.

    Attributes
    ----------
    frame : Frame
        The newest; its picture is None while the camera is lost.
    picture_bgr : ndarray of uint8 or None
        Its picture, or the last there was.
    result : Result or None
        The newest verdict on a frame; None where nothing is scored.
    fresh : bool
        Whether the verdict is on this very frame.
    result_s, part_s : float
        When the newest verdicts on a frame and on a part were given, seconds of `time.monotonic`.
    part : Result or None
        The newest verdict on a part that was seen on several frames.
    seen : Seen or None
        Of this frame, for its heatmap.
    map_01 : ndarray of float32, shape (height, width) of the frame, or None
        The heatmap, where one is to be shown.
    history : tuple of (float or None, Verdict)
        Scores and verdicts of the last frames, the oldest first.
    stages_ms : dict of str to float
        Running means.
    collected : tuple of (int, int) or None
        While a burst is taken: frames so far, and wanted.
    refused : str
        While a burst is taken: why this frame is none of it; empty where it is one.
    ended : bool
        Whether the source has come to its end.
    """

    frame: Frame
    picture_bgr: np.ndarray | None
    result: Result | None = None
    fresh: bool = False
    result_s: float = 0.0
    part: Result | None = None
    seen: Seen | None = None
    map_01: np.ndarray | None = None
    history: tuple[tuple[float | None, Verdict], ...] = ()
    camera_fps: float = 0.0
    inspected_fps: float = 0.0
    stages_ms: dict[str, float] = field(default_factory=dict)
    dropped: int = 0
    skipped: int = 0
    heat: Heat | None = None
    measures: Measures | None = None
    collected: tuple[int, int] | None = None
    refused: str = ""
    ended: bool = False
    part_s: float = 0.0


@dataclass(frozen=True)
class Shown:
    """
    All that a view is drawn from.

    Attributes
    ----------
    scene : Scene or None
        The one in the picture, frozen or not; None before the first picture.
    now : Scene or None
        The newest: camera and heat are never shown frozen. By default `scene`.
    part : str
        Name of the part; empty where none is known.
    pictures : int
        Size of the reference.
    region : tuple of float or None
        Region of interest, shares of the frame.
    scoring, knows_part : bool
    waits : bool
        Whether a trigger opens parts.
    threshold : float or None
    false_rejects : tuple of float or None
        Expected rate, and the ends of its interval, 0 to 1.
    moved : bool
        Whether the threshold stands elsewhere than the calibration had put it.
    unwritten : bool
        Whether something was learnt or moved that no bundle holds yet.
    map_mode, map_kind : str
        'auto', 'always' or 'off'; 'patch', 'decoder' or '' where there is none.
    frozen, help, timings, aiming : bool
    sharpest : float
        The best sharpness since aiming began.
    choosing : bool
        Whether a region is being drawn; `box` is what has been drawn of it.
    box : tuple of float or None
    learning : tuple of (str, int, int) or None
        What is being done, how much of it, of how much (0 where that is not known).
    anew : bool
        Whether the part is being learnt anew: then nothing is judged.
    message : str
        The effect of the last key.
    alarm : bool
        Whether the message says that something went wrong.
    result_age_s, part_age_s : float
        How long ago the verdicts on the frame and on the part were given.
    """

    scene: Scene | None
    now: Scene | None = None
    part: str = ""
    pictures: int = 0
    region: tuple[float, float, float, float] | None = None
    scoring: bool = True
    knows_part: bool = True
    waits: bool = False
    threshold: float | None = None
    false_rejects: tuple[float, float, float] | None = None
    moved: bool = False
    unwritten: bool = False
    map_mode: str = "auto"
    map_kind: str = ""
    frozen: bool = False
    help: bool = False
    timings: bool = False
    aiming: bool = False
    sharpest: float = 0.0
    choosing: bool = False
    box: tuple[float, float, float, float] | None = None
    learning: tuple[str, int, int] | None = None
    anew: bool = False
    message: str = ""
    alarm: bool = False
    result_age_s: float = 0.0
    part_age_s: float = 0.0
