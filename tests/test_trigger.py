"""The gate between announcements and frames, and the input pin."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace

import pytest

from edge_app import trigger
from edge_app.config import load_config
from edge_app.errors import ConfigError, InputError
from edge_app.trigger import Gate, GpioInput

DEFAULT = load_config().trigger


def gate_of(**settings):
    return Gate(replace(DEFAULT, **{"debounce_s": 0.05, "delay_s": 0.0, "frames": 3, **settings}))


def turns(gate, times):
    return [gate.take(at_s) for at_s in times]


def test_a_part_has_its_frames_and_then_the_gate_is_shut():
    gate = gate_of()
    assert gate.take(0.9) == "idle"
    assert gate.fire(1.0)
    assert turns(gate, [1.0, 1.1, 1.2, 1.3]) == ["first", "more", "last", "idle"]
    assert gate.missed == 0


def test_two_frames_have_no_middle_and_one_is_the_only():
    gate = gate_of(frames=2)
    gate.fire(1.0)
    assert turns(gate, [1.1, 1.2, 1.3]) == ["first", "last", "idle"]
    gate = gate_of(frames=1)
    gate.fire(1.0)
    assert turns(gate, [1.1, 1.2]) == ["only", "idle"]


def test_a_frame_from_before_the_trigger_is_not_its_part():
    """It waited in the slot while the trigger came."""
    gate = gate_of()
    gate.fire(1.0)
    assert turns(gate, [0.95, 1.05]) == ["idle", "first"]


def test_the_delay_is_waited_for():
    gate = gate_of(delay_s=0.5)
    gate.fire(1.0)
    assert turns(gate, [1.0, 1.49, 1.5, 1.6]) == ["idle", "idle", "first", "more"]


def test_parts_may_travel_one_behind_the_other():
    """A sensor well before the camera announces the next part before the first is in view."""
    gate = gate_of(delay_s=2.0, frames=2)
    for at_s in (1.0, 1.5, 2.0):
        assert gate.fire(at_s)
    seen = turns(gate, [2.9, 3.0, 3.2, 3.4, 3.5, 3.7, 3.9, 4.0, 4.2, 4.4])
    part = ["first", "last", "idle"]
    assert seen == ["idle", *part, *part, *part]
    assert gate.missed == 0


@pytest.mark.parametrize("bounces", [[1.01, 1.02], [1.049], [0.96]])
def test_triggers_close_together_are_one(bounces):
    gate = gate_of(frames=1)
    assert gate.fire(1.0)
    assert [gate.fire(at_s) for at_s in bounces] == [False] * len(bounces)
    assert turns(gate, [1.1, 1.2]) == ["only", "idle"]


def test_bounces_do_not_keep_the_next_part_away():
    gate = gate_of()
    fired = [gate.fire(1.0 + 0.02 * step) for step in range(6)]
    assert fired == [True, False, False, True, False, False]


def test_no_debounce_takes_every_trigger():
    gate = gate_of(debounce_s=0.0, frames=1)
    assert gate.fire(1.0) and gate.fire(1.0)


def test_a_trigger_while_a_part_is_open_counts_it_missed_and_opens_the_next():
    gate = gate_of()
    gate.fire(1.0)
    assert turns(gate, [1.0, 1.1]) == ["first", "more"]
    gate.fire(1.15)
    assert turns(gate, [1.2, 1.3, 1.4, 1.5]) == ["first", "more", "last", "idle"]
    assert gate.missed == 1


def test_a_frame_of_the_open_part_is_still_its_own_after_the_next_trigger():
    gate = gate_of()
    gate.fire(1.0)
    assert turns(gate, [1.0, 1.1]) == ["first", "more"]
    gate.fire(1.3)
    assert turns(gate, [1.2, 1.4]) == ["last", "first"]
    assert gate.missed == 0


def test_parts_that_passed_without_a_frame_are_counted():
    gate = gate_of()
    for at_s in (1.0, 2.0, 3.0):
        gate.fire(at_s)
    assert turns(gate, [3.5, 3.6, 3.7, 3.8]) == ["first", "more", "last", "idle"]
    assert gate.missed == 2


def test_what_waits_is_bounded():
    gate = gate_of(frames=1)
    many = trigger.MOST_WAITING + 5
    for step in range(many):
        gate.fire(float(step))
    assert gate.missed == 5
    assert gate.take(float(many)) == "only"
    assert gate.missed == many - 1


def test_any_thread_may_fire_and_none_is_lost():
    gate = gate_of(debounce_s=0.0, frames=1)
    start = threading.Barrier(5)

    def fire(first):
        start.wait()
        for step in range(200):
            gate.fire(first + step)

    threads = [threading.Thread(target=fire, args=(number / 10,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    opened = [gate.take(first + step) for step in range(200) for first in (0.0, 0.1, 0.2, 0.3, 0.4)]
    assert opened == ["only"] * 1000
    assert gate.missed == 0


@pytest.fixture
def pins():
    reason = "needs gpiozero, and its mock pins"
    mock = pytest.importorskip("gpiozero.pins.mock", reason=reason)
    factory = mock.MockFactory()
    yield factory
    factory.reset()


@pytest.mark.parametrize("edge", ["falling", "rising"])
def test_the_wanted_edge_of_the_pin_fires_and_the_other_does_not(edge, pins):
    now = [1.0]
    gate = gate_of(frames=1)
    settings = replace(DEFAULT, gpio_pin=17, gpio_edge=edge)
    pin = pins.pin(17)
    source = GpioInput(settings, gate, clock=lambda: now[0], pin_factory=pins)
    active, rest = (pin.drive_low, pin.drive_high)[:: 1 if edge == "falling" else -1]
    rest()
    assert pin.pull == ("up" if edge == "falling" else "down")
    assert gate.take(1.0) == "idle"
    active()
    assert turns(gate, [1.0, 1.1]) == ["only", "idle"]
    now[0] = 2.0
    rest()
    assert gate.take(2.1) == "idle"
    now[0] = 3.0
    active()
    assert turns(gate, [2.9, 3.0]) == ["idle", "only"]
    source.close()


def test_a_pin_that_bounces_is_one_trigger(pins):
    now = [1.0]
    gate = gate_of(frames=1)
    source = GpioInput(DEFAULT, gate, clock=lambda: now[0], pin_factory=pins)
    pin = pins.pin(DEFAULT.gpio_pin)
    for _ in range(5):
        pin.drive_low()
        now[0] += 0.004
        pin.drive_high()
        now[0] += 0.004
    assert turns(gate, [1.1, 1.2]) == ["only", "idle"]
    assert gate.missed == 0
    source.close()


def test_a_pin_held_from_the_start_waits_for_its_next_edge(pins):
    pin = pins.pin(DEFAULT.gpio_pin)
    pin.drive_low()
    gate = gate_of(frames=1)
    source = GpioInput(DEFAULT, gate, clock=lambda: 1.0, pin_factory=pins)
    assert gate.take(2.0) == "idle"
    pin.drive_high()
    pin.drive_low()
    assert gate.take(2.0) == "only"
    source.close()


def test_a_closed_pin_fires_no_more_and_is_free(pins):
    gate = gate_of()
    source = GpioInput(DEFAULT, gate, clock=lambda: 1.0, pin_factory=pins)
    source.close()
    source.close()
    pins.pin(DEFAULT.gpio_pin).drive_low()
    assert gate.take(2.0) == "idle"
    GpioInput(DEFAULT, gate, pin_factory=pins).close()


def test_a_pin_in_use_is_refused_and_may_be_tried_again(pins):
    """Whoever holds it may let go: systemd starts the service again."""
    source = GpioInput(DEFAULT, gate_of(), pin_factory=pins)
    with pytest.raises(InputError, match=f"GPIO {DEFAULT.gpio_pin} cannot be read") as caught:
        GpioInput(DEFAULT, gate_of(), pin_factory=pins)
    assert caught.value.exit_code == 2
    source.close()


class Held:
    """A pin library whose pins another program holds; lgpio's error is a plain Exception."""

    def reserve_pins(self, *args):
        raise Exception("'GPIO busy'")

    def release_pins(self, *args):
        pass


