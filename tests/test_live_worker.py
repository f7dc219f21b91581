"""The worker: what is behind the window goes on, whatever the window does."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import numpy as np
import pytest

from edge_app.config import DEFAULT_FILE, load_config
from edge_app.errors import CameraError
from edge_app.hand import Hand
from edge_app.inspector import CUT_OFF
from edge_app.live.journal import Journal
from edge_app.live.worker import MOST_COMMANDS, LiveInspector, Worker
from edge_app.records import Frame, Verdict
from edge_app.slot import Slot
from edge_app.station import Station
from edge_app.trigger import Gate


class Frames:
    """A camera of so many pictures that are already there."""

    live, separate_parts = True, False

    def __init__(self, pictures: list, error: Exception | None = None) -> None:
        self.pictures, self.error = pictures, error
        self.closed = threading.Event()

    def frames(self):
        for index, picture in enumerate(self.pictures):
            yield Frame(index, "bench", picture, captured_s=float(index))
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closed.set()


def worker_of(bundle, pictures, journal=None, mode="continuous", error=None) -> Worker:
    config = load_config(DEFAULT_FILE)
    inspector = LiveInspector(bundle, config.decision, mode, heatmaps=False)
    return Worker(
        Frames(pictures, error), lambda i: Station(i), None, journal or Journal(None), inspector
    )


def test_slot_keeps_the_newest_and_counts_the_rest():
    slot: Slot[int] = Slot()
    assert slot.take() is None
    for number in range(5):
        slot.put(number)
    assert slot.take() == 4
    assert slot.take() is None
    assert slot.dropped == 4


def test_a_window_that_never_looks_holds_nothing_up(nut_bundle, clip_frames, tmp_path):
    journal = Journal(tmp_path / "log.jsonl")
    worker = worker_of(nut_bundle, clip_frames[:60], journal)
    worker.start()
    while (scene := worker.scenes.take(5.0)) is not None and not scene.ended:
        pass
    worker.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(60))
    assert not worker.alive
    assert scene.ended and scene.frame.index == 59


def test_scene_tells_of_its_own_frame(nut_bundle, still_frames):
    worker = worker_of(nut_bundle, [])
    worker.see(Frame(0, "bench", still_frames["bad"][0]))
    scene = worker.scenes.take()
    assert scene.fresh and scene.result.decision.verdict is Verdict.NG
    assert scene.map_01.shape == scene.picture_bgr.shape[:2]
    worker.see(Frame(1, "bench", None, problem="camera: lost (gone)"))
    scene = worker.scenes.take()
    assert scene.result.decision.verdict is Verdict.UNKNOWN
    assert scene.map_01 is None and scene.frame.frame_bgr is None
    assert scene.picture_bgr is still_frames["bad"][0]  # the last there was


@pytest.mark.parametrize(("mode", "good", "bad"), [("auto", 0, 1), ("always", 1, 1), ("off", 0, 0)])
def test_maps_are_drawn_as_told(nut_bundle, still_frames, mode, good, bad):
    worker = worker_of(nut_bundle, [], mode="single")
    worker.draw_maps(mode, None)
    for kind, wanted in (("good", good), ("bad", bad)):
        worker.see(Frame(0, "bench", still_frames[kind][0]))
        assert (worker.scenes.take().map_01 is not None) == wanted


def test_decoder_and_patch_draw_different_maps(nut_bundle, still_frames):
    worker, maps = worker_of(nut_bundle, []), []
    for kind in ("patch", "decoder"):
        worker.draw_maps("always", kind)
        worker.see(Frame(0, "bench", still_frames["bad"][0]))
        maps.append(worker.scenes.take().map_01)
    assert not np.array_equal(*maps)


def test_commands_are_done_in_order_and_their_overflow_is_counted(nut_bundle):
    worker, done = worker_of(nut_bundle, []), []
    told = [worker.tell(lambda n=n: done.append(n)) for n in range(MOST_COMMANDS + 3)]
    assert told == [True] * MOST_COMMANDS + [False] * 3 and worker.refused == 3
    worker.obey()
    assert done == list(range(MOST_COMMANDS))


def test_a_burst_skips_what_is_refused(nut_bundle, still_frames):
    worker = worker_of(nut_bundle, [])
    worker.collect(2, lambda frame: "no" if frame.index == 0 else None)
    # Frames of one burst lie apart; without that, all would show the part at one moment.
    for index in range(3):
        worker._burst and setattr(worker._burst, "last_s", -1.0)
        worker.see(Frame(index, "bench", still_frames["good"][index]))
    assert [frame.index for frame in worker.bursts.get_nowait()] == [1, 2]
    assert worker.scenes.take().collected is None


def test_a_burst_takes_no_two_frames_of_one_moment(nut_bundle, still_frames):
    worker = worker_of(nut_bundle, [])
    worker.collect(5, lambda frame: None)
    for index in range(3):
        worker.see(Frame(index, "bench", still_frames["good"][index]))
    assert worker.scenes.take().collected == (1, 5)


def successor(bundle, mode="part") -> LiveInspector:
    return LiveInspector(bundle, load_config(DEFAULT_FILE).decision, mode, heatmaps=False)


@pytest.mark.parametrize("between", [False, True], ids=["at once", "after none"])
def test_a_part_in_view_when_something_is_learnt_is_judged_anew_as_the_next(
    nut_bundle, still_frames, tmp_path, between
):
    """Who pressed n wants to see the verdict on this very part; the journal says that it is so."""
    journal = Journal(tmp_path / "log.jsonl")
    worker = worker_of(nut_bundle, [], journal, mode="part")
    empty, good = still_frames["empty"], still_frames["good"]
    for index, picture in enumerate([*good[:8], *empty[:3], *good[:4], *empty[:3]]):
        if index == 4:
            worker.use(successor(nut_bundle))
        if index == 9 and between:  # nothing is in view any more
            worker.use(None)
            worker.use(successor(nut_bundle))
        worker.see(Frame(index, "bench", picture, captured_s=float(index)))
        if index == 4:
            assert worker.scenes.take().result.decision.verdict is Verdict.OK
    worker.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    parts = [(line["part"], line["verdict"]) for line in lines if line["event"] == "part"]
    assert parts == [(0, "UNKNOWN"), (1, "OK"), (2, "OK")]
    assert next(line for line in lines if line["event"] == "part")["reason"] == CUT_OFF


def test_no_part_that_was_never_seen_is_told_twice(nut_bundle, still_frames, tmp_path):
    """The gate counts on while what judges is changed."""
    journal = Journal(tmp_path / "log.jsonl")
    config = load_config(DEFAULT_FILE)
    gate = Gate(replace(config.trigger, frames=2))
    worker = Worker(
        Frames([]),
        lambda inspector: Station(inspector, gate=gate),
        None,
        journal,
        successor(nut_bundle, "triggered"),
    )
    gate.fire(0.0)
    for index, at_s in enumerate((60.0, 61.0)):
        worker.see(Frame(index, "bench", still_frames["good"][0], captured_s=at_s))
        worker.use(successor(nut_bundle, "triggered"))
    worker.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["part"] for line in lines if line["event"] == "part"] == [0]


def test_a_lost_source_ends_it_with_the_reason(nut_bundle, clip_frames):
    worker = worker_of(nut_bundle, clip_frames[:1], error=CameraError("camera:0: gone"))
    worker.start()
    worker._thread.join(10)
    assert str(worker.problem) == "camera:0: gone"


def test_a_moved_threshold_decides_from_the_next_frame_on(nut_bundle, still_frames):
    from edge_app.knowledge import with_threshold

    worker = worker_of(nut_bundle, [], mode="single")
    frame = Frame(0, "bench", still_frames["bad"][0])
    worker.see(frame)
    score = worker.scenes.take().result.decision.score
    worker.move_threshold(with_threshold(nut_bundle, score + 1.0))
    worker.see(frame)
    result = worker.scenes.take().result
    assert result.decision.verdict is Verdict.OK
    assert result.threshold == score + 1.0
    assert result.bundle_sha256 != nut_bundle.sha256


def test_a_hand_says_what_went_wrong_and_goes_on():
    hand = Hand("writer", 4)

    def full() -> None:
        raise OSError(28, "No space left on device", "x.png")

    assert hand.submit(full) and hand.submit(lambda: 7)
    hand.close(10.0)
    outcomes = hand.done()
    assert outcomes[0].error == "x.png: No space left on device"
    assert outcomes[1].value == 7 and not hand.busy


def test_journal_on_a_full_disk_says_so_and_is_silent():
    journal = Journal("/dev/full")
    journal.note("key", key="s")
    assert "No space left" in journal.problem
    journal.note("key", key="s")
    journal.close()


def test_after_the_end_commands_are_seen_on_the_last_picture(nut_bundle, still_frames, tmp_path):
    journal = Journal(tmp_path / "log.jsonl")
    worker = worker_of(nut_bundle, [], journal, mode="single")
    worker.see(Frame(0, "bench", still_frames["good"][0]))
    worker.end()
    assert worker.scenes.take().map_01 is None
    worker.tell(lambda: worker.draw_maps("always", None))
    assert worker.obey() and not worker.obey()
    worker.see_again()
    scene = worker.scenes.take()
    assert scene.ended and scene.fresh and scene.map_01 is not None
    # It is shown again, and not judged twice.
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1
    assert len(scene.history) == 1


def test_the_end_of_the_source_ends_a_burst(nut_bundle, still_frames):
    worker = worker_of(nut_bundle, [])
    worker.collect(5, lambda frame: None)
    worker.see(Frame(0, "bench", still_frames["good"][0]))
    worker.end()
    assert len(worker.bursts.get_nowait()) == 1


def test_a_burst_is_bounded_by_memory(nut_bundle, still_frames):
    worker = worker_of(nut_bundle, [])
    size = still_frames["good"][0].nbytes
    worker.collect(100, lambda frame: None, most_bytes=4.5 * size)
    for index in range(6):
        worker._burst and setattr(worker._burst, "last_s", -1.0)
        worker.see(Frame(index, "bench", still_frames["good"][0]))
    assert len(worker.bursts.get_nowait()) == 4


def test_what_is_insisted_on_is_never_refused_and_stays_in_order(nut_bundle):
    worker, done = worker_of(nut_bundle, []), []
    while worker.tell(lambda: done.append("told")):
        pass
    worker.insist(lambda: done.append("insisted"))
    worker.obey()
    assert done == ["told"] * MOST_COMMANDS + ["insisted"]
