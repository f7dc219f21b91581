"""
The page in a real browser: headless Chromium, steered by Playwright.

Slow, and skipped where there is no Chromium or no Playwright. The short forms of most of it,
without a browser, are in ``test_web.py``.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from station_page import OLD, TOKEN, FakeMetrics, Station, serving

from edge_app.records import Verdict

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
expect = playwright.expect
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
]

ROOT = Path(__file__).resolve().parent.parent
# Nothing is asked of the network, and no sandbox inside a container.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic",
    "--disable-component-update", "--disable-sync", "--no-first-run",
]  # fmt: skip
# A busy machine may take a while; nothing waits so long where it works.
PATIENCE_MS = 20_000
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
# Screenshots are kept here where it is set, to be looked at.
SHOTS = os.environ.get("EDGE_APP_SCREENSHOTS")


@pytest.fixture(scope="module")
def browser():
    expect.set_options(timeout=PATIENCE_MS)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens a page of a size; fails at the end if one of them had a script error or looked out."""
    wrong: list[str] = []
    contexts = []

    def open_page(url: str, size: dict[str, int] = WIDE, scheme: str = "light"):
        context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        own = re.match(r"https?://[^/]+/", url)[0]
        page.on(
            "request",
            lambda asked: asked.url.startswith((own, "blob:", "data:")) or wrong.append(asked.url),
        )
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def station(tmp_path):
    station = Station(tmp_path / "state")
    station.happen("service", "The service has started.")
    station.event = station.ng()
    yield station
    station.close()


def keep(page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def moves(page) -> None:
    """Wait until the live picture has changed, as its pixels say."""
    canvas = page.locator("#live")
    expect(canvas).to_have_attribute("data-pictures", re.compile(r"\d"))
    first, end = canvas.screenshot(), time.monotonic() + PATIENCE_MS / 1000
    while canvas.screenshot() == first:
        assert time.monotonic() < end, "the picture stands still"


def test_the_page_lives(station, open_page, clip_frames):
    frames = [(frame, "OK", 1.5, None) for frame in clip_frames[:60]]
    with serving(station) as server:
        station.play(frames, 15)
        page = open_page(server.url)
        expect(page.locator("#link")).to_have_text("live")
        expect(page.locator("#word")).to_have_text("OK")
        moves(page)
        # An NG appears without a reload: verdict, event, picture.
        station.controls.learnt = False
        frames[:] = [(frame, "NG", 9.25, None) for frame in clip_frames[:60]]
        number = station.ng(part=77, score=9.25)
        expect(page.locator("#word")).to_have_text("NG")
        expect(page.locator("#score")).to_have_text("9.25")
        item = page.locator(f'#list li[data-id="{number}"]')
        expect(item).to_contain_text("Part 77 is NG")
        expect(item.locator("img")).to_have_js_property("complete", True)
        assert item.locator("img").evaluate("image => image.naturalWidth") == 240
        expect(page.locator("#spoken")).not_to_be_empty()
        expect(page.locator("#history")).to_have_attribute("aria-label", re.compile("scores"))
        keep(page, "page_wide")


def test_each_state_is_said_in_words(station, open_page):
    board = station.board
    with serving(station) as server:
        page = open_page(server.url)
        word, reason = page.locator("#word"), page.locator("#reason")
        board.show("EMPTY", None)
        expect(word).to_have_text("EMPTY")
        long = "verify: the master parts were not told apart, " * 6
        board.show("UNKNOWN", None, reason=long)
        expect(word).to_have_text("UNKNOWN")
        expect(reason).to_have_text(long.strip())
        board.show("OK", 1.0, hold="verify: failed")
        board.state["verdict"] = "UNKNOWN"
        expect(reason).to_have_text("verify: failed")
        board.state["hold"] = None
        # A verdict that grows old is none any more.
        board.show("OK", 1.0, seen_s=40.0)
        expect(reason).to_contain_text("No verdict for")
        expect(word).to_have_text("UNKNOWN")
        board.state |= {"seen_s": 0.1, "job": {"what": "Learning", "stage": "", "done": 3, "of": 9}}
        expect(page.locator("#job")).to_contain_text("Learning")
        expect(page.locator("#job-bar")).to_have_js_property("value", 3)
        board.state["job"] = None
        expect(page.locator("#job")).to_be_hidden()
        board.state["outputs"] = [
            {"name": "mqtt", "failing": "refused", "failures": 3, "dropped": 2, "waiting": 1}
        ]
        expect(page.locator("#facts .bad")).to_contain_text("refused")
        board.state["scoring"] = False
        expect(word).to_have_text("STOPPED")


def test_a_lost_connection_is_said_and_found_again(station, open_page):
    with serving(station) as server:
        page = open_page(server.url)
        expect(page.locator("#live")).to_have_attribute("data-pictures", re.compile(r"\d"))
        # Nothing new from the camera: an old picture does not look alive.
        expect(page.locator("#veil")).to_contain_text("No new picture for")
        station.board.show("OK", 1.0)
        expect(page.locator("#veil")).to_have_text("")
        port = int(server.url.rsplit(":", 1)[1].strip("/"))
    expect(page.locator("#word")).to_have_text("NO CONNECTION")
    expect(page.locator("#veil")).to_contain_text("No connection")
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    keep(page, "page_lost")
    with serving(station, port=port):
        expect(page.locator("#link")).to_have_text("live")
        expect(page.locator("#word")).to_have_text("OK")
        shown = page.locator("#live").get_attribute("data-pictures")
        station.board.show("OK", 1.1)
        expect(page.locator("#live")).not_to_have_attribute("data-pictures", shown)


def test_what_the_buttons_do(station, open_page):
    calls = station.controls.calls
    station.board.state["triggers"] = True
    with serving(station) as server:
        page = open_page(server.url)
        page.get_by_role("button", name="Take a picture").click()
        expect(page.locator("#said")).to_contain_text("The picture is kept as an event.")
        page.get_by_role("button", name="Trigger").click()
        expect(page.locator("#said")).to_contain_text("Triggered.")
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("dialog")).to_be_hidden()
        assert calls == [("take_picture",), ("trigger",)]
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("dialog").get_by_role("button", name="Stop").click()
        expect(page.locator("#word")).to_have_text("STOPPED")
        page.get_by_role("button", name="Start").click()
        expect(page.locator("#word")).to_have_text("OK")
        assert calls[2:] == [("scoring", False), ("scoring", True)]


