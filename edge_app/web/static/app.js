// The station's page.

import { drawHours, drawScores } from "./chart.js";
import {
  VERDICTS, ask, bytes, by, capital, clock, count, doing, get, lasting, make, moment, number, say, share, show,
  showJob, titleOf, verdictOf, when, write,
} from "./page.js";
import { Live, LivePicture } from "./stream.js";

// Without a word for so long the connection is lost; the station tells at least once a second.
const LOST_MS = 3500;
// A picture is said to be old after this, or after so many of its usual intervals.
const OLD_PICTURE_MS = 3000;
const OLD_INTERVALS = 4;
// The age of a verdict is said from here on, and from there on it is none any more. Hot stations
// inspect each 10 s.
const TELL_AGE_S = 2;
const OLD_VERDICT_S = 15;
const HISTORY = 300;
const LISTED = 12;
// What a frame goes through; waiting for the camera is none of it.
const STAGES = ["quality", "locate", "align", "encode", "score", "decide"];
// Nobody wants more good parts rejected than this; the dial begins there.
const MOST_SHARE = 0.25;
const CHANGES = [
  "bundle", "threshold", "heat", "verify", "scoring", "learn", "revert", "mark", "picture", "output",
  "storage", "config", "service",
].join(",");

let state = null;
let history = [];
let proposed = null;
let lost = false;
let listed = [];
// More are listed when asked for only: a page on a wall is open for months.
let most = LISTED;
let hours = [];
let hoursTo = 0;

const picture = new LivePicture(by("live"));
const live = new Live(told);

function told(news) {
  const before = state;
  state = news.state;
  history = news.whole ? news.history : history.concat(news.history).slice(-HISTORY);
  if (lost) picture.restart();
  lost = false;
  draw();
  if (!before || before.last_event !== state.last_event) loadEvents();
  if (!before || before.bundle?.sha256 !== state.bundle?.sha256) {
    loadBundles();
    loadDial();
  } else if (before.threshold !== state.threshold) loadDial();
}

// What is now

function fitting(word) {
  return word.length <= 2 ? "short" : word.length <= 5 ? "five" : word.length <= 7 ? "seven" : "long";
}

function drawVerdict() {
  const box = by("verdict");
  const silent = performance.now() - (live.toldAt ?? live.openedAt ?? performance.now());
  let shown = state?.verdict ?? "WAITING";
  let word = state?.verdict ?? "…";
  let reason = state?.hold ?? state?.reason ?? "";
  let figures = state !== null;
  let age = state?.seen_s ?? null;
  if (age !== null) age += silent / 1000;
  if (lost) {
    shown = "LOST";
    word = "NO CONNECTION";
    reason = live.trouble || (state
      ? `Nothing heard from the station for ${lasting(silent / 1000)}. It said ${state.verdict ?? "nothing"} then.`
      : "The station does not answer.");
    figures = false;
    age = null;
  } else if (state && !state.scoring) {
    shown = "STOPPED";
    word = "STOPPED";
    reason = "Nothing is inspected until you start it.";
    figures = false;
    age = null;
  } else if (state && !VERDICTS.includes(state.verdict)) {
    shown = "UNKNOWN";
    word = "UNKNOWN";
    reason = reason || "No verdict yet.";
  } else if (state && age !== null && age > OLD_VERDICT_S && state.verdict !== "UNKNOWN" && !state.triggers) {
    reason = `No verdict for ${lasting(age)}; the last was ${state.verdict}.`;
    shown = "UNKNOWN";
    word = "UNKNOWN";
    figures = false;
  }
  box.dataset.verdict = shown;
  box.dataset.size = fitting(word);
  box.classList.toggle("held", Boolean(state?.hold) && shown === "UNKNOWN");
  write(by("word"), word);
  write(by("reason"), reason);
  const score = state?.score_smoothed ?? state?.score ?? null;
  const has = figures && typeof score === "number";
  write(by("score"), has ? number(score) : "");
  write(by("limit"), has && typeof state.threshold === "number" ? `limit ${number(state.threshold)}` : "");
  write(by("age"), age !== null && age > TELL_AGE_S && word !== "UNKNOWN" ? `${lasting(age)} ago` : "");
  document.title = `${lost ? "no connection" : word} · ${state?.name ?? "Inspection"}`;
  speak(word, reason);
}

let spoken = "";
let spokenAt = 0;

