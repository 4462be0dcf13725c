// Offsets and bounds over time: small ones for a table's row, and large ones with axes and a cursor.
//
// A track is what `/api/v1/dashboard/history` says of a host: arrays with a value, or null, for each slot of time.

import { atWidth, el, svg, say } from "./dom.js";
import { clock, date, offset, short, tick, within } from "./units.js";

/** The middle one of the values that are there. */
export function median(values) {
  const known = values.filter((value) => value != null).sort((a, b) => a - b);
  return known.length ? known[known.length >> 1] : null;
}

/** The runs of slots in which `known` holds: a line does not cross a time without a bound. */
function runs(length, known) {
  const found = [];
  for (let slot = 0; slot < length; slot++) {
    if (!known(slot)) continue;
    const last = found.at(-1);
    if (last && last[1] === slot - 1) last[1] = slot;
    else found.push([slot, slot]);
  }
  return found;
}

const at = (value) => Math.round(value * 10) / 10;

/** A line through the values, where they are. A value stands for its whole slot, so a single one is seen too. */
function line(values, x, y) {
  const part = ([from, to]) => {
    let path = `M${at(x(from))} ${at(y(values[from]))}`;
    for (let slot = from; slot <= to; slot++) path += `L${at(x(slot + 0.5))} ${at(y(values[slot]))}`;
    return path + `L${at(x(to + 1))} ${at(y(values[to]))}`;
  };
  return runs(values.length, (slot) => values[slot] != null)
    .map(part)
    .join("");
}

/** The area between two rows of values. */
function band(low, high, x, y) {
  const part = ([from, to]) => {
    const edge = (values, slots) =>
      slots.map((slot) => `${at(x(slot))} ${at(y(values[Math.min(to, Math.max(from, Math.floor(slot)))]))}`);
    const slots = [from, ...Array.from({ length: to - from + 1 }, (_, slot) => from + slot + 0.5), to + 1];
    return "M" + [...edge(high, slots), ...edge(low, slots.reverse())].join("L") + "Z";
  };
  return runs(low.length, (slot) => low[slot] != null && high[slot] != null)
    .map(part)
    .join("");
}

/** Offsets less their median, with the bounds around them, and the largest value that has a place. */
function around(track) {
  const middle = median(track.offset_ns) ?? 0;
  const edge = (halves, sign) =>
    track.offset_ns.map((ns, slot) => (ns == null || halves[slot] == null ? null : ns - middle + sign * halves[slot]));
  const made = {
    middle,
    offset: track.offset_ns.map((ns) => (ns == null ? null : ns - middle)),
    hard: [edge(track.hard_ns, -1), edge(track.hard_ns, 1)],
    statistical: [edge(track.statistical_ns, -1), edge(track.statistical_ns, 1)],
  };
  const edges = made.hard.flat().map((ns) => Math.abs(ns ?? 0));
  // A bound that was wide for a moment would flatten all the rest. It is cut off at the edge, and stands whole in the
  // chart of the half-widths.
  const usual = Math.max(...made.offset.map((ns) => Math.abs(ns ?? 0))) + 3 * (median(track.hard_ns) ?? 0);
  made.most = Math.max(1, Math.min(usual, Math.max(...edges)));
  made.cut = usual < Math.max(...edges);
  return made;
}

/** Whether the statistical bound is ever narrower than the hard one. */
export const narrower = (track) => track.statistical_ns.some((ns, slot) => ns != null && ns < track.hard_ns[slot]);

function small(kind, slots, ...parts) {
  return svg(
    "svg",
    { class: `spark ${kind}`, viewBox: `0 0 ${slots} 100`, preserveAspectRatio: "none", "aria-hidden": "true" },
    parts,
  );
}

/** A row's chart of the offset and its bounds, on a scale of its own. Returns it and the scale. */
export function sparkOffset(track) {
  const { hard, statistical, offset, most } = around(track);
  const y = (ns) => 50 - (46 * ns) / most;
  const x = (slot) => slot;
  const chart = small(
    "offsets",
    track.offset_ns.length,
    svg("path", { class: "zero", d: `M0 50H${track.offset_ns.length}` }),
    svg("path", { class: "hard band", d: band(...hard, x, y) }),
    narrower(track) && svg("path", { class: "statistical band", d: band(...statistical, x, y) }),
    svg("path", { class: "middle", d: line(offset, x, y) }),
  );
  return [chart, most];
}

