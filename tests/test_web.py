"""The page's server: who is let in, what it answers, and what it does when something fails."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import math
import re
import socket
import threading
import time
import zipfile

import cv2
import numpy as np
import pytest
from station_page import (
    ACTS,
    NEW,
    OLD,
    TOKEN,
    Client,
    FakeMetrics,
    Station,
    drawn,
    serving,
    settings,
)

from edge_app.errors import ConfigError, InputError
from edge_app.records import Verdict
from edge_app.web import WebServer
from edge_app.web.aside import Aside, Busy
from edge_app.web.auth import (
    MOST_ENDED,
    SESSION_S,
    Attempts,
    Sessions,
    is_loopback,
    names_loopback,
    read_token,
    same_origin,
)
from edge_app.web.connection import Limits
from edge_app.web.stream import as_json, encode

DAY_S = 86_400.0


def eventually(question, what: str, within_s: float = 10.0):
    """What `question` answers, once it is something; other threads take their time."""
    end = time.monotonic() + within_s
    while not (answer := question()):
        assert time.monotonic() < end, f"never came: {what}"
        time.sleep(0.01)
    return answer


# Rules, without a server


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.8.9.1", "::1", "localhost"]
)  # fmt: skip
def test_addresses_of_this_machine_alone(address):
    assert is_loopback(address)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.1.7", "station", "localhost.evil"])
def test_addresses_that_others_reach(address):
    assert not is_loopback(address)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost:8080", True),
        ("LOCALHOST", True),
        ("127.0.0.1:8080", True),
        ("[::1]:8080", True),
        ("evil.example:8080", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("192.168.1.7", False),
        ("[::2]", False),
        ("", False),
        (None, False),
    ],
)
def test_only_loopback_names_are_answered(host, loopback):
    assert names_loopback(host) is loopback


@pytest.mark.parametrize(
    ("headers", "same"),
    [
        ({}, True),  # no browser
        ({"Host": "a:1", "Origin": "http://a:1"}, True),
        ({"Host": "a:1", "Origin": "https://A:1"}, True),
        ({"Host": "a:1", "Origin": "http://a:2"}, False),
        ({"Host": "a:1", "Origin": "http://b:1"}, False),
        ({"Host": "a:1", "Origin": "null"}, False),
        ({"Host": "", "Origin": "null"}, False),
        ({"Host": "a:1", "Origin": "http://[a:1"}, False),
        ({"Host": "a:1", "Origin": "http://a:1", "Sec-Fetch-Site": "same-origin"}, True),
        ({"Host": "a:1", "Origin": "http://a:1", "Sec-Fetch-Site": "same-site"}, False),
        ({"Host": "a:1", "Sec-Fetch-Site": "cross-site"}, False),
    ],
)
def test_where_a_request_comes_from(headers, same):
    assert same_origin(headers) is same


@pytest.mark.parametrize(
    "content", [b"", b"short\n", b"0123456789abcde\n", b"two words of it here\n", b"\xff" * 20,
                b"0123456789abcdef\n0123456789abcdef\n", b"a" * 2000]
)  # fmt: skip
def test_a_token_that_cannot_be_used_is_refused(tmp_path, content):
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="token_file"):
        read_token(path)


def test_a_token_is_one_line(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    assert read_token(path) == TOKEN
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "none")


def test_a_cookie_is_valid_for_its_time_its_station_and_its_token():
    sessions = Sessions(TOKEN, "line-3")
    cookie = sessions.issue(1000.0)
    assert sessions.valid(cookie, 1000.0)
    assert sessions.valid(cookie, 1000.0 + 29 * DAY_S)
    assert not sessions.valid(cookie, 1000.0 + 31 * DAY_S)
    # Issued while the clock was a year ahead: it would never end.
    assert not sessions.valid(sessions.issue(365 * DAY_S), 1000.0)
    assert Sessions(TOKEN, "line-3").valid(cookie, 1000.0)  # after a restart
    assert not Sessions(TOKEN, "line-4").valid(cookie, 1000.0)
    assert not Sessions(TOKEN + "x", "line-3").valid(cookie, 1000.0)
    assert sessions.cookie != Sessions(TOKEN, "line-4").cookie


def test_a_cookie_that_was_changed_is_none():
    sessions = Sessions(TOKEN, "line-3")
    cookie = sessions.issue(1000.0)
    for place in range(len(cookie)):
        other = "1" if cookie[place] != "1" else "2"
        assert not sessions.valid(cookie[:place] + other + cookie[place + 1 :], 1000.0)
    for value in ("", ".", "..", "1.2.3", "x", "\udcff.\udcff", "9" * 5000, "é.é.é"):
        assert not sessions.valid(value, 1000.0)


def test_a_session_that_was_logged_out_is_none():
    sessions = Sessions(TOKEN, "line-3")
    first, second = sessions.issue(1000.0), sessions.issue(1000.0)
    sessions.end(first, 1000.0)
    sessions.end("9999999999.aa.bb", 1000.0)  # nobody's: not remembered
    assert not sessions.valid(first, 1000.0) and sessions.valid(second, 1000.0)
    assert len(sessions._ended) == 1
    sessions.end(second, 1000.0 + 29 * DAY_S)
    later = sessions.issue(1000.0 + 31 * DAY_S)
    sessions.end(later, 1000.0 + 31 * DAY_S)
    assert list(sessions._ended) == [later]  # the others have expired


def test_of_too_many_that_were_logged_out_none_comes_back():
    sessions = Sessions(TOKEN, "line-3")
    out = [sessions.issue(float(n)) for n in range(MOST_ENDED + 2)]
    stays = sessions.issue(float(MOST_ENDED + 2))
    for value in out:
        sessions.end(value, MOST_ENDED + 2.0)
    assert len(sessions._ended) == MOST_ENDED
    assert not any(sessions.valid(value, MOST_ENDED + 2.0) for value in out)
    assert sessions.valid(stays, MOST_ENDED + 2.0)


def test_logouts_while_the_clock_was_ahead_end_no_session_of_today():
    sessions, ahead_s = Sessions(TOKEN, "line-3"), 4 * 365 * DAY_S
    out = [sessions.issue(ahead_s + n) for n in range(MOST_ENDED + 2)]
    for value in out:
        sessions.end(value, ahead_s + MOST_ENDED + 2)
    stays, leaves = sessions.issue(1000.0), sessions.issue(1001.0)
    assert sessions.valid(stays, 1002.0) and sessions.valid(leaves, 1002.0)
    sessions.end(leaves, 1002.0)
    assert not sessions.valid(leaves, 1002.0) and sessions.valid(stays, 1002.0)
    assert not any(sessions.valid(value, 1002.0) for value in out)
    assert len(sessions._ended) == MOST_ENDED


def test_wrong_tokens_are_counted_by_address_and_in_all():
    attempts = Attempts(each=3, most=5, within_s=60)
    for at_s in (0.0, 1.0, 2.0):
        assert attempts.wait_s("a", at_s) == 0
        attempts.wrong("a", at_s)
    assert attempts.wait_s("a", 3.0) == pytest.approx(57)
    assert attempts.wait_s("b", 3.0) == 0
    attempts.wrong("b", 3.0)
    attempts.wrong("c", 4.0)
    # Five in all: nobody may try before the first of them is a minute old.
    assert attempts.wait_s("d", 5.0) == pytest.approx(55)
    assert attempts.wait_s("d", 60.0) == 0
    assert attempts.wait_s("a", 60.0) == 0


def test_numbers_that_are_none_are_null():
    assert as_json({"a": [1, math.nan, (math.inf,)], "b": 1.5}) == '{"a":[1,null,[null]],"b":1.5}'


def test_a_picture_is_made_smaller_never_larger():
    small = cv2.imdecode(np.frombuffer(encode(drawn(), 160), np.uint8), cv2.IMREAD_COLOR)
    assert small.shape == (120, 160, 3)
    same = cv2.imdecode(np.frombuffer(encode(drawn(), 1000), np.uint8), cv2.IMREAD_COLOR)
    assert same.shape == (240, 320, 3)
    assert abs(int(same[10, 10, 0]) - 90) < 4


def test_calls_aside_are_limited_and_pass_on_what_they_raise():
    import asyncio

    release = threading.Event()

    def slow():
        release.wait(10)
        return "done"

    def failing():
        raise KeyError("x")

    async def run():
        aside = Aside("test", 1, 2)
        first = asyncio.create_task(aside.call(slow))
        second = asyncio.create_task(aside.call(failing))
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await aside.call(slow)
        release.set()
        assert await first == "done"
        with pytest.raises(KeyError):
            await second
        assert await aside.call(abs, -3) == 3
        # A caller that has gone leaves the thread as it was.
        release.clear()
        gone = asyncio.create_task(aside.call(slow))
        await asyncio.sleep(0)
        gone.cancel()
        release.set()
        assert await aside.call(abs, -4) == 4
        aside.close()

    asyncio.run(run())


# The server without a token


@pytest.fixture(scope="module")
def station(tmp_path_factory):
    station = Station(tmp_path_factory.mktemp("state"))
    station.first = station.ng(part=0, score=3.59)
    station.happen("unknown", "Part 1: cut", verdict=Verdict.UNKNOWN, reason="part: cut", part=1)
    station.happen("heat", "It is warm.")
    station.count(part_OK=20, part_NG=2)
    yield station
    station.close()


@pytest.fixture(scope="module")
def server(station):
    with serving(station, FakeMetrics()) as server:
        yield server


@pytest.fixture
def client(server):
    return Client(server)


@pytest.mark.parametrize(
    "path", ["/", "/events/1", "/login", "/static/app.js", "/static/style.css"]
)
def test_pages_are_served_hardened(client, path):
    status, headers, body = client.get(path)
    assert status == 200 and len(body) > 100
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Server"] == "edge-app"
    assert client.get(path, If_None_Match=headers["ETag"])[0] == 304


def test_pages_load_nothing_from_elsewhere_and_have_no_inline_script():
    from edge_app.web.app import STATIC

    for path in STATIC.iterdir():
        text = path.read_text()
        text = text.replace("http://www.w3.org/2000/svg", "")  # a name, nothing is loaded
        assert re.findall(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", text) == [], path
        if path.suffix == ".html":
            assert re.findall(r"<script(?![^>]*\bsrc=)", text) == []
            assert re.findall(r"\son[a-z]+=|\sstyle=|javascript:", text) == []
        if path.suffix == ".js":
            assert "innerHTML" not in text and "eval(" not in text


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static/..%5capp.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/",
        "/static",
        "/api/events/1/../../../../etc/passwd",
        "/api/events/1/frame%00.png",
        "/api/events/1/..%2f..%2fevents.sqlite",
        "/events/x",
        "/../../etc/passwd",
    ],
)
def test_no_path_leads_elsewhere(client, path):
    status, headers, body = client.get(path)
    assert status == 404 and headers["Server"] == "edge-app"
    assert "aiohttp" not in str(headers).lower() and "python" not in str(headers).lower()


def test_another_name_of_this_machine_is_refused(client):
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example"):
        assert client.get("/api/state", Host=host)[0] == 403
    assert client.get("/api/state", Host=f"localhost:{client.port}")[0] == 200


def test_other_sites_get_nothing(client):
    assert (
        client.get("/stream.mjpg", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0] == 403
    )
    # A link on another page may lead here.
    assert client.get("/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200


def test_the_state_is_told(client, station):
    status, headers, state = client.get("/api/state")
    assert status == 200 and headers["Cache-Control"] == "no-store"
    assert state["name"] == "line-3" and state["threshold"] == 2.91
    assert len(state["history"]) == len(station.board.history)
    assert client.get("/api/session")[2] == {"token": False}


def test_metrics_are_there_where_they_are_wanted(client, station):
    status, headers, body = client.get("/metrics")
    assert status == 200 and b"edge_app_frames_total 412" in body
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    with serving(station) as without:
        assert Client(without).get("/metrics")[0] == 404


def told(response) -> dict:
    """The next event of the live state."""
    while not (line := response.readline()).startswith(b"data: "):
        assert line, "the stream ended"
    return json.loads(line[6:])


def test_the_live_state_tells_what_is_new(client, station):
    connection, response = client.open("GET", "/api/live")
    assert response.headers.get_content_type() == "text/event-stream"
    first = told(response)
    assert first["whole"] and first["history"] == station.board.history
    station.board.show("NG", 9.5)
    news = told(response)
    while news["state"]["verdict"] != "NG":
        news = told(response)
    assert not news["whole"] and "history" not in news["state"]
    assert [row[1:3] for row in news["history"]] == [[9.5, "NG"]]
    # Another bundle judges: what was shown of the one before is no history of it.
    with station.board.lock:
        station.board.history = [[station.board.history[-1][0] + 1, 1.0, "OK", 2.91]]
    news = told(response)
    while not news["history"]:
        news = told(response)
    assert news["whole"] and len(news["history"]) == 1
    connection.close()


def test_nothing_is_asked_of_the_board_while_nobody_looks(client, station):
    connection, response = client.open("GET", "/api/live")
    told(response)
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()

    def quiet():
        before = station.board.asked
        time.sleep(0.6)
        return station.board.asked == before

    eventually(quiet, "the end of asking")


def picture(response) -> tuple[dict[str, str], np.ndarray]:
    """The next picture of the stream, with its head."""
    head: dict[str, str] = {}
    while (line := response.readline().strip()) or not head:
        if b":" in line:
            name, _, value = line.decode().partition(": ")
            head[name] = value
    data = response.read(int(head["Content-Length"]))
    return head, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def test_the_live_picture_moves_and_is_made_once_for_all(client, station):
    connection, response = client.open("GET", "/stream.mjpg")
    other_connection, other = client.open("GET", "/stream.mjpg")
    assert response.headers.get_content_type() == "multipart/x-mixed-replace"
    assert station.board.watching == 2
    head, first = picture(response)
    assert first.shape == (240, 320, 3)
    station.board.show("NG", 9.0, drawn(200))
    head, second = picture(response)
    assert head["X-Verdict"] == "NG" and int(second[5, 5, 0]) > 190
    while picture(other)[0]["X-Number"] != head["X-Number"]:
        pass
    for each in (connection, other_connection):
        each.close()

    # They have gone without a word: seen by the next pictures that they do not take.
    def unwatched():
        station.board.show("OK", 1.0)
        return station.board.watching == 0

    eventually(unwatched, "nobody watching")


def test_so_many_watch_and_no_more(station):
    with serving(station, viewers=2) as server:
        client = Client(server)
        open_ones = [client.open("GET", "/stream.mjpg")[0] for _ in range(2)]
        status, _, body = client.get("/stream.mjpg")
        assert status == 503 and "2 watch" in body["error"]
        open_ones[0].close()

        def free():
            station.board.show("OK", 1.0)
            connection, response = client.open("GET", "/stream.mjpg")
            connection.close()
            return response.status == 200

        eventually(free, "a free place")


def test_a_single_picture(client, station):
    status, headers, body = client.get("/picture.jpg")
    assert status == 200 and headers.get_content_type() == "image/jpeg"
    assert cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR).shape == (240, 320, 3)
    shown, station.board.picture = station.board.picture, None
    assert client.get("/picture.jpg")[0] == 404
    station.board.picture = shown


def test_a_board_that_fails_is_said_once_and_asked_again(station, caplog):
    whole = station.board.snapshot
    failing = threading.Event()

    def snapshot():
        if failing.is_set():
            raise RuntimeError("a bug")
        return whole()

    station.board.snapshot = snapshot
    try:
        with serving(station) as server, caplog.at_level(logging.WARNING, "edge_app.web"):
            connection, response = Client(server).open("GET", "/api/live")
            told(response)
            failing.set()
            for _ in range(3):
                status, _, body = Client(server).get("/api/state")
                assert status == 500 and "a bug" not in body["error"]
            eventually(lambda: "cannot be told" in caplog.text, "the sentence in the log")
            failing.clear()
            assert told(response)["state"]["name"] == "line-3"
            connection.close()
    finally:
        del station.board.snapshot
    assert caplog.text.count("cannot be told") == 1
    assert caplog.text.count("failed at GET /api/state") == 1


# Events


def test_events_are_listed_and_chosen(client):
    rows = client.get("/api/events?limit=10")[2]["events"]
    assert [row["kind"] for row in rows[-3:]] == ["heat", "unknown", "ng"]
    chosen = client.get("/api/events?kind=ng,heat&since=24h")[2]["events"]
    assert {row["kind"] for row in chosen} == {"ng", "heat"}
    older = client.get(f"/api/events?limit=1&before={rows[-1]['id'] + 1}")[2]["events"]
    assert [row["id"] for row in older] == [rows[-1]["id"]]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=101", "limit=x", "limit=1e3", "before=-1", "before=9223372036854775808",
     "kind=ng,nothing", "since=yesterday", "since=24", "since=9999999h", "limit=%00"],
)  # fmt: skip
def test_what_is_no_question_is_refused(client, query):
    status, _, body = client.get(f"/api/events?{query}")
    assert status == 400 and "wanted" in body["error"]


def test_one_event_with_its_pictures(client, station):
    event = client.get(f"/api/events/{station.first}")[2]
    assert event["verdict"] == "NG" and event["score"] == 3.59
    status, headers, body = client.get(f"/api/events/{station.first}/frame")
    assert status == 200 and headers.get_content_type() == "image/png"
    frame = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(frame, drawn(100))
    status, headers, body = client.get(f"/api/events/{station.first}/overlay?download")
    assert headers.get_content_type() == "image/jpeg"
    assert headers["Content-Disposition"].startswith("attachment")
    for _ in range(2):  # made, and remembered
        status, headers, body = client.get(f"/api/events/{station.first}/thumb")
        small = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
        assert small.shape == (180, 240, 3)
        assert int(small[82, 112, 2]) > 180 > int(small[82, 112, 0])  # the overlay, not the frame


def test_what_is_not_there_is_said(client, station):
    for path in ("/api/events/999", "/api/events/999/frame", "/api/events/0", "/api/nothing"):
        status, _, body = client.get(path)
        assert status == 404 and body["error"]
    # A picture that was given up for newer ones.
    gone = station.ng(part=5)
    for which in ("frame", "overlay"):
        station.store.picture(gone, which).unlink()
    for which in ("frame", "overlay", "thumb"):
        assert client.get(f"/api/events/{gone}/{which}")[0] == 404


def test_counts_of_the_last_hours(client):
    body = client.get("/api/counts?hours=2")[2]
    assert body["hours"][-1][1]["part OK"] == 20
    assert client.get("/api/counts?hours=0")[0] == 400


def test_export_as_table_json_and_archive(client, station):
    status, headers, body = client.get("/api/export?kind=ng")
    assert status == 200 and 'filename="events.csv"' in headers["Content-Disposition"]
    rows = list(csv.DictReader(io.StringIO(body.decode())))
    assert rows[-1]["verdict"] == "NG" and {row["kind"] for row in rows} == {"ng"}
    rows = client.get("/api/export?format=json&since=7d")[2]
    assert {row["kind"] for row in rows} >= {"ng", "heat", "unknown"}
    body = client.get("/api/export?format=zip&kind=ng")[2]
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
    assert "events.csv" in names and any(name.endswith("frame.png") for name in names)
    assert client.get("/api/export?format=exe")[0] == 400


def test_an_export_that_is_broken_off_leaves_room_for_the_next(tmp_path):
    station = Station(tmp_path)
    try:
        noise = np.random.default_rng(0).integers(0, 255, (400, 600, 3), np.uint8)
        for part in range(12):
            station.happen("ng", "NG", part=part, frame_bgr=noise)
        with serving(station) as server:
            client = Client(server)

            def whole():
                status, _, body = client.get("/api/export")
                return body if status == 200 else None

            for _ in range(4):  # one more than there are threads to wait in vain
                connection, response = client.open("GET", "/api/export?format=zip")
                response.read(1000)
                assert client.get("/api/export")[0] == 503
                connection.sock.shutdown(socket.SHUT_RDWR)
                connection.close()
                body = eventually(whole, "the next export")
            assert body.count(b"\n") == 13
    finally:
        station.close()


def test_a_store_that_fails_midway_ends_the_export_as_broken(station):
    whole = station.store.export

    def export(rows, file, kind):
        file.write(b"x" * 200_000)
        raise RuntimeError("the disk")

    station.store.export = export
    try:
        with serving(station) as server:
            with dial(server) as connection:
                connection.sendall(b"GET /api/export HTTP/1.1\r\nHost: localhost\r\n\r\n")
                got = b""
                with contextlib.suppress(ConnectionError):
                    while more := connection.recv(65536):
                        got += more
            # Neither the end of a whole answer nor a second one within the first.
            assert got.startswith(b"HTTP/1.1 200") and not got.endswith(b"0\r\n\r\n")
            assert got.count(b"HTTP/1.1") == 1
            assert Client(server).get("/api/state")[0] == 200
    finally:
        station.store.export = whole


@contextlib.contextmanager
def crowded(station):
    """The board's state is asked for, and does not come, until all who may read wait for it."""
    snapshot, release, asked = station.board.snapshot, threading.Event(), []

    def slow():
        asked.append(1)
        release.wait(20)
        return snapshot()

    station.board.snapshot = slow
    waiting = []
    try:
        with serving(station) as server:
            try:
                for _ in range(64):
                    connection = dial(server)
                    connection.sendall(b"GET /api/state HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    waiting.append(connection)
                client = Client(server)
                eventually(lambda: client.get("/api/events")[0] == 503, "a refusal")
                yield client, release
            finally:
                release.set()
                for connection in waiting:
                    connection.close()
    finally:
        station.board.snapshot = snapshot


def test_an_export_for_which_there_is_no_thread_leaves_room_for_the_next(station):
    with crowded(station) as (client, release):
        assert client.get("/api/export")[0] == 503
        release.set()
        status, _, body = eventually(
            lambda: (got := client.get("/api/export"))[0] == 200 and got, "the next export"
        )
        assert status == 200 and body.startswith(b"id,")


def test_a_store_that_cannot_be_read_is_no_half_export(station):
    """Refused in a sentence at the beginning, broken off later: never a second answer within."""
    whole = station.store.export

    def export(rows, file, kind):
        file.write(b"x" * (200_000 if kind == "json" else 0))
        raise InputError("events.sqlite: cannot be read")

    station.store.export = export
    try:
        with serving(station) as server:
            status, _, body = Client(server).get("/api/export")
            assert status == 409 and body["error"] == "events.sqlite: cannot be read"
            with dial(server) as connection:
                connection.sendall(
                    b"GET /api/export?format=json HTTP/1.1\r\nHost: localhost\r\n\r\n"
                )
                got = b""
                with contextlib.suppress(ConnectionError):
                    while more := connection.recv(65536):
                        got += more
            assert got.startswith(b"HTTP/1.1 200") and got.count(b"HTTP/1.1") == 1
            assert not got.endswith(b"0\r\n\r\n")
    finally:
        station.store.export = whole


def test_a_picture_given_up_while_it_is_sent_comes_whole(station, tmp_path):
    """Retention deletes the file between its opening and its sending."""

    path = tmp_path / "frame.png"
    path.write_bytes(b"png" * 100_000)

    class Fleeting:
        """A path whose file goes once it is open and its kind is asked for."""

        def __fspath__(self):
            return str(path)

        def stat(self):
            return path.stat()

        @property
        def suffix(self):
            path.unlink(missing_ok=True)
            return path.suffix

    find, station.store.picture = station.store.picture, lambda id, which: Fleeting()
    try:
        with serving(station) as server:
            connection, response = Client(server).open("GET", "/api/events/1/frame")
            assert response.status == 200 and response.read() == b"png" * 100_000
            connection.close()
    finally:
        station.store.picture = find


# What is done


@pytest.mark.parametrize(
    ("path", "body", "call"),
    [
        ("/api/events/1/mark", {}, ("mark_defect", 1)),
        ("/api/events/1/learn", {}, ("learn_good", 1)),
        ("/api/bundles/revert", {"sha256": OLD}, ("revert", OLD)),
        ("/api/threshold", {"value": 3.3}, ("set_threshold", 3.3)),
        ("/api/picture", {}, ("take_picture",)),
        ("/api/stop", {}, ("scoring", False)),
        ("/api/start", {}, ("scoring", True)),
        ("/api/trigger", {}, ("trigger",)),
    ],
)
def test_actions_are_done(client, station, path, body, call):
    status, _, answer = client.act(path, body)
    assert status == 200 and answer["said"]
    assert station.controls.calls[-1] == call


ACTIONS = ["/api/picture", "/api/stop", "/api/start", "/api/trigger", "/api/threshold",
           "/api/events/1/learn", "/api/events/1/mark", "/api/events/1/unmark",
           "/api/bundles/revert", "/logout"]  # fmt: skip


@pytest.mark.parametrize("path", ACTIONS)
def test_other_pages_cannot_act(client, station, path):
    before = list(station.controls.calls)
    body = b'{"value": 3, "sha256": "aaaaaaaa"}'
    assert client.ask("POST", path, body)[0] == 403
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    assert client.ask("POST", path, b"a=b", **form)[0] == 403
    for more in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://127.0.0.1:{client.port + 1}"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ):
        assert client.act(path, body, **more)[0] == 403
    assert client.get(path)[0] in (404, 405) or path == "/api/threshold"
    assert station.controls.calls == before
    own = {"Origin": f"http://127.0.0.1:{client.port}", "Sec_Fetch_Site": "same-origin"}
    assert client.act("/api/start", **own)[0] == 200


def test_a_refusal_is_a_sentence(client):
    status, _, body = client.act("/api/threshold", {"value": 9})
    assert (status, body["error"]) == (409, "the limit would be 9, wanted at most 4")
    for value in ("3", None, True, 1e300, [1]):
        assert client.act("/api/threshold", {"value": value})[0] == 409
    for sha256 in ("../../etc", "", 7, "A" * 64, None):
        assert client.act("/api/bundles/revert", {"sha256": sha256})[0] == 409


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'"x"', 400),
        (b"\xff\xfe", 400),
        (b"[" * 60_000, 400),
        (b"9" * 60_000, 400),
        (b"x" * 70_000, 413),
    ],
)
def test_bodies_that_are_none(client, body, status):
    assert client.act("/api/threshold", body)[0] == status
    assert client.get("/api/session")[0] == 200