// Read out at most each three seconds: a line makes more verdicts than anyone can listen to.
function speak(word, reason) {
  const part = state?.last_part;
  const text = !lost && part && word !== "STOPPED" && state.mode !== "continuous" && word !== "UNKNOWN"
    ? `Part ${part.part}: ${part.verdict}`
    : `${word}. ${reason}`.replace(/\d+ (s|min|h)\b/g, "").trim();
  const now = performance.now();
  if (text === spoken || now - spokenAt < 3000) return;
  spoken = text;
  spokenAt = now;
  write(by("spoken"), text);
}

function drawLast() {
  const part = state?.last_part;
  show(by("last"), Boolean(part) && !lost);
  if (!part) return;
  by("last").dataset.verdict = part.verdict;
  const at = moment(part.time);
  write(by("last-about"), `Last part, no. ${part.part}${at ? `, ${when(at)}` : ""}`);
  write(by("last-word"), part.verdict);
  write(by("last-score"), typeof part.score === "number" ? number(part.score) : "");
  write(by("last-reason"), part.reason ?? "");
  by("last-reason").title = part.reason ?? "";
}

function drawVeil() {
  const age = picture.shownAt === null ? null : performance.now() - picture.shownAt;
  const old = Math.max(OLD_PICTURE_MS, OLD_INTERVALS * picture.every);
  let text = "";
  if (picture.trouble) text = picture.trouble;
  else if (age === null) text = lost ? "No connection" : "Waiting for the first picture";
  else if (lost) text = `No connection: this picture is ${lasting(age / 1000)} old`;
  else if (age > old) text = `No new picture for ${lasting(age / 1000)}`;
  write(by("veil"), text);
  by("veil").dataset.old = String(text !== "");
}

function drawLink() {
  const link = by("link");
  link.dataset.link = lost ? "lost" : state ? "live" : "waiting";
  write(link, lost ? "connection lost" : state ? "live" : "connecting");
  document.body.classList.toggle("lost", lost);
  for (const id of ["scoring", "trigger", "picture-button"]) {
    if (by(id).ariaBusy !== "true") by(id).disabled = lost || !state;
  }
}

function drawHead() {
  write(by("name"), state.name ?? "");
  write(by("part"), state.part ?? "");
  write(by("scoring"), state.scoring ? "Stop" : "Start");
  by("scoring").classList.toggle("main", !state.scoring);
  show(by("trigger"), Boolean(state.triggers));
  showJob(state.job);
}

function drawStrip() {
  const canvas = by("history");
  drawScores(canvas, history, state?.threshold ?? null, proposed);
  const scores = history.map((row) => row[1]).filter((score) => typeof score === "number");
  canvas.setAttribute("aria-label", scores.length
    ? `Last ${history.length} ${state?.mode === "continuous" ? "frames" : "parts"}: scores ${number(Math.min(...scores))} to ${number(Math.max(...scores))}, ` +
      `limit ${number(state?.threshold)}`
    : "No scores yet");
}

// Counts and station

function counted(name, value, of, verdict) {
  const bar = make("span", { className: "fill", data: { verdict } });
  bar.style.width = `${of ? (100 * value) / of : 0}%`;
  show(bar, value > 0);
  return make("tr", {},
    make("th", { scope: "row" }, name),
    make("td", { className: "amount" }, count(value)),
    make("td", { className: "share" }, of ? share(value / of) : "–"),
    make("td", { className: "gauge", ariaHidden: "true" }, bar));
}

let countsDrawn = "";

function drawCounts() {
  const parts = state.counts?.part ?? {};
  const frames = state.counts?.frame ?? {};
  const unknown = Object.entries(state.counts?.unknown ?? {}).sort((a, b) => b[1] - a[1]);
  // Table rows are made anew only where a figure has changed.
  const now = JSON.stringify([parts, frames, unknown]);
  if (now === countsDrawn) return;
  countsDrawn = now;
  const judged = ["OK", "NG", "UNKNOWN"];
  const sum = (counts) => judged.reduce((total, verdict) => total + (counts[verdict] ?? 0), 0);
  const byPart = state.mode !== "continuous" || sum(parts) > 0;
  const shown = byPart ? parts : frames;
  const total = sum(shown);
  by("counts").replaceChildren(
    make("tr", { className: "total" }, make("th", { scope: "row" }, byPart ? "Parts" : "Frames"),
      make("td", { className: "amount" }, count(total)), make("td"), make("td")),
    ...judged.map((verdict) => counted(verdict, shown[verdict] ?? 0, total, verdict)));
  const all = unknown.reduce((total, [, value]) => total + value, 0);
  by("unknown").replaceChildren(...unknown.slice(0, 8).map(([kind, value]) => counted(kind, value, all, "UNKNOWN")));
  show(by("unknown-none"), unknown.length === 0);
}

