"""Display: what keeps a window from opening is found out before OpenCV aborts the process."""

from __future__ import annotations

import socket
import sys

import pytest

from edge_app.errors import InputError
from edge_app.live.display import gui_of, refuse_without_display

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
