"""Blocking calls of the asynchronous server, on threads of their own."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any


class Busy(Exception):
    """Too many calls wait already."""


class Aside:
    """
    Runs blocking calls on a few threads.

    Unlike those of `concurrent.futures`, they are not waited for when the process ends: learning
    that takes a minute must not hold up a stop.

    Parameters
    ----------
    name : str
        Of the threads.
    threads : int
    most : int
        Calls that may wait or run at a time.
    """

    def __init__(self, name: str, threads: int, most: int) -> None:
        self._name, self._wanted, self._most = name, threads, most
        self._calls: queue.SimpleQueue[tuple[asyncio.Future, Callable, tuple] | None]
        self._calls = queue.SimpleQueue()
        self._threads = 0
        self._open = 0

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """
        What `function(*args)` returns or raises.

        Raises
        ------
        Busy
            If `most` calls wait or run already.
        """
        if self._open >= self._most:
            raise Busy
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        if self._threads < min(self._wanted, self._open + 1):
            self._threads += 1
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        self._open += 1
        self._calls.put((future, function, args))
        # A caller that is cancelled leaves the call running: it counts until it has ended.
        return await asyncio.shield(future)

    def close(self) -> None:
        """Let the threads end when what they do is done."""
        for _ in range(self._threads):
            self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function, args = call
            result, error = None, None
            try:
                result = function(*args)
            except Exception as raised:
                error = raised
            # The loop is closed where the server was stopped meanwhile.
            with contextlib.suppress(RuntimeError):
                future.get_loop().call_soon_threadsafe(self._done, future, result, error)

    def _done(self, future: asyncio.Future, result: Any, error: Exception | None) -> None:
        self._open -= 1
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
            # Where the caller has gone nobody asks for it.
            future.exception()
