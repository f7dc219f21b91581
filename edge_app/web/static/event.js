// One event: its picture, what is known of it, and what a person says it was.

import {
  ask, by, capital, clock, day, doing, get, lasting, make, moment, number, share, show, showJob, titleOf,
  verdictOf, write,
} from "./page.js";

const id = Number(location.pathname.split("/").pop());
let event = null;

function see(which) {
  const image = by("shown");
  image.src = `/api/events/${id}/${which}`;
  image.alt = which === "overlay" ? "The part with what is unlike good ones painted" : "The part";
  by("see-overlay").ariaPressed = String(which === "overlay");
  by("see-frame").ariaPressed = String(which === "frame");
  by("save").href = `/api/events/${id}/${which}?download`;
}

by("see-overlay").onclick = () => see("overlay");
by("see-frame").onclick = () => see("frame");

function known() {
  const began = moment(event.time ?? event.time_s);
  const ended = moment(event.ended ?? event.ended_s);
  const facts = [
    ["When", began && `${day(began)} ${clock(began)}`],
    ["Until", ended && `${day(ended)} ${clock(ended)} (${lasting((ended - began) / 1000)})`],
    ["Part", event.part],
    ["Frames", event.frames || null],
    ["Score", typeof event.score === "number" ? number(event.score) : null],
    ["Limit", typeof event.threshold === "number" ? number(event.threshold) : null],
    ["Over the limit by", typeof event.score === "number" && event.threshold > 0
      ? share(event.score / event.threshold - 1, 0) : null],
    ["Reason", event.reason],
    ["Judged by", event.bundle_sha256?.slice(0, 12)],
    ["The board had run for", typeof event.boot_s === "number" ? lasting(event.boot_s) : null],
    ...Object.entries(event.data ?? {}).map(([key, value]) => [
      capital(key.replaceAll("_", " ")), typeof value === "object" ? JSON.stringify(value) : String(value),
    ]),
  ];
  by("facts").replaceChildren(...facts
    .filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value)))));
}

function draw(first) {
  document.title = `${titleOf(event)}, event ${id}`;
  const verdict = verdictOf(event);
  by("badge").dataset.verdict = verdict;
  write(by("word"), titleOf(event));
  write(by("detail"), capital(event.detail));
  const marks = { "false alarm": "False alarm: learnt as good.", "true defect": "True defect." };
  write(by("mark"), marks[event.mark] ?? event.mark ?? "");
  show(by("mark"), Boolean(event.mark));
  show(by("deeds"), Boolean(verdict));
  show(by("learn"), verdict === "NG" && Boolean(event.frame) && !event.mark);
  show(by("deeds-text"), !by("learn").hidden);
  show(by("defect"), Boolean(verdict) && !event.mark);
  show(by("unmark"), event.mark === "true defect");
  show(by("view"), Boolean(event.frame || event.overlay));
  show(by("see-overlay").parentElement, Boolean(event.frame && event.overlay));
  if (first && (event.frame || event.overlay)) see(event.overlay ? "overlay" : "frame");
  known();
  show(by("event"), true);
}

async function load(first = false) {
  write(by("number"), String(id));
  try {
    event = await get(`/api/events/${id}`);
    draw(first);
  } catch (error) {
    write(by("problem"), error instanceof TypeError ? "The station does not answer." : error.message);
    show(by("problem"), true);
  }
}

async function neighbours() {
  try {
    const { events: older } = await get(`/api/events?limit=1&before=${id}`);
    if (older.length) by("older").href = `/events/${older[0].id}`;
    show(by("older"), older.length > 0);
    // The numbers rise by one, but old events go; a newer one is there where any is.
    const { events: newest } = await get("/api/events?limit=1");
    const newer = newest.length && newest[0].id > id;
    if (newer) by("newer").href = `/events/${await nextAfter(newest[0].id)}`;
    show(by("newer"), Boolean(newer));
  } catch {
    // The page does without.
  }
}

async function nextAfter(newest) {
  // Events between this and the next one may have gone: look in the hundred numbers above.
  const { events } = await get(`/api/events?limit=100&before=${Math.min(id + 101, newest + 1)}`);
  const above = events.map((other) => other.id).filter((other) => other > id);
  return above.length ? Math.min(...above) : newest;
}

by("learn").onclick = async () => {
  const sure = await ask(
    "Learn this part as good?",
    "A new bundle is written that takes parts like this one for good. Make sure that nothing is wrong with it. " +
      "You can go back to the bundle before at any time.",
    "Learn as good",
  );
  if (!sure) return;
  const watching = setInterval(async () => {
    try {
      showJob((await get("/api/state")).job);
    } catch {
      // Said by what follows.
    }
  }, 700);
  showJob({ what: "Learning", stage: "", done: 0, of: 0 });
  await doing(by("learn"), `/api/events/${id}/learn`);
  clearInterval(watching);
  showJob(null);
  load();
};
by("defect").onclick = async () => {
  if (await doing(by("defect"), `/api/events/${id}/mark`)) load();
};
by("unmark").onclick = async () => {
  if (await doing(by("unmark"), `/api/events/${id}/unmark`)) load();
};

by("shown").onerror = () => {
  write(by("problem"), "The picture of this event is not kept any more.");
  show(by("problem"), true);
  show(by("view"), false);
};

load(true);
neighbours();
get("/api/state").then((state) => write(by("home"), state.name), () => {});