def test_a_pin_that_another_program_holds_may_be_tried_again(pins):
    with pytest.raises(InputError, match="GPIO busy") as caught:
        GpioInput(DEFAULT, gate_of(), pin_factory=Held())
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "wrong",
    [{"gpio_pin": 99}, {"gpio_pin": 2, "gpio_edge": "rising"}],  # GPIO 2 is pulled up for good
    ids=["no such pin", "a pull that it has not"],
)
def test_a_wrong_pin_is_a_wrong_configuration(pins, wrong):
    """No restart mends it."""
    with pytest.raises(ConfigError, match=f"GPIO {wrong['gpio_pin']} cannot be read") as caught:
        GpioInput(replace(DEFAULT, **wrong), gate_of(), pin_factory=pins)
    assert caught.value.exit_code == 78


def test_a_machine_without_pins_is_told_so(pins, monkeypatch):
    """Which libraries gpiozero tries is its own setting; here one that does not exist."""
    monkeypatch.setenv("GPIOZERO_PIN_FACTORY", "none_such")
    with pytest.raises(ConfigError, match="GPIO 17 cannot be read"):
        GpioInput(replace(DEFAULT, gpio_pin=17), gate_of())


def test_a_library_that_is_missing_is_a_wrong_configuration(pins, monkeypatch):
    """The unit keeps gpiozero to lgpio, which apt installs beside it."""
    monkeypatch.setenv("GPIOZERO_PIN_FACTORY", "lgpio")
    monkeypatch.setitem(sys.modules, "lgpio", None)
    monkeypatch.delitem(sys.modules, "gpiozero.pins.lgpio", raising=False)
    with pytest.raises(ConfigError, match="GPIO 17 cannot be read"):
        GpioInput(replace(DEFAULT, gpio_pin=17), gate_of())


def test_without_gpiozero_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gpiozero", None)  # as Python marks a module that is not there
    with pytest.raises(ConfigError, match="sudo apt install python3-gpiozero"):
        GpioInput(DEFAULT, gate_of())