/** The decades that hold all these half-widths. */
export function decades(tracks) {
  let [low, high] = [Infinity, 0];
  for (const track of tracks) {
    for (const values of [track.hard_ns, track.statistical_ns]) {
      for (const ns of values) if (ns != null) [low, high] = [Math.min(low, ns), Math.max(high, ns)];
    }
  }
  if (!high) return [2, 3];
  const floor = Math.floor(Math.log10(Math.max(1, low)));
  return [floor, Math.max(floor + 1, Math.ceil(Math.log10(high)))];
}

const logarithmic =
  ([low, high], top, bottom) =>
  (ns) =>
    bottom - ((Math.log10(Math.max(1, ns)) - low) / (high - low)) * (bottom - top);

/** A row's chart of the half-widths, on a scale that all rows share. */
export function sparkWidth(track, scale) {
  const y = logarithmic(scale, 4, 96);
  const x = (slot) => slot;
  const slots = track.hard_ns.length;
  const grid = Array.from(
    { length: scale[1] - scale[0] + 1 },
    (_, step) => `M0 ${at(y(10 ** (scale[0] + step)))}H${slots}`,
  );
  const floor = track.hard_ns.map((ns) => (ns == null ? null : 10 ** scale[0]));
  return small(
    "widths",
    slots,
    svg("path", { class: "grid", d: grid.join("") }),
    svg("path", { class: "hard band", d: band(floor, track.hard_ns, x, y) }),
    svg("path", { class: "hard line", d: line(track.hard_ns, x, y) }),
    narrower(track) && svg("path", { class: "statistical line", d: line(track.statistical_ns, x, y) }),
  );
}

const MINUTE = 60e3;
const STEPS = [5, 10, 15, 30, 60, 120, 240, 360, 720, 1440, 2880].map((minutes) => minutes * MINUTE);

/** Instants to be marked on a time axis, with their labels: at most `most` of them, in local time. */
export function times(from, to, most) {
  const step = STEPS.find((step) => (to - from) / step <= most) ?? STEPS.at(-1);
  const zone = new Date(from).getTimezoneOffset() * MINUTE;
  const label = (ms) =>
    step >= 1440 * MINUTE
      ? new Date(ms).toLocaleDateString(undefined, { weekday: "short", day: "numeric" })
      : new Date(ms).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" });
  const marks = [];
  for (let ms = Math.ceil((from - zone) / step) * step + zone; ms <= to; ms += step) marks.push([ms, label(ms)]);
  return marks;
}

/** Round values from −most to most. */
function levels(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  const step = [0.5, 1, 2, 5].map((factor) => factor * power).find((step) => most / step <= 2.5) ?? power * 5;
  const found = [];
  for (let level = -Math.floor(most / step); level * step <= most; level++) found.push(level * step);
  return found;
}

const LEFT = 58;
const TOP = 6;
const BOTTOM = 20;

/**
 * A large chart of one host: `kind` is "offsets" or "widths". `update(history, track)` draws it. The arrow keys or a
 * pointer move a cursor along it, and what it stands at is said in words below.
 */