def test_a_large_body_is_refused_before_it_comes(client):
    for path in ("/api/trigger", "/api/threshold", "/login"):
        assert client.act(path, b"", Content_Length="1000000000")[0] == 413


def test_a_body_of_another_type_is_refused(client):
    assert client.act("/api/threshold", b"{}", Content_Type="text/plain")[0] == 415
    packed = {"Content_Encoding": "gzip"}
    assert client.act("/api/threshold", b"\x1f\x8b" + b"\0" * 100, **packed)[0] == 400


def test_the_mark_of_a_defect_is_taken_back_but_not_that_of_a_lesson(client, station):
    event = station.ng(part=8)
    assert client.act(f"/api/events/{event}/unmark")[0] == 409
    client.act(f"/api/events/{event}/mark")
    assert client.get(f"/api/events/{event}")[2]["mark"] == "true defect"
    assert client.act(f"/api/events/{event}/unmark")[0] == 200
    assert client.get(f"/api/events/{event}")[2]["mark"] is None
    client.act(f"/api/events/{event}/learn")
    assert client.act(f"/api/events/{event}/unmark")[0] == 409
    assert client.get(f"/api/events/{event}")[2]["mark"] == "false alarm"
    names = {row["sha256"]: row["in_use"] for row in client.get("/api/bundles")[2]["bundles"]}
    assert names == {NEW: True, OLD: False}
    assert client.act("/api/bundles/revert", {"sha256": OLD})[0] == 200


