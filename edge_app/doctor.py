"""
Doctor: what is wrong with a machine, and how to mend it.

Each check is a function of what it looks at (files, folders, environment, module search path) that
returns findings. It is needed most where a library cannot be imported, or takes the process down
with it. So this file imports nothing beyond the standard library when it is loaded, and libraries
are tried in a process of their own: a crash there is a finding here.
"""

from __future__ import annotations

import ctypes
import fcntl
import grp
import json
import os
import platform
import pwd
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from edge_app.errors import BundleError, ConfigError
from edge_app.places import CHECKOUT_MODELS, STATE
from edge_app.runtime import RUNTIMES

PACKAGE = Path(__file__).resolve().parent

# The oldest with tomllib and datetime.UTC; the newest that both runtimes' wheels were tried with.
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
# A picture of a part takes 0.1 to 1 MB: below the first, hundreds to thousands are left. A bundle
# takes up to 30 MB and is written beside the one in use: below the second it no longer fits.
LOW_DISK_BYTES, LEAST_DISK_BYTES = 500 * 10**6, 50 * 10**6
# Inspecting small frames takes 100 MB; 1920 x 1080, a window and enrolment take a few times that.
LOW_MEMORY_BYTES, LEAST_MEMORY_BYTES = 300 * 2**20, 100 * 2**20
# Importing from a slow SD card for the first time takes many seconds, hanging takes for ever.
PROBE_S = 60.0
# A local X server answers within milliseconds; a forwarded one over a slow link within a second.
DISPLAY_S = 3.0
# The firmware answers within milliseconds.
FIRMWARE_S = 5.0
# A board without a battery starts from 1970 or from when its image was made.
FIRST_PLAUSIBLE_YEAR = 2025

# Names (of the kernel's drivers) of video devices that are no camera, and of those that only
# libcamera can drive: the receivers of the Raspberry Pi's camera connector.
_NO_CAMERA = re.compile(
    r"bcm2835-codec|bcm2835-isp|pispbe|rpi-?hevc|rpivid|hantro|v4l2loopback", re.I
)
_RIBBON = re.compile(r"unicam|rp1-cfe|bcm2835-csi", re.I)

# linux/videodev2.h: VIDIOC_QUERYCAP reads struct v4l2_capability, 104 bytes, `device_caps` at 88.
_QUERYCAP, _CAPABILITY_BYTES, _DEVICE_CAPS = 0x80685600, 104, 88
_VIDEO_CAPTURE, _MEMORY_TO_MEMORY = 0x00000001 | 0x00001000, 0x00008000 | 0x00004000

# adjtimex(2): what it returns while nothing keeps the clock right, and room for its struct.
_CLOCK_UNSYNCHRONISED, _TIMEX_BYTES = 5, 512


@dataclass(frozen=True)
class Finding:
    """
    One thing that was looked at.

    Attributes
    ----------
    level : str
        ``ok``, ``note`` (works, but know this) or ``problem``.
    subject : str
        What was looked at, one word.
    text : str
        What was found, one line.
    remedy : str or None
        What to do about it.
    """

    level: str
    subject: str
    text: str
    remedy: str | None = None

    def line(self) -> str:
        """The finding in one line, for a terminal."""
        mark = self.level.upper() if self.level == "problem" else self.level
        remedy = f" -> {self.remedy}" if self.remedy else ""
        return one_line(f"{mark:7}  {self.subject:11} {self.text}{remedy}", keep_columns=True)


def one_line(text: object, keep_columns: bool = False) -> str:
    """A text without line breaks and without what a terminal would obey rather than print."""
    shown = "".join(c if c.isprintable() else " " for c in str(text))
    return shown if keep_columns else " ".join(shown.split())


