"""The frames of a video file, each once, in order."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import cv2

from edge_app.errors import InputError
from edge_app.records import Frame
from edge_app.sources.folder import printable


class VideoSource:
    """
    A video file.

    Raises
    ------
    InputError
        If OpenCV cannot open the file or it holds no frame.
    """

    live = False
    separate_parts = False

    def __init__(self, path: Path | str) -> None:
        self._name = printable(path)
        self._capture = cv2.VideoCapture(os.fspath(path))
        if not self._capture.isOpened():
            raise InputError(f"{self._name}: is neither a picture nor a video that OpenCV can open")
        started = time.perf_counter()
        there, self._first = self._capture.read()
        self._first_ms = (time.perf_counter() - started) * 1e3
        if not there:
            self._capture.release()
            raise InputError(f"{self._name}: the video holds no frame")
        # What the container claims; broken files claim nonsense, so it is for progress only.
        self._claimed = max(int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)), 1)

    def __len__(self) -> int:
        return self._claimed

    def frames(self) -> Iterator[Frame]:
        yield Frame(0, self._name, self._first, read_ms=self._first_ms)
        index = 1
        while True:
            started = time.perf_counter()
            there, frame_bgr = self._capture.read()
            if not there:
                return
            read_ms = (time.perf_counter() - started) * 1e3
            yield Frame(index, self._name, frame_bgr, read_ms=read_ms)
            index += 1

    def close(self) -> None:
        self._capture.release()
