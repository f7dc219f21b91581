"""What a method has learnt, kept in its state folder: found again instead of learnt again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edge_app.errors import InputError
from tools.network import new_folder
from tools.training import Trained

FOLDER = "finished"
SETTINGS_FILE = "settings.json"


def find(state: Path, settings: dict[str, Any]) -> Path | None:
    """
    The folder of a finished result.

    Parameters
    ----------
    state : Path
        The method's state folder.
    settings : dict
        All that the result depends on, as JSON holds it.

    Returns
    -------
    Path or None
        None where nothing was finished yet.

    Raises
    ------
    InputError
        If what is there was learnt with other settings.
    """
    folder = state / FOLDER
    if not folder.is_dir():
        return None
    try:
        stored = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / SETTINGS_FILE}: cannot be read ({error})") from error
    # Compared as JSON keeps them: a tuple comes back as a list.
    asked = json.loads(json.dumps(settings))
    for name in sorted({*stored, *asked}):
        if stored.get(name) != asked.get(name):
            raise InputError(
                f"{folder}: was learnt with {name} {stored.get(name)!r}, now it is "
                f"{asked.get(name)!r}; take another folder, or remove this one"
            )
    return folder


@contextmanager
def keeping(state: Path, settings: dict[str, Any]) -> Iterator[Path]:
    """
    Keep a finished result: the files written into the folder yielded appear all at once.

    Parameters
    ----------
    state, settings
        As in `find`.

    Raises
    ------
    InputError
        If there is one already, or it cannot be written.
    """
    with new_folder(state / FOLDER) as folder:
        yield folder
        text = json.dumps(settings, indent=2, allow_nan=False) + "\n"
        (folder / SETTINGS_FILE).write_text(text, encoding="utf-8")


def pictures_sha256(pictures: Sequence[np.ndarray]) -> str:
    """Of the pixels of some pictures, in their order."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(np.ascontiguousarray(picture).tobytes())
    return digest.hexdigest()


def settings_sha256(settings: dict[str, Any]) -> str:
    """Of settings as JSON holds them, whatever the order of their names."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def settings_of(
    method: str, seed: int, pictures: np.ndarray, training: dict[str, Any]
) -> dict[str, Any]:
    """All that what is trained on some pictures alone depends on, for `find` and `keeping`."""
    return {
        "method": method,
        "seed": seed,
        "pictures_sha256": pictures_sha256(pictures),
        "training": training,
    }


def notes_of(trained: Trained, fit_s: float) -> dict[str, Any]:
    """
    What is remembered of a training.

    Parameters
    ----------
    trained : Trained
    fit_s : float
        Seconds that this process took for all of it; `steps_s` are those of the steps alone, in all
        processes that it took.
    """
    return {
        "steps": len(trained.history),
        "best_step": trained.best_step,
        "resumed_from": trained.resumed_from,
        "held_out_loss": trained.best,
        "fit_s": round(fit_s, 1),
        "steps_s": round(sum(row["seconds"] for row in trained.history), 1),
    }


def write_notes(folder: Path, notes: Mapping[str, Any]) -> None:
    """As ``notes.json``."""
    text = json.dumps(notes, indent=2, allow_nan=False) + "\n"
    (folder / "notes.json").write_text(text, encoding="utf-8")