def diagnose(
    bundle: Path | str | None = None,
    config_file: Path | str | None = None,
    *,
    root: Path = Path("/"),
    environment: Mapping[str, str] = os.environ,
    search_path: Sequence[str] | None = None,
) -> list[Finding]:
    """
    All checks, one after the other; never raises.

    Parameters
    ----------
    bundle : path, optional
        By default the first that is there of `default_bundles`.
    config_file : path, optional
        As `edge_app.config.load_config` takes it.
    root : Path
        What the paths of the system (``/dev``, ``/proc``, ``/run``, ``/sys``, ``/tmp/.X11-unix``,
        ``/var``) lie under.
    environment : mapping of str to str
        Where the display is named.
    search_path : sequence of str, optional
        Where modules are looked for; by default where this process does.
    """
    path = list(sys.path if search_path is None else search_path)
    model = _read(root / "proc/device-tree/model") or ""
    version, bits, machine = sys.version_info[:3], struct.calcsize("P") * 8, platform.machine()
    found = _safely("python", check_python, version, bits, machine, model)
    numpy = _safely("numpy", check_numpy, path)
    numpy_works = not _broken(numpy)
    opencv = _safely("opencv", check_opencv, path, numpy_works)
    found += numpy + opencv + _safely("opencv", check_opencv_copies, path)
    places = default_bundles(root / STATE.relative_to("/") / "models")
    if bundle is None:
        # A link that leads nowhere counts: it is to be reported, not passed over.
        bundle = next((place for place in places if os.path.lexists(place)), None)
    encoders = [Path(place) / "encoder.tflite" for place in (bundle, *places) if place is not None]
    encoder = next((file for file in encoders if _is_file(file)), None)
    found += _safely("runtime", check_runtime, encoder, path, numpy_works)
    found += _safely("picamera2", check_picamera2, path, model)
    found += _safely("display", check_display, environment, root / "tmp/.X11-unix")
    found += _safely("cameras", check_cameras, root / "sys/class/video4linux", root / "dev", path)
    found += _safely("permissions", check_permissions, root / "dev", os.getgroups(), _user())
    # From here on this process itself imports numpy, and for a bundle OpenCV: only where that is
    # known to do it no harm.
    if numpy_works:
        found += _safely("config", check_config, config_file)
        found += _safely("heat", _check_heat_of, config_file, root, model)
    else:
        found += _safely("config", check_config_text, config_file)
        found.append(_unseen("heat", "numpy"))
    if numpy_works and not _broken(opencv):
        found += _safely("bundle", check_bundle, bundle)
    else:
        found.append(_unseen("bundle", "OpenCV" if numpy_works else "numpy"))
    state = root / STATE.relative_to("/")
    found += _safely("disk", check_disk, {"state": state, "current folder": Path(".")})
    found += _safely("memory", check_memory, root / "proc/meminfo")
    marker = root / "run/systemd/timesync/synchronized"
    return found + _safely("clock", check_clock, datetime.now(UTC), marker, kernel_synchronised())


def default_bundles(state_models: Path = STATE / "models") -> list[Path]:
    """Where a bundle is looked for if none is named: the one in use, then those to enrol from."""
    return [state_models / "current", CHECKOUT_MODELS / "base", state_models / "base"]


def _safely(subject: str, check: Callable[..., list[Finding]], *looked_at: Any) -> list[Finding]:
    """The check's findings; if the check itself fails, that is one."""
    try:
        return check(*looked_at)
    except Exception as error:  # whatever it is: the other checks are still wanted
        if os.environ.get("DEBUG"):
            traceback.print_exc()
        what = f"this check failed itself: {type(error).__name__}: {one_line(error)}"
        return [Finding("problem", subject, what, "report it; DEBUG=1 shows where it failed")]


def _broken(findings: Sequence[Finding]) -> bool:
    return any(finding.level == "problem" for finding in findings)


def _unseen(subject: str, library: str) -> Finding:
    return Finding(
        "note", subject, f"not looked at, since {library} cannot be used", f"mend {library}"
    )


def _read(path: Path) -> str | None:
    """A small file of the system as one line; None where there is none or it cannot be read."""
    try:
        return one_line(path.read_bytes()[:4096].decode("utf-8", "replace").strip("\0"))
    except OSError:
        return None


def _why(error: Exception) -> str:
    """What went wrong, without Python's number for it."""
    return one_line(getattr(error, "strerror", None) or error)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


# --- Libraries, each tried in a process of its own ------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """What a process of its own `found`, or how it `failed` in one line."""

    found: Any = None
    failed: str | None = None


# The last line it prints is the answer; whatever libraries print comes before. The search path is
# set before anything else is imported, so that no file of the current folder gets in between.
_PROBE = """
import sys
sys.path[:] = sys.argv[1].split("\\n")
code, sys.argv[:] = sys.argv[2], sys.argv[2:]
import json, resource
# A crash must not leave a core file behind.
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
try:
    names = {}
    exec(code, names)
    answer = {"found": names["found"]}
except BaseException as error:
    answer = {"failed": f"{type(error).__name__}: {error}"}
print("\\n" + json.dumps(answer), flush=True)
"""


