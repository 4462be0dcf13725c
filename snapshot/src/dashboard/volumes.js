// Volumes, the space that their snapshots take, and the schedules.

import { el, row, say, table } from "./dom.js";
import { poll } from "./server.js";
import { date, size, span } from "./units.js";

const COLUMNS = ["Volume", "Size", "Space: live, held by snapshots", "Quota", "Snapshots", "Clients"];
const SCHEDULES = ["Schedule", "When (UTC)", "Keeps", "Next", "Last", "Missed"];
const EVERY = 15000;
/** Hosts that do not answer cost their time limit. */
const LIMIT = 60000;

/** The view. It asks only while it is shown. */
export function volumes() {
  const space = table("Volumes and space", COLUMNS, [], { class: "space" });
  const problems = el("ul", { class: "problems" });
  const empty = el("p", { class: "quiet" }, "Loading …");
  const planned = table("Schedules", SCHEDULES, [], { class: "schedules" });
  const none = el(
    "p",
    { class: "notice" },
    "No schedule yet. ",
    el("code", {}, 'coeval schedule create nightly --cron "0 3 * * *" --keep-daily 7'),
    " makes one.",
  );
  const element = el(
    "div",
    {},
    el(
      "section",
      { class: "panel", "aria-labelledby": "schedules-title" },
      el("h2", { id: "schedules-title" }, "Schedules"),
      none,
      planned,
    ),
    el(
      "section",
      { class: "panel", "aria-labelledby": "space-title" },
      el(
        "div",
        { class: "row" },
        el("h2", { id: "space-title" }, "Volumes and space"),
        el(
          "p",
          { class: "legend", "aria-hidden": "true" },
          el("span", { class: "key live" }),
          "live ",
          el("span", { class: "key held" }),
          "held by snapshots only ",
          el("span", { class: "key quota" }),
          "quota",
        ),
      ),
      empty,
      problems,
      space,
    ),
  );
  let [known, usage, polls] = [null, {}, []];

  const draw = () => {
    if (!known) return;
    const all = known.flatMap(({ host, volumes }) =>
      volumes.map((volume) => ({ host, ...volume, usage: usage[host]?.[volume.name] })),
    );
    const most = Math.max(
      1,
      ...all.map(({ usage }) =>
        usage ? Math.max(usage.live + usage.held, usage.live + (usage.quota?.bytes ?? 0)) : 0,
      ),
    );
    say(
      empty,
      all.length ? "" : known.length ? "No host has a volume; coeval volume create makes one." : "There are no hosts.",
    );
    empty.hidden = all.length > 0;
    space.hidden = all.length === 0;
    space.tBodies[0].replaceChildren(
      ...all.map((volume) =>
        row(COLUMNS, [
          `${volume.host}/${volume.name}`,
          ["number", size(volume.size)],
          ["use", volume.usage ? bar(volume.usage, most) : "–"],
          [`number ${volume.usage?.level ?? ""}`, quota(volume.usage)],
          ["number", String(volume.snapshots.length)],
          ["number", String(volume.clients)],
        ]),
      ),
    );
    const ill = known
      .flatMap(({ host, problem, unserved, importing }) => [
        problem && `${host} does not answer: ${problem}`,
        ...Object.entries(unserved).map(([name, why]) => `${host}/${name} cannot be served: ${why}`),
        ...Object.entries(importing ?? {}).map(([name, percent]) => `${host}/${name} is being imported: ${percent} %`),
      ])
      .filter(Boolean);
    problems.replaceChildren(...ill.map((text) => el("li", {}, text)));
  };

  const schedules = (list) => {
    none.hidden = list.length > 0;
    planned.hidden = list.length === 0;
    planned.tBodies[0].replaceChildren(
      ...list.map((one) =>
        row(SCHEDULES, [
          one.name,
          el("code", {}, one.cron),
          keeps(one.keep),
          one.next
            ? el("time", { datetime: one.next, title: date(one.next) }, `in ${span(Date.parse(one.next) - Date.now())}`)
            : "never",
          [
            one.last?.problem ? "bad" : null,
            one.last ? (one.last.problem ? `${one.last.snapshot}: ${one.last.problem}` : one.last.snapshot) : "not yet",
          ],
          [`number ${one.missed ? "bad" : ""}`, String(one.missed)],
        ]),
      ),
    );
  };

  const shown = (is) => {
    polls.forEach((one) => one.stop());
    polls = !is
      ? []
      : [
          poll(
            () => "/api/v1/volumes",
            EVERY,
            (answer) => ((known = answer), draw()),
            (why) => say(empty, why),
            LIMIT,
          ),
          poll(
            () => "/api/v1/usage",
            EVERY,
            (answer) => ((usage = answer), draw()),
            (why) => say(empty, why),
            LIMIT,
          ),
        ];
  };
  return { element, schedules, shown };
}

function bar({ live, held, quota, merging }, most) {
  const bar = el(
    "span",
    { class: "spaces", "aria-hidden": "true" },
    ["live", "held", "quota"].map((name) => el("i", { class: name })),
  );
  const part = (bytes) => `${(100 * bytes) / most}%`;
  bar.children[0].style.inlineSize = part(live);
  bar.children[1].style.inlineSize = part(held);
  bar.children[2].hidden = !quota;
  if (quota) bar.children[2].style.insetInlineStart = part(live + quota.bytes);
  return [
    bar,
    el("span", { class: "number" }, `${size(live)}, ${size(held)}`),
    merging != null && el("span", { class: "quiet" }, ` merging ${merging} %`),
  ];
}

function quota(usage) {
  if (!usage?.quota) return "none";
  return `${Math.round((100 * usage.held) / Math.max(1, usage.quota.bytes))} % of ${size(usage.quota.bytes)}`;
}

function keeps(keep) {
  const rules = Object.entries(keep).filter(([, n]) => n != null && n !== 0);
  return rules.map(([rule, n]) => `${n} ${rule}`).join(", ") || "everything";
}