function fact(name, value, bad = false) {
  return make("div", { className: bad ? "bad" : "" }, make("dt", {}, name), make("dd", {}, value));
}

let factsDrawn = "";

function drawFacts() {
  const { heat, outputs = [], storage, stages_ms = {}, bundle } = state;
  const loop = STAGES.reduce((total, stage) => total + (stages_ms[stage] ?? 0), 0);
  const rows = [];
  if (heat) {
    const flags = heat.flags?.length ? `, ${heat.flags.join(", ")}` : "";
    const at = typeof heat.temperature_c === "number" ? `${heat.temperature_c.toFixed(0)} °C, ` : "";
    const calm = ["normal", "unwatched"].includes(heat.state) && !heat.flags?.length;
    rows.push(["Temperature", `${at}${heat.state}${flags}`, !calm]);
  }
  rows.push(["Inspected", `${number(state.rate, 1)} of ${number(state.camera_rate, 1)} fps`]);
  if (loop) rows.push(["A frame takes", `${loop.toFixed(loop < 10 ? 1 : 0)} ms`]);
  if (state.dropped || state.skipped) {
    rows.push(["Left out", `${count(state.dropped)} dropped, ${count(state.skipped)} skipped`]);
  }
  if (bundle) rows.push(["Bundle", `${bundle.name ?? ""} (${bundle.sha256?.slice(0, 8) ?? "–"})`]);
  if (bundle?.pictures) rows.push(["Learnt from", `${count(bundle.pictures)} pictures`]);
  for (const output of outputs) {
    const lostOnes = output.dropped ? `, ${count(output.dropped)} lost` : "";
    const waiting = output.waiting ? `, ${count(output.waiting)} waiting` : "";
    rows.push([output.name, output.failing ? `${output.failing}${waiting}${lostOnes}` : `works${lostOnes}`,
      Boolean(output.failing)]);
  }
  if (storage) rows.push(["Events kept", `${count(storage.events)} (${bytes(storage.bytes ?? 0)})`]);
  rows.push(["Running for", lasting(state.uptime_s ?? 0)]);
  const now = JSON.stringify(rows);
  if (now === factsDrawn) return;
  factsDrawn = now;
  by("facts").replaceChildren(...rows.map((row) => fact(...row)));
}

function draw() {
  drawLink();
  drawVerdict();
  drawLast();
  drawVeil();
  if (!state) return;
  drawHead();
  drawStrip();
  drawCounts();
  drawFacts();
  const since = moment(state.since);
  write(by("since"), since ? `since ${when(since)}` : "");
}

async function loadHours() {
  try {
    const { now, hours: rows } = await get("/api/counts?hours=24");
    const found = new Map(rows);
    hoursTo = now;
    hours = Array.from({ length: 24 }, (_, i) => found.get(now - 23 + i) ?? {});
    drawDay();
  } catch {
    // Tried again in a minute.
  }
}

function drawDay() {
  if (!hours.length) return;
  const anyPart = hours.some((hour) => VERDICTS.some((verdict) => hour[`part ${verdict}`]));
  const what = anyPart ? "part" : "frame";
  const bars = hours.map((hour) => Object.fromEntries(
    ["OK", "NG", "UNKNOWN"].map((verdict) => [verdict, hour[`${what} ${verdict}`] ?? 0])));
  const label = (hour) => `${String(new Date(hour * 3600e3).getHours()).padStart(2, "0")} h`;
  drawHours(by("hours"), bars, [label(hoursTo - 23), label(hoursTo - 11), label(hoursTo)]);
  const sum = (verdict) => bars.reduce((total, hour) => total + hour[verdict], 0);
  const judged = sum("OK") + sum("NG");
  const text = judged + sum("UNKNOWN")
    ? `${count(judged + sum("UNKNOWN"))} ${what}s, ${count(sum("NG"))} NG` +
      (judged ? ` (${share(sum("NG") / judged)} of the judged ones)` : "")
    : "Nothing was counted.";
  write(by("hours-sum"), text);
  by("hours").setAttribute("aria-label", `Each of the last 24 hours. ${text}`);
}

// Events

let kinds = "";
let loading = false;
let loadAgain = false;

const filter = () => (kinds === "changes" ? CHANGES : kinds);

