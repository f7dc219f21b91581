"""`edge-app run` as a process: its life, its signals, what is swapped under it, what hangs."""

from __future__ import annotations

import contextlib
import itertools
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from service_process import LIMIT_S, ROOT, ServiceProcess

from edge_app.records import Verdict

# The clip in a third of its time.
FAST = "[camera]\nfps = 45\n"
HANGING = Path(__file__).with_name("hanging_service.py")


@pytest.fixture
def start(tmp_path):
    with contextlib.ExitStack() as stack:
        numbers = itertools.count()

        def start(*args, folder=None, **kwargs):
            folder = folder or tmp_path / str(next(numbers))
            folder.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                (folder / "notify").unlink()
            service = ServiceProcess(folder, *args, **kwargs)
            stack.callback(service.close)
            return service

        yield start


def refused(tmp_path, *arguments, config=None):
    """Exit code and error of a service that must not start."""
    command = [sys.executable, "-m", "edge_app", "run", *map(str, arguments)]
    command += ["--state", str(tmp_path / "state")]
    if config is not None:
        (tmp_path / "config.toml").write_text(config)
        command += ["--config", str(tmp_path / "config.toml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    return done.returncode, done.stderr


def test_it_is_ready_judges_and_ends_when_told(start, nut_path):
    service = start(nut_path, FAST).ready()
    assert "READY=1" in service.messages[0]  # nothing is said before
    ng = service.wait_event("ng")
    assert ng.verdict is Verdict.NG and ng.score > ng.threshold
    assert service.store.picture(ng.id, "frame") and service.store.picture(ng.id, "overlay")
    service.wait(lambda: any("frames/s" in m for m in service.messages), "a status")
    code, _ = service.end()
    assert code == 0 and "Traceback" not in service.log()
    assert any("STOPPING=1" in message for message in service.messages)
    (begun, ended) = sorted(service.store.latest(9, kinds=["service"]), key=lambda row: row.id)
    assert "started" in begun.detail and ended.detail == "ended"
    counts = [counts for _, counts in service.store.counts(0)]
    assert sum(c.get("part NG", 0) for c in counts) >= 1


def test_without_a_camera_it_is_ready_and_everything_is_unknown(start, nut_path):
    service = start(nut_path, source="camera:9").ready()
    row = service.wait_event("unknown")
    assert row.reason.startswith("camera: lost") and row.frame is None
    assert service.wait_state(lambda s: s["verdict"] == "UNKNOWN", "UNKNOWN")["reason"]
    service.wait(lambda: any("camera: lost" in m for m in service.messages), "a status of it")
    assert service.end()[0] == 0
    # It lasted, and is told as one.
    (row,) = service.store.latest(9, kinds=["unknown"])
    assert row.ended_s is not None


@pytest.mark.parametrize(
    ("arguments", "config", "code", "says"),
    [
        (["synthetic"], None, 78, "models/current: no such bundle: edge-app enroll"),
        (["synthetic", "--bundle", "models/base"], None, 78, "knows no good part yet"),
        (["models/sample/clip.mp4", "--bundle", "models/nut"], None, 2, "is no camera"),
        # What systemd would start again for ever.
        (["--bundle", "models/nut"], "[service]\nsource = 'clip.mp4'", 78, "is no camera"),
        (
            ["--bundle", "models/nut"],
            "[service]\nsource = 'synthetic:gone.mp4'",
            78,
            "gone.mp4: no such",
        ),
        (["synthetic:gone.mp4", "--bundle", "models/nut"], None, 2, "gone.mp4: no such"),
        (["synthetic"], "[service]\nname = 'a b'", 78, "name is 'a b', wanted letters"),
        (
            ["synthetic", "--bundle", "models/nut"],
            "[web]\naddress = '0.0.0.0'\nport = 0",
            78,
            "wanted a token_file",
        ),
        (
            ["synthetic", "--bundle", "models/nut"],
            "[trigger]\nkind = 'mqtt'",
            78,
            "with [mqtt] enabled",
        ),
        # No pins, or no library for them, on this machine.
        (
            ["synthetic", "--bundle", "models/nut"],
            "[trigger]\nkind = 'gpio'\ngpio_pin = 22",
            78,
            "trigger: GPIO 22",
        ),
    ],
)
def test_what_cannot_serve_is_refused_in_a_sentence(
    tmp_path, monkeypatch, arguments, config, code, says
):
    monkeypatch.setenv("GPIOZERO_PIN_FACTORY", "none_such")
    got, error = refused(tmp_path, *arguments, config=config)
    assert got == code and says in error and "Traceback" not in error
    assert len([line for line in error.splitlines() if line.startswith("edge-app:")]) == 1


def test_what_is_refused_late_lets_go_of_the_camera(tmp_path):
    """Its reader would still be within the driver while Python ends."""
    (tmp_path / "config.toml").write_text("[web]\naddress = '0.0.0.0'\n")
    script = (
        "import sys, threading\n"
        "from edge_app.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "print([thread.name for thread in threading.enumerate() if 'reader' in thread.name])\n"
        "sys.exit(code)\n"
    )
    arguments = ["run", "synthetic", "--bundle", "models/nut", "--state", tmp_path / "state"]
    arguments += ["--config", tmp_path / "config.toml"]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 78 and "wanted a token_file" in done.stderr
    assert done.stdout.strip() == "[]"


def test_mode_part_wants_a_bundle_that_ends_parts(tmp_path, pooled_bundle, start, nut_path):
    """Without an empty view one part would be open for ever, and no NG be told."""
    config = FAST + "[service]\nmode = 'part'\n"
    code, error = refused(tmp_path, "synthetic", "--bundle", pooled_bundle.path, config=config)
    assert code == 78 and "cannot tell an empty view" in error
    service = start(nut_path, config).ready()
    service.install(pooled_bundle.path)
    row = service.wait_event("config")
    assert "bundle refused" in row.detail and "cannot tell an empty view" in row.detail
    assert service.end()[0] == 0


def test_a_swap_may_bring_another_mode_and_says_so(start, nut_path, pooled_bundle):
    service = start(nut_path, FAST).ready()
    service.install(pooled_bundle.path)
    row = service.wait_event("bundle")
    assert row.detail.endswith("; mode continuous, before part")
    assert service.end()[0] == 0


def test_a_second_service_keeps_out_of_the_first_ones_state(start, nut_path):
    service = start(nut_path, FAST).ready()
    code, error = refused(service.folder, "synthetic")
    assert code == 78 and "another edge-app run keeps its state here" in error
    # Nothing of the first is left in its way, whatever ended it.
    service.process.kill()
    service.process.wait(LIMIT_S)
    again = start(None, FAST, folder=service.folder).ready()
    assert again.end()[0] == 0


def test_a_reload_takes_what_is_good_and_refuses_what_is_not(start, nut_path):
    service = start(nut_path, FAST).ready()
    service.configure(FAST + "[decision]\nng_share = 7\n")
    service.process.send_signal(signal.SIGHUP)
    row = service.wait_event("config")
    assert "reload refused" in row.detail and "ng_share is 7" in row.detail
    assert "goes on judging" in row.detail
    service.configure(FAST + "[decision]\nng_share = 0.9\n[webhook]\ntimeout_s = 3\n")
    service.process.send_signal(signal.SIGHUP)
    row = service.wait_event("config", after=row.id)
    assert "read again" in row.detail and "[webhook]" in row.detail and "restart" in row.detail
    # Nothing of what wants a restart is in force, half of it least of all.
    service.configure(FAST + '[trigger]\nkind = "http"\n')
    service.process.send_signal(signal.SIGHUP)
    row = service.wait_event("config", after=row.id)
    assert "what changed in [trigger] comes into force with a restart" in row.detail
    assert service.get("/api/state")["mode"] == "part"
    service.wait(
        lambda: (
            sum("RELOADING=1" in m for m in service.messages) == 3
            and sum("READY=1" in m for m in service.messages) == 4
        ),
        "the reloads told to systemd",
    )
    assert service.end()[0] == 0


def test_another_current_is_followed_a_damaged_one_is_not(start, nut_path, tmp_path):
    service = start(nut_path, FAST).ready()
    damaged = service.install(nut_path, "damaged", current=False)
    with open(damaged / "encoder.tflite", "r+b") as file:
        file.write(b"not this")
    service.install(damaged)
    row = service.wait_event("config")
    assert "bundle refused" in row.detail and "encoder.tflite" in row.detail
    service.install(ROOT / "models" / "nut_int8")
    row = service.wait_event("bundle")
    assert row.detail == "judged by nut_int8 from now on, before by nut"
    service.wait_state(lambda s: s["bundle"]["name"] == "nut_int8", "the other bundle")
    assert service.end()[0] == 0


def test_a_disk_that_fails_does_not_stop_the_inspection(start, nut_path, tmp_path):
    folder = tmp_path / "broken"
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "events").write_text("a file where the folder should be")
    service = start(nut_path, FAST, folder=folder).ready()
    state = service.wait_state(
        lambda s: s["counts"]["part"].get("NG", 0) and s["outputs"][0]["failing"], "a verdict"
    )
    assert state["outputs"][0]["name"] == "events" and state["outputs"][0]["failures"] >= 1
    (folder / "state" / "events").unlink()
    assert service.wait_event("ng").verdict is Verdict.NG  # what was waiting is written
    assert service.end()[0] == 0


def test_a_hung_camera_is_unknown_and_ends_the_feeding_in_time(
    start, nut_path, tmp_path, monkeypatch
):
    monkeypatch.setenv("HANG_DIR", str(tmp_path))
    config = FAST + "[service]\ncamera_hang_s = 5\n"
    service = start(nut_path, config, "hanging", watchdog_s=2.0, script=HANGING).ready()
    service.wait_state(lambda s: s["rate"] > 0, "frames")
    (tmp_path / "camera").touch()
    hung_s = time.monotonic()
    service.wait_state(lambda s: (s["reason"] or "").startswith("camera: no picture"), "UNKNOWN")
    # It went on being fed at first: a camera that is slow to come back is no reason to restart.
    assert service.fed_s[-1] > hung_s
    assert starve(service) == -signal.SIGABRT
    assert service.fed_s[-1] - hung_s > 3.0
    assert "the watchdog is no longer fed" in service.log()


def test_a_hung_stage_starves_the_watchdog_at_once(start, nut_path, tmp_path, monkeypatch):
    monkeypatch.setenv("HANG_DIR", str(tmp_path))
    service = start(nut_path, FAST, "hanging", watchdog_s=2.0, script=HANGING).ready()
    service.wait_state(lambda s: s["rate"] > 0, "frames")
    (tmp_path / "stage").touch()
    assert starve(service) == -signal.SIGABRT
    assert "hanging_look" in service.log()  # the journal says where it hung


def starve(service):
    """What systemd does: SIGABRT once nothing has been heard for the watchdog's time."""

    def starving():
        last_s = service.fed_s[-1]
        return time.monotonic() - last_s > 2.0

    service.wait(starving, "an end of the feeding")
    service.process.send_signal(signal.SIGABRT)
    return service.process.wait(LIMIT_S)


def test_a_false_alarm_is_learnt_and_reverted(start, nut_path):
    service = start(nut_path, FAST + "[service]\nmost_threshold_rise = 100\n").ready()
    ng = service.wait_event("ng")
    status, said = service.post(f"/api/events/{ng.id}/learn")
    assert status == 200, said
    assert re.search(r"learnt as a good part: nut-learnt-\d{8}T\d{6} judges", said["said"])
    state = service.wait_state(lambda s: s["bundle"]["name"].startswith("nut-learnt"), "the child")
    assert state["threshold"] != ng.threshold
    row = service.wait_event("learn")
    assert row.data["event"] == ng.id and service.store.get(ng.id).mark == "false alarm"
    # The same part of the next round: twelve are in the clip.
    verdict = part_verdict(service, ng.part + 12)
    assert verdict == "OK"
    status, said = service.post(f"/api/events/{ng.id}/learn")
    assert status == 409 and "already" in said["error"]
    bundles = service.get("/api/bundles")["bundles"]
    assert [bundle["in_use"] for bundle in bundles] == [True, False]
    status, said = service.post("/api/bundles/revert", sha256=bundles[1]["sha256"])
    assert status == 200 and said["said"].startswith("back to nut")
    service.wait_state(lambda s: s["bundle"]["name"] == "nut", "the first again")
    assert service.wait_event("revert").data["to"] == bundles[1]["sha256"]
    assert service.store.get(ng.id).mark is None  # it is no good part any more, and may be again
    assert part_verdict(service, ng.part + 24) == "NG"
    # What was taken back can be learnt again.
    status, said = service.post(f"/api/events/{ng.id}/learn")
    assert status == 200, said
    assert service.end()[0] == 0


def part_verdict(service, number):
    """The verdict on the part of this number, as soon as there is one."""
    state = service.wait_state(
        lambda s: s["last_part"] and s["last_part"]["part"] == number, f"part {number}"
    )
    return state["last_part"]["verdict"]


def test_what_would_raise_the_threshold_too_far_is_refused(start, nut_path):
    service = start(nut_path, FAST + "[service]\nmost_threshold_rise = 1\n").ready()
    ng = service.wait_event("ng")
    status, said = service.post(f"/api/events/{ng.id}/learn")
    assert status == 409 and "more than 1 times" in said["error"]
    assert sorted(p.name for p in service.models.iterdir()) == ["current", "nut"]
    assert service.store.get(ng.id).mark is None
    assert service.end()[0] == 0


def test_start_stop_threshold_picture_and_mark(start, nut_path):
    service = start(nut_path, FAST).ready()
    service.wait_state(lambda s: s["rate"] > 0, "frames")
    assert service.post("/api/stop")[0] == 200
    state = service.wait_state(lambda s: s["verdict"] == "UNKNOWN" and s["hold"], "the stop")
    assert state["reason"] == "stopped: by hand" and state["scoring"] is False
    assert service.post("/api/stop")[0] == 409
    assert service.post("/api/start")[0] == 200
    service.wait_state(lambda s: s["verdict"] != "UNKNOWN" and s["hold"] is None, "the start")
    options = service.get("/api/threshold")
    higher = [o["value"] for o in options["options"] if o["value"] > options["value"]][0]
    status, said = service.post("/api/threshold", value=higher)
    assert status == 200 and "threshold set" in said["said"]
    assert service.wait_event("threshold")
    assert service.get("/api/threshold")["value"] == higher
    assert service.post("/api/threshold", value=-1.0)[0] == 409
    assert service.post("/api/picture")[0] == 200
    assert service.store.picture(service.wait_event("picture").id, "frame")
    ng = service.wait_event("ng")
    assert service.post(f"/api/events/{ng.id}/mark")[0] == 200
    assert service.store.get(ng.id).mark == "true defect"
    assert service.post("/api/events/999999/mark")[0] == 409
    assert service.end()[0] == 0


def test_of_the_bundles_that_the_page_wrote_the_oldest_go(start, nut_path):
    service = start(nut_path, FAST + "[service]\nkeep_bundles = 2\n").ready()
    options = service.get("/api/threshold")
    for option in [o for o in options["options"] if o["value"] > options["value"]][:4]:
        assert service.post("/api/threshold", value=option["value"])[0] == 200
    kept = sorted(path.name for path in service.models.iterdir())
    # Not the one that somebody else has made, however old.
    assert kept[:2] == ["current", "nut"] and len(kept) == 4
    # The answer does not wait for the event to be on the disk.
    rows = service.wait(
        lambda: len(found := service.store.latest(9, kinds=["threshold"])) == 4 and found,
        "the events of four thresholds",
    )
    names = [re.search(r"\((.+)\)$", row.detail)[1] for row in rows]
    # None has the name of one that was given up: it stands in events.
    assert len(names) == len(set(names)) == 4 and set(kept[2:]) <= set(names)
    assert (service.models / "current").resolve().name in kept
    assert len(service.get("/api/bundles")["bundles"]) == 3
    assert "given up" in service.wait_event("storage").detail
    assert service.end()[0] == 0


def test_a_bundle_that_is_no_link_is_judged_by_and_not_changed(start, nut_path):
    service = start(None, FAST + f'[service]\nbundle = "{nut_path}"\n').ready()
    ng = service.wait_event("ng")
    status, said = service.post(f"/api/events/{ng.id}/learn")
    assert status == 409 and "no link" in said["error"]
    assert service.end()[0] == 0


def masters(tmp_path, still_frames):
    import cv2

    for kind in ("good", "bad"):
        (tmp_path / kind).mkdir()
        for number, frame in enumerate(still_frames[kind][:3]):
            cv2.imwrite(str(tmp_path / kind / f"{number}.png"), frame)
    return tmp_path / "good", tmp_path / "bad"


def test_failed_masters_hold_the_line_until_they_pass(start, nut_path, tmp_path, still_frames):
    good, bad = masters(tmp_path, still_frames)
    service = start(nut_path, FAST + "[service]\nverify_required = true\n").ready()

    def verify(good, bad, *more):
        arguments = ["--good", good, "--bad", bad, "--state", service.state, *more]
        command = [sys.executable, "-m", "edge_app", "verify", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)

    done = verify(good=bad, bad=good)
    assert done.returncode == 1 and "FAILED: 0 of 3 good masters OK" in done.stdout
    row = service.wait_event("verify")
    assert row.data["passed"] is False and len(row.data["masters"]) == 6
    state = service.wait_state(lambda s: s["hold"], "the hold")
    assert state["hold"].startswith("verify: FAILED: 0 of 3 good masters OK")
    assert "bad/0.png is NG" in state["hold"] and str(tmp_path) not in state["hold"]
    # That another bundle tells them apart says nothing of the one that judges.
    done = verify(good, bad, "--bundle", ROOT / "models" / "nut_int8")
    assert done.returncode == 0 and "is another bundle" in done.stdout
    assert service.wait_event("verify", after=row.id).detail.startswith("trial of nut_int8 passed")
    assert service.end()[0] == 0
    # A restart does not make the masters pass.
    service = start(None, FAST + "[service]\nverify_required = true\n", folder=service.folder)
    state = service.ready().wait_state(lambda s: s["hold"], "the hold")
    assert state["counts"]["frame"].get("OK", 0) == 0
    done = verify(good, bad)
    assert done.returncode == 0 and "passed: 3 of 3 good masters OK" in done.stdout
    service.wait_state(lambda s: s["hold"] is None and s["verdict"] != "UNKNOWN", "the end of it")
    assert service.end()[0] == 0


def test_verify_says_what_is_wrong_with_its_input(tmp_path, nut_path, still_frames):
    good, bad = masters(tmp_path, still_frames)

    def verify(*arguments):
        command = [sys.executable, "-m", "edge_app", "verify", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)

    done = verify("--good", good, "--bad", bad, "--bundle", nut_path, "--state", tmp_path / "no")
    assert done.returncode == 2 and "no: no such folder" in done.stderr
    (tmp_path / "state").mkdir()
    done = verify(
        "--good", good, "--bad", tmp_path / "x", "--bundle", nut_path, "--state", tmp_path / "state"
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert not (tmp_path / "state" / "events").exists()  # half a check is none
