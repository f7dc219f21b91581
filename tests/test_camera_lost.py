"""Cameras that go away and come back, a hundred times: no crash, no old picture, no leak."""

from __future__ import annotations

import contextlib
import itertools
import threading
from dataclasses import replace

import numpy as np
import pytest
from test_camera import CALM, CommandedDevice
from test_sources import LIMIT_S, SETTINGS, PictureServer, held, settles_at

from edge_app.sources import open_source
from edge_app.sources.camera import CameraSource

FAST = replace(CALM, retry_first_s=0.001, retry_most_s=0.01)


def test_lost_and_returned_a_hundred_times():
    before = held()
    device = CommandedDevice()
    with contextlib.closing(CameraSource(device, FAST)) as source:
        during = held()
        frames, taken = source.frames(), 0
        for generation in range(100):
            device.deliver(generation)
            frame = next(frames)
            taken += 1
            assert frame.frame_bgr[0, 0, 0] == generation
            # One that nobody has taken when the camera goes is never seen.
            device.deliver(200)
            device.fail()
            assert device.opened.acquire(timeout=LIMIT_S)
            assert device.closed == generation + 1
            frame = next(frames)
            assert frame.frame_bgr is None
            assert frame.problem.startswith("camera: lost (unplugged), ")
            assert frame.index == source.delivered
        assert held() == during
        assert source.delivered == 200 == taken + source.dropped
    assert held() == before


def test_a_loss_that_nobody_saw_is_told_before_the_next_picture():
    device = CommandedDevice()
    with contextlib.closing(CameraSource(device, FAST)) as source:
        device.fail()
        assert device.opened.acquire(timeout=LIMIT_S)
        device.deliver(1)
        first, second = itertools.islice(source.frames(), 2)
        assert first.problem == "camera: lost (unplugged), back again"
        assert second.frame_bgr[0, 0, 0] == 1


def test_what_a_driver_throws_is_a_loss_too():
    device = CommandedDevice()
    with contextlib.closing(CameraSource(device, FAST)) as source:
        device.fail()
        assert device.opened.acquire(timeout=LIMIT_S)

        def broken() -> np.ndarray:
            device.read = type(device).read.__get__(device)
            raise OSError("pipe stalled")

        device.read = broken
        device._commands.put(0)
        problems = [next(source.frames()).problem]
        while "OSError" not in problems[-1]:
            problems.append(next(source.frames()).problem or "")
        assert "camera: lost (OSError: pipe stalled)" in problems[-1]
        device.deliver(4)
        frame = next(frame for frame in source.frames() if frame.frame_bgr is not None)
        assert frame.frame_bgr[0, 0, 0] == 4


def generation_of(frame_bgr: np.ndarray) -> int:
    """The number that a served picture shows: its brightness, in steps that survive JPEG."""
    return round(float(frame_bgr.mean()) / 16)


def stop_and_start(times: int) -> None:
    """Serve, take, stop, until the loss is told, and again; then look for what was left."""
    settings = replace(SETTINGS, retry_first_s=0.05, retry_most_s=0.2)

    def serve(generation: int, port: int = 0) -> PictureServer:
        shade = np.full((48, 64, 3), generation % 16 * 16, np.uint8)
        return PictureServer(lambda count: shade, port=port)

    nothing = held()
    server = serve(0)
    with contextlib.closing(open_source(server.url, settings)) as source:
        frames, during = source.frames(), None
        for generation in range(times):
            for frame in frames:
                if frame.frame_bgr is not None:
                    break
                assert frame.problem.startswith("camera: lost (")
            assert generation_of(frame.frame_bgr) == generation % 16
            if generation == 1:  # what the first loss needs for good is there
                during = held()
            server.close()
            # Pictures that were on their way are of this generation; then the loss is told.
            for frame in frames:
                if frame.frame_bgr is None:
                    break
                assert generation_of(frame.frame_bgr) == generation % 16
            assert frame.problem.startswith("camera: lost (")
            server = serve(generation + 1, server.port)
        next(frame for frame in frames if frame.frame_bgr is not None)
        assert settles_at(during), (during, held())
        delivered = source.delivered
    server.close()
    assert delivered >= times
    assert not [one for one in threading.enumerate() if one.name.startswith("reader")]
    assert settles_at((nothing[0], nothing[1] + 2)), (nothing, held())


def test_a_stream_stopped_and_started():
    stop_and_start(5)


@pytest.mark.slow
def test_a_stream_stopped_and_started_a_hundred_times():
    stop_and_start(100)


def test_a_stream_that_falls_silent_is_lost_and_comes_back():
    speaks = threading.Event()
    speaks.set()
    closing = threading.Event()

    def draw(count: int) -> np.ndarray:
        while not speaks.wait(0.05) and not closing.is_set():
            pass
        return np.full((48, 64, 3), 160, np.uint8)

    server = PictureServer(draw)
    try:
        with contextlib.closing(open_source(server.url, replace(SETTINGS, hang_s=0.3))) as source:
            frames = source.frames()
            assert next(frames).frame_bgr is not None
            speaks.clear()
            frame = next(frame for frame in frames if frame.frame_bgr is None)
            assert frame.problem.startswith(("camera: lost (", "camera: no picture for "))
            speaks.set()
            assert next(frame for frame in frames if frame.frame_bgr is not None)
    finally:
        closing.set()
        server.close()
