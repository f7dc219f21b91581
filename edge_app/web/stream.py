"""
What goes on and on: the picture (Motion JPEG) and the state (Server-Sent Events).

Both are made once for all that look, and only while somebody does. A viewer that is too slow for
every picture gets the newest when it is ready for one; nothing is queued for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from edge_app.event_rows import plain
from edge_app.web.aside import Aside
from edge_app.web.contract import Board

# Of the pictures that are shown: above it they grow faster than they gain.
JPEG_QUALITY = 80
# The state is looked at so often, seconds, and told when it has changed, or after `TELL_S`.
LOOK_S, TELL_S = 0.25, 1.0
# What is new to a person; the other figures change all the time.
TELLING = (
    "verdict", "reason", "hold", "scoring", "last_part", "last_event", "job", "threshold", "bundle"
)  # fmt: skip
# A viewer that has nothing to be sent is looked after so often, seconds: it may have gone, or been
# logged out.
GONE_S = 1.0
BOUNDARY = "picture"

_log = logging.getLogger("edge_app.web")


class Full(Exception):
    """As many look already as may."""


def as_json(value: Any) -> str:
    """JSON, in which a number that is none is null."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(plain(value), ensure_ascii=False, separators=(",", ":"))


def encode(picture_bgr: np.ndarray, most_width: int, quality: int = JPEG_QUALITY) -> bytes:
    """
    A picture as JPEG.

    Parameters
    ----------
    picture_bgr : ndarray of uint8, shape (height, width, 3)
    most_width : int
        A wider one is made smaller to it, pixels.
    quality : int
        0 to 100.
    """
    height, width = picture_bgr.shape[:2]
    if width > most_width:
        size = (most_width, max(round(height * most_width / width), 1))
        picture_bgr = cv2.resize(picture_bgr, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", picture_bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError("the picture cannot be written as JPEG")
    return data.tobytes()


@dataclass(frozen=True)
class Told:
    """
    One thing for all that look.

    Attributes
    ----------
    number : int
        Rises by one.
    data : bytes
        For who had the one before it.
    whole : bytes
        For who had not.
    """

    number: int
    data: bytes
    whole: bytes


class Teller:
    """
    Tells all that look the newest of something, and works only while somebody looks.

    Parameters
    ----------
    most : int
        How many may look at a time.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.looking = 0
        self._newest: Told | None = None
        self._told = asyncio.Event()
        self._task: asyncio.Task | None = None

    async def _run(self) -> None:
        raise NotImplementedError

    def tell(self, data: bytes, whole: bytes | None = None) -> None:
        number = 0 if self._newest is None else self._newest.number + 1
        self._newest = Told(number, data, data if whole is None else whole)
        self._told.set()
        self._told = asyncio.Event()

    @contextlib.asynccontextmanager
    async def look(self) -> AsyncIterator[None]:
        """
        Look, for as long as the context lasts.

        Raises
        ------
        Full
            If `most` look already.
        """
        if self.looking >= self.most:
            raise Full
        self.looking += 1
        if self._task is None or self._task.done():
            self._newest = None
            self._task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            self.looking -= 1
            if not self.looking:
                self._task.cancel()

    async def after(self, number: int | None) -> Told | None:
        """The newest that is not this one; None if there is none within `GONE_S`."""
        newest, told = self._newest, self._told
        if newest is None or newest.number == number:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(told.wait(), GONE_S)
            newest = self._newest
        return None if newest is None or newest.number == number else newest

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()


class Pictures(Teller):
    """
    The picture, encoded once for all.

    Parameters
    ----------
    board : Board
    fps : float
        Most pictures a second.
    width : int
        They are made smaller to it, pixels.
    most : int
    aside : Aside
    """

    def __init__(self, board: Board, fps: float, width: int, most: int, aside: Aside) -> None:
        super().__init__(most)
        self._board, self._every_s, self._width, self._aside = board, 1 / fps, width, aside

    @contextlib.asynccontextmanager
    async def look(self) -> AsyncIterator[None]:
        async with super().look():
            self._board.watch()
            try:
                yield
            finally:
                self._board.unwatch()

    async def still(self) -> bytes | None:
        """The newest as JPEG, at its own size; None where there is none."""
        picture = self._board.picture
        if picture is None:
            return None
        return await self._aside.call(encode, picture[1], picture[1].shape[1])

    async def _run(self) -> None:
        last, failing = None, False
        while True:
            begun_s = time.monotonic()
            try:
                picture = self._board.picture
                if picture is not None and picture[0] != last:
                    number, picture_bgr, verdict = picture
                    jpeg = await self._aside.call(encode, picture_bgr, self._width)
                    last = number
                    self.tell(_part(jpeg, number, verdict))
                failing = False
            except Exception as error:
                if not failing:
                    _log.warning("the page's picture cannot be made: %s", error)
                failing = True
            await asyncio.sleep(max(self._every_s - (time.monotonic() - begun_s), 0.005))


def _part(jpeg: bytes, number: int, verdict: str) -> bytes:
    """One part of the stream, with the boundary behind it: a browser shows it without the next."""
    head = (
        f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n"
        f"X-Number: {number}\r\nX-Verdict: {verdict}\r\n\r\n"
    )
    return head.encode() + jpeg + f"\r\n--{BOUNDARY}\r\n".encode()


class Feed(Teller):
    """
    The state, as Server-Sent Events.

    Each says the whole state but for the history, of which it says what is new since the one before
    it; who did not have that one is told the whole history.

    Parameters
    ----------
    board : Board
    most : int
    aside : Aside
    """

    def __init__(self, board: Board, most: int, aside: Aside) -> None:
        super().__init__(most)
        self._board, self._aside = board, aside

    async def _run(self) -> None:
        last: tuple[Any, ...] | None = None
        last_n, length, told_s, failing = -1, 0, -math.inf, False
        while True:
            begun_s = time.monotonic()
            try:
                state = await self._aside.call(self._board.snapshot)
                history = state.pop("history", [])
                newest_n = history[-1][0] if history else -1
                telling = (newest_n, *(state.get(key) for key in TELLING))
                if telling != last or begun_s - told_s >= TELL_S:
                    # A history that begins again, as with another bundle, is told whole.
                    again = newest_n < last_n or len(history) < length
                    news = history if again else [row for row in history if row[0] > last_n]
                    told = as_json(state)
                    self.tell(_event(told, news, again), _event(told, history, True))
                    last, last_n, length, told_s = telling, newest_n, len(history), begun_s
                failing = False
            except Exception as error:
                if not failing:
                    _log.warning("the page's state cannot be told: %s", error)
                failing = True
            await asyncio.sleep(max(LOOK_S - (time.monotonic() - begun_s), 0.01))


def _event(state: str, history: list, whole: bool) -> bytes:
    begin = "true" if whole else "false"
    return f'data: {{"whole":{begin},"history":{as_json(history)},"state":{state}}}\n\n'.encode()
