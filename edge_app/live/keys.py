"""
The keys: one table, from which keys are looked up and the help is drawn.

Upper and lower case are the same key, so that Caps Lock changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

ESCAPE, ENTER, SPACE = 27, 13, 32


@dataclass(frozen=True)
class Key:
    """
    One key.

    Attributes
    ----------
    label : str
        As the help shows it.
    action : str
        What `Session.press` does.
    codes : tuple of int
        ASCII codes that mean it.
    help : str
    """

    label: str
    action: str
    codes: tuple[int, ...]
    help: str


def _letter(letter: str, action: str, help: str) -> Key:
    return Key(letter, action, (ord(letter),), help)


KEYS = (
    _letter("s", "scoring", "start or stop scoring"),
    _letter("p", "picture", "save the picture with its verdict and score"),
    _letter("h", "heatmap", "heatmap: NG only, always, off"),
    _letter("d", "heatmap_kind", "heatmap by the decoder or by the patches"),
    _letter("n", "learn_frame", "learn this frame as good"),
    _letter("l", "learn_burst", "learn the part anew from a burst; again: enough"),
    _letter("u", "undo", "undo the last learnt"),
    _letter("e", "empty", "this is the station without a part"),
    Key("+", "threshold_up", (ord("+"), ord("=")), "threshold up: fewer false rejects"),
    Key("-", "threshold_down", (ord("-"), ord("_")), "threshold down: fewer missed defects"),
    _letter("r", "region", "region of interest: draw it; again: whole picture"),
    _letter("a", "aim", "aiming aid: sharpness and exposure"),
    Key("Enter", "trigger", (ENTER, 10), "trigger a part (trigger kind: key)"),
    Key("Space", "freeze", (SPACE,), "freeze the picture"),
    _letter("f", "full_screen", "full screen"),
    _letter("t", "timings", "frame rates and stage times"),
    _letter("w", "write", "write what was learnt as a new bundle"),
    Key("?", "help", (ord("?"), ord("/")), "this help"),
    _letter("q", "quit", "quit"),
    Key("Esc", "leave", (ESCAPE,), "leave the help or the drawing; else quit"),
)

# GTK and the keypad give X keysyms; Qt gives ASCII.
_KEYSYMS = {
    0xFF0D: ENTER,
    0xFF8D: ENTER,
    0xFF1B: ESCAPE,
    0xFF80: SPACE,
    0xFFAB: ord("+"),
    0xFFAD: ord("-"),
    0xFFBE: ord("?"),  # F1
}
_BY_CODE = {code: key for key in KEYS for code in key.codes}


def key_of(code: int) -> Key | None:
    """
    The key behind a code of ``cv2.waitKeyEx``; None for one that means nothing.

    Above the lowest 16 bits GTK reports modifiers such as Num Lock, which change nothing.
    """
    code &= 0xFFFF
    code = _KEYSYMS.get(code, code)
    if ord("A") <= code <= ord("Z"):
        code += 32
    return _BY_CODE.get(code)
