"""``edge-app events``, as a user types it."""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edge_app.cli import main
from edge_app.config import EventsConfig
from edge_app.records import Event, Verdict
from edge_app.store import EventStore

ROOT = Path(__file__).resolve().parent.parent
# 2026-01-31T12:00:00Z
NOON_S = 1_769_860_800.0
NOISE = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)


def ng(part, days=0, **more):
    return Event(
        "ng",
        NOON_S + 86_400 * days,
        10.0,
        f"Part {part} is NG",
        Verdict.NG,
        part=part,
        score=1.5,
        threshold=1.25,
        frame_bgr=NOISE,
        overlay_bgr=NOISE,
        **more,
    )


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    store = EventStore(tmp_path / "events", EventsConfig(365, 1000, 0, 100))
    store.emit(
        [ng(1), ng(2, days=1), Event("heat", NOON_S + 90_000, 11.0, "Paused\x1b[2J at 82 °C")]
    )
    store.set_mark(2, "false alarm")
    store.close()
    return tmp_path


def events(state, *arguments):
    action, *others = [str(argument) for argument in arguments]
    return main(["events", action, "--state", str(state), *others])


def test_list_is_a_table_of_the_newest(state, capsys):
    assert events(state, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["id", "3", "2", "1"]
    assert "2026-02-01 12:00:00" in lines[2] and "1.5000" in lines[2] and "1.2500" in lines[2]
    assert " fo " in lines[2] and "false alarm" in lines[2] and "Part 2 is NG" in lines[2]
    assert lines[1].endswith("Paused?[2J at 82 °C")  # a terminal is not obeyed
    assert len({line.index("Part") for line in lines[2:]}) == 1


def test_the_state_may_stand_before_the_action(state, capsys):
    assert events(state, "list") == 0
    said = capsys.readouterr().out
    assert main(["events", "--state", str(state), "list"]) == 0
    assert capsys.readouterr().out == said != ""


def test_list_chooses(state, capsys):
    def ids(*arguments):
        assert events(state, "list", *arguments) == 0
        return [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]

    assert ids("--kind", "ng") == ["2", "1"] and ids("--kind", "heat,unknown") == ["3"]
    assert ids("--limit", 1) == ["3"]
    assert ids("--since", "2026-02-01") == ["3", "2"]
    assert ids("--since", "2026-02-01T12:30") == ["3"]
    assert ids("--since", "2026-02-01T13:30+01:00") == ["3"]
    events(state, "list", "--since", "1m")
    assert capsys.readouterr().out == "no events like that\n"


def test_show_says_all(state, capsys):
    assert events(state, "show", 2) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    shown = dict(lines)
    assert shown["score"] == "1.5" and shown["mark"] == "false alarm" and shown["part"] == "2"
    assert shown["time"].startswith("2026-02-01T12:00:00.000Z")
    assert Path(shown["frame"]).is_file() and Path(shown["overlay"]).is_file()


def test_export_to_standard_output(state, capfdbinary):
    assert events(state, "export") == 0
    rows = list(csv.DictReader(io.StringIO(capfdbinary.readouterr().out.decode())))
    assert [row["id"] for row in rows] == ["3", "2", "1"]
    assert events(state, "export", "--format", "json", "--kind", "ng", "--limit", "1") == 0
    assert [it["id"] for it in json.loads(capfdbinary.readouterr().out)] == [2]


def test_export_to_a_file_of_the_kind_that_its_name_says(state, tmp_path, capsys):
    target = tmp_path / "out" / "week.zip"
    assert events(state, "export", "--out", target) == 0
    assert capsys.readouterr().out == f"{target}: 3 events\n"
    with zipfile.ZipFile(target) as archive:
        assert len([name for name in archive.namelist() if name.startswith("pictures/")]) == 4
    assert events(state, "export", "--out", tmp_path / "a.json") == 0
    assert len(json.loads((tmp_path / "a.json").read_text())) == 3
    assert events(state, "export", "--out", tmp_path / "a.txt") == 0
    assert (tmp_path / "a.txt").read_text().startswith("id,time,")


def test_works_while_a_service_writes(state, capsys):
    store = EventStore(state / "events", EventsConfig(365, 1000, 0, 100))
    store.emit([ng(50)])  # in the log, not yet in the database's file
    assert events(state, "list", "--limit", 1) == 0
    assert "Part 50" in capsys.readouterr().out
    store.emit([ng(51)])
    store.close()


def test_reads_only(state):
    before = {path: path.read_bytes() for path in state.rglob("*") if path.is_file()}
    events(state, "list")
    events(state, "show", 1)
    after = {path: path.read_bytes() for path in state.rglob("*") if path.is_file()}
    left = {path.name for path in set(after) - set(before)}
    assert left <= {"events.sqlite-wal", "events.sqlite-shm"}
    assert {path: after[path] for path in before} == before


def test_without_the_right_to_write(state, tmp_path):
    """As another user, who may read the folder: SQLite then cannot set up what readers share."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    # The user's own way to it must be open.
    for path in [state, *state.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    opened = [parent for parent in state.parents if not parent.stat().st_mode & 0o005]
    modes = [parent.stat().st_mode for parent in opened]
    for parent in opened:
        parent.chmod(0o755)
    code = (
        "import os, sys; from edge_app.event_reader import EventReader; "
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); "
        "print([row.id for row in EventReader(sys.argv[1]).latest(9)])"
    )
    command = [sys.executable, "-c", code, str(state / "events")]
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert run.stdout == "[3, 2, 1]\n", run.stderr
        store = EventStore(state / "events", EventsConfig(365, 1000, 0, 100))
        store.emit([ng(50)])
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        store.close()
        assert run.stdout == "[4, 3, 2, 1]\n", run.stderr
    finally:
        for parent, mode in zip(opened, modes, strict=True):
            parent.chmod(mode)


def error_of(capsys, code, *arguments):
    """The one sentence of a command that ends with this code."""
    try:
        got = main([str(argument) for argument in arguments])
    except SystemExit as ended:
        got = ended.code
    assert got == code
    return capsys.readouterr().err.splitlines()[-1]


def test_mistakes_are_said_in_one_sentence(state, tmp_path, capsys):
    def fails(*arguments):
        return error_of(capsys, 2, "events", *arguments)

    at = ["--state", state]
    assert "the nearest kind is heat" in fails("list", *at, "--kind", "hat")
    assert "wanted some of" in fails("list", *at, "--kind", ",")
    assert "wanted a date 2026-01-31" in fails("list", *at, "--since", "yesterday")
    assert "wanted a date" in fails("list", *at, "--since", "2026-02-30")
    assert "whole number from 1" in fails("list", *at, "--limit", "0")
    assert "there is no event 9: the newest is 3" in fails("show", *at, 9)
    assert "whole number" in fails("show", *at, "latest")
    assert "required: ID" in fails("show", *at)
    assert "required: ACTION" in fails()
    assert "invalid choice: 'xml'" in fails("export", *at, "--format", "xml")
    assert "is a folder" in fails("export", *at, "--out", state)
    assert "cannot be written" in fails("export", *at, "--out", state / "events" / "lock" / "x")
    assert "No such file" in fails("list", "--state", tmp_path / "none")
    assert "no events; the service has not run" in fails("list", "--state", tmp_path / "events")


def test_a_damaged_database_is_said(state, capsys):
    (state / "events" / "events.sqlite").write_bytes(b"no database " * 1000)
    said = error_of(capsys, 2, "events", "list", "--state", state)
    assert "cannot be read: file is not a database" in said


def test_the_state_of_the_config_is_the_default(state, tmp_path, capsys):
    config = tmp_path / "c.toml"
    config.write_text(f'[service]\nstate = "{state}"\n')
    assert main(["events", "--config", str(config), "list"]) == 0
    assert main(["events", "list", "--config", str(config)]) == 0
    first, second = capsys.readouterr().out.split("id", 2)[1:]
    assert first.split() == second.split() != []


def test_a_pipe_that_is_closed_ends_it_quietly(state):
    store = sqlite3.connect(state / "events" / "events.sqlite")
    columns = "boot_id,boot_s,time_s,kind,detail,frames,data,bytes"
    store.executemany(
        f"INSERT INTO events ({columns}) VALUES ('b', 1, 1, 'ng', ?, 1, '{{}}', 0)",
        [("x" * 200,)] * 2000,
    )
    store.commit()
    store.close()
    command = f"{sys.executable} -m edge_app events export --state {state} | head -1"
    run = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.startswith("id,time,") and run.stderr == ""
