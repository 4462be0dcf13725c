// The clocks: every host with its offset and bounds over time, and all pairs.

import { decades, legend } from "./chart.js";
import { el, row, say, table } from "./dom.js";
import { bins } from "./histogram.js";
import { COLUMNS, HostRow, isBounded } from "./host.js";
import { matrix } from "./matrix.js";
import { count, offset, within } from "./units.js";

const HOUR = 3600e3;
const SPANS = [
  ["last hour", HOUR],
  ["last 6 hours", 6 * HOUR],
  ["last day", 24 * HOUR],
  ["last 7 days", 7 * 24 * HOUR],
];
/** From so many hosts on there is something to search for. */
const MANY = 8;
/** Up to so many there is room. */
const FEW = 4;
const WORST = 8;
const PAIR = ["Pair", "Apart", "Hard bound"];

/** Those without a bound first, then the widest. */
const byWidth = (a, b) => (b.host.hard_ns ?? Infinity) - (a.host.hard_ns ?? Infinity) || byOrder(a, b);
const byOrder = (a, b) => a.number - b.number;

/** The view. `respan` is called when somebody wants to look further back, `span()` says how far. */
export function clocks(respan) {
  const rows = new Map();
  let [past, drawn] = [null, false];
  const search = el("input", {
    type: "search",
    id: "search",
    placeholder: "Find a host",
    autocomplete: "off",
    oninput: () => filter(),
  });
  const order = el(
    "select",
    { id: "order", "aria-label": "Order of the hosts", onchange: () => sort() },
    el("option", { value: "width" }, "widest first"),
    el("option", { value: "name" }, "as configured"),
  );
  const spans = el(
    "select",
    { id: "span", "aria-label": "How far back", onchange: () => (respan(), rows.forEach((row) => row.refresh())) },
    SPANS.map(([label, ms]) => el("option", { value: ms }, label)),
  );
  const found = el("p", { class: "quiet", role: "status" });
  const hosts = table("Hosts", COLUMNS, [], { class: "hosts" });
  const body = hosts.tBodies[0];
  const pairs = matrix();
  const worst = table("Widest pairs", PAIR, [], { class: "pairs" });
  const more = el("p", { class: "quiet" });
  const pairing = el(
    "section",
    { class: "panel", "aria-labelledby": "pairs-title" },
    el("h2", { id: "pairs-title" }, "Pairs"),
    pairs.element,
    worst,
    more,
  );
  const empty = el(
    "p",
    { class: "notice", hidden: true },
    "The server's configuration lists no hosts; add a ",
    el("code", {}, "[[host]]"),
    " to it.",
  );
  const searching = el("span", { hidden: true }, el("label", { for: "search", class: "sr" }, "Find a host"), search);
  const element = el(
    "div",
    { class: "clocks" },
    el(
      "section",
      { class: "panel wide", "aria-labelledby": "hosts-title" },
      el(
        "div",
        { class: "row" },
        el("h2", { id: "hosts-title" }, "Hosts, against the server"),
        legend(),
        searching,
        order,
        spans,
      ),
      empty,
      hosts,
      found,
    ),
    pairing,
  );

  const sort = () => {
    // Rows move only when somebody asks for it: what jumps cannot be read.
    const sorted = [...rows.values()].sort(order.value === "width" ? byWidth : byOrder);
    body.replaceChildren(...sorted.flatMap((row) => [row.row, row.below]));
  };
  const filter = () => {
    const text = search.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows.values()) {
      const match = row.name.toLowerCase().includes(text);
      row.row.hidden = !match;
      row.below.hidden = !match || !row.details;
      shown += match;
    }
    say(found, text ? `${count(shown, "host")} of ${rows.size}` : "");
  };

  const history = (answer) => {
    past = answer;
    const [scale, shared] = [decades(answer.hosts), bins(answer.hosts)];
    for (const track of answer.hosts) {
      const row = rows.get(track.host);
      row?.past(track, scale, shared);
      row?.refresh();
    }
    if (rows.size && !drawn) {
      drawn = true;
      // After the paint, for whoever measures how long that takes.
      requestAnimationFrame(() => setTimeout(() => performance.mark("drawn")));
    }
  };
  const skew = (report) => {
    const names = report.hosts.map((host) => host.host);
    const fresh = names.join("\n") !== [...rows.keys()].join("\n");
    if (fresh) {
      rows.clear();
      names.forEach((name, number) => rows.set(name, Object.assign(new HostRow(name, () => spans.value), { number })));
      if (names.length <= MANY) order.value = "name";
    }
    report.hosts.forEach((host) => rows.get(host.host).now(host));
    if (fresh) sort();
    // A small fleet leaves room to show what a row has to tell.
    if (fresh && names.length > 0 && names.length <= FEW) [...rows.values()].sort(byWidth)[0].open(true);
    if (fresh && past) history(past);
    searching.hidden = names.length <= MANY;
    element.classList.toggle("few", names.length <= MANY);
    empty.hidden = names.length > 0;
    hosts.hidden = names.length === 0;
    pairing.hidden = names.length < 2;
    pairs.update(report.hosts);
    const widest = report.pairs.filter((pair) => pair.hard_ns != null).slice(0, WORST);
    const cells = (pair) => [
      `${pair.a} – ${pair.b}`,
      ["number", offset(pair.offset_ns, pair.hard_ns)],
      ["number", within(pair.hard_ns)],
    ];
    worst.tBodies[0].replaceChildren(...widest.map((pair) => row(PAIR, cells(pair))));
    worst.hidden = widest.length === 0;
    const bounded = report.hosts.filter(isBounded).length;
    const known = (bounded * (bounded - 1)) / 2;
    say(more, known > widest.length ? `The ${widest.length} widest of ${known.toLocaleString()} pairs` : "");
  };
  return { element, skew, history, span: () => spans.value };
}
