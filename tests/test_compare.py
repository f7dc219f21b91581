"""`python -m tools compare`: one evaluation for all, kept run by run, and our own beside them."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from tools.__main__ import main
from tools.compare import LOCK
from tools.compare_report import Line, lines_of, verdict
from tools.methods import Fitted, Method
from tools.methods import registry as registry_module
from tools.metrics import au_pro, image_auroc, pixel_auroc


@pytest.fixture
def parts(tmp_path):
    """A set of grey plates, some of them with a bright spot, and another as reference."""
    rng = np.random.default_rng(0)
    root = tmp_path / "plates"

    def plate():
        return np.clip(rng.normal(120, 6, (48, 48, 3)), 0, 255).astype(np.uint8)

    def write(path, picture):
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture)

    for number in range(12):
        write(root / "train" / "good" / f"{number:02d}.png", plate())
    for number in range(6):
        write(root / "test" / "good" / f"{number}.png", plate())
        spotted, mask = plate(), np.zeros((48, 48), np.uint8)
        x, y = rng.integers(4, 32, 2)
        spotted[y : y + 10, x : x + 10] = 255
        mask[y : y + 10, x : x + 10] = 255
        write(root / "test" / "spot" / f"{number}.png", spotted)
        write(root / "ground_truth" / "spot" / f"{number}_mask.png", mask)
    for kind in ("a", "b"):
        for number in range(4):
            write(tmp_path / "other" / kind / f"{number}.png", plate())
    return root


class CountedFit(Fitted):
    """Scores by the brightest pixel plus the seed; its map is the brightness."""

    maps = ("brightness",)

    def __init__(self, seed):
        self.parameters, self.size_bytes, self.notes = 1, 8, {"seed": seed}
        self._seed = seed

    def scores(self, view):
        grey = view.pixels((48, 48)).max()
        # The second way gets worse with the seed.
        return {"brightest": float(grey), "worse": float(grey) * (1 - self._seed)}

    def map(self, view, kind):
        assert kind == "brightness"
        return view.laid_back(view.pixels((48, 48)).mean(axis=2), (48, 48))


class Counted(Method):
    name, title, paper = "counted", "A stand-in that counts", "none"
    reported, chance, score_names = "nothing", True, ("brightest", "worse")
    fits: list[int] = []

    def fit(self, part, seed, state, progress=True):
        assert len(part.good) == 12 and state.is_dir()
        assert [p.name for p in part.reference] == ["other"]  # never the set itself
        # What another method has read is neither held for it nor given to this one.
        assert not any("frame_bgr" in vars(view) or view._aligned for view in part.good)
        part.pictures((48, 48))
        self.fits.append(seed)
        return CountedFit(seed)


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setattr(Counted, "fits", [])
    monkeypatch.setitem(registry_module.METHODS, "counted", Counted)
    return Counted


def compare(parts, out, *more, methods=("counted", "mean-image")):
    argv = ["compare", "--data", parts, "--methods", *methods, "--weights", "imagenet"]
    argv += ["--reference-data", parts.parent / "other", parts, "--align", "none", "--out", out]
    return main([str(arg) for arg in [*argv, *more]])


def test_the_figures_are_those_of_the_metrics(parts, tmp_path, counted, capsys):
    out = tmp_path / "out"
    assert compare(parts, out, "--seeds", "0", "1") == 0
    assert counted.fits == [0, 1]
    kept = json.loads((out / "plates/none/counted/seed_0/result.json").read_text())
    tests = [*sorted((parts / "test/good").iterdir()), *sorted((parts / "test/spot").iterdir())]
    pictures = [cv2.imread(str(path)) for path in tests]
    truth = [path.parent.name == "spot" for path in tests]
    brightest = [float(picture.max()) for picture in pictures]
    assert kept["scores"]["brightest"] == brightest and kept["is_anomaly"] == truth
    assert kept["image_auroc"]["brightest"] == image_auroc(brightest, truth) == 1.0
    maps = [picture.mean(axis=2).astype(np.float32) for picture in pictures]
    masks = [
        cv2.imread(str(parts / "ground_truth/spot" / f"{path.stem}_mask.png"), 0) > 0
        if bad
        else np.zeros((48, 48), bool)
        for path, bad in zip(tests, truth, strict=True)
    ]
    assert kept["maps"]["brightness"]["pixel_auroc"] == pytest.approx(pixel_auroc(maps, masks))
    assert kept["maps"]["brightness"]["au_pro"] == pytest.approx(au_pro(maps, masks))
    assert kept["maps"]["brightness"]["pictures"] == 12
    with open(out / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == {"counted", "mean-image"}
    (worse,) = [row for row in rows if row["score"] == "worse"]
    # Seed 0 tells all apart, seed 1 gives every picture 0.
    assert (worse["lowest"], worse["highest"], worse["seeds"]) == ("0.5", "1.0", "2")
    assert float(worse["image_auroc"]) == 0.75
    # A method without chance runs once, whatever the seeds.
    assert [row["seeds"] for row in rows if row["method"] == "mean-image"] == ["1"]
    said = capsys.readouterr().out
    assert "plates, alignment none" in said and "our default was not among" in said


def test_what_is_done_is_read_and_the_budget_leaves_the_rest(parts, tmp_path, counted, capsys):
    out = tmp_path / "out"
    assert compare(parts, out, "--seeds", "0") == 0
    before = (out / "table.csv").read_bytes()
    assert compare(parts, out, "--seeds", "0") == 0
    assert counted.fits == [0] and (out / "table.csv").read_bytes() == before
    assert compare(parts, out, "--seeds", "0", "1", "2", "--budget", "0") == 0
    assert counted.fits == [0] and "2 of 4 runs are left" in capsys.readouterr().out
    assert compare(parts, out, "--seeds", "0", "1", "2") == 0
    assert counted.fits == [0, 1, 2]


def test_two_at_a_time_come_to_the_same(parts, tmp_path, capsys):
    # The file is there, and is no weights file: what fails in another process is the same sentence.
    (tmp_path / "w.weights.h5").write_bytes(b"no weights")
    methods = ("mahalanobis", "brightness", "mean-image")
    results = []
    for out, jobs in (("one", 1), ("two", 2)):
        more = ("--weights", tmp_path / "w.weights.h5", "--jobs", jobs)
        assert compare(parts, tmp_path / out, *more, methods=methods) == 0
        said = capsys.readouterr().out
        assert "not compared: plates, mahalanobis: " in said and "w.weights.h5" in said
        for name in methods[1:]:
            kept = tmp_path / out / f"plates/none/{name}/seed_0/result.json"
            results.append(json.loads(kept.read_text()))
    for alone, beside in zip(results[:2], results[2:], strict=True):
        assert beside["scores"] == alone["scores"] and beside["image_auroc"] == alone["image_auroc"]


def test_one_method_that_fails_does_not_take_the_table_away(
    parts, tmp_path, counted, monkeypatch, capsys
):
    from edge_app.errors import InputError

    def refuse(self, part, seed, state, progress=True):
        raise InputError("too few pictures for this")

    monkeypatch.setattr(counted, "fit", refuse)
    assert compare(parts, tmp_path / "out", "--seeds", "0") == 0
    said = capsys.readouterr().out
    assert "not compared: plates, counted: too few pictures for this" in said
    assert "mean-image" in said


def test_a_score_that_is_no_number_is_no_result(parts, tmp_path, counted, monkeypatch, capsys):
    monkeypatch.setattr(
        CountedFit, "scores", lambda self, view: {"brightest": float("nan"), "worse": 0.0}
    )
    assert compare(parts, tmp_path / "out", "--seeds", "0") == 0
    assert "the score 'brightest' of a picture is no number" in capsys.readouterr().out
    assert not (tmp_path / "out/plates/none/counted/seed_0/result.json").exists()


def test_results_of_other_pictures_are_refused(parts, tmp_path, counted, capsys):
    out = tmp_path / "out"
    assert compare(parts, out, "--seeds", "0") == 0
    (parts / "train/good/00.png").unlink()
    assert compare(parts, out, "--seeds", "0") == 2
    assert "holds a result of other data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--methods", "magic"], "--methods magic: wanted some of brightness"),
        (["--budget", "0"], "nothing was done before"),
        (["--weights", "gone.h5"], "--weights gone.h5: no such file"),
        (["--reference-data", "gone"], "--reference-data gone: no such folder"),
    ],
)
def test_bad_input_is_one_sentence(parts, tmp_path, counted, capsys, more, says):
    assert compare(parts, tmp_path / "out", *more) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error


def test_the_page_holds_everything_and_fetches_nothing(parts, tmp_path, counted):
    assert compare(parts, tmp_path / "out", "--seeds", "0") == 0
    page = (tmp_path / "out" / "report.html").read_text()

    class Reader(HTMLParser):
        sources: list[str] = []

        def handle_starttag(self, tag, attrs):
            self.sources += [v for k, v in attrs if k in ("src", "href") and v]

    reader = Reader()
    reader.feed(page)
    assert all(v.startswith(("data:", "#")) for v in reader.sources)
    # Six defects, each outlined and under the maps of both methods.
    assert sum(v.startswith("data:image") for v in reader.sources) == 6 * 3
    assert "A stand-in that counts" in page and "counted, brightness" in page


def line(method, auroc, ms=1.0):
    return Line("set", "none", method, "", 1, auroc, auroc, auroc, {}, ms, 1, 1, 1.0)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([line("ours", 0.95), line("doc", 0.97)], "doc beats our default by 0.0200"),
        ([line("ours", 0.95), line("doc", 0.953)], "within 0.005 of the first (doc), and the"),
        ([line("ours", 0.95, 2.0), line("doc", 0.94, 1.0)], "is first; cheaper than its 2.00 ms"),
        ([line("ours", 0.95, 2.0), line("doc", 0.80, 1.0)], "is first, and the cheapest"),
        ([line("ours", 0.85), line("doc", 0.80)], "no method is above 0.9"),
        ([line("doc", 0.80)], "was not among"),
    ],
)
def test_whether_our_default_earns_its_place(lines, says):
    assert says in verdict(lines)


def test_lines_are_sorted_by_their_mean(parts, tmp_path, counted):
    from tools.compare import planned
    from tools.compare_run import done

    assert compare(parts, tmp_path / "out", "--seeds", "0", "1") == 0

    class Args:
        data, align, weights, other_weights = [parts], ["none"], "imagenet", None
        methods, seeds, leave_out, out = ["counted"], [0, 1], [], tmp_path / "out"
        reference_data = [parts.parent / "other", parts]

    outcomes = [done(one) for one in planned(Args)]
    lines = lines_of([replace(outcome, fit_s=9.0) for outcome in outcomes])
    assert [row.name for row in lines] == ["counted, brightest", "counted, worse"]
    assert lines[0].fit_s == 9.0 and Path(outcomes[0].data_dir) == parts


def test_two_commands_do_not_work_in_one_folder(parts, tmp_path, counted, capsys):
    out = tmp_path / "out"
    assert compare(parts, out, "--seeds", "0") == 0
    with open(out / LOCK, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert compare(parts, out, "--seeds", "0") == 2
    assert "another compare works there" in capsys.readouterr().err
    assert compare(parts, out, "--seeds", "0") == 0


def test_a_lost_number_of_seconds_does_not_stop_a_run(parts, tmp_path, counted):
    folder = tmp_path / "out/plates/none/counted/seed_0"
    folder.mkdir(parents=True)
    (folder / "fit_s").write_text("")  # the power went as it was written
    assert compare(parts, tmp_path / "out", "--seeds", "0") == 0
    assert (folder / "result.json").is_file()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, "bug"])
def test_whatever_ends_the_command_ends_its_processes(tmp_path, end):
    script = Path(__file__).with_name("compare_process.py")
    more = ["bug"] if end == "bug" else []
    root = Path(__file__).parents[1]
    command = subprocess.Popen(
        [sys.executable, script, tmp_path, *more],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        written = [tmp_path / str(number) / "fitted/pids" for number in range(2)]
        wait_for(lambda: all(path.exists() and path.read_text() for path in written))
        pids = [int(pid) for path in written for pid in path.read_text().split()]
        if end != "bug":
            assert all(alive(pid) for pid in pids)
            command.send_signal(end)
        error = command.communicate(timeout=60)[1]
        assert command.returncode != 0 and ("a bug in a method" in error) == (end == "bug")
        wait_for(lambda: not any(alive(pid) for pid in pids))
        if end != signal.SIGKILL:
            assert float((tmp_path / "0/fit_s").read_text()) > 0
    finally:
        command.kill()


def wait_for(reached):
    limit_s = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < limit_s
        time.sleep(0.02)
