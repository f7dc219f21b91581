"""The service's loop by itself: what is swapped, shown, said and fed, frame by frame."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from edge_app.bundle import load_bundle
from edge_app.chronicle import Chronicle
from edge_app.config import DEFAULT_FILE, load_config
from edge_app.errors import BundleError, InputError
from edge_app.event_reader import EventReader
from edge_app.event_rows import Row
from edge_app.inspector import CUT_OFF, SeeingInspector
from edge_app.metrics import Metrics
from edge_app.records import Event, Frame, Result, Verdict
from edge_app.service import loop as loop_module
from edge_app.service.board import HISTORY, Board, remembered
from edge_app.service.caretaker import Caretaker
from edge_app.service.controls import Controls
from edge_app.service.loop import MOST_PICTURES, Loop
from edge_app.service.self_test import self_test
from edge_app.sinks.gpio import lamp
from edge_app.station import Station
from edge_app.thermal import ThermalWatch
from edge_app.trigger import Gate


class Camera:
    """A source of given frames whose driver may hang."""

    name, live, separate_parts, stuck_s = "camera", True, False, 0.0

    def __init__(self, frames=()):
        self._frames = frames

    def frames(self):
        yield from self._frames


class Systemd:
    def __init__(self):
        self.fed, self.said = 0, []

    def watchdog(self):
        self.fed += 1

    def status(self, text):
        self.said.append(text)

    def stopping(self):
        self.said.append("stopping")

    def reloading(self):
        self.said.append("reloading")

    def ready(self):
        self.said.append("ready")


class Box:
    """What an outbox is to the loop; `waiting` is what a slow disk makes it."""

    waiting = 0

    def __init__(self):
        self.items = []

    def offer(self, item):
        self.items.append(item)
        return True

    def of(self, kind):
        return [item for item in self.items if isinstance(item, Event) and item.kind == kind]


class Bench:
    def __init__(self, bundle, mode="part", watch=None, frames=()):
        self.config = load_config(DEFAULT_FILE)
        self.bundle, self.mode = bundle, mode
        self.camera, self.systemd, self.store, self.output = Camera(frames), Systemd(), Box(), Box()
        self.metrics = Metrics()
        self.board = Board("bench")
        self.loop = Loop(
            self.camera,
            Station(self.inspector(), watch),
            self.board,
            Chronicle(mode),
            self.store,
            [self.output],
            self.metrics,
            self.systemd,
            camera_hang_s=60.0,
            stream_fps=1000.0,
        )

    def inspector(self, bundle=None):
        return SeeingInspector(
            bundle or self.bundle, self.config.decision, self.mode, quality=self.config.quality
        )

    @property
    def parts(self):
        return [r for r in self.output.items if isinstance(r, Result) and r.event == "part"]


def live(views):
    return [Frame(i, "camera", view, captured_s=float(i)) for i, view in enumerate(views)]


@pytest.fixture
def passing(still_frames):
    """The views of one good part that comes and goes."""
    empty, good = still_frames["empty"], still_frames["good"]
    return [*empty[:2], *good[:4], *empty[2:5]]


def test_a_swap_waits_for_the_end_of_the_part_and_loses_no_frame(nut_bundle, passing):
    bench, taken = Bench(nut_bundle), []
    frames = live(passing * 2)
    other = bench.inspector()
    for frame in frames:
        if frame.index == 4:  # in the middle of the first part
            bench.loop.tell(
                lambda: bench.loop.use(other, lambda: taken.append(bench.loop.last_frame.index))
            )
        bench.loop._obey()
        bench.loop.see(frame)
    results = [r for r in bench.output.items if isinstance(r, Result) and r.event == "frame"]
    assert [result.frame.index for result in results] == list(range(len(frames)))
    assert bench.loop.station.inspector is other and taken == [
        7
    ]  # the frame before the one that it judges
    assert [part.decision.part for part in bench.parts] == [0, 1]
    assert [part.decision.verdict for part in bench.parts] == [Verdict.OK] * 2
    assert [part.decision.closed.usable for part in bench.parts] == [4, 4]


def test_ng_is_an_event_under_a_bundle_of_another_mode_too(nut_bundle, still_frames):
    bench = Bench(nut_bundle, "part")
    bench.mode = "continuous"
    bench.loop.use(bench.inspector(), lambda: None)
    for frame in live(still_frames["bad"][:3]):
        bench.loop.see(frame)
    (event,) = bench.store.of("ng")
    assert event.detail.startswith("The view is NG")


def test_between_two_announced_parts_nothing_old_is_shown(nut_bundle, still_frames):
    """A lost camera, or a hold, that is over must not stand there until the next part comes."""
    bench = Bench(nut_bundle, "triggered")
    bench.loop.station.gate = Gate(bench.config.trigger)
    assert bench.board.snapshot()["reason"] == "start: no frame yet"
    bench.loop.see(replace(live(still_frames["good"])[0], frame_bgr=None, problem="camera: lost"))
    assert bench.board.snapshot()["reason"] == "camera: lost"
    bench.loop.see(live(still_frames["good"])[1])
    state = bench.board.snapshot()
    assert (state["verdict"], state["reason"]) == ("UNKNOWN", "trigger: no part announced")
    assert bench.board.line() == "waiting for a trigger"


def test_a_part_left_lying_does_not_keep_a_swap_out_for_ever(nut_bundle, still_frames, monkeypatch):
    bench, taken = Bench(nut_bundle), []
    frames = live(still_frames["good"][:8])
    for frame in frames:
        if frame.index == 4:
            monkeypatch.setattr(loop_module, "PATIENCE_S", 0.0)
            bench.loop.use(bench.inspector(), lambda: taken.append(bench.loop.last_frame.index))
        bench.loop.see(frame)
    assert taken == [3]
    (part,) = bench.parts  # said at once: who waits for its end may wait for ever
    assert part.decision.part == 0 and part.decision.closed.usable == 4
    assert bench.board.snapshot()["last_part"]["verdict"] == "UNKNOWN"
    figures = bench.metrics.render().decode()
    assert 'edge_app_parts_total{verdict="UNKNOWN"} 1.0' in figures
    assert "edge_app_frames_total 8.0" in figures  # the frame of the swap is one
    assert "edge_app_frames_skipped_total 0.0" in figures


@pytest.mark.parametrize("kind", ["good", "bad"])
def test_a_part_cut_off_by_a_swap_has_one_verdict_unknown(
    nut_bundle, still_frames, monkeypatch, kind
):
    """Half of it was seen by neither bundle: OK would be a guess, and twice is one too many."""
    monkeypatch.setattr(loop_module, "PATIENCE_S", 0.0)
    bench, taken = Bench(nut_bundle), []
    empty, part, good = still_frames["empty"], still_frames[kind], still_frames["good"]
    views = [*empty[:2], *part[:12], *empty[2:5], *good[:4], *empty[:3]]
    lamps, shown = [], Verdict.UNKNOWN
    for frame in live(views):
        if frame.index in (6, 9):  # the second finds nothing to wait for any more
            bench.loop.use(bench.inspector(), lambda: taken.append(bench.loop.last_frame.index))
            monkeypatch.setattr(loop_module, "PATIENCE_S", 60.0)
        before = len(bench.output.items)
        bench.loop.see(frame)
        for result in bench.output.items[before:]:
            if isinstance(result, Result):
                shown = lamp(shown, result)
        lamps.append(shown)
    assert taken == [5, 8]
    cut, after = bench.parts
    assert (cut.decision.part, after.decision.part) == (0, 1)
    assert cut.decision.verdict is Verdict.UNKNOWN and cut.decision.score_smoothed is None
    assert cut.decision.reason == CUT_OFF and cut.decision.closed.usable == 4
    assert after.decision.verdict is Verdict.OK and after.decision.closed.usable == 4
    rest = [
        r for r in bench.output.items if isinstance(r, Result) and r.frame.index in range(6, 14)
    ]
    assert {(r.decision.part, r.decision.verdict, r.decision.reason) for r in rest} == {
        (0, Verdict.UNKNOWN, CUT_OFF)
    }
    # Yellow from the swap on, until the next part has its verdict.
    assert set(lamps[6:20]) == {Verdict.UNKNOWN} and lamps[-1] is Verdict.OK
    (event,) = bench.store.of("unknown")
    assert event.part == 0 and event.frame_bgr is not None and not bench.store.of("ng")


def test_an_announced_part_cut_off_by_a_swap_has_one_verdict_too(
    nut_bundle, still_frames, monkeypatch
):
    monkeypatch.setattr(loop_module, "PATIENCE_S", 0.0)
    bench = Bench(nut_bundle, "triggered")
    trigger = replace(bench.config.trigger, frames=6, debounce_s=0.0, delay_s=0.0)
    bench.loop.station.gate = gate = Gate(trigger)
    for frame in live(still_frames["good"][:20]):
        if frame.index in (1, 9):
            gate.fire(frame.captured_s)
        if frame.index == 4:
            bench.loop.use(bench.inspector(), lambda: None)
        bench.loop.see(frame)
    cut, after = bench.parts
    assert cut.decision.reason == CUT_OFF and cut.announced_s == 1.0
    assert cut.decision.closed.usable == 3
    assert (after.decision.part, after.decision.verdict) == (1, Verdict.OK)
    assert after.decision.closed.usable == 6


@pytest.mark.parametrize("why", ["camera", "stopped", "verify", "heat", "black"])
@pytest.mark.parametrize("swapped_again", [False, True], ids=["once", "twice"])
def test_blind_frames_do_not_make_another_part_of_the_rest(
    nut_bundle, still_frames, monkeypatch, why, swapped_again
):
    """Nobody saw it go, and a second verdict, OK, would be one on a part that is UNKNOWN."""
    monkeypatch.setattr(loop_module, "PATIENCE_S", 0.0)
    bench = Bench(nut_bundle)
    empty, good = still_frames["empty"], still_frames["good"]
    # A single EMPTY view, as between two blind ones, ends no part.
    views = [*empty[:2], *good[:8], empty[2], *good[:4], *empty[2:5], *good[:4], *empty[:3]]
    blind = range(7, 10)
    hold = {"stopped": "stopped: by hand", "verify": "verify: failed", "heat": "heat: paused"}
    for frame in live(views):
        if frame.index == 4 or (swapped_again and frame.index == 9):
            bench.loop.use(bench.inspector(), lambda: None)
        # The station itself makes a heat pause of a frame as it does a hold.
        bench.loop.station.hold = hold.get(why) if frame.index in blind else None
        if frame.index in blind and why == "camera":
            frame = replace(frame, frame_bgr=None, problem="camera: lost")
        if frame.index in blind and why == "black":
            frame = replace(frame, frame_bgr=np.zeros_like(frame.frame_bgr))
        bench.loop.see(frame)
    cut, after = [(p.decision.part, p.decision.verdict) for p in bench.parts]
    assert cut == (0, Verdict.UNKNOWN) and after == (1, Verdict.OK)
    assert bench.parts[1].decision.closed.usable == 4
    rest = [r for r in bench.output.items if isinstance(r, Result) and 4 <= r.frame.index < 15]
    assert {r.decision.verdict for r in rest} == {Verdict.UNKNOWN, Verdict.EMPTY}


def test_a_lost_camera_does_not_swallow_the_part_announced_next(
    nut_bundle, still_frames, monkeypatch
):
    monkeypatch.setattr(loop_module, "PATIENCE_S", 0.0)
    bench = Bench(nut_bundle, "triggered")
    trigger = replace(bench.config.trigger, frames=6, debounce_s=0.0, delay_s=0.0)
    bench.loop.station.gate = gate = Gate(trigger)
    for frame in live(still_frames["good"][:20]):
        if frame.index in (1, 9):
            gate.fire(frame.captured_s)
        if frame.index == 3:
            bench.loop.use(bench.inspector(), lambda: None)
        if frame.index in (4, 5):
            frame = replace(frame, frame_bgr=None, problem="camera: lost")
        bench.loop.see(frame)
    told = [(p.decision.part, p.decision.verdict, p.announced_s) for p in bench.parts]
    assert told == [(0, Verdict.UNKNOWN, 1.0), (1, Verdict.OK, 9.0)]


def test_the_rest_of_a_part_keeps_the_time_of_the_part(nut_bundle, passing, monkeypatch):
    monkeypatch.setattr(loop_module, "PATIENCE_S", 0.0)
    bench = Bench(nut_bundle)
    for frame in live(passing):
        if frame.index == 4:
            bench.loop.use(bench.inspector(), lambda: None)
        bench.loop.see(frame)
    results = [r for r in bench.output.items if isinstance(r, Result) and r.decision.part == 0]
    assert len(results) == 5 and {result.announced_s for result in results} == {2.0}


def test_the_rest_of_a_part_that_was_cut_off_gives_no_verdict_at_the_end(
    nut_bundle, still_frames, monkeypatch
):
    monkeypatch.setattr(loop_module, "PATIENCE_S", 0.0)
    bench = Bench(nut_bundle)
    for frame in live(still_frames["bad"][:8]):
        if frame.index == 4:
            bench.loop.use(bench.inspector(), lambda: None)
        bench.loop.see(frame)
    bench.loop.run()  # no frames are left
    (part,) = bench.parts
    assert part.decision.reason == CUT_OFF


def test_pictures_are_drawn_only_for_who_watches(nut_bundle, still_frames):
    bench = Bench(nut_bundle, "continuous")
    bad = live(still_frames["bad"][:8])
    bench.loop.see(bad[0])
    assert bench.board.picture is None
    bench.board.watch()
    for frame in bad[1:]:
        bench.loop.see(frame)
    number, picture, verdict = bench.board.picture
    assert verdict == "NG" and picture.shape == bad[0].frame_bgr.shape
    assert (picture != bad[-1].frame_bgr).any()  # the heatmap is on it
    bench.board.unwatch()
    assert bench.board.picture is None  # the next to come is not shown an old one
    bench.loop.see(bad[0])
    assert bench.board.picture is None and number > 1


def test_outputs_get_no_pictures_and_the_store_gets_them(nut_bundle, still_frames):
    bench = Bench(nut_bundle, "continuous")
    for frame in live(still_frames["bad"][:6]):
        bench.loop.see(frame)
    (event,) = bench.store.of("ng")
    assert event.frame_bgr is not None and event.overlay_bgr is not None
    for item in bench.output.items:
        pictures = [getattr(item, name, None) for name in ("overlay_bgr", "map_01", "frame_bgr")]
        assert pictures == [None, None, None]
        assert not isinstance(item, Result) or item.frame.frame_bgr is None


def test_a_slow_disk_costs_the_picture_not_the_event(nut_bundle, still_frames):
    bench = Bench(nut_bundle, "continuous")
    bench.store.waiting = MOST_PICTURES
    for frame in live(still_frames["bad"][:6]):
        bench.loop.see(frame)
    (event,) = bench.store.of("ng")
    assert event.frame_bgr is None and "too slow" in event.data["pictures"]


def test_the_watchdog_is_fed_by_frames_and_not_while_the_driver_hangs(nut_bundle, still_frames):
    bench = Bench(nut_bundle, frames=live(still_frames["good"][:3]))
    bench.loop.run()
    assert bench.systemd.fed == 3 and bench.systemd.said[-1] == "stopping"
    bench = Bench(nut_bundle, frames=live(still_frames["good"][:3]))
    bench.camera.stuck_s = 61.0
    bench.loop.run()
    assert bench.systemd.fed == 0


def test_the_part_in_view_at_the_end_has_its_verdict(nut_bundle, still_frames):
    bench = Bench(nut_bundle, frames=live(still_frames["bad"][:5]))
    bench.loop.run()
    (part,) = bench.parts
    assert part.decision.verdict is Verdict.NG
    (event,) = bench.store.of("ng")
    assert event.part == 0


def test_changes_of_heat_are_events(nut_bundle, still_frames, tmp_path):
    settings = load_config(DEFAULT_FILE).thermal
    sensor = tmp_path / "temp"
    sensor.write_text("50000\n")
    now = [0.0]
    settings = replace(settings, sensor=str(sensor), throttled=str(tmp_path / "none"))
    bench = Bench(nut_bundle, watch=ThermalWatch(settings, clock=lambda: now[0]))
    good = still_frames["good"][0]
    for second in range(200):
        if second == 40:
            sensor.write_text("95000\n")
        now[0] = float(second)
        bench.loop.see(Frame(second, "camera", good, captured_s=now[0]))
    states = [(event.data["from"], event.data["to"]) for event in bench.store.of("heat")]
    assert states[0][0] == "normal" and states[-1][1] == "paused"
    assert all(before != after for before, after in states)


def test_a_stop_and_failed_masters_both_hold(nut_bundle, still_frames):
    bench = Bench(nut_bundle, "continuous")
    (good,) = live(still_frames["good"][:1])

    def reason():
        bench.loop.see(good)
        return [r for r in bench.output.items if isinstance(r, Result)][-1].decision.reason

    bench.loop.stop_scoring("stopped: by hand")
    bench.loop.distrust("verify: 1 of 2 bad masters NG")
    assert reason() == "verify: 1 of 2 bad masters NG" == bench.board.snapshot()["hold"]
    bench.loop.distrust(None)
    assert reason() == "stopped: by hand" and bench.board.snapshot()["scoring"] is False
    bench.loop.stop_scoring(None)
    assert reason() is None


def test_a_status_line_tells_verdict_rate_and_reason(nut_bundle, still_frames):
    bench = Bench(nut_bundle, "continuous")
    assert bench.board.line() == "waiting for the camera"
    for frame in live(still_frames["good"][:3]):
        bench.loop.see(frame)
    assert bench.board.line().startswith("OK, ") and "frames/s" in bench.board.line()
    bench.loop.see(Frame(3, "camera", None, problem="camera: lost (unplugged)"))
    assert bench.board.line().startswith("UNKNOWN (camera: lost (unplugged))")


def test_the_history_is_of_parts_where_there_are_parts_and_bounded(nut_bundle, passing):
    bench = Bench(nut_bundle)
    for _ in range(2):
        for frame in live(passing):
            bench.loop.see(frame)
    history = bench.board.snapshot()["history"]
    assert [(point[0], point[2]) for point in history] == [(1, "OK"), (2, "OK")]
    bench = Bench(nut_bundle, "continuous")
    for _ in range(HISTORY // 4 + 1):
        for frame in live(passing[2:6]):
            bench.loop.see(frame)
    history = bench.board.snapshot()["history"]
    assert len(history) == HISTORY and history[-1][0] == history[0][0] + HISTORY - 1


def test_a_disk_that_cannot_be_read_leaves_the_rest_to_be_shown(nut_bundle, tmp_path):
    board = Bench(nut_bundle).board
    # No disk takes such a name: the error is one of the system's.
    reader = EventReader(tmp_path / ("x" * 300))
    board.storage, board.last_event = (
        remembered(reader.totals, 5.0),
        remembered(reader.last_id, 5.0, 0),
    )
    state = board.snapshot()
    assert state["storage"] is None and state["last_event"] == 0 and state["part"] == "nut"


class Checks:
    """The checks of the masters, or why they cannot be read."""

    def __init__(self, *rows):
        self.rows, self.problem = rows, None

    def last_of(self, kind):
        return next(self.walk(), None)

    def walk(self, kinds=None):
        if self.problem is not None:
            raise InputError(self.problem)
        return iter(self.rows)


def check(id, passed, trial=False, of=None):
    data = {"passed": passed, "trial": trial}
    return Row(id, "boot", 1.0, 1.0, "verify", "outcome", bundle_sha256=of, data=data)


def minded(bench, checks, **more):
    """A caretaker that wants the masters to pass, without its thread."""
    service = replace(bench.config.service, verify_required=True)
    given = {"read_config": None, "build": None, "end": None, **more}
    return Caretaker(
        bench.loop,
        bench.systemd,
        bench.bundle.path,
        replace(bench.config, service=service),
        store=checks,
        **given,
    )


def test_checks_that_cannot_be_read_hold_the_line_at_the_start_and_not_later(nut_bundle):
    bench, checks = Bench(nut_bundle), Checks()
    caretaker = minded(bench, checks)

    def hold():
        caretaker._mind_masters()
        bench.loop._obey()
        return bench.board.hold

    checks.problem = "events.sqlite: cannot be read"
    assert hold() == "verify: events.sqlite: cannot be read"
    checks.problem = None
    assert hold() is None
    checks.rows = (check(2, True, trial=True), check(1, False))  # the newest first
    assert hold() == "verify: outcome"
    checks.rows = (check(3, True), *checks.rows)
    assert hold() is None
    checks.problem = "events.sqlite: is locked"
    assert hold() is None


def test_the_failed_trial_of_a_bundle_holds_the_line_once_it_judges(nut_bundle, pooled_bundle):
    bench = Bench(nut_bundle, "continuous")
    checks = Checks(check(2, False, trial=True, of=pooled_bundle.sha256), check(1, True))
    caretaker = minded(bench, checks, build=lambda bundle, config: bench.inspector(bundle))

    def hold():
        caretaker._mind_masters()
        bench.loop._obey()
        return bench.board.hold

    assert hold() is None
    caretaker._prepare(pooled_bundle, bench.config)
    bench.loop._obey()
    bench.loop.see(Frame(0, "camera", None, problem="camera: lost"))
    assert caretaker.judging is pooled_bundle
    assert hold() == "verify: outcome"


def test_a_reload_that_fails_for_whatever_reason_ends_for_systemd(nut_bundle):
    bench = Bench(nut_bundle)

    def read_config():
        raise MemoryError

    caretaker = minded(bench, Checks(), read_config=read_config)
    with pytest.raises(MemoryError):
        caretaker._reload()
    assert bench.systemd.said == ["reloading", "ready"]


def test_bundles_that_cannot_be_read_are_none(nut_bundle, tmp_path):
    """One that somebody has spoilt must not take learning and reverting away."""
    shutil.copytree(nut_bundle.path, tmp_path / "nut")
    for name, text in (("list", "[]"), ("empty", "{}"), ("half", '{"part": "nut"')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(text)
    fields = json.loads((nut_bundle.path / "manifest.json").read_text())
    for name, change in (("flat", {"threshold": 3}), ("older", {"parent_sha256": "0" * 64})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps({**fields, **change}))
    (tmp_path / "nameless").mkdir()
    del fields["manifest_sha256"]
    (tmp_path / "nameless" / "manifest.json").write_text(json.dumps(fields))
    (tmp_path / "current").symlink_to("nut")
    caretaker = SimpleNamespace(judging=nut_bundle, config=None)
    controls = Controls(None, caretaker, Board("bench"), None, tmp_path / "current", 1, None)
    assert [bundle["name"] for bundle in controls.bundles()] == ["nut"]


def test_an_event_of_another_part_is_not_learnt(nut_bundle, pooled_bundle, tmp_path):
    """After a change of product its old events can still be opened."""
    for bundle in (nut_bundle, pooled_bundle):
        shutil.copytree(bundle.path, tmp_path / bundle.manifest["part"])
    (tmp_path / "current").symlink_to(nut_bundle.manifest["part"])
    row = replace(check(7, True), verdict=Verdict.NG, bundle_sha256=pooled_bundle.sha256)
    caretaker = SimpleNamespace(judging=nut_bundle, config=None)
    store = SimpleNamespace(get=lambda id: row, picture=lambda id, which: None)
    board = Board("bench")
    controls = Controls(None, caretaker, board, store, tmp_path / "current", 1, None)
    other = pooled_bundle.manifest["part"]
    with pytest.raises(InputError, match=f"event 7 is of {other}, and what judges now is of nut"):
        controls.learn_good(7)
    row = replace(row, bundle_sha256=nut_bundle.sha256)
    with pytest.raises(InputError, match="has no picture any more"):
        controls.learn_good(7)


class Store:
    """As much of the event store as the page's hands ask for."""

    def __init__(self, row=None, picture=None, told=()):
        self.row, self.file, self.told, self.problem = row, picture, told, None

    def get(self, id):
        return self.row

    def picture(self, id, which):
        return self.file

    def walk(self, limit=None, kinds=None):
        if self.problem is not None:
            raise InputError(self.problem)
        return (replace(check(n, True), detail=said) for n, said in enumerate(self.told, 1))

    def set_mark(self, id, mark):
        raise InputError("events.sqlite: cannot be written: No space left on device")


