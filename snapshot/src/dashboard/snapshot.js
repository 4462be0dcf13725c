// One snapshot: its certificate, the picture of its cut, what each host did, and whether it still is what it was.

import { el, row, say, table } from "./dom.js";
import { get, post } from "./server.js";
import { badge } from "./snapshots.js";
import { timeline } from "./timeline.js";
import { count, date, least, short, within } from "./units.js";

const HOSTS = ["Host", "Bound", "Held", "Stretch: p50, p99, longest", "Released by", "Volumes"];
const CHECKS = ["Volume", "Content"];

/** Shows the snapshot `id` in `root`. */
export async function snapshot(root, id, operator) {
  root.dataset.id = id;
  const back = el("a", { href: "#/snapshots", class: "back" }, "← All snapshots");
  root.replaceChildren(back, el("p", { class: "quiet" }, "Loading …"));
  let one;
  try {
    one = await get(`/api/v1/dashboard/snapshots/${encodeURIComponent(id)}`);
  } catch (why) {
    if (root.dataset.id === id) root.replaceChildren(back, el("p", { class: "why" }, why.message));
    return;
  }
  // Another one may have been asked for meanwhile.
  if (root.dataset.id !== id) return;
  const title = el("h2", { tabindex: "-1" }, one.name);
  root.replaceChildren(
    ...[
      back,
      el("div", { class: "row" }, title, badge(one), operator && one.verdict && verification(one)),
      el(
        "p",
        { class: "quiet" },
        [date(one.created), one.schedule && `schedule ${one.schedule}`, one.id].filter(Boolean).join(" · "),
      ),
      one.why && el("p", { class: "why" }, one.why),
      one.refusal && el("p", { class: "why" }, one.refusal),
      one.verdict && certificate(one),
      one.cut && el("h3", {}, "The cut, on the server's time axis"),
      one.cut && timeline({ ...one.cut, margin_ns: one.margin_ns }),
      one.mode === "barrier" &&
        el(
          "p",
          { class: "quiet" },
          "A barrier's order is that of its messages: every host was released only after all had cut, so there is no time axis.",
        ),
      one.per_host.length > 0 && el("h3", {}, "What each host did"),
      one.per_host.length > 0 && hosts(one.per_host),
      one.story.length > 0 && story(one.story),
    ].filter(Boolean),
  );
  if (matchMedia("(max-width: 1099px)").matches) title.focus();
}

function certificate(one) {
  const confidence =
    one.group_confidence == null ? "hard bound" : `statistical bound, at ${one.group_confidence} for the group`;
  const facts = [
    ["Margin", one.margin_ns == null ? "by messages" : least(one.margin_ns)],
    ["V", one.v_ns == null ? "none" : short(one.v_ns)],
    ["Mode", one.mode ?? "uncoordinated"],
    ["Attempts", String(one.attempts)],
    ["Rests on", confidence],
    one.control_round_trip_ns != null && ["Control round trip", least(one.control_round_trip_ns)],
    [
      "Held",
      one.held
        ? `${count(one.held, "reply").replace("replys", "replies")}, ${least(one.stretch_max_ns)} at most`
        : "no reply had to be held",
    ],
    one.simulated && ["Clocks", "simulated ones are accepted"],
  ].filter(Boolean);
  return el(
    "dl",
    { class: "facts" },
    facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
}

function hosts(list) {
  const longest = Math.max(1, ...list.map((host) => host.stretch_ns.max));
  return table(
    "What each host did",
    HOSTS,
    list.map((host) =>
      row(HOSTS, [
        host.host,
        ["number", within(host.error_ns)],
        ["number", host.held.toLocaleString()],
        [
          "stretches",
          host.held ? stretch(host.stretch_ns, longest) : el("span", { class: "quiet" }, "nothing was held"),
        ],
        host.released_by ?? "–",
        host.volumes.map((volume) => volume.name).join(" "),
      ]),
    ),
    { class: "did" },
  );
}

/** The three quantiles as one bar: dark up to the median, light up to the longest. */
function stretch({ p50, p99, max }, longest) {
  const bar = el(
    "span",
    { class: "stretch", "aria-hidden": "true" },
    ["max", "p99", "p50"].map((name) => el("i", { class: name })),
  );
  [max, p99, p50].forEach((ns, at) => (bar.children[at].style.inlineSize = `${(100 * ns) / longest}%`));
  return [bar, el("span", { class: "number" }, [p50, p99, max].map(least).join(", "))];
}

function story(entries) {
  const items = entries.map(({ after_ns, attempt, step, host, detail }) =>
    el(
      "li",
      {},
      el("span", { class: "number quiet" }, least(after_ns)),
      el("b", {}, `${attempt > 1 ? `${attempt}. ` : ""}${step}`),
      el("span", {}, [host ?? "all", detail].filter(Boolean).join(": ")),
    ),
  );
  return el(
    "details",
    { class: "story" },
    el("summary", {}, `What happened, in ${count(entries.length, "step")}`),
    el("ol", {}, items),
  );
}

/** The button that verifies, and what came of it. */
function verification(one) {
  const result = el("div", { role: "status", class: "verified" });
  const button = el(
    "button",
    {
      onclick: async () => {
        button.disabled = true;
        result.replaceChildren(
          el("p", { class: "said busy" }, "Computing the verdict and every volume's digest again …"),
        );
        try {
          const report = await post(`/api/v1/snapshots/${one.id}/verify`, null);
          const good = report.verdict === "consistent" && report.intact;
          const margin = report.margin_ns == null ? "" : `, margin ${least(report.margin_ns)}`;
          const contents = report.intact ? "every volume reads as it did" : "NOT every volume reads as it did";
          result.replaceChildren(
            el(
              "p",
              { class: `said ${good ? "good" : "bad"}` },
              `Verified: ${report.verdict}${margin}${report.refusal ? ` (${report.refusal})` : ""}; ${contents}.`,
            ),
            table(
              "Digests",
              CHECKS,
              report.volumes.map((volume) => row(CHECKS, [`${volume.host}/${volume.volume}`, content(volume)])),
              { class: "checks" },
            ),
          );
        } catch (why) {
          result.replaceChildren(el("p", { class: "said bad" }, why.message));
        }
        button.disabled = false;
      },
    },
    "Verify",
  );
  return [button, result];
}

function content({ problem, stored, now }) {
  if (problem) return problem;
  if (stored == null) return "its digest was not stored yet";
  return stored === now ? `as it was: ${now.slice(0, 16)}…` : "CHANGED";
}
