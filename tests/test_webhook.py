"""A webhook against a real server on loopback: what is sent, and what each answer means."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from dataclasses import replace

import pytest

from edge_app.backoff import Backoff
from edge_app.config import load_config
from edge_app.outbox import GivenUp, Outbox
from edge_app.records import Counts, Decision, Event, Frame, Result, Verdict
from edge_app.sinks.webhook import WebhookSink

LIMIT_S = 20.0
DEFAULT = replace(load_config().webhook, timeout_s=LIMIT_S)
NG = Event(
    "ng", 1_769_860_800.25, 12.5, "part 7 is NG", Verdict.NG, None, 7, 2.5, 1.5, "abc",
    data={"ratio": float("inf")},
)  # fmt: skip


class Receiver:
    """Answers with one status after the other, the last of them for ever."""

    def __init__(self):
        self.statuses = [200]
        self.headers = {}
        self.requests = []
        self.silent = False
        self.ending = threading.Event()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append((self.command, self.path, dict(self.headers), body))
                if receiver.silent:
                    receiver.ending.wait(LIMIT_S)
                    return
                statuses = receiver.statuses
                self.send_response(statuses.pop(0) if len(statuses) > 1 else statuses[0])
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = False
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()
        self.place = f"127.0.0.1:{self.server.server_port}"

    def close(self):
        self.ending.set()
        self.server.shutdown()
        self.thread.join(LIMIT_S)
        self.server.server_close()


@pytest.fixture
def receiver():
    with contextlib.closing(Receiver()) as receiver:
        yield receiver


def sink_of(receiver, path="/hook", **settings):
    url = f"http://{receiver.place}{path}"
    return WebhookSink(replace(DEFAULT, **{"url": url, **settings}), "line-1")


def test_an_ng_is_posted_as_json(receiver):
    sink_of(receiver, "/hook?to=line").emit([NG])
    ((method, path, headers, body),) = receiver.requests
    assert (method, path) == ("POST", "/hook?to=line")
    assert headers["Content-Type"] == "application/json; charset=utf-8"
    assert headers["User-Agent"].startswith("edge-app/") and "Authorization" not in headers
    said = json.loads(body)
    assert said["station"] == "line-1" and said["event"] == "ng" and said["part"] == 7
    assert said["time"] == "2026-01-31T12:00:00.250Z" and said["boot_s"] == 12.5
    assert (said["verdict"], said["score"], said["threshold"]) == ("NG", 2.5, 1.5)
    assert said["data"] == {"ratio": None}  # JSON has no infinity


def test_only_ng_is_wanted_and_an_episode_only_when_it_begins(receiver):
    sink = sink_of(receiver)
    assert sink.wants(NG) and sink.wants(replace(NG, episode="e1"))
    assert not sink.wants(replace(NG, episode="e1", ended_s=NG.time_s + 3))
    assert not sink.wants(replace(NG, kind="unknown")) and not sink.wants(Counts(1, {}))
    result = Result("part", Frame(0, "x", None), Decision(Verdict.NG), 0.0, 1.0, "abc")
    assert not sink.wants(result)


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_success_is_every_2xx(receiver, status):
    receiver.statuses = [status]
    sink_of(receiver).emit([NG])
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 410, 422])
def test_a_refusal_is_given_up(receiver, status):
    receiver.statuses = [status]
    with pytest.raises(GivenUp, match=f"refused an event with status {status}"):
        sink_of(receiver).emit([NG])


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_what_may_go_by_is_tried_again(receiver, status):
    receiver.statuses = [status]
    with pytest.raises(OSError, match=f"answered with status {status}"):
        sink_of(receiver).emit([NG])


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_no_success_and_is_not_followed(receiver, status):
    receiver.statuses, receiver.headers = [status, 200], {"Location": "/elsewhere"}
    with pytest.raises(GivenUp, match=f"status {status}"):
        sink_of(receiver).emit([NG])
    assert [request[1] for request in receiver.requests] == ["/hook"]


def test_no_answer_in_time_is_a_failure(receiver):
    receiver.silent = True
    with pytest.raises(OSError, match="did not answer in 0.2 s|timed out"):
        sink_of(receiver, timeout_s=0.2).emit([NG])


def test_nobody_there_is_a_failure_that_names_the_place_and_no_secret():
    with contextlib.closing(Receiver()) as gone:
        place = gone.place
    url = f"http://me:s3cret@{place}/services/T0KEN"
    sink = WebhookSink(replace(DEFAULT, url=url), "line-1")
    with pytest.raises(OSError, match="cannot be reached") as caught:
        sink.emit([NG])
    assert place in str(caught.value)
    assert "s3cret" not in str(caught.value) and "T0KEN" not in str(caught.value)


def test_a_user_in_the_address_becomes_basic_authorization(receiver):
    url = f"http://me:s%40fe@{receiver.place}/hook"
    WebhookSink(replace(DEFAULT, url=url), "line-1").emit([NG])
    _, path, headers, _ = receiver.requests[0]
    assert headers["Authorization"] == "Basic bWU6c0BmZQ==" and path == "/hook"
    assert headers["Host"] == receiver.place


def test_through_its_outbox_all_arrive_and_the_refused_one_is_counted(receiver):
    receiver.statuses = [503, 429, 200, 404, 200]
    told = []
    outbox = Outbox(sink_of(receiver), backoff=Backoff(0.001, 0.002), on_change=told.append)
    for part in range(3):
        outbox.offer(replace(NG, part=part))
        outbox.offer(replace(NG, kind="unknown"))
    assert outbox.close(LIMIT_S)
    parts = [json.loads(request[3])["part"] for request in receiver.requests]
    assert parts == [0, 0, 0, 1, 2]
    assert (outbox.failures, outbox.dropped) == (3, 1)
    assert [sentence.split()[-1] for sentence in told] == ["503", "again", "404", "again"]
