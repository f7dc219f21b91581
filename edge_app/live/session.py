"""
A session at the window: what each key does, and all that is remembered from key to key.

It draws nothing, opens no window and has no thread of its own; the window calls `press`, `mouse`,
`tick` and `shown`. What takes time is handed to threads.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge_app.align import Aligner, read_alignment
from edge_app.bundle import Bundle
from edge_app.config import LiveConfig
from edge_app.dial import Dial
from edge_app.enrol import LEAST_IMAGES
from edge_app.errors import InputError
from edge_app.hand import Hand, Outcome
from edge_app.heatmap import overlay
from edge_app.knowledge import (
    Knowledge,
    Teacher,
    forgotten,
    free_folder,
    knows_empty,
    limits_stay,
    with_threshold,
    write,
)
from edge_app.live.journal import Journal
from edge_app.live.keys import key_of
from edge_app.live.scene import Scene, Shown
from edge_app.live.worker import LiveInspector, Worker
from edge_app.preprocess import Preprocessing, prepare, unusable
from edge_app.presence import empty_view_of, learn_empty_view, locate
from edge_app.records import Frame
from edge_app.sinks.jsonl import as_line

HEATMAP_MODES = ("auto", "always", "off")
_MODE_WORDS = {"auto": "on NG only", "always": "always", "off": "off"}
# What was learnt can be undone so many times; each step keeps a reference of some megabytes.
MOST_UNDO = 10
# A region smaller than this share of a side was a slip of the hand.
LEAST_REGION = 0.05
# A sentence stays so long, seconds: to be read twice.
MESSAGE_S = 5.0
# Pictures of the empty station that are kept.
MOST_EMPTY = 10
BUSY_INSPECTING = "busy: press again"
MB = 2**20


@dataclass(frozen=True)
class Taught:
    """A lesson learnt: what is known now, ready to inspect with, and what to say."""

    knowledge: Knowledge
    inspector: LiveInspector | None
    said: str
    undoes: bool = False


class Session:
    """
    What a person does with the keys.

    Parameters
    ----------
    knowledge : Knowledge
    worker : Worker
    learner, writer : Hand
    teacher : callable
        Gives the `Teacher`, built when it is needed; called in the learner's thread.
    build : callable
        Gives a `LiveInspector` for a bundle.
    journal : Journal
    settings : LiveConfig
    out : Path
        Where the first bundle is written; later ones get a number.
    part : str
        Name of the part.
    typed : sequence of str
        The command line.
    fire : callable, optional
        Fires the trigger and says whether it did; None where keys trigger nothing.
    waits : bool
        Whether parts are opened by a trigger, of whatever kind.
    clock : callable
        Seconds.

    Attributes
    ----------
    over : bool
        Whether to quit.
    full_screen : bool
    """

    def __init__(
        self,
        knowledge: Knowledge,
        worker: Worker,
        learner: Hand,
        writer: Hand,
        teacher: Callable[[], Teacher],
        build: Callable[[Bundle], LiveInspector],
        journal: Journal,
        settings: LiveConfig,
        out: Path,
        part: str,
        typed: list[str],
        fire: Callable[[], bool] | None = None,
        waits: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.over = False
        self.full_screen = False
        self._knowledge = knowledge
        self._worker, self._learner, self._writer = worker, learner, writer
        self._teacher, self._build = teacher, build
        self._journal, self._settings = journal, settings
        self._out, self._part, self._typed = out, part, typed
        self._fire, self._waits, self._clock = fire, waits, clock
        self._parent = knowledge.bundle.sha256
        self._room = settings.most_held_mb * MB
        self._dial = self._dial_of(knowledge)
        self._undo: list[Knowledge] = []
        self._held: list[tuple[int, Frame]] = []
        self._next_batch = 0
        # The part is being learnt anew: its frames are 'taking', are 'ending', or are 'learning'.
        self._anew: str | None = None
        self._writing: Knowledge | None = None
        # What the key before asked to be pressed again for.
        self._asked = self._asked_before = ""
        self._progress: tuple[str, int, int] | None = None
        self._scene: Scene | None = None
        self._frozen: Scene | None = None
        self._scoring = knowledge.knows_part
        self._map_mode, self._map_kind = "auto", None
        self._help = self._timings = False
        self._aiming = False
        self._sharpest = 0.0
        self._choosing = False
        self._box: tuple[float, float, float, float] | None = None
        self._message, self._message_s, self._alarm = "", -1e9, False
        if not knowledge.knows_part:
            self._say(
                "no part is known yet: press e at the empty station, then show good parts and "
                "press l",
                last=False,
            )

    # What the window calls

    def press(self, code: int) -> None:
        """A key, as ``cv2.waitKeyEx`` gives it; its effect is said, and written to the journal."""
        key = key_of(code)
        if key is None:
            return
        self._asked_before, self._asked = self._asked, ""
        effect = getattr(self, f"_key_{key.action}")()
        self._journal.note("key", key=key.label, action=key.action, effect=effect)
        self._say(effect)

    def mouse(self, what: str, x: float, y: float) -> None:
        """
        The left button went 'down', the mouse was 'moved', the button went 'up'.

        Parameters
        ----------
        what : str
        x, y : float
            Where, as shares of the frame; outside 0 to 1 beside it.
        """
        if not self._choosing:
            return
        x, y = min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)
        if what == "down":
            self._box = (x, y, x, y)
        elif self._box is not None:
            self._box = (*self._box[:2], x, y)
            if what == "up":
                box, self._box, self._choosing = self._box, None, False
                effect = self._take_region(box)
                self._journal.note("region", box=[round(v, 4) for v in box], effect=effect)
                self._say(effect)

    def opened(self, width: int, height: int) -> None:
        """The window shows its first picture."""
        self._journal.note("window", width=width, height=height)

    def tick(self) -> bool:
        """Take in what the threads have done; whether there is something new to show."""
        scene = self._worker.scenes.take()
        if scene is not None:
            self._scene = scene
            if self._frozen is not None and scene.frame.frame_bgr is None:
                self._frozen = None
                self._say("picture live again: the camera gives none")
            if scene.measures is not None:
                self._sharpest = max(self._sharpest, scene.measures.sharpness)
        busy = self._learner.busy
        while not self._worker.bursts.empty():
            frames = self._worker.bursts.get()
            if self._anew in ("taking", "ending"):
                self._learn_burst(frames)
            else:
                # Given up just when it was complete.
                self._worker.insist(self._worker.go_on)
        for outcome in self._learner.done():
            self._take_lesson(outcome)
        for outcome in self._writer.done():
            self._take_written(outcome)
        if self._worker.problem is not None:
            raise self._worker.problem
        if self._journal.problem is not None:
            self._say(self._journal.problem, alarm=True)
            self._journal.problem = None
        return scene is not None or busy

    def shown(self) -> Shown:
        """All that the window shows now."""
        scene = self._frozen or self._scene
        now_s = self._clock()
        message = self._message if now_s - self._message_s < MESSAGE_S else ""
        return Shown(
            scene=scene,
            now=self._scene,
            part=self._part if self._knowledge.knows_part or self._undo else "",
            pictures=self._knowledge.size,
            region=self._knowledge.region,
            scoring=self._scoring,
            knows_part=self._knowledge.knows_part,
            waits=self._waits,
            threshold=None if self._dial is None else self._dial.value,
            false_rejects=None if self._dial is None else self._dial.expected(),
            moved=self._dial is not None and self._dial.value != self._dial.calibrated,
            unwritten=bool(self._knowledge.taught),
            map_mode=self._map_mode,
            map_kind=self._map_kind_now(),
            frozen=self._frozen is not None,
            help=self._help,
            timings=self._timings,
            aiming=self._aiming,
            sharpest=self._sharpest,
            choosing=self._choosing,
            box=self._box,
            learning=self._learning(),
            anew=self._anew is not None,
            message=message,
            alarm=self._alarm and bool(message),
            result_age_s=0.0 if scene is None else max(now_s - scene.result_s, 0.0),
            part_age_s=0.0 if scene is None else max(now_s - scene.part_s, 0.0),
        )

    def close(self) -> None:
        """Take in what was still written, and say what is lost; the threads are the caller's."""
        for outcome in self._writer.done():
            self._take_written(outcome)
        if self._knowledge.taught:
            self._journal.note("lost", effect="what was learnt was not written")

    @property
    def unwritten(self) -> bool:
        """Whether something was learnt that no bundle holds."""
        return bool(self._knowledge.taught)

    # Keys

    def _key_scoring(self) -> str:
        if not self._knowledge.knows_part:
            return "nothing to score with: press l to learn good parts first"
        on = not self._scoring
        if not self._worker.tell(partial(self._worker.score, on)):
            return BUSY_INSPECTING
        self._scoring = on
        return f"scoring {'on' if on else 'off'}"

    def _key_picture(self) -> str:
        scene = self._frozen or self._scene
        if scene is None or scene.picture_bgr is None or scene.frame.frame_bgr is None:
            return "no picture to save: the camera gives none"
        stamp = datetime.now(UTC)
        verdict = self._verdict(scene)
        result = scene.result if scene.fresh else None
        line = as_line(result) if result is not None else self._bare_line(scene, stamp)
        stem = f"{stamp:%Y%m%dT%H%M%S}.{stamp.microsecond // 1000:03d}Z_{verdict}"
        folder = Path(self._settings.pictures)
        job = partial(_save, folder, stem, scene.frame.frame_bgr, line)
        if verdict != "NG":
            queued = self._writer.submit(job)
        elif scene.map_01 is not None:
            queued = self._writer.submit(partial(job, scene.map_01))
        else:
            # Only the worker may run the inspector.
            def then() -> None:
                map_01 = None if scene.seen is None else self._worker.map_of(scene.seen)
                self._writer.submit(partial(job, map_01))

            queued = self._worker.tell(then)
        return f"saving picture {stem}" if queued else "busy saving: press p again"

    def _key_heatmap(self) -> str:
        if not self._kinds():
            return "no heatmap: nothing is known that could draw one"
        mode = HEATMAP_MODES[(HEATMAP_MODES.index(self._map_mode) + 1) % len(HEATMAP_MODES)]
        return self._draw_maps(mode, self._map_kind, f"heatmap {_MODE_WORDS[mode]}")

    def _key_heatmap_kind(self) -> str:
        kinds = self._kinds()
        if len(kinds) < 2:
            only = f"by {kinds[0]}" if kinds else "none"
            return f"this bundle has one kind of heatmap: {only}"
        kind = kinds[(kinds.index(self._map_kind_now()) + 1) % len(kinds)]
        return self._draw_maps(self._map_mode, kind, f"heatmap by {kind}")

    def _draw_maps(self, mode: str, kind: str | None, said: str) -> str:
        if not self._worker.tell(partial(self._worker.draw_maps, mode, kind)):
            return BUSY_INSPECTING
        self._map_mode, self._map_kind = mode, kind
        return said

    def _key_learn_frame(self) -> str:
        scene = self._frozen or self._scene
        if busy := self._busy():
            return busy
        if scene is None or scene.frame.frame_bgr is None:
            return "not learnt: the camera gives no picture"
        if any(frame is scene.frame for frame in self._held_frames()):
            return "not learnt: this very picture is learnt already"
        if not self._knowledge.knows_part:
            return self._learn_first(scene.frame)
        alarm = scene.fresh and self._verdict(scene) == "NG"
        batch = self._hold([scene.frame])
        known, progress = self._knowledge, self._note_progress

        def job() -> Taught:
            learnt = self._teach().more(known, scene.frame, alarm, batch, progress)
            said = f"learnt frame {scene.frame.index} as good: {learnt.size} pictures"
            said += forgotten(known)
            return self._ready(learnt, said)

        return self._learn(job, f"learning frame {scene.frame.index}")

    def _learn_first(self, frame: Frame) -> str:
        """Gather single frames until there are enough to learn from."""
        recipe = Preprocessing(self._knowledge.bundle.size, self._knowledge.region)
        if (why := unusable(frame.frame_bgr, recipe)) is not None:
            return f"not learnt: {why}"
        batch = self._hold([frame])
        self._push()
        self._knowledge = replace(self._knowledge, batches=(*self._knowledge.batches, batch))
        frames = self._held_frames()
        if len(frames) < LEAST_IMAGES:
            return f"{len(frames)} of {LEAST_IMAGES} frames to begin with"
        known = self._knowledge
        return self._learn_anew(known, frames, known.batches, "n", "learning", pushed=True)

    def _key_learn_burst(self) -> str:
        if self._anew == "taking":
            if not self._worker.tell(partial(self._worker.stop_collecting, True)):
                return BUSY_INSPECTING
            self._anew = "ending"
            return "burst ended: learning what there is"
        if busy := self._busy():
            return busy
        if self._scene is not None and self._scene.ended:
            return "not learnt: the source has ended, no more frames come"
        wanted = self._settings.burst_frames
        command = partial(self._worker.collect, wanted, self._refusal(), self._room)
        if not self._worker.tell(command):
            return BUSY_INSPECTING
        self._anew, self._frozen = "taking", None
        return f"learning: show good parts, {wanted} frames are taken"

    def _key_undo(self) -> str:
        if self._anew == "taking":
            if not self._worker.tell(partial(self._worker.stop_collecting, False)):
                return BUSY_INSPECTING
            self._anew = None
            return "burst given up"
        if busy := self._busy():
            return busy
        if self._undo:
            before = self._undo[-1]
            if before.bundle is self._knowledge.bundle and (
                before.region == self._knowledge.region or not before.knows_part
            ):
                return self._undo_at_once()
            return self._learn(
                lambda: self._ready(before, f"undone: {before.size} pictures", undoes=True),
                "undoing the last learnt",
            )
        known, progress = self._knowledge, self._note_progress
        if not known.knows_part:
            return "nothing to undo"
        if known.taught[-1:] != ("u",) and self._asked_before != "undo":
            try:
                lost = forgotten(known)
            except InputError as error:
                return f"nothing to undo: {error}"
            self._asked = "undo"
            return (
                "nothing was learnt in this session: u again takes out the last picture that "
                f"{known.bundle.path.name} learnt, for good{lost}"
            )

        def job() -> Taught:
            learnt, name = self._teach().without_last(known, progress)
            said = f"undone: {name} taken out, {learnt.size} pictures{forgotten(known)}"
            said += limits_stay(known)
            return self._ready(learnt, said)

        # The next u takes out one more, so there is no way back but not to write it.
        return self._learn(job, "undoing the bundle's last learnt picture", pushed=True)

    def _undo_at_once(self) -> str:
        """Go back to where nothing had been learnt since."""
        now, before = self._knowledge, self._undo.pop()
        self._knowledge = before
        if before.region != now.region:
            self._dial = None
            self._worker.insist(partial(self._worker.use, None))
            self._aim_again()
            if before.bundle.reference is not None:
                return "undone: the reference is of another region, press l to learn anew"
            return "undone: region as it was"
        if len(before.empties) != len(now.empties) or before.empties[-1:] != now.empties[-1:]:
            return f"undone: {len(before.empties)} pictures of the empty station noted"
        return f"undone: {len(self._held_frames())} of {LEAST_IMAGES} frames to begin with"

    def _key_empty(self) -> str:
        scene = self._frozen or self._scene
        if busy := self._busy():
            return busy
        if scene is None or scene.frame.frame_bgr is None:
            return "not noted: the camera gives no picture"
        # One that cannot tell an empty station may well have learnt it as good.
        tells = self._knowledge.knows_part and knows_empty(self._knowledge)
        if tells and self._verdict(scene) == "OK":
            return "not noted: what is in view looks like a good part"
        empties = (*self._knowledge.empties, scene.frame)[-MOST_EMPTY:]
        known = replace(self._knowledge, empties=empties)
        frames = self._held_frames()
        if len(frames) < LEAST_IMAGES:
            self._push()
            self._knowledge = known
            return "empty station noted: press l to learn good parts"
        said = "empty station noted, learning again"
        return self._learn_anew(known, frames, known.batches, "e", said)

    def _key_threshold_up(self) -> str:
        return self._move(Dial.up)

    def _key_threshold_down(self) -> str:
        return self._move(Dial.down)

    def _move(self, turn: Callable[[Dial], Dial]) -> str:
        if self._dial is None or not self._knowledge.knows_part:
            return "no threshold yet: press l to learn good parts first"
        if busy := self._busy():
            return busy
        dial = turn(self._dial)
        if dial.value == self._dial.value:
            return f"threshold {dial.value:.4g} is as far as it goes"
        bundle = with_threshold(self._knowledge.bundle, dial.value)
        if not self._worker.tell(partial(self._worker.move_threshold, bundle)):
            return BUSY_INSPECTING
        self._dial = dial
        taught = self._knowledge.taught
        if taught[-1:] != ("threshold",):
            taught = (*taught, "threshold")
        self._knowledge = replace(self._knowledge, bundle=bundle, taught=taught)
        return f"threshold {self._dial.value:.4g}: {self._dial.sentence()}"

    def _key_region(self) -> str:
        if busy := self._busy():
            return busy
        if self._choosing:
            self._choosing, self._box = False, None
            return self._set_region(None)
        self._choosing = True
        return "draw the region of interest with the mouse; r: whole picture, Esc: leave it"

    def _key_aim(self) -> str:
        on = not self._aiming
        region = (self._knowledge.region,) if on else None
        if not self._worker.tell(partial(self._worker.aim, region)):
            return BUSY_INSPECTING
        self._aiming, self._sharpest = on, 0.0
        return f"aiming aid {'on' if on else 'off'}"

    def _aim_again(self) -> None:
        """Within another region."""
        if self._aiming:
            self._worker.insist(partial(self._worker.aim, (self._knowledge.region,)))

    def _key_trigger(self) -> str:
        if self._fire is None:
            return 'Enter triggers nothing: [trigger] kind is not "key"'
        return "triggered" if self._fire() else "not triggered: too soon after the last one"

    def _key_freeze(self) -> str:
        if self._frozen is not None:
            self._frozen = None
            return "picture live"
        if self._scene is None or self._scene.frame.frame_bgr is None:
            return "not frozen: the camera gives no picture"
        if self._anew == "taking":
            return "not frozen: a burst is taken"
        self._frozen = self._scene
        return "picture frozen"

    def _key_full_screen(self) -> str:
        self.full_screen = not self.full_screen
        return f"full screen {'on' if self.full_screen else 'off'}"

    def _key_timings(self) -> str:
        self._timings = not self._timings
        return f"timings {'on' if self._timings else 'off'}"

    def _key_write(self) -> str:
        if busy := self._busy():
            return busy
        if not self._knowledge.knows_part:
            return "nothing to write: no part is known for this region"
        if not self._knowledge.taught:
            return "nothing to write: all that is known is in the bundle"
        if self._writing is self._knowledge:
            return "nothing new to write: it is being written"
        known, parent, typed = self._knowledge, self._parent, self._typed

        def job() -> tuple[Knowledge, Bundle]:
            try:
                return known, write(known, free_folder(self._out), self._part, parent, typed)
            except BaseException:
                self._writing = None
                raise

        self._writing = known
        if not self._writer.submit(job):
            self._writing = None
            return "busy saving: press w again"
        return "writing the bundle"

    def _key_help(self) -> str:
        self._help = not self._help
        return f"help {'on' if self._help else 'off'}"

    def _key_quit(self) -> str:
        unwritten = self.unwritten and self._writing is not self._knowledge
        if (unwritten or self._busy()) and self._asked_before != "quit":
            self._asked = "quit"
            if unwritten:
                return "not written: w writes what was learnt, q again quits without it"
            return "busy learning: q again quits without it"
        self.over = True
        return "quit"

    def _key_leave(self) -> str:
        if self._help:
            self._help = False
            return "help off"
        if self._choosing:
            self._choosing, self._box = False, None
            return "region left as it is"
        return self._key_quit()

    # Learning

    def _take_region(self, box: tuple[float, float, float, float]) -> str:
        left, right = sorted((box[0], box[2]))
        top, bottom = sorted((box[1], box[3]))
        if right - left < LEAST_REGION or bottom - top < LEAST_REGION:
            return "region left as it is: drawn too small"
        return self._set_region((left, top, right, bottom))

    def _set_region(self, region: tuple[float, float, float, float] | None) -> str:
        if busy := self._busy():
            return busy
        if region == self._knowledge.region:
            return "region left as it is"
        what = "whole picture" if region is None else "region"
        self._push()
        self._knowledge = known = replace(self._knowledge, region=region)
        self._aim_again()
        self._dial = self._dial_of(known)
        if known.knows_part:
            # Back at the region that the reference is of.
            self._worker.insist(lambda: self._worker.use(self._build(known.bundle)))
            return f"{what}: as the bundle has it"
        self._worker.insist(partial(self._worker.use, None))
        frames = self._held_frames()
        if len(frames) < LEAST_IMAGES:
            if known.bundle.reference is None:
                return f"{what} set: press l to learn good parts"
            return f"{what} changed: the reference is stale, press l to learn anew"
        said = f"{what} changed: learning again from {len(frames)} frames of this session"
        return self._learn_anew(known, frames, known.batches, "r", said, pushed=True)

    def _learn_burst(self, frames: list[Frame]) -> None:
        count = len(frames)
        self._anew = "learning"
        if count < LEAST_IMAGES:
            why = f"{count} good frames are too few, wanted at least {LEAST_IMAGES} that differ"
            self._take_lesson(Outcome(error=why))
            return
        said = f"learning {count} frames"
        size = frames[0].frame_bgr.nbytes
        if count < self._settings.burst_frames and (count + 1) * size > self._room:
            said += f", as many as [live] most_held_mb = {self._settings.most_held_mb} has room for"
        batch = self._hold(frames)
        self._say(self._learn_anew(self._knowledge, frames, (batch,), "l", said))

    def _learn_anew(
        self,
        known: Knowledge,
        frames: list[Frame],
        batches: tuple[int, ...],
        what: str,
        said: str,
        pushed: bool = False,
    ) -> str:
        progress = self._note_progress
        empty = list(known.empties)
        # What was found EMPTY shows the station in another region too.
        found = self._worker.empties if not empty and known.region != known.bundle.region else ()

        def job() -> Taught:
            teach = partial(
                self._teach().anew, known, frames, batches=batches, what=what, progress=progress
            )
            try:
                learnt, skipped = teach(empty_frames=empty or found)
            except InputError:
                if not found:
                    raise
                learnt, skipped = teach(empty_frames=())
            done = f"learnt {learnt.size} pictures"
            if skipped:
                done += f", left out {len(skipped)} ({skipped[0].partition(': ')[2]})"
            if not knows_empty(learnt):
                done += "; it cannot tell an empty station: press e when it is empty"
            return self._ready(learnt, done)

        return self._learn(job, said, pushed)

    def _learn(self, job: Callable[[], Taught], said: str, pushed: bool = False) -> str:
        self._progress = ("learning", 0, 0)
        if not self._learner.submit(job):
            if self._anew is not None:
                self._anew = None
                self._worker.insist(self._worker.go_on)
            return "busy learning: press again when it is done"
        self._pushed = pushed
        return said

    _pushed = False

    def _ready(self, knowledge: Knowledge, said: str, undoes: bool = False) -> Taught:
        inspector = self._build(knowledge.bundle) if knowledge.knows_part else None
        return Taught(knowledge, inspector, said, undoes)

    def _take_lesson(self, outcome: Outcome) -> None:
        self._progress = None
        anew, self._anew = self._anew, None
        if outcome.error is not None:
            if anew is not None:
                self._worker.insist(self._worker.go_on)
            self._journal.note("learnt", effect=f"not learnt: {outcome.error}")
            self._say(f"not learnt: {outcome.error}", alarm=True)
            return
        taught: Taught = outcome.value
        if taught.undoes:
            self._undo.pop()
        elif not self._pushed:
            self._push()
        elsewhere = taught.knowledge.region != self._knowledge.region
        self._knowledge = taught.knowledge
        self._dial = self._dial_of(taught.knowledge)
        # Never refused: what judges must be what the window says that it is.
        self._worker.insist(partial(self._worker.use, taught.inspector))
        if taught.inspector is not None:
            self._worker.insist(partial(self._worker.score, True))
            self._scoring = True
        if elsewhere:
            self._aim_again()
        said = taught.said
        if self._dial is not None:
            said += f"; {self._dial.sentence()}"
        self._journal.note("learnt", effect=said, pictures=taught.knowledge.size)
        self._say(said)

    def _take_written(self, outcome: Outcome) -> None:
        if outcome.error is not None:
            self._journal.note("written", effect=f"not written: {outcome.error}")
            self._say(f"not written: {outcome.error}", alarm=True)
            return
        if isinstance(outcome.value, str):
            self._journal.note("written", effect=f"saved {outcome.value}", path=outcome.value)
            self._say(f"saved {outcome.value}")
            return
        known, bundle = outcome.value
        self._parent, self._writing = bundle.sha256, None
        if self._knowledge is known:
            self._knowledge = replace(known, bundle=bundle, taught=())
            self._worker.insist(partial(self._worker.move_threshold, bundle))
        path = os.fspath(bundle.path)
        self._journal.note("written", effect=f"bundle written: {path}", path=path)
        self._say(f"bundle written: {path}")

    def _push(self) -> None:
        self._undo = [*self._undo, self._knowledge][-MOST_UNDO:]

    def _teach(self) -> Teacher:
        # Held by the learner's thread alone; the encoder is not to be shared between threads.
        if self._teacher_built is None:
            self._teacher_built = self._teacher()
        return self._teacher_built

    _teacher_built: Teacher | None = None

    def _note_progress(self, stage: str, done: int, of: int) -> None:
        self._progress = (stage, done, of)

    def _learning(self) -> tuple[str, int, int] | None:
        if self._anew in ("taking", "ending"):
            collected = self._scene.collected if self._scene is not None else None
            done, of = collected or (0, self._settings.burst_frames)
            refused = self._scene.refused if collected is not None else ""
            return refused or "taking frames of good parts", done, of
        if self._anew is None and not self._learner.busy:
            return None
        return self._progress or ("learning", 0, 0)

    def _busy(self) -> str | None:
        if self._anew in ("taking", "ending"):
            return "busy: a burst is taken; l ends it, u gives it up"
        if self._anew is None and not self._learner.busy:
            return None
        return "busy learning: press again when it is done"

    def _hold(self, frames: list[Frame]) -> int:
        """Keep frames for learning again, within the bound; gives the number of the batch."""
        batch, self._next_batch = self._next_batch, self._next_batch + 1
        self._held += [(batch, frame) for frame in frames]
        total = sum(frame.frame_bgr.nbytes for _, frame in self._held)
        while total > self._room and len(self._held) > 1:
            total -= self._held.pop(0)[1].frame_bgr.nbytes
        return batch

    def _held_frames(self) -> list[Frame]:
        batches = set(self._knowledge.batches)
        return [frame for batch, frame in self._held if batch in batches]

    def _refusal(self) -> Callable[[Frame], str | None]:
        """What says of a frame why it shows no good part as a whole, as far as is known."""
        known = self._knowledge
        bundle, region = known.bundle, known.region
        recipe = Preprocessing(bundle.size, region)
        empty_view = aligner = None
        if known.knows_part:
            alignment = read_alignment(bundle.manifest["alignment"], bundle.reference)
            if alignment.recipe != "none":
                aligner = Aligner(alignment, bundle.size, region)
            else:
                empty_view = empty_view_of(bundle)
        if known.empties and aligner is None:
            # What a person has shown since is newer than the bundle's.
            views = [prepare(frame.frame_bgr, recipe) for frame in known.empties]
            empty_view = learn_empty_view(views, [])

        def refuse(frame: Frame) -> str | None:
            if frame.frame_bgr is None:
                return frame.problem or "no picture"
            if (why := unusable(frame.frame_bgr, recipe)) is not None:
                return why
            if empty_view is not None:
                location = locate(prepare(frame.frame_bgr, recipe), empty_view)
                if not location.present or location.cut:
                    return "no whole part in view"
            if aligner is not None:
                aligned = aligner.align(frame.frame_bgr)
                if aligned.empty or aligned.problem is not None:
                    return aligned.problem or "no part in view"
            return None

        return refuse

    # Small things

    def _say(self, sentence: str, alarm: bool = False, last: bool = True) -> None:
        self._message, self._alarm = sentence, alarm
        self._message_s = self._clock() if last else self._clock() + 3600.0

    def _verdict(self, scene: Scene) -> str:
        if scene.fresh and scene.result is not None:
            return str(scene.result.decision.verdict)
        return "UNSCORED"

    def _bare_line(self, scene: Scene, stamp: datetime) -> dict[str, Any]:
        return {
            "event": "frame",
            "frame": scene.frame.index,
            "source": scene.frame.source,
            "time": stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "score": None,
            "verdict": None,
            "reason": "scoring: off or paused",
            "threshold": None if self._dial is None else self._dial.value,
            "bundle_sha256": self._knowledge.bundle.sha256,
        }

    def _kinds(self) -> tuple[str, ...]:
        if not self._knowledge.knows_part:
            return ()
        manifest = self._knowledge.bundle.manifest
        patch = ("patch",) if manifest["scorer"]["kind"] == "patches" else ()
        return patch + (("decoder",) if self._knowledge.bundle.decoder is not None else ())

    def _map_kind_now(self) -> str:
        kinds = self._kinds()
        return self._map_kind if self._map_kind in kinds else next(iter(kinds), "")

    def _dial_of(self, knowledge: Knowledge) -> Dial | None:
        if not knowledge.knows_part:
            return None
        bundle = knowledge.bundle
        return Dial.of(bundle.reference["scores"], bundle.manifest["threshold"])


def _save(
    folder: Path,
    stem: str,
    picture_bgr: np.ndarray,
    line: dict[str, Any],
    map_01: np.ndarray | None = None,
) -> str:
    """
    Write picture, verdict and, if there is a map, overlay, each whole or not at all.

    Raises
    ------
    InputError
        If the folder cannot be made, or the disk is full.
    """
    path = folder / f"{stem}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if map_01 is not None:
            over = folder / f"{stem}_overlay.png"
            _write_png(over, overlay(picture_bgr, map_01))
            line = {**line, "heatmap": os.fspath(over)}
        _write_png(path, picture_bgr)
        text = json.dumps({**line, "picture": os.fspath(path)}, ensure_ascii=False, allow_nan=False)
        _write(folder / f"{stem}.json", (text + "\n").encode())
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    return os.fspath(path)


def _write_png(path: Path, picture_bgr: np.ndarray) -> None:
    coded, data = cv2.imencode(".png", picture_bgr)
    if not coded:
        raise InputError(f"{path}: OpenCV could not encode the picture")
    _write(path, data.tobytes())


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
