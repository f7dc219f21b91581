"""The event store: what it keeps, the order of its writes, what it drops, and damage."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_app.clock import Now
from edge_app.config import EventsConfig
from edge_app.errors import InputError
from edge_app.event_reader import EventReader
from edge_app.outbox import Outbox
from edge_app.records import Counts, Decision, Event, Frame, Result, Verdict
from edge_app.store import EventStore

ROOT = Path(__file__).resolve().parent.parent
DAY_S = 86_400.0
# 2026-01-31T12:00:00Z
NOON_S = 1_769_860_800.0
SETTINGS = EventsConfig(keep_days=365, keep_mb=1000, keep_free_mb=0, pictures_a_minute=6000)
NOISE = np.random.default_rng(0).integers(0, 255, (100, 200, 3), dtype=np.uint8)


class Clocks:
    """Both clocks, set by the test."""

    def __init__(self) -> None:
        self.time_s, self.boot_s = NOON_S, 1000.0

    def __call__(self) -> Now:
        return Now(self.time_s, self.boot_s)

    def pass_by(self, seconds: float) -> None:
        self.time_s += seconds
        self.boot_s += seconds


@pytest.fixture
def clocks():
    return Clocks()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "events"


@pytest.fixture
def opened(folder, clocks):
    """Opens stores on the folder, and closes them."""
    stores = []

    def open_store(settings=SETTINGS, **changes):
        store = EventStore(folder, replace(settings, **changes), now=clocks)
        stores.append(store)
        return store

    yield open_store
    for store in stores:
        store.close()


def event(number=0, kind="ng", pictures=True, time_s=NOON_S, boot_s=1000.0, **more):
    picture_bgr = NOISE if pictures else None
    return Event(
        kind,
        time_s,
        boot_s,
        f"Part {number} is NG",
        Verdict.NG,
        part=number,
        frame_bgr=picture_bgr,
        overlay_bgr=picture_bgr,
        **more,
    )


def files(folder):
    return {str(path.relative_to(folder / "pictures")) for path in folder.glob("pictures/*/*")}


def test_an_event_comes_back_as_it_was(opened):
    store = opened()
    store.emit([event(7, score=1.5, threshold=1.25, bundle_sha256="ab", frames=6, data={"a": [1]})])
    row = store.get(1)
    assert (row.id, row.kind, row.time_s, row.boot_s, row.part) == (1, "ng", NOON_S, 1000.0, 7)
    assert (row.score, row.threshold, row.frames, row.data) == (1.5, 1.25, 6, {"a": [1]})
    assert row.verdict is Verdict.NG and row.detail == "Part 7 is NG"
    assert row.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert np.array_equal(cv2.imread(str(store.picture(1, "frame"))), NOISE)  # lossless
    assert cv2.imread(str(store.picture(1, "overlay"))).shape == NOISE.shape
    assert row.bytes == sum(
        store.picture(1, which).stat().st_size for which in ("frame", "overlay")
    )
    assert row.as_json()["time"] == "2026-01-31T12:00:00.000Z"


def test_it_is_all_there_after_a_new_start(opened, folder):
    first = opened()
    first.emit([event(1), Counts(5, {"part NG": 2})])
    first.close()
    second = opened()
    second.emit([event(2), Counts(5, {"part NG": 1, "part OK": 4}), Counts(6, {"part OK": 1})])
    assert [row.part for row in second.latest(10)] == [2, 1]
    assert second.counts(0) == [(5, {"part NG": 3, "part OK": 4}), (6, {"part OK": 1})]
    assert second.counts(6) == [(6, {"part OK": 1})]
    assert second.totals()["events"] == second.totals()["pictures"] == 2


def test_whatever_an_event_holds_is_kept(opened):
    store = opened()
    odd = event(
        kind="odd",
        score=math.nan,
        threshold=math.inf,
        pictures=False,
        data={"nan": math.nan, 3: np.float32(2), "array": np.arange(2), "path": Path("/x")},
    )
    odd = replace(odd, detail="half \ud800", part=2**70)
    picture = replace(event(1), frame_bgr=np.zeros((0, 0, 3), np.uint8), overlay_bgr=None)
    store.emit([odd, picture])
    fields = store.get(1).as_json()
    json.dumps(fields, allow_nan=False)
    assert fields["score"] is None and fields["threshold"] is None and fields["part"] is None
    assert fields["data"] == {"nan": None, "3": 2.0, "array": [0, 1], "path": "/x"}
    assert fields["detail"] == "half ?"
    assert store.get(2).frame is None and "cannot write" in store.get(2).data["pictures"]
    far = event(3, pictures=True, time_s=1e18)
    store.emit([far])
    assert store.get(3).as_json()["time"] is None and store.picture(3, "frame") is not None


def test_an_episode_takes_the_place_of_its_first_event(opened, folder):
    store = opened()
    begun = event(1, episode="ng 5.0", frames=1)
    store.emit([begun, event(2, pictures=False)])
    store.set_mark(1, "true defect")
    first = store.get(1)
    ended = replace(begun, ended_s=NOON_S + 9, frames=40, boot_s=1009.0, frame_bgr=None)
    store.emit([replace(ended, overlay_bgr=None)])
    row = store.get(1)
    assert (row.ended_s, row.frames, row.boot_s) == (NOON_S + 9, 40, 1000.0)
    assert (row.frame, row.overlay, row.mark) == (first.frame, first.overlay, "true defect")
    assert store.last_id() == 2
    store.emit([replace(ended, frame_bgr=255 - NOISE, overlay_bgr=None)])
    assert np.array_equal(cv2.imread(str(store.picture(1, "frame"))), 255 - NOISE)
    assert files(folder) == {store.get(1).frame}  # what was replaced is gone at once
    store.emit([replace(ended, episode="ng 77.0")])
    assert store.last_id() == 3  # the first of it never came


def test_an_episode_that_was_cut_off_says_so(opened):
    first = opened()
    first.emit([event(1, episode="a"), event(2, episode="b", ended_s=NOON_S), event(3)])
    first.append(event(4, "verify"))
    first.close()
    second = opened()
    assert "interrupted" not in second.get(1).data  # a reader or edge-app verify ends nothing
    second.emit([event(5, episode="c")])
    interrupted = [row.part for row in second.latest(9) if row.data.get("interrupted")]
    assert interrupted == [1]


def test_reading(opened):
    store = opened()
    kinds = ["ng", "unknown", "heat"] * 4
    store.emit([event(i, kind, False, time_s=NOON_S + 60 * i) for i, kind in enumerate(kinds)])
    assert [row.id for row in store.latest(3)] == [12, 11, 10]
    assert [row.id for row in store.latest(3, before_id=5)] == [4, 3, 2]
    assert [row.id for row in store.latest(4, kinds=("ng", "heat"))] == [12, 10, 9, 7]
    assert [row.id for row in store.latest(9, since_s=NOON_S + 600)] == [12, 11]
    assert store.latest(0) == [] and store.latest(5, kinds=()) == []
    assert store.last_of("heat").id == 12 and store.last_of("verify") is None
    assert store.get(99) is None and store.get(-1) is None and store.get(2**80) is None
    assert [row.id for row in store.walk(5)] == [12, 11, 10, 9, 8]
    assert store.totals() == {"events": 12, "pictures": 0, "bytes": 0, "oldest_s": NOON_S}


def test_walking_goes_through_more_than_is_read_at_once(opened):
    store = opened()
    store.emit([event(i, "ng", False) for i in range(1203)])
    assert [row.id for row in store.walk()] == list(range(1203, 0, -1))
    assert len(list(store.walk(1001, kinds=["ng"]))) == 1001


def test_where_nothing_was_kept_there_is_nothing(folder):
    reader = EventReader(folder)
    assert reader.latest(5) == [] and reader.get(1) is None and reader.counts(0) == []
    assert reader.last_id() == 0 and reader.totals()["oldest_s"] is None
    assert not folder.exists()  # to read makes nothing


def test_pictures_come_only_from_their_folder(opened, folder, tmp_path):
    store = opened()
    store.emit([event(1)])
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    (folder / "pictures" / "2026-01" / "link.png").symlink_to(secret)
    database = sqlite3.connect(folder / "events.sqlite")
    for name in ("../../secret.png", str(secret), "2026-01/../../../secret.png", "2026-01/link.png",
                 "2026-01", "../events.sqlite", "2026-01/\0", ""):  # fmt: skip
        database.execute("UPDATE events SET frame = ?", (name,))
        database.commit()
        assert store.picture(1, "frame") is None, name
    database.close()
    assert store.picture(1, "overlay") is not None and store.picture(1, "data") is None


def test_marks(opened):
    store = opened()
    store.emit([event(1)])
    store.set_mark(1, "false alarm")
    assert store.get(1).mark == "false alarm"
    store.set_mark(1, None)
    assert store.get(1).mark is None
    with pytest.raises(InputError, match="no event 9"):
        store.set_mark(9, "false alarm")
    with pytest.raises(InputError, match="wanted false alarm or true defect"):
        store.set_mark(1, "maybe")


def test_written_from_several_threads_and_connections(opened, folder):
    store, other = opened(), opened()
    numbers: list[int] = []

    def append():
        for _ in range(10):
            numbers.append(other.append(event(1, "verify", pictures=True)))
            other.set_mark(numbers[-1], "true defect")

    threads = [threading.Thread(target=append) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(30):
        store.emit([event(i)])
    for thread in threads:
        thread.join()
    rows = store.latest(100)
    assert len(rows) == 60 and len(set(numbers)) == 30
    assert {row.mark for row in rows if row.id in numbers} == {"true defect"}
    assert files(folder) == {name for row in rows for name in (row.frame, row.overlay)}


def test_behind_an_outbox(opened):
    """As the service has it: offered by the loop, results too, kept by the outbox's thread."""
    store = opened()
    outbox = Outbox(store, most=64, batch=16)
    result = Result("frame", Frame(0, "s", None), Decision(Verdict.OK), 0.0, 1.0, "ab")
    for i in range(20):
        outbox.offer(event(i))
        outbox.offer(result)
        outbox.offer(Counts(1, {"part NG": 1}))
    assert outbox.close(30.0)
    assert [row.part for row in store.latest(99)] == list(range(19, -1, -1))
    assert store.counts(0) == [(1, {"part NG": 20})]
    assert (outbox.dropped, outbox.failures, outbox.failing) == (0, 0, None)


