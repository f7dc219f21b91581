"""A camera's reader: the newest picture, exact counts, hangs, and each kind's own settings."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import resource
import threading
import time
import tracemalloc
from dataclasses import replace

import cv2
import numpy as np
import pytest
from test_sources import LIMIT_S, SETTINGS

from edge_app.backoff import Backoff
from edge_app.errors import CameraError
from edge_app.sources import open_source
from edge_app.sources.camera import Absence, CameraSource
from edge_app.sources.picamera import PicameraDevice
from edge_app.sources.webcam import WebcamDevice

# A hang is noticed by none of these tests unless it asks for it.
CALM = replace(SETTINGS, hang_s=60.0)


class CommandedDevice:
    """A camera that delivers, fails and comes back on command."""

    name = "commanded"

    def __init__(self, opens: bool = True) -> None:
        self._commands: queue.Queue = queue.Queue()
        self._waiting = threading.Event()
        self._again = threading.Condition()
        self.reads = 0
        self.opens = opens
        self.opened = threading.Semaphore(0)
        self.is_open = False
        self.closed = 0

    def open(self) -> None:
        if not self.opens:
            raise CameraError("commanded: cannot be opened")
        self.is_open = True
        self.opened.release()

    def read(self) -> np.ndarray:
        assert self.is_open
        with self._again:
            self.reads += 1
            self._again.notify_all()
        self._waiting.set()
        command = self._commands.get(timeout=LIMIT_S)
        self._waiting.clear()
        if isinstance(command, Exception):
            raise command
        return np.full((4, 4, 3), command, np.uint8)

    def close(self) -> None:
        self.is_open = False
        self.closed += 1
        if self._waiting.is_set():  # by another thread: wakes the one that reads
            self._commands.put(CameraError("commanded: closed"))

    def deliver(self, value: int) -> None:
        """Returns when the reader has put the picture away and waits for the next."""
        assert self._waiting.wait(LIMIT_S)
        reads = self.reads
        self._commands.put(value)
        with self._again:
            assert self._again.wait_for(lambda: self.reads > reads, LIMIT_S)

    def fail(self, why: str = "commanded: unplugged", comes_back: bool = True) -> None:
        assert self._waiting.wait(LIMIT_S)
        self.opens = comes_back
        while self.opened.acquire(blocking=False):
            pass
        self._commands.put(CameraError(why))


@pytest.fixture
def device():
    return CommandedDevice()


@pytest.fixture
def source(device):
    with contextlib.closing(CameraSource(device, CALM)) as source:
        yield source


def test_the_newest_picture_is_taken_and_the_others_are_counted(device, source):
    frames = source.frames()
    for value in range(10):
        device.deliver(value)
    frame = next(frames)
    assert (frame.index, frame.dropped, frame.frame_bgr[0, 0, 0]) == (9, 9, 9)
    device.deliver(10)
    frame = next(frames)
    assert (frame.index, frame.dropped, frame.frame_bgr[0, 0, 0]) == (10, 9, 10)
    assert frame.source == "commanded" and frame.problem is None


def test_every_picture_is_taken_or_dropped(device, source):
    frames, taken = source.frames(), 0
    rng = np.random.default_rng(0)
    for count in rng.integers(1, 6, 40):
        for _ in range(count):
            device.deliver(source.delivered % 256)
        frame = next(frames)
        taken += 1
        assert frame.index == source.delivered - 1  # always the newest there is
        assert source.delivered == taken + frame.dropped
        assert frame.frame_bgr[0, 0, 0] == frame.index % 256
    device.deliver(0)
    source.close()
    assert source.delivered == taken + source.dropped


def test_a_waiting_taker_gets_the_next_picture(device, source):
    got = []
    taker = threading.Thread(target=lambda: got.append(next(source.frames())))
    taker.start()
    device.deliver(7)
    taker.join(LIMIT_S)
    assert got[0].frame_bgr[0, 0, 0] == 7
    assert 0 <= time.monotonic() - got[0].captured_s < LIMIT_S


def test_a_camera_that_cannot_be_opened_raises_and_is_closed():
    device = CommandedDevice(opens=False)
    threads = threading.active_count()
    with pytest.raises(CameraError, match="cannot be opened"):
        CameraSource(device, CALM)
    assert device.closed and threading.active_count() == threads


def test_a_patient_source_waits_for_its_camera():
    device = CommandedDevice(opens=False)
    with contextlib.closing(CameraSource(device, CALM, patient=True)) as source:
        frames = source.frames()
        told = [next(frames)]
        while "cannot be opened" not in told[-1].problem:
            told.append(next(frames))
        assert all(frame.problem.startswith("camera: lost (") for frame in told)
        assert len(told) <= 2  # at once, not after a second
        device.opens = True
        device.deliver(3)
        frame = next(frame for frame in frames if frame.frame_bgr is not None)
        assert frame.index == 0 and frame.frame_bgr[0, 0, 0] == 3


def test_a_hanging_read_is_told_and_the_loop_goes_on(device):
    settings = replace(CALM, hang_s=0.1)
    with contextlib.closing(CameraSource(device, settings)) as source:
        frames = source.frames()
        first = next(frames)
        assert first.frame_bgr is None and first.problem.startswith("camera: no picture for ")
        waited_s = float(first.problem.split()[-2])
        assert first.problem.endswith(" s") and waited_s >= 0.1
        second = next(frames)  # about a second later
        assert float(second.problem.split()[-2]) > waited_s
        # Back by itself, as if nothing had been.
        device.deliver(5)
        frame = next(frame for frame in frames if frame.frame_bgr is not None)
        assert (frame.index, frame.dropped) == (0, 0)


def test_a_picture_that_waited_through_a_hang_is_not_taken(device):
    settings = replace(CALM, hang_s=0.1)
    with contextlib.closing(CameraSource(device, settings)) as source:
        device.deliver(1)
        never = threading.Event()
        device.deliver(2)
        stale_s = time.monotonic() + settings.hang_s
        while time.monotonic() <= stale_s:
            never.wait(0.02)
        frame = next(source.frames())
        assert frame.problem.startswith("camera: no picture for ")
        assert frame.dropped == source.delivered == 2


def test_closing_ends_a_hanging_read(device):
    source = CameraSource(device, replace(CALM, hang_s=0.1))
    next(source.frames())
    source.close()
    assert not source._reader.is_alive() and device.closed


def test_closing_returns_even_if_the_read_never_does():
    released = threading.Event()

    class Dead(CommandedDevice):
        def read(self):
            released.wait()
            raise CameraError("dead: gone")

        def close(self):
            self.closed += 1

    device = Dead()
    source = CameraSource(device, replace(CALM, hang_s=0.1))
    frames = source.frames()
    assert next(frames).problem.startswith("camera: no picture for ")
    source.close()
    assert list(frames) == []
    assert source._reader.is_alive() and source._reader.daemon
    released.set()
    source._reader.join(LIMIT_S)
    assert not source._reader.is_alive() and device.closed >= 2


def test_the_wait_between_tries_doubles_up_to_the_most():
    backoff = Backoff(0.5, 30.0)
    waits = [backoff.wait_s() for _ in range(9)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    backoff.reset()
    assert backoff.wait_s() == 0.5


def test_waiting_for_the_next_try_ends_with_close(device):
    settings = replace(CALM, hang_s=5.0, retry_first_s=3600.0, retry_most_s=3600.0)
    source = CameraSource(device, settings)
    device.fail(comes_back=False)
    frame = next(source.frames())
    assert frame.problem == "camera: lost (unplugged), next try in 3600 s"
    source.close()
    assert not source._reader.is_alive()


def test_a_picture_resets_the_wait_and_an_open_alone_does_not(device):
    settings = replace(CALM, retry_first_s=0.01, retry_most_s=0.04)
    waits, source = [], CameraSource(device, settings)

    class Counted(Backoff):
        def wait_s(self):
            waits.append(super().wait_s())
            return waits[-1]

    source._backoff = Counted(0.01, 0.04)
    with contextlib.closing(source):
        for _ in range(4):
            device.fail()
            assert device.opened.acquire(timeout=LIMIT_S)
        device.deliver(1)
        device.fail()
        assert device.opened.acquire(timeout=LIMIT_S)
    assert waits == [0.01, 0.02, 0.04, 0.04, 0.01]


def test_the_journal_is_told_of_a_loss_once_and_of_the_return(device, caplog):
    """A camera that is away for a weekend is tried thousands of times."""
    caplog.set_level(logging.INFO, "edge_app.sources.camera")
    settings = replace(CALM, retry_first_s=0.001, retry_most_s=0.001)
    with contextlib.closing(CameraSource(device, settings)):
        for _ in range(5):
            device.fail()
            assert device.opened.acquire(timeout=LIMIT_S)
        device.deliver(1)
        device.deliver(2)
    lost, back = [record.getMessage() for record in caplog.records]
    assert lost == "commanded: lost (unplugged); it is tried again"
    assert back.startswith("commanded: back again, after ") and back.endswith(" s and 5 tries")


def test_the_journal_is_told_of_a_lost_camera_once_an_hour():
    absence, said = Absence(), []
    assert absence.back(0.0) is None  # it was there from the start
    for at_s in range(0, 9001, 30):  # two hours and a half
        said.append(absence.lost("unplugged" if at_s < 5000 else "no such device", float(at_s)))
    assert [line for line in said if line] == [
        "lost (unplugged); it is tried again",
        "still lost (unplugged), after 3600.0 s and 120 tries",
        "still lost (no such device), after 7200.0 s and 240 tries",
    ]
    assert absence.back(9010.0) == "back again, after 9010.0 s and 301 tries"
    assert absence.back(9011.0) is None
    assert absence.lost("unplugged", 9100.0) == "lost (unplugged); it is tried again"
    assert absence.back(9100.5) == "back again, after 0.5 s and 1 try"


# Real time


def watch_slow_work(seconds: float, fps: float, work_s: float) -> tuple[list[float], int, int]:
    """Ages of frames when work on them starts, pictures taken, pictures dropped; checks counts."""
    settings = replace(CALM, fps=fps)
    never = threading.Event()
    ages, taken, growth_kb, frame = [], 0, 0, None
    with contextlib.closing(open_source("synthetic", settings)) as source:
        started_s = time.monotonic()
        settled_kb = None
        for frame in source.frames():
            now_s = time.monotonic()
            ages.append(now_s - frame.captured_s)
            assert frame.frame_bgr is not None, frame.problem
            taken += 1
            assert frame.index + 1 == taken + frame.dropped
            if settled_kb is None and now_s - started_s > seconds / 4:
                settled_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if now_s - started_s > seconds:
                break
            never.wait(work_s)  # a scorer that is slower than the camera
        growth_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - settled_kb
    assert source.delivered == taken + source.dropped
    return ages, source.dropped, growth_kb


def test_slow_work_gets_fresh_frames():
    ages, dropped, _ = watch_slow_work(2.5, 30.0, 0.1)
    # The most of them: a machine that stands still for a while makes single frames old.
    assert np.median(ages) < 2 / 30
    assert dropped > len(ages)  # at 30 a second, two of three


@pytest.mark.slow
def test_slow_work_gets_fresh_frames_for_ten_minutes():
    ages, dropped, growth_kb = watch_slow_work(600.0, 30.0, 0.1)
    old = np.array(ages) > 2 / 30
    print(f"{len(ages)} taken, {dropped} dropped, oldest {max(ages) * 1e3:.1f} ms, {growth_kb} KiB")
    assert np.mean(old) < 0.001
    assert growth_kb < 4 * 1024  # 17 pictures of the clip; 12 000 were dropped


def test_dropped_pictures_are_given_back(device, source):
    size = 4 * 4 * 3
    frames = source.frames()
    for value in range(50):
        device.deliver(value)
    next(frames)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for value in range(200):
            device.deliver(value)
        next(frames)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < 100 * size  # 199 pictures kept would be twice that


# A webcam's settings, asked of a driver that keeps a list


class Driver:
    """What `cv2.VideoCapture` offers, with controls in a dictionary; refuses those in `refuses`."""

    def __init__(self, refuses: tuple[int, ...] = ()) -> None:
        self.refuses = refuses
        self.set_in_order: list[tuple[int, float]] = []
        self.values = {cv2.CAP_PROP_EXPOSURE: 157.0, cv2.CAP_PROP_WB_TEMPERATURE: 4600.0}
        self.reads = 0
        self.released = False

    def __call__(self, number: int, backend: int) -> Driver:
        assert backend == cv2.CAP_V4L2
        self.released = False
        return self

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def set(self, key: int, value: float) -> bool:
        if key in self.refuses:
            return False
        self.set_in_order.append((key, value))
        self.values[key] = value
        return True

    def get(self, key: int) -> float:
        return self.values.get(key, 0.0)

    def read(self):
        self.reads += 1
        return True, np.zeros((4, 4, 3), np.uint8)

    def release(self) -> None:
        self.released = True


def test_a_webcam_is_locked_after_its_warm_up():
    driver = Driver()
    settings = replace(SETTINGS, width=640, height=480, fps=30.0, warm_up_s=0.05)
    webcam = WebcamDevice(0, settings, driver)
    webcam.open()
    asked = driver.set_in_order
    mjpg = (cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*"MJPG"))
    width = (cv2.CAP_PROP_FRAME_WIDTH, 640)
    # The format first: it decides which sizes there are.
    assert asked.index(mjpg) < asked.index(width)
    assert {(cv2.CAP_PROP_FRAME_HEIGHT, 480), (cv2.CAP_PROP_FPS, 30.0)} <= set(asked)
    assert (cv2.CAP_PROP_BUFFERSIZE, 1) in asked
    exposure = [value for key, value in asked if key == cv2.CAP_PROP_AUTO_EXPOSURE]
    balance = [value for key, value in asked if key == cv2.CAP_PROP_AUTO_WB]
    assert exposure == [3, 1] and balance == [1, 0]
    assert driver.reads >= 1  # automatics settle on pictures that are read
    # After a loss the camera gets the same values back, without a new warm-up.
    webcam.close()
    assert driver.released
    driver.set_in_order, driver.reads = [], 0
    webcam.open()
    assert driver.reads == 0
    assert driver.set_in_order[-4:] == [
        (cv2.CAP_PROP_AUTO_EXPOSURE, 1),
        (cv2.CAP_PROP_EXPOSURE, 157.0),
        (cv2.CAP_PROP_AUTO_WB, 0),
        (cv2.CAP_PROP_WB_TEMPERATURE, 4600.0),
    ]
    webcam.close()


def test_a_given_exposure_is_set_at_once_in_units_of_100_microseconds():
    driver = Driver()
    webcam = WebcamDevice(0, replace(SETTINGS, exposure_ms=8.0, lock=False), driver)
    webcam.open()
    asked = driver.set_in_order
    assert asked.index((cv2.CAP_PROP_AUTO_EXPOSURE, 1)) < asked.index((cv2.CAP_PROP_EXPOSURE, 80.0))
    assert driver.reads == 0
    assert cv2.CAP_PROP_FRAME_WIDTH not in dict(asked)
    webcam.close()


def test_what_a_driver_refuses_is_named_once(caplog):
    driver = Driver(refuses=(cv2.CAP_PROP_AUTO_WB, cv2.CAP_PROP_FRAME_WIDTH))
    settings = replace(SETTINGS, width=640, height=480, warm_up_s=0.0)
    webcam = WebcamDevice(3, settings, driver)
    for _ in range(3):
        webcam.open()
        webcam.close()
    assert [record.getMessage() for record in caplog.records] == [
        "camera:3: the driver refuses width 640, automatic white balance, a fixed white balance"
    ]


def test_closing_ends_a_warm_up():
    driver = Driver()
    webcam = WebcamDevice(0, replace(SETTINGS, warm_up_s=3600.0), driver)
    failed = []

    def opening() -> None:
        try:
            webcam.open()
        except CameraError as error:
            failed.append(error)

    thread = threading.Thread(target=opening, daemon=True)
    thread.start()
    while driver.reads == 0:
        threading.Event().wait(0.001)
    webcam.close()
    thread.join(LIMIT_S)
    assert not thread.is_alive() and failed and driver.released


# The Pi's camera: a stand-in with the signatures of picamera2 0.3.38


class Job:
    def __init__(self, result) -> None:
        self._result = result

    def get_result(self, timeout=None):
        if self._result is None:
            raise TimeoutError
        return self._result


class Request:
    def __init__(self, buffer: np.ndarray, width: int, height: int) -> None:
        self._buffer, self._size = buffer, (height, width)
        self.released = 0

    def make_array(self, name: str) -> np.ndarray:
        assert name == "main" and not self.released
        height, width = self._size
        # As before picamera2 0.3.19: a copy of the buffer, its padding hidden by a view.
        rows = self._buffer.copy().reshape(height, -1)
        return rows[:, : width * 3].reshape(height, width, 3)

    def release(self) -> None:
        self.released += 1
        self._buffer[:] = 99  # the camera writes its next picture


class Picamera:
    """Enough of `picamera2.Picamera2`: rows padded to 64 bytes, as the hardware does."""

    cameras = 1
    busy = False
    silent = False
    colourless = False
    format = "RGB888"
    made: list[Picamera] = []

    def __init__(self, camera_num=0, verbose_console=None, tuning=None, allocator=None) -> None:
        self.notifyme_r, self.notifyme_w = os.pipe2(os.O_NONBLOCK)
        self.notifymeread = os.fdopen(self.notifyme_r, "rb")
        if self.busy:
            raise RuntimeError("Camera __init__ sequence did not complete.")
        self.sensor_resolution = (4608, 2592)
        self.requests: list[Request] = []
        self.controls: dict = {}
        self.config: dict = {}
        self.started = self.closed = False
        type(self).made.append(self)

    @classmethod
    def global_camera_info(cls) -> list[dict]:
        return [{"Model": "imx708", "Num": number} for number in range(cls.cameras)]

    @property
    def camera_controls(self) -> dict:
        known = ["AeEnable", "AwbEnable", "ExposureTime", "AnalogueGain", "FrameDurationLimits"]
        return dict.fromkeys(known if self.colourless else [*known, "ColourGains"], (0, 1, 0))

    def create_video_configuration(self, main, buffer_count, queue, controls) -> dict:
        return {
            "main": {"size": (1280, 720), **main},
            "queue": queue,
            "buffer_count": buffer_count,
            "controls": controls,
        }

    def configure(self, camera_config) -> None:
        self.config = camera_config
        self.config["main"]["format"] = self.format

    def camera_configuration(self) -> dict:
        return self.config

    def start(self) -> None:
        self.started = True

    def set_controls(self, controls) -> None:
        self.controls |= controls

    def capture_metadata(self, wait=None):
        assert wait is False
        metadata = {"ExposureTime": 12345, "AnalogueGain": 1.5, "ColourGains": (2.1, 1.7)}
        if self.colourless:
            del metadata["ColourGains"]
        return Job(metadata)

    def capture_request(self, wait=None):
        assert wait is False and self.started
        if self.silent:
            return Job(None)
        width, height = self.config["main"]["size"]
        rows = np.full((height, -(-width * 3 // 64) * 64), 250, np.uint8)  # padding: 250
        rows[:, : width * 3] = np.tile([10, 20, 30], width)  # blue, green, red
        self.requests.append(Request(rows.ravel(), width, height))
        return Job(self.requests[-1])

    def close(self) -> None:
        if not self.closed:
            self.notifymeread.close()
            os.close(self.notifyme_w)
        self.closed = True


@pytest.fixture
def pi():
    return type("Pi", (Picamera,), {"made": []})


QUICK = replace(SETTINGS, warm_up_s=0.0)


def test_a_pi_picture_is_a_copy_without_padding_and_its_buffer_is_given_back(pi):
    camera = PicameraDevice(0, replace(QUICK, width=50, height=20), pi)
    camera.open()
    frame_bgr = camera.read()
    made = pi.made[0]
    assert made.config["main"]["format"] == "RGB888"  # blue, green, red in memory
    assert made.config["queue"] is False
    assert frame_bgr.shape == (20, 50, 3) and frame_bgr.flags.c_contiguous
    assert [request.released for request in made.requests] == [1]
    np.testing.assert_array_equal(frame_bgr, np.broadcast_to([10, 20, 30], (20, 50, 3)))
    camera.close()
    assert made.closed


def test_a_pi_camera_is_locked_to_what_it_settled_on(pi):
    camera = PicameraDevice(0, QUICK, pi)
    camera.open()
    settled = {
        "AeEnable": False,
        "AwbEnable": False,
        "ExposureTime": 12345,
        "AnalogueGain": 1.5,
        "ColourGains": (2.1, 1.7),
    }
    assert pi.made[0].controls == settled
    camera.close()
    camera.open()
    # After a loss it starts with the same values.
    assert settled.items() <= pi.made[1].config["controls"].items()
    camera.close()


def test_given_exposure_and_gain_win_over_what_was_settled_on(pi):
    settings = replace(QUICK, exposure_ms=50.0, gain=4.0, fps=60.0)
    camera = PicameraDevice(0, settings, pi)
    camera.open()
    started = pi.made[0].config["controls"]
    assert started["ExposureTime"] == 50_000 and started["AnalogueGain"] == 4.0
    assert started["FrameDurationLimits"] == (16667, 50_000)  # room for the exposure
    assert pi.made[0].controls["ExposureTime"] == 50_000
    assert pi.made[0].controls["ColourGains"] == (2.1, 1.7)
    camera.close()


def test_a_sensor_without_colours_is_asked_for_none(pi):
    pi.colourless = True
    camera = PicameraDevice(0, QUICK, pi)
    camera.open()
    assert "ColourGains" not in pi.made[0].controls
    camera.close()


def test_one_side_alone_keeps_the_sensor_shape(pi):
    camera = PicameraDevice(0, replace(QUICK, width=1152), pi)
    camera.open()
    assert pi.made[0].config["main"]["size"] == (1152, 648)
    camera.close()


@pytest.mark.parametrize(
    ("attribute", "value", "number", "message"),
    [
        ("cameras", 0, 0, "picamera: no such camera, libcamera finds 0: check the ribbon cable"),
        ("cameras", 1, 1, "picamera:1: no such camera, libcamera finds 1"),
        ("busy", True, 0, "has no other program the camera"),
        ("format", "MJPEG", 0, "delivers MJPEG, wanted RGB888: a USB camera is named camera:N"),
    ],
)
def test_a_pi_camera_that_cannot_serve_says_what_to_do(pi, attribute, value, number, message):
    setattr(pi, attribute, value)
    camera = PicameraDevice(number, QUICK, pi)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(CameraError, match=message):
            camera.open()
    assert len(os.listdir("/proc/self/fd")) == before
    assert all(made.closed for made in pi.made)


def test_a_pi_camera_that_stops_delivering_is_lost(pi):
    camera = PicameraDevice(0, QUICK, pi)
    camera.open()
    pi.silent = True
    with pytest.raises(CameraError, match="no picture for 1.5 s: check the ribbon cable"):
        camera.read()
    camera.close()


def test_pi_through_the_source(pi):
    device = PicameraDevice(0, replace(QUICK, width=32, height=16), pi)
    with contextlib.closing(CameraSource(device, CALM)) as source:
        frames = list(itertools.islice(source.frames(), 3))
    assert [frame.frame_bgr.shape for frame in frames] == [(16, 32, 3)] * 3
    assert pi.made[0].closed