def probe(
    code: str, search_path: Sequence[str], *arguments: str, timeout_s: float = PROBE_S
) -> Probe:
    """
    Run Python code in a process of its own.

    Parameters
    ----------
    code : str
        Sets the name `found` to something that JSON can hold.
    search_path : sequence of str
        Where it looks for modules; ``edge_app`` itself is found in any case.
    arguments : str
        The code's ``sys.argv[1:]``.
    timeout_s : float
        It is ended after so many seconds.
    """
    where = "\n".join([*(entry or os.getcwd() for entry in search_path), os.fspath(PACKAGE.parent)])
    try:
        run = subprocess.run(
            [sys.executable, "-c", _PROBE, where, code, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return Probe(failed=f"no answer within {timeout_s:g} s")
    except OSError as error:
        return Probe(failed=f"{sys.executable} cannot be started: {error.strerror}")
    if run.returncode < 0:
        name = _signal_name(-run.returncode)
        return Probe(failed=f"takes the process down ({name})")
    lines = run.stdout.decode("utf-8", "replace").strip().splitlines()
    try:
        answer = json.loads(lines[-1])
        failed = answer.get("failed")
        return Probe(answer.get("found"), None if failed is None else _meaning(failed))
    except (IndexError, ValueError, AttributeError):
        said = one_line(run.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2])
        return Probe(failed=f"ends with exit code {run.returncode}" + (f": {said}" if said else ""))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _meaning(failed: str) -> str:
    """An exception's text without the advice that numpy writes around it over many lines."""
    original = re.search(r"Original error was: *(.+)", failed)
    return one_line(original.group(1) if original else failed)[:300]


def check_python(
    version: tuple[int, int, int], bits: int, machine: str, model: str
) -> list[Finding]:
    """
    The interpreter, the width of the userland, and the board.

    Parameters
    ----------
    version : tuple of int
        Of Python: major, minor, micro.
    bits : int
        Width of a pointer of this process, 32 or 64.
    machine : str
        As ``uname -m`` says.
    model : str
        Of the board, from the device tree; empty where there is none.
    """
    written = ".".join(str(number) for number in version)
    wanted = f"{_dotted(OLDEST_PYTHON)} to {_dotted(NEWEST_PYTHON)}"
    board = f", {model}" if model else ""
    if version[:2] < OLDEST_PYTHON:
        python = Finding("problem", "python", f"{written}, wanted {wanted}", _INSTALL_PYTHON)
    elif version[:2] > NEWEST_PYTHON:
        python = Finding("note", "python", f"{written}, tried with {wanted} only", _INSTALL_PYTHON)
    else:
        python = Finding("ok", "python", f"{written}, {bits} bits, {machine}{board}")
    if bits >= 64:
        return [python]
    kernel = "a 32-bit userland under a 64-bit kernel" if "64" in machine else "a 32-bit system"
    return [
        python,
        Finding(
            "problem",
            "userland",
            f"{kernel} ({machine}): no TFLite runtime has a wheel for it",
            "install the 64-bit Raspberry Pi OS",
        ),
    ]


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(number) for number in version)


_INSTALL_PYTHON = "use the Python of Raspberry Pi OS Bookworm (3.11) or Trixie (3.13)"


def check_numpy(search_path: Sequence[str]) -> list[Finding]:
    """Whether numpy can be imported, which one, and where from."""
    tried = probe(
        "import numpy; found = [numpy.__version__, numpy.__file__, float(numpy.ones(2).sum())]",
        search_path,
    )
    if tried.failed is not None:
        remedy = f"pip install --force-reinstall '{_wanted('numpy', search_path)}'"
        return [Finding("problem", "numpy", tried.failed, remedy)]
    version, file, _ = tried.found
    return [Finding("ok", "numpy", f"{version}, {_origin(file)}")]


def _installed(module: str, search_path: Sequence[str]) -> bool:
    """Whether there is such a top-level module; it is not imported."""
    return PathFinder.find_spec(module, list(search_path)) is not None


def _wanted(package: str, search_path: Sequence[str]) -> str:
    """A package as pip is to be asked for it: tflite-runtime alone needs what goes with numpy 1."""
    old = _installed("tflite_runtime", search_path) and not _installed(
        "ai_edge_litert", search_path
    )
    return package + ({"numpy": "<2"}.get(package, "<5") if old else "")


def _origin(file: str) -> str:
    """Whose a module is: Debian keeps apt's and pip's apart by the folder's name."""
    return "from apt" if "/usr/lib/python3/dist-packages/" in file else "a wheel"


def check_opencv(search_path: Sequence[str], numpy_works: bool = True) -> list[Finding]:
    """Whether OpenCV can be imported and takes numpy's arrays, and whether it can open a window."""
    window, headless = (
        f"'{_wanted(name, search_path)}'" for name in ("opencv-python", "opencv-python-headless")
    )
    if not _installed("cv2", search_path):
        remedy = f"pip install {window}, without a screen {headless}, or apt install python3-opencv"
        return [Finding("problem", "opencv", "not installed", remedy)]
    if not numpy_works:
        return [_unseen("opencv", "numpy")]
    tried = probe(
        "import cv2, numpy\n"
        "cv2.resize(numpy.zeros((2, 2, 3), numpy.uint8), (4, 4))\n"
        "found = [cv2.__version__, cv2.__file__, cv2.getBuildInformation()]",
        search_path,
    )
    if tried.failed is not None:
        remedy = f"pip install --force-reinstall --no-deps {window}, without a screen {headless}"
        if "cannot open shared object" in tried.failed:
            remedy = f"sudo apt install libgl1 libglib2.0-0; without a screen {headless} instead"
        return [Finding("problem", "opencv", tried.failed, remedy)]
    version, file, build = tried.found
    toolkit = window_toolkit(build)
    findings = [Finding("ok", "opencv", f"{version}, {_origin(file)}")]
    if toolkit is None:
        remedy = f"for live: pip uninstall opencv-python-headless, then pip install {window}"
        return [*findings, Finding("note", "window", "this OpenCV cannot open windows", remedy)]
    return [*findings, Finding("ok", "window", f"OpenCV opens windows by {toolkit}")]


def window_toolkit(build: str) -> str | None:
    """
    What OpenCV opens windows with, from the text of ``cv2.getBuildInformation()``.

    Newer releases say it in the line ``GUI:``, older ones leave that empty and list the toolkits
    in the lines below it.
    """
    lines = iter(build.splitlines())
    for line in lines:
        name, _, value = line.strip().partition(":")
        if name != "GUI":
            continue
        if value.strip():
            return None if value.strip() == "NONE" else value.strip()
        for below in lines:
            name, colon, value = below.strip().partition(":")
            if not colon:
                return None
            if re.match(r"QT|GTK\+?|Wayland|Cocoa", name, re.I) and "YES" in value:
                return name
    return None