def test_the_limit_is_moved_by_the_keyboard(station, open_page):
    with serving(station) as server:
        page = open_page(server.url)
        dial = page.get_by_label("Good parts that would be rejected")
        expect(page.locator("#dial-share")).to_have_text("1.0 %")
        dial.focus()
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#dial-share")).to_have_text("3.0 %")
        expect(page.locator("#dial-text")).to_have_text("Limit 2.60 instead of 2.91.")
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name="Set the limit")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#limit")).to_have_text("limit 2.60")
        assert station.controls.calls == [("set_threshold", 2.6)]
        page.get_by_role("button", name="As calibrated").click()
        expect(page.locator("#limit")).to_have_text("limit 2.91")


def test_a_false_alarm_is_learnt_and_taken_back(station, open_page):
    with serving(station) as server:
        page = open_page(server.url)
        page.locator(f'#list li[data-id="{station.event}"] a').click()
        expect(page.locator("#shown")).to_have_js_property("naturalWidth", 320)
        overlay = page.locator("#shown").get_attribute("src")
        page.get_by_role("button", name="Picture", exact=True).click()
        expect(page.locator("#shown")).not_to_have_attribute("src", overlay)
        expect(page.locator("#facts")).to_contain_text("12.71")
        page.get_by_role("button", name="False alarm: learn as good").click()
        page.get_by_role("button", name="Learn as good", exact=True).click()
        expect(page.locator("#mark")).to_contain_text("False alarm")
        expect(page.get_by_role("button", name="False alarm: learn as good")).to_be_hidden()
        page.locator("#home").click()
        used = page.locator("#bundles .used")
        expect(used).to_contain_text("nut-2")
        page.get_by_role("button", name="Use this one").click()
        page.get_by_role("button", name="Use it").click()
        expect(used).not_to_contain_text("nut-2")
        assert station.controls.calls == [("learn_good", station.event), ("revert", OLD)]


def test_a_refusal_stays_until_it_is_read(station, open_page):
    number = station.happen("ng", "NG without a picture", verdict=Verdict.NG)
    with serving(station) as server:
        page = open_page(f"{server.url}events/{number}")
        expect(page.get_by_role("button", name="False alarm: learn as good")).to_be_hidden()
        page.get_by_role("button", name="True defect").click()
        expect(page.locator("#mark")).to_have_text("True defect.")
        page.get_by_role("button", name="Take the mark back").click()
        expect(page.locator("#mark")).to_be_hidden()
        page.goto(f"{server.url}events/99999")
        expect(page.locator("#problem")).to_contain_text("no event 99999")


