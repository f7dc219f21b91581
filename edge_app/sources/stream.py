"""A network camera: an RTSP or HTTP address that FFmpeg can read."""

from __future__ import annotations

import os
import re

import cv2
import numpy as np

from edge_app.config import CameraConfig
from edge_app.errors import CameraError
from edge_app.sources.device import GuardedDevice

# Network cameras send a complete picture every 1 to 4 seconds and only differences between; a
# stream opens with the first complete one.
LEAST_OPEN_S = 5.0


def without_password(url: str) -> str:
    """The address as it may be shown and stored: ``rtsp://user:***@host/path``."""
    return re.sub(r"^(\w+://[^/@:]*):[^/]*@", r"\1:***@", url)


class StreamDevice(GuardedDevice):
    """
    A stream, read by OpenCV's FFmpeg.

    Its size, frame rate and exposure are set in the network camera, not here.

    Parameters
    ----------
    url : str
        ``rtsp://…``, ``rtsps://…``, ``http://…`` or ``https://…``.
    settings : CameraConfig
    """

    def __init__(self, url: str, settings: CameraConfig) -> None:
        super().__init__(without_password(url))
        self._url = url
        self._read_s = settings.hang_s
        self._open_s = max(settings.hang_s, LEAST_OPEN_S)
        self._capture: cv2.VideoCapture | None = None

    def _open(self) -> None:
        # Of use outside the command line, which does the same: FFmpeg's lines, one for every try.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        parameters = [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
            int(self._open_s * 1e3),
            cv2.CAP_PROP_READ_TIMEOUT_MSEC,
            int(self._read_s * 1e3),
            # More decoding threads hold back one picture each.
            cv2.CAP_PROP_N_THREADS,
            1,
        ]
        self._capture = cv2.VideoCapture(self._url, cv2.CAP_FFMPEG, parameters)
        if not self._capture.isOpened():
            raise CameraError(
                f"{self.name}: does not answer with a video: is the camera on, the address right, "
                "and name and password if it wants them?"
            )

    def _read(self) -> np.ndarray:
        if self._capture is None:
            raise CameraError(f"{self.name}: is not open")
        there, frame_bgr = self._capture.read()
        if not there:
            raise CameraError(
                f"{self.name}: the stream ended or sent nothing for {self._read_s:g} s"
            )
        return frame_bgr

    def _let_go(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None
