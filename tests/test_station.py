"""What a station makes of trigger, heat and poor pictures."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from edge_app.bundle import load_bundle
from edge_app.cli import main
from edge_app.config import DEFAULT_FILE, load_config
from edge_app.records import Frame, Verdict
from edge_app.station import Station, build_station
from edge_app.thermal import ThermalWatch
from edge_app.trigger import Gate


class Camera:
    """As much of a live source as a station asks about."""

    live = True
    separate_parts = False


@pytest.fixture(scope="module")
def config():
    return load_config(DEFAULT_FILE)


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
    station = build_station(nut_bundle, replace(config, trigger=trigger), Camera())
    good, bad = still_frames["good"][0], still_frames["bad"][0]
    assert isinstance(station.gate, Gate)
    assert station.take(seen(good, 0, 10.0)) == [] and station.skipped == 1
    station.gate.fire(10.1)
    assert station.take(seen(good, 1, 10.5)) == []
    closed = []
    for index, at_s in enumerate((10.6, 10.7, 10.8, 10.9), 2):
        closed += [r for r in station.take(seen(bad, index, at_s)) if r.event == "part"]
    (part,) = closed
    assert part.decision.verdict is Verdict.NG and part.decision.closed.usable == 4
    assert part.overlay_bgr is not None
    assert station.take(seen(bad, 9, 11.0)) == []


def test_a_trigger_without_a_part_in_view_is_unknown(nut_bundle, config, still_frames):
    trigger = replace(config.trigger, kind="key", frames=1)
    station = build_station(nut_bundle, replace(config, trigger=trigger), Camera())
    station.gate.fire(1.0)
    results = station.take(seen(still_frames["empty"][0], 0, 1.0))
    assert [r.event for r in results] == ["frame", "part"]
    assert results[-1].decision.verdict is Verdict.UNKNOWN
    assert "none in view" in results[-1].decision.reason


def test_a_part_overtaken_by_the_next_has_its_verdict(nut_bundle, config, still_frames):
    trigger = replace(config.trigger, kind="key", frames=5, debounce_s=0.0)
    station = build_station(nut_bundle, replace(config, trigger=trigger), Camera())
    parts = []
    for index in range(8):
        if index in (0, 4):
            station.gate.fire(float(index))
        frame = seen(still_frames["good"][index], index, float(index))
        parts += [r for r in station.take(frame) if r.event == "part"]
    parts += station.finish()
    assert [part.decision.closed.usable for part in parts] == [4, 4]
    assert [part.decision.part for part in parts] == [0, 1]


def test_a_lost_camera_is_said_at_once_whatever_the_trigger(nut_bundle, config):
    trigger = replace(config.trigger, kind="key")
    station = build_station(nut_bundle, replace(config, trigger=trigger), Camera())
    (result,) = station.take(Frame(0, "camera", None, problem="camera: lost (unplugged)"))
    assert result.decision.verdict is Verdict.UNKNOWN
    assert result.decision.reason == "camera: lost (unplugged)"


def test_heat_skips_frames_drops_heatmaps_and_pauses(nut_bundle, config, still_frames, tmp_path):
    files = replace(config, thermal=replace(config.thermal, enabled=False))
    inspector = build_station(nut_bundle, files, Camera(), mode="continuous").inspector
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
