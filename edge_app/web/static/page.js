// What the pages share: asking the station, saying what it answered, and writing times and numbers.

export const VERDICTS = ["OK", "NG", "UNKNOWN", "EMPTY"];

export const by = (id) => document.getElementById(id);

let leaving = false;

export function toLogin() {
  // Several requests are refused at once; a second call would break off the first.
  if (leaving) return;
  leaving = true;
  const here = location.pathname;
  location.replace(here === "/" ? "/login" : `/login?next=${encodeURIComponent(here)}`);
}

async function answered(response) {
  if (response.status === 401) toLogin();
  let answer = {};
  try {
    answer = await response.json();
  } catch {
    // A proxy in front answers with a page of its own.
  }
  if (!response.ok) throw new Error(answer.error ?? `The station answered ${response.status}.`);
  return answer;
}

export async function get(path) {
  return answered(await fetch(path, { headers: { Accept: "application/json" } }));
}

export async function act(path, body = {}) {
  const headers = { "X-Edge-App": "1", "Content-Type": "application/json" };
  return answered(await fetch(path, { method: "POST", headers, body: JSON.stringify(body) }));
}

// An element with properties and children; texts are never read as HTML.
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "data") Object.assign(element.dataset, value);
    else if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Sets a text only where it changes: selections stay, and nothing is laid out again.
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function show(element, shown) {
  if (element.hidden === shown) element.hidden = !shown;
}

// The beginning of a sentence; names such as edge-app stay as they are.
export const capital = (text) =>
  /^[a-z]+[\s,:]/.test(text) ? text.charAt(0).toUpperCase() + text.slice(1) : text;

export function say(text, bad = false) {
  const said = by("said");
  const sentence = capital(text);
  const close = make("button", { type: "button", className: "plain", ariaLabel: "Close" }, "×");
  const note = make("p", { className: bad ? "note bad" : "note" }, make("span", {}, sentence), close);
  close.onclick = () => note.remove();
  while (said.children.length >= 3) said.firstChild.remove();
  said.append(note);
  // Long enough to be read: a failure stays until it is closed.
  if (!bad) setTimeout(() => note.remove(), 4000 + 60 * sentence.length);
}

// Does something behind a button: once at a time, and says what came of it.
export async function doing(button, path, body) {
  button.disabled = true;
  button.ariaBusy = "true";
  try {
    const answer = await act(path, body);
    if (answer.said) say(answer.said);
    return answer;
  } catch (error) {
    say(error instanceof TypeError ? "The station does not answer." : error.message, true);
    return null;
  } finally {
    button.disabled = false;
    button.ariaBusy = null;
  }
}

export function ask(title, text, yes) {
  const dialog = by("ask");
  write(by("ask-title"), title);
  write(by("ask-text"), text);
  write(by("ask-yes"), yes);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "yes");
  });
}

const STAGE_WORDS = { done: "" };

export function showJob(job) {
  show(by("job"), Boolean(job));
  if (!job) return;
  const stage = job.stage && !(job.stage in STAGE_WORDS) ? `: ${job.stage}` : "";
  write(by("job-text"), `${job.what}${stage}`);
  const bar = by("job-bar");
  if (job.of > 0) {
    bar.max = job.of;
    bar.value = job.done;
  } else {
    bar.removeAttribute("value");
  }
}

export const number = (value, digits = 2) =>
  typeof value === "number" ? value.toFixed(digits) : "–";

export function count(value) {
  return (value ?? 0).toLocaleString("en-GB").replaceAll(",", "\u202f");
}

export function share(value, digits = 1) {
  return typeof value === "number" ? `${(100 * value).toFixed(digits)} %` : "–";
}

export function bytes(value) {
  if (value < 1e6) return `${Math.round(value / 1e3)} kB`;
  if (value < 1e9) return `${(value / 1e6).toFixed(value < 1e7 ? 1 : 0)} MB`;
  return `${(value / 1e9).toFixed(1)} GB`;
}

export function lasting(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

// Rows carry their time as text (ISO 8601) or as seconds since 1970.
export function moment(value) {
  if (value === null || value === undefined) return null;
  const time = new Date(typeof value === "number" ? value * 1000 : value);
  return Number.isNaN(time.getTime()) ? null : time;
}

const two = (value) => String(value).padStart(2, "0");

export function clock(time) {
  return `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
}

export function day(time) {
  return `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())}`;
}

export function when(time, now = new Date()) {
  if (!time) return "";
  return day(time) === day(now) ? clock(time) : `${day(time)} ${clock(time)}`;
}

const TITLES = {
  ng: "NG",
  unknown: "UNKNOWN",
  bundle: "Bundle",
  threshold: "Limit",
  heat: "Heat",
  verify: "Check",
  scoring: "Inspection",
  learn: "Learnt",
  revert: "Taken back",
  mark: "Mark",
  picture: "Picture",
  output: "Output",
  storage: "Storage",
  config: "Settings",
  service: "Service",
};

export const titleOf = (event) => TITLES[event.kind] ?? event.kind;

export const verdictOf = (event) =>
  event.kind === "ng" ? "NG" : event.kind === "unknown" ? "UNKNOWN" : "";
