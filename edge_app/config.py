"""
Configuration: the packaged ``default.toml`` is at once documentation, default and schema.

A user's file may set any key of it; an unknown section or key, a wrong type or a value out of range
is refused with the file, the key and what was wanted.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_app.errors import ConfigError
from edge_app.scorer import FEATURE_SCALINGS, SCORERS

DEFAULT_FILE = Path(__file__).with_name("default.toml")
SYSTEM_FILE = Path("/etc/edge-app/config.toml")


@dataclass(frozen=True)
class RuntimeConfig:
    threads: int


@dataclass(frozen=True)
class DecisionConfig:
    smoothing_frames: int
    hysteresis: float
    ng_share: float
    least_usable_frames: int
    empty_frames: int


@dataclass(frozen=True)
class HeatmapConfig:
    kind: str


@dataclass(frozen=True)
class EnrollConfig:
    scorer: str
    neighbours: int
    feature_scaling: str
    false_reject_rate: float


@dataclass(frozen=True)
class Config:
    """Every setting, checked; see ``default.toml`` for meaning, unit and range."""

    runtime: RuntimeConfig
    decision: DecisionConfig
    heatmap: HeatmapConfig
    enroll: EnrollConfig


_Check = Callable[[Any], bool]


def _whole(low: int, high: int) -> tuple[str, _Check]:
    return (
        f"a whole number from {low} to {high}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
    )


def _number(wanted: str, inside: Callable[[float], bool]) -> tuple[str, _Check]:
    return wanted, lambda v: isinstance(v, int | float) and not isinstance(v, bool) and inside(v)


def _one_of(*names: str) -> tuple[str, _Check]:
    return "one of " + ", ".join(f'"{name}"' for name in names), lambda v: v in names


_CHECKS: dict[str, dict[str, tuple[str, _Check]]] = {
    "runtime": {"threads": _whole(1, 16)},
    "decision": {
        "smoothing_frames": _whole(1, 1000),
        "hysteresis": _number("a number from 0 to 0.9", lambda v: 0 <= v <= 0.9),
        "ng_share": _number("a number above 0, at most 1", lambda v: 0 < v <= 1),
        "least_usable_frames": _whole(1, 1000),
        "empty_frames": _whole(1, 1000),
    },
    "heatmap": {"kind": _one_of("auto", "patch", "decoder")},
    "enroll": {
        "scorer": _one_of("patches", *SCORERS),
        "neighbours": _whole(1, 100),
        "feature_scaling": _one_of(*FEATURE_SCALINGS),
        "false_reject_rate": _number("a number above 0, below 0.5", lambda v: 0 < v < 0.5),
    },
}


def load_config(path: Path | str | None = None) -> Config:
    """
    Read the configuration.

    Parameters
    ----------
    path : path, optional
        A file over the defaults; it must exist. Without it `SYSTEM_FILE` is used if it is there.

    Raises
    ------
    ConfigError
        If the file cannot be read or says something that is not in the schema.
    """
    values = _read(DEFAULT_FILE)
    if path is None and SYSTEM_FILE.is_file():
        path = SYSTEM_FILE
    if path is not None:
        path = Path(path)
        for section, keys in _read(path).items():
            for key, value in keys.items():
                values[section][key] = value
    return Config(
        RuntimeConfig(**values["runtime"]),
        DecisionConfig(**values["decision"]),
        HeatmapConfig(**values["heatmap"]),
        EnrollConfig(**values["enroll"]),
    )


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    for section, keys in found.items():
        if section not in _CHECKS:
            raise ConfigError(f"{path}: unknown section [{section}]{_nearest(section, _CHECKS)}")
        if not isinstance(keys, dict):
            raise ConfigError(f"{path}: {section} is a value, wanted a section [{section}]")
        for key, value in keys.items():
            if key not in _CHECKS[section]:
                raise ConfigError(
                    f"{path}: unknown key {key} in [{section}]{_nearest(key, _CHECKS[section])}"
                )
            wanted, check = _CHECKS[section][key]
            if not check(value):
                raise ConfigError(f"{path}: [{section}] {key} is {value!r}, wanted {wanted}")
    return found


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f", the nearest known is {close[0]}" if close else ""
