"""
`edge-app run` as a process of its own, with a test in the place of systemd.

The notify socket is a real one; what the service says through it is the tests' clock.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Nothing here takes so long unless it hangs.
LIMIT_S = 60.0


class ServiceProcess:
    """
    Starts the service and listens to it.

    Parameters
    ----------
    folder : Path
        Gets the configuration, the log and the folder ``state``.
    bundle : Path or None
        Is copied to ``state/models`` and made the current one; None: what is there stays.
    config : str
        TOML, over the page on a free port.
    source : str
    watchdog_s : float or None
        Given to the service as systemd does.
    script : Path or None
        A Python file to run in place of ``-m edge_app``; gets the same arguments.
    """

    def __init__(
        self, folder, bundle=None, config="", source="synthetic", watchdog_s=None, script=None
    ):
        self.folder, self.state = folder, folder / "state"
        self.models = self.state / "models"
        if bundle is not None:
            self.install(bundle)
        self.config = folder / "config.toml"
        self.configure(config)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = folder / "notify"
        self._socket.bind(str(path))
        self._heard = threading.Condition()
        self.messages: list[str] = []
        self.fed_s: list[float] = []
        threading.Thread(target=self._listen, daemon=True).start()
        environ = {**os.environ, "NOTIFY_SOCKET": str(path), "OMP_NUM_THREADS": "1"}
        environ["PYTHONPATH"] = str(ROOT)
        if watchdog_s is not None:
            environ["WATCHDOG_USEC"] = str(int(watchdog_s * 1e6))
        start = [str(script)] if script else ["-m", "edge_app"]
        self.log_file = open(folder / "log", "w+b")
        self.process = subprocess.Popen(
            [sys.executable, *start, "run", source, "--state", self.state, "--config", self.config],
            env=environ,
            stdout=self.log_file,
            stderr=self.log_file,
            cwd=ROOT,
        )

    def install(self, bundle, name=None, current=True):
        """Copy a bundle among the models; the link is moved as `activate` moves it."""
        import shutil

        from edge_app.bundle import activate

        target = self.models / (name or bundle.name)
        if not target.exists():
            shutil.copytree(bundle, target)
        if current:
            activate(target)
        return target

    def configure(self, text):
        self.config.write_text(text if "[web]" in text else text + "\n[web]\nport = 0\n")

    def _listen(self):
        while True:
            try:
                message = self._socket.recv(4096).decode()
            except OSError:
                return
            with self._heard:
                self.messages.append(message)
                if "WATCHDOG=1" in message:
                    self.fed_s.append(time.monotonic())
                self._heard.notify_all()

    # Waiting

    def wait(self, is_there: Callable[[], object], what: str, limit_s: float = LIMIT_S):
        """
        What `is_there` gives, as soon as it is true; asked at each message of the service's.

        It says something with every frame, so that there is always a next one while it lives.
        """
        until_s = time.monotonic() + limit_s
        while True:
            found = is_there()
            if found:
                return found
            if self.process.poll() is not None:
                raise AssertionError(f"{what}: the service has ended\n{self.log()}")
            if time.monotonic() > until_s:
                raise AssertionError(f"{what}: not within {limit_s:g} s\n{self.log()}")
            with self._heard:
                self._heard.wait(0.2)

    def ready(self):
        """Wait until it has said so."""
        self.wait(lambda: any("READY=1" in message for message in self.messages), "ready")
        return self

    def wait_state(self, is_so, what, limit_s=LIMIT_S):
        """The page's state as soon as it satisfies."""
        return self.wait(lambda: (s := self.get("/api/state")) and is_so(s) and s, what, limit_s)

    def wait_event(self, kind, after=0, limit_s=LIMIT_S):
        """The first event of a kind with a higher number than `after`."""

        def look():
            found = [row for row in self.store.latest(500, kinds=[kind]) if row.id > after]
            return found and found[-1]

        return self.wait(look, f"an event {kind}", limit_s)

    # Looking

    @property
    def store(self):
        from edge_app.event_reader import EventReader

        return EventReader(self.state / "events")

    def log(self):
        return (self.folder / "log").read_text(errors="replace")

    @property
    def url(self):
        line = self.wait(
            lambda: [x for x in self.log().splitlines() if "the page is at " in x], "the page"
        )[0]
        return line.rpartition(" ")[2].rstrip("/")

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=LIMIT_S) as answer:
            return json.loads(answer.read())

    def post(self, path, **body):
        """Status and JSON answer of an action."""
        request = urllib.request.Request(
            self.url + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "X-Edge-App": "1", "Origin": self.url},
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    # Ending

    def end(self, number=signal.SIGTERM):
        """Tell it to end; its exit code and the seconds that it took."""
        started = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(LIMIT_S)
        return code, time.monotonic() - started

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._socket.close()
        self.log_file.close()
