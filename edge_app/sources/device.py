"""
What a camera kind must offer to be read by :class:`edge_app.sources.camera.CameraSource`.

A device has one handle and one thread that opens, reads and closes it. A second thread may ask it
to close while a read hangs: then the handle is let go by the first, as soon as its read returns.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np

from edge_app.errors import CameraError


class Device(Protocol):
    """
    One camera.

    Attributes
    ----------
    name : str
        As it stands in results and messages, without passwords.
    """

    name: str

    def open(self) -> None:
        """Make it deliver; CameraError with the remedy if it cannot, and nothing is held then."""

    def read(self) -> np.ndarray:
        """
        Wait for the next picture.

        Returns
        -------
        frame_bgr : ndarray of uint8, shape (height, width, 3)
            In memory of its own.

        Raises
        ------
        CameraError
            If the camera is gone, or not open.
        """

    def close(self) -> None:
        """Let go of it; any number of times, and by any thread even while `read` hangs."""


class GuardedDevice(ABC):
    """
    A device whose handle is never freed under a call that is using it.

    OpenCV and libcamera free memory in their `release` that a read in another thread may still
    write to. So only a thread inside the guard frees the handle; `close` from outside, while
    another is in, leaves word with `_leaving` and returns.

    Parameters
    ----------
    name : str
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._inside = threading.Lock()
        self._leaving = threading.Event()

    def open(self) -> None:
        with self._inside:
            self._let_go()
            self._leaving.clear()
            try:
                self._open()
            except BaseException:
                self._let_go()
                raise

    def read(self) -> np.ndarray:
        with self._inside:
            return self._read()

    def close(self) -> None:
        self._leaving.set()
        if self._inside.acquire(blocking=False):
            try:
                self._let_go()
            finally:
                self._inside.release()

    def _pause(self, seconds: float) -> None:
        """Wait; CameraError as soon as somebody closes the device."""
        if self._leaving.wait(seconds):
            raise CameraError(f"{self.name}: closed")

    @abstractmethod
    def _open(self) -> None:
        """Get the handle and make it deliver; what is left after an error is let go of."""

    @abstractmethod
    def _read(self) -> np.ndarray:
        """The next picture; must return or raise by itself, however long it takes."""

    @abstractmethod
    def _let_go(self) -> None:
        """Free the handle, if there is one."""
