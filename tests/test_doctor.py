"""The doctor: each check on real files, sockets and processes that are as they should not be."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edge_app import doctor
from edge_app.commands import doctor as command
from edge_app.doctor import Finding, diagnose, probe

ROOT = Path(__file__).resolve().parent.parent
LEVELS = ("ok", "note", "problem")
# Python's own modules and nothing that was installed beside them.
BARE = [entry for entry in sys.path if "-packages" not in entry and entry != str(ROOT)]
NO_NUMPY_ABI = "numpy.dtype size changed, may indicate binary incompatibility"


def module(folder: Path, name: str, code: str) -> list[str]:
    """A search path on which a module of this name and content comes first."""
    path = folder / f"{name.replace('.', '/')}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent != folder:
        (path.parent / "__init__.py").touch()
    path.write_text(code)
    return [str(folder), *sys.path]


def levels(findings: list[Finding]) -> list[str]:
    return [finding.level for finding in findings]


def of(findings: list[Finding], subject: str) -> list[Finding]:
    return [finding for finding in findings if finding.subject == subject]


# --- As a whole -----------------------------------------------------------------------------------


def test_loading_it_imports_no_library():
    code = (
        "import sys, edge_app.commands.doctor; "
        "sys.exit(' '.join({'numpy', 'cv2', 'edge_app.bundle'} & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_without_any_library_it_says_so_and_looks_at_the_rest(tmp_path, nut_path):
    found = diagnose(nut_path, root=tmp_path, environment={}, search_path=BARE)
    for subject, said in (
        ("numpy", "No module named"),
        ("opencv", "not inst"),
        ("runtime", "no TF"),
    ):
        (finding,) = of(found, subject)
        assert finding.level == "problem" and said in finding.text and "pip" in finding.remedy
    for subject in ("bundle", "heat", "config"):
        (finding,) = of(found, subject)
        assert finding.level == "note" and "numpy cannot be used" in finding.text
    assert not any("failed itself" in finding.text for finding in found)


def test_a_numpy_that_kills_the_process_is_a_finding(tmp_path, nut_path):
    path = module(tmp_path, "numpy", "import os; os.abort()")
    found = diagnose(nut_path, root=tmp_path, environment={}, search_path=path)
    (finding,) = of(found, "numpy")
    assert finding.level == "problem" and "SIGABRT" in finding.text
    assert of(found, "bundle")[0].level == "note"  # this process must not import it
    assert not list(tmp_path.glob("core*"))


def test_a_check_that_fails_itself_is_a_finding_and_stops_no_other(tmp_path, nut_path):
    found = diagnose(nut_path, root=tmp_path, environment=None, search_path=BARE)
    (finding,) = of(found, "display")
    assert finding.level == "problem" and "this check failed itself: AttributeError" in finding.text
    assert of(found, "clock") and of(found, "disk")


def test_a_finding_is_one_line_whatever_it_holds():
    line = Finding("problem", "cameras", "a\nb\x1b[2J\r", "c\n").line()
    assert line.isprintable() and line.startswith("PROBLEM  cameras ") and "-> c" in line


def run_command(capsys, *argv) -> tuple[int, list[str]]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    command.configure(parser)
    code = command.run(parser.parse_args([str(arg) for arg in argv]))
    return code, capsys.readouterr().out.splitlines()


def test_the_command_prints_a_line_a_finding_and_exits_1_for_a_problem(tmp_path, capsys, nut_path):
    broken = tmp_path / "nut"
    shutil.copytree(nut_path, broken)
    (broken / "reference.npz").write_bytes(b"short")
    file = tmp_path / "doctor.json"
    code, printed = run_command(capsys, "--bundle", broken, "--json", file)
    found = [Finding(**entry) for entry in json.loads(file.read_text())["findings"]]
    assert code == 1 and [finding.line() for finding in found] == printed[:-1]
    assert {finding.level for finding in found} <= set(LEVELS)
    (bundle,) = of(found, "bundle")
    assert bundle.level == "problem" and "reference.npz: has 5 bytes" in bundle.text
    count = levels(found).count("problem")
    assert printed[-1].startswith(f"{count} problem")
    # The damaged bundle's encoder is whole: the runtime is tried with it all the same.
    assert of(found, "runtime")[0].level == "ok"


def test_the_exit_code_is_1_only_if_something_is_a_problem(tmp_path, capsys, nut_path):
    file = tmp_path / "doctor.json"
    code, _ = run_command(capsys, "--bundle", nut_path, "--json", file)
    found = json.loads(file.read_text())["findings"]
    assert "note" in [finding["level"] for finding in found]
    assert code == int(any(finding["level"] == "problem" for finding in found))


# --- Libraries ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "failed"),
    [
        ("raise ValueError('a\\nb')", "ValueError: a b"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import os; os.abort()", "takes the process down (SIGABRT)"),
        ("import os; os.write(2, b'why\\n'); os._exit(5)", "ends with exit code 5: why"),
        ("import os; print('[1]'); os._exit(0)", "ends with exit code 0"),
    ],
)
def test_a_probe_that_fails_says_how(code, failed):
    assert probe(code, BARE) == doctor.Probe(None, failed)


def test_a_probe_finds_and_a_hanging_one_is_ended():
    assert probe("import sys; print('noise'); found = sys.argv[1:]", BARE, "a", "b").found == [
        "a",
        "b",
    ]
    assert "no answer within 0.3 s" in probe("while True: pass", BARE, timeout_s=0.3).failed


def test_a_file_of_the_current_folder_does_not_get_in_between(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    assert probe("found = 1", BARE).found == 1


@pytest.mark.parametrize(
    ("version", "bits", "machine", "expected"),
    [
        ((3, 11, 2), 64, "aarch64", ["ok"]),
        ((3, 13, 5), 64, "x86_64", ["ok"]),
        ((3, 10, 9), 64, "aarch64", ["problem"]),
        ((3, 14, 0), 64, "aarch64", ["note"]),
        ((3, 11, 2), 32, "armv7l", ["ok", "problem"]),
        ((3, 11, 2), 32, "aarch64", ["ok", "problem"]),
    ],
)
def test_python_and_userland(version, bits, machine, expected):
    found = doctor.check_python(version, bits, machine, "Raspberry Pi 5 Model B Rev 1.0")
    assert levels(found) == expected
    if bits == 32:
        assert ("under a 64-bit kernel" in found[1].text) == (machine == "aarch64")


def test_the_installed_libraries_work(base_path):
    (numpy,) = doctor.check_numpy(sys.path)
    assert numpy.level == "ok" and numpy.text[0].isdigit()
    opencv, window = doctor.check_opencv(sys.path)
    assert opencv.level == "ok" and window.subject == "window"
    (runtime,) = doctor.check_runtime(base_path / "encoder.tflite", sys.path)
    assert runtime.level == "ok" and "runs" in runtime.text


HEADLESS = (
    "  OpenCL: YES\n\n  GUI:                           NONE\n    VTK support:   NO\n\n  Media:\n"
)
QT = "  GUI:                           QT5\n    QT:            YES (ver 5.15.16 )\n\n  Media I/O:\n"
GTK = "\n  GUI:                           GTK3\n    GTK+:            YES (ver 3.24.38)\n\n"
OLDER = "  GUI: \n    QT:              NO\n    GTK+:            YES (ver 2.24)\n\n  Media I/O:\n"
OLDER_HEADLESS = "  GUI: \n    QT:              NO\n    VTK support:     NO\n\n  QT: YES\n"


@pytest.mark.parametrize(
    ("build", "toolkit"),
    [
        (HEADLESS, None),
        (QT, "QT5"),
        (GTK, "GTK3"),
        (OLDER, "GTK+"),
        (OLDER_HEADLESS, None),
        ("", None),
    ],
)
def test_the_window_toolkit_is_read_from_the_build_information(build, toolkit):
    assert doctor.window_toolkit(build) == toolkit


def test_an_opencv_that_lacks_a_system_library_names_the_packages(tmp_path):
    said = "libGL.so.1: cannot open shared object file: No such file or directory"
    path = module(tmp_path, "cv2", f"raise ImportError({said!r})")
    (finding,) = doctor.check_opencv(path)
    assert finding.level == "problem" and "apt install libgl1" in finding.remedy


def wheel(folder: Path, name: str, version: str = "4.11.0.86") -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / "cv2").mkdir(exist_ok=True)
    (folder / "cv2" / "__init__.py").touch()


def test_two_opencv_wheels_in_one_folder_are_a_problem(tmp_path):
    wheel(tmp_path / "a", "opencv-python")
    assert doctor.check_opencv_copies([str(tmp_path / "a")]) == []
    wheel(tmp_path / "a", "opencv-contrib-python-headless")
    (finding,) = doctor.check_opencv_copies([str(tmp_path / "a"), str(tmp_path / "a" / ".")])
    assert finding.level == "problem"
    assert "pip uninstall -y opencv-contrib-python-headless opencv-python" in finding.remedy


def test_an_opencv_of_apt_beside_a_wheel_is_noted(tmp_path):
    wheel(tmp_path / "venv", "opencv-python")
    apt = tmp_path / "dist-packages"
    apt.mkdir()
    (apt / "cv2.cpython-311-aarch64-linux-gnu.so").touch()
    (finding,) = doctor.check_opencv_copies([str(tmp_path / "venv"), str(apt)])
    assert finding.level == "note"
    assert f"opencv-python 4.11.0.86 in {tmp_path / 'venv'} hides apt's in {apt}" == finding.text


FOR_NUMPY_1 = """
class Interpreter:
    def __init__(self, **options):
        raise SystemError("<built-in function> returned a result with an exception set")