def test_events_are_chosen_and_what_they_say_is_never_run(station, open_page):
    evil = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
    station.happen("config", evil)
    for part in range(30):
        station.happen("unknown", f"Part {part} is UNKNOWN.", verdict=Verdict.UNKNOWN, part=part)
    with serving(station) as server:
        page = open_page(server.url)
        expect(page.locator("#list li")).to_have_count(12)
        page.get_by_role("button", name="Older events").click()
        expect(page.locator("#list li")).to_have_count(33)
        expect(page.locator("#list")).to_contain_text(evil)
        page.get_by_role("button", name="NG", exact=True).click()
        expect(page.locator("#list li")).to_have_count(1)
        page.get_by_role("button", name="Changes").click()
        expect(page.locator("#list li")).to_have_count(2)
        expect(page).to_have_title(re.compile("^OK"))
        with page.expect_download() as download:
            page.locator("select[name=format]").select_option("zip")
            page.get_by_role("button", name="Export").click()
        assert download.value.suggested_filename == "events.zip"
        assert Path(download.value.path()).stat().st_size > 1000


def test_the_list_of_events_does_not_grow_by_itself(station, open_page):
    """The page of a tablet on the wall is never loaded again."""
    for part in range(30):
        station.happen("heat", f"It is warm: {part}.")
    with serving(station) as server:
        page = open_page(server.url)
        items = page.locator("#list li")
        expect(items).to_have_count(12)
        for part in range(3):
            station.happen("heat", f"It is hot: {part}.")
            expect(items.first).to_contain_text(f"hot: {part}")
            expect(items).to_have_count(12)
        page.locator("#older").click()
        expect(items).to_have_count(35)  # all there are
        station.happen("heat", "It is cool.")
        expect(items.first).to_contain_text("cool")
        expect(items).to_have_count(35)
        expect(page.locator("#older")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_is_wide_enough(station, open_page, scheme):
    station.board.show("UNKNOWN", None, reason="part: " + "Donaudampfschiffahrt" * 12)
    with serving(station) as server:
        for path in ("", f"events/{station.event}", "login"):
            page = open_page(server.url + path, PHONE, scheme)
            page.wait_for_load_state("load")
            if not path:
                expect(page.locator("#list li")).to_have_count(2)
            keep(page, f"page_phone_{scheme}_{path.partition('/')[0] or 'main'}")
            wide, seen = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert wide == seen == 390


def test_everything_is_reached_by_the_keyboard(station, open_page):
    with serving(station) as server:
        page = open_page(server.url)
        expect(page.locator("#bundles li")).to_have_count(1)
        expect(page.locator("#list li")).to_have_count(2)
        expect(page.locator("#dial")).to_be_enabled()
        reached = []
        for _ in range(40):
            page.keyboard.press("Tab")
            name, ring = page.evaluate(
                "() => { const e = document.activeElement, s = getComputedStyle(e); return "
                "[e === document.body ? '' : e.id || e.name || e.textContent.trim(),"
                " s.outlineStyle + s.outlineWidth]; }"
            )
            if not name:
                break  # through, and out of the page
            reached.append(name)
            assert ring == "solid3px", name
        for wanted in ("picture-button", "scoring", "NG", "Changes", "dial", "since", "format"):
            assert wanted in reached, reached
        assert any("Part 7" in name for name in reached)


def test_verdicts_can_be_read_in_a_bright_hall(station, open_page):
    """Contrast of the big word with its ground, and the height of its letters."""

    def light(colour: str) -> float:
        # WCAG 2, relative luminance.
        shares = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    with serving(station) as server:
        for scheme in ("light", "dark"):
            page = open_page(server.url, WIDE, scheme)
            for verdict in ("OK", "NG", "UNKNOWN", "EMPTY"):
                station.board.show(verdict, 1.0)
                expect(page.locator("#word")).to_have_text(verdict)
                ground, ink = page.locator("#verdict").evaluate(
                    "e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color]"
                )
                low, high = sorted((light(ground), light(ink)))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, verdict)
                size = page.locator("#word").evaluate("e => getComputedStyle(e).fontSize")
                assert float(size[:-2]) >= 60, (verdict, size)
                fits = page.locator("#word").evaluate("e => e.scrollWidth <= e.clientWidth")
                assert fits, verdict


