"""The units, the installer and what their pages say of them."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / "systemd"
UNITS = ("edge-app.service", "edge-app@.service")
# The goal of issue and README; access beats score.
MOST_EXPOSURE = 1.5
# What makes an installation, and what a dry run therefore must print.
ANALYZE = shutil.which("systemd-analyze")

needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")


def lines_of(unit: str) -> list[str]:
    return (FOLDER / unit).read_text(encoding="utf-8").splitlines()


def settings_of(unit: str) -> list[tuple[str, str]]:
    """All ``key=value`` of a unit, in order."""
    pairs = [line.partition("=") for line in lines_of(unit) if re.match(r"[A-Z]\w*=", line)]
    return [(key, value) for key, _, value in pairs]


def ready_to_check(unit: str, folder: Path) -> Path:
    """The unit with a program that is there, as verify wants it."""
    text = (FOLDER / unit).read_text(encoding="utf-8")
    file = folder / unit
    file.write_text(text.replace("/opt/edge-app/bin/edge-app", "/bin/true"), encoding="utf-8")
    return file


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "LC_ALL": "C.UTF-8", **environment},
    )


# --- The units ------------------------------------------------------------------------------------


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_verify_has_nothing_to_say(unit, tmp_path):
    file = ready_to_check(unit, tmp_path)
    checked = run(ANALYZE, "verify", str(file).replace("@.", "@cam."))
    assert (checked.returncode, checked.stderr) == (0, "")


@needs_systemd
def test_verify_would_say_something_of_a_wrong_line(tmp_path):
    file = ready_to_check(UNITS[0], tmp_path)
    file.write_text(file.read_text(encoding="utf-8").replace("ProtectHome=", "ProtectHomes="))
    assert "ProtectHomes" in run(ANALYZE, "verify", file).stderr


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_exposure_is_within_the_goal_and_as_the_readme_says(unit, tmp_path):
    file = ready_to_check(unit, tmp_path)
    command = (ANALYZE, "security", "--offline=true")
    within = run(*command, f"--threshold={round(MOST_EXPOSURE * 10)}", file)
    assert within.returncode == 0, within.stdout[-500:] + within.stderr
    overall = float(re.search(r"Overall exposure level for \S+ (\S+)", within.stdout).group(1))
    assert overall <= MOST_EXPOSURE
    assert f"**{overall}**" in (FOLDER / "README.md").read_text(encoding="utf-8")
    # Only what is known to be left open costs anything.
    items = json.loads(run(*command, "--json=short", file).stdout)
    open_ = {item["name"] for item in items if item["exposure"] and float(item["exposure"]) > 0}
    assert open_ <= {
        "RootDirectory=/RootImage=",
        "PrivateDevices=",
        "PrivateNetwork=",
        "ProcSubset=",
        "DeviceAllow=",
        "IPAddressDeny=",
        "RestrictAddressFamilies=~AF_NETLINK",
        "RestrictAddressFamilies=~AF_UNIX",
        "RestrictAddressFamilies=~AF_(INET|INET6)",
    }


@pytest.mark.parametrize("unit", UNITS)
def test_nothing_that_the_camera_needs_is_taken_away(unit):
    settings = settings_of(unit)
    named = dict(settings)
    assert "PrivateDevices" not in named
    assert "ProcSubset" not in named
    assert "PrivateNetwork" not in named
    assert "IPAddressDeny" not in named
    allowed = {value for key, value in settings if key == "DeviceAllow"}
    assert allowed == {
        "char-video4linux rw",
        "char-media rw",
        "char-dma_heap rw",
        "char-gpiochip rw",
        "/dev/vcio r",
    }
    families = set(named["RestrictAddressFamilies"].split())
    assert families == {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"}
    # A class is looked up at the start: one that comes with the first camera would stay closed.
    for key in ("Wants", "After"):
        values = " ".join(value for name, value in settings if name == key)
        assert {"modprobe@mc.service", "modprobe@videodev.service"} <= set(values.split())
    # lgpio makes a pipe where it works: that must be a folder of the service's own.
    assert named["WorkingDirectory"] == f"/run/{named['RuntimeDirectory']}"


def test_life_of_the_service():
    named = dict(settings_of(UNITS[0]))
    assert named["Type"] == "notify"
    assert named["WatchdogSec"] == "10"
    assert named["RestartPreventExitStatus"] == "78"
    assert named["Restart"] == "on-failure"
    assert named["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert named["ExecStart"].endswith("edge-app run --config /etc/edge-app/config.toml")


@needs_systemd
def test_the_filter_lets_through_what_was_seen_and_what_libraries_are_known_to_call(tmp_path):
    sets: dict[str, list[str]] = {}
    for line in run(ANALYZE, "syscall-filter").stdout.splitlines():
        if line.startswith("@"):
            name = line.strip()
            sets[name] = []
        elif line.startswith("    ") and not line.strip().startswith("#"):
            sets[name].append(line.strip())

    def members(name):
        return {
            call
            for part in sets[name]
            for call in (members(part) if part.startswith("@") else {part})
        }

    allowed: set[str] = set()
    for key, value in settings_of(UNITS[0]):
        if key == "SystemCallFilter":
            named = set().union(*(members(name) for name in value.lstrip("~").split()))
            allowed = allowed - named if value.startswith("~") else allowed | named
    # Traced: inspection, enrolment, aiohttp, SQLite, joblib, under strace.
    traced = """access arch_prctl accept4 bind brk chdir chmod clone3 close close_range connect dup2
        epoll_create1 epoll_ctl epoll_wait execve exit exit_group fcntl fdatasync fstat fsync
        ftruncate futex getcwd getdents64 geteuid getpeername getpid getrandom getsockname
        getsockopt gettid ioctl link listen lseek madvise mkdir mmap mprotect munmap newfstatat
        openat pipe2 poll prctl pread64 prlimit64 pwrite64 read readlink recvfrom rename rseq
        rt_sigaction rt_sigprocmask sched_getaffinity sendto set_robust_list set_tid_address
        setsockopt socket socketpair stat statfs sysinfo uname unlink vfork wait4 write"""
    # Read in the sources of libcamera, libudev, lgpio, vcgencmd.
    known = """eventfd2 memfd_create timerfd_create timerfd_settime recvmsg sendmsg select ppoll
        mknodat fchmodat inotify_init1 faccessat2 statx dup3 pselect6 clock_nanosleep"""
    wanted = set(f"{traced} {known}".split())
    assert wanted - allowed == set()
    # And some of what it is for.
    assert allowed.isdisjoint({"mount", "reboot", "init_module", "clock_settime", "bpf"})


def test_the_template_is_the_unit_but_for_the_instance():
    def instance(line):
        return (
            line.replace("/config.toml", "/%i.toml --state /var/lib/edge-app/%i")
            .replace("StateDirectory=edge-app", "StateDirectory=edge-app/%i")
            .replace("RuntimeDirectory=edge-app", "RuntimeDirectory=edge-app-%i")
            .replace("WorkingDirectory=/run/edge-app", "WorkingDirectory=/run/edge-app-%i")
            .replace("(edge-app)", "(edge-app, %i)")
        )

    one, several = (settings_of(unit) for unit in UNITS)
    assert [(key, instance(f"{key}={value}").partition("=")[2]) for key, value in one] == several


# Lines that the comment over the line before them explains too.
GO_WITH = {
    "Group": "User",
    "StateDirectoryMode": "StateDirectory",
    "RuntimeDirectoryMode": "RuntimeDirectory",
    "WorkingDirectory": "RuntimeDirectoryMode",
    "AmbientCapabilities": "CapabilityBoundingSet",
    "RestartSec": "Restart",
}


@pytest.mark.parametrize("unit", UNITS)
def test_each_line_of_the_service_is_explained(unit):
    lines = lines_of(unit)
    service = lines[lines.index("[Service]") : lines.index("[Install]")]
    bare = []
    for before, line in zip(service, service[1:], strict=False):
        if not line or line.startswith("#"):
            continue
        key, last = line.partition("=")[0], before.partition("=")[0]
        # A heading is no explanation.
        explained = before.startswith("#") and not before.startswith("# ---")
        if not explained and (GO_WITH.get(key) is None or GO_WITH[key] != last):
            bare.append(line)
    assert bare == []


def test_readme_speaks_of_each_hardening_line():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    table = text[text.index("## Every hardening line") :]
    service = lines_of(UNITS[0])
    first = next(n for n, line in enumerate(service) if "--- What it may write" in line)
    keys = {line.partition("=")[0] for line in service[first:] if re.match(r"[A-Z]\w*=", line)}
    keys -= {"WantedBy"}
    assert len(keys) > 25
    assert {key for key in keys if f"`{key}=`" not in table} == set()
    # And the table of none that the unit does not have.
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {key for row in rows for key in re.findall(r"`(\w+)=`", row)} - keys == {"LimitCORE"}


def test_readme_names_each_device_that_the_unit_allows():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    allowed = {
        f"DeviceAllow={value}" for key, value in settings_of(UNITS[0]) if key == "DeviceAllow"
    }
    assert allowed == set(re.findall(r"`(DeviceAllow=[^`]+ r\w*)`", text))


# --- User and folders -----------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="no systemd-sysusers")
def test_sysusers_makes_the_user_with_its_groups(tmp_path):
    (tmp_path / "etc").mkdir()
    made = run(
        "systemd-sysusers", f"--root={tmp_path}", "--dry-run", FOLDER / "sysusers.d/edge-app.conf"
    )
    assert made.returncode == 0, made.stderr
    assert "Creating user 'edge-app'" in made.stderr + made.stdout
    text = (FOLDER / "sysusers.d/edge-app.conf").read_text(encoding="utf-8")
    assert {"m edge-app video", "m edge-app gpio"} <= set(text.splitlines())


def test_tmpfiles_close_the_folders_to_others():
    text = (FOLDER / "tmpfiles.d/edge-app.conf").read_text(encoding="utf-8")
    rows = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    assert ["d", "/etc/edge-app", "0750", "root", "edge-app"] in rows
    assert ["d", "/var/lib/edge-app", "0750", "edge-app", "edge-app"] in rows
    assert all(kind == "d" and mode == "0750" for kind, _, mode, *_ in rows)


# --- The installer --------------------------------------------------------------------------------


def os_release(folder: Path, system: str, version: str) -> str:
    file = folder / "os-release"
    file.write_text(f'ID={system}\nVERSION_ID="{version}"\n', encoding="utf-8")
    return str(file)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    checked = run("shellcheck", FOLDER / "install.sh")
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("version", ["12", "13"])
def test_dry_run_prints_each_step_and_takes_none(version, tmp_path):
    before = sorted(Path("/tmp").glob("edge-app.*"))
    done = run(
        FOLDER / "install.sh",
        "--dry-run",
        OS_RELEASE=os_release(tmp_path, "debian", version),
        SYSTEMD_RUNS=str(tmp_path),
        PREFIX=str(tmp_path / "prefix"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    steps = [
        "apt-get install -y -q --no-install-recommends python3 python3-venv python3-numpy "
        "python3-opencv",
        "-m venv --clear --system-site-packages",
        "--constraint /tmp/edge-app.XXXXXX/constraints.txt /tmp/edge-app.XXXXXX[service]",
        "systemd-sysusers /etc/sysusers.d/edge-app.conf",
        "systemd-tmpfiles --create /etc/tmpfiles.d/edge-app.conf",
        "/etc/edge-app/config.toml",
        "/var/lib/edge-app/models",
        "systemctl daemon-reload",
        "systemctl enable edge-app.service",
    ]
    at = [done.stdout.find(step) for step in steps]
    assert -1 not in at and at == sorted(at), done.stdout
    assert "opencv-python" not in done.stdout
    assert not (tmp_path / "prefix").exists()
    assert sorted(Path("/tmp").glob("edge-app.*")) == before


@pytest.mark.parametrize(
    ("system", "version"), [("debian", "11"), ("ubuntu", "24.04"), ("fedora", "40")]
)
def test_another_system_is_refused(system, version, tmp_path):
    done = run(
        FOLDER / "install.sh",
        OS_RELEASE=os_release(tmp_path, system, version),
        SYSTEMD_RUNS=str(tmp_path / "none"),
    )
    assert done.returncode == 1 and done.stdout == ""
    assert f"this is {system} {version}; wanted" in done.stderr


def test_a_system_without_systemd_is_refused(tmp_path):
    done = run(
        FOLDER / "install.sh",
        OS_RELEASE=os_release(tmp_path, "debian", "12"),
        SYSTEMD_RUNS=str(tmp_path / "none"),
    )
    assert done.returncode == 1 and done.stdout == ""
    # Who is not root hears of that first.
    assert "systemd does not run here" in done.stderr or "needs root" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_who_is_not_root_is_refused():
    # A copy, as the checkout and pytest's folders are closed to others.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        script = Path(folder) / "systemd/install.sh"
        script.parent.mkdir()
        shutil.copy(FOLDER / "install.sh", script)
        release = os_release(Path(folder), "debian", "12")
        done = subprocess.run(
            [script],
            capture_output=True,
            text=True,
            timeout=60,
            user=65534,
            env={**os.environ, "OS_RELEASE": release, "SYSTEMD_RUNS": folder},
        )
    assert done.returncode == 1 and "needs root" in done.stderr


def test_uninstall_keeps_state_and_configuration(tmp_path):
    there = {"OS_RELEASE": os_release(tmp_path, "debian", "13"), "SYSTEMD_RUNS": str(tmp_path)}
    kept = run(FOLDER / "install.sh", "--uninstall", "--dry-run", **there)
    assert kept.returncode == 0 and "rm -rf /opt/edge-app" in kept.stdout
    removed = [line for line in kept.stdout.splitlines() if line.startswith("rm ")]
    assert not any("/var/lib/edge-app" in line or "/etc/edge-app" in line for line in removed)
    purged = run(FOLDER / "install.sh", "--uninstall", "--purge", "--dry-run", **there)
    assert "rm -rf /var/lib/edge-app /etc/edge-app" in purged.stdout


def test_a_prefix_that_would_take_the_system_with_it_is_not_removed(tmp_path):
    there = {"OS_RELEASE": os_release(tmp_path, "debian", "13"), "SYSTEMD_RUNS": str(tmp_path)}
    done = run(FOLDER / "install.sh", "--uninstall", "--dry-run", PREFIX="/usr", **there)
    assert "would stop here" in done.stdout and "rm -rf /usr" not in done.stdout


@pytest.mark.parametrize("arguments", [["--purge"], ["--prefix=/x"], ["now"]])
def test_wrong_usage_is_two(arguments):
    done = run(FOLDER / "install.sh", *arguments)
    assert done.returncode == 2 and done.stdout == "" and "install.sh: " in done.stderr


# --- What the pages say ---------------------------------------------------------------------------


REASONS = re.compile(
    r"(camera|frame|frames|heat|part|picture|quality|score|stopped|trigger|unreadable|verify|view)"
    r": ?[^{(]*"
)
SAY_REASONS = (
    "align.py",
    "decision.py",
    "inspector.py",
    "preprocess.py",
    "quality.py",
    "station.py",
    "sources/camera.py",
    "sources/folder.py",
    "service/caretaker.py",
    "service/controls.py",
)


def reasons() -> set[str]:
    """How the reasons begin that the stages and sources give, up to what is filled in."""
    found = set()
    for name in SAY_REASONS:
        tree = ast.parse((REPOSITORY / "edge_app" / name).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            text = None
            if isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
                text = node.values[0].value
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            match = REASONS.match(text) if text else None
            if match and "\n" not in text:
                found.add(match.group().strip())
    # The words that begin others are told by these: "quality:" of a prefix that is looked for.
    return {
        reason for reason in found if not any(o != reason and o.startswith(reason) for o in found)
    }


def test_each_reason_of_unknown_is_explained():
    text = (REPOSITORY / "docs/service.md").read_text(encoding="utf-8")
    table = text[text.index("## What each UNKNOWN means") : text.index("## Several cameras")]
    found = reasons()
    assert len(found) > 15
    assert {reason for reason in found if reason not in table} == set()


def test_the_page_speaks_of_settings_that_there_are():
    text = (REPOSITORY / "docs/service.md").read_text(encoding="utf-8")
    settings = (REPOSITORY / "edge_app/default.toml").read_text(encoding="utf-8")
    known = set(re.findall(r"^(\w+) =", settings, re.MULTILINE))
    blocks = re.findall(r"^```toml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    used = set(re.findall(r"^(\w+) =", "".join(blocks), re.MULTILINE))
    assert used and used <= known