def test_a_page_that_waits_for_a_lesson_holds_up_nobody_and_no_end(tmp_path):
    station = Station(tmp_path)
    release = threading.Event()
    station.controls.take_picture = lambda: release.wait(30)
    try:
        with serving(station) as server:
            client = Client(server)
            connection = __import__("http.client").client.HTTPConnection("127.0.0.1", client.port)
            connection.request("POST", "/api/picture", b"{}", ACTS)
            assert client.get("/api/state")[0] == 200
            assert client.act("/api/start")[0] == 200
            begun_s = time.monotonic()
            assert server.stop(10)
            assert time.monotonic() - begun_s < 5
            connection.close()
    finally:
        release.set()
        station.close()


# With a token


@pytest.fixture(scope="module")
def locked(station, tmp_path_factory):
    path = tmp_path_factory.mktemp("secret") / "token"
    path.write_text(TOKEN + "\n")
    with serving(station, FakeMetrics(), token_file=str(path)) as server:
        # Others have tried from other addresses: tests do not count against each other.
        yield server


@pytest.fixture
def stranger(locked):
    locked._attempts = Attempts()
    return Client(locked)


LOCKED = ["/api/state", "/api/live", "/stream.mjpg", "/picture.jpg", "/api/events", "/api/events/1",
          "/api/events/1/frame", "/api/events/1/overlay", "/api/events/1/thumb", "/api/counts",
          "/api/export", "/api/bundles", "/api/threshold", "/api/session", "/metrics", "/nothing",
          "/favicon.ico"]  # fmt: skip