class Judge:
    """A caretaker under whom whatever the link points at judges at once."""

    def __init__(self, bundle, config):
        self.judging, self.config = bundle, config

    def wait_for(self, sha256, wait_s):
        return True


@pytest.fixture
def hands(nut_bundle, still_frames, tmp_path):
    """Controls of a link to a copy of the nut, an NG event, and a disk that keeps no mark."""
    shutil.copytree(nut_bundle.path, tmp_path / "nut")
    (tmp_path / "current").symlink_to("nut")
    bench, picture = Bench(nut_bundle), tmp_path / "event.png"
    cv2.imwrite(str(picture), still_frames["good"][0])
    row = replace(check(7, True), verdict=Verdict.NG, bundle_sha256=nut_bundle.sha256)
    store = Store(row, picture, ["nut-learnt-20260131T120000 judges", "bundle nut-old given up"])
    service = replace(bench.config.service, most_threshold_rise=100.0)
    judge = Judge(load_bundle(tmp_path / "nut"), replace(bench.config, service=service))
    controls = Controls(bench.loop, judge, bench.board, store, tmp_path / "current", 1, None)
    return SimpleNamespace(controls=controls, bench=bench, store=store, judge=judge, path=tmp_path)


def test_a_lesson_whose_mark_cannot_be_kept_has_happened_all_the_same(hands):
    """The other bundle judges by then: an error would have it learnt again."""
    first = hands.judge.judging
    said = hands.controls.learn_good(7)
    assert said.startswith("event 7 learnt as a good part: nut-learnt-")
    assert said.endswith("the mark could not be kept: events.sqlite: cannot be written: No space "
                         "left on device")  # fmt: skip
    child = load_bundle(hands.path / "current")
    assert child.manifest["parent_sha256"] == first.sha256
    (event,) = hands.bench.store.of("learn")
    assert event.data["to"] == child.sha256
    # Back again: of which events were marked is read from a disk that cannot be read.
    hands.judge.judging, hands.store.problem = child, "events.sqlite: cannot be read"
    said = hands.controls.revert(first.sha256)
    assert said.startswith("back to nut, ") and said.endswith("kept: events.sqlite: cannot be read")
    assert load_bundle(hands.path / "current").sha256 == first.sha256
    with pytest.raises(InputError, match="cannot be written"):
        hands.controls.mark_defect(7)  # here nothing else has happened