# --- the order of writes


def test_pictures_last_before_their_row_and_the_row_before_the_answer(opened):
    store = opened()
    store.emit([event(0)])  # the month's folder is there
    calls = []
    watched = {"fsync", "rename", "unlink"}

    def profile(_frame, what, function):
        if what == "c_call" and function.__name__ in watched:
            calls.append(function.__name__)

    # SQLite's own syncs are below Python: its statements are told by the connection.
    store._connection.set_trace_callback(lambda sql: calls.append(sql.split()[0]))
    sys.setprofile(profile)
    try:
        store.emit([event(1, episode="e"), event(2)])
        store.emit([event(1, episode="e")])
    finally:
        sys.setprofile(None)
        store._connection.set_trace_callback(None)
    calls = [call for call in calls if call in watched | {"BEGIN", "INSERT", "UPDATE", "COMMIT"}]
    pictures = ["fsync", "rename"] * 2
    assert calls == [
        *pictures, *pictures, "fsync", "BEGIN", "INSERT", "INSERT", "COMMIT",
        *pictures, "fsync", "BEGIN", "UPDATE", "COMMIT", "unlink", "unlink",
    ]  # fmt: skip
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_rows_let_go_of_pictures_before_these_are_deleted(opened):
    store = opened(keep_mb=1)
    calls = []

    def profile(_frame, what, function):
        if what == "c_call" and function.__name__ == "unlink":
            calls.append("unlink")

    for i in range(12):  # 12 are just below 1 MB
        store.emit([event(i)])
    store._connection.set_trace_callback(lambda sql: calls.append(sql.split()[0]))
    sys.setprofile(profile)
    try:
        store.emit([event(12)])
    finally:
        sys.setprofile(None)
        store._connection.set_trace_callback(None)
    calls = [call for call in calls if call in ("unlink", "UPDATE", "COMMIT")]
    assert calls == ["COMMIT", "UPDATE", "COMMIT", "unlink", "unlink"]