STREAMS = ["/stream.mjpg", "/api/live"]


@pytest.mark.parametrize("path", LOCKED)
def test_without_the_token_nothing_is_told(stranger, path):
    status, headers, body = stranger.get(path)
    assert status == 401 and headers["WWW-Authenticate"].startswith("Bearer")
    assert stranger.get(path, Cookie="edge_app_line-3=9999999999.aa.bb")[0] == 401
    assert stranger.ask("HEAD", path)[0] == 401
    for way in (path + "/../login", "/login/.." + path, "/static/.." + path, "/static/..%2f" + path,
                "/%6cogin/.." + path, "/static/x" + path, "//login" + path):  # fmt: skip
        assert stranger.get(way)[0] in (401, 404)
        assert stranger.get(way + "?x=/login")[0] in (401, 404)


@pytest.mark.parametrize("path", ACTIONS)
def test_without_the_token_nothing_is_done(stranger, station, path):
    before = list(station.controls.calls)
    assert stranger.act(path, {"value": 3, "sha256": OLD})[0] == 401
    assert station.controls.calls == before


def test_a_page_asks_for_the_token(stranger):
    status, headers, _ = stranger.get("/events/3", Accept="text/html,*/*")
    assert (status, headers["Location"]) == (303, "/login?next=/events/3")
    status, headers, _ = stranger.get("//evil.example/x", Accept="text/html")
    assert status == 303 and headers["Location"].startswith("/login?next=/")
    assert stranger.get("/login")[0] == 200
    assert stranger.get("/static/login.js")[0] == 200


