// The live picture and the live state: both say by themselves when they have stopped.

import { toLogin } from "./page.js";

const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function find(data, pattern, from) {
  for (let i = from; i <= data.length - pattern.length; i++) {
    let k = 0;
    while (k < pattern.length && data[i + k] === pattern[k]) k++;
    if (k === pattern.length) return i;
  }
  return -1;
}

const HEAD_END = new Uint8Array([13, 10, 13, 10]);

// Cuts Motion JPEG into pictures.
export class Parts {
  #held = new Uint8Array(0);
  #wanted = null; // of the part whose head has been read: its bytes and its fields

  // Takes bytes, gives the pictures that are complete.
  take(bytes) {
    const all = new Uint8Array(this.#held.length + bytes.length);
    all.set(this.#held);
    all.set(bytes, this.#held.length);
    const parts = [];
    let at = 0;
    for (;;) {
      if (this.#wanted === null) {
        const end = find(all, HEAD_END, at);
        if (end < 0) break;
        const head = new TextDecoder("latin1").decode(all.subarray(at, end));
        at = end + 4;
        const field = (name) => head.match(new RegExp(`^${name}: *(.*?)\\r?$`, "im"))?.[1] ?? "";
        const length = Number(field("Content-Length"));
        if (length > 0) this.#wanted = { length, verdict: field("X-Verdict") };
      } else {
        if (all.length - at < this.#wanted.length) break;
        parts.push({
          verdict: this.#wanted.verdict,
          jpeg: all.slice(at, at + this.#wanted.length),
        });
        at += this.#wanted.length;
        this.#wanted = null;
      }
    }
    this.#held = all.slice(at);
    return parts;
  }
}

// Draws the live picture on a canvas. An <img> would show the last picture for ever, and not tell.
export class LivePicture {
  #canvas;
  #abort = null;
  #newest = null;
  #drawing = false;
  shownAt = null; // of performance.now()
  every = 0; // milliseconds between two pictures, about
  trouble = ""; // why there is none, in the station's words

  constructor(canvas) {
    this.#canvas = canvas;
  }

  start() {
    if (this.#abort === null) {
      this.#abort = new AbortController();
      this.#run(this.#abort.signal);
    }
  }

  stop() {
    this.#abort?.abort();
    this.#abort = null;
  }

  restart() {
    this.stop();
    this.start();
  }

  async #run(signal) {
    while (!signal.aborted) {
      try {
        await this.#read(signal);
      } catch {
        // Lost, or refused: tried again below.
      }
      if (!signal.aborted) await wait(1500);
    }
  }

  async #read(signal) {
    const response = await fetch("/stream.mjpg", { signal, cache: "no-store" });
    if (response.status === 401) toLogin();
    if (!response.ok) {
      this.trouble = (await response.json()).error;
      return;
    }
    this.trouble = "";
    const parts = new Parts();
    const reader = response.body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done || signal.aborted) return;
      const pictures = parts.take(value);
      if (pictures.length) {
        this.#newest = pictures.at(-1);
        this.#draw();
      }
    }
  }

  async #draw() {
    if (this.#drawing) return;
    this.#drawing = true;
    try {
      while (this.#newest) {
        const { jpeg, verdict } = this.#newest;
        this.#newest = null;
        const bitmap = await createImageBitmap(new Blob([jpeg], { type: "image/jpeg" }));
        const canvas = this.#canvas;
        if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
          canvas.width = bitmap.width;
          canvas.height = bitmap.height;
        }
        canvas.getContext("2d").drawImage(bitmap, 0, 0);
        bitmap.close();
        canvas.dataset.pictures = Number(canvas.dataset.pictures ?? 0) + 1;
        canvas.setAttribute("aria-label", `Live picture, ${verdict}`);
        const now = performance.now();
        if (this.shownAt !== null) {
          // Half a minute without a camera is no pace.
          const gap = Math.min(now - this.shownAt, 20000);
          this.every = this.every ? 0.8 * this.every + 0.2 * gap : gap;
        }
        this.shownAt = now;
      }
    } catch {
      // A picture that cannot be read is left out; the next one comes.
    } finally {
      this.#drawing = false;
    }
  }
}

// The state of the station, told by it; opens again whatever happens.
export class Live {
  #tell;
  #source = null;
  #again = null;
  toldAt = null; // of performance.now()
  openedAt = null; // the first try
  trouble = ""; // why it is refused, in the station's words

  constructor(tell) {
    this.#tell = tell;
  }

  get on() {
    return this.#source !== null || this.#again !== null;
  }

  start() {
    if (this.#source !== null) return;
    clearTimeout(this.#again);
    this.#again = null;
    this.openedAt ??= performance.now();
    const source = new EventSource("/api/live");
    this.#source = source;
    source.onmessage = (message) => {
      const told = JSON.parse(message.data);
      this.toldAt = performance.now();
      this.trouble = "";
      this.#tell(told);
    };
    source.onerror = () => {
      if (this.#source === source) this.#retry();
    };
  }

  stop() {
    this.#source?.close();
    this.#source = null;
    clearTimeout(this.#again);
    this.#again = null;
  }

  // A browser gives up where the answer was a refusal: look why, and open again.
  async #retry() {
    this.stop();
    this.#again = setTimeout(() => this.start(), 1500);
    const probe = new AbortController();
    try {
      const response = await fetch("/api/live", { cache: "no-store", signal: probe.signal });
      if (response.status === 401) toLogin();
      this.trouble = response.ok ? "" : (await response.json()).error;
    } catch {
      this.trouble = ""; // not there now
    } finally {
      probe.abort();
    }
  }
}
