"""Display: what keeps a window from opening is found out before OpenCV aborts the process."""

from __future__ import annotations

import socket
import struct
import sys
import threading

import pytest

from edge_app.errors import InputError
from edge_app.live.display import fitted, gui_of, refuse_without_display, screen_size

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no X server")


@pytest.mark.parametrize(
    ("information", "gui"),
    [
        ("  GUI:                           QT5\n    QT:     YES (ver 5.15.19 )\n", "QT5"),
        ("  GUI:                           NONE\n    VTK support:   NO\n", "NONE"),
        ("  GUI:                           GTK3\n    GTK+:  YES (ver 3.24.38)\n", "GTK3"),
        ("  GUI: \n    GTK+:                        YES (ver 2.24.33)\n", "GTK+"),
        ("  GUI: \n    QT:                          NO\n", "NONE"),
        ("", "NONE"),
    ],
)
def test_toolkit_is_read_from_the_build(information, gui):
    assert gui_of(information) == gui


@pytest.mark.parametrize(
    ("environment", "gui", "said"),
    [
        ({"DISPLAY": ":0"}, "NONE", "instead of opencv-python-headless"),
        ({}, "QT5", "neither DISPLAY nor WAYLAND_DISPLAY"),
        ({"DISPLAY": ""}, "GTK3", "neither DISPLAY nor WAYLAND_DISPLAY"),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "QT5", "XWayland"),
        ({"DISPLAY": "nonsense"}, "QT5", "wanted a name such as :0"),
        ({"DISPLAY": ":987"}, "QT5", "nothing answers at DISPLAY=:987"),
        ({"DISPLAY": "localhost:9870.0"}, "QT5", "nothing answers"),
    ],
)
def test_each_reason_is_said_with_a_remedy(environment, gui, said):
    with pytest.raises(InputError, match="edge-app inspect works without a window") as error:
        refuse_without_display(environment, gui)
    assert said in str(error.value)


def test_a_server_that_answers_is_enough():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        server.listen()
        refuse_without_display({"DISPLAY": f"127.0.0.1:{port - 6000}.0"}, "QT5")


def test_gtk_speaks_wayland_itself():
    refuse_without_display({"WAYLAND_DISPLAY": "wayland-0"}, "GTK3")


@pytest.mark.parametrize(
    ("asked", "screen", "full_screen"),
    [
        ((1280, 720), (800, 480), True),
        ((1920, 1080), (1920, 1080), True),
        ((1280, 720), (1920, 1080), False),
        ((1280, 720), (1281, 721), False),
        ((1280, 720), None, False),
    ],
)
def test_a_window_has_room_on_the_screen(asked, screen, full_screen):
    size, full = fitted(asked, screen)
    assert full is full_screen
    if screen is None or screen == (1920, 1080) != asked:
        assert size == asked
    else:
        assert size[0] < screen[0] and size[1] <= 0.86 * screen[1]


def _x_server(server: socket.socket, cookie: bytes) -> None:
    """Answers one connection as the X protocol says, and the others too."""
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        with client:
            head = client.recv(12, socket.MSG_WAITALL)
            names, datas = struct.unpack("<6xHH2x", head)
            padded = [size + -size % 4 for size in (names, datas)]
            said = client.recv(sum(padded), socket.MSG_WAITALL)
            if said[padded[0] : padded[0] + datas] != cookie:
                client.sendall(struct.pack("<BxHHH4s", 0, 11, 0, 1, b"no!!"))
                continue
            vendor = b"somebody"
            body = struct.pack("<16xHHBB10x", len(vendor), 65535, 1, 2) + vendor + bytes(16)
            body += struct.pack("<20xHH16x", 800, 480)
            client.sendall(struct.pack("<BxHHH", 1, 11, 0, len(body) // 4) + body)


@pytest.mark.parametrize("cookie", [b"", b"0123456789abcdef"])
def test_the_screen_tells_its_size_to_whom_it_lets_in(tmp_path, cookie):
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1] - 6000
        thread = threading.Thread(target=_x_server, args=(server, cookie), daemon=True)
        thread.start()
        fields = [b"127.0.0.1", b"%d" % number, b"MIT-MAGIC-COOKIE-1"]
        entries = b""
        for data in (b"another, refused", cookie):
            entries += b"\0\0" + b"".join(
                struct.pack(">H", len(field)) + field for field in (*fields, data)
            )
        (tmp_path / "authority").write_bytes(entries)
        environment = {
            "DISPLAY": f"127.0.0.1:{number}.0",
            "XAUTHORITY": str(tmp_path / "authority"),
        }
        assert screen_size(environment) == (800, 480)
        environment["XAUTHORITY"] = str(tmp_path / "nowhere")
        assert screen_size(environment) == (None if cookie else (800, 480))


@pytest.mark.parametrize("display", ["", "nonsense", ":987"])
def test_a_screen_that_does_not_tell_has_no_size(display):
    assert screen_size({"DISPLAY": display}) is None
