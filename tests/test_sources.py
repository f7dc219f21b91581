"""One contract, kept by every source; and the names that open them."""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import itertools
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_app.config import DEFAULT_FILE, load_config
from edge_app.errors import CameraError, InputError
from edge_app.sources import open_source
from edge_app.sources.stream import without_password

SETTINGS = replace(load_config(DEFAULT_FILE).camera, retry_first_s=0.05)
# No test waits for less than this; all it costs is time before a failure is seen.
LIMIT_S = 20.0
HEIGHT, WIDTH = 96, 128


def picture(number: int) -> np.ndarray:
    """Left half blue, right half red but for a grey bar that grows with the number."""
    frame_bgr = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    frame_bgr[:, : WIDTH // 2, 0] = 255
    frame_bgr[:, WIDTH // 2 :, 2] = 255
    frame_bgr[:8, : 8 * (number % 16)] = 128
    return frame_bgr


class PictureServer:
    """An MJPEG camera on the loopback: `pictures` of it a second, each from `draw(count)`."""

    def __init__(self, draw=picture, pictures_s: float = 60.0, port: int = 0) -> None:
        self._gone = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args) -> None:
                """Nothing on stderr."""

            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
                self.end_headers()
                for count in itertools.count():
                    if outer._gone.wait(1.0 / pictures_s):
                        return
                    jpeg = cv2.imencode(".jpg", draw(count))[1].tobytes()
                    head = (
                        f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                    )
                    try:
                        self.wfile.write(head.encode() + jpeg + b"\r\n")
                    except OSError:
                        return

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = False  # so that close() waits for them
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/"

    def close(self) -> None:
        self._gone.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def clip(tmp_path) -> Path:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (WIDTH, HEIGHT))
    for number in range(6):
        writer.write(picture(number))
    writer.release()
    return path


@pytest.fixture(params=["folder", "video", "synthetic", "stream", "webcam", "picamera"])
def named(request, tmp_path, clip):
    """The name of a source, whether it is live, and whether it shows `picture`."""
    if request.param == "folder":
        folder = tmp_path / "pictures"
        folder.mkdir()
        for number in range(6):
            cv2.imwrite(str(folder / f"{number}.png"), picture(number))
        yield str(folder), False, True
    elif request.param == "video":
        yield str(clip), False, True
    elif request.param == "synthetic":
        yield f"synthetic:{clip}", True, True
    elif request.param == "stream":
        server = PictureServer()
        yield server.url, True, True
        server.close()
    elif request.param == "webcam":
        if not Path("/dev/video0").exists():
            pytest.skip("there is no /dev/video0")
        yield "camera:0", True, False
    else:
        if importlib.util.find_spec("picamera2") is None:
            pytest.skip("picamera2 is not there: it needs a Raspberry Pi's libcamera")
        yield "picamera", True, False


def held() -> tuple[int, int]:
    """Threads and file handles of this process."""
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


def settles_at(most: tuple[int, int]) -> bool:
    """Whether no more is held, once a server's threads have noticed that their reader is gone."""
    ends_s, never = time.monotonic() + LIMIT_S, threading.Event()
    while any(now > limit for now, limit in zip(held(), most, strict=True)):
        if time.monotonic() > ends_s:
            return False
        never.wait(0.01)
    return True


def take(source, count: int) -> list:
    """The first frames with pictures."""
    seen = (frame for frame in source.frames() if frame.frame_bgr is not None)
    return list(itertools.islice(seen, count))


def test_frames_are_pictures_in_order(named):
    name, live, drawn = named
    with contextlib.closing(open_source(name, SETTINGS)) as source:
        assert source.live is live
        assert source.separate_parts is (name.endswith("pictures"))
        frames = take(source, 5)
    for frame in frames:
        assert frame.problem is None
        assert frame.frame_bgr.dtype == np.uint8
        assert frame.frame_bgr.ndim == 3 and frame.frame_bgr.shape[2] == 3
        assert frame.frame_bgr.flags.c_contiguous and frame.frame_bgr.flags.writeable
        assert frame.read_ms >= 0
        assert frame.source
    indices = [frame.index for frame in frames]
    assert indices == sorted(set(indices))
    if not live:
        assert indices == [0, 1, 2, 3, 4]


def test_colours_are_blue_green_red(named):
    name, _, drawn = named
    if not drawn:
        pytest.skip("what stands before this camera is not known")
    with contextlib.closing(open_source(name, SETTINGS)) as source:
        frame_bgr = take(source, 1)[0].frame_bgr
    assert frame_bgr.shape == (HEIGHT, WIDTH, 3)
    left, right = frame_bgr[-20, 20].astype(int), frame_bgr[-20, -20].astype(int)
    assert left[0] > 200 and left[1:].max() < 60
    assert right[2] > 200 and right[:2].max() < 60


