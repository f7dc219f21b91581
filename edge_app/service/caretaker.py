"""
The caretaker: the thread that minds signals, the link `current` and the last check of the masters.

What is to judge next is loaded, verified and tried here, beside the loop, so that the swap itself
costs no frame. What cannot be loaded is refused, loudly, and the old one goes on.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

from edge_app.bundle import Bundle, load_bundle
from edge_app.config import Config
from edge_app.errors import EdgeAppError, InputError
from edge_app.event_reader import EventReader
from edge_app.event_rows import Row
from edge_app.inspector import SeeingInspector
from edge_app.notify import Notifier
from edge_app.service.loop import Loop
from edge_app.service.self_test import self_test

# So often the link and the event store are looked at, seconds.
LOOK_S = 1.0
# Sections of the configuration that a reload puts into force. The rest is built once, at the start.
LIVE_SECTIONS = ("quality", "decision", "heatmap", "enroll")

_log = logging.getLogger(__name__)


class Caretaker:
    """
    Minds what comes from outside.

    Parameters
    ----------
    loop : Loop
    notifier : Notifier
    bundle_path : Path
        A link is followed.
    config : Config
    read_config : callable
        Reads the configuration again.
    build : callable
        Gives an inspector for a bundle and a configuration.
    end : callable
        Ends the loop.
    store : EventReader
        Where the checks of the masters are kept.

    Attributes
    ----------
    config : Config
        In force.
    """

    def __init__(
        self,
        loop: Loop,
        notifier: Notifier,
        bundle_path: Path,
        config: Config,
        read_config: Callable[[], Config],
        build: Callable[[Bundle, Config], SeeingInspector],
        end: Callable[[], None],
        store: EventReader,
    ) -> None:
        self.config = config
        self._loop, self._notifier, self._path = loop, notifier, bundle_path
        self._read_config, self._build, self._end, self._store = read_config, build, end, store
        self._judging = loop.station.inspector.bundle
        self._asked: Path | None = self._judging.path
        # Number of the newest check and what judged then; not known yet.
        self._verified: tuple[int, str] | None = None
        self._changed = threading.Condition()
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._theirs.setblocking(False)
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="caretaker", daemon=True)

    @property
    def judging(self) -> Bundle:
        """The bundle that judges now."""
        return self._judging

    def start(self) -> None:
        """Take over the signals; in the main thread."""
        signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # The byte written to the socket is all that is wanted of it.
            signal.signal(number, lambda *_: None)
        # Before the first frame.
        self._mind_masters()
        self._thread.start()

    def close(self, wait_s: float) -> None:
        """End the thread; in the main thread."""
        self._ending = True
        self.poke()
        self._thread.join(wait_s)
        signal.set_wakeup_fd(-1)

    def poke(self) -> None:
        """Look at once: the link may have changed."""
        try:
            self._theirs.send(b"\0")
        except OSError:
            return  # full: it will look anyway

    def wait_for(self, sha256: str, wait_s: float) -> bool:
        """Whether this bundle judges within so many seconds."""
        self.poke()
        with self._changed:
            return self._changed.wait_for(lambda: self._judging.sha256 == sha256, wait_s)

    # The thread

    def _run(self) -> None:
        while not self._ending:
            ready, _, _ = select.select([self._ours], [], [], LOOK_S)
            numbers = self._ours.recv(64) if ready else b""
            try:
                self._mind(set(numbers))
            # Nothing that goes wrong here may end it: then no signal would be heard any more.
            except Exception:
                _log.exception("the caretaker failed")

    def _mind(self, numbers: set[int]) -> None:
        if ends := numbers & {signal.SIGTERM, signal.SIGINT}:
            _log.info("ending: %s", signal.Signals(min(ends)).name)
            self._ending = True
            self._end()
            return
        if signal.SIGHUP in numbers:
            self._reload()
        else:
            self._follow()
        self._mind_masters()

    def _reload(self) -> None:
        self._notifier.reloading()
        try:
            self._read_again()
        finally:
            # Whatever came of it, systemd waits for this.
            self._notifier.ready()

    def _read_again(self) -> None:
        try:
            read = self._read_config()
            # Nothing else of it may be seen before a restart: a trigger that nobody fires, or a
            # hold that nobody ends.
            config = replace(self.config, **{name: getattr(read, name) for name in LIVE_SECTIONS})
            bundle = load_bundle(self._path)
            self._asked = bundle.path
            self._prepare(bundle, config)
        except EdgeAppError as error:
            self._refuse("reload", error)
            return
        needs = [
            field.name
            for field in fields(Config)
            if getattr(read, field.name) != getattr(config, field.name)
        ]
        said = "configuration and bundle read again"
        if needs:
            wanted = ", ".join(f"[{name}]" for name in needs)
            said += f"; what changed in {wanted} comes into force with a restart"
        self.config = config
        self._loop.note("config", said, bundle_sha256=bundle.sha256)

    def _follow(self) -> None:
        """Prepare what the link points at, if that is another bundle than before."""
        target = Path(os.path.realpath(self._path))
        if target == self._asked:
            return
        self._asked = target
        try:
            self._prepare(load_bundle(target), self.config)
        except EdgeAppError as error:
            self._refuse("bundle", error)

    def _refuse(self, what: str, error: EdgeAppError) -> None:
        name = self._judging.path.name
        said = f"{what} refused: {error}; {name} goes on judging"
        self._loop.note("config", said, logging.ERROR)

    def _prepare(self, bundle: Bundle, config: Config) -> None:
        """Build and try an inspector; the loop takes it when no part is in view."""
        inspector = self._build(bundle, config)
        self_test(inspector)

        mode = self._loop.station.inspector.mode

        def taken() -> None:
            before, self._judging = self._judging, bundle
            if before.sha256 != bundle.sha256:
                kind, said = _change(before, bundle)
                if inspector.mode != mode:
                    said += f"; mode {inspector.mode}, before {mode}"
                self._loop.note(kind, said)
            with self._changed:
                self._changed.notify_all()

        self._loop.tell(lambda: self._loop.use(inspector, taken))

    def _mind_masters(self) -> None:
        """
        After a failed check everything is UNKNOWN until one passes, where that is wanted.

        At the start also where it cannot be known how the last one ended. Later that is as it was
        known to be.
        """
        if not self.config.service.verify_required:
            return
        try:
            newest = self._store.last_of("verify")
            # Under another bundle another check may count: the trial that it has had.
            known = 0 if newest is None else newest.id, self._judging.sha256
            if known == self._verified:
                return
            checks = self._store.walk(kinds=("verify",))
            row = next((row for row in checks if self._counts(row)), None)
        except InputError as error:
            if self._verified is None:
                unread = f"verify: {error}"
                self._loop.tell(lambda: self._loop.distrust(unread))
            return
        self._verified = known
        reason = None if row is None or row.data.get("passed") else f"verify: {row.detail}"
        self._loop.tell(lambda: self._loop.distrust(reason))

    def _counts(self, row: Row) -> bool:
        """Whether a check says something of what judges: one of another bundle does not."""
        return not row.data.get("trial") or row.bundle_sha256 == self._judging.sha256


def _change(before: Bundle, bundle: Bundle) -> tuple[str, str]:
    """Kind and sentence of the event that tells of another bundle."""
    old, new = (b.manifest["threshold"]["value"] for b in (before, bundle))
    same = all(
        before.manifest["files"].get(name) == entry
        for name, entry in bundle.manifest["files"].items()
        if name != "learnt.npz"
    )
    if same and old != new:
        return "threshold", f"threshold {old:.4g} -> {new:.4g} ({bundle.path.name})"
    return "bundle", f"judged by {bundle.path.name} from now on, before by {before.path.name}"
