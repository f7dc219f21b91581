"""MQTT against a real broker, and against a small one of the tests' own that misbehaves."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import replace
from types import ModuleType

import pytest

from edge_app.backoff import Backoff
from edge_app.config import load_config
from edge_app.errors import ConfigError
from edge_app.outbox import Outbox
from edge_app.records import Counts, Decision, Event, Frame, PartVerdict, Result, Verdict
from edge_app.sinks import mqtt
from edge_app.sinks.mqtt import MqttSink

paho = pytest.importorskip("paho.mqtt.client", reason="needs paho-mqtt")

LIMIT_S = 30.0
DEFAULT = replace(load_config().mqtt, host="127.0.0.1", topic="hall/edge")
STATE, VERDICT, EVENT, TRIGGER = (
    f"hall/edge/line-1/{name}" for name in ("state", "verdict", "event", "trigger")
)
NG = Event("ng", 1_769_860_800.0, 12.5, "part 7 is NG", Verdict.NG, part=7, score=2.5)
CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, PINGREQ, PINGRESP, DISCONNECT = (
    1, 2, 3, 4, 8, 9, 12, 13, 14,
)  # fmt: skip


def part_of(verdict, part=0):
    closed = PartVerdict(part, verdict, None, 2.0, 0, 0, 1, 2, 0, 0)
    decision = Decision(verdict, 2.0, 2.0, part=part, closed=closed)
    return Result("part", Frame(0, "camera", None), decision, 1_769_860_800.0, 1.5, "abc")


def frame_of(verdict, part=None):
    decision = Decision(verdict, part=part)
    return Result("frame", Frame(0, "camera", None), decision, 1_769_860_800.0, 1.5, "abc")


class Waited:
    """Puts whatever comes into a queue, from which it is waited for."""

    def __init__(self):
        self.came = queue.Queue()

    def until(self, wanted):
        """The first that is wanted, and what came before it."""
        before = []
        while True:
            item = self.came.get(timeout=LIMIT_S)
            if wanted(item):
                return item, before
            before.append(item)


class SmallBroker(Waited):
    """
    As much of MQTT 3.1.1 as one client needs: takes it, acknowledges, and notes each packet.

    `acknowledge` False keeps acknowledgements back; `refuse` is the code of its CONNACK.
    """

    def __init__(self, port=0, refuse=0):
        super().__init__()
        self.acknowledge, self.refuse = True, refuse
        self.socket = socket.create_server(("127.0.0.1", port))
        self.port = self.socket.getsockname()[1]
        self.client = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.cut()
        self.thread.join(LIMIT_S)

    def cut(self):
        """End the connection without a word."""
        if self.client is not None:
            with contextlib.suppress(OSError):
                self.client.shutdown(socket.SHUT_RDWR)

    def send(self, kind, flags, body):
        self.client.sendall(bytes([kind << 4 | flags, len(body)]) + body)

    def publish(self, topic, retained=False):
        self.send(PUBLISH, int(retained), struct.pack("!H", len(topic)) + topic.encode() + b"go")

    def _run(self):
        while True:
            try:
                self.client, _ = self.socket.accept()
            except OSError:
                return
            with contextlib.suppress(OSError, EOFError), self.client:
                self._serve()
            self.came.put(("gone", None, None))

    def _serve(self):
        while True:
            kind, flags, body = self._packet()
            if kind == PUBLISH:
                (length,) = struct.unpack_from("!H", body)
                topic, rest = body[2 : 2 + length].decode(), body[2 + length :]
                if flags & 6:
                    if self.acknowledge:
                        self.send(PUBACK, 0, rest[:2])
                    rest = rest[2:]
                self.came.put((PUBLISH, flags, (topic, rest)))
                continue
            self.came.put((kind, flags, body))
            if kind == CONNECT:
                self.send(CONNACK, 0, bytes([0, self.refuse]))
                if self.refuse:
                    return
            elif kind == SUBSCRIBE:
                self.send(SUBACK, 0, body[:2] + b"\0")
            elif kind == PINGREQ:
                self.send(PINGRESP, 0, b"")

    def _packet(self):
        head = self._exactly(1)[0]
        length, shift = 0, 0
        while True:
            byte = self._exactly(1)[0]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return head >> 4, head & 15, self._exactly(length)

    def _exactly(self, count):
        data = b""
        while len(data) < count:
            piece = self.client.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data


def eventually(condition):
    """For what nobody announces."""
    pause = threading.Event()
    for _ in range(int(LIMIT_S / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("not in time")


def published(topic):
    return lambda packet: packet[0] == PUBLISH and packet[2][0] == topic


@pytest.fixture
def broker():
    with contextlib.closing(SmallBroker()) as broker:
        yield broker


def sink_of(port, on_trigger=None, **settings):
    return MqttSink(replace(DEFAULT, port=port, **settings), "line-1", on_trigger)


def test_connecting_says_online_and_leaves_a_will(broker):
    sink = sink_of(broker.port)
    (_, _, connect), _ = broker.until(lambda packet: packet[0] == CONNECT)
    assert b"edge-app-line-1" in connect and b"hall/edge/line-1/state" in connect
    assert connect.endswith(b"offline")
    # Protocol level 4; will retained, of QoS 1; clean session; nobody's name.
    assert connect[6] == 4 and connect[7] == 0b00101110
    (_, flags, (topic, body)), _ = broker.until(published(STATE))
    assert (topic, body) == (STATE, b"online") and flags & 1
    sink.close()
    (_, flags, (_, body)), _ = broker.until(published(STATE))
    assert body == b"offline" and flags & 1
    broker.until(lambda packet: packet[0] == DISCONNECT)


def test_user_and_password_are_given(broker, tmp_path):
    (tmp_path / "password").write_text("s3cret\n")
    sink = sink_of(broker.port, username="line", password_file=str(tmp_path / "password"))
    (_, _, connect), _ = broker.until(lambda packet: packet[0] == CONNECT)
    assert connect.endswith(b"\0\4line\0\6s3cret")
    sink.close()


def test_what_is_wanted():
    sink = sink_of(1)
    assert sink.wants(NG) and sink.wants(part_of(Verdict.OK))
    assert not sink.wants(Counts(1, {}))
    changes = [Verdict.EMPTY, Verdict.EMPTY, Verdict.UNKNOWN, Verdict.OK, Verdict.OK, Verdict.NG]
    wanted = [sink.wants(frame_of(verdict)) for verdict in changes]
    assert wanted == [True, False, True, True, False, True]
    assert not sink.wants(frame_of(Verdict.OK, part=3))
    sink.close()


def test_parts_changes_and_events_are_published_in_order(broker):
    sink = sink_of(broker.port)
    outbox = Outbox(sink, backoff=Backoff(0.01, 0.05))
    for item in (frame_of(Verdict.EMPTY), part_of(Verdict.NG, 7), NG, frame_of(Verdict.EMPTY)):
        outbox.offer(item)
    assert outbox.close(LIMIT_S)
    _, packets = broker.until(lambda packet: packet[0] == DISCONNECT)
    said = [
        (packet[2][0], json.loads(packet[2][1]), packet[1])
        for packet in packets
        if packet[0] == PUBLISH and packet[2][0] != STATE
    ]
    assert [topic for topic, _, _ in said] == [VERDICT, VERDICT, EVENT]
    assert [flags for _, _, flags in said] == [2, 2, 2]  # at least once, not retained
    assert said[1][1]["verdict"] == "NG" and said[1][1]["part"] == 7
    assert said[1][1]["station"] == "line-1" and said[1][1]["heatmap"] is None
    assert said[2][1]["detail"] == "part 7 is NG" and said[2][1]["time"].endswith("Z")


def test_a_message_without_acknowledgement_waits_and_is_not_sent_twice(broker, monkeypatch):
    monkeypatch.setattr(mqtt, "ANSWER_S", 0.05)
    monkeypatch.setattr(mqtt, "FIRST_S", 0.05)
    sink = sink_of(broker.port)
    broker.until(published(STATE))
    broker.acknowledge = False
    failed = threading.Event()
    outbox = Outbox(sink, backoff=Backoff(0.001, 0.002), on_change=lambda _: failed.set())
    outbox.offer(NG)
    broker.until(published(EVENT))
    assert failed.wait(LIMIT_S)
    assert outbox.failing == f"127.0.0.1:{broker.port} did not acknowledge a message in 0.05 s"
    eventually(lambda: outbox.failures >= 5)  # goes on trying
    broker.acknowledge = True
    broker.cut()  # connected again, paho repeats it
    (_, flags, _), before = broker.until(published(EVENT))
    assert flags & 8  # marked as a repetition
    monkeypatch.setattr(mqtt, "ANSWER_S", 5.0)
    assert outbox.close(LIMIT_S)
    _, after = broker.until(lambda packet: packet[0] == DISCONNECT)
    assert not [packet for packet in before + after if published(EVENT)(packet)]


def test_a_broker_that_is_away_at_the_start_gets_all_later(monkeypatch):
    monkeypatch.setattr(mqtt, "FIRST_S", 0.05)
    with contextlib.closing(SmallBroker()) as gone:
        port = gone.port
    sink = sink_of(port)
    failed = threading.Event()
    outbox = Outbox(sink, backoff=Backoff(0.01, 0.05), on_change=lambda _: failed.set())
    outbox.offer(NG)
    assert failed.wait(LIMIT_S)
    assert str(port) in outbox.failing and outbox.waiting == 1
    with contextlib.closing(SmallBroker(port)) as broker:
        broker.until(published(EVENT))
        assert outbox.close(LIMIT_S)
    assert outbox.failing is None and outbox.dropped == 0


def test_a_broker_that_stays_away_is_logged_once(caplog):
    sink = sink_of(1)
    eventually(lambda: "cannot be reached" in sink.problem)
    for _ in range(3):
        sink._unreachable(None, None)  # as paho calls it at each try
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    sink.close()


def test_a_refusal_is_told_as_such():
    with contextlib.closing(SmallBroker(refuse=5)) as broker:
        sink = sink_of(broker.port)
        eventually(lambda: "refused" in sink.problem)
        broker.until(lambda packet: packet[0] == "gone")
        with pytest.raises(OSError, match="refused the connection: Not authorized"):
            sink.emit([NG])
        assert "Not authorized" in sink.problem
        sink.close()


def test_a_trigger_fires_once_each_and_a_kept_one_never(broker):
    fired = queue.Queue()

    def on_trigger():
        fired.put(1)
        raise RuntimeError("the gate is broken")  # does not end paho's thread

    sink = sink_of(broker.port, on_trigger)
    (_, _, body), _ = broker.until(lambda packet: packet[0] == SUBSCRIBE)
    assert body[2:] == struct.pack("!H", len(TRIGGER)) + TRIGGER.encode() + b"\0"  # QoS 0
    broker.publish(TRIGGER, retained=True)
    broker.publish(TRIGGER)
    broker.publish(TRIGGER)
    assert fired.get(timeout=LIMIT_S) and fired.get(timeout=LIMIT_S)
    sink.emit([NG])  # behind them all
    assert fired.empty()
    sink.close()


def test_without_a_trigger_nothing_is_subscribed(broker):
    sink = sink_of(broker.port)
    _, before = broker.until(published(STATE))
    sink.close()
    _, after = broker.until(lambda packet: packet[0] == DISCONNECT)
    assert SUBSCRIBE not in [packet[0] for packet in before + after]


def test_a_password_that_cannot_be_read_is_said(tmp_path):
    (tmp_path / "empty").write_text("\n")
    for name, why in (("none", "No such file"), ("empty", "is empty")):
        with pytest.raises(ConfigError, match=f"password_file.*{why}"):
            sink_of(1, username="line", password_file=str(tmp_path / name))


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "paho.mqtt", None)
    with pytest.raises(ConfigError, match="needs paho-mqtt 2 or newer: pip install"):
        sink_of(1)
    old = ModuleType("paho.mqtt")
    old.client = ModuleType("paho.mqtt.client")  # as version 1: without CallbackAPIVersion
    monkeypatch.setitem(sys.modules, "paho.mqtt", old)
    with pytest.raises(ConfigError, match="needs paho-mqtt 2 or newer"):
        sink_of(1)


# A real broker

MOSQUITTO = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin")
real = pytest.mark.skipif(MOSQUITTO is None, reason="needs mosquitto (apt: mosquitto)")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def mosquitto(folder, port, lines="allow_anonymous true\n"):
    config = folder / "mosquitto.conf"
    # As nobody but who runs the test: started by root it would take another user's rights.
    user = f"user {os.environ.get('USER') or 'root'}\n" if os.geteuid() == 0 else ""
    config.write_text(f"listener {port} 127.0.0.1\npersistence false\n{user}{lines}")
    server = subprocess.Popen(
        [MOSQUITTO, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        for line in server.stderr:
            if "running" in line:
                break
        drain = threading.Thread(target=server.stderr.read)
        drain.start()
        yield server
    finally:
        server.terminate()
        server.wait(LIMIT_S)
        drain.join(LIMIT_S)


class Listener(Waited):
    """Somebody else's client, subscribed to all of a station."""

    def __init__(self, port, user=None, password=None):
        super().__init__()
        self.ready = threading.Event()
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        if user:
            self.client.username_pw_set(user, password)
        self.client.on_connect = lambda *_: self.client.subscribe("hall/edge/#", 1)
        self.client.on_subscribe = lambda *_: self.ready.set()
        self.client.on_message = lambda client, data, message: self.came.put(
            (message.topic, message.payload, message.retain)
        )
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self.ready.wait(LIMIT_S)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()

    def until_said(self, topic, body=None):
        return self.until(lambda said: said[0] == topic and (body is None or said[1] == body))