def test_a_wrong_token_gets_nowhere_and_the_right_one_a_cookie(stranger):
    status, headers, body = stranger.act("/login", {"token": "x" * 20})
    assert status == 401 and "Set-Cookie" not in headers
    status, headers, body = stranger.act("/login", {"token": TOKEN})
    cookie = headers["Set-Cookie"]
    assert status == 200 and "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert "Secure" not in cookie and TOKEN not in cookie
    value = cookie.partition(";")[0]
    assert stranger.get("/api/session", Cookie=value)[2] == {"token": True}
    assert stranger.act("/api/start", Cookie=value)[0] == 200
    assert stranger.get("/api/state", Cookie=value + "0")[0] == 401
    status, headers, _ = stranger.act("/logout", Cookie=value)
    assert status == 200 and "Max-Age=0" in headers["Set-Cookie"]


def ends(connection, response) -> bool:
    """Whether a stream ends, however much was on its way."""
    connection.sock.settimeout(5)
    with contextlib.closing(connection):
        try:
            # A stream that goes on tells something at least once a second.
            return any(response.readline() == b"" for _ in range(40))
        except TimeoutError:
            return False


def test_what_goes_on_ends_when_its_session_is_logged_out(stranger, locked):
    mine, other = (locked._sessions.issue(time.time()) for _ in range(2))
    name = locked._sessions.cookie
    open_ones = [stranger.open("GET", path, Cookie=f"{name}={mine}") for path in STREAMS]
    others = [stranger.open("GET", path, Cookie=f"{name}={other}") for path in STREAMS]
    script = stranger.open("GET", "/api/live", Authorization=f"Bearer {TOKEN}")
    assert [response.status for _, response in (*open_ones, *others, script)] == [200] * 5
    assert stranger.act("/logout", Cookie=f"{name}={mine}")[0] == 200
    assert [ends(*each) for each in open_ones] == [True, True]
    # A copy of the cookie is worth nothing now; the other sessions go on.
    assert stranger.get("/api/state", Cookie=f"{name}={mine}")[0] == 401
    assert stranger.get("/api/state", Cookie=f"{name}={other}")[0] == 200
    told(others[1][1])
    assert told(script[1]) and told(others[1][1])
    for connection, _ in (*others, script):
        connection.close()