"""


def test_a_runtime_for_another_numpy_is_noted_beside_one_that_works(tmp_path, base_path):
    path = module(tmp_path, "tflite_runtime.interpreter", FOR_NUMPY_1)
    works, other = doctor.check_runtime(base_path / "encoder.tflite", path)
    assert (works.level, other.level) == ("ok", "note")
    assert "tflite-runtime was built for numpy 1" in other.text and "numpy<2" in other.remedy


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (FOR_NUMPY_1, "ai-edge-litert was built for numpy 1"),
        ("raise ImportError('GLIBC_2.38 not found')", "GLIBC_2.38 not found"),
        ("import os; os.abort()", "ai-edge-litert: takes the process down (SIGABRT)"),
    ],
)
def test_a_runtime_that_builds_no_interpreter_is_a_problem(tmp_path, base_path, code, said):
    path = module(tmp_path, "ai_edge_litert.interpreter", code)
    (finding,) = doctor.check_runtime(base_path / "encoder.tflite", path)
    assert finding.level == "problem" and said in finding.text and "; install" not in finding.text


def test_a_model_that_the_runtime_refuses_is_the_models_fault(tmp_path):
    model = tmp_path / "encoder.tflite"
    model.write_bytes(b"not a model")
    (finding,) = doctor.check_runtime(model, sys.path)
    assert finding.level == "problem" and "bundle" in finding.remedy


def test_without_an_encoder_the_runtime_is_not_called_well():
    (finding,) = doctor.check_runtime(None, sys.path)
    assert finding.level == "note" and "not tried" in finding.text


def test_picamera2_beside_another_numpy(tmp_path):
    module(tmp_path, "picamera2", "import simplejpeg")
    path = module(tmp_path, "simplejpeg", f"raise ValueError({NO_NUMPY_ABI!r})")
    (finding,) = doctor.check_picamera2(path, "Raspberry Pi 4")
    assert (
        finding.level == "problem"
        and f"import simplejpeg: ValueError: {NO_NUMPY_ABI}" in finding.text
    )
    assert "numpy<2" in finding.remedy
    (tmp_path / "simplejpeg.py").write_text("")
    assert levels(doctor.check_picamera2(path, "Raspberry Pi 4")) == ["ok"]


def test_picamera2_is_missed_on_a_raspberry_pi_only():
    assert levels(doctor.check_picamera2(BARE, "Raspberry Pi 4 Model B")) == ["note"]
    assert levels(doctor.check_picamera2(BARE, "")) == ["ok"]


# --- Display and cameras --------------------------------------------------------------------------


@contextmanager
def x_server(folder: Path, reply: bytes):
    """A socket X7 that answers one greeting; yields what it was greeted with."""
    heard = []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "X7"))
        listening.listen()
        listening.settimeout(10)

        def answer():
            connection, _ = listening.accept()
            with connection:
                heard.append(connection.recv(64))
                connection.sendall(reply)

        thread = threading.Thread(target=answer)
        thread.start()
        yield heard
        thread.join()


@pytest.mark.parametrize(
    ("reply", "cookie", "level", "said"),
    [
        (b"\1\0\13\0\0\0\0\0", False, "ok", ":7.0 answers"),
        (b"\0\4\13\0\0\0\1\0No!\n", True, "ok", "asks for the cookie"),
        (b"\0\4\13\0\0\0\1\0No!\n", False, "problem", "lets nobody in without a cookie"),
        (b"", False, "problem", "hangs up"),
    ],
)
def test_an_x_display_is_greeted(tmp_path, reply, cookie, level, said):
    if cookie:
        (tmp_path / ".Xauthority").write_bytes(b"cookie")
    environment = {"DISPLAY": ":7.0", "HOME": str(tmp_path)}
    with x_server(tmp_path, reply) as heard:
        (finding,) = doctor.check_display(environment, tmp_path)
    assert finding.level == level and said in finding.text
    assert heard == [b"l\0\13\0\0\0\0\0\0\0\0\0"]  # the protocol's 12 bytes


@pytest.mark.parametrize(
    ("environment", "level", "said"),
    [
        ({}, "note", "none"),
        ({"DISPLAY": ""}, "note", "none"),
        ({"DISPLAY": ":7"}, "problem", ":7 does not answer"),
        ({"DISPLAY": "unix:7"}, "problem", "does not answer"),
        ({"DISPLAY": "127.0.0.1:59999"}, "problem", "does not answer"),
        ({"DISPLAY": "screen"}, "problem", "wanted :0"),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "problem", "does not answer"),
    ],
)
def test_a_display_that_does_not_answer(tmp_path, environment, level, said):
    (finding,) = doctor.check_display({"XDG_RUNTIME_DIR": str(tmp_path)} | environment, tmp_path)
    assert finding.level == level and said in finding.text and "live" in finding.remedy


def test_wayland_without_x_is_noted(tmp_path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "wayland-0"))
        listening.listen()
        environment = {"WAYLAND_DISPLAY": "wayland-0", "XDG_RUNTIME_DIR": str(tmp_path)}
        (finding,) = doctor.check_display(environment, tmp_path)
    assert finding.level == "note" and "through X only" in finding.text


def video_device(root: Path, number: int, name: str, index: int = 0, node: bool = True) -> None:
    entry = root / "class" / f"video{number}"
    entry.mkdir(parents=True)
    (entry / "name").write_text(name + "\n")
    (entry / "index").write_text(f"{index}\n")
    (root / "dev").mkdir(exist_ok=True)
    if node:
        (root / "dev" / entry.name).touch()


def cameras(root: Path, path=BARE) -> list[Finding]:
    return doctor.check_cameras(root / "class", root / "dev", path)


def test_cameras_are_told_from_codecs_metadata_and_receivers(tmp_path):
    video_device(tmp_path, 0, "unicam-image")
    video_device(tmp_path, 10, "bcm2835-codec-decode")
    video_device(tmp_path, 11, "HD Webcam C270\x1b[2J")
    video_device(tmp_path, 12, "HD Webcam C270", index=1)
    video_device(tmp_path, 2, "USB microscope")
    found = cameras(tmp_path)
    assert [finding.text for finding in found] == [
        "camera:2 is USB microscope",
        "camera:11 is HD Webcam C270 [2J",
    ]
    assert levels(found) == ["ok", "ok"]


def test_no_camera_is_noted_and_a_missing_node_is_a_problem(tmp_path):
    (finding,) = cameras(tmp_path)
    assert finding.level == "note" and "none found" in finding.text
    video_device(tmp_path, 0, "rp1-cfe-csi2_ch0")
    (finding,) = cameras(tmp_path)
    assert finding.level == "note" and "camera connector" in finding.remedy
    video_device(tmp_path, 4, "HD Webcam", node=False)
    (finding,) = cameras(tmp_path)
    assert finding.level == "problem" and "video4 is missing" in finding.text


LISTS = """
class Picamera2:
    @staticmethod
    def global_camera_info():
        print("INFO Camera camera_manager.cpp:313 libcamera v0.5.0")
        return [{"Model": "imx708", "Location": 2, "Num": 0}]