def test_no_bundle_has_a_name_that_another_had(hands, caplog):
    """The clock of a board may live through an hour twice; the event says who judged."""
    noon_s = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()
    controls = hands.controls
    (hands.path / "nut-learnt-20260131T120001").mkdir()
    (hands.path / "nut-learnt-20260131T120002").symlink_to("nowhere")
    assert controls._new_folder("nut-learnt", noon_s).name == "nut-learnt-20260131T120003"
    assert controls._new_folder("nut-threshold", noon_s).name == "nut-threshold-20260131T120000"
    hands.store.problem = "events.sqlite: cannot be read"
    assert controls._new_folder("nut-learnt", noon_s).name == "nut-learnt-20260131T120000"
    assert "names of earlier bundles cannot be read" in caplog.text


def test_a_lost_camera_has_no_last_picture(nut_bundle, still_frames):
    """Kept by hand it would be taken for what was seen then."""
    bench = Bench(nut_bundle, "continuous")
    seen, lost = live(still_frames["good"][:2])
    bench.loop.see(seen)
    assert bench.loop.last_frame is seen
    bench.loop.see(replace(lost, frame_bgr=None, problem="camera: lost"))
    assert bench.loop.last_frame is None


def test_a_question_to_the_disk_is_asked_once_for_all_who_look():
    asked = []
    answer = remembered(lambda: asked.append(1) or len(asked), 60.0)
    assert [answer() for _ in range(5)] == [1] * 5
    answer = remembered(lambda: asked.append(1) or len(asked), 0.0)
    assert answer() < answer()


def test_a_bundle_that_gives_no_number_fails_its_self_test(nut_bundle):
    bench = Bench(nut_bundle)
    score, verdict = self_test(bench.inspector())
    assert verdict is Verdict.OK and 0 < score < nut_bundle.manifest["threshold"]["value"]
    broken = bench.inspector()
    broken.look = lambda *args, **kwargs: replace(
        SeeingInspector.look(broken, *args, **kwargs), score=float("nan")
    )
    with pytest.raises(BundleError, match="its self-test gives"):
        self_test(broken)
