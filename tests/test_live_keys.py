"""The table of keys: what is pressed finds its action, and the help shows the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_app.live.keys import KEYS, key_of
from edge_app.live.session import Session


def test_every_code_and_action_is_there_once():
    codes = [code for key in KEYS for code in key.codes]
    assert len(set(codes)) == len(codes)
    assert len({key.action for key in KEYS}) == len(KEYS) == len({key.label for key in KEYS})


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.action)
def test_every_key_does_something(key):
    assert callable(getattr(Session, f"_key_{key.action}"))
    assert key.help


@pytest.mark.parametrize("letter", list("sphdnlu+-raftw?q e"))
def test_keys_of_the_product_are_there(letter):
    assert key_of(ord(letter)) is not None


@pytest.mark.parametrize(
    ("code", "action"),
    [
        (ord("S"), "scoring"),  # Caps Lock
        (ord("s") | 0x100000, "scoring"),  # GTK with Num Lock
        (0xFFAB, "threshold_up"),  # the keypad's plus
        (ord("="), "threshold_up"),  # plus without shift
        (0xFFAD, "threshold_down"),
        (0xFF8D, "trigger"),  # the keypad's Enter
        (13, "trigger"),
        (27, "leave"),
        (0xFF1B, "leave"),
        (32, "freeze"),
    ],
)
def test_other_codes_of_a_key(code, action):
    assert key_of(code).action == action


@pytest.mark.parametrize("code", [0xFFE1, 0xFFE5, 0xFF51, 0xFFBF, ord("z"), ord("1")])
def test_what_is_no_key_is_none(code):
    # Shift, Caps Lock, an arrow, F2: none of them may be mistaken for a letter.
    assert key_of(code) is None


def test_the_page_has_the_table_of_keys():
    page = (Path(__file__).resolve().parent.parent / "docs" / "bench.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for key in KEYS:
        assert f"| `{key.label}` | {key.help} |" in rows
