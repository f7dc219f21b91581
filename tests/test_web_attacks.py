"""
Bounded attacks on the page, on loopback: nothing crashes, leaves its folder or holds up the frames.

The short forms run with every test; the long ones against a real ``edge-app run``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from station_page import Client, Station, serving

ROOT = Path(__file__).resolve().parent.parent
PATHS = [
    "/", "/login", "/logout", "/static/app.js", "/static/", "/stream.mjpg", "/picture.jpg",
    "/api/live", "/api/state", "/api/events", "/api/events/1", "/api/events/1/frame",
    "/api/events/1/overlay", "/api/events/1/thumb", "/api/events/1/learn", "/api/events/1/mark",
    "/api/events/1/unmark", "/api/counts", "/api/export", "/api/bundles", "/api/bundles/revert",
    "/api/threshold", "/api/picture", "/api/trigger", "/api/session", "/metrics", "/nothing",
]  # fmt: skip
# Files that a path might lead to, and what they begin with.
WANTED = ["etc/passwd", "proc/self/environ", "proc/self/cmdline", "app.py", "events.sqlite"]
SECRETS = [b"root:x:", b"SQLite format", b"from __future__", b"PATH=/"]
CLIMBS = [
    "../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%252f", "..\\", "..%5c", "....//", "%c0%ae%c0%ae/",
    "..;/", "/", "//", "%00", "..%00/", "%u002e%u002e/", "\\..\\", "file:///", "?../", "#../",
]  # fmt: skip
METHODS = [
    "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PATCH", "get", "G\0T",
    "", "GET GET", "X" * 100, "PROPFIND", "\xe9",
]  # fmt: skip
HOSTS = ["localhost", "localhost", "localhost", "127.0.0.1", "evil.example", "", "[::1", "a:b:c"]
NAMES = [
    "Content-Length", "Transfer-Encoding", "Cookie", "Authorization", "Origin", "Range", "Expect",
    "Content-Type", "Upgrade", "Connection", "If-None-Match", "Accept", "X-Edge-App", "Host",
    "Content-Encoding", "Sec-Fetch-Site", "X-Forwarded-Proto", "Referer", "Sec-WebSocket-Key",
]  # fmt: skip
VALUES = [
    "", "0", "-1", "1e9", "99999999999999999999", "chunked", "chunked, chunked", "identity", "gzip",
    "deflate", "close", "Upgrade", "keep-alive", "websocket", "100-continue", "text/html",
    "application/json", "application/json; charset=utf-7", "multipart/form-data; boundary=x",
    "bytes=0-", "bytes=-1,0-,9-1", "Bearer", "Bearer \xff", "Basic Og==", "null", "http://[",
    "a=b; c; =; \"", "edge_app_line-3=x.y.z", "\t", "\x01", "\xff\xfe", "x" * 9000, "cross-site",
]  # fmt: skip
BODIES = [
    b"", b"{}", b"{", b"[" * 5000, b"null", b'{"value": NaN}', b'{"value": 1e999}', b"\0" * 100,
    b'{"sha256": "../../../etc/passwd"}', b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"-5\r\nx",
    b"ffffffffffffffff\r\n", b"--x\r\nContent-Disposition: form-data\r\n\r\n", b"x" * 3000,
    b'{"value": "' + b"9" * 2000 + b'"}', b"\xff\xfe\xfd", b'{"token": {"$ne": null}}',
]  # fmt: skip


def malformed(rng: random.Random) -> bytes:
    """A request that is wrong in some way, or in none."""
    path = rng.choice(PATHS)
    for _ in range(rng.choice([0, 0, 0, 0, 1, 2])):
        path += rng.choice(["", "/"]) + rng.choice(CLIMBS) * rng.randint(1, 9) + rng.choice(WANTED)
    if rng.random() < 0.3:
        keys, values = ["limit", "before", "kind", "since", "format"], [*VALUES, "zip", "5", "ng"]
        query = [f"{rng.choice(keys)}={rng.choice(values)}" for _ in range(3)]
        path += "?" + "&".join(query)
    if rng.random() < 0.05:
        path = rng.choice(["*", "", " ", "http://evil.example/", "//evil.example/", "x" * 9000])
    version = rng.choice(["HTTP/1.1"] * 30 + ["HTTP/1.0", "HTTP/9.9", "HTTP", "", "http/1.1 x"])
    lines = [f"{rng.choice(METHODS[:2] * 40 + METHODS)} {path} {version}"]
    lines.append(f"Host: {rng.choice(HOSTS)}")
    if rng.random() < 0.5:
        lines.append("X-Edge-App: 1")
    lines += [
        f"{rng.choice(NAMES)}: {rng.choice(VALUES)}" for _ in range(rng.choice([0, 0, 0, 1, 2]))
    ]
    if rng.random() < 0.05:
        lines += ["no colon at all", ": no name", " folded", "X" * 9000 + ": y"]
    body = rng.choice(BODIES)
    if rng.random() < 0.7:
        lines.append(f"Content-Length: {len(body)}")
    end = rng.choice(["\r\n"] * 20 + ["\n"])
    data = end.join([*lines, "", ""]).encode("latin-1") + body
    if rng.random() < 0.15:
        # Cut off, doubled, or with a byte changed.
        place = rng.randrange(len(data))
        changed = data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
        data = rng.choice([data[:place], data * 3, changed, data[::-1]])
    return data


def throw(port: int, data: bytes, wait_s: float = 0.05) -> bytes:
    """Send it, and take what comes at once."""
    got = b""
    with contextlib.suppress(OSError):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(data)
            connection.settimeout(wait_s)
            while len(got) < 200_000 and (more := connection.recv(65536)):
                got += more
    return got


def attack(port: int, count: int, seed: int) -> dict[int, int]:
    """So many malformed requests; how often each status came. Fails where a secret comes."""
    rng = random.Random(seed)
    statuses: dict[int, int] = {}
    for _ in range(count):
        data = malformed(rng)
        got = throw(port, data)
        for status in re.findall(rb"^HTTP/1\.[01] (\d{3}) ", got, re.MULTILINE):
            statuses[int(status)] = statuses.get(int(status), 0) + 1
        for secret in SECRETS:
            assert secret not in got, data
        head = got.partition(b"\r\n\r\n")[0].lower()
        assert b"aiohttp" not in head and b"python" not in head, got[:300]
        assert b"traceback" not in got.lower(), data
    return statuses


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def station(tmp_path):
    station = Station(tmp_path / "state")
    station.ng()
    yield station
    station.close()


@pytest.mark.parametrize("token", [False, True], ids=["open", "token"])
def test_malformed_requests_change_nothing(station, tmp_path, caplog, token):
    extra = {}
    if token:
        (tmp_path / "token").write_text("t" * 20)
        extra["token_file"] = str(tmp_path / "token")
    before = files_below(tmp_path)
    with caplog.at_level(logging.INFO), serving(station, **extra) as server:
        client = Client(server, **({"Authorization": "Bearer " + "t" * 20} if token else {}))
        statuses = attack(client.port, 150, 1)
        for climb in CLIMBS:
            for wanted in WANTED:
                for base in ("/static/", "/api/events/1/", "/events/", "/"):
                    line = f"GET {base}{climb * 5}{wanted} HTTP/1.0"
                    got = throw(client.port, f"{line}\r\nHost: localhost\r\n\r\n".encode(), 1.0)
                    assert not any(secret in got for secret in SECRETS), climb
        assert client.get("/api/state")[0] == 200
    assert 500 not in statuses and len(statuses) >= 3
    if token:
        assert set(statuses) <= {101, 200, 303, 304, 400, 401, 403, 404, 405, 413, 417, 429}
        assert station.controls.calls == []
    assert files_below(tmp_path) == before
    # What anybody can cause at will does not fill the journal.
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert len(caplog.records) < 10


def test_slow_viewers_get_the_newest_and_hold_up_nobody(station):
    picture = np.random.default_rng(0).integers(0, 255, (600, 800, 3), np.uint8)
    with serving(station, viewers=20) as server:
        client = Client(server)
        slow = []
        for _ in range(19):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", client.port))
            connection.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
            slow.append(connection)
        quick, response = client.open("GET", "/stream.mjpg")
        for _ in range(20):
            station.board.show("NG", 9.0, picture)
            wanted = str(station.board.picture[0]).encode()
            seen = b""
            while seen != wanted:
                line = response.readline()
                if line.startswith(b"X-Number: "):
                    seen = line[10:].strip()
        assert client.get("/api/state")[0] == 200
        for connection in (quick, *slow):
            connection.close()


# Against the real thing


@pytest.fixture
def running(tmp_path):
    """A real ``edge-app run`` on the played clip; its port and process."""
    (tmp_path / "config.toml").write_text(
        '[service]\nname = "line-3"\nsource = "synthetic"\n'
        f'state = "{tmp_path / "state"}"\nbundle = "{ROOT / "models" / "nut"}"\n'
        "[web]\nport = 0\n[metrics]\nenabled = true\n"
    )
    log = open(tmp_path / "log", "w+")
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_app", "run", "--config", str(tmp_path / "config.toml")],
        cwd=ROOT,
        stderr=log,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        end = time.monotonic() + 60
        while not (found := re.search(r"page is at http://[^:]+:(\d+)", _read(tmp_path / "log"))):
            assert process.poll() is None and time.monotonic() < end, _read(tmp_path / "log")
            time.sleep(0.1)
        yield int(found[1]), process, tmp_path
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(30)
        log.close()


def _read(path: Path) -> str:
    return path.read_text()


def ask(port: int, path: str) -> bytes:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().read()


def inspected(port: int) -> float:
    """Frames that have been inspected so far."""
    text = ask(port, "/metrics").decode()
    return float(re.search(r"^edge_app_frames_total (\S+)", text, re.MULTILINE)[1])


def pace(port: int, for_s: float) -> float:
    begun_s, before = time.monotonic(), inspected(port)
    time.sleep(for_s)
    return (inspected(port) - before) / (time.monotonic() - begun_s)


def resident_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024


@pytest.mark.slow
def test_the_service_under_attack_inspects_as_before(running):
    port, process, folder = running
    time.sleep(3)
    calm = pace(port, 10)
    memory_mb = resident_mb(process.pid)
    ending = threading.Event()
    slow: list[socket.socket] = []

    def viewers() -> None:
        """20 that watch and take a little from time to time; then many that never finish asking."""
        for number in range(60):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", port))
            head = "GET /stream.mjpg HTTP/1.1\r\nHost: localhost\r\n"
            connection.sendall((head + ("\r\n" if number < 20 else "X-Slow: ")).encode())
            connection.settimeout(0.05)
            slow.append(connection)
        while not ending.wait(0.2):
            for number, connection in enumerate(slow):
                with contextlib.suppress(OSError):
                    if number < 20:
                        connection.recv(2000)
                    else:
                        connection.sendall(b"x")

    statuses: dict[int, int] = {}

    def requests() -> None:
        # As many as a small tool throws, from a machine that is not the station: on this one the
        # attacker takes the processor from the service.
        seed = 0
        while not ending.wait(0.05):
            seed += 1
            for status, count in attack(port, 2, seed).items():
                statuses[status] = statuses.get(status, 0) + count

    def bodies() -> None:
        while not ending.wait(0.5):
            head = "POST /api/threshold HTTP/1.1\r\nHost: localhost\r\nX-Edge-App: 1\r\n"
            huge = head + "Content-Type: application/json\r\nContent-Length: 1000000000\r\n\r\n"
            throw(port, huge.encode() + b"9" * 1_000_000)

    threads = [threading.Thread(target=each) for each in (viewers, requests, bodies)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    attacked = pace(port, 20)
    ending.set()
    for thread in threads:
        thread.join()
    for connection in slow:
        connection.close()
    assert process.poll() is None
    print(f"{calm:.2f} frames/s before, {attacked:.2f} under attack; answers {statuses}")
    assert attacked > 0.95 * calm
    assert resident_mb(process.pid) < memory_mb + 60
    assert json.loads(ask(port, "/api/state"))["name"] == "line-3"


@pytest.mark.slow
def test_thousands_of_malformed_requests(running):
    port, process, folder = running
    before = {path for path in files_below(folder) if "events" not in path.parts}
    handles = len(os.listdir(f"/proc/{process.pid}/fd"))
    attack(port, 500, 100)
    memory_mb = resident_mb(process.pid)
    statuses: dict[int, int] = {}
    for seed in range(6):
        for status, count in attack(port, 500, 1000 + seed).items():
            statuses[status] = statuses.get(status, 0) + count
    print(statuses)
    assert process.poll() is None and 500 not in statuses
    after = {path for path in files_below(folder) if "events" not in path.parts}
    assert after == before
    assert resident_mb(process.pid) < memory_mb + 30
    end = time.monotonic() + 30  # idle ones go within 20 s
    while len(os.listdir(f"/proc/{process.pid}/fd")) > handles + 4 and time.monotonic() < end:
        time.sleep(0.5)
    assert len(os.listdir(f"/proc/{process.pid}/fd")) <= handles + 4
    text = (folder / "log").read_text()
    assert "Traceback" not in text and len(text.splitlines()) < 60, text[-3000:]
    assert json.loads(ask(port, "/api/state"))["name"] == "line-3"
