// Snapshots: taking one, the list, and one of them beside it.

import { el, row, say, table } from "./dom.js";
import { snapshot } from "./snapshot.js";
import { take } from "./take.js";
import { count, date, least, short, span } from "./units.js";

const COLUMNS = ["Snapshot", "Taken", "Verdict", "Margin", "V", "Held at most"];

/** A mark and a word for what is known of a snapshot. */
export function badge({ verdict, state }) {
  const [kind, word] =
    state === "failed"
      ? ["bad", "failed"]
      : verdict === "consistent"
        ? ["good", state === "deleting" ? "being deleted" : "consistent"]
        : verdict === "inconsistent"
          ? ["bad", "inconsistent"]
          : ["waiting", state === "inconsistent" ? "not certified" : "being taken"];
  return el("span", { class: `badge ${kind}` }, word);
}

/** The view. `open(id)` shows one of them; `list(answer)` what there is. */
export function snapshots(changed) {
  const body = table("Snapshots", COLUMNS, [], { class: "snapshots" });
  const empty = el(
    "p",
    { class: "notice", hidden: true },
    "No snapshot yet. ",
    el("code", {}, "coeval snapshot create"),
    " takes one of all volumes, as of one instant.",
  );
  const more = el("p", { class: "quiet" });
  const detail = el("section", { class: "panel detail", "aria-label": "One snapshot", hidden: true });
  const list = el(
    "section",
    { class: "panel list", "aria-labelledby": "snapshots-title" },
    el("h2", { id: "snapshots-title" }, "Snapshots"),
    empty,
    body,
    more,
  );
  const element = el("div", { class: "split" }, list, detail);
  let [operator, current, stated, shown] = [false, null, null, null];

  const mark = () => {
    for (const link of body.querySelectorAll("a")) {
      const is = link.hash === `#/snapshots/${current}`;
      link.toggleAttribute("aria-current", is);
      link.closest("tr").classList.toggle("current", is);
    }
  };
  const show = (answer) => {
    const key = JSON.stringify(answer) + Math.floor(Date.now() / 20000);
    if (key === shown) return;
    shown = key;
    // A new table, but whoever was on one of its links stays there.
    const focused = body.contains(document.activeElement) ? document.activeElement.hash : null;
    // Margins differ by factors of thousands: the bars' lengths are logarithms.
    const margins = answer.snapshots.map((one) => one.margin_ns).filter((ns) => ns > 0);
    const [low, high] = [Math.log(Math.min(...margins) / 3), Math.log(Math.max(...margins))];
    body.tBodies[0].replaceChildren(
      ...answer.snapshots.map((one) => {
        const margin =
          one.margin_ns == null ? "–" : [el("span", { class: "bar", "aria-hidden": "true" }), least(one.margin_ns)];
        const made = row(COLUMNS, [
          el("a", { href: `#/snapshots/${one.id}` }, one.name),
          [
            "quiet",
            el(
              "time",
              { datetime: one.created, title: date(one.created) },
              `${span(Date.now() - Date.parse(one.created))} ago`,
            ),
          ],
          [null, [badge(one), one.mode === "barrier" && el("span", { class: "quiet" }, " barrier")].filter(Boolean)],
          ["number margin", margin],
          ["number", short(one.v_ns)],
          ["number", one.held ? least(one.stretch_max_ns) : one.verdict ? "nothing" : "–"],
        ]);
        const bar = made.querySelector(".bar");
        if (bar)
          bar.style.inlineSize = `${one.margin_ns > 0 ? (56 * (Math.log(one.margin_ns) - low)) / (high - low) : 0}px`;
        return made;
      }),
    );
    if (focused) body.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
    empty.hidden = answer.total > 0;
    body.hidden = answer.total === 0;
    say(
      more,
      answer.total > answer.snapshots.length
        ? `The newest ${answer.snapshots.length} of ${count(answer.total, "snapshot")}; coeval snapshot list shows all`
        : "",
    );
    mark();
    // What is shown beside it may have come further.
    const state = answer.snapshots.find((one) => one.id === current)?.state;
    if (state && stated && state !== stated) snapshot(detail, current, operator);
    stated = state;
  };
  const open = (id) => {
    if (current !== id) {
      [current, stated] = [id, null];
      detail.hidden = !id;
      element.classList.toggle("one", Boolean(id));
      if (id) snapshot(detail, id, operator);
    }
    mark();
  };
  const who = (identity) => {
    if (identity.role !== "operator" || operator) return;
    operator = true;
    element.before(take((manifest) => (location.hash = `#/snapshots/${manifest.id}`), changed));
    if (current) snapshot(detail, current, operator);
  };
  const root = el("div", {}, element);
  return { element: root, list: show, open, who };
}
