"""A camera that OpenCV can open (V4L2 on Linux)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import cv2

from edge_app.errors import CameraError
from edge_app.records import Frame


class WebcamSource:
    """
    A webcam, until it stops delivering or the caller stops asking.

    Parameters
    ----------
    device : int
        N of ``/dev/videoN``.

    Raises
    ------
    CameraError
        If the camera cannot be opened or gives no frame.
    """

    live = True
    separate_parts = False

    def __init__(self, device: int) -> None:
        self._name = f"camera:{device}"
        self._capture = cv2.VideoCapture(device)
        if not self._capture.isOpened():
            raise CameraError(
                f"{self._name}: cannot be opened: is it plugged in, free, and you in group video?"
            )
        # Frames queued in the driver are stale by the time they are judged.
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def frames(self) -> Iterator[Frame]:
        index = 0
        while True:
            started = time.perf_counter()
            there, frame_bgr = self._capture.read()
            read_ms = (time.perf_counter() - started) * 1e3
            if not there:
                raise CameraError(f"{self._name}: stopped delivering after {index} frames")
            yield Frame(index, self._name, frame_bgr, read_ms=read_ms)
            index += 1

    def close(self) -> None:
        self._capture.release()