def test_pictures_have_memory_of_their_own(named):
    name, _, _ = named
    with contextlib.closing(open_source(name, SETTINGS)) as source:
        frames = take(source, 3)
    kept = frames[0].frame_bgr.copy()
    for frame in frames[1:]:
        assert not np.shares_memory(frame.frame_bgr, frames[0].frame_bgr)
        frame.frame_bgr[:] = 7
    np.testing.assert_array_equal(frames[0].frame_bgr, kept)


def test_only_live_frames_have_a_time(named):
    name, live, _ = named
    with contextlib.closing(open_source(name, SETTINGS)) as source:
        times = [frame.captured_s for frame in take(source, 4)]
    if live:
        assert times == sorted(times)
    else:
        assert times == [None] * 4


def test_nothing_is_left_after_close(named):
    name, _, _ = named
    # The first use of OpenCV and of a server's thread opens what the process keeps.
    with contextlib.closing(open_source(name, SETTINGS)) as source:
        take(source, 1)
    before = held()
    for _ in range(5):
        source = open_source(name, SETTINGS)
        frames = source.frames()
        next(frames)
        source.close()
        source.close()
        del frames
    assert not [one for one in threading.enumerate() if one.name.startswith("reader")]
    assert settles_at(before), (before, held())


def test_a_closed_source_ends(named):
    name, live, _ = named
    if not live:
        pytest.skip("files end by themselves")
    source = open_source(name, SETTINGS)
    frames = source.frames()
    assert next(frames) is not None
    source.close()
    assert list(frames) == []


def test_a_clip_starts_over_and_keeps_its_rate(clip):
    settings = replace(SETTINGS, fps=200.0)
    with contextlib.closing(open_source(f"synthetic:{clip}", settings)) as source:
        frames = take(source, 20)
        assert frames[-1].index >= 19
        # Faster than the rate it cannot be, whatever the machine does.
        lasted_s = frames[-1].captured_s - frames[0].captured_s
        between = frames[-1].index - frames[0].index
        assert lasted_s > (between - 1.5) / settings.fps


def test_synthetic_alone_plays_the_sample(clip_frames):
    with contextlib.closing(open_source("synthetic")) as source:
        first = next(source.frames())
    assert first.source == "synthetic"
    np.testing.assert_array_equal(first.frame_bgr, clip_frames[first.index])


@pytest.mark.parametrize("name", ["synthetic:/nowhere.mp4", "picamera.mp4", "camera:x", "rtsp:/x"])
def test_a_name_of_nothing_is_bad_input(name):
    with pytest.raises(InputError, match="no such"):
        open_source(name)


def test_a_clip_that_is_none_cannot_be_opened(tmp_path):
    (tmp_path / "no.mp4").write_bytes(b"no")
    with pytest.raises(CameraError, match="neither a picture nor a video"):
        open_source(f"synthetic:{tmp_path / 'no.mp4'}")


@pytest.mark.skipif(Path("/dev/video4242").exists(), reason="there is a camera 4242")
@pytest.mark.parametrize("name", ["camera:4242", "/dev/video4242"])
def test_a_missing_webcam_says_what_to_do(name):
    with pytest.raises(CameraError, match=r"camera:4242: .*no /dev/video4242: is it plugged in"):
        open_source(name)


@pytest.mark.skipif(
    importlib.util.find_spec("picamera2") is not None, reason="picamera2 is installed"
)
def test_without_picamera2_the_remedy_is_named():
    with pytest.raises(CameraError, match="apt install python3-picamera2"):
        open_source("picamera")


def test_a_stream_that_does_not_answer_says_so():
    server = PictureServer()
    server.close()
    with pytest.raises(CameraError, match="does not answer with a video"):
        open_source(server.url)


def test_a_patient_source_starts_lost():
    server = PictureServer()
    server.close()
    source = open_source(server.url, SETTINGS, patient=True)
    frames = source.frames()
    first, second = next(frames), next(frames)
    source.close()
    assert first.frame_bgr is None and first.index == 0
    assert first.problem.startswith("camera: lost (")
    assert "does not answer" in second.problem


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://admin:se:cr@t@10.0.0.9:554/a", "rtsp://admin:***@10.0.0.9:554/a"),
        ("http://10.0.0.9:8080/a:b@c", "http://10.0.0.9:8080/a:b@c"),
        ("http://admin@10.0.0.9/", "http://admin@10.0.0.9/"),
    ],
)
def test_passwords_are_not_shown(url, shown):
    assert without_password(url) == shown
