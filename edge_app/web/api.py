"""What the page asks for and does: addresses, and what each answers."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
from aiohttp import web

from edge_app.errors import EdgeAppError
from edge_app.event_rows import TRUE_DEFECT
from edge_app.records import EVENT_KINDS
from edge_app.web.aside import Aside
from edge_app.web.contract import Board, Controls, Metrics, Row, Store
from edge_app.web.stream import BOUNDARY, Feed, Full, Pictures, as_json, encode

# Events in one answer.
MOST_EVENTS = 100
# A day's counts are asked for as hours; at most those of a month.
MOST_HOURS = 31 * 24
# Small pictures of events: their width in pixels, their quality, and how many are remembered (some
# 5 KB each).
THUMB_WIDTH, THUMB_QUALITY, MOST_THUMBS = 240, 75, 256
# A body must be there within so many seconds.
BODY_S = 10.0
# Files are sent in pieces of so many bytes.
PIECE = 64 * 1024
# Pieces of an export that may wait for the client.
MOST_PIECES = 8
# A client must take a piece of an export within so many seconds, or it ends.
EXPORT_S = 60.0
EXPORTS = {
    "csv": "text/csv; charset=utf-8",
    "json": "application/json",
    "zip": "application/zip",
}
# 5m, 24h, 7d: seconds of each.
UNITS_S = {"m": 60, "h": 3600, "d": 86400}

Answer = Awaitable[web.StreamResponse]

_log = logging.getLogger("edge_app.web")


class Api:
    """
    The handlers, and what they share.

    Parameters
    ----------
    board : Board
    controls : Controls
    store : Store
    metrics : Metrics or None
    pictures : Pictures
    feed : Feed
    reading, doing, drawing : Aside
        Where the store is read, where is done what may take long, where pictures are made.
    admitted : callable
        Whether who sent a request may still be answered: sessions end.
    """

    def __init__(
        self,
        board: Board,
        controls: Controls,
        store: Store,
        metrics: Metrics | None,
        pictures: Pictures,
        feed: Feed,
        reading: Aside,
        doing: Aside,
        drawing: Aside,
        admitted: Callable[[web.Request], bool],
    ) -> None:
        self._admitted = admitted
        self._board, self._controls, self._store = board, controls, store
        self._metrics, self._pictures, self._feed = metrics, pictures, feed
        self._reading, self._doing, self._drawing = reading, doing, drawing
        self._exporting = False
        self._thumbs: dict[tuple[Path, int], bytes] = {}

    def routes(self) -> list[web.RouteDef]:
        one = r"/api/events/{id:\d{1,18}}"
        routes = [
            web.get("/stream.mjpg", self._stream, allow_head=False),
            web.get("/picture.jpg", self._still, allow_head=False),
            web.get("/api/live", self._live, allow_head=False),
            web.get("/api/state", self._state),
            web.get("/api/events", self._events),
            web.get(one, self._event),
            web.get(one + "/thumb", self._thumb, allow_head=False),
            web.get(one + "/{which:frame|overlay}", self._evidence, allow_head=False),
            web.get("/api/counts", self._counts),
            web.get("/api/export", self._export, allow_head=False),
            web.get("/api/bundles", self._bundles),
            web.get("/api/threshold", self._threshold),
            web.post(one + "/learn", self._act(lambda c, b, r: c.learn_good(number(r)))),
            web.post(one + "/mark", self._act(lambda c, b, r: c.mark_defect(number(r)))),
            web.post(one + "/unmark", self._unmark),
            web.post("/api/bundles/revert", self._act(lambda c, b, r: c.revert(text(b, "sha256")))),
            web.post("/api/threshold", self._act(lambda c, b, r: c.set_threshold(real(b)))),
            web.post("/api/picture", self._act(lambda c, b, r: c.take_picture())),
            web.post("/api/start", self._act(lambda c, b, r: c.start())),
            web.post("/api/stop", self._act(lambda c, b, r: c.stop())),
            web.post("/api/trigger", self._trigger),
        ]
        if self._metrics is not None:
            routes.append(web.get("/metrics", self._figures))
        return routes

    # What goes on and on

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        try:
            async with self._pictures.look():
                response = web.StreamResponse()
                response.content_type = f"multipart/x-mixed-replace;boundary={BOUNDARY}"
                await response.prepare(request)
                await response.write(f"--{BOUNDARY}\r\n".encode())
                last = None
                while True:
                    told = await self._pictures.after(last)
                    if self._over(request):
                        break
                    if told is not None:
                        last = told.number
                        await response.write(told.data)
                return response
        except Full:
            return refusal(503, f"{self._pictures.most} watch the picture already, as many as may.")

    async def _live(self, request: web.Request) -> web.StreamResponse:
        try:
            async with self._feed.look():
                response = web.StreamResponse()
                response.content_type = "text/event-stream"
                # A proxy in front must not collect it.
                response.headers["X-Accel-Buffering"] = "no"
                await response.prepare(request)
                await response.write(b"retry: 1000\n\n")
                last = None
                while True:
                    told = await self._feed.after(last)
                    if self._over(request):
                        break
                    if told is not None:
                        following = last is not None and told.number == last + 1
                        last = told.number
                        await response.write(told.data if following else told.whole)
                return response
        except Full:
            return refusal(503, f"{self._feed.most} pages are open already, as many as may be.")

    def _over(self, request: web.Request) -> bool:
        """Whether nobody looks any more, or nobody who may: logged out, or expired."""
        transport = request.transport
        return transport is None or transport.is_closing() or not self._admitted(request)

    async def _still(self, request: web.Request) -> web.StreamResponse:
        jpeg = await self._pictures.still()
        if jpeg is None:
            return refusal(404, "There is no picture yet.")
        return web.Response(body=jpeg, content_type="image/jpeg")

    async def _state(self, request: web.Request) -> web.StreamResponse:
        return answer(await self._reading.call(self._board.snapshot))

    async def _figures(self, request: web.Request) -> web.StreamResponse:
        data = await self._reading.call(self._metrics.render)
        response = web.Response(body=data)
        response.headers["Content-Type"] = "text/plain; version=0.0.4; charset=utf-8"
        return response

    # Events

    async def _events(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        count = whole(query, "limit", 24, 1, MOST_EVENTS)
        before = whole(query, "before", None, 1, 2**63 - 1)
        rows = await self._reading.call(self._store.latest, count, before, *_wanted(query))
        return answer({"events": [row.as_json() for row in rows]})

    async def _event(self, request: web.Request) -> web.StreamResponse:
        row = await self._reading.call(self._store.get, number(request))
        if row is None:
            return refusal(404, f"There is no event {number(request)} (any more).")
        return answer(row.as_json())

    async def _evidence(self, request: web.Request) -> web.StreamResponse:
        which = request.match_info["which"]
        path = await self._reading.call(self._store.picture, number(request), which)
        file = None
        if path is not None:
            try:
                file = await self._reading.call(open, path, "rb")
            except FileNotFoundError:
                pass  # it has just been given up for newer ones
        if file is None:
            return refusal(404, "There is no such picture (any more).")
        with file:
            response = web.StreamResponse()
            response.content_type = "image/png" if path.suffix == ".png" else "image/jpeg"
            # Of the file that is open: its name may be gone by now.
            response.content_length = os.fstat(file.fileno()).st_size
            if "download" in request.query:
                attach(response, path.name)
            await response.prepare(request)
            while piece := await self._reading.call(file.read, PIECE):
                await response.write(piece)
        return response

    async def _thumb(self, request: web.Request) -> web.StreamResponse:
        jpeg = await self._drawing.call(self._draw_thumb, number(request))
        if jpeg is None:
            return refusal(404, "There is no such picture (any more).")
        response = web.Response(body=jpeg, content_type="image/jpeg")
        # An event's pictures change once at most, when its episode ends.
        response.headers["Cache-Control"] = "private, max-age=60"
        return response

    def _draw_thumb(self, id: int) -> bytes | None:
        for which in ("overlay", "frame"):
            path = self._store.picture(id, which)
            if path is None:
                continue
            try:
                key = path, path.stat().st_mtime_ns
            except OSError:
                continue
            if key not in self._thumbs:
                picture_bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
                if picture_bgr is None:
                    continue
                while len(self._thumbs) >= MOST_THUMBS:
                    self._thumbs.pop(next(iter(self._thumbs)), None)
                self._thumbs[key] = encode(picture_bgr, THUMB_WIDTH, THUMB_QUALITY)
            return self._thumbs[key]
        return None

    async def _counts(self, request: web.Request) -> web.StreamResponse:
        hours = whole(request.query, "hours", 24, 1, MOST_HOURS)
        now = int(time.time() // 3600)
        rows = await self._reading.call(self._store.counts, now - hours + 1)
        return answer({"now": now, "hours": [[hour, dict(counts)] for hour, counts in rows]})

    async def _export(self, request: web.Request) -> web.StreamResponse:
        kind = request.query.get("format", "csv")
        if kind not in EXPORTS:
            raise _bad(f"format: got {kind[:20]!r}, wanted csv, json or zip")
        kinds, since_s = _wanted(request.query)
        if self._exporting:
            return refusal(503, "Another export is running; try again when it is done.")
        self._exporting = True
        pipe = _Pipe(asyncio.get_running_loop())
        rows = self._store.walk(None, kinds, since_s)
        writing = asyncio.ensure_future(self._fill(pipe, rows, kind))
        # Where the client has gone nobody asks what became of it.
        writing.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            piece = await pipe.read()
            if piece is None:
                await writing  # what fails at once is refused, before there is half an answer
            response = web.StreamResponse()
            response.headers["Content-Type"] = EXPORTS[kind]
            attach(response, f"events.{kind}")
            await response.prepare(request)
            while piece is not None:
                await response.write(piece)
                piece = await pipe.read()
            await writing
        finally:
            pipe.hang_up()
            self._exporting = False
        return response

    async def _fill(self, pipe: _Pipe, rows: Iterator[Row], kind: str) -> None:
        try:
            await self._reading.call(self._write, pipe, rows, kind)
        finally:
            # Also where no thread was free for it: the reader would wait for ever.
            await pipe.end()

    def _write(self, pipe: _Pipe, rows: Iterator[Row], kind: str) -> None:
        try:
            with io.BufferedWriter(pipe, PIECE) as file:
                self._store.export(rows, file, kind)
        except BrokenPipeError:
            pass  # the client has gone

    # What is done

    async def _bundles(self, request: web.Request) -> web.StreamResponse:
        return answer({"bundles": await self._doing.call(self._controls.bundles)})

    async def _threshold(self, request: web.Request) -> web.StreamResponse:
        return answer(await self._doing.call(self._controls.threshold))

    async def _trigger(self, request: web.Request) -> web.StreamResponse:
        if await self._doing.call(self._controls.trigger):
            return answer({"said": "Triggered."})
        return refusal(409, "Not triggered: too soon after the last, or nothing waits for one.")

    async def _unmark(self, request: web.Request) -> web.StreamResponse:
        return answer({"said": await self._doing.call(self._take_mark_back, number(request))})

    def _take_mark_back(self, id: int) -> str:
        row = self._store.get(id)
        if row is None or row.mark != TRUE_DEFECT:
            raise EdgeAppError(f"Event {id} is not marked as a true defect.")
        self._store.set_mark(id, None)
        return f"Event {id} is not marked any more."

    def _act(
        self, action: Callable[[Controls, dict[str, Any], web.Request], Any]
    ) -> Callable[[web.Request], Answer]:
        """A handler that does something and answers with the sentence that says what."""

        async def handle(request: web.Request) -> web.StreamResponse:
            body = await read_body(request)
            said = await self._doing.call(action, self._controls, body, request)
            return answer(said if isinstance(said, dict) else {"said": said})

        return handle


class _Pipe(io.RawIOBase):
    """What a thread writes and the loop reads, at the client's pace."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(MOST_PIECES)
        self._hung_up = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self._hung_up:
            raise BrokenPipeError
        try:
            put = asyncio.run_coroutine_threadsafe(self._pieces.put(bytes(data)), self._loop)
            put.result(EXPORT_S)
        except (TimeoutError, RuntimeError):
            self._hung_up = True
            raise BrokenPipeError from None
        return len(data)

    async def end(self) -> None:
        """Nothing more comes; in the loop."""
        # There is room: either it is read, or nothing was left in it.
        await self._pieces.put(None)

    async def read(self) -> bytes | None:
        """The next piece; None at the end. A TimeoutError where it came too slowly for a whole."""
        piece = await self._pieces.get()
        if piece is None and self._hung_up:
            raise TimeoutError("the client took too long for an export")
        return piece

    def hang_up(self) -> None:
        """Nobody reads any more."""
        self._hung_up = True
        while not self._pieces.empty():
            self._pieces.get_nowait()


