"""
MQTT: state, verdicts and events go to a broker; parts may be announced through it.

==================== ======== =====================================================================
topic                retained what
==================== ======== =====================================================================
``T/STATION/state``  yes      ``online`` or ``offline``; offline also by last will
``T/STATION/verdict``no       each part, and each change of verdict of frames that are in none: JSON
``T/STATION/event``  no       what the service keeps as an event: JSON
``T/STATION/trigger``         whatever comes announces a part
==================== ======== =====================================================================
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge_app.config import MqttConfig
from edge_app.errors import ConfigError
from edge_app.outbox import Item
from edge_app.records import Event, Result, Verdict
from edge_app.sinks.message import as_message

# The broker says that it has a message within so many seconds, or it is offered again.
ANSWER_S = 5.0
# At the end nobody waits longer; without it the broker says offline by the last will.
GOODBYE_S = 0.5
# Waits between two tries to connect, seconds: first and most.
FIRST_S, MOST_S = 1, 30
# A connection that was cut without a word is noticed, on both sides, after 1.5 times this.
KEEP_ALIVE_S = 20

_log = logging.getLogger(__name__)


class MqttSink:
    """
    Publishes to a broker, to which it connects by itself whenever it is there.

    Messages are delivered at least once (QoS 1): one whose acknowledgement was lost comes again.

    Parameters
    ----------
    settings : MqttConfig
    station : str
        Its name, part of every topic and the client's id.
    on_trigger : callable, optional
        Called, in a thread of this sink, for each message on the topic ``trigger``. Not for one
        that the broker had kept: it says nothing of now.

    Attributes
    ----------
    problem : str or None
        Why there is no connection.

    Raises
    ------
    ConfigError
        If paho-mqtt is not installed or the password cannot be read.
    """

    name = "mqtt"

    def __init__(
        self,
        settings: MqttConfig,
        station: str,
        on_trigger: Callable[[], None] | None = None,
    ) -> None:
        try:
            from paho.mqtt import client as paho
        except ImportError:
            raise _missing() from None
        if not hasattr(paho, "CallbackAPIVersion"):
            raise _missing()  # version 1 has other callbacks
        self._station, self._on_trigger = station, on_trigger
        self._place = f"{settings.host}:{settings.port}"
        self._root = f"{settings.topic.rstrip('/')}/{station}"
        self.problem: str | None = f"{self._place} is not connected yet"
        self._told: str | None = None
        self._ending = False
        self._verdict: Verdict | None = None
        self._sent: tuple[Item, Any] | None = None
        # Always the same id: after a cut the broker then ends the old connection, whose last will
        # would otherwise say "offline" long after this one is online.
        client = paho.Client(paho.CallbackAPIVersion.VERSION2, f"edge-app-{station}")
        client.will_set(f"{self._root}/state", "offline", qos=1, retain=True)
        if settings.username:
            client.username_pw_set(settings.username, _password(settings.password_file))
        if settings.tls:
            client.tls_set()
        client.reconnect_delay_set(FIRST_S, MOST_S)
        client.on_connect = self._connected
        client.on_connect_fail = self._unreachable
        client.on_disconnect = self._disconnected
        client.on_message = self._message
        self._client = client
        client.connect_async(settings.host, settings.port, KEEP_ALIVE_S)
        client.loop_start()

    def wants(self, item: Item) -> bool:
        """Events, parts, and changes of verdict outside parts."""
        if not isinstance(item, Result):
            return isinstance(item, Event)
        if item.event == "part":
            return True
        decision = item.decision
        if decision.part is not None or decision.verdict is self._verdict:
            return False
        self._verdict = decision.verdict
        return True

    def emit(self, items: Sequence[Item]) -> None:
        """
        Publish and wait until the broker has it.

        Raises
        ------
        OSError
            If there is no broker, or it does not answer.
        """
        for item in items:
            if not self._client.is_connected():
                raise OSError(self.problem or f"{self._place} is not connected")
            # Offered again, one that is under way is waited for and not sent twice: paho repeats it
            # by itself once it is connected again.
            if self._sent is None or self._sent[0] is not item:
                kind = "event" if isinstance(item, Event) else "verdict"
                body = as_message(item, self._station)
                self._sent = item, self._client.publish(f"{self._root}/{kind}", body, qos=1)
            info = self._sent[1]
            try:
                info.wait_for_publish(ANSWER_S)
                there = info.is_published()
            except (RuntimeError, ValueError) as error:
                # The connection ended within `publish`; what became of it is not to be known.
                self._sent = None
                raise OSError(f"{self._place}: {error}") from None
            if not there:
                raise OSError(f"{self._place} did not acknowledge a message in {ANSWER_S:g} s")
            self._sent = None

    def close(self) -> None:
        """Say offline and disconnect."""
        self._on_trigger = None
        self._ending = True
        if self._client.is_connected():
            said = self._client.publish(f"{self._root}/state", "offline", qos=1, retain=True)
            with contextlib.suppress(RuntimeError, ValueError):
                said.wait_for_publish(GOODBYE_S)
        self._client.disconnect()
        self._client.loop_stop()

    # Called by paho's thread, which an exception would end

    def _connected(self, client: Any, data: Any, flags: Any, code: Any, more: Any) -> None:
        if code.is_failure:
            self._trouble(f"{self._place} refused the connection: {code}")
            return
        self._trouble(None)
        client.publish(f"{self._root}/state", "online", qos=1, retain=True)
        if self._on_trigger is not None:
            # At most once: a trigger that came again would announce a part that is not there.
            client.subscribe(f"{self._root}/trigger", qos=0)

    def _unreachable(self, client: Any, data: Any) -> None:
        self._trouble(f"{self._place} cannot be reached")

    def _disconnected(self, client: Any, data: Any, flags: Any, code: Any, more: Any) -> None:
        # After a refusal the connection ends too, and the refusal says more.
        if self.problem is None and not self._ending:
            self._trouble(f"{self._place} is not connected: {code}")

    def _message(self, client: Any, data: Any, message: Any) -> None:
        on_trigger = self._on_trigger
        if message.retain or on_trigger is None:
            return
        try:
            on_trigger()
        except Exception:
            _log.exception("mqtt: a trigger was lost")

    def _trouble(self, problem: str | None) -> None:
        """Logged when it begins, when it is another, and when it ends."""
        self.problem = problem
        if problem is not None and problem != self._told:
            _log.warning("mqtt: %s; it is tried again", problem)
        elif problem is None:
            _log.info("mqtt: connected to %s", self._place)
        self._told = problem


def _missing() -> ConfigError:
    return ConfigError(
        "[mqtt] is enabled, which needs paho-mqtt 2 or newer: pip install 'edge-app[service]'"
    )


def _password(path: str) -> str | None:
    if not path:
        return None
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(f"{path}: [mqtt] password_file cannot be read: {why}") from None
    if not lines or not lines[0]:
        raise ConfigError(f"{path}: [mqtt] password_file is empty, wanted a password on one line")
    return lines[0]