@pytest.mark.slow
@real
def test_a_real_broker_delivers_all(tmp_path):
    port = free_port()
    fired = queue.Queue()
    with mosquitto(tmp_path, port), contextlib.closing(Listener(port)) as listener:
        listener.client.publish(TRIGGER, b"old", qos=1, retain=True).wait_for_publish(LIMIT_S)
        sink = sink_of(port, lambda: fired.put(1))
        outbox = Outbox(sink, backoff=Backoff(0.01, 0.05))
        listener.until_said(STATE, b"online")
        for part in range(200):
            outbox.offer(part_of(Verdict.NG, part))
        outbox.offer(NG)
        _, before = listener.until_said(EVENT)
        parts = [json.loads(body)["part"] for topic, body, _ in before if topic == VERDICT]
        assert parts == list(range(200))
        with contextlib.closing(Listener(port)) as later:
            assert later.until_said(STATE)[0] == (STATE, b"online", True)  # retained
        listener.client.publish(TRIGGER, b"").wait_for_publish(LIMIT_S)
        assert fired.get(timeout=LIMIT_S)
        outbox.offer(NG)
        listener.until_said(EVENT)
        assert fired.empty()  # the retained one did not
        assert outbox.close(LIMIT_S)
        listener.until_said(STATE, b"offline")


