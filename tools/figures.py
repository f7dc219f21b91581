"""Figures into a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_app.errors import InputError
from edge_app.sources.folder import printable


def write_figures(path: Path | None, figures: Mapping[str, Any]) -> None:
    """
    Write what ``--json FILE`` asks for, and say where it is.

    Parameters
    ----------
    path : Path or None
        None: not asked for.
    figures : mapping
        No NaN in it.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    if path is None:
        return
    try:
        path.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be written: {error.strerror}") from None
    print(f"figures: {printable(path)}")
