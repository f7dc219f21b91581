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
class CameraConfig:
    width: int
    height: int
    fps: float
    warm_up_s: float
    lock: bool
    exposure_ms: float
    gain: float
    hang_s: float
    retry_first_s: float
    retry_most_s: float


@dataclass(frozen=True)
class QualityConfig:
    enabled: bool
    margin: float
    frozen_frames: int


@dataclass(frozen=True)
class TriggerConfig:
    kind: str
    gpio_pin: int
    gpio_edge: str
    debounce_s: float
    delay_s: float
    frames: int


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
class ThermalConfig:
    enabled: bool
    sensor: str
    throttled: str
    target_c: float
    hot_c: float
    pause_at_c: float
    slowest_s: float


@dataclass(frozen=True)
class LiveConfig:
    width: int
    height: int
    pictures: str
    burst_frames: int
    most_held_mb: int


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
    camera: CameraConfig
    quality: QualityConfig
    trigger: TriggerConfig
    decision: DecisionConfig
    heatmap: HeatmapConfig
    thermal: ThermalConfig
    live: LiveConfig
    enroll: EnrollConfig


_Check = Callable[[Any], bool]


def _whole(low: int, high: int) -> tuple[str, _Check]:
    return (
        f"a whole number from {low} to {high}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
    )


def _number(wanted: str, inside: Callable[[float], bool]) -> tuple[str, _Check]:
    return wanted, lambda v: isinstance(v, int | float) and not isinstance(v, bool) and inside(v)


def _within(low: float, high: float) -> tuple[str, _Check]:
    return _number(f"a number from {low:g} to {high:g}", lambda v: low <= v <= high)


def _switch() -> tuple[str, _Check]:
    return "true or false", lambda v: isinstance(v, bool)


def _text() -> tuple[str, _Check]:
    return "a text that is not empty", lambda v: isinstance(v, str) and bool(v.strip())


def _one_of(*names: str) -> tuple[str, _Check]:
    return "one of " + ", ".join(f'"{name}"' for name in names), lambda v: v in names


_CHECKS: dict[str, dict[str, tuple[str, _Check]]] = {
    "runtime": {"threads": _whole(1, 16)},
    "camera": {
        "width": _whole(0, 16384),
        "height": _whole(0, 16384),
        "fps": _within(0, 1000),
        "warm_up_s": _within(0, 60),
        "lock": _switch(),
        "exposure_ms": _within(0, 10_000),
        "gain": _within(0, 64),
        "hang_s": _within(0.1, 60),
        "retry_first_s": _within(0.05, 3600),
        "retry_most_s": _within(0.05, 3600),
    },
    "quality": {
        "enabled": _switch(),
        "margin": _within(0, 10),
        "frozen_frames": _whole(2, 1000),
    },
    "trigger": {
        "kind": _one_of("presence", "key", "gpio"),
        "gpio_pin": _whole(0, 27),
        "gpio_edge": _one_of("rising", "falling"),
        "debounce_s": _within(0, 60),
        "delay_s": _within(0, 60),
        "frames": _whole(1, 1000),
    },
    "decision": {
        "smoothing_frames": _whole(1, 1000),
        "hysteresis": _within(0, 0.9),
        "ng_share": _number("a number above 0, at most 1", lambda v: 0 < v <= 1),
        "least_usable_frames": _whole(1, 1000),
        "empty_frames": _whole(1, 1000),
    },
    "heatmap": {"kind": _one_of("auto", "patch", "decoder")},
    "thermal": {
        "enabled": _switch(),
        "sensor": _text(),
        "throttled": _text(),
        "target_c": _within(30, 84),
        "hot_c": _within(30, 90),
        "pause_at_c": _within(30, 95),
        "slowest_s": _within(0.1, 600),
    },
    "live": {
        "width": _whole(320, 8192),
        "height": _whole(320, 8192),
        "pictures": _text(),
        "burst_frames": _whole(5, 1000),
        "most_held_mb": _whole(1, 4096),
    },
    "enroll": {
        "scorer": _one_of("patches", *SCORERS),
        "neighbours": _whole(1, 100),
        "feature_scaling": _one_of(*FEATURE_SCALINGS),
        "false_reject_rate": _number("a number above 0, below 0.5", lambda v: 0 < v < 0.5),
    },
}


# Pairs of keys of which the first must not be above the second.
_RISING = (
    ("camera", "retry_first_s", "retry_most_s"),
    ("thermal", "target_c", "hot_c"),
    ("thermal", "hot_c", "pause_at_c"),
)


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
    for section, lower, higher in _RISING:
        low, high = values[section][lower], values[section][higher]
        if low > high:
            raise ConfigError(
                f"{path or DEFAULT_FILE}: [{section}] {lower} is {low:g}, wanted at most {higher}, "
                f"which is {high:g}"
            )
    camera = values["camera"]
    slow_s = max(camera["exposure_ms"] / 1000, 1 / camera["fps"] if camera["fps"] else 0)
    if camera["hang_s"] <= slow_s:
        raise ConfigError(
            f"{path or DEFAULT_FILE}: [camera] hang_s is {camera['hang_s']:g}, wanted more than "
            f"the {slow_s:g} seconds between two pictures that exposure_ms and fps give"
        )
    return Config(
        RuntimeConfig(**values["runtime"]),
        CameraConfig(**values["camera"]),
        QualityConfig(**values["quality"]),
        TriggerConfig(**values["trigger"]),
        DecisionConfig(**values["decision"]),
        HeatmapConfig(**values["heatmap"]),
        ThermalConfig(**values["thermal"]),
        LiveConfig(**values["live"]),
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