@pytest.mark.slow
@real
def test_a_station_that_dies_is_offline_by_its_will(tmp_path):
    port = free_port()
    code = (
        "import sys; from dataclasses import replace; from edge_app.config import load_config;"
        "from edge_app.sinks.mqtt import MqttSink;"
        f"s = MqttSink(replace(load_config().mqtt, host='127.0.0.1', port={port}, "
        "topic='hall/edge'), 'line-1'); sys.stdin.read()"
    )
    with mosquitto(tmp_path, port), contextlib.closing(Listener(port)) as listener:
        station = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
        try:
            listener.until_said(STATE, b"online")
        finally:
            station.kill()
            station.communicate()
        listener.until_said(STATE, b"offline")


@pytest.mark.slow
@real
def test_a_broker_that_is_restarted_misses_nothing_that_was_offered(tmp_path):
    port = free_port()
    sink = sink_of(port)
    failed = threading.Event()
    outbox = Outbox(sink, backoff=Backoff(0.05, 0.2), on_change=lambda _: failed.set())
    with mosquitto(tmp_path, port), contextlib.closing(Listener(port)) as listener:
        outbox.offer(part_of(Verdict.OK, 1))
        listener.until_said(VERDICT)
    failed.clear()
    outbox.offer(part_of(Verdict.NG, 2))
    outbox.offer(part_of(Verdict.OK, 3))
    assert failed.wait(LIMIT_S)
    with mosquitto(tmp_path, port), contextlib.closing(Listener(port)) as listener:
        (_, body, _), before = listener.until(
            lambda said: said[0] == VERDICT and json.loads(said[1])["part"] == 3
        )
        parts = [json.loads(said[1])["part"] for said in before if said[0] == VERDICT]
        assert parts and set(parts) == {2}  # at least once
        assert outbox.close(LIMIT_S)
    assert outbox.dropped == 0


@pytest.mark.slow
@real
def test_a_real_broker_refuses_a_wrong_password(tmp_path):
    (tmp_path / "users").write_text("line:right\n")
    # mosquitto hashes the file in place.
    subprocess.run(["mosquitto_passwd", "-U", str(tmp_path / "users")], check=True)
    (tmp_path / "wrong").write_text("wrong\n")
    (tmp_path / "right").write_text("right\n")
    port = free_port()
    lines = f"allow_anonymous false\npassword_file {tmp_path / 'users'}\n"
    with mosquitto(tmp_path, port, lines):
        told = queue.Queue()
        sink = sink_of(port, username="line", password_file=str(tmp_path / "wrong"))
        outbox = Outbox(sink, backoff=Backoff(0.05, 0.1), on_change=told.put)
        outbox.offer(NG)
        told.get(timeout=LIMIT_S)
        eventually(lambda: "Not authorized" in (outbox.failing or ""))
        assert "refused the connection: Not authorized" in outbox.failing
        assert not outbox.close(0.0)
        sink = sink_of(port, username="line", password_file=str(tmp_path / "right"))
        outbox = Outbox(sink, backoff=Backoff(0.05, 0.1))
        outbox.offer(NG)
        assert outbox.close(LIMIT_S)
