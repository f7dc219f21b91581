// Two small charts on canvases, drawn in the page's own colours.

// Scores up to so many times the limit are shown; higher ones are cut off with a mark.
const TOP = 2;
// Bars at most: as many as the station tells.
const MOST = 300;
// The first bars are no wider than this, pixels.
const WIDEST = 9;

function prepare(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  const ratio = window.devicePixelRatio || 1;
  if (!width || !height) return null;
  const w = Math.round(width * ratio);
  const h = Math.round(height * ratio);
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return {
    OK: of("--ok-bar"),
    NG: of("--ng-bar"),
    UNKNOWN: of("--unknown"),
    EMPTY: of("--empty-bar"),
    text: of("--text"),
    soft: of("--soft"),
    line: of("--line"),
    font: getComputedStyle(document.body).fontFamily,
  };
}

// rows: [n, score or null, verdict, threshold], the oldest first. proposed: a limit that is being
// thought about, or null.
export function drawScores(canvas, rows, threshold, proposed) {
  const surface = prepare(canvas);
  if (!surface) return;
  const { pen, width, height } = surface;
  const colour = colours();
  const right = 78;
  const plot = width - right;
  const shown = rows.slice(plot >= 560 ? -MOST : -MOST / 2);
  const step = Math.min(plot / Math.max(shown.length, 1), WIDEST);
  const limit = threshold > 0 ? threshold : 1;
  const top = TOP * Math.max(limit, proposed ?? 0);
  const y = (score) => height - Math.min(Math.max(score / top, 0), 1) * height;
  pen.strokeStyle = colour.line;
  pen.lineWidth = 1;
  pen.beginPath();
  pen.moveTo(0, height - 0.5);
  pen.lineTo(plot, height - 0.5);
  pen.stroke();
  const bar = Math.max(step - (step > 3 ? 1 : 0), 1);
  shown.forEach(([, score, verdict], i) => {
    const x = plot - (shown.length - i) * step;
    pen.fillStyle = colour[verdict] ?? colour.EMPTY;
    if (typeof score === "number") {
      const above = y(score);
      pen.fillRect(x, above, bar, height - above);
      if (score > top) {
        pen.fillStyle = colour.text;
        pen.fillRect(x, 0, bar, 3);
      }
    } else if (verdict === "UNKNOWN") {
      pen.fillRect(x, height - 14, bar, 14);
    } else {
      pen.fillRect(x, height - 3, bar, 3);
    }
  });
  pen.font = `600 13px ${colour.font}`;
  pen.textBaseline = "middle";
  const rule = (value, text, dash, ink, label) => {
    const at = Math.round(y(value)) + 0.5;
    pen.strokeStyle = pen.fillStyle = ink;
    pen.lineWidth = 2;
    pen.setLineDash(dash);
    pen.beginPath();
    pen.moveTo(0, at);
    pen.lineTo(plot, at);
    pen.stroke();
    pen.setLineDash([]);
    pen.fillText(text, plot + 6, Math.min(Math.max(label, 8), height - 8));
  };
  if (threshold !== null && threshold !== undefined) {
    const at = y(threshold);
    rule(threshold, `limit ${threshold.toFixed(2)}`, [10, 5], colour.text, at);
    if (proposed !== null) {
      // The two names must not lie on each other.
      const label = proposed > threshold ? Math.min(y(proposed), at - 16) : Math.max(y(proposed), at + 16);
      rule(proposed, `new ${proposed.toFixed(2)}`, [3, 4], colour.soft, label);
    }
  }
}

// hours: [{OK, NG, UNKNOWN}], the oldest first; labels: of the first, middle and last.
export function drawHours(canvas, hours, labels) {
  const surface = prepare(canvas);
  if (!surface) return;
  const { pen, width, height } = surface;
  const colour = colours();
  const low = height - 20;
  const most = Math.max(1, ...hours.map((hour) => hour.OK + hour.NG + hour.UNKNOWN));
  const step = width / hours.length;
  hours.forEach((hour, i) => {
    let at = low;
    for (const verdict of ["OK", "UNKNOWN", "NG"]) {
      const share = hour[verdict] / most;
      // One among thousands is still to be seen.
      const high = hour[verdict] ? Math.max(share * (low - 4), 2) : 0;
      pen.fillStyle = colour[verdict];
      pen.fillRect(i * step + 1, at - high, Math.max(step - 2, 1), high);
      at -= high;
    }
  });
  pen.strokeStyle = colour.line;
  pen.lineWidth = 1;
  pen.beginPath();
  pen.moveTo(0, low + 0.5);
  pen.lineTo(width, low + 0.5);
  pen.stroke();
  pen.fillStyle = colour.soft;
  pen.font = `12px ${colour.font}`;
  pen.textBaseline = "bottom";
  labels.forEach((label, i) => {
    pen.textAlign = ["left", "center", "right"][i];
    pen.fillText(label, [0, width / 2, width][i], height);
  });
}