def test_a_batch_that_fails_leaves_nothing(opened, folder):
    store = opened()
    store.emit([event(1)])
    kept = files(folder)
    other = sqlite3.connect(folder / "events.sqlite", isolation_level=None)
    other.execute(
        "CREATE TRIGGER refuse BEFORE INSERT ON counts BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    other.execute("PRAGMA wal_checkpoint")
    with pytest.raises(OSError, match="no"):
        store.emit([event(2), Counts(1, {"part NG": 1})])
    assert store.last_id() == 1 and files(folder) == kept
    other.execute("DROP TRIGGER refuse")
    other.close()
    store.emit([event(2), Counts(1, {"part NG": 1})])
    assert [row.part for row in store.latest(5)] == [2, 1]


def test_remains_are_swept_at_the_start(opened, folder):
    first = opened()
    first.emit([event(1), event(2)])
    first.close()
    month = folder / "pictures" / "2026-01"
    (month / "20260131T120000_00000000_frame.png").write_bytes(b"never committed")
    (month / "20260131T120000_00000001_frame.png.part").write_bytes(b"half")
    (folder / "pictures" / first.get(2).overlay).unlink()  # by hand
    second = opened()
    rows = {row.id: row for row in second.latest(5)}
    assert files(folder) == {rows[1].frame, rows[1].overlay} and second.totals()["pictures"] == 1
    assert rows[2].frame is None and rows[2].data["pictures"] == "missing"


def test_a_database_put_back_while_the_service_runs_is_used(opened, folder, tmp_path):
    store = opened()
    store.emit([event(1)])
    store.close()
    shutil.copy(folder / "events.sqlite", tmp_path / "backup")
    store.emit([event(2)])
    os.replace(tmp_path / "backup", folder / "events.sqlite")
    for suffix in ("-wal", "-shm"):
        Path(f"{folder / 'events.sqlite'}{suffix}").unlink()
    store.emit([event(3)])
    assert [row.part for row in store.latest(5)] == [3, 1]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to have a folder of another user")
def test_what_root_makes_belongs_to_the_owner_of_the_folder(tmp_path, clocks):
    os.chown(tmp_path, 65534, 65534)
    store = EventStore(tmp_path / "events", SETTINGS, now=clocks)
    store.append(event(1, "verify"))
    made = {path.relative_to(tmp_path): path.stat().st_uid for path in tmp_path.rglob("*")}
    # These two are opened by whoever may read them.
    made = {
        path.name: owner for path, owner in made.items() if path.name not in ("lock", "ballast")
    }
    store.close()
    assert len(made) == 8 and set(made.values()) == {65534}, made


# --- retention


def test_the_oldest_pictures_go_first(opened, folder):
    store = opened(keep_mb=1)
    for i in range(40):
        store.emit([event(i)])
    totals = store.totals()
    assert totals["events"] == 40 and 0.8e6 < totals["bytes"] <= 1e6
    rows = store.latest(40)
    with_pictures = [row.id for row in rows if row.frame]
    assert with_pictures == list(range(40, 40 - totals["pictures"], -1))
    assert rows[-1].data["pictures"] == "dropped: more than 1 MB"
    assert len(files(folder)) == 2 * totals["pictures"]
    on_disk = sum((folder / "pictures" / name).stat().st_size for name in files(folder))
    assert on_disk == totals["bytes"]
    assert store.last_of("storage") is None  # as it should be, and not told


def test_rows_go_by_age(opened, folder, clocks):
    store = opened(keep_days=30)
    store.emit([event(1), Counts(int(NOON_S // 3600), {"part NG": 1})])
    clocks.pass_by(31 * DAY_S)
    store.emit([event(2, time_s=clocks.time_s, boot_s=clocks.boot_s)])
    assert [row.part for row in store.latest(5)] == [2] and len(files(folder)) == 2
    assert store.counts(0) == []
    assert store.last_id() == 2


def test_a_clock_that_jumps_costs_nothing(opened, clocks):
    store = opened(keep_days=30)
    clocks.time_s = 100.0  # no battery, no network yet
    store.emit([event(1, time_s=clocks.time_s)])
    clocks.pass_by(700)
    clocks.time_s = NOON_S
    store.emit([event(2, time_s=clocks.time_s)])
    clocks.pass_by(2 * DAY_S)
    store.emit([event(3, time_s=clocks.time_s)])
    assert len(store.latest(5)) == 3  # 1970 is no age
    clocks.time_s += 5000 * DAY_S  # wrong for a while
    store.emit([event(4, time_s=clocks.time_s)])
    clocks.pass_by(1200)
    store.emit([event(5, time_s=clocks.time_s)])
    clocks.time_s -= 5000 * DAY_S
    clocks.pass_by(DAY_S)
    store.emit([event(6, time_s=clocks.time_s)])
    assert len(store.latest(9)) == 6
    clocks.pass_by(28.5 * DAY_S)
    store.emit([event(7, time_s=clocks.time_s)])
    # Event 2 is too old now, and what came before it, though nobody knows when.
    assert [row.part for row in store.latest(9)] == [7, 6, 5, 4, 3]


def test_a_start_with_an_old_clock_costs_nothing_of_what_was_before(opened, clocks):
    """Without battery and network systemd begins at the day that it was built."""
    store = opened(keep_days=30)
    store.emit([event(1, time_s=clocks.time_s)])
    clocks.pass_by(2 * DAY_S)
    store.emit([event(2, time_s=clocks.time_s - 400 * DAY_S)])
    store.emit([event(3, time_s=clocks.time_s)])
    clocks.pass_by(DAY_S)
    store.emit([event(4, time_s=clocks.time_s)])
    assert [row.part for row in store.latest(9)] == [4, 3, 2, 1]
    clocks.pass_by(28 * DAY_S)
    store.emit([event(5, time_s=clocks.time_s)])
    # Event 1 is too old now; 2 may be as old, for all that anybody knows.
    assert [row.part for row in store.latest(9)] == [5, 4, 3]


def test_short_of_space_the_evidence_goes_and_it_is_said_once(opened, folder):
    said = []
    store = opened()
    for i in range(5):
        store.emit([event(i)])
    store.close()
    short = EventStore(folder, replace(SETTINGS, keep_free_mb=10**6), said.append)
    for i in range(5):
        short.emit([event(10 + i)])
    assert files(folder) == set() and short.totals()["bytes"] == 0
    rows = [row for row in short.latest(20) if row.kind == "storage"]
    assert [row.detail for row in rows] == said
    wanted = "Less than 1000000 MB are free on the disk"
    assert said == [f"{wanted}: the pictures of the 6 oldest events were dropped"]
    assert short.problem == said[0]
    assert short.get(1).data["pictures"] == "dropped: the disk was full"
    short.close()
    again = EventStore(folder, SETTINGS, said.append)
    again.emit([event(20)])
    assert again.picture(again.latest(1)[0].id, "frame") is not None
    again.close()


def test_pictures_a_minute(opened):
    store = opened(pictures_a_minute=2)
    store.emit([event(i, boot_s=1000.0 + i) for i in range(3)])
    store.emit([event(3, boot_s=1059.0), event(4, boot_s=1060.5), event(5, "heat", False)])
    kept = {row.part: bool(row.frame) for row in store.latest(9)}
    assert kept == {0: True, 1: True, 2: False, 3: False, 4: True, 5: False}
    why = {row.part: row.data.get("pictures") for row in store.latest(9)}
    assert why[2] == "none: more than 2 a minute" and why[0] is None and why[5] is None
    store.append(event(6, "verify", boot_s=1061.0))
    assert store.latest(1)[0].frame  # a person asked for it
    store.emit([event(7, boot_s=3.0)])
    assert store.latest(1)[0].frame  # the board has started anew


# --- a full disk: a small one of its own, mounted for one process

ON_A_SMALL_DISK = """
import os, sys
import numpy as np
from pathlib import Path
from edge_app.config import EventsConfig
from edge_app.records import Event, Verdict
from edge_app.store import EventStore

disk = Path(sys.argv[1])
store = EventStore(disk / "events", EventsConfig(365, 2000, 0, 6000), print)
noise = np.random.default_rng(0).integers(0, 255, (100, 200, 3), dtype=np.uint8)

def event(i):
    return Event("ng", 1.77e9, 10.0, "", Verdict.NG, part=i, frame_bgr=noise, overlay_bgr=noise)

def fill(file):
    try:
        while True:
            file.write(b"x" * 4096)
    except OSError:
        pass

# Somebody else fills it while the log is short: dropping evidence needs room itself.
for i in range(5):
    store.emit([event(-5 + i)])
store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
with open(disk / "big", "wb", 0) as big:
    fill(big)
store.emit([event(-10)])
newest = store.last_of("ng")
assert newest.part == -10 and newest.frame and store.picture_of(newest, "frame")
os.unlink(disk / "big")

for i in range(120):
    store.emit([event(i)])
rows = store.latest(1000)
parts = [row.part for row in rows if row.kind == "ng" and row.part >= 0]
assert parts == list(range(119, -1, -1)), parts
shown = [row.part for row in rows if row.frame]
assert shown and shown == parts[: len(shown)], shown
assert all(store.picture_of(row, "frame") for row in rows if row.frame)
print("kept", len(shown))
with open(disk / "big", "wb", 0) as big:
    fill(big)
    kept = 0
    try:
        for i in range(1000, 1400):
            store.emit([event(i)])
            kept += 1
            fill(big)
    except OSError as error:
        print("refused", error.errno)
os.unlink(disk / "big")
rows = [row.part for row in store.latest(1000) if row.part is not None]
assert rows[:kept] == list(range(1000 + kept - 1, 999, -1)), (kept, rows)
store.emit([event(2000)])
assert store.picture(store.last_id(), "frame") or store.picture(store.last_id() - 1, "frame")
"""


@pytest.fixture
def small_disk(tmp_path):
    """The beginning of a command that sees a disk of 3 MB at the folder given with it."""
    disk = tmp_path / "small"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=3m none '{disk}' && exec \"$@\""
    for namespace in (["--mount"], ["--mount", "--user", "--map-root-user"]):
        command = ["unshare", *namespace, "sh", "-c", mount, "sh"]
        try:
            if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
                return [*command], disk
        except FileNotFoundError:
            break
    pytest.skip("cannot mount a small disk here (unshare and mount, as root or in a namespace)")


def test_a_full_disk(small_disk):
    command, disk = small_disk
    run = subprocess.run(
        [*command, sys.executable, "-c", ON_A_SMALL_DISK, str(disk)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert "the pictures of the" in lines[0] and lines[0].startswith("The disk is full: ")
    assert lines[1].startswith("kept ")  # said once, however often it was full
    assert "there is no older evidence to drop" in run.stdout


# --- damage


def break_pages(path, first, last):
    """Overwrite pages of 4 KiB with noise, as a card does that has lost them."""
    with open(path, "r+b") as file:
        file.seek(first * 4096)
        file.write(np.random.default_rng(1).bytes((last - first) * 4096))


def filled(opened, count=400):
    store = opened()
    store.emit([event(i, "ng", pictures=i % 100 == 0, data={"x": "y" * 100}) for i in range(count)])
    store.emit([Counts(1, {"part NG": count})])
    store.close()
    return store


def test_a_damaged_header_is_set_aside(opened, folder):
    filled(opened)
    break_pages(folder / "events.sqlite", 0, 1)
    store = opened()
    store.emit([event(1000)])
    assert {row.kind for row in store.latest(9)} == {"ng", "storage"}
    said = store.last_of("storage").detail
    assert "is unusable" in said and "0 events of it were saved" in said
    assert len(list(folder.glob("damaged_*.sqlite"))) == 1
    row = store.last_of("ng")
    assert files(folder) == {row.frame, row.overlay}  # nobody names the others any more


def test_what_can_be_read_of_a_damaged_database_is_saved(opened, folder):
    filled(opened)
    database = sqlite3.connect(folder / "events.sqlite")
    database.execute("DELETE FROM events WHERE id > 390")
    database.commit()
    database.close()
    size = (folder / "events.sqlite").stat().st_size // 4096
    break_pages(folder / "events.sqlite", size // 2, size // 2 + 2)
    store = opened()
    rows = store.latest(1000, kinds=("ng",))
    assert 200 < len(rows) < 390
    assert {rows[0].part, rows[-1].part} == {389, 0}  # from both ends
    assert all(store.picture_of(row, "frame") for row in rows if row.frame)
    store.emit([event(1000)])
    assert store.last_of("ng").id > 400  # no number twice
    assert f"{len(rows)} events of it were saved" in store.last_of("storage").detail
    assert store.counts(0) == [(1, {"part NG": 400})]


def test_damage_that_shows_while_it_runs(opened, folder):
    store = opened()
    store.emit([event(i, "ng", False, data={"x": "y" * 100}) for i in range(400)])
    store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    break_pages(folder / "events.sqlite", 1, 60)
    with pytest.raises(InputError, match="malformed"):
        store.latest(1000)
    for i in range(1000, 1003):
        store.emit([event(i)])
    parts = [row.part for row in store.latest(2000, kinds=("ng",))]
    assert parts[:3] == [1002, 1001, 1000]
    assert "is unusable" in store.last_of("storage").detail
    found = sqlite3.connect(folder / "events.sqlite")
    assert found.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    found.close()


def test_set_aside_databases_do_not_pile_up(opened, folder):
    for i in range(6):
        store = opened()
        store.emit([event(i)])
        store.close()
        break_pages(folder / "events.sqlite", 0, 1)
    opened().emit([event(9)])
    assert len(list(folder.glob("damaged_*.sqlite"))) == 3


def test_a_newer_schema_is_set_aside_with_its_pictures(opened, folder):
    store = opened()
    store.emit([event(1)])
    names = files(folder)
    store._connection.execute("PRAGMA user_version = 99")
    store.close()
    with pytest.raises(InputError, match="schema 99 is of a newer edge-app"):
        EventReader(folder).latest(1)
    with pytest.raises(InputError, match="newer"):
        store.append(event(1, "verify"))
    again = opened()
    again.emit([event(2)])
    assert "schema 99" in again.last_of("storage").detail
    aside = next(folder.glob("newer_*.pictures"))
    assert {str(path.relative_to(aside)) for path in aside.glob("*/*")} == names
    assert len(list(folder.glob("newer_*.sqlite"))) == 1


def test_a_folder_that_cannot_be_made_is_tried_again(tmp_path, clocks):
    (tmp_path / "state").write_text("a file where the folder should be")
    store = EventStore(tmp_path / "state" / "events", SETTINGS, now=clocks)
    assert "cannot be opened yet" in store.problem
    with pytest.raises(OSError):
        store.emit([event(1)])
    assert store.latest(1) == []
    (tmp_path / "state").unlink()
    store.emit([event(1)])
    assert store.latest(1)[0].part == 1 and store.problem is None
    store.close()


# --- export


@pytest.fixture
def told(opened):
    store = opened()
    store.emit(
        [
            event(1, score=1.5, threshold=1.0),
            replace(event(2, "unknown", False), detail='=cmd|"x",\nß', verdict=Verdict.UNKNOWN),
            event(3, time_s=0.0),
        ]
    )
    return store


def test_export_as_a_table(told, tmp_path):
    assert told.export(told.walk(), tmp_path / "new" / "e.csv", "csv") == 3
    rows = list(csv.DictReader(io.StringIO((tmp_path / "new" / "e.csv").read_bytes().decode())))
    assert [row["id"] for row in rows] == ["3", "2", "1"]
    assert rows[2]["score"] == "1.5" and rows[2]["time"] == "2026-01-31T12:00:00.000Z"
    assert rows[1]["detail"] == '\'=cmd|"x",\nß'  # no formula for a spreadsheet
    assert rows[1]["score"] == "" and rows[1]["frame"] == ""


def test_export_as_json(told, tmp_path):
    told.export(told.walk(), tmp_path / "e.json", "json")
    assert json.loads((tmp_path / "e.json").read_text()) == [row.as_json() for row in told.walk()]
    told.export([], tmp_path / "e.json", "json")
    assert json.loads((tmp_path / "e.json").read_text()) == []


class Pipe(io.RawIOBase):
    """Takes bytes and cannot seek, as a browser's connection."""

    def __init__(self):
        self.data = b""

    def writable(self):
        return True

    def write(self, data):
        self.data += bytes(data)
        return len(data)


def test_export_with_pictures(told):
    rows = list(told.walk())
    told.picture(3, "overlay").unlink()  # dropped while it is exported
    pipe = Pipe()
    assert told.export(iter(rows), pipe, "zip") == 3
    with zipfile.ZipFile(io.BytesIO(pipe.data)) as archive:
        assert archive.testzip() is None
        names = {name for name in archive.namelist() if name.startswith("pictures/")}
        assert sorted(names) == [
            "pictures/000001_frame.png",
            "pictures/000001_overlay.jpg",
            "pictures/000003_frame.png",
        ]
        read = archive.read("pictures/000001_frame.png")
        assert read == told.picture(1, "frame").read_bytes()
        found = json.loads(archive.read("events.json"))
        table = list(csv.DictReader(io.StringIO(archive.read("events.csv").decode())))
    assert [(it["frame"], it["overlay"]) for it in found] == [
        ("000003_frame.png", None),
        (None, None),
        ("000001_frame.png", "000001_overlay.jpg"),
    ]
    assert [row["frame"] for row in table] == ["000003_frame.png", "", "000001_frame.png"]


def test_an_export_follows_links_and_writes_into_pipes(told, tmp_path):
    (tmp_path / "real.json").write_text("before")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    told.export(told.walk(), tmp_path / "link.json", "json")
    assert (tmp_path / "link.json").is_symlink()
    assert len(json.loads((tmp_path / "real.json").read_text())) == 3
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    told.export(told.walk(), tmp_path / "pipe", "csv")
    reader.join()
    assert read[0].startswith(b"id,time,") and (tmp_path / "pipe").is_fifo()


def test_an_export_that_fails_leaves_the_file_as_it_was(told, tmp_path):
    target = tmp_path / "e.json"
    target.write_text("before")

    def broken():
        yield from told.latest(1)
        raise InputError("the database went away")

    with pytest.raises(InputError, match="went away"):
        told.export(broken(), target, "json")
    assert target.read_text() == "before" and os.listdir(tmp_path / "events")
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []
    with pytest.raises(InputError, match="is a folder"):
        told.export([], tmp_path, "json")
    with pytest.raises(InputError, match="wanted one of"):
        told.export([], target, "xml")
