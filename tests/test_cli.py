"""The commands as a user types them: what they print, write, refuse, and their exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_app.bundle import load_bundle
from edge_app.cli import main

ROOT = Path(__file__).resolve().parent.parent


def lines(path) -> list[dict]:
    def refuse(name):
        raise AssertionError(f"{name} in the JSON")

    return [json.loads(line, parse_constant=refuse) for line in Path(path).read_text().splitlines()]


def refused(capsys, *argv) -> tuple[int, str]:
    """Exit code and the one sentence of a command that must fail."""
    code = main([str(arg) for arg in argv])
    error = capsys.readouterr().err
    said = [line for line in error.splitlines() if line.startswith("edge-app: ")]
    assert len(said) == 1 and "Traceback" not in error, error
    return code, said[0]


@pytest.fixture(scope="module")
def clip_run(tmp_path_factory, clip_path, nut_path):
    out = tmp_path_factory.mktemp("clip")
    argv = ["inspect", clip_path, "--bundle", nut_path, "--out", out, "--json", out / "v.jsonl"]
    assert main([str(arg) for arg in argv]) == 0
    return out


def test_the_shipped_clip_gets_the_right_verdicts(clip_run, clip_truth):
    parts = [line for line in lines(clip_run / "v.jsonl") if line["event"] == "part"]
    truth = clip_truth["parts"]
    assert len(parts) == len(truth)
    for line, part in zip(parts, truth, strict=True):
        assert line["verdict"] == ("OK" if part["defect"] is None else "NG"), part
        assert part["first_frame"] - 3 <= line["part_frames"]["first"] <= part["still_first_frame"]
        assert part["still_last_frame"] <= line["part_frames"]["last"] <= part["last_frame"] + 3


def test_every_frame_has_a_line_with_every_field(clip_run, clip_frames, nut_path):
    found = lines(clip_run / "v.jsonl")
    frames = [line for line in found if line["event"] == "frame"]
    assert [line["frame"] for line in frames] == list(range(len(clip_frames)))
    fields = {
        "event", "frame", "source", "time", "part", "score", "score_smoothed", "threshold",
        "verdict", "reason", "degraded", "latency_ms", "heatmap", "part_frames", "bundle_sha256",
    }  # fmt: skip
    sha256 = load_bundle(nut_path).sha256
    for line in found:
        assert set(line) == fields and line["bundle_sha256"] == sha256
        assert (line["score"] is None) == (line["verdict"] in ("UNKNOWN", "EMPTY"))
        assert (line["reason"] is not None) == (line["verdict"] == "UNKNOWN")
        assert (line["part_frames"] is not None) == (line["event"] == "part")
        assert line["time"].endswith("Z") and len(line["time"]) == 24
    assert {line["verdict"] for line in frames} == {"OK", "NG", "UNKNOWN", "EMPTY"}


def test_overlays_are_written_for_ng_parts_only(clip_run):
    parts = [line for line in lines(clip_run / "v.jsonl") if line["event"] == "part"]
    named = {line["heatmap"] for line in parts if line["heatmap"]}
    assert named == {str(path) for path in clip_run.glob("*.jpg")}
    for line in parts:
        assert (line["heatmap"] is not None) == (line["verdict"] == "NG")
        if line["heatmap"]:
            assert cv2.imread(line["heatmap"]) is not None


def test_a_folder_gives_one_part_a_picture(tmp_path, still_frames, nut_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    cv2.imwrite(str(folder / "1.png"), still_frames["good"][0])
    whole = cv2.imencode(".jpg", still_frames["good"][1])[1].tobytes()
    (folder / "2.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "3.png").write_text("text, not a picture")
    cv2.imwrite(str(folder / "4.png"), still_frames["bad"][12])
    cv2.imwrite(str(folder / "5.png"), np.zeros((1, 1, 3), np.uint8))
    out = tmp_path / "v.jsonl"
    assert main(["inspect", str(folder), "--bundle", str(nut_path), "--json", str(out)]) == 0
    found = lines(out)
    assert [line["verdict"] for line in found] == ["OK", "UNKNOWN", "UNKNOWN", "NG", "UNKNOWN"]
    assert [line["part"] for line in found] == [0, 1, 2, 3, 4]
    assert "breaks off" in found[1]["reason"] and "not a picture" in found[2]["reason"]
    assert "1 x 1 pixels" in found[4]["reason"]


def test_grey_16_bit_and_rgba_pictures_are_judged_alike(tmp_path, still_frames, nut_path):
    grey = cv2.cvtColor(still_frames["good"][0], cv2.COLOR_BGR2GRAY)
    three = np.dstack([grey] * 3)
    cv2.imwrite(str(tmp_path / "1.png"), three)
    cv2.imwrite(str(tmp_path / "2.png"), grey)
    cv2.imwrite(str(tmp_path / "3.png"), grey.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "4.png"), np.dstack([three, np.full_like(grey, 9)]))
    out = tmp_path / "v.jsonl"
    assert main(["inspect", str(tmp_path), "--bundle", str(nut_path), "--json", str(out)]) == 0
    assert len({line["score"] for line in lines(out)}) == 1


def test_json_to_standard_output_is_nothing_but_json(tmp_path, clip_path, nut_path):
    run = subprocess.run(
        [sys.executable, "-m", "edge_app", "inspect", clip_path, "--bundle", nut_path]
        + ["--json", "-", "--mode", "continuous"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert all(json.loads(line)["event"] == "frame" for line in run.stdout.splitlines())


def test_a_killed_run_leaves_whole_lines(tmp_path, clip_path, nut_path):
    out = tmp_path / "v.jsonl"
    os.mkfifo(tmp_path / "gate")
    code = (
        "import sys; from edge_app.cli import main; from edge_app.sinks.jsonl import JsonLines\n"
        "emit, count = JsonLines.emit, 0\n"
        "def slow(self, result):\n"
        "    global count; emit(self, result); count += 1\n"
        f"    if count == 37: open({str(tmp_path / 'gate')!r}, 'w').write('x'); sys.stdin.read()\n"
        "JsonLines.emit = slow\n"
        f"main({['inspect', str(clip_path), '--bundle', str(nut_path), '--json', str(out)]!r})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    with open(tmp_path / "gate") as gate:
        gate.read()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert out.read_text().endswith("\n") and len(lines(out)) == 37


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["inspect", "{tmp}/nowhere", "--bundle", "{nut}"], 2, "no such folder or file"),
        (["inspect", "{tmp}/empty", "--bundle", "{nut}"], 2, "holds no picture"),
        (["inspect", "{tmp}/text.png", "--bundle", "{nut}"], 2, "not a picture"),
        (["inspect", "{tmp}/zero.mp4", "--bundle", "{nut}"], 2, "neither a picture nor a video"),
        (["inspect", "{clip}", "--bundle", "{tmp}/nowhere"], 78, "no such bundle"),
        (["inspect", "{clip}", "--bundle", "{base}"], 78, "run edge-app enroll first"),
        (["inspect", "{clip}", "--bundle", "{nut}", "--out", "{tmp}/text.png/x"], 2, "cannot be"),
        (["inspect", "{clip}", "--bundle", "{nut}", "--json", "{tmp}/text.png/x"], 2, "cannot be"),
        (["inspect", "{clip}", "--bundle", "{nut}", "--config", "{tmp}/no.toml"], 78, "no such"),
        (["inspect", "{clip}", "--bundle", "{nut}", "--config", "{tmp}/bad.toml"], 78,
         "unknown key thread in [runtime], the nearest known is threads"),
        (["inspect", "camera:63", "--bundle", "{nut}"], 69, "cannot be opened"),
        (["enroll", "{tmp}/nowhere", "--out", "{tmp}/b"], 2, "no such folder or file"),
        (["enroll", "{tmp}/five", "--out", "{tmp}/b", "--scorer", "lof"], 2,
         "5 good images are too few"),
        (["enroll", "{clip}", "--out", "{tmp}/empty"], 2, "exists already"),
        (["enroll", "{clip}", "--out", "{tmp}/text.png/b"], 2, "cannot be written"),
        (["enroll", "{clip}", "--out", "{tmp}/b", "--add"], 2, "with --bundle B"),
        (["enroll", "{clip}", "--bundle", "{base}", "--out", "{tmp}/b", "--add"], 2,
         "knows no part"),
        (["enroll", "--bundle", "{nut}", "--out", "{tmp}/b", "--remove", "nobody.png#1"], 2,
         "nobody.png#1"),
        (["enroll", "--out", "{tmp}/b"], 2, "SOURCE is missing"),
        (["enroll", "{clip}", "--out", "{tmp}/b", "--neighbours", "3"], 2, "of the scorers lof"),
        (["enroll", "--list", "--bundle", "{nut}", "--out", "{tmp}/b"], 2, "leave out --out"),
        (["enroll", "{clip}", "--out", "{tmp}/b", "--report", "{tmp}/b/r.html"], 2,
         "name another place"),
        (["enroll", "{clip}"], 2, "--out B2 is missing"),
        (["enroll", "{clip}", "--out", "{tmp}/b", "--false-alarms"], 2, "goes with --add"),
        (["enroll", "{clip}", "--out", "{tmp}/b", "--report", "{tmp}/text.png/r.html"], 2,
         "cannot be written"),
        (["enroll", "{clip}", "--bundle", "{nut}", "--out", "{tmp}/b", "--add", "--scorer", "knn"],
         2, "leave out --add"),
        (["bench", "--bundle", "{base}", "--scorer", "knn"], 2, "--references N"),
    ],
)  # fmt: skip
def test_bad_input(
    capsys, tmp_path, still_frames, nut_path, base_path, clip_path, argv, code, says
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "five").mkdir()
    for index, frame in enumerate(still_frames["good"][:5]):
        cv2.imwrite(str(tmp_path / "five" / f"{index}.png"), frame)
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "zero.mp4").write_bytes(b"")
    (tmp_path / "bad.toml").write_text("[runtime]\nthread = 2\n")
    before = sorted(tmp_path.rglob("*"))
    names = {"tmp": tmp_path, "nut": nut_path, "base": base_path, "clip": clip_path}
    got, sentence = refused(capsys, *(arg.format(**names) for arg in argv))
    assert got == code and says in sentence
    assert sorted(tmp_path.rglob("*")) == before  # nothing written, nothing lost


@pytest.mark.parametrize(
    "argv", [["inspect"], ["nonsense"], [], ["bench", "--bundle", "x", "--frames", "0"]]
)
def test_usage_errors_end_with_2(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_enroll_then_inspect(tmp_path, good_folder, still_frames, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    for index, frame in enumerate(still_frames["empty"][:5]):
        cv2.imwrite(str(empty / f"{index}.png"), frame)
    (good_folder / "zz.jpg").write_bytes(b"\xff\xd8broken")
    out = tmp_path / "b" / "mine"
    argv = ["enroll", good_folder, "--out", out, "--empty", empty, "--activate"]
    assert main([str(arg) for arg in argv]) == 0
    said = capsys.readouterr()
    assert "learnt 12 good images" in said.out
    assert "support a false-reject rate" in said.out and "say little" in said.out
    assert "zz.jpg" in said.err
    bundle = load_bundle(tmp_path / "b" / "current")
    assert bundle.manifest["part"] == "mine" and bundle.decoder is None
    assert bundle.manifest["threshold"]["images"] == 12
    assert len(bundle.reference["scores"]) == len(bundle.reference["image_ids"]) == 12
    verdicts = {}
    for kind in ("good", "bad", "empty"):
        folder = tmp_path / f"test-{kind}"
        folder.mkdir()
        for index, frame in enumerate(still_frames[kind][-3:]):
            cv2.imwrite(str(folder / f"{index}.png"), frame)
        json_path = tmp_path / f"{kind}.jsonl"
        main(["inspect", str(folder), "--bundle", str(out), "--json", str(json_path)])
        verdicts[kind] = [line["verdict"] for line in lines(json_path)]
    assert verdicts["empty"] == ["EMPTY"] * 3
    assert "OK" in verdicts["good"] and "NG" not in verdicts["empty"]


def halves(good_folder):
    """The good folder in two, by every second picture."""
    parts = [good_folder.parent / name for name in ("first", "second")]
    for part in parts:
        part.mkdir()
    for index, path in enumerate(sorted(good_folder.iterdir())):
        shutil.copy(path, parts[index % 2])
    return parts


def enrolled(*argv):
    assert main(["enroll", *(str(arg) for arg in argv)]) == 0


def test_adding_and_taking_out_is_as_if_it_had_always_been_so(tmp_path, good_folder, capsys):
    first, second = halves(good_folder)
    start, more, less = (tmp_path / name for name in ("start", "more", "less"))
    enrolled(first, "--out", start, "--part", "nut")
    enrolled(second, "--add", "--false-alarms", "--bundle", start, "--out", more)
    assert "(12 in all)" in capsys.readouterr().out
    before, after = load_bundle(start), load_bundle(more)
    assert after.manifest["parent_sha256"] == before.sha256
    assert after.manifest["part"] == "nut" and len(after.reference["scores"]) == 12
    added = [str(name) for name in after.reference["image_ids"][6:]]
    enrolled("--list", "--bundle", more)
    listed = capsys.readouterr().out
    assert listed.count("(false alarm)") == 6 and all(name in listed for name in added)
    removals = [word for name in added for word in ("--remove", name)]
    enrolled("--bundle", more, "--out", less, *removals)
    again = load_bundle(less)
    assert again.manifest["threshold"] == before.manifest["threshold"]
    for name, array in before.reference.items():
        np.testing.assert_array_equal(again.reference[name], array, err_msg=name)


def test_add_keeps_decoder_presence_and_rate(tmp_path, good_folder, nut_path):
    out = tmp_path / "more"
    enrolled(good_folder, "--bundle", nut_path, "--add", "--out", out)
    before, after = load_bundle(nut_path), load_bundle(out)
    assert after.decoder == before.decoder
    assert (after.manifest["presence"] is None) == (before.manifest["presence"] is None)
    wanted = before.manifest["threshold"]["wanted_rate"]
    assert after.manifest["threshold"]["wanted_rate"] == wanted


def test_a_picture_that_is_not_good_is_listed_and_can_be_left_out(
    tmp_path, still_frames, good_folder, capsys
):
    for index, frame in enumerate(still_frames["good"][3:80:5]):
        cv2.imwrite(str(good_folder / f"more{index:02d}.png"), frame)
    odd = still_frames["good"][0].copy()
    odd[90:150, 120:200] = (30, 200, 30)
    cv2.imwrite(str(good_folder / "odd.png"), odd)
    report = tmp_path / "r.html"
    enrolled(good_folder, "--out", tmp_path / "with", "--report", report)
    assert "least like the rest: odd.png" in capsys.readouterr().out
    assert "odd.png" in report.read_text()
    enrolled(good_folder, "--out", tmp_path / "without", "--drop-outliers")
    assert "left out as unlike the rest: odd.png" in capsys.readouterr().out
    ids = [str(name) for name in load_bundle(tmp_path / "without").reference["image_ids"]]
    assert not any(name.startswith("odd.png") for name in ids) and len(ids) >= 20


def test_what_would_poison_the_reference_is_not_learnt(tmp_path, good_folder, capsys):
    clean, mixed = tmp_path / "clean", tmp_path / "mixed"
    assert main(["enroll", str(good_folder), "--out", str(clean)]) == 0
    capsys.readouterr()
    first = sorted(good_folder.iterdir())[0]
    for index in range(8):
        shutil.copy(first, good_folder / f"copy{index}.png")
    cv2.imwrite(str(good_folder / "tiny.png"), np.zeros((1, 1, 3), np.uint8))
    assert main(["enroll", str(good_folder), "--out", str(mixed)]) == 0
    said = capsys.readouterr().err
    assert said.count("has been learnt already") == 8 and "1 x 1 pixels" in said
    assert load_bundle(mixed).manifest["threshold"] == load_bundle(clean).manifest["threshold"]


def test_two_images_are_too_few_whatever_k(tmp_path, good_folder, capsys):
    for path in sorted(good_folder.iterdir())[2:]:
        path.unlink()
    argv = ["enroll", good_folder, "--out", tmp_path / "b"]
    code, sentence = refused(capsys, *argv)
    assert code == 2 and "too few to hold any of them out" in sentence


def test_add_widens_the_place_of_the_part(tmp_path, still_frames, nut_path):
    beside = tmp_path / "beside"
    beside.mkdir()
    shift = np.float32([[1, 0, 24], [0, 1, 0]])
    for index, frame in enumerate(still_frames["good"][:84:7]):
        moved = cv2.warpAffine(frame, shift, frame.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
        cv2.imwrite(str(beside / f"{index}.png"), moved)

    def reasons(bundle):
        out = tmp_path / "v.jsonl"
        main(["inspect", str(beside), "--bundle", str(bundle), "--json", str(out)])
        return {line["reason"] for line in lines(out)}

    assert reasons(nut_path) == {"part: not where the good parts lay"}
    more = tmp_path / "more"
    assert (
        main(["enroll", str(beside), "--bundle", str(nut_path), "--add", "--out", str(more)]) == 0
    )
    assert reasons(more) == {None}


def test_a_name_that_is_not_utf_8_costs_nothing(tmp_path, still_frames, nut_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/part\xff.png")
    Path(name).write_bytes(cv2.imencode(".png", still_frames["good"][0])[1].tobytes())
    out = tmp_path / "v.jsonl"
    assert main(["inspect", str(tmp_path), "--bundle", str(nut_path), "--json", str(out)]) == 0
    (line,) = lines(out)
    assert line["verdict"] == "OK" and line["source"].endswith("part\\xff.png")


def test_enroll_region_is_kept_and_used(tmp_path, good_folder):
    out = tmp_path / "b"
    region = ["--region", "0.2,0.1,0.8,0.9"]
    assert main(["enroll", str(good_folder), "--out", str(out), *region]) == 0
    assert load_bundle(out).region == (0.2, 0.1, 0.8, 0.9)


def test_bench_reports_every_figure(tmp_path, nut_path, capsys):
    out = tmp_path / "bench.json"
    argv = ["bench", "--bundle", nut_path, "--references", 60, "--frames", 5, "--json", out]
    # The empty view of the bundle's station is not in the seeded pictures: they count as parts.
    assert main([str(arg) for arg in argv]) == 0
    figures = json.loads(out.read_text())
    wanted = {
        "encoder_ms", "loop_ms", "score_ms", "read_ms", "loop_over_encoder", "score_over_encoder",
        "stages_ms", "start_to_first_verdict_s", "peak_rss_mb", "runtime", "threads", "frames",
    }  # fmt: skip
    assert wanted <= set(figures) and figures["references"] == 60
    assert {"align", "encode", "score", "decide"} <= set(figures["stages_ms"])
    assert all(figures[name] > 0 for name in wanted - {"stages_ms", "runtime"})
    assert "x encoder" in capsys.readouterr().out


def test_unwritable_folder_is_refused(tmp_path, capsys, clip_path, nut_path):
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    code, sentence = refused(capsys, "inspect", clip_path, "--bundle", nut_path, "--out", locked)
    assert code == 2 and "cannot be written" in sentence


def test_a_damaged_bundle_ends_with_78(tmp_path, capsys, clip_path, nut_path):
    shutil.copytree(nut_path, tmp_path / "nut")
    (tmp_path / "nut" / "encoder.tflite").write_bytes(b"x")
    code, sentence = refused(capsys, "inspect", clip_path, "--bundle", tmp_path / "nut")
    assert code == 78 and "encoder.tflite" in sentence


def test_one_thread_of_blas_whatever_the_machine(nut_path):
    # Set before numpy is loaded, or it has no effect.
    code = (
        "import os, sys; from edge_app.cli import main; "
        f"main(['bench', '--bundle', {str(nut_path)!r}, '--frames', '1']); "
        "import numpy as np; a = np.ones((600, 600), np.float32); "
        "before = len(os.listdir('/proc/self/task')); a @ a; "
        "print('threads', before, len(os.listdir('/proc/self/task')))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "threads 1 1", done.stdout + done.stderr


def test_a_closed_pipe_ends_it_quietly_and_a_closed_socket_does_not(nut_path, clip_path):
    command = [sys.executable, "-m", "edge_app", "inspect", clip_path, "--bundle", nut_path]
    with subprocess.Popen(
        [str(arg) for arg in [*command, "--json", "-"]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 128 + signal.SIGPIPE and said == b""
    assert main(["inspect", str(clip_path), "--bundle", "nowhere"]) == 78
    # A command leaves the process, here that of the tests, as it was.
    assert signal.getsignal(signal.SIGPIPE) is not signal.SIG_DFL