def test_what_goes_on_ends_when_its_session_expires(stranger, locked):
    soon = locked._sessions.issue(time.time() - SESSION_S + 3)
    cookie = f"{locked._sessions.cookie}={soon}"
    open_ones = [stranger.open("GET", path, Cookie=cookie) for path in STREAMS]
    assert [response.status for _, response in open_ones] == [200] * 2
    assert [ends(*each) for each in open_ones] == [True, True]


def test_a_cookie_stays_on_tls_behind_a_proxy_that_speaks_it(stranger):
    _, headers, _ = stranger.act("/login", {"token": TOKEN}, X_Forwarded_Proto="https")
    assert "Secure" in headers["Set-Cookie"]


@pytest.mark.parametrize("token", [None, 7, "", "é" * 20, "\udcff" * 20, TOKEN + "\0", TOKEN[:-1]])
def test_what_is_no_token(stranger, token):
    status, headers, _ = stranger.act("/login", {"token": token})
    assert status in (400, 401) and "Set-Cookie" not in headers


def test_a_script_sends_the_token_itself(stranger, station):
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert stranger.get("/metrics", **bearer)[0] == 200
    assert stranger.ask("POST", "/api/trigger", **bearer)[0] == 200
    assert stranger.ask("POST", "/api/start", Origin="http://evil.example", **bearer)[0] == 403
    assert stranger.get("/metrics", Authorization="Bearer " + "x" * 20)[0] == 401
    assert stranger.get("/metrics", Authorization=f"Basic {TOKEN}")[0] == 401
    # The host need not be a loopback name: the station may have one of its own.
    assert stranger.get("/metrics", Host="line-3.factory", **bearer)[0] == 200


