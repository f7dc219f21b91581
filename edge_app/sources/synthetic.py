"""A clip played as if it were a camera: at a fixed rate, whether anybody looks or not, for ever."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edge_app.config import CameraConfig
from edge_app.errors import CameraError, InputError
from edge_app.places import SAMPLE_CLIP
from edge_app.records import Frame
from edge_app.sources.device import GuardedDevice
from edge_app.sources.folder import printable
from edge_app.sources.video import VideoSource

# What the sample clip was rendered for.
DEFAULT_FPS = 15.0


class SyntheticDevice(GuardedDevice):
    """
    A video file as a camera that starts over at its end.

    Parameters
    ----------
    path : Path or None
        None plays the sample clip.
    settings : CameraConfig
        Of it `fps`; 0 is 15 a second.

    Raises
    ------
    InputError
        If there is no such file.
    """

    def __init__(self, path: Path | str | None, settings: CameraConfig) -> None:
        super().__init__("synthetic" if path is None else f"synthetic:{printable(path)}")
        self._path = SAMPLE_CLIP if path is None else Path(path)
        if not self._path.is_file():
            what = "no such file" if path else "there is no sample clip, name one: synthetic:FILE"
            raise InputError(f"{self.name}: {what}")
        self._period_s = 1.0 / (settings.fps or DEFAULT_FPS)
        self._due_s = 0.0
        self._clip: VideoSource | None = None
        self._frames: Iterator[Frame] = iter(())

    def _open(self) -> None:
        self._rewind()
        self._due_s = time.monotonic()

    def _rewind(self) -> None:
        self._let_go()
        try:
            self._clip = VideoSource(self._path)
        except InputError as error:
            raise CameraError(str(error)) from None
        self._frames = self._clip.frames()

    def _read(self) -> np.ndarray:
        if self._clip is None:
            raise CameraError(f"{self.name}: is not open")
        self._pause(max(self._due_s - time.monotonic(), 0.0))
        # A reader that came late has missed pictures; they are not made up for in a burst.
        self._due_s = max(self._due_s + self._period_s, time.monotonic())
        frame = next(self._frames, None)
        if frame is None:
            self._rewind()
            frame = next(self._frames)
        return frame.frame_bgr

    def _let_go(self) -> None:
        if self._clip is not None:
            self._clip.close()
            self._clip = None
