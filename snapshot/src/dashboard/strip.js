// At a glance: how far any two clocks can be apart, how many are bounded, the last snapshot, the next one.

import { el, say, svg } from "./dom.js";
import { isBounded } from "./host.js";
import { count, date, least, short, span, within } from "./units.js";

const LAST = 40;

function tile(label) {
  const parts = {
    figure: el("p", { class: "figure" }, "–"),
    detail: el("p", { class: "quiet" }),
    picture: el("div", { class: "mini" }),
  };
  parts.element = el("div", { class: "tile" }, el("h2", {}, label), parts.figure, parts.picture, parts.detail);
  return parts;
}

/** Fills the strip; each function takes what the server said. */
export function strip(root) {
  const [pair, hosts, last, next] = ["Any two clocks agree", "Clocks bounded", "Last snapshot", "Next snapshot"].map(
    tile,
  );
  root.replaceChildren(pair.element, hosts.element, last.element, next.element);
  let schedules = [];

  const skew = (report) => {
    const bounded = report.hosts.filter(isBounded);
    const worst = report.pairs.find((pair) => pair.hard_ns != null);
    say(pair.figure, worst ? within(worst.hard_ns) : bounded.length === 1 ? within(bounded[0].hard_ns) : "unknown");
    say(
      pair.detail,
      worst
        ? `${worst.a} – ${worst.b}, hard bound`
        : bounded.length === 1
          ? `${bounded[0].host} and the server`
          : "no two clocks are bounded",
    );
    const silent = report.hosts.length - bounded.length;
    say(hosts.figure, `${bounded.length} of ${report.hosts.length}`);
    hosts.element.classList.toggle("bad", silent > 0);
    const first = report.hosts.find((host) => !isBounded(host));
    say(
      hosts.detail,
      silent === 0
        ? ""
        : silent === 1
          ? `${first.host} is ${first.state}`
          : `${first.host} and ${silent - 1} more are not`,
    );
    const side = report.hosts.length > 40 ? 7 : 10;
    const columns = Math.ceil(report.hosts.length / Math.max(1, Math.ceil(report.hosts.length / 25)));
    const cells = report.hosts.map((host, at) =>
      svg(
        "rect",
        {
          class: isBounded(host) ? "good" : "bad",
          x: (at % columns) * side,
          y: Math.floor(at / columns) * side,
          width: side - 1.5,
          height: side - 1.5,
          rx: 1,
        },
        svg("title", {}, `${host.host}: ${host.state}`),
      ),
    );
    const rows = Math.ceil(report.hosts.length / columns) || 1;
    hosts.picture.replaceChildren(
      svg("svg", { width: columns * side, height: rows * side, "aria-hidden": "true" }, cells),
    );
  };

  /** The widest pair over time: the two widest hosts' bounds together. */
  const history = ({ hosts: tracks }) => {
    const slots = tracks[0]?.hard_ns.length ?? 0;
    const widest = Array.from({ length: slots }, (_, slot) => {
      const known = tracks
        .map((track) => track.hard_ns[slot])
        .filter((ns) => ns != null)
        .sort((a, b) => b - a);
      return known.length < Math.min(2, tracks.length) ? null : known[0] + (known[1] ?? 0);
    });
    const known = widest.filter((ns) => ns != null);
    if (!known.length) return pair.picture.replaceChildren();
    const [low, high] = [Math.log(Math.min(...known)), Math.log(Math.max(...known))];
    const y = (ns) => (27 - 24 * ((Math.log(ns) - low) / Math.max(0.7, high - low))).toFixed(1);
    const path = widest
      .map((ns, slot) => (ns == null ? "" : `${widest[slot - 1] == null ? "M" : "L"}${slot} ${y(ns)}h1`))
      .join("");
    pair.picture.replaceChildren(
      svg(
        "svg",
        { class: "spark", viewBox: `0 0 ${slots} 30`, preserveAspectRatio: "none", "aria-hidden": "true" },
        svg("path", { class: "hard line", d: path }),
      ),
    );
    pair.picture.title = `At worst ${short(Math.max(...known))} in this time`;
  };

  const snapshots = ({ snapshots, total }) => {
    const done = snapshots.filter((one) => one.verdict);
    const newest = snapshots[0];
    const shown = done.find((one) => one.verdict === "consistent");
    say(last.figure, shown ? `${span(Date.now() - Date.parse(shown.created))} ago` : "none yet");
    last.figure.title = shown ? date(shown.created) : "";
    last.element.classList.toggle("bad", newest?.state === "failed");
    const margin = shown?.margin_ns != null ? `, margin ${least(shown.margin_ns)}` : "";
    say(
      last.detail,
      newest?.state === "failed"
        ? `${newest.name} failed`
        : shown
          ? `${shown.name}: consistent${margin}`
          : total
            ? "none is certified"
            : "",
    );
    const recent = snapshots.slice(0, LAST).reverse();
    const bars = recent.map((one, at) => {
      const kind = one.verdict === "consistent" ? "good" : one.state === "failed" || one.verdict ? "bad" : "waiting";
      return svg(
        "rect",
        { class: kind, x: at * 6, y: kind === "bad" ? 14 : 4, width: 4, height: kind === "bad" ? 8 : 18, rx: 1 },
        svg("title", {}, `${one.name}: ${one.verdict ?? one.state}`),
      );
    });
    last.picture.replaceChildren(svg("svg", { width: recent.length * 6, height: 24, "aria-hidden": "true" }, bars));
    tell();
  };

  const tell = () => {
    const soon = schedules.filter((one) => one.next).sort((a, b) => Date.parse(a.next) - Date.parse(b.next))[0];
    const ill = schedules.filter((one) => one.missed || one.last?.problem);
    say(next.figure, soon ? `in ${span(Date.parse(soon.next) - Date.now())}` : "none");
    next.figure.title = soon ? date(soon.next) : "";
    next.element.classList.toggle("bad", ill.length > 0);
    say(
      next.detail,
      ill.length
        ? `${ill[0].name}: ${ill[0].last?.problem ?? `${ill[0].missed} missed`}`
        : soon
          ? `${soon.name}, of ${count(schedules.length, "schedule")}`
          : "there is no schedule",
    );
  };
  return { skew, history, snapshots, schedules: (list) => ((schedules = list), tell()) };
}
