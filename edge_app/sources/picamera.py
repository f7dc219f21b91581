"""The camera on a Raspberry Pi's ribbon cable, through picamera2."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import numpy as np

from edge_app.config import CameraConfig
from edge_app.errors import CameraError
from edge_app.sources.device import GuardedDevice

# libcamera names formats by the bits of a word, most significant first: in memory, from the low
# address up, RGB888 is blue, green, red.
BGR_IN_MEMORY = "RGB888"
# picamera2's own for video, microseconds: 30 pictures a second.
DEFAULT_FRAME_US = 33333
# As many as its preview has; each holds a picture, from memory that a Pi has little of.
BUFFERS = 4


class PicameraDevice(GuardedDevice):
    """
    A camera of libcamera's, by its number.

    Exposure, gain and white balance settle in the first `warm_up_s` seconds and are then locked;
    after a loss the camera gets the locked values back, so that good parts go on looking as they
    did.

    Parameters
    ----------
    number : int
        As ``rpicam-hello --list-cameras`` counts, from 0.
    settings : CameraConfig
    camera_class : type, optional
        `picamera2.Picamera2` but for tests.
    """

    def __init__(
        self, number: int, settings: CameraConfig, camera_class: type | None = None
    ) -> None:
        super().__init__("picamera" if number == 0 else f"picamera:{number}")
        self._number = number
        self._settings = settings
        self._class = camera_class
        self._camera: Any = None
        self._locked: dict[str, Any] = {}

    def _open(self) -> None:
        if self._class is None:
            self._class = self._import()
        try:
            self._start()
        except CameraError:
            raise
        # picamera2 raises RuntimeError, IndexError, ValueError and what libcamera throws.
        except Exception as error:
            raise CameraError(
                f"{self.name}: cannot be opened: {error}: does rpicam-hello show a picture, and "
                "has no other program the camera?"
            ) from error

    def _import(self) -> type:
        try:
            from picamera2 import Picamera2
        except ImportError as error:
            raise CameraError(
                f"{self.name}: picamera2 is not there ({error}): sudo apt install "
                "python3-picamera2, and make the environment with --system-site-packages"
            ) from None
        # A module built against numpy 1 raises ValueError under numpy 2.
        except Exception as error:
            raise CameraError(
                f"{self.name}: picamera2 cannot be imported ({error}): if apt installed it, the "
                "environment needs apt's numpy too (pip uninstall numpy)"
            ) from error
        return Picamera2

    def _start(self) -> None:
        there = len(self._class.global_camera_info())
        if self._number >= there:
            raise CameraError(
                f"{self.name}: no such camera, libcamera finds {there}: check the ribbon cable at "
                "both ends; rpicam-hello --list-cameras must list it"
            )
        camera = self._camera = self._construct()
        controls = self._wanted_controls() | self._locked
        known = camera.camera_controls
        config = camera.create_video_configuration(
            main=self._wanted_stream(camera),
            buffer_count=BUFFERS,
            # Without a queue a capture waits for the next picture and never gets one from before.
            queue=False,
            controls={key: value for key, value in controls.items() if key in known},
        )
        camera.configure(config)
        got = camera.camera_configuration()["main"]["format"]
        if got != BGR_IN_MEMORY:
            raise CameraError(
                f"{self.name}: delivers {got}, wanted {BGR_IN_MEMORY}: a USB camera is named "
                "camera:N"
            )
        camera.start()
        if self._settings.lock and not self._locked:
            self._pause(self._settings.warm_up_s)
            self._lock()

    def _construct(self) -> Any:
        """A Picamera2; one that fails to come about leaves no file handle behind."""
        camera = self._class.__new__(self._class)
        try:
            camera.__init__(self._number)
        except BaseException:
            # Its constructor opens a pipe first and leaves the writing end open when it fails. In
            # days of tries that is every handle of the process. Only if both numbers are still
            # the two ends of one pipe is it the one that was left.
            with contextlib.suppress(AttributeError, OSError, ValueError):
                reading = os.fstat(camera.notifymeread.fileno())
                if reading.st_ino == os.fstat(camera.notifyme_w).st_ino:
                    os.close(camera.notifyme_w)
                    camera.notifymeread.close()
            raise
        return camera

    def _wanted_stream(self, camera: Any) -> dict[str, Any]:
        stream: dict[str, Any] = {"format": BGR_IN_MEMORY}
        width, height = self._settings.width, self._settings.height
        if width or height:
            sensor_width, sensor_height = camera.sensor_resolution
            # One of the two alone keeps the sensor's shape.
            width = width or round(height * sensor_width / sensor_height)
            height = height or round(width * sensor_height / sensor_width)
            stream["size"] = (width, height)
        return stream

    def _wanted_controls(self) -> dict[str, Any]:
        settings, controls = self._settings, {}
        exposure_us = round(settings.exposure_ms * 1e3)
        frame_us = round(1e6 / settings.fps) if settings.fps else DEFAULT_FRAME_US
        # A picture cannot be exposed for longer than it lasts.
        controls["FrameDurationLimits"] = (frame_us, max(frame_us, exposure_us))
        if exposure_us > 0:
            controls["ExposureTime"] = exposure_us
        if settings.gain > 0:
            controls["AnalogueGain"] = float(settings.gain)
        return controls

    def _lock(self) -> None:
        camera = self._camera
        metadata = self._result(camera.capture_metadata(wait=False))
        locked = {"AeEnable": False, "AwbEnable": False}
        for key in ("ExposureTime", "AnalogueGain", "ColourGains"):
            if key in metadata:  # a sensor without colours has no ColourGains
                locked[key] = metadata[key]
        wanted = self._wanted_controls()
        for key in ("ExposureTime", "AnalogueGain"):
            if key in wanted:
                locked[key] = wanted[key]
        known = camera.camera_controls
        self._locked = {key: value for key, value in locked.items() if key in known}
        camera.set_controls(self._locked)

    def _result(self, job: Any) -> Any:
        # The camera may rest for one exposure before the picture that is waited for.
        limit_s = self._settings.hang_s + self._settings.exposure_ms / 1e3
        try:
            return job.get_result(timeout=limit_s)
        except TimeoutError:
            raise CameraError(
                f"{self.name}: no picture for {limit_s:g} s: check the ribbon cable at both ends"
            ) from None

    def _read(self) -> np.ndarray:
        if self._camera is None:
            raise CameraError(f"{self.name}: is not open")
        request = self._result(self._camera.capture_request(wait=False))
        try:
            # Copies out of the camera's buffer, without the padding at the ends of its rows.
            frame_bgr = request.make_array("main")
        finally:
            request.release()
        # Old versions left the padding in the array behind a view.
        return np.ascontiguousarray(frame_bgr)

    def _let_go(self) -> None:
        camera, self._camera = self._camera, None
        if camera is not None:
            camera.close()
