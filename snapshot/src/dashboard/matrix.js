// All pairs of hosts as a heat map. The bound between two hosts is the sum of theirs, so their rows are enough.
//
// A canvas: a hundred hosts have ten thousand cells. The arrow keys or a pointer move over it, and the pair is said in
// words below. The widest pairs stand in a table beside it.

import { atWidth, el, say } from "./dom.js";
import { offset, tick, within } from "./units.js";

/** So many hosts get their names beside the cells, and the numbers inside. */
const FEW = 8;
/** More would be smaller than a pixel. */
const MOST = 200;
const STOPS = 64;

const METRICS = {
  bound: {
    label: "Bound between them",
    value: (a, b) => (a.hard_ns == null || b.hard_ns == null ? null : a.hard_ns + b.hard_ns),
    ramp: ["--heat-0", "--heat-1", "--heat-2"],
  },
  difference: {
    label: "How far apart they are",
    value: (a, b) => (a.offset_ns == null || b.offset_ns == null ? null : Math.abs(a.offset_ns - b.offset_ns)),
    ramp: ["--apart-0", "--apart-1", "--apart-2"],
  },
};

/** The heat map. `update(hosts)` draws the report's rows. */
export function matrix() {
  const canvas = el("canvas", { tabindex: "0", role: "img", class: "matrix" });
  const readout = el("p", { class: "readout", "aria-live": "polite" });
  const scale = el("canvas", { class: "ramp", height: "10", width: "256", "aria-hidden": "true" });
  const [low, high] = [el("span"), el("span")];
  const choice = el(
    "select",
    { id: "metric", onchange: () => redraw() },
    Object.entries(METRICS).map(([value, { label }]) => el("option", { value }, label)),
  );
  const box = el("div", { class: "matrix-box" }, canvas);
  const element = el(
    "div",
    {},
    el(
      "div",
      { class: "row" },
      el("label", { for: "metric", class: "sr" }, "What the cells show"),
      choice,
      el("span", { class: "ramp-box" }, low, scale, high),
    ),
    box,
    readout,
  );
  let [hosts, all, cell, geometry] = [[], 0, null, null];

  const draw = (width) => {
    const n = hosts.length;
    if (n < 2) return;
    const { value, ramp } = METRICS[choice.value];
    const style = getComputedStyle(element);
    const colour = blend(ramp.map((name) => style.getPropertyValue(name)));
    const values = hosts.map((a) => hosts.map((b) => (a === b ? null : value(a, b))));
    const known = values.flat().filter((ns) => ns != null);
    const [least, most] = known.length ? [Math.max(1, Math.min(...known)), Math.max(2, ...known)] : [1, 2];
    // Where all are nearly alike, they look so: the scale covers at least a factor of two.
    const place = (ns) => Math.log(Math.max(least, ns) / least) / Math.log(Math.max(2, most / least));

    const names = n <= FEW;
    const margin = names ? Math.min(110, width * 0.28) : 0;
    const side = Math.min((width - margin) / n, names ? 76 : 22);
    const tall = names ? Math.min(side, 38) : side;
    const ratio = window.devicePixelRatio || 1;
    const [wide, high_] = [margin + side * n, tall * n + (names ? 20 : 0)];
    canvas.width = Math.round(wide * ratio);
    canvas.height = Math.round(high_ * ratio);
    canvas.style.width = `${wide}px`;
    canvas.style.height = `${high_}px`;
    const draws = canvas.getContext("2d");
    draws.scale(ratio, ratio);
    draws.font = `12px ${style.fontFamily}`;
    draws.textBaseline = "middle";
    const gap = side > 6 ? 1 : 0;
    const top = names ? 20 : 0;
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < n; j++) {
        const ns = values[i][j];
        draws.fillStyle =
          i === j
            ? style.getPropertyValue("--panel")
            : ns == null
              ? style.getPropertyValue("--unknown")
              : colour(place(ns));
        draws.fillRect(margin + j * side, top + i * tall, side - gap, tall - gap);
        if (names && ns != null) {
          draws.fillStyle = style.getPropertyValue(place(ns) > 0.55 ? "--on-heat-2" : "--on-heat-0");
          draws.textAlign = "center";
          draws.fillText(
            fitting(draws, tick(rounded(ns)), side - 4),
            margin + (j + 0.5) * side,
            top + (i + 0.5) * tall,
          );
        }
      }
    }
    if (names) {
      draws.fillStyle = style.getPropertyValue("--quiet");
      hosts.forEach(({ host }, i) => {
        draws.textAlign = "right";
        draws.fillText(fitting(draws, host, margin - 8), margin - 6, top + (i + 0.5) * tall);
        draws.textAlign = "center";
        draws.fillText(fitting(draws, host, side - 4), margin + (i + 0.5) * side, 10);
      });
    }
    if (cell) {
      draws.strokeStyle = style.getPropertyValue("--text");
      draws.lineWidth = 1.5;
      draws.strokeRect(margin + cell[1] * side - 0.5, top + cell[0] * tall - 0.5, side, tall);
    }
    say(low, known.length ? tick(rounded(least)) : "");
    say(high, known.length ? tick(rounded(most)) : "");
    const fills = scale.getContext("2d");
    for (let x = 0; x < 256; x++) {
      fills.fillStyle = colour((x / 255) * place(most));
      fills.fillRect(x, 0, 1, 10);
    }
    canvas.setAttribute(
      "aria-label",
      `${METRICS[choice.value].label}: ${n} × ${n} hosts. The arrow keys move over the pairs.`,
    );
    geometry = { margin, side, tall, top };
    say(
      readout,
      cell ? words(hosts[cell[0]], hosts[cell[1]]) : known.length ? hint() : "No two clocks are bounded yet",
    );
  };
  const hint = () =>
    `${all > MOST ? `The ${MOST} widest of ${all} hosts. ` : ""}Point at a pair, or use the arrow keys`;
  const redraw = atWidth(box, draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  const point = (to) => {
    cell = to && to.map((index) => Math.min(hosts.length - 1, Math.max(0, index)));
    redraw();
  };
  canvas.addEventListener("pointermove", (event) => {
    if (!geometry) return;
    const place = canvas.getBoundingClientRect();
    const i = Math.floor((event.clientY - place.top - geometry.top) / geometry.tall);
    const j = Math.floor((event.clientX - place.left - geometry.margin) / geometry.side);
    if (cell?.[0] !== i || cell?.[1] !== j) point(i < 0 || j < 0 ? null : [i, j]);
  });
  canvas.addEventListener("pointerleave", () => point(null));
  canvas.addEventListener("blur", () => point(null));
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    point(cell ? [cell[0] + step[0], cell[1] + step[1]] : [0, 1]);
  });
  const update = (rows) => {
    all = rows.length;
    const widest = () => [...rows].sort((a, b) => (b.hard_ns ?? Infinity) - (a.hard_ns ?? Infinity)).slice(0, MOST);
    hosts = all > MOST ? widest() : rows;
    redraw();
  };
  return { element, update };
}