def test_a_wrong_token_gets_nowhere(station, open_page, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    with serving(station, FakeMetrics(), token_file=str(tmp_path / "token")) as server:
        page = open_page(f"{server.url}events/{station.event}")
        expect(page).to_have_url(re.compile("/login"))
        page.get_by_label("Token").fill("wrong" * 5)
        page.keyboard.press("Enter")
        expect(page.locator("#wrong")).to_have_text("This is not the token.")
        expect(page).to_have_url(re.compile("/login"))
        page.goto(server.url)
        expect(page).to_have_url(re.compile("/login"))
        page.goto(f"{server.url}login?next=//evil.example/")
        page.get_by_label("Token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#word")).to_have_text("OK")
        assert page.url == server.url
        page.get_by_role("button", name="Log out").click()
        expect(page).to_have_url(re.compile("/login"))
        page.goto(server.url)
        expect(page).to_have_url(re.compile("/login"))


def test_a_hidden_place_for_many_tabs(station, open_page):
    """A browser opens six connections to a station: pages that are left give theirs back."""
    with serving(station) as server:
        page = open_page(server.url)
        for _ in range(8):
            page.goto(server.url)
            expect(page.locator("#word")).to_have_text("OK")
            page.goto(f"{server.url}events/{station.event}")
            expect(page.locator("#word")).to_have_text("NG")
        station.board.show("OK", 1.0)
        end = time.monotonic() + 20
        while station.board.watching > 0:
            assert time.monotonic() < end
            station.board.show("OK", 1.0)
            time.sleep(0.1)


# With the real service


@pytest.fixture
def service(tmp_path, nut_path):
    """A real ``edge-app run`` on the played clip, with a link `current` to a copy of the bundle."""
    models = tmp_path / "state" / "models"
    shutil.copytree(nut_path, models / "nut")
    (models / "current").symlink_to("nut")
    (tmp_path / "config.toml").write_text(
        f'[service]\nname = "line-3"\nsource = "synthetic"\nstate = "{tmp_path / "state"}"\n'
        "[web]\nport = 0\n"
    )
    log = open(tmp_path / "log", "w+")
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_app", "run", "--config", str(tmp_path / "config.toml")],
        cwd=ROOT,
        stderr=log,
    )
    try:
        end = time.monotonic() + 60
        found = None
        while not found:
            text = (tmp_path / "log").read_text()
            assert process.poll() is None and time.monotonic() < end, text
            found = re.search(r"page is at (\S+)", text)
            time.sleep(0.1)
        yield found[1]
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(30)
        log.close()


def verdicts_of_parts(page, count: int) -> list[str]:
    """What was said of the first parts that this bundle has judged, once there are so many."""
    end = time.monotonic() + 90
    while len(history := page.request.get(page.url + "api/state").json()["history"]) < count:
        assert time.monotonic() < end, history
        page.wait_for_timeout(300)
    return [row[2] for row in history[:count]]


def test_the_real_service_learns_a_false_alarm_and_takes_it_back(service, open_page):
    page = open_page(service)
    moves(page)
    # The first of the clip's 12 parts is NG by little.
    alarms = page.locator("#list li[data-verdict=NG]", has_text="score 3.59")
    expect(alarms).to_have_count(1, timeout=60_000)
    keep(page, "page_service")
    alarms.locator("a").click()
    expect(page.locator("#shown")).to_have_js_property("complete", True)
    keep(page, "page_event")
    page.get_by_role("button", name="False alarm: learn as good").click()
    page.get_by_role("button", name="Learn as good", exact=True).click()
    expect(page.locator("#mark")).to_contain_text("False alarm", timeout=60_000)
    page.locator("#home").click()
    expect(page.locator("#bundles .used")).to_contain_text("nut-learnt")
    expect(page.locator("#dial-text")).not_to_contain_text("Limit 2.91")
    # In every 12 parts there are 5 with a defect: the one that was learnt is OK now.
    assert verdicts_of_parts(page, 12).count("NG") == 4
    expect(alarms).to_have_count(1)
    keep(page, "page_learnt")
    page.get_by_role("button", name="Use this one").click()
    page.get_by_role("button", name="Use it").click()
    expect(page.locator("#bundles .used b").first).to_have_text("nut")
    expect(page.locator("#dial-text")).to_contain_text("Limit 2.91")
    # And it is NG again, said without a reload.
    expect(alarms).to_have_count(2, timeout=60_000)


def test_a_page_too_many_says_so(station, open_page):
    with serving(station, viewers=1) as server:
        pages = [open_page(server.url) for _ in range(2)]
        for page in pages:
            expect(page.locator("#word")).to_have_text("OK")
        expect(pages[1].locator("#veil")).to_contain_text("1 watch the picture already")
        third = open_page(server.url)
        expect(third.locator("#word")).to_have_text("NO CONNECTION")
        expect(third.locator("#reason")).to_contain_text("2 pages are open already")
