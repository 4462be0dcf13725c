// One host of the clocks' table: a row, and below it what there is to say when the row is opened.

import { large, narrower, sparkOffset, sparkWidth, summary } from "./chart.js";
import { el, say } from "./dom.js";
import { sparkTrips, trips } from "./histogram.js";
import { get } from "./server.js";
import { count, least, offset, short, span, within } from "./units.js";

/** The table's columns. */
export const COLUMNS = [
  "Host",
  "Offset",
  "Hard bound",
  "Statistical",
  "Offset over time",
  "Bounds over time",
  "Round trips",
  "Lost",
];

const STATES = {
  ok: "bounded",
  agentless: "no module",
  silent: "silent",
  unauthenticated: "no key",
  simulated: "simulated",
  broken: "contradicts",
  warming: "warming up",
};

/** Whether there is a bound in this state. */
export const isBounded = (host) => host.hard_ns != null;

/** A host's row and its details; `span` says how far back the charts look. */
export class HostRow {
  constructor(name, spanMs) {
    Object.assign(this, { name, spanMs, host: null, details: null, poll: null });
    const id = `host-${(HostRow.made = (HostRow.made ?? 0) + 1)}`;
    this.toggle = el(
      "button",
      { class: "disclose", "aria-expanded": "false", "aria-controls": id, onclick: () => this.open(!this.details) },
      el("span", { title: name }, name),
    );
    this.state = el("span", { class: "state" });
    this.cells = COLUMNS.slice(1).map((label) => el("td", { role: "cell", "data-label": label }));
    [this.offset, this.hard, this.statistical, this.offsets, this.widths, this.trips, this.lost] = this.cells;
    for (const cell of [this.offset, this.hard, this.statistical, this.lost]) cell.className = "number";
    for (const cell of [this.offsets, this.widths, this.trips]) cell.className = "picture";
    this.scale = el("span", { class: "scale" });
    this.median = el("span", { class: "scale" });
    this.row = el(
      "tr",
      { role: "row", class: "host" },
      el("th", { scope: "row", role: "rowheader" }, this.toggle, this.state),
      this.cells,
    );
    this.below = el(
      "tr",
      { role: "row", class: "details", id, hidden: true },
      el("td", { role: "cell", colspan: COLUMNS.length }),
    );
  }

  /** What is known of it now. */
  now(host) {
    this.host = host;
    const bounded = isBounded(host);
    this.row.dataset.state = bounded ? "bounded" : "unbounded";
    say(this.state, host.state === "ok" ? "" : (STATES[host.state] ?? host.state));
    say(this.offset, offset(host.offset_ns, host.hard_ns));
    say(this.hard, within(host.hard_ns));
    const same = host.statistical_ns === host.hard_ns;
    say(this.statistical, bounded ? (same ? "= hard" : within(host.statistical_ns)) : "–");
    this.statistical.classList.toggle("quiet", same);
    const all = host.exchanges + host.lost;
    const share = (100 * host.lost) / Math.max(1, all);
    say(this.lost, !all ? "–" : share === 0 ? "0" : `${share < 9.9 ? share.toPrecision(2) : Math.round(share)}\u202f%`);
    say(this.median, host.rtt_ns ? least(host.rtt_ns.p50) : "");
    if (this.details) this.facts();
  }

  /** How it was: on scales that all rows share. */
  past(track, scale, bins) {
    const [chart, most] = sparkOffset(track);
    const any = track.hard_ns.some((ns) => ns != null);
    say(this.scale, any ? within(most) : "");
    this.offsets.replaceChildren(
      ...(any ? [chart, this.scale] : [el("span", { class: "quiet" }, "nothing to draw yet")]),
    );
    this.widths.replaceChildren(...(any ? [sparkWidth(track, scale)] : []));
    this.trips.replaceChildren(...(track.round_trips.length ? [sparkTrips(track, bins), this.median] : []));
  }

  /** Opens or closes its details. */
  open(wanted) {
    this.toggle.setAttribute("aria-expanded", String(wanted));
    this.below.hidden = !wanted;
    this.row.classList.toggle("open", wanted);
    if (!wanted) {
      this.details = null;
      this.below.firstChild.replaceChildren();
      return;
    }
    this.details = {
      offsets: large("offsets", 190),
      widths: large("widths", 150),
      trips: trips(150),
      why: el("p", { class: "why" }),
      facts: el("dl", { class: "facts" }),
      usual: el("p", { class: "quiet" }),
    };
    const { offsets, widths, trips: histogram, why, facts, usual } = this.details;
    this.below.firstChild.append(
      el(
        "div",
        { class: "host-details" },
        why,
        offsets.figure,
        el("div", { class: "pair" }, widths.figure, histogram.figure),
        usual,
        facts,
      ),
    );
    this.facts();
    this.refresh();
  }

  /** Asks for more points than a row has room for. */
  async refresh() {
    const details = this.details;
    if (!details) return;
    const query = new URLSearchParams({ span_ms: this.spanMs(), points: 360, host: this.name });
    let history;
    try {
      history = await get(`/api/v1/dashboard/history?${query}`);
    } catch (why) {
      // If it is the server that is gone, the page says so already.
      return say(details.usual, `No history: ${why.message}`);
    }
    const [track] = history.hosts;
    if (details !== this.details || !track) return;
    details.offsets.update(history, track);
    details.widths.update(history, track);
    details.trips.update(track);
    const also = narrower(track) ? `; statistical: ${summary(track.statistical_ns)}` : "";
    say(details.usual, `Hard bound: ${summary(track.hard_ns)}${also}.`);
  }

  facts() {
    const { host, details } = this;
    const { assumptions } = host;
    say(details.why, host.why ? `${host.host} ${host.why}.` : "");
    details.why.hidden = !host.why;
    const entries = [
      ["Probed at", host.address],
      ["Timestamps", host.timestamps],
      [
        "Round trip",
        host.rtt_ns &&
          `${least(host.rtt_ns.min)} at least, ${least(host.rtt_ns.p50)} median, ${short(host.rtt_ns.p99)} for 99 %`,
      ],
      ["Bound that sizes V", host.timeline_ns != null && within(host.timeline_ns)],
      ["Drift", host.drift_ppb != null && `${(host.drift_ppb / 1000).toFixed(3)} ppm`],
      ["Exchanges", `${count(host.exchanges, "exchange")}, ${host.lost.toLocaleString()} lost`],
      ["Last heard", host.age_ms != null && `${span(host.age_ms)} ago`],
      [
        "Confidence",
        host.confidence != null && (host.confidence === 1 ? "nothing left to chance" : `${host.confidence}`),
      ],
      ["Asymmetry allowed for", host.asymmetry && `${least(host.asymmetry.ns)} (${host.asymmetry.source})`],
      [
        "Assumed",
        [
          `rate within ${assumptions.rate_ppb / 1000} ppm`,
          assumptions.wander_ppb_per_s == null ? "any wander" : `wander within ${assumptions.wander_ppb_per_s} ppb/s`,
          (assumptions.min_forward || assumptions.min_backward) &&
            `least delays ${short(assumptions.min_forward)} and ${short(assumptions.min_backward)}`,
          assumptions.trust_correction && "correctionFields are true",
          assumptions.authenticated ? "packets are authenticated" : "nobody forges packets",
        ]
          .filter(Boolean)
          .join(", "),
      ],
    ].filter(([, value]) => value);
    const text = entries.flat().join("\n");
    if (details.shown === text) return;
    details.shown = text;
    details.facts.replaceChildren(
      ...entries.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
    );
  }
}
