"""The session: what each key does, without a window and without threads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_app.bundle import load_bundle
from edge_app.cli import main
from edge_app.config import DEFAULT_FILE, load_config
from edge_app.errors import EdgeAppError
from edge_app.hand import Outcome
from edge_app.inspector import build_encoder
from edge_app.knowledge import Teacher, known_from, pictures_of
from edge_app.live.journal import Journal
from edge_app.live.session import Session
from edge_app.live.worker import MOST_COMMANDS, LiveInspector, Worker
from edge_app.records import Frame, Verdict
from edge_app.station import Station

CONFIG = load_config(DEFAULT_FILE)
BURST = 10


class NoFrames:
    """A camera that a test stands in for."""

    live, separate_parts = True, False

    def frames(self):
        return iter(())

    def close(self) -> None:
        pass


class Now:
    """A hand that does each job at once."""

    def __init__(self) -> None:
        self.busy = False
        self.waiting = False
        self._jobs: list[Callable] = []
        self._done: list[Outcome] = []

    def submit(self, job) -> bool:
        if self.waiting:
            self.busy = True
        self._jobs.append(job)
        if not self.waiting:
            self.work()
        return True

    def work(self) -> None:
        for job in self._jobs:
            try:
                self._done.append(Outcome(job()))
            except EdgeAppError as error:
                self._done.append(Outcome(error=str(error)))
        self._jobs, self.busy = [], False

    def done(self) -> list[Outcome]:
        done, self._done = self._done, []
        return done


class Bench:
    """A session, and a person who shows it frames and types keys."""

    def __init__(self, bundle, folder: Path, most_held_mb: int = 256, fire=None) -> None:
        def build(bundle) -> LiveInspector:
            knows_empty = bundle.manifest["presence"] or bundle.manifest["alignment"]["recipe"]
            mode = "part" if knows_empty not in (None, "none") else "continuous"
            return LiveInspector(bundle, CONFIG.decision, mode, heatmaps=False)

        self.folder, self.index = folder, 0
        self.now_s = 0.0
        inspector = build(bundle) if bundle.reference is not None else None
        self.journal = Journal(folder / "log.jsonl")
        self.worker = Worker(NoFrames(), Station, None, self.journal, inspector)
        self.learner, self.writer = Now(), Now()
        self.session = Session(
            known_from(bundle),
            self.worker,
            self.learner,
            self.writer,
            lambda: Teacher(build_encoder(bundle, 1), CONFIG.enroll),
            build,
            self.journal,
            replace(
                CONFIG.live,
                pictures=str(folder / "pictures"),
                burst_frames=BURST,
                most_held_mb=most_held_mb,
            ),
            folder / "taught",
            "nut",
            ["live"],
            fire=fire,
            clock=lambda: self.now_s,
        )

    def show(self, *pictures) -> None:
        for picture in pictures:
            if self.worker._burst is not None:
                self.worker._burst.last_s = -1.0  # a moment later
            self.worker.obey()
            self.worker.see(Frame(self.index, "bench", picture))
            self.index += 1
            self.session.tick()
        self.worker.obey()
        self.session.tick()

    def press(self, key: str) -> str:
        """Type a key; gives what the window says then."""
        self.session.press({"Esc": 27, "Enter": 13, " ": 32}.get(key) or ord(key))
        self.worker.obey()
        said = self.session.shown().message
        self.session.tick()
        self.worker.obey()
        return said

    @property
    def shown(self):
        return self.session.shown()

    @property
    def message(self) -> str:
        return self.shown.message

    def events(self, event: str) -> list[dict]:
        lines = (self.folder / "log.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["event"] == event]


@pytest.fixture
def bench(nut_bundle, tmp_path):
    return Bench(nut_bundle, tmp_path)


@pytest.fixture
def bare(base_path, tmp_path):
    return Bench(load_bundle(base_path), tmp_path)


@pytest.fixture
def apart(still_frames) -> list[np.ndarray]:
    """Good frames that differ: each part of the clip several times, turned a little."""
    return still_frames["good"][::7]


def verdict(bench: Bench) -> Verdict:
    return bench.shown.scene.result.decision.verdict


def test_every_key_is_journalled_with_its_effect(bench, apart):
    bench.show(apart[0])
    for key in "tas":
        bench.press(key)
    bench.press("z")  # means nothing
    keys = bench.events("key")
    assert [line["key"] for line in keys] == ["t", "a", "s"]
    assert [line["effect"] for line in keys] == ["timings on", "aiming aid on", "scoring off"]


def test_s_stops_and_starts_scoring(bench, apart):
    bench.show(apart[0])
    bench.press("s")
    bench.show(apart[1])
    assert bench.shown.scene.result is None and not bench.shown.scoring
    bench.press("s")
    bench.show(apart[1])
    assert verdict(bench) is Verdict.OK


def test_space_freezes_the_picture_and_not_the_inspection(bench, still_frames):
    bench.show(still_frames["bad"][0])
    bench.press(" ")
    bench.show(still_frames["good"][0])
    assert bench.shown.scene.frame.index == 0 and bench.shown.frozen
    bench.press(" ")
    assert bench.shown.scene.frame.index == 1


def test_h_goes_round_and_d_changes_the_kind(bench, apart):
    seen = []
    for _ in range(3):
        seen.append(bench.shown.map_mode)
        bench.press("h")
    assert seen == ["auto", "always", "off"] and bench.shown.map_mode == "auto"
    assert bench.shown.map_kind == "patch"
    bench.press("d")
    assert bench.shown.map_kind == "decoder"


def test_d_without_a_decoder_says_so(bench, apart):
    bench.press("l")
    bench.show(*apart[:BURST])
    assert bench.press("d") == "this bundle has one kind of heatmap: by patch"


def test_p_saves_picture_verdict_and_overlay(bench, still_frames):
    for kind, wanted in (("good", "OK"), ("bad", "NG")):
        bench.show(still_frames[kind][0])
        bench.press("p")
        (path,) = (bench.folder / "pictures").glob(f"*_{wanted}.png")
        assert np.array_equal(cv2.imread(str(path)), still_frames[kind][0])
        line = json.loads(path.with_suffix(".json").read_text())
        assert line["verdict"] == wanted and line["picture"] == str(path)
        assert (line["heatmap"] is not None) == (wanted == "NG")
    assert cv2.imread(line["heatmap"]).shape == still_frames["bad"][0].shape


def test_p_draws_the_overlay_of_ng_even_with_heatmaps_off(bench, still_frames):
    bench.press("h"), bench.press("h")
    bench.show(still_frames["bad"][0])
    assert bench.shown.scene.map_01 is None
    bench.press("p")
    assert list((bench.folder / "pictures").glob("*_NG_overlay.png"))


def test_p_where_nothing_can_be_written_is_a_message(bench, apart):
    (bench.folder / "pictures").write_text("a file")
    bench.show(apart[0])
    bench.press("p")
    assert bench.message.startswith("not written: ") and bench.shown.alarm


def test_n_learns_the_frame_and_u_undoes_it(bench, still_frames):
    bench.show(still_frames["bad"][0])
    before = bench.session._knowledge
    known = len(pictures_of(before))
    bench.press("n")
    assert bench.events("learnt")[-1]["pictures"] == known + 1
    learnt = bench.session._knowledge
    assert learnt.pictures[-1].kind == "false alarm"  # it had been NG
    bench.show(still_frames["bad"][0])
    assert bench.shown.scene.result.bundle_sha256 == learnt.bundle.sha256 != before.bundle.sha256
    bench.press("u")
    assert bench.session._knowledge is before
    bench.show(still_frames["bad"][0])
    assert bench.shown.scene.result.bundle_sha256 == before.bundle.sha256
    assert verdict(bench) is Verdict.NG


def test_n_says_that_not_all_pictures_were_kept(bench, still_frames):
    bench.show(still_frames["good"][0])
    bench.press("n")
    assert "nut kept 24 of its 200, only these count" in bench.events("learnt")[-1]["effect"]


@pytest.mark.parametrize("kind", ["empty", None])
def test_n_without_a_part_says_why_not(bench, still_frames, kind):
    bench.show(still_frames["empty"][0] if kind else None)
    said = bench.press("n")
    learnt = bench.events("learnt")
    why = learnt[-1]["effect"] if learnt else said
    expected = "not learnt: no part in view" if kind else "not learnt: the camera gives no picture"
    assert why == expected


@pytest.mark.parametrize(
    "spoil, why",
    [
        (lambda frame: cv2.convertScaleAbs(frame, alpha=0.3), "quality: too dark ("),
        (lambda frame: cv2.convertScaleAbs(frame, alpha=2, beta=60), "quality: overexposed ("),
        (lambda frame: cv2.GaussianBlur(frame, (0, 0), 3), "quality: blurred ("),
    ],
)
def test_n_does_not_learn_what_the_device_would_refuse(bench, still_frames, spoil, why):
    before = bench.session._knowledge
    bench.show(spoil(still_frames["good"][0]))
    bench.press("n")
    effect = bench.events("learnt")[-1]["effect"]
    assert effect.startswith(f"not learnt: {why}") and "press l to learn anew" in effect
    assert effect.count("(") == effect.count(")") == 1
    assert bench.shown.alarm and bench.session._knowledge.bundle is before.bundle


def test_u_after_the_session_takes_out_what_the_bundle_learnt_last(bench, still_frames):
    ids = [picture.image_id for picture in pictures_of(bench.session._knowledge)]
    # That 200 pictures become 23 is said before it is done.
    said = bench.press("u")
    assert said.startswith("nothing was learnt in this session: u again") and "kept 24" in said
    assert bench.shown.pictures == 200
    bench.press("t")
    assert bench.press("u") == said  # another key between is no yes
    bench.press("u")
    effect = bench.events("learnt")[-1]["effect"]
    assert effect.startswith(f"undone: {ids[-1]} taken out, 23")
    assert "limits" not in effect  # they go with the picture: the bundle keeps what it measured
    bench.press("u")  # goes on taking out, instead of going back
    assert bench.events("learnt")[-1]["effect"].startswith(f"undone: {ids[-2]} taken out, 22")


def test_l_learns_anew_and_leaves_out_empty_and_cut_frames(bench, apart, clip_frames, still_frames):
    bench.press("l")
    assert bench.shown.learning[0] == "taking frames of good parts"
    cut = clip_frames[75]
    bench.show(still_frames["empty"][0], cut)
    assert bench.shown.scene.collected == (0, BURST)
    bench.show(*apart[:BURST])
    assert bench.shown.pictures == BURST and bench.shown.unwritten
    bench.show(still_frames["empty"][0])
    assert verdict(bench) is Verdict.EMPTY
    bench.show(apart[0])
    assert verdict(bench) is Verdict.OK
    bench.show(still_frames["bad"][30])
    assert verdict(bench) is Verdict.NG


def test_no_verdict_is_given_while_a_burst_is_taken(bench, apart):
    bench.press("l")
    bench.show(apart[0])
    assert bench.shown.scene.result is None


def test_l_again_learns_what_there_is(bench, apart):
    bench.press("l")
    bench.show(*apart[:6])
    bench.press("l")
    assert bench.shown.pictures == 6


def test_u_gives_a_burst_up(bench, apart):
    bench.press("l")
    bench.show(*apart[:6])
    bench.press("u")
    assert bench.shown.learning is None and bench.shown.pictures == 200
    bench.show(apart[0])
    assert verdict(bench) is Verdict.OK


def test_too_small_a_burst_is_refused_and_changes_nothing(bench, apart):
    bench.press("l")
    bench.show(apart[0])
    bench.press("l")
    assert bench.message.startswith("not learnt: 1 good frames are too few")
    assert bench.shown.pictures == 200


def test_a_bundle_without_a_part_says_what_to_press(bare, apart):
    assert "press l" in bare.message
    bare.now_s = 60.0  # it stays until a key is pressed
    assert "press l" in bare.message
    assert bare.press("s").startswith("nothing to score with")
    assert bare.press("+").startswith("no threshold yet")
    assert bare.press("w").startswith("nothing to write")
    assert bare.press("u") == "nothing to undo"
    bare.show(apart[0])
    assert bare.shown.scene.result is None and not bare.shown.knows_part


def test_single_frames_teach_from_scratch(bare, apart):
    for number, picture in enumerate(apart[:3], 1):
        bare.show(picture)
        said = bare.press("n")
        assert number == 3 or said == f"{number} of 3 frames to begin with"
    assert bare.shown.pictures == 3
    bare.press("u")
    assert not bare.shown.knows_part
    assert bare.press("u") == "undone: 1 of 3 frames to begin with"


def test_e_before_l_teaches_empty(bare, apart, still_frames):
    bare.show(still_frames["empty"][0])
    assert bare.press("e") == "empty station noted: press l to learn good parts"
    bare.press("l")
    bare.show(still_frames["empty"][3])
    assert bare.shown.scene.collected == (0, BURST)
    bare.show(*apart[:BURST])
    bare.show(still_frames["empty"][1])
    assert verdict(bare) is Verdict.EMPTY


def test_l_without_an_empty_view_asks_for_it(bare, apart):
    bare.press("l")
    bare.show(*apart[:BURST])
    effect = bare.events("learnt")[-1]["effect"]
    knows = bare.session._knowledge.bundle.manifest["alignment"]["recipe"] != "none"
    assert knows or "press e when it is empty" in effect


def test_threshold_keys_move_verdict_and_expected_rate(bench, apart):
    shipped = bench.shown.threshold
    said = bench.press("+")
    assert said.startswith("threshold ") and "false rejects expected" in said
    assert bench.shown.threshold > shipped and bench.shown.moved
    bench.show(apart[0])
    assert bench.shown.scene.result.threshold == bench.shown.threshold
    bench.press("-"), bench.press("-")
    assert bench.shown.threshold < shipped
    assert bench.shown.false_rejects[0] > 0
    bench.press("+")
    assert bench.shown.threshold == shipped and not bench.shown.moved


def test_w_writes_what_enroll_would_read(bench, apart, nut_bundle, base_path):
    assert bench.press("w").startswith("nothing to write")
    bench.press("l")
    bench.show(*apart[:BURST])
    bench.press("w")
    written = load_bundle(bench.folder / "taught")
    manifest = written.manifest
    assert manifest["parent_sha256"] == nut_bundle.sha256
    assert manifest["part"] == "nut" and manifest["decoder"] is None
    folder = bench.folder / "good"
    folder.mkdir()
    for number, picture in enumerate(apart[:BURST]):
        cv2.imwrite(str(folder / f"{number}.png"), picture)
    out = bench.folder / "enrolled"
    assert main([str(x) for x in ("enroll", folder, "--bundle", base_path, "--out", out)]) == 0
    assert manifest["quality"] == load_bundle(out).manifest["quality"]
    assert manifest["provenance"]["remake"][-1] == "edge-app live (keys: l)"
    assert written.learnt() is not None and len(written.reference["image_ids"]) == BURST
    assert not bench.shown.unwritten
    bench.show(apart[0])
    assert bench.shown.scene.result.bundle_sha256 == written.sha256


def test_w_never_overwrites_and_keeps_a_moved_threshold(bench):
    shipped = bench.shown.threshold
    for number in (1, 2):
        bench.press("-")
        bench.press("w")
        folder = bench.folder / ("taught" if number == 1 else "taught-2")
        section = load_bundle(folder).manifest["threshold"]
        assert section["value"] == bench.shown.threshold
        assert section["method"].endswith(", moved by hand")
        assert section["calibrated"] == shipped
    # What was read back goes on from where it was.
    again = Bench(load_bundle(bench.folder / "taught-2"), bench.folder)
    assert again.shown.moved
    again.press("+"), again.press("+")
    assert not again.shown.moved


def drag(bench: Bench, box) -> None:
    bench.press("r")
    bench.session.mouse("down", *box[:2])
    bench.session.mouse("moved", 0.5, 0.5)
    bench.session.mouse("up", *box[2:])
    bench.worker.obey()


def test_r_without_frames_of_this_session_asks_for_them(bench, apart):
    drag(bench, (0.2, 0.1, 0.9, 0.9))
    assert bench.message == "region changed: the reference is stale, press l to learn anew"
    bench.show(apart[0])
    assert bench.shown.scene.result is None and not bench.shown.knows_part
    bench.press("u")
    bench.show(apart[0])
    assert bench.shown.region is None and verdict(bench) is Verdict.OK


def test_r_learns_again_from_the_frames_of_this_session(bench, apart, still_frames):
    bench.press("l")
    bench.show(*apart[:BURST])
    bench.show(still_frames["empty"][0])
    drag(bench, (0.9, 0.95, 0.1, 0.05))
    bench.session.tick()
    bench.worker.obey()
    assert bench.shown.region == (0.1, 0.05, 0.9, 0.95)
    assert bench.session._knowledge.bundle.region == (0.1, 0.05, 0.9, 0.95)
    assert bench.shown.pictures == BURST
    bench.show(apart[0])
    assert verdict(bench) is Verdict.OK
    bench.press("w")
    assert load_bundle(bench.folder / "taught").region == (0.1, 0.05, 0.9, 0.95)


def test_what_was_seen_empty_teaches_empty_in_another_region(bench, apart, still_frames):
    bench.show(still_frames["empty"][0])
    assert bench.worker.empties
    bench.press("l")
    bench.show(*apart[:BURST])
    drag(bench, (0.1, 0.05, 0.9, 0.95))
    bench.session.tick()
    bench.worker.obey()
    bench.show(still_frames["empty"][5])
    assert verdict(bench) is Verdict.EMPTY


@pytest.mark.parametrize("key", ["Esc", "slip"])
def test_a_drawing_can_be_left(bench, key):
    bench.press("r")
    if key == "Esc":
        assert bench.press("Esc") == "region left as it is"
    else:
        bench.session.mouse("down", 0.5, 0.5)
        bench.session.mouse("up", 0.51, 0.9)
        assert bench.message == "region left as it is: drawn too small"
    assert bench.shown.knows_part and not bench.session.over


def test_held_frames_are_bounded_by_memory(nut_bundle, tmp_path, apart):
    bench = Bench(nut_bundle, tmp_path, most_held_mb=1)
    bench.press("l")
    bench.show(*apart[:BURST])
    held = bench.session._held_frames()
    assert 0 < len(held) < BURST
    assert sum(frame.frame_bgr.nbytes for frame in held) <= 2**20
    # The burst itself ends where it is full, and says so.
    assert bench.shown.pictures == len(held)
    assert not bench.shown.anew


def test_keys_that_would_disturb_learning_say_busy(bench, apart):
    bench.show(apart[0])
    bench.learner.waiting = True
    bench.press("n")
    assert bench.shown.learning is not None
    for key in "nluerw+-":
        assert bench.press(key).startswith("busy"), key
    bench.show(apart[1])
    assert verdict(bench) is Verdict.OK  # scoring goes on with what is known
    bench.learner.work()
    bench.session.tick()
    assert bench.shown.learning is None


def test_enter_fires_or_says_why_not(nut_bundle, tmp_path):
    fired = []
    bench = Bench(nut_bundle, tmp_path, fire=lambda: not fired and (fired.append(1) or True))
    assert bench.press("Enter") == "triggered"
    assert bench.press("Enter").startswith("not triggered")
    assert Bench(nut_bundle, tmp_path).press("Enter").startswith("Enter triggers nothing")


def test_help_closes_with_escape_and_q_quits(bench):
    bench.press("?")
    assert bench.shown.help
    bench.press("Esc")
    assert not bench.shown.help and not bench.session.over
    bench.press("?")
    bench.press("q")
    assert bench.session.over


def test_f_and_messages(bench):
    assert bench.press("f") == "full screen on" and bench.session.full_screen
    bench.now_s = 60.0
    assert bench.message == ""


def test_a_worker_that_failed_ends_the_session(bench):
    bench.worker.problem = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        bench.session.tick()


def test_aim_keeps_the_best_sharpness_as_its_scale(bench, apart):
    bench.press("a")
    blurred = cv2.GaussianBlur(apart[0], (0, 0), 3)
    bench.show(apart[0], blurred)
    assert bench.shown.scene.measures.sharpness < 0.8 * bench.shown.sharpest


def test_nothing_is_judged_until_a_burst_is_learnt(bench, apart):
    bench.press("l")
    bench.learner.waiting = True
    bench.show(*apart[:BURST], apart[0])
    assert bench.shown.anew and bench.shown.scene.result is None
    bench.learner.work()
    bench.show(apart[0])
    bench.show(apart[0])
    assert not bench.shown.anew and verdict(bench) is Verdict.OK


@pytest.mark.parametrize("count", [0, 1])
def test_judging_goes_on_after_a_burst_of_which_nothing_is_learnt(bench, apart, count):
    bench.show(apart[0])
    bench.press("l")
    bench.show(*apart[:count])
    bench.press("l")
    assert bench.message.startswith(f"not learnt: {count} good frames are too few")
    bench.show(apart[0])
    assert not bench.shown.anew and verdict(bench) is Verdict.OK


def full(bench: Bench) -> None:
    """As many commands wait as may, as while a camera hangs."""
    while bench.worker.tell(lambda: None):
        pass


@pytest.mark.parametrize("key", list("shd+-al"))
def test_what_the_worker_does_not_take_changes_nothing(bench, apart, key):
    bench.show(apart[0])
    full(bench)
    before = bench.shown
    bench.session.press(ord(key))
    assert bench.message == "busy: press again"
    after = replace(bench.shown, message="")
    assert after == replace(before, message="")
    bench.show(apart[0])
    assert bench.shown.scene.result.threshold == bench.shown.threshold


def test_a_lesson_is_never_dropped(bench, apart):
    bench.show(apart[0])
    full(bench)
    bench.session.press(ord("n"))
    bench.session.tick()
    assert bench.worker._commands.qsize() > MOST_COMMANDS
    bench.show(apart[0])
    learnt = bench.session._knowledge.bundle.sha256
    assert bench.shown.scene.result.bundle_sha256 == learnt


def test_undo_into_a_stale_region_stops_judging(bench, apart):
    drag(bench, (0.2, 0.1, 0.9, 0.9))
    bench.press("r"), bench.press("r")
    assert bench.shown.knows_part and bench.shown.threshold is not None  # the dial is back
    bench.show(apart[0])
    assert verdict(bench) is Verdict.OK
    assert "another region" in bench.press("u")
    bench.show(apart[0])
    assert bench.shown.scene.result is None and bench.shown.threshold is None


def test_the_first_region_of_a_bundle_that_knows_no_part(bare):
    drag(bare, (0.2, 0.1, 0.9, 0.9))
    assert bare.message == "region set: press l to learn good parts"
    assert bare.press("u") == "undone: region as it was"


def test_freezing_ends_when_the_camera_is_lost(bench, apart):
    bench.show(apart[0])
    bench.press(" ")
    bench.show(None)
    assert not bench.shown.frozen and verdict(bench) is Verdict.UNKNOWN
    assert bench.press(" ").startswith("not frozen")


def test_frozen_camera_and_heat_go_on(bench, apart):
    bench.show(apart[0])
    bench.press(" ")
    bench.show(apart[1])
    assert bench.shown.scene.frame.index == 0 and bench.shown.now.frame.index == 1


def test_e_with_a_good_part_in_view_is_refused(bench, apart):
    bench.show(apart[0])
    assert bench.press("e") == "not noted: what is in view looks like a good part"


def test_e_is_believed_by_a_bundle_that_cannot_tell(nut_bundle, tmp_path, apart, still_frames):
    # Whatever it calls good may be the station itself, learnt with the parts.
    manifest = {**nut_bundle.manifest, "presence": None}
    manifest["alignment"] = {**manifest["alignment"], "recipe": "none"}
    bench = Bench(replace(nut_bundle, manifest=manifest), tmp_path)
    bench.show(apart[0])
    assert verdict(bench) is Verdict.OK
    assert bench.press("e").startswith("empty station noted")


def test_e_then_l_leaves_out_empty_frames_of_a_bundle_that_cannot_tell(
    nut_bundle, tmp_path, apart, still_frames
):
    manifest = {**nut_bundle.manifest, "presence": None}
    manifest["alignment"] = {**manifest["alignment"], "recipe": "none"}
    bench = Bench(replace(nut_bundle, manifest=manifest), tmp_path)
    bench.show(still_frames["empty"][0])
    assert bench.press("e").startswith("empty station noted: press l")
    bench.press("l")
    bench.show(still_frames["empty"][3])
    assert bench.shown.learning[:2] == ("no whole part in view", 0)
    bench.show(*apart[:BURST])
    assert bench.shown.pictures == BURST


def test_e_can_be_undone(bare, apart, still_frames):
    bare.show(apart[0])
    bare.press("e")  # wrong, and nothing is known yet that could tell
    bare.press("l")
    bare.show(*apart[:2])
    assert bare.shown.learning[:2] == ("no whole part in view", 0)
    bare.press("u")
    assert bare.press("u") == "undone: 0 pictures of the empty station noted"
    bare.press("l")
    bare.show(*apart[:BURST])
    assert bare.shown.pictures == BURST


def test_e_after_learning_is_undone_with_its_lesson(bench, apart, still_frames):
    bench.press("l")
    bench.show(*apart[:BURST])
    bench.show(still_frames["empty"][0])
    before = bench.session._knowledge
    bench.press("e")
    assert len(bench.session._knowledge.empties) == 1
    bench.press("u")
    assert bench.session._knowledge is before


def test_q_asks_before_it_throws_away_what_was_learnt(bench):
    bench.press("+")
    for key in ("q", "Esc"):
        bench.press("t")
        assert bench.press(key).startswith("not written: w writes")
        assert not bench.session.over
    assert bench.press("q") == "quit" and bench.session.over


def test_q_while_the_bundle_is_written_waits_for_it(bench):
    bench.press("+")
    bench.writer.waiting = True
    bench.press("w")
    assert bench.press("w").startswith("nothing new to write")
    assert bench.press("q") == "quit"
    bench.writer.work()
    bench.session.close()
    assert not bench.session.unwritten and not bench.events("lost")
    assert bench.events("written")[-1]["effect"].startswith("bundle written")
    assert not (bench.folder / "taught-2").exists()


def test_w_that_failed_can_be_pressed_again(bench):
    bench.press("+")
    (bench.folder / "file").write_text("")
    out, bench.session._out = bench.session._out, bench.folder / "file" / "b"
    bench.press("w")
    assert bench.message.startswith("not written: ")
    bench.session._out = out
    bench.press("w")
    assert not bench.session.unwritten


def test_a_moved_threshold_is_written_without_the_learnt_pictures(nut_bundle, tmp_path):
    files = {k: v for k, v in nut_bundle.manifest["files"].items() if k != "learnt.npz"}
    poor = replace(nut_bundle, manifest={**nut_bundle.manifest, "files": files})
    bench = Bench(poor, tmp_path)
    bench.press("+")
    bench.press("w")
    written = load_bundle(tmp_path / "taught")
    assert written.manifest["threshold"]["value"] == bench.shown.threshold
    assert written.learnt() is None


def test_one_picture_is_learnt_once(bare, bench, apart):
    for one in (bare, bench):
        one.show(apart[0])
        one.press("n")
        size = len(one.session._held_frames())
        assert one.press("n") == "not learnt: this very picture is learnt already"
        assert len(one.session._held_frames()) == size


def test_l_after_the_end_of_the_source_is_refused(bench, apart):
    bench.show(apart[0])
    bench.worker.end()
    bench.session.tick()
    assert bench.press("l").startswith("not learnt: the source has ended")
