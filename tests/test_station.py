"""What a station makes of trigger, heat and poor pictures."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from edge_app.bundle import load_bundle
from edge_app.cli import main
from edge_app.config import DEFAULT_FILE, load_config
from edge_app.errors import InputError
from edge_app.records import Frame, Verdict
from edge_app.station import Station, build_station
from edge_app.thermal import Heat, ThermalWatch
from edge_app.trigger import Gate


class Camera:
    """As much of a live source as a station asks about."""

    live = True
    separate_parts = False


@pytest.fixture(scope="module")
def config():
    # Not the heat of the machine that runs the tests.
    config = load_config(DEFAULT_FILE)
    return replace(config, thermal=replace(config.thermal, enabled=False))


def seen(picture, index, at_s):
    return Frame(index, "camera", picture, captured_s=at_s)


class Board:
    """A clock and a sensor file, both moved by hand."""

    def __init__(self, tmp_path, settings, celsius):
        self.now_s = 0.0
        self._file = tmp_path / "temp"
        self.set(celsius)
        settings = replace(settings, sensor=str(self._file), throttled=str(tmp_path / "none"))
        self.watch = ThermalWatch(settings, clock=lambda: self.now_s)

    def set(self, celsius):
        self._file.write_text(f"{int(celsius * 1000)}\n")

    def heat_to(self, celsius):
        """Hold a temperature until the filter has followed."""
        self.set(celsius)
        for _ in range(120):
            self.now_s += 1.0
            self.watch.due()


def test_a_trigger_opens_a_part_of_so_many_frames(nut_bundle, config, still_frames):
    trigger = replace(config.trigger, kind="key", frames=4, delay_s=0.5)
    station = build_station(nut_bundle, replace(config, trigger=trigger), Camera(), fires=("key",))
    good, bad = still_frames["good"][0], still_frames["bad"][0]
    assert isinstance(station.gate, Gate)
    assert station.take(seen(good, 0, 10.0)) == [] and station.idle == 1
    station.gate.fire(10.1)
    assert station.take(seen(good, 1, 10.5)) == []
    closed = []
    for index, at_s in enumerate((10.6, 10.7, 10.8, 10.9), 2):
        closed += [r for r in station.take(seen(bad, index, at_s)) if r.event == "part"]
    (part,) = closed
    assert part.decision.verdict is Verdict.NG and part.decision.closed.usable == 4
    assert part.announced_s == pytest.approx(10.1)  # not its first frame: the delay lies between
    assert part.overlay_bgr is not None
    assert station.take(seen(bad, 9, 11.0)) == []


def test_a_trigger_without_a_part_in_view_is_unknown(nut_bundle, config, still_frames):
    trigger = replace(config.trigger, kind="key", frames=1)
    station = build_station(nut_bundle, replace(config, trigger=trigger), Camera(), fires=("key",))
    station.gate.fire(1.0)
    results = station.take(seen(still_frames["empty"][0], 0, 1.0))
    assert [r.event for r in results] == ["frame", "part"]
    assert results[-1].decision.verdict is Verdict.UNKNOWN
    assert "none in view" in results[-1].decision.reason


def test_a_part_overtaken_by_the_next_has_its_verdict(nut_bundle, config, still_frames):
    trigger = replace(config.trigger, kind="key", frames=5, debounce_s=0.0)
    station = build_station(nut_bundle, replace(config, trigger=trigger), Camera(), fires=("key",))
    parts = []
    for index in range(8):
        if index in (0, 4):
            station.gate.fire(float(index))
        frame = seen(still_frames["good"][index], index, float(index))
        parts += [r for r in station.take(frame) if r.event == "part"]
    parts += station.finish()
    assert [part.decision.closed.usable for part in parts] == [4, 4]
    assert [part.decision.part for part in parts] == [0, 1]
    assert [part.announced_s for part in parts] == [0.0, 4.0]


def test_a_part_that_comes_into_view_is_announced_by_its_first_frame(
    nut_bundle, config, still_frames
):
    station = build_station(nut_bundle, config, Camera(), mode="part")
    empty, good = still_frames["empty"][0], still_frames["good"][0]
    views, results = [empty, good, good, good, empty, empty, empty], []
    for index, view in enumerate(views):
        results += station.take(seen(view, index, 20.0 + index))
    (part,) = [result for result in results if result.event == "part"]
    assert part.announced_s == 21.0
    assert [r.announced_s for r in results if r.decision.part is None] == [None] * 4


def test_what_holds_a_station_makes_everything_unknown(nut_bundle, config, still_frames):
    station = build_station(nut_bundle, config, Camera(), mode="continuous")
    good = still_frames["good"][0]
    station.hold = "stopped: by hand"
    (result,) = station.take(seen(good, 0, 1.0))
    assert result.decision.verdict is Verdict.UNKNOWN
    assert result.decision.reason == "stopped: by hand" and "encode" not in result.latency_ms
    station.hold = None
    (result,) = station.take(seen(good, 1, 2.0))
    assert result.decision.verdict is Verdict.OK


def test_another_inspector_goes_on_with_the_numbers_of_parts(nut_bundle, config, still_frames):
    station = build_station(nut_bundle, config, Camera(), mode="part")
    empty, good = still_frames["empty"][0], still_frames["good"][0]
    views = [good, good, good, empty, empty, empty]
    parts = []
    for _ in range(2):
        for index, view in enumerate(views):
            assert station.inspector.part_open is (0 < index < 5)
            parts += [r for r in station.take(seen(view, index, index)) if r.event == "part"]
        successor = build_station(nut_bundle, config, Camera(), mode="part").inspector
        assert station.replace_inspector(successor) == []
    assert [part.decision.part for part in parts] == [0, 1]


def test_a_lost_camera_is_said_at_once_whatever_the_trigger(nut_bundle, config):
    trigger = replace(config.trigger, kind="key")
    station = build_station(nut_bundle, replace(config, trigger=trigger), Camera(), fires=("key",))
    (result,) = station.take(Frame(0, "camera", None, problem="camera: lost (unplugged)"))
    assert result.decision.verdict is Verdict.UNKNOWN
    assert result.decision.reason == "camera: lost (unplugged)"


def test_heat_skips_frames_drops_heatmaps_and_pauses(nut_bundle, config, still_frames, tmp_path):
    inspector = build_station(nut_bundle, config, Camera(), mode="continuous").inspector
    board = Board(tmp_path, config.thermal, 50)
    station = Station(inspector, board.watch)
    bad = still_frames["bad"][0]

    def next_result():
        for _ in range(10_000):
            board.now_s += 0.1
            results = station.take(seen(bad, 0, board.now_s))
            if results:
                return results[-1]
        raise AssertionError("the station never takes a frame")

    cool = next_result()
    assert (cool.decision.verdict, cool.degraded) == (Verdict.NG, ())
    assert cool.overlay_bgr is not None
    board.heat_to(79.5)
    hot = next_result()
    assert hot.decision.verdict is Verdict.NG and hot.overlay_bgr is None
    assert "heatmaps off" in " ".join(hot.degraded)
    board.heat_to(84)
    paused = next_result()
    assert paused.decision.verdict is Verdict.UNKNOWN
    assert paused.decision.reason.startswith("heat: paused at 8")
    board.heat_to(60)
    again = next_result()
    assert again.decision.verdict is Verdict.NG and again.overlay_bgr is not None


def test_files_are_neither_watched_nor_triggered(nut_bundle, config):
    class Files(Camera):
        live = False

    trigger = replace(config.trigger, kind="gpio")
    station = build_station(nut_bundle, replace(config, trigger=trigger), Files())
    assert station.watch is None and station.gate is None


@pytest.fixture(scope="module")
def judged_bundle(tmp_path_factory, base_path, still_frames):
    """A bundle enrolled from the clip that knows the empty station and the light of good parts."""
    root = tmp_path_factory.mktemp("judged")
    for kind, frames in (
        ("good", still_frames["good"][:84:4]),
        ("empty", still_frames["empty"][:5]),
    ):
        (root / kind).mkdir()
        for index, frame in enumerate(frames):
            cv2.imwrite(str(root / kind / f"{index:03d}.png"), frame)
    argv = ["enroll", root / "good", "--empty", root / "empty", "--bundle", base_path]
    assert main([str(arg) for arg in [*argv, "--out", root / "b"]]) == 0
    return load_bundle(root / "b")


@pytest.mark.parametrize(
    ("spoil", "verdict", "said"),
    [
        (lambda f: f, Verdict.OK, None),
        (np.zeros_like, Verdict.UNKNOWN, "too dark"),
        (lambda f: np.full_like(f, 255), Verdict.UNKNOWN, "overexposed"),
        (lambda f: cv2.GaussianBlur(f, (0, 0), 4), Verdict.UNKNOWN, "blurred"),
    ],
    ids=["good", "black", "white", "blurred"],
)
def test_a_picture_that_cannot_be_judged_is_unknown(
    judged_bundle, config, still_frames, spoil, verdict, said
):
    station = build_station(judged_bundle, config, Camera(), mode="single")
    (result,) = station.take(seen(spoil(still_frames["good"][2]), 0, 0.0))
    assert result.decision.verdict is verdict, result.decision.reason
    assert said is None or said in result.decision.reason


def test_an_empty_station_is_empty_not_badly_lit(judged_bundle, config, still_frames):
    station = build_station(judged_bundle, config, Camera(), mode="single")
    dim = (still_frames["empty"][-1] * 0.55).astype(np.uint8)
    for frame in (still_frames["empty"][-1], dim):
        (result,) = station.take(seen(frame, 0, 0.0))
        assert result.decision.verdict is Verdict.EMPTY, result.decision.reason


def test_a_frozen_camera_is_unknown_a_repeated_file_is_not(judged_bundle, config, still_frames):
    station = build_station(judged_bundle, config, Camera(), mode="single")
    good = still_frames["good"][2]
    verdicts = [station.take(seen(good, i, float(i)))[0].decision for i in range(7)]
    assert [d.verdict for d in verdicts[:4]] == [Verdict.OK] * 4
    assert {d.reason for d in verdicts[5:]} == {
        "camera: frozen (the same picture 6 times)",
        "camera: frozen (the same picture 7 times)",
    }
    station = build_station(judged_bundle, config, Camera(), mode="single")
    for index in range(7):
        (result,) = station.take(Frame(index, "file", good))
        assert result.decision.verdict is Verdict.OK


def test_quality_can_be_switched_off(judged_bundle, config, still_frames):
    off = replace(config, quality=replace(config.quality, enabled=False))
    station = build_station(judged_bundle, off, Camera(), mode="single")
    (result,) = station.take(seen(np.zeros_like(still_frames["good"][0]), 0, 0.0))
    assert "quality" not in str(result.decision.reason)


class Slow:
    """A heat watch that lets one inspection a second start, by the time it is told."""

    def __init__(self, state="warm"):
        self.now_s, self._last_s = 0.0, -9.0
        self.heat = Heat(state, 76.0, frozenset(), 1.0, ("heat: 76 °C, slowed down",))

    def due(self):
        return self.now_s - self._last_s >= 1.0

    def worked(self, seconds):
        self._last_s = self.now_s


def parts_of(station, shown, at_s):
    """Verdicts on parts while pictures are shown at these times, 15 a second."""
    parts, index, rng = [], 0, np.random.default_rng(0)
    for picture, seconds in shown:
        for _ in range(int(seconds * 15)):
            if station.watch is not None:
                station.watch.now_s = at_s
            # No two pictures of a camera are equal.
            noisy = np.clip(picture.astype(int) + rng.integers(-1, 2, picture.shape), 0, 255)
            frame = seen(noisy.astype(np.uint8), index, at_s)
            parts += [r for r in station.take(frame) if r.event == "part"]
            index, at_s = index + 1, at_s + 1 / 15
    return [part.decision.verdict for part in parts + station.finish()], at_s


def test_heat_does_not_join_a_bad_part_to_a_good_one(nut_bundle, config, still_frames):
    station = build_station(nut_bundle, config, Camera(), mode="part")
    station.watch = Slow()
    good, bad, empty = (still_frames[kind][0] for kind in ("good", "bad", "empty"))
    # The gap falls between two inspections.
    verdicts, _ = parts_of(station, [(good, 4.2), (empty, 0.5), (bad, 4.2), (empty, 1.0)], 0.0)
    assert verdicts == [Verdict.OK, Verdict.NG]


def test_heat_does_not_take_an_announced_parts_frames(nut_bundle, config, still_frames):
    trigger = replace(config.trigger, kind="key", frames=4)
    station = build_station(
        nut_bundle, replace(config, trigger=trigger), Camera(), mode="part", fires=("key",)
    )
    station.watch = Slow("hot")
    good, bad, empty = (still_frames[kind][0] for kind in ("good", "bad", "empty"))
    verdicts, at_s = [], 0.0
    for picture in (good, bad, good, bad):
        station.gate.fire(at_s)
        found, at_s = parts_of(station, [(picture, 0.4), (empty, 0.4)], at_s)
        verdicts += found
    assert verdicts == [Verdict.OK, Verdict.NG, Verdict.OK, Verdict.NG]
    assert station.gate.missed == 0


def test_a_camera_that_froze_between_triggers_is_noticed(judged_bundle, config, still_frames):
    trigger = replace(config.trigger, kind="key", frames=1)
    station = build_station(
        judged_bundle, replace(config, trigger=trigger), Camera(), mode="part", fires=("key",)
    )
    good = still_frames["good"][2]
    for index in range(6):
        assert station.take(seen(good, index, float(index))) == []
    station.gate.fire(6.0)
    part = station.take(seen(good, 6, 6.0))[-1]
    assert part.decision.verdict is Verdict.UNKNOWN
    assert "camera: frozen" in part.decision.reason


def test_an_announced_part_of_which_there_is_no_frame_is_unknown(nut_bundle, config, still_frames):
    trigger = replace(config.trigger, kind="key", frames=2, debounce_s=0.0)
    station = build_station(nut_bundle, replace(config, trigger=trigger), Camera(), fires=("key",))
    station.gate.fire(0.0)
    # A minute without a frame: what is in view now is not what was announced.
    (result,) = station.take(seen(still_frames["good"][0], 0, 60.0))
    assert (result.event, result.decision.verdict) == ("part", Verdict.UNKNOWN)
    assert "no frame in time" in result.decision.reason


def test_a_trigger_without_anybody_to_press_it_is_refused(nut_bundle, config):
    key = replace(config, trigger=replace(config.trigger, kind="key"))
    with pytest.raises(InputError, match="only edge-app live has a key"):
        build_station(nut_bundle, key, Camera())
    with pytest.raises(InputError, match="wanted mode part"):
        build_station(nut_bundle, key, Camera(), mode="continuous", fires=("key",))


def test_a_light_that_failed_is_not_an_empty_station(judged_bundle, config, still_frames):
    station = build_station(judged_bundle, config, Camera(), mode="single")
    for level in (30, 230):
        plain = np.full_like(still_frames["empty"][0], level)
        (result,) = station.take(seen(plain, 0, 0.0))
        assert result.decision.verdict is Verdict.UNKNOWN, (level, result.decision)
