"""``edge-app run``: the service. Builds its parts, wires them, and runs the loop until SIGTERM."""

from __future__ import annotations

import argparse
import faulthandler
import fcntl
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_app import __version__
from edge_app.bundle import Bundle, load_bundle
from edge_app.chronicle import Chronicle
from edge_app.config import Config, load_config
from edge_app.errors import BundleError, ConfigError, InputError
from edge_app.inspector import SeeingInspector
from edge_app.notify import Notifier
from edge_app.outbox import Outbox, Sink
from edge_app.service.board import Board, remembered
from edge_app.service.caretaker import Caretaker
from edge_app.service.controls import Controls
from edge_app.service.loop import Loop
from edge_app.service.self_test import self_test
from edge_app.sources import is_camera, open_source
from edge_app.sources.camera import CameraSource
from edge_app.station import Station, conditions_for, rules_for, tells_empty
from edge_app.store import EventStore

# SIGTERM must end it within two seconds: all outputs together get so long for what waits, the page
# and the camera so long after it.
FLUSH_S, LEAVE_S = 1.0, 0.3
# Events that wait for the disk, and how many at a time are written.
MOST_EVENTS, EVENT_BATCH = 512, 32
# What the event store holds is asked of the disk so often, seconds, while somebody looks.
STORAGE_S, LAST_EVENT_S = 5.0, 0.5