def check_opencv_copies(search_path: Sequence[str]) -> list[Finding]:
    """
    Two OpenCVs: wheels that overwrite each other in one folder, or one that hides another.

    The four wheels (with or without contrib, with or without windows) all install a folder ``cv2``;
    whichever came last wins, and removing either one breaks the other.
    """
    findings, copies = [], []
    for folder in dict.fromkeys(os.path.realpath(entry or ".") for entry in search_path):
        wheels = sorted(set(_opencv_wheels(folder)))
        if len(wheels) > 1:
            names = " and ".join(wheels)
            bare = " ".join(wheel.partition(" ")[0] for wheel in wheels)
            remedy = f"pip uninstall -y {bare}, then pip install one of them"
            what = f"{names} overwrite each other in {folder}"
            findings.append(Finding("problem", "opencv", what, remedy))
        there = Path(folder)
        if _is_file(there / "cv2" / "__init__.py") or any(there.glob("cv2*.so")):
            whose = " and ".join(wheels) or ("apt's" if "dist-packages" in folder else "one")
            copies.append(f"{whose} in {folder}")
    if len(copies) > 1:
        what = f"{copies[0]} hides {', '.join(copies[1:])}"
        remedy = "works; but keep one: pip uninstall the wheel, or sudo apt remove python3-opencv"
        findings.append(Finding("note", "opencv", what, remedy))
    return findings


def _opencv_wheels(folder: str) -> Iterator[str]:
    for distribution in metadata.distributions(path=[folder]):
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if re.fullmatch(r"opencv-(contrib-)?python(-.+)?", name):
            yield f"{name} {distribution.version}"


def check_runtime(
    encoder: Path | None, search_path: Sequence[str], numpy_works: bool = True
) -> list[Finding]:
    """
    Which TFLite runtime works, by building an interpreter and running the encoder once.

    They are tried in the order in which the frame loop tries them. It goes on to the next only
    where a runtime cannot start; one that refuses the model or takes the process down ends it.

    Parameters
    ----------
    encoder : Path or None
        A ``.tflite`` file; None where there is none to try with.
    search_path : sequence of str
    numpy_works : bool
        Without numpy no runtime can be tried.
    """
    packages = {module: module.partition(".")[0] for module in RUNTIMES}
    there = {module: name for module, name in packages.items() if _installed(name, search_path)}
    if not there:
        remedy = "pip install ai-edge-litert"
        return [Finding("problem", "runtime", "no TFLite runtime is installed", remedy)]
    if not numpy_works:
        return [_unseen("runtime", "numpy")]
    if encoder is None:
        remedy = "name a bundle with --bundle"
        return [Finding("note", "runtime", "not tried: no encoder to try it with", remedy)]
    findings, cannot_start, in_use = [], [], False
    for module, package in there.items():
        name = package.replace("_", "-")
        tried = probe(_TRY_RUNTIME, search_path, module, os.fspath(encoder))
        if tried.failed is None:
            if not in_use:
                what = f"{name} {tried.found} runs {encoder}"
                findings.append(Finding("ok", "runtime", what))
            in_use = True
        elif tried.failed.startswith("RuntimeMissing"):
            cannot_start.append(_cannot_start(name, tried.failed))
        else:
            what, remedy = f"{name}: {tried.failed}", f"pip install --force-reinstall {name}"
            if tried.failed.startswith("BundleError"):
                what = tried.failed.removeprefix("BundleError: ")
                remedy = "the model is at fault: fetch or make the bundle again"
            findings.append(Finding("note" if in_use else "problem", "runtime", what, remedy))
            in_use = True
    level = "note" if in_use else "problem"
    return findings + [Finding(level, "runtime", *sentence) for sentence in cannot_start]


def _cannot_start(name: str, failed: str) -> tuple[str, str]:
    """What is said of a runtime that is installed and builds no interpreter, and the remedy."""
    if "numpy is 2 or newer" in failed:
        remedy = f"pip install ai-edge-litert and pip uninstall {name}, or pip install 'numpy<2'"
        return f"{name} was built for numpy 1: beside numpy 2 it builds no interpreter", remedy
    # The frame loop's error lists every runtime and its own remedies around the reason.
    reason = re.search(r"\((.+)\); install", failed)
    return (
        f"{name}: {reason.group(1) if reason else failed}",
        f"pip install --force-reinstall {name}",
    )


_TRY_RUNTIME = """
import sys
import numpy
from importlib import metadata
from edge_app.runtime import open_interpreter
module, model = sys.argv[1:]
with open(model, "rb") as file:
    interpreter = open_interpreter(file.read(), 1, module)
for detail in interpreter.get_input_details():
    interpreter.set_tensor(detail["index"], numpy.zeros(detail["shape"], detail["dtype"]))
interpreter.invoke()
try:
    found = metadata.version(module.partition(".")[0].replace("_", "-"))
except metadata.PackageNotFoundError:
    found = "of unknown version"
"""