# What is asked, and answered


def answer(value: Any, status: int = 200) -> web.Response:
    return web.Response(text=as_json(value), status=status, content_type="application/json")


def refusal(status: int, sentence: str) -> web.Response:
    return answer({"error": sentence}, status)


def attach(response: web.StreamResponse, name: str) -> None:
    """Have it saved under this name rather than shown."""
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'


def _bad(sentence: str) -> web.HTTPBadRequest:
    return web.HTTPBadRequest(text=sentence)


async def read_body(request: web.Request) -> dict[str, Any]:
    """
    The JSON object of a request; an empty one where it has no body.

    Raises
    ------
    HTTPException
        If it is too large, too slow, or anything else.
    """
    if not request.body_exists:
        return {}
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="wanted application/json")
    try:
        async with asyncio.timeout(BODY_S):
            data = await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="the body did not come in time") from None
    try:
        body = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        raise _bad("the body is no JSON") from None
    if not isinstance(body, dict):
        raise _bad("the body is no JSON object")
    return body


def number(request: web.Request) -> int:
    return int(request.match_info["id"])


def text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    # The only text that is asked for is a SHA-256.
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{6,64}", value):
        raise EdgeAppError(f"{key}: wanted the SHA-256 of a bundle")
    return value


def real(body: dict[str, Any]) -> float:
    value = body.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise EdgeAppError("value: wanted a number")
    return float(value)


def whole(query: Any, key: str, default: int | None, low: int, high: int) -> int | None:
    value = query.get(key)
    if value is None:
        return default
    if not re.fullmatch(r"[0-9]{1,19}", value) or not low <= int(value) <= high:
        raise _bad(f"{key}: wanted a whole number from {low} to {high}")
    return int(value)


def _wanted(query: Any) -> tuple[list[str] | None, float | None]:
    """Which kinds, and since when, seconds since 1970 UTC."""
    kinds = since_s = None
    if query.get("kind"):
        kinds = query["kind"].split(",")
        for kind in kinds:
            if kind not in EVENT_KINDS:
                raise _bad(f"kind: got {kind[:20]!r}, wanted of {', '.join(EVENT_KINDS)}")
    if query.get("since"):
        found = re.fullmatch(r"([0-9]{1,6})([mhd])", query["since"])
        if found is None:
            raise _bad("since: wanted a time such as 30m, 24h or 7d")
        since_s = time.time() - int(found[1]) * UNITS_S[found[2]]
    return kinds, since_s
