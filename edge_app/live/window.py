"""
The window itself; the only file that calls OpenCV's window functions.

All of them are called in one thread, the main one, as every toolkit wants it. That thread draws
nothing: another one does, so that it is nearly always waiting for keys. OpenCV's Qt window keeps
one key only until it is asked for, and of two that are typed while the thread is away the first
would be lost. So what was typed is fetched right before and right after each picture: under Xvfb on
two cores at 1920 x 1080, of keys typed 30 ms to 100 ms apart, 0 of 600 were lost with nothing else
running and 0 of 600 with two busy processes beside it. It cannot be ruled out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import cv2
import numpy as np

from edge_app.live import view
from edge_app.live.display import SMALLEST
from edge_app.live.scene import Shown
from edge_app.live.session import Session
from edge_app.slot import Slot

TITLE = "edge-app"
# Between two looks for new pictures, milliseconds.
WAIT_MS = 10
# Drawn so often at most, a second: a film looks smooth, and a board stays cool.
MOST_FPS = 25.0
# Without anything new it is drawn so often, seconds: messages go, ages grow.
REDRAW_S = 0.25
# A window manager makes a window full screen within this, seconds; where there is none, we do.
FILL_S = 0.5
_MOUSE = {
    cv2.EVENT_LBUTTONDOWN: "down",
    cv2.EVENT_MOUSEMOVE: "moved",
    cv2.EVENT_LBUTTONUP: "up",
}


class _Painter:
    """Draws in a thread of its own."""

    def __init__(self) -> None:
        self.orders: Slot[tuple[Shown, tuple[int, int]]] = Slot()
        self.pictures: Slot[tuple[np.ndarray, view.Layout]] = Slot()
        self.problem: Exception | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="painter", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        while not self._closing.is_set():
            order = self.orders.take(0.1)
            if order is None:
                continue
            shown, size = order
            try:
                where = view.layout(size, view.frame_shape(shown))
                self.pictures.put((view.draw(shown, size), where))
            except Exception as error:
                self.problem = error
                return


def run(
    session: Session,
    size: tuple[int, int],
    screen: tuple[int, int] | None,
    opened: Callable[[], None],
) -> None:
    """
    Show the session in a window until it is over or the window is closed.

    Parameters
    ----------
    session : Session
    size, screen : tuple of int
        (width, height) of the window and of the screen, where that is known.
    opened : callable
        Called when the window shows its first picture.
    """
    cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_FREERATIO | cv2.WINDOW_GUI_NORMAL)
    cv2.resizeWindow(TITLE, *size)
    painter = _Painter()
    where: view.Layout | None = None

    def mouse(event: int, x: int, y: int, flags: int, _: object) -> None:
        what = _MOUSE.get(event)
        if what is not None and where is not None:
            box = where.picture
            session.mouse(what, (x - box.x) / box.w, (y - box.y) / box.h)

    cv2.setMouseCallback(TITLE, mouse)
    try:
        ordered_s, full_screen, shown_once, pressed = 0.0, False, False, False
        filled_s = None
        while not session.over:
            new = session.tick()
            now_s = time.monotonic()
            since_s = now_s - ordered_s
            if since_s >= REDRAW_S or (new or pressed) and since_s >= 1 / MOST_FPS:
                painter.orders.put((session.shown(), _size(size)))
                ordered_s = now_s
            if painter.problem is not None:
                raise painter.problem
            pressed = False
            drawn = painter.pictures.take()
            if drawn is not None:
                # What was typed meanwhile is fetched before the picture takes its time.
                pressed = _take_keys(session, 1)
                if shown_once and _gone():
                    return
                picture, where = drawn
                cv2.imshow(TITLE, picture)
                if not shown_once:
                    opened()
                    session.opened(picture.shape[1], picture.shape[0])
                shown_once = True
            pressed |= _take_keys(session, WAIT_MS)
            if shown_once and _gone():
                return
            if session.full_screen != full_screen:
                full_screen = session.full_screen
                _set_full_screen(full_screen)
                filled_s = now_s if full_screen else None
                if not full_screen:
                    cv2.resizeWindow(TITLE, *size)
            elif filled_s is not None and now_s - filled_s > FILL_S:
                filled_s = None
                if screen is not None and _size(size) != screen:
                    cv2.resizeWindow(TITLE, *screen)
    except cv2.error:
        # Closed by its frame's button while it was asked something.
        if not _gone():
            raise
    finally:
        painter.close()
        cv2.destroyAllWindows()


def _take_keys(session: Session, wait_ms: int) -> bool:
    """Press what is typed, until nothing is left; whether there was anything."""
    pressed = False
    while (code := cv2.waitKeyEx(wait_ms)) != -1:
        session.press(code)
        pressed, wait_ms = True, 1
    return pressed


def _gone() -> bool:
    """Whether the window was closed by its frame's button, or its server is gone."""
    try:
        return cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1
    except cv2.error:
        # Qt's has no window left that it could ask.
        return True


def _size(asked: tuple[int, int]) -> tuple[int, int]:
    """(width, height) that the window has now."""
    _, _, width, height = cv2.getWindowImageRect(TITLE)
    if width < 1 or height < 1:
        return asked
    return max(width, SMALLEST[0]), max(height, SMALLEST[1])


def _set_full_screen(on: bool) -> None:
    state = cv2.WINDOW_FULLSCREEN if on else cv2.WINDOW_NORMAL
    cv2.setWindowProperty(TITLE, cv2.WND_PROP_FULLSCREEN, state)
