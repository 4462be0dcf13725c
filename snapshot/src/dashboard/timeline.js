// One timed cut as a picture on the server's time axis, as certified: what every host's clock read, placed as late (P)
// or as early (Q) as it can have been. All times are in ns after T.

import { atWidth, el, svg } from "./dom.js";
import { least, short, tick } from "./units.js";

const AXIS = 34;

/** The picture of a cut: `hosts` have `host`, `p_ns` and `q_ns`; `v_ns` is the stretch; `margin_ns` what is certified. */
export function timeline({ hosts, v_ns, margin_ns }) {
  const [lastP, firstQ] = [Math.max(...hosts.map((host) => host.p_ns)), Math.min(...hosts.map((host) => host.q_ns))];
  const lastQ = Math.max(v_ns, ...hosts.map((host) => host.q_ns));
  // A host that saw no write for long has an early P. What counts is the last one: the picture begins near it, so that
  // the margin fills most of it.
  const first = Math.min(0, lastP);
  const span = Math.max(1, lastQ - first);
  const [from, to] = [first - span / 5, lastQ + span / 6];
  const tall = hosts.length > 40 ? 13 : hosts.length > 12 ? 17 : 26;
  const height = AXIS + hosts.length * tall + 40;
  const picture = svg("svg", {
    class: "timeline",
    height,
    role: "img",
    "aria-label": words(hosts, v_ns, lastP, firstQ),
  });
  const box = el("div", {}, picture);

  const draw = (width) => {
    const longest = Math.max(...hosts.map(({ host }) => host.length));
    const left = Math.min(width * 0.3, 12 + longest * (tall > 20 ? 7.2 : 6.2));
    const x = (ns) => left + ((width - left - 8) * (Math.max(from, Math.min(to, ns)) - from)) / (to - from);
    const bottom = AXIS + hosts.length * tall;
    const parts = [];
    if (firstQ > lastP) {
      parts.push(
        svg("rect", {
          class: "margin",
          x: x(lastP),
          width: x(firstQ) - x(lastP),
          y: AXIS - 4,
          height: bottom - AXIS + 8,
        }),
      );
    }
    hosts.forEach(({ host, p_ns, q_ns }, row) => {
      const y = AXIS + (row + 0.5) * tall;
      const thick = Math.max(4, tall * 0.36);
      const early = p_ns < from;
      const name = host.length * 6 > left - 10 ? host.slice(0, Math.floor((left - 16) / 6)) + "…" : host;
      parts.push(
        svg(
          "text",
          { x: left - 8, y: y + 4, "text-anchor": "end", class: tall < 15 ? "tiny" : null },
          svg("title", {}, host),
          name,
        ),
        svg("path", { class: "after", d: `M${x(q_ns)} ${y}H${width - 4}` }),
        svg("rect", { class: "before", x: left, width: Math.max(0, x(p_ns) - left), y: y - thick / 2, height: thick }),
        svg("rect", {
          class: "held",
          x: x(p_ns),
          width: Math.max(1, x(q_ns) - x(p_ns)),
          y: y - thick / 2,
          height: thick,
        }),
        svg(
          "path",
          {
            class: "p",
            d: early ? `M${left + 5} ${y - 4}l-5 4l5 4Z` : `M${x(p_ns)} ${y - thick / 2 - 2}v${thick + 4}`,
          },
          svg("title", {}, `${host}: P ${after(p_ns)}`),
        ),
        svg(
          "path",
          { class: "q", d: `M${x(q_ns)} ${y - thick / 2 - 2}v${thick + 4}` },
          svg("title", {}, `${host}: Q ${after(q_ns)}`),
        ),
      );
    });
    const [atT, atEnd] = [x(0), x(v_ns)];
    parts.push(
      svg("path", { class: "instant", d: `M${atT} ${AXIS - 8}V${bottom + 6}M${atEnd} ${AXIS - 8}V${bottom + 6}` }),
    );
    const end = `T + V (${short(v_ns)})`;
    if (atEnd - atT < 30)
      parts.push(svg("text", { x: atT, y: 16, "text-anchor": atT > width * 0.6 ? "end" : "start" }, `T, ${end}`));
    else {
      parts.push(
        svg("text", { x: atT, y: 16, "text-anchor": "middle" }, "T"),
        svg("text", { x: Math.min(atEnd, width - 4), y: 16, "text-anchor": atEnd > atT + 120 ? "end" : "start" }, end),
      );
    }
    parts.unshift(...axis(x, from, to, bottom, width, left, [atT, atEnd]));
    if (firstQ > lastP) {
      const [a, b, y] = [x(lastP), x(firstQ), bottom + 12];
      const middle = Math.max(left + 60, Math.min(width - 70, (a + b) / 2));
      parts.push(
        svg("path", { class: "bracket", d: `M${a} ${y - 4}v8M${a} ${y}H${b}M${b} ${y - 4}v8` }),
        svg(
          "text",
          { class: "strong", x: middle, y: y + 20, "text-anchor": "middle" },
          `margin ${least(margin_ns ?? firstQ - lastP)}`,
        ),
      );
    }
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.replaceChildren(...parts);
  };
  atWidth(box, draw);
  return el(
    "figure",
    { class: "cut" },
    box,
    el(
      "figcaption",
      { class: "legend" },
      el("span", { class: "key before" }),
      "writes up to P are in the snapshot ",
      el("span", { class: "key held" }),
      "replies to later ones are held until Q ",
      el("span", { class: "key margin" }),
      "margin: every Q comes after every P",
    ),
  );
}

/** Times after T. T and T + V have their own labels: none stands in their way. */
function axis(x, from, to, bottom, width, left, taken) {
  const raw = (to - from) / Math.max(3, (width - left) / 110);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= raw);
  const parts = [];
  for (let ns = Math.ceil(from / step) * step; ns <= to; ns += step) {
    const place = x(ns);
    parts.push(svg("path", { class: "grid", d: `M${place} ${AXIS - 4}V${bottom + 2}` }));
    if (place > left + 16 && place < width - 18 && taken.every((other) => Math.abs(other - place) > 24)) {
      parts.push(
        svg("text", { class: "tiny", x: place, y: 29, "text-anchor": "middle" }, (ns > 0 ? "+" : "") + tick(ns)),
      );
    }
  }
  return parts;
}

const after = (ns) => `${least(Math.abs(ns))} ${ns < 0 ? "before" : "after"} T`;

function words(hosts, v, lastP, firstQ) {
  const late = hosts.find((host) => host.p_ns === lastP).host;
  const early = hosts.find((host) => host.q_ns === firstQ).host;
  return (
    `One cut on the server's time axis, V ${short(v)}. The last write before the cut was on ${late}, at the latest ${after(lastP)}. ` +
    `The first reply to a later write left ${early} at the earliest ${after(firstQ)}.`
  );
}
