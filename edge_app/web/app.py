"""The web server: wiring, who is let in, and the thread it runs in."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import logging
import socket
import threading
import time
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

from edge_app.config import WebConfig
from edge_app.errors import ConfigError, EdgeAppError
from edge_app.web.api import Api, answer, read_body, refusal
from edge_app.web.aside import Aside, Busy
from edge_app.web.auth import (
    ACTION_HEADER,
    SESSION_S,
    Attempts,
    Sessions,
    is_loopback,
    names_loopback,
    read_token,
    same_origin,
)
from edge_app.web.connection import LOG_AGAIN_S, SERVER, Connection, Connections, Limits
from edge_app.web.contract import Board, Controls, Metrics, Store
from edge_app.web.stream import Feed, Pictures

STATIC = Path(__file__).with_name("static")
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
# Bodies are a token or a number.
MOST_BODY = 64 * 1024
# Places for connections: each viewer's picture and state, one more for each, and some for others.
CONNECTIONS_A_VIEWER, CONNECTIONS_MORE = 3, 64
RETRY_S = 10.0
LIMITS = Limits()
# Unsent bytes that the system may hold for a connection: pictures in there grow old.
SEND_BUFFER = 64 * 1024
# What needs no token: the form that asks for it, and what it is drawn with.
OPEN = ("/login", "/static/{name}")
HEADERS = {
    "Server": SERVER,
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}

_log = logging.getLogger("edge_app.web")


class WebServer:
    """
    Serves the page, in a thread of its own.

    Parameters
    ----------
    settings : WebConfig
    board : Board
    controls : Controls
    store : Store
    metrics : Metrics or None
        None: there is no ``/metrics``.
    name : str
        The station's.
    limits : Limits, optional
        Of each connection.
    retry_s : float, optional
        A port that is taken is tried again so often, seconds; a network that is not up yet too.

    Attributes
    ----------
    url : str or None
        Where it listens; None while it does not.
    problem : str or None
        Why it does not listen.
    listening : threading.Event

    Raises
    ------
    ConfigError
        If others could reach it without a token, or the token's file cannot be used.
    """

    def __init__(
        self,
        settings: WebConfig,
        board: Board,
        controls: Controls,
        store: Store,
        metrics: Metrics | None,
        name: str,
        limits: Limits = LIMITS,
        retry_s: float = RETRY_S,
    ) -> None:
        self._settings, self._board, self._controls = settings, board, controls
        self._store, self._metrics = store, metrics
        self._limits, self._retry_s = limits, retry_s
        self._sessions: Sessions | None = None
        if settings.token_file:
            self._sessions = Sessions(read_token(settings.token_file), name)
        elif not is_loopback(settings.address):
            raise ConfigError(
                f"[web] address {settings.address} can be reached by others: wanted a token_file, "
                "or the address 127.0.0.1"
            )
        self._files = _static_files()
        self._attempts = Attempts()
        self._logged: dict[tuple[str, str], float] = {}
        self._refused_s = -LOG_AGAIN_S
        self.url: str | None = None
        self.problem: str | None = None
        self.listening = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="web", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, wait_s: float) -> bool:
        """End it; False if it has not ended within so many seconds."""
        self._stopping = True
        if not self._thread.is_alive():
            return True
        self._ready.wait(wait_s)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    # The thread

    def _main(self) -> None:
        while not self._stopping:
            try:
                asyncio.run(self._serve())
            except Exception:
                self.url, self.problem = None, "the web server has failed; it begins again"
                self.listening.clear()
                _log.exception("%s in %g s", self.problem, self._retry_s)
                self._ready.clear()
                time.sleep(0 if self._stopping else self._retry_s)

    async def _serve(self) -> None:
        settings = self._settings
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        reading, doing, drawing = (
            Aside("web-read", 3, 64),
            Aside("web-do", 3, 12),
            Aside("web-draw", 1, 64),
        )
        pictures = Pictures(
            self._board, settings.stream_fps, settings.stream_width, settings.viewers, drawing
        )
        # Each viewer may have a page of one event open beside it.
        feed = Feed(self._board, 2 * settings.viewers, reading)
        api = Api(
            self._board, self._controls, self._store, self._metrics,
            pictures, feed, reading, doing, drawing, self._still_admitted,
        )  # fmt: skip
        runner = web.AppRunner(self._build(api), handle_signals=False, access_log=None)
        await runner.setup()
        most = CONNECTIONS_A_VIEWER * settings.viewers + CONNECTIONS_MORE
        connections, loop = Connections(most, self._limits), self._loop
        try:
            server = await self._listen(lambda: Connection(runner.server, connections, loop))
            if server is not None:
                await self._stop.wait()
                server.close()
        finally:
            self.url = None
            self.listening.clear()
            feed.close()
            pictures.close()
            for aside in (reading, doing, drawing):
                aside.close()
            # Streams never end by themselves; what else runs gets a moment.
            await runner.server.shutdown(0.2)
            await runner.cleanup()

    async def _listen(self, factory) -> asyncio.Server | None:
        """Bind the address, again and again; None if it was stopped meanwhile."""
        address, port = self._settings.address, self._settings.port
        while not self._stop.is_set():
            try:
                server = await self._loop.create_server(
                    factory, address, port, reuse_address=True, backlog=128
                )
            except OSError as error:
                problem = f"the page cannot listen on {address}:{port}: {error.strerror or error}"
                if self.problem != problem:
                    _log.error("%s; it is tried again each %g s", problem, self._retry_s)
                self.problem = problem
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), self._retry_s)
                continue
            for listener in server.sockets:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            self.problem = None
            self.url = _url(address, server.sockets[0].getsockname()[1])
            _log.info("the page is at %s", self.url)
            if not is_loopback(address):
                _log.warning(
                    "the page is reached without encryption, the token too: docs/service.md says "
                    "how to put TLS in front"
                )
            self.listening.set()
            return server
        return None

    # Wiring

    def _build(self, api: Api) -> web.Application:
        app = web.Application(middlewares=[self._bounded, self._guarded], client_max_size=MOST_BODY)
        app.on_response_prepare.append(_harden)
        app.add_routes(api.routes())
        app.add_routes(
            [
                web.get("/", self._page("index.html")),
                web.get(r"/events/{id:\d{1,18}}", self._page("event.html")),
                web.get("/login", self._page("login.html")),
                web.get("/favicon.ico", self._page("icon.svg")),
                web.get("/static/{name}", self._static),
                web.get("/api/session", self._session),
                web.post("/login", self._log_in),
                web.post("/logout", self._log_out),
            ]
        )
        return app

    def _page(self, name: str):
        async def handle(request: web.Request) -> web.StreamResponse:
            return self._send(request, name)

        return handle

    async def _static(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        # A lookup among the files read at the start: no path is ever made of it.
        if name not in self._files:
            raise web.HTTPNotFound(text="There is no such page.")
        return self._send(request, name)

    def _send(self, request: web.Request, name: str) -> web.StreamResponse:
        data, etag = self._files[name]
        headers = {"ETag": etag, "Cache-Control": "no-cache"}
        if request.headers.get("If-None-Match") == etag:
            return web.Response(status=304, headers=headers)
        return web.Response(
            body=data, content_type=TYPES[Path(name).suffix], charset="utf-8", headers=headers
        )

    # Who is let in

    @web.middleware
    async def _bounded(self, request: web.Request, handler) -> web.StreamResponse:
        """Keep the connection's limits, and turn whatever is raised into a sentence."""
        connection = request.protocol
        connection.begin()
        try:
            if (request.content_length or 0) > MOST_BODY:
                raise web.HTTPRequestEntityTooLarge(MOST_BODY, request.content_length)
            return await handler(request)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            sentence = error.text if error.text and error.status != 405 else error.reason
            response = refusal(error.status, sentence)
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
            if error.status in (408, 413):
                response.force_close()
            return response
        except ConnectionError:
            raise  # the client has gone
        except Exception as error:
            expected = isinstance(error, EdgeAppError | Busy)
            begun = request.writer.output_size > 0
            if begun or not expected:
                self._log_error(request, error)
            if begun:
                # Half an answer must not be taken for a whole one.
                connection.abort()
                raise ConnectionResetError from None
            if isinstance(error, Busy):
                return refusal(503, "Too much is being asked at once; try again.")
            if expected:
                return refusal(409, str(error))
            return refusal(500, "This went wrong inside the service; its journal says more.")
        finally:
            connection.end()

    @web.middleware
    async def _guarded(self, request: web.Request, handler) -> web.StreamResponse:
        headers, resource = request.headers, request.match_info.route.resource
        if self._sessions is None and not names_loopback(headers.get("Host")):
            return refusal(403, "This page is served to this machine alone, as localhost.")
        if (
            headers.get("Sec-Fetch-Site") == "cross-site"
            and headers.get("Sec-Fetch-Mode") != "navigate"
        ):
            return refusal(403, "Other sites get nothing from this one.")
        by_token = False
        # Asked of what was found to answer, never of the path: there are many ways to write one.
        is_open = resource is not None and resource.canonical in OPEN
        if self._sessions is not None and not is_open:
            given = _bearer(request)
            if given is not None:
                wait = self._wrong_token(request, given)
                if wait is not None:
                    return wait
                by_token = True
            elif not self._in_session(request):
                return _ask_for_token(request)
        if request.method not in ("GET", "HEAD"):
            # A browser sends no bearer token by itself: who has it needs no further sign.
            if not by_token and ACTION_HEADER not in headers:
                return refusal(403, f"Wanted the header {ACTION_HEADER}: 1 with what acts.")
            if not same_origin(headers):
                return refusal(403, "This came from another page.")
        return await handler(request)

    def _in_session(self, request: web.Request) -> bool:
        cookie = request.cookies.get(self._sessions.cookie, "")
        return self._sessions.valid(cookie, time.time())

    def _still_admitted(self, request: web.Request) -> bool:
        """Whether what goes on and on may: it ends with its session; a script's has none."""
        if self._sessions is None or _bearer(request) is not None:
            return True
        return self._in_session(request)

    def _wrong_token(self, request: web.Request, token: str) -> web.Response | None:
        """
        The answer to a wrong token, or to one too many; None if it is the right one.

        The right one is let in however many wrong ones came before it. The address is that of the
        connection: what a client or proxy writes into a header is no address.
        """
        if self._sessions.knows(token):
            return None
        address, now_s = request.remote or "", time.monotonic()
        wait_s = self._attempts.wait_s(address, now_s)
        if wait_s > 0:
            response = refusal(429, f"Too many wrong tokens; wait {wait_s:.0f} seconds.")
            response.headers["Retry-After"] = str(int(wait_s) + 1)
            return response
        self._attempts.wrong(address, now_s)
        if now_s - self._refused_s >= LOG_AGAIN_S:
            self._refused_s = now_s
            _log.warning("a wrong token was given to the page from %s", address)
        return refusal(401, "This is not the token.")

    async def _log_in(self, request: web.Request) -> web.StreamResponse:
        if self._sessions is None:
            return answer({"said": "No token is needed."})
        token = (await read_body(request)).get("token")
        if not isinstance(token, str):
            return refusal(400, "token: wanted a text")
        wrong = self._wrong_token(request, token.strip())
        if wrong is not None:
            return wrong
        response = answer({"said": "Welcome."})
        response.set_cookie(
            self._sessions.cookie,
            self._sessions.issue(time.time()),
            max_age=int(SESSION_S),
            httponly=True,
            samesite="Strict",
            # Behind a proxy that speaks TLS the cookie must not travel without.
            secure=request.headers.get("X-Forwarded-Proto") == "https",
            path="/",
        )
        return response

    async def _session(self, request: web.Request) -> web.StreamResponse:
        return answer({"token": self._sessions is not None})

    async def _log_out(self, request: web.Request) -> web.StreamResponse:
        response = answer({"said": "Goodbye."})
        if self._sessions is not None:
            self._sessions.end(request.cookies.get(self._sessions.cookie, ""), time.time())
            response.del_cookie(self._sessions.cookie, path="/")
        return response

    def _log_error(self, request: web.Request, error: Exception) -> None:
        """Log it with where it came from, but not thousands of times."""
        resource = request.match_info.route.resource
        key = "" if resource is None else resource.canonical, type(error).__name__
        now_s = time.monotonic()
        if now_s - self._logged.get(key, -LOG_AGAIN_S) >= LOG_AGAIN_S:
            self._logged[key] = now_s
            _log.error("the page failed at %s %s", request.method, key[0], exc_info=error)