def test_guessing_is_slowed_down(stranger, caplog):
    with caplog.at_level(logging.WARNING, "edge_app.web"):
        answers = [stranger.act("/login", {"token": f"{n:020}"}) for n in range(7)]
    assert [status for status, _, _ in answers] == [401] * 5 + [429] * 2
    assert 0 < int(answers[-1][1]["Retry-After"]) <= 61
    assert stranger.get("/metrics", Authorization="Bearer " + "x" * 20)[0] == 429
    assert caplog.text.count("wrong token") <= 1
    assert TOKEN not in caplog.text


def test_who_knows_the_token_is_let_in_while_others_guess(stranger, locked):
    """Behind a proxy all come from one address: a guesser must not lock the others out."""
    for n in range(60):  # more than are answered, from one address and from all
        assert stranger.act("/login", {"token": f"{n:020}"})[0] in (401, 429)
    status, headers, _ = stranger.act("/login", {"token": TOKEN})
    assert status == 200 and "Set-Cookie" in headers
    assert stranger.get("/metrics", Authorization=f"Bearer {TOKEN}")[0] == 200
    for n in range(45):
        locked._attempts.wrong(f"10.0.0.{n}", time.monotonic())
    assert stranger.act("/login", {"token": TOKEN})[0] == 200
    assert stranger.act("/login", {"token": "x" * 20})[0] == 429


