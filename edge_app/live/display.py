"""
Is there a display that OpenCV can open a window on?

Asked before, because OpenCV does not raise where there is none: Qt aborts the whole process.
"""

from __future__ import annotations

import os
import re
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2

from edge_app.errors import InputError

INSTEAD = "edge-app inspect works without a window"
# A server that answers at all answers within this, seconds.
ANSWER_S = 3.0
# Opening a first window takes a second on a slow board.
PROBE_S = 30.0
# What title bar and panels leave of a screen: on one of 480 lines 67 for both.
USABLE = (0.96, 0.86)
SMALLEST = (320, 240)
_PROBE = """
import sys, cv2
cv2.namedWindow("probe")
cv2.waitKey(1)
cv2.destroyAllWindows()
print("opened", flush=True)
sys.stdin.read()
"""


def gui_of(build_information: str) -> str:
    """
    The window toolkit that OpenCV was built with: 'QT5', 'GTK3', …, or 'NONE'.

    Parameters
    ----------
    build_information : str
        From ``cv2.getBuildInformation()``.
    """
    named = re.search(r"^\s*GUI:[ \t]*(\S*)", build_information, re.MULTILINE)
    if named and named[1]:
        return named[1].upper()
    # Some builds leave the line empty and name the toolkits below it.
    below = re.search(r"^\s*(QT|GTK\+?|WIN32UI|COCOA)\S*:\s+YES", build_information, re.MULTILINE)
    return below[1].upper() if below else "NONE"


def refuse_without_display(
    environment: Mapping[str, str] = os.environ, gui: str | None = None
) -> None:
    """
    Find out whether a window can be opened.

    Parameters
    ----------
    environment : mapping of str to str
    gui : str, optional
        Window toolkit as `gui_of` names it; by default that of the OpenCV in use.

    Raises
    ------
    InputError
        Saying what to do where it cannot.
    """
    gui = gui or gui_of(cv2.getBuildInformation())
    if gui == "NONE":
        raise InputError(
            "this OpenCV was built without windows: install opencv-python instead of "
            f"opencv-python-headless, never both ({INSTEAD})"
        )
    if sys.platform not in ("linux", "freebsd"):
        return
    display, wayland = environment.get("DISPLAY"), environment.get("WAYLAND_DISPLAY")
    if not display and not wayland:
        raise InputError(
            "no display: neither DISPLAY nor WAYLAND_DISPLAY is set; run it on the screen's own "
            f"desktop or over ssh -X ({INSTEAD})"
        )
    if not display and gui.startswith("QT"):
        raise InputError(
            "no display: DISPLAY is not set, and this OpenCV cannot speak Wayland itself: switch "
            f"XWayland on, or install the system's python3-opencv ({INSTEAD})"
        )
    if display and (why := _x_server_silent(display)) is not None:
        raise InputError(
            f"no display: nothing answers at DISPLAY={display} ({why}); run it on the screen's own "
            f"desktop or over ssh -X ({INSTEAD})"
        )


def _x_server_silent(display: str) -> str | None:
    """Why the X server does not answer; None if it does."""
    named = re.fullmatch(r"(?:unix)?(?P<host>.*?):(?P<number>\d+)(?:\.\d+)?", display)
    if named is None:
        return "wanted a name such as :0"
    number = int(named["number"])
    if named["host"]:
        try:
            # X servers listen at 6000 and their number; ssh -X names localhost:10.
            socket.create_connection((named["host"], 6000 + number), ANSWER_S).close()
        except OSError as error:
            return error.strerror or str(error)
        return None
    why = None
    path = f"/tmp/.X11-unix/X{number}"
    for address in (path, f"\0{path}"):
        with socket.socket(socket.AF_UNIX) as asked:
            asked.settimeout(ANSWER_S)
            try:
                asked.connect(address)
            except OSError as error:
                why = why or error.strerror or str(error)
                continue
            return None
    return why


