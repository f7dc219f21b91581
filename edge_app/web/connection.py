"""
What a single connection may cost: time, bytes and a place among the others.

aiohttp waits for a slow client as long as it likes. Here a connection that has not sent a whole
request in time, has sent too much, or does not take what it is sent, is closed. Where all places
are taken, a new one gets that of the one that has been idle longest.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from aiohttp import web

# Write buffer of a connection, bytes: above `high` a writer waits until it is below `low`.
HIGH, LOW = 64 * 1024, 16 * 1024
# After an answer that did not wait for the request's body, so long it is still read, seconds.
LINGER_S = 1.0

# An error that comes again is logged again after so many seconds.
LOG_AGAIN_S = 60.0

SERVER = "edge-app"

_log = logging.getLogger("edge_app.web")


@dataclass(frozen=True)
class Limits:
    """
    What a connection may cost.

    Attributes
    ----------
    head_s : float
        A request's head must be there so many seconds after the connection, or the last answer. A
        browser sends it at once, and where it kept a connection for later it opens a new one.
    stalled_s : float
        A client must take 48 KiB (the distance of the write buffer's marks) in so many seconds.
    received : int
        Most bytes of a request: head and body have 64 KiB each, and some is read ahead.
    """

    head_s: float = 20.0
    stalled_s: float = 20.0
    received: int = 256 * 1024


class Connections:
    """
    All connections of a server.

    Parameters
    ----------
    most : int
    limits : Limits
        Of each of them.
    """

    def __init__(self, most: int, limits: Limits) -> None:
        self.most, self.limits = most, limits
        self.refused = 0
        self.told_s = -LOG_AGAIN_S
        # In the order in which they became idle.
        self._idle: dict[Connection, None] = {}
        self._busy: set[Connection] = set()

    def __len__(self) -> int:
        return len(self._idle) + len(self._busy)

    def entered(self, connection: Connection) -> bool:
        """One more; False where it has to go."""
        if len(self) >= self.most:
            self.refused += 1
            if not self._idle:
                return False
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            oldest.abort()
        self._idle[connection] = None
        return True

    def busy(self, connection: Connection) -> None:
        self._idle.pop(connection, None)
        self._busy.add(connection)

    def idle(self, connection: Connection) -> None:
        if connection in self._busy:
            self._busy.discard(connection)
            self._idle[connection] = None

    def left(self, connection: Connection) -> None:
        self._idle.pop(connection, None)
        self._busy.discard(connection)


class Connection(web.RequestHandler):
    """One connection: aiohttp's, with its limits."""

    def __init__(
        self, server: web.Server, connections: Connections, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=connections.limits.head_s,
            lingering_time=LINGER_S,
            # A small body must not unpack to a large one.
            auto_decompress=False,
            access_log=None,
            logger=_log,
        )
        self._all, self._clock, self._limits = connections, loop, connections.limits
        self._received = 0
        self._late: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(HIGH, LOW)
        if self._all.entered(self):
            self._await_head()
        else:
            transport.abort()

    def connection_lost(self, error: BaseException | None) -> None:
        self._all.left(self)
        self._cancel_timers()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > self._limits.received:
            self.abort()
        else:
            super().data_received(data)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self._clock.call_later(self._limits.stalled_s, self.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def begin(self) -> None:
        """A whole head has come, and its request is being answered."""
        if self._late is not None:
            self._late.cancel()
            self._late = None
        self._all.busy(self)

    def end(self) -> None:
        """It has been answered."""
        self._received = 0
        if self.transport is not None:
            self._all.idle(self)
            self._await_head()

    def abort(self) -> None:
        self._cancel_timers()
        if self.transport is not None:
            self.transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """
        Answer what is no HTTP, without telling more than that.

        Anybody who reaches the port can cause it as often as they like: it is not logged. What
        aiohttp itself fails at is, from time to time; a header that it cannot write into its own
        refusal is none of that.
        """
        if isinstance(exc, UnicodeError):
            status = 400
        elif isinstance(exc, ConnectionError):
            pass  # a viewer has gone
        elif status >= 500 and self._clock.time() - self._all.told_s >= LOG_AGAIN_S:
            self._all.told_s = self._clock.time()
            _log.error("a request could not be answered", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        response = web.Response(status=status, text="This is no request that can be answered.\n")
        response.headers["Server"] = SERVER
        response.force_close()
        return response

    def _await_head(self) -> None:
        if self._late is not None:
            self._late.cancel()
        self._late = self._clock.call_later(self._limits.head_s, self.abort)

    def _cancel_timers(self) -> None:
        for timer in (self._late, self._stalled):
            if timer is not None:
                timer.cancel()
        self._late = self._stalled = None
