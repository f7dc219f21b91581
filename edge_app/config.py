"""
Configuration: the packaged ``default.toml`` is at once documentation, default and schema.

A user's file may set any key of it; an unknown section or key, a wrong type or a value out of range
is refused with the file, the key and what was wanted.
"""

from __future__ import annotations

import difflib
import re
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
class ServiceConfig:
    name: str
    source: str
    state: str
    bundle: str
    mode: str
    camera_hang_s: float
    most_threshold_rise: float
    keep_bundles: int
    verify_required: bool


@dataclass(frozen=True)
class EventsConfig:
    keep_days: float
    keep_mb: int
    keep_free_mb: int
    pictures_a_minute: int


@dataclass(frozen=True)
class WebConfig:
    enabled: bool
    address: str
    port: int
    token_file: str
    stream_fps: float
    stream_width: int
    viewers: int


@dataclass(frozen=True)
class MetricsConfig:
    enabled: bool


@dataclass(frozen=True)
class MqttConfig:
    enabled: bool
    host: str
    port: int
    topic: str
    username: str
    password_file: str
    tls: bool


@dataclass(frozen=True)
class WebhookConfig:
    enabled: bool
    url: str
    timeout_s: float


@dataclass(frozen=True)
class GpioConfig:
    enabled: bool
    reject_pin: int
    reject_delay_ms: float
    reject_ms: float
    reject_unknown: bool
    red_pin: int
    yellow_pin: int
    green_pin: int
    active_high: bool


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
    service: ServiceConfig
    events: EventsConfig
    web: WebConfig
    metrics: MetricsConfig
    mqtt: MqttConfig
    webhook: WebhookConfig
    gpio: GpioConfig


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


def _text(empty: bool = False) -> tuple[str, _Check]:
    if empty:
        return "a text", lambda v: isinstance(v, str)
    return "a text that is not empty", lambda v: isinstance(v, str) and bool(v.strip())


def _matching(wanted: str, pattern: str) -> tuple[str, _Check]:
    return wanted, lambda v: isinstance(v, str) and re.fullmatch(pattern, v) is not None


def _name() -> tuple[str, _Check]:
    # It stands in topics, labels and file names.
    return _matching("letters, digits, - and _, at most 40", r"[A-Za-z0-9_-]{1,40}")


def _topic() -> tuple[str, _Check]:
    return _matching(
        "a topic without + and #, not beginning with / or $", r"[^+#/$\0][^+#\0]{0,200}"
    )


def _address() -> tuple[str, _Check]:
    return _matching("empty or an address http://… or https://…", r"(https?://\S+)?")


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
        "kind": _one_of("presence", "key", "gpio", "mqtt", "http"),
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
    "service": {
        "name": _name(),
        "source": _text(),
        "state": _text(),
        "bundle": _text(),
        "mode": _one_of("auto", "continuous", "part"),
        "camera_hang_s": _within(5, 3600),
        "most_threshold_rise": _within(1, 100),
        "keep_bundles": _whole(1, 10_000),
        "verify_required": _switch(),
    },
    "events": {
        "keep_days": _within(1, 36_500),
        "keep_mb": _whole(1, 1_000_000),
        "keep_free_mb": _whole(0, 1_000_000),
        "pictures_a_minute": _whole(0, 6000),
    },
    "web": {
        "enabled": _switch(),
        "address": _text(),
        "port": _whole(0, 65535),
        "token_file": _text(empty=True),
        "stream_fps": _within(0.2, 60),
        "stream_width": _whole(160, 4096),
        "viewers": _whole(1, 1000),
    },
    "metrics": {"enabled": _switch()},
    "mqtt": {
        "enabled": _switch(),
        "host": _text(),
        "port": _whole(1, 65535),
        "topic": _topic(),
        "username": _text(empty=True),
        "password_file": _text(empty=True),
        "tls": _switch(),
    },
    "webhook": {
        "enabled": _switch(),
        "url": _address(),
        "timeout_s": _within(0.1, 60),
    },
    "gpio": {
        "enabled": _switch(),
        "reject_pin": _whole(-1, 27),
        "reject_delay_ms": _within(0, 600_000),
        "reject_ms": _within(1, 60_000),
        "reject_unknown": _switch(),
        "red_pin": _whole(-1, 27),
        "yellow_pin": _whole(-1, 27),
        "green_pin": _whole(-1, 27),
        "active_high": _switch(),
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
    if values["webhook"]["enabled"] and not values["webhook"]["url"]:
        raise ConfigError(f"{path or DEFAULT_FILE}: [webhook] is enabled without a url")
    _refuse_shared_pins(path or DEFAULT_FILE, values)
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
        ServiceConfig(**values["service"]),
        EventsConfig(**values["events"]),
        WebConfig(**values["web"]),
        MetricsConfig(**values["metrics"]),
        MqttConfig(**values["mqtt"]),
        WebhookConfig(**values["webhook"]),
        GpioConfig(**values["gpio"]),
    )


def _refuse_shared_pins(path: Path | str, values: dict[str, dict[str, Any]]) -> None:
    """One pin for two purposes would drive the lamp by the trigger, or the reject by the lamp."""
    gpio, trigger = values["gpio"], values["trigger"]
    used: dict[int, str] = {}
    if trigger["kind"] == "gpio":
        used[trigger["gpio_pin"]] = "[trigger] gpio_pin"
    for key in ("reject_pin", "red_pin", "yellow_pin", "green_pin"):
        pin = gpio[key]
        if not gpio["enabled"] or pin < 0:
            continue
        if pin in used:
            raise ConfigError(f"{path}: [gpio] {key} is {pin}, which {used[pin]} uses already")
        used[pin] = f"[gpio] {key}"


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
