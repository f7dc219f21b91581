"""
`edge-app` whose camera, or whose encoder, hangs for ever once a file says so.

A file ``camera`` or ``stage`` in the folder named by HANG_DIR makes that call never return.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from edge_app import cli, sources
from edge_app.inspector import Inspector
from edge_app.sources.synthetic import SyntheticDevice

FOLDER = Path(os.environ["HANG_DIR"])


def hang_if_told(what: str) -> None:
    if (FOLDER / what).exists():
        threading.Event().wait()


class HangingDevice(SyntheticDevice):
    def _read(self):
        hang_if_told("camera")
        return super()._read()


look = Inspector.look


def hanging_look(self, *args, **kwargs):
    hang_if_told("stage")
    return look(self, *args, **kwargs)


Inspector.look = hanging_look
sources.CAMERAS = (("hanging", lambda m, s: HangingDevice(None, s)), *sources.CAMERAS)
sys.exit(cli.main())
