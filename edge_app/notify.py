"""
Words to systemd: ready, status, reloading, stopping, and the watchdog's food.

The protocol of sd_notify(3): lines of ``KEY=value`` in one datagram to the Unix socket that the
environment names. Nothing here knows systemd's library, and nothing waits.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Mapping

_log = logging.getLogger(__name__)

# A status is one line on a screen; systemd would take a longer one, nobody reads it.
MOST_STATUS = 400


class Notifier:
    """
    Tells systemd how the service is. Without a socket in the environment every call does nothing.

    No call blocks and none raises: a service manager that does not listen must not stop an
    inspection. A change of state (ready, reloading, stopping) that could not be sent goes with the
    next message. Any thread may call: the loop feeds the watchdog while the caretaker reloads.

    Parameters
    ----------
    environ : mapping, optional
        Where ``NOTIFY_SOCKET`` (a path, or ``@name`` for an abstract socket), ``WATCHDOG_USEC`` and
        ``WATCHDOG_PID`` are read from; `os.environ` by default.

    Attributes
    ----------
    listening : bool
        True where there is a socket to talk to.
    watchdog_s : float or None
        systemd ends the service where `watchdog` has not been called for so many seconds; None
        where there is no watchdog, or it is another process's.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._socket: socket.socket | None = None
        # Held while a message is sent, which does not wait: or a READY that another thread owes
        # could be taken for sent, and systemd wait for it for ever.
        self._sending = threading.Lock()
        self._owed = ""
        self._failing = False
        self.watchdog_s = _watchdog_s(environ)
        if self._address is None:
            return
        try:
            # Python's sockets are not inherited by child processes.
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        except OSError as error:
            _log.warning("systemd cannot be told anything: %s", error)

    @property
    def listening(self) -> bool:
        return self._socket is not None

    def ready(self, status: str = "") -> None:
        """Say that the start, or a reload, is over."""
        self._send(status=status, state="READY=1")

    def status(self, text: str) -> None:
        """Say in one line how it goes; ``systemctl status`` shows it."""
        self._send(status=text)

    def reloading(self) -> None:
        """Say that a reload begins; `ready` ends it."""
        # Without the time systemd could take the READY of a reload before for this one's.
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(state=f"RELOADING=1\nMONOTONIC_USEC={now_us}")

    def stopping(self) -> None:
        """Say that the service ends."""
        self._send(state="STOPPING=1")

    def watchdog(self) -> None:
        """Say that the service is alive. Call it from what must not hang, at twice the pace."""
        if self.watchdog_s is not None:
            self._send("WATCHDOG=1")

    def close(self) -> None:
        """Give the socket back; any number of times. Nothing is sent after it."""
        with self._sending:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def _send(self, lines: str = "", status: str = "", state: str = "") -> None:
        with self._sending:
            self._send_alone(lines, status, state)

    def _send_alone(self, lines: str, status: str, state: str) -> None:
        if self._socket is None:
            return
        if state:
            # Only the last state counts, for systemd too.
            self._owed = state
        # A line break in it would begin another assignment.
        text = " ".join(status.split())[:MOST_STATUS]
        parts = (self._owed, lines, f"STATUS={text}" if text else "")
        message = "\n".join(part for part in parts if part)
        try:
            self._socket.sendto(message.encode("utf-8", "replace"), self._address)
        except OSError as error:
            if not self._failing:
                _log.warning("systemd cannot be told anything: %s", error)
            self._failing = True
            return
        self._owed = ""
        if self._failing:
            _log.info("systemd can be told again how it goes")
        self._failing = False


def _address(name: str) -> bytes | None:
    """The socket's address; None where there is none, or of a kind for virtual machines alone."""
    if name.startswith("@"):
        return b"\0" + os.fsencode(name[1:])
    return os.fsencode(name) if name.startswith("/") else None


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    try:
        limit_us = int(environ.get("WATCHDOG_USEC", ""))
        meant_for = int(environ.get("WATCHDOG_PID") or os.getpid())
    except ValueError:
        return None
    return limit_us / 1e6 if limit_us > 0 and meant_for == os.getpid() else None
