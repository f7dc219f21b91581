"""What systemd is told, on real datagram sockets."""

import logging
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from edge_app.notify import MOST_STATUS, Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """The socket that systemd would read, and its name as the environment gives it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@edge-app-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        bound.setblocking(False)
        yield bound, name


def told(bound):
    """All that was said so far, a list of lines each."""
    said = []
    while True:
        try:
            said.append(bound.recv(4096).decode().split("\n"))
        except BlockingIOError:
            return said


def test_each_word_arrives(manager):
    bound, name = manager
    before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "10000000"})
    notifier.ready("bundle nut")
    notifier.watchdog()
    notifier.status("OK 12/s, 61 °C")
    notifier.reloading()
    notifier.ready()
    notifier.stopping()
    after_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    said = told(bound)
    assert said[:3] == [["READY=1", "STATUS=bundle nut"], ["WATCHDOG=1"], ["STATUS=OK 12/s, 61 °C"]]
    assert said[3][0] == "RELOADING=1"
    key, value = said[3][1].split("=")
    assert key == "MONOTONIC_USEC" and before_us <= int(value) <= after_us
    assert said[4:] == [["READY=1"], ["STOPPING=1"]]


def test_a_status_is_one_line(manager):
    bound, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.status("camera: gone\nMAINPID=1\r\nSTOPPING=1")
    notifier.status("x" * 10_000)
    said = told(bound)
    assert said[0] == ["STATUS=camera: gone MAINPID=1 STOPPING=1"]
    assert said[1] == ["STATUS=" + "x" * MOST_STATUS]


def test_a_status_that_is_no_text_is_sent_all_the_same(manager):
    # A file name that is not UTF-8 comes to Python with surrogates.
    bound, name = manager
    Notifier({"NOTIFY_SOCKET": name}).status("bundle \udcff")
    assert told(bound) == [["STATUS=bundle ?"]]


def test_nothing_is_sent_where_nobody_listens():
    for environ in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}):
        notifier = Notifier(environ)
        assert not notifier.listening and notifier.watchdog_s is None
        notifier.ready("x")
        notifier.reloading()
        notifier.status("x")
        notifier.watchdog()
        notifier.stopping()
        notifier.close()


def test_a_socket_that_is_away_is_logged_once_and_the_state_is_sent_later(tmp_path, caplog):
    caplog.set_level(logging.INFO, "edge_app.notify")
    name = str(tmp_path / "notify")
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready("first")
    notifier.status("second")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(name)
        bound.setblocking(False)
        notifier.status("third")
        notifier.status("fourth")
        assert told(bound) == [["READY=1", "STATUS=third"], ["STATUS=fourth"]]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_a_manager_that_does_not_read_holds_nobody_up(manager):
    bound, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000000"})
    # Far more than a socket queues; a blocking send would hang here.
    for _ in range(5000):
        notifier.watchdog()
    notifier.stopping()
    assert told(bound)
    notifier.status("going")
    assert told(bound) == [["STOPPING=1", "STATUS=going"]]


def test_only_the_last_state_is_owed(tmp_path):
    name = str(tmp_path / "notify")
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.reloading()
    notifier.ready()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(name)
        bound.setblocking(False)
        notifier.status("on")
        assert told(bound) == [["READY=1", "STATUS=on"]]


def test_two_threads_do_not_take_each_others_state(manager):
    bound, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "10000000"})
    feeding = threading.Thread(target=notifier.watchdog)

    class Interrupted(str):
        """A status that is looked at just as the other thread begins to send."""

        def split(self):
            feeding.start()
            feeding.join(0.2)
            return ["nut"]

    notifier.ready(Interrupted("nut"))
    feeding.join(10)
    assert told(bound) == [["READY=1", "STATUS=nut"], ["WATCHDOG=1"]]


def test_a_path_too_long_for_a_socket_is_no_error():
    notifier = Notifier({"NOTIFY_SOCKET": "/" + "x" * 300})
    notifier.ready()
    notifier.stopping()


@pytest.mark.parametrize(
    ("usec", "pid", "wanted"),
    [
        ("10000000", None, 10.0),
        pytest.param("500000", str(os.getpid()), 0.5, id="own process"),
        ("10000000", "1", None),
        ("10000000", "", 10.0),
        ("0", None, None),
        ("-5", None, None),
        ("soon", None, None),
        ("10000000", "me", None),
        (None, None, None),
    ],
)
def test_watchdog_is_ours_or_none(usec, pid, wanted):
    environ = {"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}
    environ = {key: value for key, value in environ.items() if value is not None}
    assert Notifier(environ).watchdog_s == wanted


def test_the_watchdog_is_not_fed_where_there_is_none(manager):
    bound, name = manager
    Notifier({"NOTIFY_SOCKET": name}).watchdog()
    assert told(bound) == []


def test_after_close_nothing_is_sent(manager):
    bound, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.close()
    notifier.close()
    notifier.ready()
    assert told(bound) == [] and not notifier.listening


def test_the_process_environment_is_the_default(manager):
    bound, name = manager
    code = "from edge_app.notify import Notifier; n = Notifier(); n.ready(str(n.watchdog_s))"
    environ = {**os.environ, "NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000000"}
    environ.pop("WATCHDOG_PID", None)
    subprocess.run([sys.executable, "-c", code], env=environ, check=True, timeout=60)
    assert told(bound) == [["READY=1", "STATUS=3.0"]]