export function large(kind, height) {
  const picture = svg("svg", { class: `chart ${kind}`, height, tabindex: "0", role: "img" });
  const title = el("figcaption");
  const readout = el("p", { class: "readout", "aria-live": "polite" });
  const figure = el("figure", {}, title, picture, readout);
  let [history, track, cursor, geometry] = [null, null, null, null];

  const draw = (width) => {
    if (!track) return;
    const slots = track.offset_ns.length;
    const x = (slot) => LEFT + ((width - LEFT - 2) * slot) / slots;
    const instant = (ms) => x((ms - history.from_ms) / history.step_ms);
    const [top, bottom] = [TOP, height - BOTTOM];
    const shown = kind === "offsets" ? offsets(track, x, top, bottom) : widths(track, x, top, bottom);
    const end = history.from_ms + slots * history.step_ms;
    const marks = times(history.from_ms, end, Math.max(2, Math.floor(width / 90)));
    const rule = svg("path", { class: "cursor" });
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.replaceChildren(
      svg("path", { class: "grid", d: shown.levels.map(([y]) => `M${LEFT} ${at(y)}H${width - 2}`).join("") }),
      ...marks.map(([ms, label]) => {
        const last = instant(ms) > width - 30;
        return svg(
          "text",
          { x: at(last ? width : instant(ms)), y: height - 5, "text-anchor": last ? "end" : "middle" },
          label,
        );
      }),
      ...shown.levels.map(([y, label]) => svg("text", { x: LEFT - 6, y: at(y) + 4, "text-anchor": "end" }, label)),
      ...shown.parts,
      rule,
    );
    say(title, shown.title);
    picture.setAttribute("aria-label", `${track.host}: ${shown.title}, over time. The arrow keys move a cursor.`);
    geometry = { width, slots, x, top, bottom, rule };
    point(cursor);
  };
  const redraw = atWidth(figure, draw);

  const point = (slot) => {
    if (!geometry) return;
    const { slots, x, top, bottom, rule } = geometry;
    cursor = slot == null ? null : Math.min(slots - 1, Math.max(0, slot));
    rule.setAttribute("d", cursor == null ? "" : `M${at(x(cursor + 0.5))} ${top}V${bottom}`);
    say(readout, cursor == null ? "\u00a0" : words(history, track, cursor));
  };
  picture.addEventListener("pointermove", (event) => {
    if (!geometry) return;
    const place = event.clientX - picture.getBoundingClientRect().left - LEFT;
    point(Math.floor((place / (geometry.width - LEFT - 2)) * geometry.slots));
  });
  picture.addEventListener("pointerleave", () => point(null));
  picture.addEventListener("blur", () => point(null));
  picture.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -1e6, End: 1e6 }[event.key];
    if (!step || !geometry) return;
    event.preventDefault();
    point((cursor ?? geometry.slots) + step);
  });
  return { figure, update: (...shown) => (([history, track] = shown), redraw()) };
}

function words(history, track, slot) {
  const at = history.from_ms + (slot + 0.5) * history.step_ms;
  const when = history.step_ms > 5 * MINUTE ? date(at) : clock(at);
  const [ns, hard, statistical] = [track.offset_ns[slot], track.hard_ns[slot], track.statistical_ns[slot]];
  if (hard == null) return `${when}: no bound`;
  const said = `${when}: ${offset(ns, hard)}, hard ${within(hard)}`;
  return statistical < hard ? `${said}, statistical ${within(statistical)}` : said;
}

function offsets(track, x, top, bottom) {
  const { middle, offset: line_, hard, statistical, most, cut } = around(track);
  const edge = most * 1.08;
  const y = (ns) => (top + bottom) / 2 - (ns / edge) * ((bottom - top) / 2);
  const zero = middle === 0 ? "" : `, less its median ${offset(middle, median(track.hard_ns))}`;
  return {
    title: `Offset with its bounds${zero}${cut ? "; wider moments are cut off" : ""}`,
    levels: levels(edge).map((ns) => [y(ns), ns > 0 ? "+" + tick(ns) : tick(ns)]),
    parts: [
      svg(
        "svg",
        {
          x: LEFT,
          y: top,
          width: x(track.offset_ns.length) - LEFT,
          height: bottom - top,
          viewBox: `${LEFT} ${top} ${x(track.offset_ns.length) - LEFT} ${bottom - top}`,
        },
        svg("path", { class: "hard band", d: band(...hard, x, y) }),
        narrower(track) && svg("path", { class: "statistical band", d: band(...statistical, x, y) }),
        svg("path", { class: "middle", d: line(line_, x, y) }),
      ),
    ],
  };
}

function widths(track, x, top, bottom) {
  const scale = decades([track]);
  const y = logarithmic(scale, top + 4, bottom);
  const marks = Array.from({ length: scale[1] - scale[0] + 1 }, (_, step) => 10 ** (scale[0] + step));
  return {
    title: narrower(track) ? "Half-widths of the hard and the statistical bound" : "Half-width of the hard bound",
    levels: marks.map((ns) => [y(ns), tick(ns)]),
    parts: [
      svg("path", { class: "hard line", d: line(track.hard_ns, x, y) }),
      narrower(track) && svg("path", { class: "statistical line", d: line(track.statistical_ns, x, y) }),
    ].filter(Boolean),
  };
}

/** What the colours mean. */
export const legend = () =>
  el(
    "p",
    { class: "legend", "aria-hidden": "true" },
    el("span", { class: "key hard" }),
    "hard bound ",
    el("span", { class: "key statistical" }),
    "statistical bound ",
    el("span", { class: "key middle" }),
    "offset",
  );

/** A usual and a worst half-width, in words. */
export const summary = (values) => {
  const usual = median(values);
  if (usual == null) return "no bound in this time";
  return `usually ${within(usual)}, at worst ${short(Math.max(...values.map((ns) => ns ?? 0)))}`;
};
