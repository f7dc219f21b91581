"""A USB camera, through V4L2 as OpenCV speaks it."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable

import cv2
import numpy as np

from edge_app.config import CameraConfig
from edge_app.errors import CameraError
from edge_app.sources.device import GuardedDevice

# V4L2's control exposure_auto: 1 manual, 3 aperture priority, which UVC cameras call auto; a few
# drivers know 0, fully automatic, alone.
MANUAL, APERTURE_PRIORITY, FULLY_AUTOMATIC = 1, 3, 0
# V4L2 counts exposure in units of 100 microseconds.
EXPOSURES_PER_MS = 10

_log = logging.getLogger(__name__)


class WebcamDevice(GuardedDevice):
    """
    A camera of the kernel's: ``/dev/videoN``.

    Exposure and white balance settle in the first `warm_up_s` seconds and are then locked; after a
    loss the camera gets the locked values back, so that good parts go on looking as they did.

    Parameters
    ----------
    number : int
        N.
    settings : CameraConfig
    capture : callable
        Opens a capture; `cv2.VideoCapture` but for tests.
    """

    def __init__(
        self,
        number: int,
        settings: CameraConfig,
        capture: Callable[[int, int], cv2.VideoCapture] = cv2.VideoCapture,
    ) -> None:
        super().__init__(f"camera:{number}")
        self._number = number
        self._settings = settings
        self._new_capture = capture
        self._capture: cv2.VideoCapture | None = None
        self._locked: dict[int, float] | None = None
        self._refused: list[str] = []

    def _open(self) -> None:
        # OpenCV reads it at the first capture of the process; otherwise a dead camera takes 10 s.
        whole_s = max(1, math.ceil(self._settings.hang_s))
        os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(whole_s))
        self._capture = self._new_capture(self._number, cv2.CAP_V4L2)
        if not self._capture.isOpened():
            raise CameraError(f"{self.name}: cannot be opened: {self._remedy()}")
        known = len(self._refused)
        self._ask_format()
        self._start_controls()
        if self._settings.lock and self._locked is None:
            self._warm_up()
            self._lock()
        if self._refused[known:]:
            _log.warning("%s: the driver refuses %s", self.name, ", ".join(self._refused[known:]))

    def _remedy(self) -> str:
        path = f"/dev/video{self._number}"
        if not os.path.exists(path):
            return f"there is no {path}: is it plugged in?"
        if not os.access(path, os.R_OK | os.W_OK):
            return f"{path} is closed to you: join its group (sudo usermod -aG video $USER)"
        return f"another program has {path}, or it is not the camera's node for pictures"

    def _ask_format(self) -> None:
        settings = self._settings
        if settings.width or settings.height:
            # Uncompressed pictures of more than VGA do not fit through USB 2 at 30 a second.
            self._ask("MJPG", cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        if settings.width:
            self._ask(f"width {settings.width}", cv2.CAP_PROP_FRAME_WIDTH, settings.width)
        if settings.height:
            self._ask(f"height {settings.height}", cv2.CAP_PROP_FRAME_HEIGHT, settings.height)
        if settings.fps:
            self._ask(f"{settings.fps:g} pictures a second", cv2.CAP_PROP_FPS, settings.fps)
        # Pictures queued in the driver are stale by the time they are read. Drivers that need two
        # buffers take two, and say no.
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def _start_controls(self) -> None:
        """The locked values if there are any; otherwise the automatics, to settle."""
        locked = self._locked or {}
        if self._settings.exposure_ms > 0:
            self._ask("a manual exposure", cv2.CAP_PROP_AUTO_EXPOSURE, MANUAL)
            exposure = self._settings.exposure_ms * EXPOSURES_PER_MS
            self._ask(f"{exposure / EXPOSURES_PER_MS:g} ms", cv2.CAP_PROP_EXPOSURE, exposure)
        elif cv2.CAP_PROP_EXPOSURE in locked:
            self._ask("a manual exposure", cv2.CAP_PROP_AUTO_EXPOSURE, MANUAL)
            exposure = locked[cv2.CAP_PROP_EXPOSURE]
            self._ask(f"{exposure / EXPOSURES_PER_MS:g} ms", cv2.CAP_PROP_EXPOSURE, exposure)
        elif not self._capture.set(cv2.CAP_PROP_AUTO_EXPOSURE, APERTURE_PRIORITY):
            # An earlier program, or an earlier run of this one, may have left it on manual.
            self._ask("automatic exposure", cv2.CAP_PROP_AUTO_EXPOSURE, FULLY_AUTOMATIC)
        if cv2.CAP_PROP_WB_TEMPERATURE in locked:
            self._ask("a fixed white balance", cv2.CAP_PROP_AUTO_WB, 0)
            temperature_k = locked[cv2.CAP_PROP_WB_TEMPERATURE]
            self._ask(f"{temperature_k:g} K", cv2.CAP_PROP_WB_TEMPERATURE, temperature_k)
        else:
            self._ask("automatic white balance", cv2.CAP_PROP_AUTO_WB, 1)

    def _warm_up(self) -> None:
        # Automatics work on pictures that are read; a UVC camera that nobody reads is off.
        settled_s = time.monotonic() + self._settings.warm_up_s
        while time.monotonic() < settled_s:
            self._pause(0.0)
            self._read()

    def _lock(self) -> None:
        self._locked = {}
        exposure = self._settings.exposure_ms > 0
        if exposure or self._ask("a manual exposure", cv2.CAP_PROP_AUTO_EXPOSURE, MANUAL):
            self._locked[cv2.CAP_PROP_EXPOSURE] = self._capture.get(cv2.CAP_PROP_EXPOSURE)
        if self._ask("a fixed white balance", cv2.CAP_PROP_AUTO_WB, 0):
            temperature_k = self._capture.get(cv2.CAP_PROP_WB_TEMPERATURE)
            self._locked[cv2.CAP_PROP_WB_TEMPERATURE] = temperature_k

    def _ask(self, what: str, key: int, value: float) -> bool:
        """Set a property; whether the driver took it. What it refuses is named once."""
        # Some drivers say yes and do not do it; 0.5: 29.97 for 30 a second is a yes.
        taken = self._capture.set(key, value) and abs(self._capture.get(key) - value) < 0.5
        if not taken and what not in self._refused:
            self._refused.append(what)
        return taken

    def _read(self) -> np.ndarray:
        if self._capture is None:
            raise CameraError(f"{self.name}: is not open")
        there, frame_bgr = self._capture.read()
        if not there:
            raise CameraError(f"{self.name}: stopped delivering: check its cable and its power")
        return frame_bgr

    def _let_go(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None
