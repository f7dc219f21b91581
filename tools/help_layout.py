"""How the help of a command is laid out."""

from __future__ import annotations

import argparse
import textwrap


class HelpLayout(argparse.HelpFormatter):
    """
    Paragraphs filled one by one, indented lines (examples) as they are, each default shown once.

    A default is taken from the argument itself, so that the help cannot say another one; where
    None or nothing stands for something that is only known later, the help text names it after
    "default:".
    """

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        filled: list[str] = []

        def close() -> None:
            if filled:
                lines.append(textwrap.fill(" ".join(filled), width))
                filled.clear()

        for line in text.strip().splitlines():
            if not line.strip() or line.startswith("  "):
                close()
                lines.append(line.rstrip())
            else:
                filled.append(line.strip())
        close()
        return "\n".join(indent + line for line in "\n".join(lines).splitlines())

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        default = action.default
        # By identity: 0 is a default like any other number, though it equals False.
        unknown = default in ([], argparse.SUPPRESS) or default is None or default is False
        if unknown or "default:" in text or not action.option_strings:
            return text
        shown = default
        if isinstance(shown, list | tuple):
            shown = " ".join(str(one).replace("%", "%%") for one in shown)
        return f"{text} (default: {shown})"