async def _harden(request: web.BaseRequest, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers[name] = value
    response.headers.setdefault("Cache-Control", "no-store")


def _bearer(request: web.Request) -> str | None:
    """The token that a script sends with a request."""
    given = request.headers.get("Authorization", "")
    return given[7:].strip() if given[:7].lower() == "bearer " else None


def _ask_for_token(request: web.Request) -> web.Response:
    if "text/html" in request.headers.get("Accept", "") and request.method == "GET":
        there = quote(request.path, safe="/")
        location = "/login" if there == "/" else f"/login?next={there}"
        return web.Response(status=303, headers={"Location": location})
    response = refusal(401, "Wanted the token: log in, or send it as a bearer token.")
    response.headers["WWW-Authenticate"] = 'Bearer realm="edge-app"'
    return response


def _static_files() -> dict[str, tuple[bytes, str]]:
    """The page's files by name, each with its ETag."""
    files = {}
    for path in sorted(STATIC.iterdir()):
        if path.suffix in TYPES:
            data = path.read_bytes()
            files[path.name] = data, f'"{hashlib.sha256(data).hexdigest()[:16]}"'
    return files


def _url(address: str, port: int) -> str:
    with contextlib.suppress(ValueError):
        parsed = ipaddress.ip_address(address)
        if parsed.is_unspecified:
            address = socket.gethostname()
        elif parsed.version == 6:
            address = f"[{address}]"
    return f"http://{address}:{port}/"