def check_picamera2(search_path: Sequence[str], model: str) -> list[Finding]:
    """
    Whether picamera2 can be imported beside this numpy.

    It needs simplejpeg, which apt builds against apt's numpy; another major version of numpy makes
    its import fail.
    """
    if not _installed("picamera2", search_path):
        if "Raspberry Pi" not in model:
            return [
                Finding("ok", "picamera2", "not installed; only a Raspberry Pi's camera needs it")
            ]
        remedy = (
            "for the Pi's own camera: sudo apt install python3-picamera2, and make the virtual "
            "environment with --system-site-packages"
        )
        return [Finding("note", "picamera2", "not to be found from this Python", remedy)]
    for module in ("simplejpeg", "picamera2"):
        tried = probe(f"import {module}; found = True", search_path)
        if tried.failed is None:
            continue
        remedy = "sudo apt install --reinstall python3-picamera2"
        if module == "simplejpeg" or "numpy" in tried.failed:
            remedy = (
                "picamera2 from apt needs a numpy like apt's: pip uninstall numpy simplejpeg, or "
                "on Bookworm (Python 3.11) pip install 'numpy<2'"
            )
        return [Finding("problem", "picamera2", f"import {module}: {tried.failed}", remedy)]
    return [Finding("ok", "picamera2", "can be imported")]


# --- Display and cameras --------------------------------------------------------------------------

_NO_DISPLAY = (
    "for live: start it in the desktop's session, or over SSH with DISPLAY=:0 in front; "
    "inspect and enroll need no display"
)


def check_display(environment: Mapping[str, str], x_sockets: Path) -> list[Finding]:
    """
    Whether the display that the environment names answers.

    Parameters
    ----------
    environment : mapping of str to str
        ``DISPLAY``, ``WAYLAND_DISPLAY``, ``XDG_RUNTIME_DIR``, ``XAUTHORITY``, ``HOME``.
    x_sockets : Path
        Folder with the sockets of local X servers, ``X0`` and so on.
    """
    display, wayland = environment.get("DISPLAY"), environment.get("WAYLAND_DISPLAY")
    if display:
        return [_x_display(display, environment, x_sockets)]
    if not wayland:
        return [Finding("note", "display", "none (DISPLAY is not set)", _NO_DISPLAY)]
    path = os.path.join(environment.get("XDG_RUNTIME_DIR", ""), wayland)
    try:
        _connected(path).close()
    except OSError as error:
        what = f"WAYLAND_DISPLAY is {wayland}, but {path} does not answer: {_why(error)}"
        return [Finding("problem", "display", what, _NO_DISPLAY)]
    remedy = "switch Xwayland on (it sets DISPLAY); OpenCV from apt can do without"
    what = f"Wayland ({wayland}) without X: OpenCV's wheels open windows through X only"
    return [Finding("note", "display", what, remedy)]