_log = logging.getLogger(__name__)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``run``."""
    parser.description = (
        "Inspect without a screen until SIGTERM: the service that the systemd unit starts. Its "
        "settings are the sections [service] to [gpio] of the configuration; SIGHUP reads it again."
    )
    parser.epilog = (
        "example: edge-app run synthetic --bundle models/nut --state state, then look at "
        "http://127.0.0.1:8080"
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        nargs="?",
        help="camera:N, picamera, rtsp or http address, synthetic or synthetic:FILE (default: "
        "config, picamera)",
    )
    parser.add_argument(
        "--bundle",
        metavar="B",
        help="what judges; a link is followed (default: config, models/current in the state)",
    )
    parser.add_argument(
        "--state",
        metavar="DIR",
        help="folder of events and bundles (default: config, /var/lib/edge-app)",
    )


def run(args: argparse.Namespace, config: Config, threads: int) -> int:
    """Inspect until told to end; returns the exit code."""
    # Until the caretaker takes over there is nothing to finish.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # The watchdog ends a hung stage by SIGABRT: the journal then shows where it hung.
    faulthandler.enable()

    config = _with_arguments(config, args)
    settings = config.service
    bundle_path = Path(os.path.abspath(Path(settings.state) / settings.bundle))
    # One that the configuration names is not mended by a restart, which systemd would try for ever.
    wrong = ConfigError if args.source is None else InputError
    if not is_camera(settings.source):
        raise wrong(f"{settings.source}: is no camera; edge-app inspect judges files")
    if not os.path.lexists(bundle_path):
        raise BundleError(
            f"{bundle_path}: no such bundle: edge-app enroll … --out "
            f"{bundle_path.parent}/NAME --activate makes it"
        )
    bundle = load_bundle(bundle_path)
    _occupy(Path(settings.state))
    try:
        source = open_source(settings.source, config.camera, patient=True)
    except InputError as error:
        raise wrong(str(error)) from None
    try:
        return _serve(args, config, threads, bundle, bundle_path, source)
    except BaseException:
        # A driver that is still at work while Python ends may crash it, and another exit code than
        # that of the error would have systemd start it again.
        source.close(LEAVE_S)
        raise


def _serve(
    args: argparse.Namespace,
    config: Config,
    threads: int,
    bundle: Bundle,
    bundle_path: Path,
    source: CameraSource,
) -> int:
    settings = config.service
    notifier = Notifier()
    fires = [kind for kind, there in _announcers(config) if there]

    def build(bundle: Bundle, config: Config) -> SeeingInspector:
        try:
            decision, mode = rules_for(bundle, config, source, settings.mode, fires)
        except InputError as error:
            # Here a mode or trigger that cannot be comes from the configuration alone.
            raise ConfigError(str(error)) from None
        if mode == "part" and not tells_empty(bundle):
            # Nobody sits here to see that the first part stays open for ever.
            raise BundleError(
                f"{bundle.path}: cannot tell an empty view, so with [service] mode 'part' no part "
                "would ever end: wanted 'auto' or 'continuous', or enroll it with --empty"
            )
        return SeeingInspector(
            bundle, decision, mode, threads, heatmap=config.heatmap.kind, quality=config.quality
        )

    inspector = build(bundle, config)
    self_test(inspector)
    watch, gate, gpio = conditions_for(config, source, inspector.mode)
    station = Station(inspector, watch, gate, gpio)

    def fire() -> bool:
        return gate.fire(time.monotonic())

    def read_config() -> Config:
        return _with_arguments(load_config(args.config), args)

    board = Board(settings.name, triggers=gate is not None and config.trigger.kind == "http")
    told = _Late()
    store = EventStore(Path(settings.state) / "events", config.events)
    kept = Outbox(store, MOST_EVENTS, EVENT_BATCH, on_change=told)
    sinks = _sinks(config, fire if gate is not None else None, board.silent_s)
    outputs = [Outbox(sink, on_change=told) for sink in sinks]
    metrics = _metrics(config, [kept, *outputs], bundle)
    chronicle = Chronicle(inspector.mode)
    loop = Loop(
        source,
        station,
        board,
        chronicle,
        kept,
        outputs,
        metrics,
        notifier,
        settings.camera_hang_s,
        config.web.stream_fps,
    )
    told.to = lambda sentence: loop.note("output", sentence)
    caretaker = Caretaker(
        loop, notifier, bundle_path, config, read_config, build, source.end, store
    )
    board.totals = lambda: chronicle.totals
    board.outputs = lambda: [_state(box) for box in (kept, *outputs)]
    board.storage = remembered(store.totals, STORAGE_S)
    board.last_event = remembered(store.last_id, LAST_EVENT_S, 0)
    controls = Controls(
        loop,
        caretaker,
        board,
        store,
        bundle_path,
        threads,
        fire if board.triggers else None,
    )
    web = None
    if config.web.enabled:
        web = _web_server()(config.web, board, controls, store, metrics, settings.name)
        web.start()
    loop.note("service", f"edge-app {__version__} started", bundle_sha256=bundle.sha256)
    caretaker.start()
    notifier.ready("waiting for the camera")
    try:
        loop.run()
    finally:
        notifier.stopping()
        loop.note("service", "ended", bundle_sha256=caretaker.judging.sha256)
        caretaker.close(LEAVE_S)
        boxes = [kept, *outputs]
        for box in boxes:
            box.end(FLUSH_S)
        if web is not None:
            web.stop(LEAVE_S)
        if not all([box.close(FLUSH_S) for box in boxes]):
            _log.warning("ended with something that an output did not take")
        source.close(LEAVE_S)
        station.close()
        notifier.close()
    _leave_the_rest()
    return 0


def _occupy(state: Path) -> None:
    """
    Keep every other service out of the folder of state, as long as this process lives.

    Two would swap each other's bundle and take each other's failed masters for their own. A folder
    that is not there or cannot be read is no reason to inspect nothing.
    """
    try:
        state.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        # Never closed: the lock is gone with the process, however that ends.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(
            f"{state}: another edge-app run keeps its state here; wanted a folder for each, "
            "[service] state or --state"
        ) from None
    except OSError:
        os.close(descriptor)


def _with_arguments(config: Config, args: argparse.Namespace) -> Config:
    """What the command line says stands over the configuration, also when that is read again."""
    said = {"source": args.source, "state": args.state}
    if args.bundle is not None:
        said["bundle"] = os.path.abspath(args.bundle)
    service = replace(config.service, **{key: value for key, value in said.items() if value})
    return replace(config, service=service)


def _announcers(config: Config) -> list[tuple[str, bool]]:
    """Kinds of trigger that this service can hear, beside the input pin."""
    return [("mqtt", config.mqtt.enabled), ("http", config.web.enabled)]


def _web_server() -> type:
    """Imported only where a page is served."""
    try:
        from edge_app.web.app import WebServer
    except ImportError as error:
        raise ConfigError(
            f"[web] is enabled, which needs aiohttp: pip install 'edge-app[service]' ({error})"
        ) from None
    return WebServer


def _sinks(
    config: Config, fire: Callable[[], bool] | None, silent_s: Callable[[], float]
) -> list[Sink]:
    """The outputs that are enabled; each is imported only then."""
    sinks: list[Sink] = []
    name = config.service.name
    if config.mqtt.enabled:
        from edge_app.sinks.mqtt import MqttSink

        heard = fire if config.trigger.kind == "mqtt" else None
        sinks.append(MqttSink(config.mqtt, name, heard))
    if config.webhook.enabled:
        from edge_app.sinks.webhook import WebhookSink

        sinks.append(WebhookSink(config.webhook, name))
    if config.gpio.enabled:
        from edge_app.sinks.gpio import LampSink, RejectSink

        if config.gpio.reject_pin >= 0:
            sinks.append(RejectSink(config.gpio))
        if max(config.gpio.red_pin, config.gpio.yellow_pin, config.gpio.green_pin) >= 0:
            sinks.append(LampSink(config.gpio, silent_s=silent_s))
    return sinks


def _metrics(config: Config, outputs: list[Outbox], bundle: Bundle) -> Any:
    if not config.metrics.enabled:
        return None
    from edge_app.metrics import Metrics

    info = {"version": __version__, "part": bundle.manifest["part"], "station": config.service.name}
    return Metrics(outputs, info)


def _state(box: Outbox) -> dict[str, Any]:
    return {
        "name": box.name,
        "failing": box.failing,
        "failures": box.failures,
        "dropped": box.dropped,
        "waiting": box.waiting,
    }


class _Late:
    """What an output says of itself, to whom it may concern once that is there."""

    def __init__(self) -> None:
        self.to: Callable[[str], None] | None = None

    def __call__(self, sentence: str) -> None:
        if self.to is not None:
            self.to(sentence)


def _leave_the_rest() -> None:
    """
    End now where a thread is left that will not: a lesson half learnt.

    All that counts is on the disk; a bundle that is being written has no name yet.
    """
    left = [
        thread.name
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and not thread.daemon
    ]
    if left:
        _log.info("ended without waiting for %s", ", ".join(left))
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