function card(event) {
  const verdict = verdictOf(event);
  const time = moment(event.time ?? event.time_s);
  const has = event.overlay || event.frame;
  const thumb = has
    ? make("img", {
        src: `/api/events/${event.id}/thumb${event.ended || event.ended_s ? "?ended" : ""}`,
        alt: "", loading: "lazy", width: 120, height: 90,
      })
    : make("span", { className: "blank", ariaHidden: "true" });
  if (has) thumb.onerror = () => thumb.replaceWith(make("span", { className: "blank" }));
  const score = typeof event.score === "number" ? `score ${number(event.score)}` : "";
  return make("li", { data: { verdict, id: event.id } },
    make("a", { href: `/events/${event.id}` }, thumb,
      make("span", { className: "what" },
        make("span", { className: "top" },
          make("b", { className: "tag", data: { verdict } }, titleOf(event)),
          make("time", { dateTime: time?.toISOString() ?? "", title: time?.toISOString() ?? "" }, when(time))),
        make("span", { className: "detail" }, capital(event.detail || event.reason || "")),
        make("span", { className: "soft" }, [
          event.part !== null && event.part !== undefined ? `part ${event.part}` : "", score, event.mark ?? "",
        ].filter(Boolean).join(" · ")))));
}

function drawEvents() {
  const list = by("list");
  const old = new Map([...list.children].map((item) => [item.dataset.id, item]));
  const items = listed.map((event) => {
    const key = JSON.stringify(event);
    const before = old.get(String(event.id));
    // One that is the same stays: its picture does not flicker, and the focus does not jump.
    if (before && before.key === key) return before;
    const made = card(event);
    made.key = key;
    return made;
  });
  const same = items.length === list.children.length && items.every((item, i) => item === list.children[i]);
  if (!same) {
    const focused = document.activeElement?.closest?.("#list li")?.dataset.id;
    list.replaceChildren(...items);
    if (focused) list.querySelector(`li[data-id="${focused}"] a`)?.focus({ preventScroll: true });
  }
  show(by("none"), listed.length === 0);
}

async function loadEvents() {
  if (loading) {
    loadAgain = true;
    return;
  }
  loading = true;
  try {
    const asked = filter();
    const { events } = await get(`/api/events?limit=${Math.min(most, 96)}&kind=${asked}`);
    if (asked === filter()) {
      const oldest = events.at(-1)?.id ?? 0;
      listed = events.concat(listed.filter((event) => event.id < oldest)).slice(0, most);
      show(by("older"), events.length >= LISTED || !by("older").hidden);
      drawEvents();
    }
  } catch {
    // The connection's own sign says so; the next event loads them again.
  }
  // A line may make many events a second; a person reads no faster than this.
  setTimeout(() => {
    loading = false;
    if (loadAgain) {
      loadAgain = false;
      loadEvents();
    }
  }, 1000);
}

by("older").onclick = async () => {
  try {
    const before = listed.at(-1)?.id ?? 1;
    const { events } = await get(`/api/events?limit=24&before=${before}&kind=${filter()}`);
    listed = listed.concat(events);
    most = Math.max(most, listed.length);
    drawEvents();
    show(by("older"), events.length === 24);
  } catch (error) {
    say(error.message, true);
  }
};

for (const button of document.querySelectorAll("[data-kinds]")) {
  button.onclick = () => {
    kinds = button.dataset.kinds;
    for (const other of document.querySelectorAll("[data-kinds]")) {
      other.ariaPressed = String(other === button);
    }
    listed = [];
    most = LISTED;
    show(by("older"), false);
    loading = false;
    loadEvents();
  };
}

// What is done

by("scoring").onclick = async () => {
  const stopping = state.scoring;
  if (stopping && !(await ask("Stop the inspection?", "Nothing is judged until it is started again.", "Stop"))) return;
  await doing(by("scoring"), stopping ? "/api/stop" : "/api/start");
};
by("picture-button").onclick = () => doing(by("picture-button"), "/api/picture");
by("trigger").onclick = () => doing(by("trigger"), "/api/trigger");

// The limit

let dial = null;
let stops = [];

async function loadDial() {
  try {
    dial = await get("/api/threshold");
  } catch {
    return;
  }
  const low = Math.min(dial.value, dial.calibrated ?? dial.value);
  stops = (dial.options ?? []).filter((option) => option.share <= MOST_SHARE || option.value >= low)
    .sort((a, b) => a.value - b.value);
  const input = by("dial");
  input.max = Math.max(stops.length - 1, 0);
  input.disabled = stops.length < 2;
  input.value = nearest(dial.value);
  proposed = null;
  drawDial();
}