def test_a_header_is_no_address(stranger):
    """Whoever guesses writes into it what they like."""
    answers = [
        stranger.act("/login", {"token": f"{n:020}"}, X_Forwarded_For=f"10.0.0.{n}")[0]
        for n in range(7)
    ]
    assert answers == [401] * 5 + [429] * 2


def test_who_is_in_stays_in_while_others_guess(stranger):
    cookie = stranger.act("/login", {"token": TOKEN})[1]["Set-Cookie"].partition(";")[0]
    for n in range(6):
        stranger.act("/login", {"token": f"{n:020}"})
    assert stranger.get("/api/state", Cookie=cookie)[0] == 200


# Starting and ending


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.1.7"])
def test_others_are_let_in_with_a_token_only(station, tmp_path, address):
    def built(**changes):
        return WebServer(
            settings(address=address, **changes), station.board, station.controls,
            station.store, None, "line-3",
        )  # fmt: skip

    with pytest.raises(ConfigError, match="wanted a token_file"):
        built()
    with pytest.raises(ConfigError, match="cannot be read"):
        built(token_file=str(tmp_path / "none"))
    (tmp_path / "token").write_text(TOKEN)
    built(token_file=str(tmp_path / "token"))


def test_a_port_that_is_taken_is_tried_again(station, caplog):
    with socket.socket() as taken, caplog.at_level(logging.ERROR, "edge_app.web"):
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = WebServer(
            settings(port=taken.getsockname()[1]), station.board, station.controls,
            station.store, None, "line-3", retry_s=0.05,
        )  # fmt: skip
        server.start()
        eventually(lambda: server.problem, "the problem")
        assert server.url is None and "cannot listen" in server.problem
        assert not server.listening.wait(0.3)
        assert caplog.text.count("cannot listen") == 1
    assert server.listening.wait(10)
    assert server.problem is None and Client(server).get("/api/state")[0] == 200
    assert server.stop(10)


def test_the_end_does_not_wait_for_viewers(station):
    with serving(station) as server:
        client = Client(server)
        streams = [client.open("GET", path)[0] for path in ("/stream.mjpg", "/api/live") * 3]
        begun_s = time.monotonic()
        assert server.stop(10)
        assert time.monotonic() - begun_s < 3
        for stream in streams:
            stream.close()
    assert station.board.watching == 0
    assert server.stop(1)  # any number of times


def test_one_that_never_began_ends(station):
    server = WebServer(settings(), station.board, station.controls, station.store, None, "line-3")
    assert server.stop(1)


# Limits of a connection


def closed(connection: socket.socket) -> bool:
    """Whether the other side closes within ten seconds, sent or not."""
    connection.settimeout(10)
    with contextlib.suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return True


def dial(server) -> socket.socket:
    port = int(server.url.rsplit(":", 1)[1].strip("/"))
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def test_slow_clients_are_closed(station):
    with serving(station, limits=Limits(head_s=0.3)) as server:
        for begin in (b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "):
            with dial(server) as connection:
                connection.sendall(begin)
                assert closed(connection)
        # One that was answered once may not keep its place either.
        with dial(server) as connection:
            connection.sendall(b"GET /api/session HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HT")
            assert closed(connection)
        connection, response = Client(server).open("GET", "/api/live")
        told(response)
        time.sleep(0.6)  # a stream may last as long as it likes
        station.board.show("OK", 1.25)
        while told(response)["state"]["score"] != 1.25:
            pass
        connection.close()


def test_one_that_takes_nothing_is_closed(station):
    noise = np.random.default_rng(0).integers(0, 255, (600, 800, 3), np.uint8)
    with serving(station, limits=Limits(stalled_s=0.3)) as server, dial(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        eventually(lambda: station.board.watching == 1, "the viewer")

        def gone():
            station.board.show("OK", 1.0, noise)
            return station.board.watching == 0

        eventually(gone, "its end")


def test_one_that_sends_too_much_is_closed_or_not_heard(station):
    with serving(station, limits=Limits(received=100_000)) as server, dial(server) as connection:
        connection.settimeout(1)
        connection.sendall(b"GET /api/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        # Newer versions of aiohttp stop reading before it is too much.
        with pytest.raises((ConnectionError, TimeoutError)):
            for _ in range(1000):
                connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500)
        with dial(server) as other:
            other.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 7000)
            with pytest.raises(ConnectionError):
                for _ in range(1000):
                    other.sendall(b"\r\nX-More: " + b"x" * 7000)
        assert Client(server).get("/api/state")[0] == 200


def test_idle_ones_make_room_for_new_ones(station):
    with serving(station, viewers=1) as server:
        stream, response = Client(server).open("GET", "/api/live")
        idle = [dial(server) for _ in range(3 * 1 + 64 + 20)]
        assert Client(server).get("/api/state")[0] == 200
        assert closed(idle[0])
        told(response)  # one that is served is not idle
        for connection in idle:
            connection.close()
        stream.close()