"""


def test_cameras_of_libcamera_are_listed(tmp_path):
    module(tmp_path, "picamera2", LISTS)
    (finding,) = cameras(tmp_path, [str(tmp_path), *BARE])
    assert (finding.level, finding.text) == ("ok", "picamera:0 is imx708")
    module(tmp_path, "picamera2", "import os; os.abort()")
    (finding,) = cameras(tmp_path, [str(tmp_path), *BARE])
    assert finding.level == "note" and "SIGABRT" in finding.text


def test_permissions_name_the_group_and_the_remedy(tmp_path):
    assert doctor.check_permissions(tmp_path, [], "ada") == []
    (tmp_path / "video0").touch()
    (tmp_path / "video-net").touch()
    owner = (tmp_path / "video0").stat().st_gid
    (fine,) = doctor.check_permissions(tmp_path, [], "ada", lambda node: True)
    assert fine.level == "ok"
    (finding,) = doctor.check_permissions(tmp_path, [owner + 1], "ada", lambda node: False)
    assert finding.level == "problem" and "video-net" not in finding.text
    assert "ada is not in group" in finding.text and "sudo usermod -aG" in finding.remedy
    (finding,) = doctor.check_permissions(tmp_path, [owner], "ada", lambda node: False)
    assert "may not use it" in finding.text and "chmod" in finding.remedy


# --- The board ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("degrees", "flags", "expected"),
    [
        ("45123", "0", [("heat", "ok"), ("power", "ok")]),
        ("76000", None, [("heat", "note")]),
        ("84000", "0", [("heat", "problem"), ("power", "ok")]),
        (None, None, [("heat", "note")]),
        ("nonsense", "nonsense", [("heat", "note")]),
        ("45000", "1", [("heat", "ok"), ("power", "problem")]),
        ("45000", "50000", [("heat", "ok"), ("power", "note"), ("power", "note")]),
        ("45000", "50005", [("heat", "ok"), ("power", "problem"), ("power", "problem")]),
        ("70000", "40004", [("heat", "ok"), ("heat", "problem")]),
        ("70000", "8", [("heat", "ok"), ("heat", "note")]),
    ],
)
def test_heat_and_power(tmp_path, degrees, flags, expected):
    for name, content in (("temp", degrees), ("get_throttled", flags)):
        if content is not None:
            (tmp_path / name).write_text(content + "\n")
    found = heat(tmp_path)
    assert sorted((f.subject, f.level) for f in found) == sorted(expected)


def heat(folder: Path, vcgencmd: Path | None = None, model: str = "") -> list[Finding]:
    told = None if vcgencmd is None else str(vcgencmd)
    files = (folder / "temp", folder / "get_throttled", folder / "hwmon")
    return doctor.check_heat(*files, 75.0, 81.0, told, model)


def test_the_firmware_is_asked_where_the_kernel_has_no_file(tmp_path):
    (tmp_path / "temp").write_text("50000\n")
    assert of(heat(tmp_path), "power") == []
    (finding,) = of(heat(tmp_path, model="Raspberry Pi 5 Model B"), "power")
    assert finding.level == "note" and "vcgencmd" in finding.remedy
    program = tmp_path / "vcgencmd"
    program.write_text("#!/bin/sh\necho throttled=0x10001\n")
    program.chmod(0o755)
    (finding,) = of(heat(tmp_path, program), "power")
    assert (finding.level, finding.text) == ("problem", "under-voltage now")
    program.write_text("#!/bin/sh\necho throttled=0x0\n")
    (finding,) = of(heat(tmp_path, program), "power")
    assert finding.level == "ok"
    program.write_text("#!/bin/sh\necho VCHI initialization failed\n")
    assert of(heat(tmp_path, program), "power") == []


@pytest.mark.parametrize(
    ("free_bytes", "read_only", "level"),
    [
        (10**9, False, "ok"),
        (499 * 10**6, False, "note"),
        (49 * 10**6, False, "problem"),
        (0, False, "problem"),
        (10**9, True, "problem"),
    ],
)
def test_free_space(free_bytes, read_only, level):
    assert doctor.disk_finding("/var/lib", free_bytes, read_only).level == level


def test_a_folder_to_be_made_is_looked_at_through_the_one_above(tmp_path):
    (finding,) = doctor.check_disk({"state": tmp_path / "a" / "b", "current folder": tmp_path})
    assert f"at {tmp_path} (state)" in finding.text


@pytest.mark.parametrize(
    ("content", "level"),
    [
        ("MemTotal: 900 kB\nMemAvailable:  3000000 kB\n", "ok"),
        ("MemAvailable:   200000 kB\n", "note"),
        ("MemAvailable:    90000 kB\n", "problem"),
        ("MemTotal: 900 kB\n", "note"),
    ],
)
def test_memory(tmp_path, content, level):
    (tmp_path / "meminfo").write_text(content)
    assert levels(doctor.check_memory(tmp_path / "meminfo")) == [level]
    assert levels(doctor.check_memory(tmp_path / "none")) == ["note"]


def test_the_clock(tmp_path):
    marker, now = tmp_path / "synchronized", datetime(2026, 5, 1, tzinfo=UTC)
    early = datetime(2024, 12, 31, tzinfo=UTC)
    assert levels(doctor.check_clock(early, marker, True)) == ["problem"]
    assert levels(doctor.check_clock(now, marker, False)) == ["note"]
    assert levels(doctor.check_clock(now, marker, None)) == ["note"]
    assert levels(doctor.check_clock(now, marker, True)) == ["ok"]
    marker.touch()
    assert levels(doctor.check_clock(now, marker, False)) == ["ok"]
    assert doctor.kernel_synchronised() in (True, False, None)


# --- Configuration and bundle ---------------------------------------------------------------------


def test_config(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text("[runtime]\nthreads = 2\n")
    assert levels(doctor.check_config(file)) == ["ok"]
    assert levels(doctor.check_config_text(file)) == ["note"]
    file.write_text("[runtime]\nthread = 2\n")
    (finding,) = doctor.check_config(file)
    assert finding.level == "problem" and "nearest known is threads" in finding.text
    file.write_text("[runtime")
    for check in (doctor.check_config, doctor.check_config_text):
        (finding,) = check(file)
        assert finding.level == "problem" and str(file) in finding.text


def test_a_whole_bundle_and_what_its_threshold_promises(nut_path, base_path, pooled_bundle):
    bundle, threshold = doctor.check_bundle(nut_path)
    assert bundle.level == "ok" and "reference 1." in bundle.text and "decoder" in bundle.text
    assert threshold.subject == "threshold" and "200 good images" in threshold.text
    # 12 pictures cannot support 1 %.
    bundle, threshold = doctor.check_bundle(pooled_bundle.path)
    assert threshold.level == "note" and "enroll more/ --add" in threshold.remedy
    bundle, threshold = doctor.check_bundle(base_path)
    assert (bundle.level, threshold.level) == ("ok", "note") and "no part yet" in threshold.text


def test_a_damaged_bundle_is_named_by_file(tmp_path, nut_path):
    broken = tmp_path / "nut"
    shutil.copytree(nut_path, broken)
    content = bytearray((broken / "learnt.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (broken / "learnt.npz").write_bytes(content)
    (finding,) = doctor.check_bundle(broken)
    assert finding.level == "problem" and "learnt.npz: sha256" in finding.text


def test_a_link_to_the_bundle_in_use_that_leads_nowhere_is_a_problem(tmp_path):
    models = tmp_path / "var/lib/edge-app/models"
    models.mkdir(parents=True)
    os.symlink("gone", models / "current")
    (finding,) = of(diagnose(root=tmp_path, environment={}), "bundle")
    assert finding.level == "problem" and "no such bundle" in finding.text
