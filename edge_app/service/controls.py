"""
What a person can do from the page: learn, revert, set, start and stop.

Each call may take seconds and is made in a thread of the page's. What changes the bundle writes a
child of it and points the link `current` at that, as ``enroll --activate`` does; the caretaker sees
to the rest. So there is one way in which another bundle comes to judge, and every step can be taken
back.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2

from edge_app.bundle import MANIFEST, Bundle, activate, load_bundle
from edge_app.config import Config
from edge_app.dial import Dial
from edge_app.errors import BundleError, InputError
from edge_app.event_rows import FALSE_ALARM, TRUE_DEFECT
from edge_app.inspector import Inspector, build_encoder
from edge_app.knowledge import (
    Knowledge,
    Teacher,
    forgotten,
    known_from,
    with_threshold,
    write,
)
from edge_app.manifest import read_manifest
from edge_app.records import Frame, Verdict
from edge_app.service.board import Board
from edge_app.service.caretaker import Caretaker
from edge_app.service.loop import Loop
from edge_app.store import EventStore

# A new bundle judges after the part in view, and the self-test of it, seconds.
TAKEN_S = 20.0
# How the record of a bundle begins that was written here.
BY_PAGE = "edge-app run "
# Kinds of event that name bundles.
NAMING = ("learn", "revert", "threshold", "bundle", "storage", "config", "verify")

_log = logging.getLogger(__name__)


class Controls:
    """
    The page's hands.

    Parameters
    ----------
    loop : Loop
    caretaker : Caretaker
    board : Board
    store : EventStore
    bundle_path : Path
        As configured; only one that ends in a link can be changed from the page.
    threads : int
    fire : callable or None
        Announces a part; None where a part is not opened by the page.
    """

    def __init__(
        self,
        loop: Loop,
        caretaker: Caretaker,
        board: Board,
        store: EventStore,
        bundle_path: Path,
        threads: int,
        fire: Callable[[], bool] | None,
    ) -> None:
        self._loop, self._caretaker, self._board, self._store = loop, caretaker, board, store
        self._path, self._threads, self._fire = bundle_path, threads, fire
        self._at_work = threading.Lock()
        # Names given since the start: an event may not have reached the disk yet.
        self._named: set[str] = set()

    @property
    def _config(self) -> Config:
        return self._caretaker.config

    # Teaching

    def learn_good(self, event_id: int) -> str:
        """
        Learn the picture of an NG event as a good part that was called NG.

        Raises
        ------
        InputError
            If there is no such picture, it cannot be learnt, what is learnt would still call it NG,
            or the threshold would rise too far.
        """
        with self._working("learning a false alarm"):
            frame = self._evidence(event_id)
            bundle = self._judging()
            knowledge = known_from(bundle)
            said = forgotten(knowledge)
            teacher = Teacher(build_encoder(bundle, self._threads), self._config.enroll)
            learnt = teacher.more(knowledge, frame, True, 0, self._progress)
            first = self._refuse_a_rise(bundle, learnt.bundle)
            verdict = self._verdict_on(frame, learnt.bundle)
            if verdict is not Verdict.OK:
                raise InputError(f"event {event_id}: even learnt as good it would be {verdict}")
            learnt = _remembering(learnt, first)
            child = self._write(learnt, bundle, "learnt", ["run", f"(event {event_id} is good)"])
            detail = (
                f"event {event_id} learnt as a good part: {child.path.name} judges, "
                f"threshold {_threshold(bundle):.4g} -> {_threshold(child):.4g}{said}"
            )
            self._told("learn", detail, bundle, child, event=event_id)
            unmarked = self._kept(lambda: self._store.set_mark(event_id, FALSE_ALARM))
            return self._in_force(child, detail + unmarked)

    def mark_defect(self, event_id: int) -> str:
        """Note that an event was a true defect; nothing is learnt from it."""
        row = self._row(event_id)
        self._store.set_mark(event_id, TRUE_DEFECT)
        said = f"event {event_id} marked as a true defect"
        if row.mark == FALSE_ALARM:
            said += "; it stays among the good parts until the bundle is reverted"
        self._loop.note("mark", said, data={"event": event_id})
        return said

    def revert(self, sha256: str) -> str:
        """
        Judge by an earlier bundle again.

        Raises
        ------
        InputError
            If there is none of this hash beside the link.
        """
        with self._working("reverting"):
            bundle = self._judging()
            found = {manifest["manifest_sha256"]: folder for folder, manifest in self._all()}
            folder = found.get(sha256)
            if folder is None:
                raise InputError(f"no bundle {sha256[:12]} in {self._path.parent}")
            if sha256 == bundle.sha256:
                raise InputError(f"{folder.name} judges already")
            wanted = load_bundle(folder)
            activate(folder)
            detail = f"back to {folder.name}, before by {bundle.path.name}"
            self._told("revert", detail, bundle, wanted)
            unmarked = self._kept(lambda: self._unlearn(wanted))
            return self._in_force(wanted, detail + unmarked)

    def bundles(self) -> list[dict[str, Any]]:
        """Those that can judge, the newest first: sha256, name, made, what, in_use, threshold."""
        judging = self._caretaker.judging.sha256
        found = [
            {
                "sha256": manifest["manifest_sha256"],
                "name": folder.name,
                "made": manifest["made"]["at"],
                "what": manifest["made"]["command"],
                "in_use": manifest["manifest_sha256"] == judging,
                "threshold": manifest["threshold"]["value"],
            }
            for folder, manifest in self._all()
        ]
        return sorted(found, key=lambda bundle: _moment(bundle["made"]), reverse=True)

    # The threshold

    def threshold(self) -> dict[str, Any]:
        """
        Where it stands, and what good parts say of where it could.

        Returns
        -------
        dict
            `value`, `calibrated`; `share` of good parts expected to be rejected, from `low` to
            `high` in 95 of 100 cases; `options`, a list of `value` and `share`.
        """
        dial = self._dial()
        share, low, high = dial.expected()
        return {
            "value": dial.value,
            "calibrated": dial.calibrated,
            "share": share,
            "low": low,
            "high": high,
            "options": [
                {"value": value, "share": replace(dial, value=value).expected()[0]}
                for value in dial.stops
            ],
        }

    def set_threshold(self, value: float) -> str:
        """
        Judge by another threshold.

        Raises
        ------
        InputError
            If it is not between the lowest and the highest that `threshold` offers.
        """
        with self._working("setting the threshold"):
            bundle, stops = self._judging(), self._dial().stops
            if not stops[0] <= value <= stops[-1]:
                raise InputError(
                    f"threshold {value:.4g}: wanted one from {stops[0]:.4g} to {stops[-1]:.4g}, "
                    "as far as the good parts reach"
                )
            if value == _threshold(bundle):
                raise InputError(f"the threshold is {value:.4g} already")
            moved = replace(
                known_from(bundle), bundle=with_threshold(bundle, value), taught=("threshold",)
            )
            child = self._write(moved, bundle, "threshold", ["run", f"(threshold {value:.6g})"])
            detail = f"threshold set: {_threshold(bundle):.4g} -> {value:.4g} ({child.path.name})"
            return self._in_force(child, detail)

    # The rest

    def take_picture(self) -> str:
        """Keep the frame in view as an event."""
        frame = self._loop.last_frame
        if frame is None:
            raise InputError("no picture to keep: the camera gives none")
        self._loop.note("picture", "picture taken by hand", frame_bgr=frame.frame_bgr)
        return "picture taken"

    def start(self) -> str:
        """Judge again."""
        return self._score(None, "inspection started by hand")

    def stop(self) -> str:
        """Judge nothing: everything is UNKNOWN until somebody starts it again, or a restart."""
        return self._score("stopped: by hand", "inspection stopped by hand")

    def trigger(self) -> bool:
        """
        Announce a part; False if it is the bounce of one just announced.

        Raises
        ------
        InputError
            If parts are not opened by the page here.
        """
        if self._fire is None:
            raise InputError('the page triggers nothing: [trigger] kind is not "http"')
        return self._fire()

    def _score(self, reason: str | None, detail: str) -> str:
        if self._board.scoring is (reason is None):
            raise InputError(
                f"the inspection is {'running' if reason is None else 'stopped'} already"
            )
        self._loop.tell(lambda: self._loop.stop_scoring(reason))
        # At once, so that the answer to the click shows it.
        self._board.scoring = reason is None
        self._loop.note("scoring", detail)
        return detail

    # Inside

    @contextmanager
    def _working(self, what: str) -> Iterator[None]:
        """One change of the bundle at a time."""
        if not self._at_work.acquire(blocking=False):
            job = self._board.job
            raise InputError(f"busy: {job['what'] if job else 'another change'}; try again")
        self._board.job = {"what": what, "stage": "", "done": 0, "of": 0}
        try:
            yield
        finally:
            self._board.job = None
            self._at_work.release()

    def _progress(self, stage: str, done: int, of: int) -> None:
        self._board.job = {**(self._board.job or {}), "stage": stage, "done": done, "of": of}

    def _judging(self) -> Bundle:
        """The bundle that judges, if it can be changed."""
        if not self._path.is_symlink():
            raise InputError(
                f"{self._path} is a bundle and no link, so it is not changed from here: "
                f"edge-app enroll --activate makes a link, [service] bundle names it"
            )
        return self._caretaker.judging

    def _row(self, event_id: int) -> Any:
        row = self._store.get(event_id)
        if row is None:
            raise InputError(f"there is no event {event_id}")
        return row

    def _evidence(self, event_id: int) -> Frame:
        """The frame of an NG event, as the camera gave it."""
        row = self._row(event_id)
        if row.verdict is not Verdict.NG:
            raise InputError(f"event {event_id} is no part that was called NG")
        part = self._caretaker.judging.manifest["part"]
        by = {manifest["manifest_sha256"]: manifest["part"] for _, manifest in self._all()}
        if by.get(row.bundle_sha256, part) != part:
            raise InputError(
                f"event {event_id} is of {by[row.bundle_sha256]}, and what judges now is of {part}"
            )
        path = self._store.picture(event_id, "frame")
        picture = None if path is None else cv2.imread(str(path), cv2.IMREAD_COLOR)
        if picture is None:
            raise InputError(f"event {event_id} has no picture any more")
        return Frame(0, path.name, picture)

    def _kept(self, mark: Callable[[], None]) -> str:
        """
        Mark events, and what to add where that fails.

        The other bundle judges by then: an error would say that it does not.
        """
        try:
            mark()
        except InputError as error:
            _log.warning("marks of events could not be changed: %s", error)
            return f"; that is done, but the mark could not be kept: {error}"
        return ""

    def _unlearn(self, judging: Bundle) -> None:
        """Take the mark from false alarms that what judges now has not learnt."""
        parents = {m["manifest_sha256"]: m["parent_sha256"] for _, m in self._all()}
        line, sha256 = set(), judging.sha256
        while sha256 is not None and sha256 not in line:
            line.add(sha256)
            sha256 = parents.get(sha256)
        for row in self._store.walk(None, ["learn"]):
            event = self._store.get(int(row.data.get("event", 0)))
            if event is not None and event.mark == FALSE_ALARM and row.data.get("to") not in line:
                self._store.set_mark(event.id, None)

    def _verdict_on(self, frame: Frame, bundle: Bundle) -> Verdict:
        """What a bundle says of one picture."""
        inspector = Inspector(
            bundle, self._config.decision, "single", self._threads, heatmaps=False
        )
        (result,) = inspector.inspect(frame)
        return result.decision.verdict

    def _refuse_a_rise(self, before: Bundle, after: Bundle) -> float:
        """
        Raise `InputError` if false alarms have raised the threshold too far, all taken together.

        A threshold that rises a little with each of them lets more and more defects pass.
        """
        first = before.manifest["threshold"].get("before_alarms", _threshold(before))
        most = self._config.service.most_threshold_rise
        value = _threshold(after)
        if value > first * most:
            raise InputError(
                f"learning it would raise the threshold from {_threshold(before):.4g} to "
                f"{value:.4g}, more than {most:g} times the {first:.4g} before the first false "
                "alarm: defects would pass. Enroll the part anew if it has changed"
            )
        return first

    def _write(self, knowledge: Knowledge, parent: Bundle, what: str, typed: list[str]) -> Bundle:
        # Named after the first of its line: nut, nut-learnt-20260131T120000.
        line = re.sub(r"-(learnt|threshold)(-[0-9T]+)?$", "", parent.path.name)
        folder = self._new_folder(f"{line}-{what}", time.time())
        child = write(knowledge, folder, parent.manifest["part"], parent.sha256, typed)
        activate(child.path)
        self._drop_old(child)
        return child

    def _new_folder(self, name: str, now_s: float) -> Path:
        """
        A folder named by the time, in UTC, as none was before, nor any that an event tells of.

        An event of a bundle that was given up would seem to be of the new one. A board without a
        clock battery may live through an hour twice.
        """
        told = self._told_of(name) | self._named
        while True:
            stamp = datetime.fromtimestamp(now_s, UTC).strftime("%Y%m%dT%H%M%S")
            folder = self._path.parent / f"{name}-{stamp}"
            if folder.name not in told and not os.path.lexists(folder):
                self._named.add(folder.name)
                return folder
            now_s += 1

    def _told_of(self, name: str) -> set[str]:
        """Names of bundles that begin so, of all that events tell of."""
        found: set[str] = set()
        try:
            for row in self._store.walk(None, NAMING):
                found.update(re.findall(rf"{re.escape(name)}-[0-9T]+", row.detail))
        except InputError as error:
            # The time alone is hardly ever the same twice.
            _log.warning("names of earlier bundles cannot be read: %s", error)
        return found

    def _drop_old(self, judging: Bundle) -> None:
        """
        Give up the oldest of the bundles that the page wrote, beyond those that are kept.

        One of somebody else's making is never touched. A folder loses its manifest first: what is
        left of it, should the program stop there, is no bundle any more.
        """
        written = [
            (folder, manifest)
            for folder, manifest in self._all()
            if manifest["made"]["command"].startswith(BY_PAGE)
            and manifest["manifest_sha256"] != judging.sha256
        ]
        # Two may be of one second; the folder's own time tells them apart.
        written.sort(
            key=lambda found: (_moment(found[1]["made"]["at"]), found[0].stat().st_mtime_ns)
        )
        excess = len(written) + 1 - self._config.service.keep_bundles
        for folder, _ in written[: max(excess, 0)]:
            try:
                (folder / MANIFEST).unlink()
                shutil.rmtree(folder)
            except OSError as error:
                _log.warning("%s: cannot be given up: %s", folder, error.strerror)
                return
            self._loop.note("storage", f"bundle {folder.name} given up, one of the oldest")

    def _told(self, kind: str, detail: str, before: Bundle, after: Bundle, **data: Any) -> None:
        thresholds = {"before": _threshold(before), "after": _threshold(after)}
        data |= {"from": before.sha256, "to": after.sha256, "threshold": thresholds}
        self._loop.note(kind, detail, bundle_sha256=after.sha256, data=data)

    def _in_force(self, bundle: Bundle, detail: str) -> str:
        """The sentence for the page, once the bundle judges."""
        if self._caretaker.wait_for(bundle.sha256, TAKEN_S):
            return detail
        return f"{detail}; it does not judge yet: see the journal"

    def _dial(self) -> Dial:
        bundle = self._caretaker.judging
        return Dial.of(bundle.reference["scores"], bundle.manifest["threshold"])

    def _all(self) -> list[tuple[Path, dict[str, Any]]]:
        """Bundles beside the link that know a part; one that cannot be read is none."""
        folder = (
            self._path.parent if self._path.is_symlink() else self._caretaker.judging.path.parent
        )
        found = []
        for manifest_file in sorted(folder.glob(f"[!.]*/{MANIFEST}")):
            if manifest_file.parent.is_symlink():
                continue
            try:
                manifest = read_manifest(manifest_file)
            except BundleError:
                continue
            if manifest["threshold"] is not None:
                found.append((manifest_file.parent, manifest))
        return found


def _threshold(bundle: Bundle) -> float:
    return float(bundle.manifest["threshold"]["value"])


def _remembering(knowledge: Knowledge, first: float) -> Knowledge:
    """With the threshold from before the first false alarm in it, for whoever learns the next."""
    bundle = knowledge.bundle
    section = {**bundle.manifest["threshold"], "before_alarms": first}
    manifest = {**bundle.manifest, "threshold": section}
    return replace(knowledge, bundle=replace(bundle, manifest=manifest), taught=("a false alarm",))


def _moment(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return time.time()
