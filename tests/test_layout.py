"""The direction of imports, and what may lie at the top."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the bottom up; a module imports from layers below its own only.
LAYERS = [
    ["errors"],
    ["places"],
    ["records", "scorer", "runtime", "preprocess", "arguments", "patches", "slot", "hand"],
    ["gaussian"],
    ["rate", "clock", "backoff", "notify"],
    ["quality"],
    ["foreground", "held_out", "learnt_pictures", "learn_neighbours", "learn_patches"],
    ["pose"],
    ["align"],
    ["learn_align"],
    ["config", "manifest"],
    ["bundle"],
    ["encoder", "presence", "decision"],
    ["heatmap"],
    ["dial"],
    ["enrol"],
    ["learn_report", "knowledge"],
    ["thermal", "trigger"],
    ["sources.folder", "sources.device", "sinks.jsonl", "sinks.overlays"],
    ["sources.video", "sources.webcam", "sources.stream", "sources.picamera", "sources.camera"],
    ["sources.synthetic"],
    ["sources", "sinks"],
    ["chronicle", "outbox", "event_rows"],
    ["sinks.message"],
    ["metrics", "sinks.mqtt", "sinks.webhook", "sinks.gpio"],
    ["evidence"],
    ["event_export", "event_writer", "set_aside"],
    ["event_reader"],
    ["retention"],
    ["store"],
    ["inspector"],
    ["station", "bench", "doctor", "master"],
    ["service", "service.board", "service.self_test"],
    ["service.loop"],
    ["service.caretaker"],
    ["service.controls"],
    ["web.contract", "web.auth", "web.connection", "web.aside"],
    ["web.stream"],
    ["web.api"],
    ["web.app"],
    ["web"],
    ["live", "live.keys", "live.text", "live.display"],
    ["live.scene", "live.journal"],
    ["live.view", "live.worker"],
    ["live.session"],
    ["live.window"],
    ["commands", "commands.inspect", "commands.enroll", "commands.bench", "commands.doctor"],
    ["commands.live", "commands.run", "commands.events", "commands.verify"],
    ["cli"],
    ["__main__"],
]
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}


def modules() -> list[tuple[str, Path]]:
    package = ROOT / "edge_app"
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            found.append((name, path))
    return found


def imported(path: Path) -> set[str]:
    """Modules of the project that a file imports, anywhere in it, without ``edge_app.``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return names


@pytest.mark.parametrize(("name", "path"), modules(), ids=[name for name, _ in modules()])
def test_imports_point_down(name, path):
    assert name in RANK, f"edge_app.{name} has no layer: give it one in this test and the design"
    for module in imported(path):
        assert module.partition(".")[0] != "tools", f"{path} imports {module}"
        if not module.startswith("edge_app."):
            continue
        target = module.removeprefix("edge_app.")
        assert RANK[target] < RANK[name], f"edge_app.{name} imports edge_app.{target}"


def test_inspecting_imports_no_scikit_learn(nut_path, clip_path):
    code = (
        "import sys; from edge_app.cli import main; "
        f"main(['inspect', {str(clip_path)!r}, '--bundle', {str(nut_path)!r}]); "
        "heavy = {'sklearn', 'scipy', 'tensorflow', 'keras', 'matplotlib'} & set(sys.modules); "
        "print(heavy, file=sys.stderr); sys.exit(bool(heavy))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_one_place_imports_the_runtime():
    wanted = {"ai_edge_litert", "tflite_runtime"}
    named = [
        path.relative_to(ROOT).as_posix()
        for folder in ("edge_app", "tools")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if any(module.partition(".")[0] in wanted for module in imported(path))
    ]
    assert named == []  # the runtime module finds them by name, through importlib
    assert "importlib.import_module" in (ROOT / "edge_app" / "runtime.py").read_text()


def test_top_level_holds_nothing_of_weight():
    run = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    top = {line.partition("/")[0] for line in run.stdout.splitlines()}
    allowed = {
        "edge_app", "models", "tools", "tests", "systemd", "docs", "pyproject.toml", "README.md",
        "Makefile", "LICENSE", "NOTICE", ".ci", ".gitignore", ".gitattributes",
    }  # fmt: skip
    assert top <= allowed