def _connected(path: Path | str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(DISPLAY_S)
        connection.connect(os.fspath(path))
    except OSError:
        connection.close()
        raise
    return connection


def _x_display(display: str, environment: Mapping[str, str], x_sockets: Path) -> Finding:
    named = re.fullmatch(r"(.*):(\d{1,5})(?:\.\d+)?", display)
    if named is None:
        return Finding("problem", "display", f"DISPLAY is {display!r}, wanted :0", _NO_DISPLAY)
    host, number = named.group(1), int(named.group(2))
    try:
        if host in ("", "unix"):
            connection = _connected(x_sockets / f"X{number}")
        else:
            # X over TCP: display n listens on port 6000 + n.
            connection = socket.create_connection((host.strip("[]"), 6000 + number), DISPLAY_S)
        with connection:
            # The protocol's greeting: little-endian, version 11.0, no authorisation. Whatever comes
            # back, 1 for "come in" or 0 and 2 for "prove who you are", somebody answers.
            connection.sendall(struct.pack("<BxHHHHxx", ord("l"), 11, 0, 0, 0))
            reply = connection.recv(1)
    except (OSError, OverflowError) as error:
        return Finding(
            "problem", "display", f"{display} does not answer: {_why(error)}", _NO_DISPLAY
        )
    if not reply:
        return Finding("problem", "display", f"{display} hangs up at once", _NO_DISPLAY)
    if reply == b"\1":
        return Finding("ok", "display", f"{display} answers")
    home = environment.get("HOME", "")
    cookies = environment.get("XAUTHORITY") or os.path.join(home, ".Xauthority")
    if os.access(cookies, os.R_OK):
        return Finding("ok", "display", f"{display} answers and asks for the cookie in {cookies}")
    remedy = "run as the user who is logged in at the screen, not with sudo; or set XAUTHORITY"
    what = f"{display} answers, but lets nobody in without a cookie, and {cookies} cannot be read"
    return Finding("problem", "display", what, remedy)


def check_cameras(video_class: Path, dev: Path, search_path: Sequence[str]) -> list[Finding]:
    """
    The cameras that are there: of V4L2, and of libcamera where picamera2 can be imported.

    Parameters
    ----------
    video_class : Path
        ``/sys/class/video4linux``.
    dev : Path
        ``/dev``.
    search_path : sequence of str
    """
    findings, ribbon = [], False
    for entry, name in _video_devices(video_class):
        ribbon = ribbon or bool(_RIBBON.search(name))
        if _RIBBON.search(name) or not _captures(entry, dev / entry.name, name):
            continue
        if not (dev / entry.name).exists():
            what = f"{name}: the kernel has it, but {dev / entry.name} is missing"
            remedy = "in a container: pass the device on; else plug it in again"
            findings.append(Finding("problem", "cameras", what, remedy))
            continue
        number = entry.name.removeprefix("video")
        findings.append(Finding("ok", "cameras", f"camera:{number} is {name}"))
    if _installed("picamera2", search_path):
        listed = probe(
            "from picamera2 import Picamera2\n"
            "found = [[c.get('Num'), c.get('Model')] for c in Picamera2.global_camera_info()]",
            search_path,
        )
        if listed.failed is not None:
            remedy = "see picamera2 above; rpicam-hello --list-cameras looks without Python"
            what = f"libcamera's cameras cannot be listed: {listed.failed}"
            findings.append(Finding("note", "cameras", what, remedy))
        for number, sensor in listed.found or ():
            findings.append(Finding("ok", "cameras", f"picamera:{number} is {sensor}"))
    if not findings:
        remedy = "plug one in; for a ribbon cable see rpicam-hello --list-cameras"
        if ribbon:
            remedy = "a Raspberry Pi camera connector is there: see picamera2 above"
        findings.append(Finding("note", "cameras", "none found", remedy))
    return findings


def _video_devices(video_class: Path) -> Iterator[tuple[Path, str]]:
    """Entries of the class in the order of their numbers, with the names that drivers gave."""
    entries = [path for path in video_class.glob("video*") if path.name[5:].isdecimal()]
    for entry in sorted(entries, key=lambda path: int(path.name[5:])):
        yield entry, _read(entry / "name") or "a camera without a name"


def _captures(entry: Path, node: Path, name: str) -> bool:
    """
    Whether pictures come out of a device.

    The driver is asked. Where the device cannot be opened, its name and place decide: a webcam
    lists its picture device first (index 0) and one for metadata after it.
    """
    if _NO_CAMERA.search(name):
        return False
    try:
        descriptor = os.open(node, os.O_RDWR | os.O_NONBLOCK)
        try:
            answer = bytearray(_CAPABILITY_BYTES)
            fcntl.ioctl(descriptor, _QUERYCAP, answer)
        finally:
            os.close(descriptor)
    except OSError:
        return (_read(entry / "index") or "0") == "0"
    (capabilities,) = struct.unpack_from("=I", answer, _DEVICE_CAPS)
    return bool(capabilities & _VIDEO_CAPTURE) and not capabilities & _MEMORY_TO_MEMORY


def check_permissions(
    dev: Path,
    groups: Sequence[int],
    user: str,
    may_use: Callable[[Path], bool] = lambda node: os.access(node, os.R_OK | os.W_OK),
) -> list[Finding]:
    """
    Whether this process may use the video devices.

    Parameters
    ----------
    dev : Path
        ``/dev``.
    groups : sequence of int
        Ids of the groups that this process is in.
    user : str
        Who it runs as.
    may_use : callable
        Whether it may read and write a device; asks the kernel, which knows access lists as well.
    """
    nodes = [node for node in dev.glob("video*") if node.name[5:].isdecimal()]
    closed = sorted(node for node in nodes if not may_use(node))
    if not closed:
        return [Finding("ok", "permissions", f"{user} may use the video devices")] if nodes else []
    owner = closed[0].stat().st_gid
    try:
        entry = grp.getgrgid(owner)
        group, member = entry.gr_name, user in entry.gr_mem
    except KeyError:
        group, member = str(owner), False
    names = ", ".join(os.fspath(node) for node in closed[:4]) + (", …" if closed[4:] else "")
    if owner in groups:
        what = f"{names}: group {group} may not use it, though {user} is in it"
        remedy = f"sudo chmod g+rw {closed[0]}, and look for a udev rule that took it away"
    elif member:
        what = f"{names}: {user} was put in group {group} after logging in"
        remedy = "log out and in again, or restart the service"
    else:
        what = f"{names}: {user} is not in group {group}"
        remedy = f"sudo usermod -aG {group} {user}, then log in again"
    return [Finding("problem", "permissions", what, remedy)]


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


# --- The board ------------------------------------------------------------------------------------


def _check_heat_of(config_file: Path | str | None, root: Path, model: str) -> list[Finding]:
    """`check_heat` with what the configuration says, or the defaults where it is at fault."""
    from edge_app.config import DEFAULT_FILE, load_config

    try:
        thermal = load_config(config_file).thermal
    except ConfigError:
        thermal = load_config(DEFAULT_FILE).thermal
    sensor, throttled = (root / name.lstrip("/") for name in (thermal.sensor, thermal.throttled))
    hwmon, limits = root / "sys/class/hwmon", (thermal.target_c, thermal.pause_at_c)
    return check_heat(sensor, throttled, hwmon, *limits, shutil.which("vcgencmd"), model)


_COOLER = "give it a heat sink, a fan or free air"
_POWER = "use the official power supply and a short cable; unplug what else draws from its USB"


def check_heat(
    sensor: Path,
    throttled: Path,
    hwmon: Path,
    target_c: float,
    pause_at_c: float,
    vcgencmd: str | None = None,
    model: str = "",
) -> list[Finding]:
    """
    Temperature, and what the firmware did against heat or for want of power since the start.

    Parameters
    ----------
    sensor, throttled : Path
        Files with thousandths of a degree Celsius, and with the firmware's flags.
    hwmon : Path
        ``/sys/class/hwmon``.
    target_c, pause_at_c : float
        Where inspection is slowed down, and where it pauses, degrees Celsius.
    vcgencmd : str, optional
        The program that asks the firmware, for kernels that have no file for it any more.
    model : str
        Of the board: on a Raspberry Pi it is said if the firmware cannot be asked.
    """
    from edge_app.thermal import FLAGS, SINCE_BOOT, SINCE_BOOT_SHIFT, Sensors

    reading = Sensors(sensor, throttled, hwmon).read()
    degrees, flags = reading.temperature_c, set(reading.flags)
    if degrees is None:
        what = f"{sensor} tells no temperature: it is not watched"
        remedy = "name the sensor's file in the configuration, [thermal] sensor"
        findings = [Finding("note", "heat", what, remedy)]
    elif degrees >= pause_at_c:
        what = f"{degrees:.0f} °C: inspection pauses from {pause_at_c:g} °C on"
        findings = [Finding("problem", "heat", what, _COOLER)]
    elif degrees >= target_c:
        what = f"{degrees:.0f} °C: inspection is slowed down from {target_c:g} °C on"
        findings = [Finding("note", "heat", what, _COOLER)]
    else:
        findings = [Finding("ok", "heat", f"{degrees:.0f} °C")]
    # The sensors say nothing for "no flag" and for "cannot be known" alike.
    known = re.fullmatch(r"[0-9a-fA-F]+", _read(throttled) or "") is not None
    if not known and vcgencmd is not None:
        bits = _asked_firmware(vcgencmd)
        known = bits is not None
        for bit, word in FLAGS.items():
            flags |= {word} if (bits or 0) >> bit & 1 else set()
            flags |= {word + SINCE_BOOT} if (bits or 0) >> bit + SINCE_BOOT_SHIFT & 1 else set()
    if known and not flags:
        what = "neither throttled nor short of power since the start"
        findings.append(Finding("ok", "power", what))
    elif not known and "Raspberry Pi" in model:
        what = "whether it was throttled since the start cannot be asked"
        remedy = "sudo apt install raspi-utils (for vcgencmd), and be in group video"
        findings.append(Finding("note", "power", what, remedy))
    # What is so now has been so since the start, too: say it once.
    for flag in sorted(flags):
        kind = flag.removesuffix(SINCE_BOOT)
        now = kind == flag
        if not now and kind in flags:
            continue
        # The firmware throttles for want of power as well, and says so beside it.
        starved = kind != "soft limit" and any("under-voltage" in other for other in flags)
        subject, remedy = ("power", _POWER) if starved else ("heat", _COOLER)
        what = f"{kind} now" if now else f"{kind} at some time since the start"
        level = "problem" if now and kind != "soft limit" else "note"
        findings.append(Finding(level, subject, what, remedy))
    return findings


def _asked_firmware(vcgencmd: str) -> int | None:
    """The bits that ``vcgencmd get_throttled`` tells, as ``throttled=0x50000``; None if none."""
    try:
        asked = subprocess.run(
            [vcgencmd, "get_throttled"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=FIRMWARE_S,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    told = re.search(rb"throttled=0x([0-9a-fA-F]+)", asked.stdout)
    return None if told is None else int(told.group(1), 16)


def check_disk(folders: Mapping[str, Path]) -> list[Finding]:
    """
    Free space, and whether the file system can be written at all.

    Parameters
    ----------
    folders : mapping of str to Path
        Name and folder; of a folder that does not exist yet, the nearest that does is looked at.
    """
    findings, seen = [], set()
    for name, folder in folders.items():
        there = folder.absolute()
        while not there.exists() and there != there.parent:
            there = there.parent
        system = os.statvfs(there)
        device = there.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        free_bytes, read_only = system.f_bavail * system.f_frsize, system.f_flag & os.ST_RDONLY
        findings.append(disk_finding(f"{there} ({name})", free_bytes, bool(read_only)))
    return findings


def disk_finding(where: str, free_bytes: int, read_only: bool) -> Finding:
    """What a file system's free space, in bytes, means."""
    if read_only:
        what = f"{where} is read-only: the kernel does that to a failing card"
        remedy = "look at dmesg, save the bundles, replace the card"
        return Finding("problem", "disk", what, remedy)
    what = f"{free_bytes / 1e6:,.0f} MB free at {where}"
    if free_bytes >= LOW_DISK_BYTES:
        return Finding("ok", "disk", what)
    level = "problem" if free_bytes < LEAST_DISK_BYTES else "note"
    return Finding(level, "disk", what, "delete old pictures and bundles, or use a larger card")


def check_memory(meminfo: Path) -> list[Finding]:
    """Memory that is available, from ``/proc/meminfo``."""
    try:
        available = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.M)
    except OSError:
        available = None
    if available is None:
        return [Finding("note", "memory", f"{meminfo} does not tell what is available")]
    free_bytes = int(available.group(1)) * 1024
    what = f"{free_bytes / 2**20:,.0f} MB available"
    if free_bytes >= LOW_MEMORY_BYTES:
        return [Finding("ok", "memory", what)]
    level = "problem" if free_bytes < LEAST_MEMORY_BYTES else "note"
    return [Finding(level, "memory", what, "end other programs, or run without the desktop")]


def check_clock(now: datetime, marker: Path, kernel_synchronised: bool | None) -> list[Finding]:
    """
    Whether the times in the results can be right; a Raspberry Pi's clock has no battery.

    Parameters
    ----------
    now : datetime
    marker : Path
        File that systemd-timesyncd makes once it has set the clock after a start.
    kernel_synchronised : bool or None
        Whether the kernel says that something keeps the clock right; None where it cannot be asked.
    """
    written = now.strftime("%Y-%m-%d %H:%M UTC")
    remedy = "connect it to a network with a time server (timedatectl), or set it: sudo date -s"
    if now.year < FIRST_PLAUSIBLE_YEAR:
        what = f"{written} cannot be: results would carry wrong times"
        return [Finding("problem", "clock", what, remedy)]
    if marker.exists() or kernel_synchronised:
        return [Finding("ok", "clock", f"{written}, set by a time server")]
    return [
        Finding("note", "clock", f"{written}, not set by a time server since the start", remedy)
    ]


def kernel_synchronised() -> bool | None:
    """Whether the kernel takes its clock for synchronised (what timedatectl shows), or None."""
    try:
        adjtimex = ctypes.CDLL(None).adjtimex
    except (OSError, AttributeError):
        return None
    # All zero asks and changes nothing.
    state = adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return None if state < 0 else state != _CLOCK_UNSYNCHRONISED


# --- What the program reads -----------------------------------------------------------------------


def check_config(path: Path | str | None) -> list[Finding]:
    """Whether the configuration is valid; None looks at the system's file if it is there."""
    from edge_app.config import SYSTEM_FILE, load_config

    try:
        load_config(path)
    except ConfigError as error:
        remedy = "mend that line; edge_app/default.toml lists every key with unit and range"
        return [Finding("problem", "config", one_line(error), remedy)]
    if path is None and not _is_file(SYSTEM_FILE):
        return [Finding("ok", "config", f"the defaults (no {SYSTEM_FILE})")]
    return [Finding("ok", "config", f"{path or SYSTEM_FILE} is valid")]


def check_config_text(path: Path | str | None) -> list[Finding]:
    """Whether a configuration is TOML at all; for where its keys cannot be checked."""
    if path is None:
        return [_unseen("config", "numpy")]
    try:
        tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [Finding("problem", "config", f"{path}: {_why(error)}", "mend or remove the file")]
    return [Finding("note", "config", f"{path} is TOML; its keys were not looked at", "mend numpy")]


def check_bundle(path: Path | str | None) -> list[Finding]:
    """Whether a bundle is whole, what is in it, and what its threshold promises."""
    from edge_app.bundle import load_bundle
    from edge_app.enrol import threshold_of
    from edge_app.held_out import ROUNDING

    if path is None:
        remedy = "edge-app enroll, or name one with --bundle"
        return [Finding("note", "bundle", "none found", remedy)]
    try:
        bundle = load_bundle(path)
        bundle.learnt()  # verifies the pictures, too
    except BundleError as error:
        remedy = "copy it again from where it was made, or point 'current' at the one before"
        return [Finding("problem", "bundle", one_line(error), remedy)]
    manifest, files = bundle.manifest, bundle.manifest["files"]
    height, width = bundle.size
    parts = [f"encoder {manifest['encoder']['dtype']} {width} x {height}"]
    for name, word in (("decoder.tflite", "decoder"), ("reference.npz", "reference")):
        if name in files:
            parts.append(f"{word} {files[name]['bytes'] / 1e6:.1f} MB")
    if "learnt.npz" in files:
        parts.append("its pictures")
    what = f"{bundle.path}, part {manifest['part']}: {', '.join(parts)}; every hash is right"
    findings = [Finding("ok", "bundle", what)]
    if manifest["threshold"] is None:
        remedy = "edge-app enroll good/ --out bundles/part"
        return [*findings, Finding("note", "threshold", "this bundle knows no part yet", remedy)]
    threshold = threshold_of(manifest["threshold"])
    if threshold.wanted_rate < threshold.supported_rate - ROUNDING:
        remedy = (
            f"learn more good parts: edge-app enroll more/ --add --bundle {bundle.path} --out …"
        )
        return [*findings, Finding("note", "threshold", threshold.sentence(), remedy)]
    return [*findings, Finding("ok", "threshold", threshold.sentence())]