function words(a, b) {
  if (a === b) return a.host;
  const bound = METRICS.bound.value(a, b);
  if (bound == null)
    return `${a.host} and ${b.host}: no bound, as ${(a.hard_ns == null ? a : b).host} is ${(a.hard_ns == null ? a : b).state}`;
  return `${a.host} less ${b.host}: ${offset(a.offset_ns - b.offset_ns, bound)} ${within(bound)}`;
}

/** Two digits, upwards. */
function rounded(ns) {
  const step = 10 ** Math.max(0, Math.floor(Math.log10(Math.max(1, ns))) - 1);
  return Math.ceil(ns / step) * step;
}

function fitting(draws, text, width) {
  if (draws.measureText(text).width <= width) return text;
  while (text.length > 1 && draws.measureText(text + "…").width > width) text = text.slice(0, -1);
  return text + "…";
}

/** A colour between `#rrggbb` stops, for 0 to 1. */
function blend(stops) {
  const parts = stops.map((stop) => [1, 3, 5].map((at) => parseInt(stop.trim().slice(at, at + 2), 16)));
  const made = Array.from({ length: STOPS + 1 }, (_, step) => {
    const place = (step / STOPS) * (parts.length - 1);
    const from = Math.min(parts.length - 2, Math.floor(place));
    const mix = parts[from].map((part, channel) =>
      Math.round(part + (parts[from + 1][channel] - part) * (place - from)),
    );
    return `rgb(${mix.join(" ")})`;
  });
  return (share) => made[Math.round(Math.min(1, Math.max(0, share)) * STOPS)];
}