def screen_size(environment: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """
    (width, height) of the X server's screen in pixels; None where it does not tell.

    To be asked while another client is connected: see `Probe`.
    """
    named = re.fullmatch(
        r"(?:unix)?(?P<host>.*?):(?P<number>\d+)(?:\.\d+)?", environment.get("DISPLAY", "")
    )
    if named is None:
        return None
    for name, data in [*_cookies(environment, named["number"].encode()), (b"", b"")]:
        try:
            if (size := _asked_size(named["host"], int(named["number"]), name, data)) is not None:
                return size
        except (OSError, struct.error):
            continue
    return None


def _asked_size(host: str, number: int, name: bytes, data: bytes) -> tuple[int, int] | None:
    """From the reply to the connection setup (X Window System Protocol, section 8)."""
    if host:
        server = socket.create_connection((host, 6000 + number), ANSWER_S)
    else:
        server = socket.socket(socket.AF_UNIX)
    with server:
        server.settimeout(ANSWER_S)
        if not host:
            path = f"/tmp/.X11-unix/X{number}"
            server.connect(path if os.path.exists(path) else f"\0{path}")
        head = struct.pack("<cxHHHHxx", b"l", 11, 0, len(name), len(data))
        server.sendall(head + b"".join(part + bytes(-len(part) % 4) for part in (name, data)))
        with server.makefile("rb") as answer:
            granted, words = struct.unpack("<B5xH", answer.read(8))
            body = answer.read(4 * words)
    if granted != 1:
        return None
    vendor_bytes, formats = struct.unpack("<16xH3xB", body[:22])
    screen = 32 + vendor_bytes + -vendor_bytes % 4 + 8 * formats
    width, height = struct.unpack("<HH", body[screen + 20 : screen + 24])
    return width, height


def _cookies(environment: Mapping[str, str], number: bytes) -> Iterator[tuple[bytes, bytes]]:
    """What may let us in to a display: name and data of each entry of the authority file."""
    named = environment.get("XAUTHORITY")
    try:
        content = (Path(named) if named else Path.home() / ".Xauthority").read_bytes()
    except (OSError, RuntimeError):
        return
    at, fields = 0, []
    while at + 2 <= len(content):
        if not fields:
            at += 2  # the family of the address
        size = int.from_bytes(content[at : at + 2], "big")
        fields.append(content[at + 2 : at + 2 + size])
        at += 2 + size
        if len(fields) == 4:
            _, display, name, data = fields
            fields = []
            if display in (number, b""):
                yield name, data


def fitted(asked: tuple[int, int], screen: tuple[int, int] | None) -> tuple[tuple[int, int], bool]:
    """
    A window that a screen has room for.

    Parameters
    ----------
    asked, screen : tuple of int
        (width, height); None for a screen that is not known.

    Returns
    -------
    size : tuple of int
        With room for a title bar and panels.
    full_screen : bool
        Whether to fill the screen, because it is not larger than the window was to be.
    """
    if screen is None:
        return asked, False
    size = tuple(
        max(min(wanted, int(share * there)), least)
        for wanted, there, share, least in zip(asked, screen, USABLE, SMALLEST, strict=True)
    )
    return size, screen[0] <= asked[0] or screen[1] <= asked[1]


class Probe:
    """
    A window opened in another process, which may abort in our place.

    What refuses us although the server answers, a missing permission or library, is found out so.
    It runs while the bundle is loaded, and stays connected until `close`: where nobody else uses
    the display, an X server starts over as soon as its only client leaves, and a window that opens
    just then stays black.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROBE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def refuse(self) -> None:
        """
        Wait for its window.

        Raises
        ------
        InputError
            If none could be opened.
        """
        answered, _, _ = select.select([self._process.stdout], [], [], PROBE_S)
        if not answered:
            self.close()
            raise InputError(f"no window opens: the display hangs ({INSTEAD})")
        if self._process.stdout.readline():
            return
        _, said = self._process.communicate()
        lines = [line.strip() for line in said.decode(errors="replace").splitlines()]
        # Fonts that Qt misses are no reason; the first line of the others says what is.
        lines = [line for line in lines if line and "font" not in line.lower()]
        why = lines[0] if lines else "no reason given"
        raise InputError(f"no window opens on this display: {why} ({INSTEAD})")

    def close(self) -> None:
        """End it, any number of times."""
        if self._process.poll() is None:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            pipe.close()
        self._process.wait()