function nearest(value) {
  let best = 0;
  stops.forEach((stop, i) => {
    if (Math.abs(stop.value - value) < Math.abs(stops[best].value - value)) best = i;
  });
  return best;
}

function drawDial() {
  if (!dial) return;
  const stop = proposed === null ? null : stops[Number(by("dial").value)];
  const rate = stop ? stop.share : dial.share;
  write(by("dial-share"), share(rate));
  by("dial").setAttribute("aria-valuetext", `${share(rate)}, limit ${number(stop ? stop.value : dial.value)}`);
  write(by("dial-text"), stop
    ? `Limit ${number(stop.value)} instead of ${number(dial.value)}.`
    : `Limit ${number(dial.value)}` +
      (typeof dial.low === "number" && typeof dial.high === "number" && dial.high <= 1
        ? `; between ${share(dial.low)} and ${share(dial.high)}, as far as the good pictures can tell.` : "."));
  by("dial-set").disabled = !stop;
  const moved = typeof dial.calibrated === "number" && Math.abs(dial.calibrated - dial.value) > 1e-9;
  by("dial-back").disabled = !moved;
  drawStrip();
}

by("dial").oninput = () => {
  const stop = stops[Number(by("dial").value)];
  proposed = stop && stop.value !== dial.value ? stop.value : null;
  drawDial();
};
by("dial-set").onclick = async () => {
  if (await doing(by("dial-set"), "/api/threshold", { value: proposed })) await loadDial();
  drawDial();
};
by("dial-back").onclick = async () => {
  if (await doing(by("dial-back"), "/api/threshold", { value: dial.calibrated })) await loadDial();
  drawDial();
};

// Bundles

async function loadBundles() {
  let bundles = [];
  try {
    ({ bundles } = await get("/api/bundles"));
  } catch (error) {
    by("bundles").replaceChildren(make("li", { className: "soft" }, error.message));
    return;
  }
  by("bundles").replaceChildren(...bundles.map((bundle) => {
    const back = make("button", { type: "button" }, "Use this one");
    back.onclick = async () => {
      const text = `${bundle.name} judges from now on; the one in use now stays in the list.`;
      if (!(await ask("Use this bundle?", text, "Use it"))) return;
      if (await doing(back, "/api/bundles/revert", { sha256: bundle.sha256 })) loadBundles();
    };
    const made = moment(bundle.made);
    return make("li", { className: bundle.in_use ? "used" : "" },
      make("div", {},
        make("b", {}, bundle.name ?? bundle.sha256.slice(0, 8)), " ",
        make("span", { className: "soft" }, [
          made ? when(made) : "", typeof bundle.threshold === "number" ? `limit ${number(bundle.threshold)}` : "",
        ].filter(Boolean).join(" · ")),
        make("div", { className: "soft made", title: bundle.what ?? "" }, bundle.what ?? "")),
      bundle.in_use ? make("b", { className: "tag" }, "in use") : back);
  }));
}

by("leave").onclick = async () => {
  await doing(by("leave"), "/logout");
  location.replace("/login");
};

// Running

setInterval(() => {
  const heard = live.toldAt ?? live.openedAt;
  const was = lost;
  lost = live.on && heard !== null && performance.now() - heard > LOST_MS;
  if (lost || was || state === null) draw();
  else {
    drawVerdict();
    drawVeil();
  }
}, 500);
setInterval(() => {
  if (live.on && !lost) {
    loadHours();
    // An episode that has ended is told under its old number.
    loadEvents();
  }
}, 15000);

let resting = null;

function wake() {
  clearTimeout(resting);
  if (live.on) return;
  live.toldAt = live.openedAt = null;
  live.start();
  picture.start();
  loadHours();
}

function rest() {
  live.stop();
  picture.stop();
}

// A page that nobody sees asks for nothing: a browser opens six connections to a station in all.
document.addEventListener("visibilitychange", () => {
  clearTimeout(resting);
  if (document.hidden) resting = setTimeout(rest, 10000);
  else wake();
});
addEventListener("pagehide", rest);
addEventListener("pageshow", wake);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  drawStrip();
  drawDay();
});
new ResizeObserver(() => {
  drawStrip();
  drawDay();
}).observe(by("history"));

get("/api/session").then(({ token }) => show(by("leave"), token), () => {});
setInterval(() => write(by("foot"), `${clock(new Date())} on this screen`), 1000);
wake();
