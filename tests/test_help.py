"""The help of every command of the workstation."""

import argparse
import importlib
import re

import pytest

from tools.__main__ import COMMANDS, main
from tools.help_layout import HelpLayout


def parser_of(name):
    module = importlib.import_module("tools." + name.replace("-", "_"))
    parser = argparse.ArgumentParser(prog=f"python -m tools {name}", formatter_class=HelpLayout)
    module.configure(parser)
    return parser


@pytest.mark.parametrize("name", COMMANDS)
def test_help_describes_everything_and_shows_an_example(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert re.search(rf"\n  python -m tools {name} ", text), "no example of its own"
    for action in parser_of(name)._actions:
        assert action.help, f"{action.dest} has no help"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_default_is_shown_once_and_is_the_parsers_own(name):
    for action in parser_of(name)._actions:
        # Typed by hand it would stay what it was when the code changes.
        literal = re.search(r"\(default: ([\d.e-]+)\)", action.help)
        assert action.default is None or not literal, f"{action.option_strings}: {literal}"


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_use_arguments_that_exist(name):
    parser = parser_of(name)
    known = {option for action in parser._actions for option in action.option_strings}
    for line in (parser.epilog or "").replace("\\\n", " ").splitlines():
        if f"tools {name} " in line:
            used = set(re.findall(r"(?<= )--[a-z-]+", line))
            assert used <= known, f"{name}: {used - known}"


def test_paragraphs_are_filled_and_examples_kept():
    parser = argparse.ArgumentParser(formatter_class=HelpLayout)
    parser.description = "One\ntwo.\n\nThree:\n  kept as it is   here"
    parser.add_argument("--a", default=0, help="a number")
    parser.add_argument("--b", default=[1, 2], help="more")
    parser.add_argument("--c", action="store_true", help="a flag")
    parser.add_argument("--d", help="a name (default: that of the folder)")
    text = parser.format_help()
    assert "One two.\n\nThree:\n  kept as it is   here\n" in text
    assert "a number (default: 0)" in text and "more (default: 1 2)" in text
    assert text.count("default") == 3


@pytest.mark.parametrize("wrong", ["-1", "4294967296", "x"])
def test_a_seed_out_of_range_is_a_usage_error(wrong, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["thermal-bench", "--seed", wrong])
    assert ended.value.code == 2
    assert "--seed" in capsys.readouterr().err


def test_an_unknown_backend_is_one_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("KERAS_BACKEND", "nonsense")
    assert main(["check-data", str(tmp_path)]) == 2
    assert "KERAS_BACKEND=nonsense: wanted tensorflow, jax, torch" in capsys.readouterr().err


def test_a_full_disk_is_one_sentence(capsys, tmp_path, monkeypatch):
    import tools.check_data

    def full(args):
        raise OSError(28, "No space left on device", "out.json")

    monkeypatch.setattr(tools.check_data, "run", full)
    assert main(["check-data", str(tmp_path)]) == 1
    assert capsys.readouterr().err == ("tools check-data: out.json: No space left on device\n")
