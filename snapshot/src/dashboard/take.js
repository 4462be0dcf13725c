// Taking a snapshot: what, how, and how far it is.

import { el, say } from "./dom.js";
import { get, post, postForEvents } from "./server.js";
import { count, least, short } from "./units.js";

const STEPS = {
  timed: ["describe", "prepare", "measure", "plan", "arm", "seal", "certify", "commit"],
  barrier: ["describe", "prepare", "arm", "strike", "release", "seal", "certify", "commit"],
};

/** The form. `taken(manifest)` is called with a new snapshot, `changed()` whenever the list may have changed. */
export function take(taken, changed) {
  const name = el("input", {
    id: "name",
    name: "name",
    placeholder: "a name, or none",
    maxlength: "64",
    pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]*",
    title: "Letters, digits, “-”, “_” and “.”, the first a letter or digit",
    autocomplete: "off",
    spellcheck: "false",
  });
  const mode = el(
    "select",
    { id: "mode", name: "mode" },
    [
      ["auto", "auto"],
      ["timed", "timed"],
      ["barrier", "barrier"],
    ].map(([value, label]) => el("option", { value }, label)),
  );
  const chosen = el(
    "fieldset",
    { class: "volumes" },
    el("legend", { class: "sr" }, "Volumes"),
    el("p", { class: "quiet" }, "Loading …"),
  );
  const choose = el(
    "details",
    { ontoggle: () => choose.open && offer() },
    el("summary", {}, "All volumes of all hosts"),
    chosen,
  );
  const go = el("button", { type: "submit", class: "primary" }, "Take a snapshot");
  const try_ = el("button", { type: "button", onclick: () => rehearse() }, "What would it be like?");
  const steps = el("ol", { class: "steps", "aria-hidden": "true" });
  const said = el("p", { role: "status", class: "said" });
  const form = el(
    "form",
    { onsubmit: (event) => (event.preventDefault(), create()) },
    el("div", { class: "row" }, el("label", {}, "Name ", name), el("label", {}, "Mode ", mode), go, try_),
    choose,
  );
  const element = el(
    "section",
    { class: "panel take", "aria-labelledby": "take-title" },
    el("h2", { id: "take-title", class: "sr" }, "Take a snapshot"),
    form,
    steps,
    said,
  );

  const boxes = () => [...chosen.querySelectorAll("input")];
  const tell = () => {
    const [all, some] = [boxes(), boxes().filter((box) => box.checked)];
    say(
      choose.querySelector("summary"),
      all.length === some.length ? "All volumes of all hosts" : `${count(some.length, "volume")} of ${all.length}`,
    );
  };
  const offer = async () => {
    if (boxes().length) return;
    try {
      const hosts = await get("/api/v1/volumes", 30000);
      const members = hosts.flatMap(({ host, volumes }) => volumes.map((volume) => ({ host, volume: volume.name })));
      const box = (member) =>
        Object.assign(el("input", { type: "checkbox", checked: true, onchange: tell }), { member });
      chosen.replaceChildren(
        chosen.firstChild,
        ...members.map((member) => el("label", {}, box(member), ` ${member.host}/${member.volume}`)),
      );
      if (!members.length)
        chosen.append(el("p", { class: "quiet" }, "No host has a volume: coeval volume create makes one."));
    } catch (why) {
      chosen.replaceChildren(chosen.firstChild, el("p", { class: "why" }, why.message));
    }
  };
  const request = () => {
    const [all, some] = [boxes(), boxes().filter((box) => box.checked)];
    if (all.length && !some.length) throw new Error("Choose at least one volume");
    return {
      name: name.value.trim() || null,
      mode: mode.value,
      group: all.length === some.length ? [] : some.map((box) => box.member),
    };
  };
  const busy = (is) => [go, try_].forEach((button) => (button.disabled = is));
  const tellBad = (why) => {
    said.className = "said bad";
    said.replaceChildren(why.message);
  };
  const begin = (text) => {
    busy(true);
    said.className = "said";
    steps.replaceChildren();
    say(said, text);
  };

  const rehearse = async () => {
    try {
      begin("Measuring and planning, without a cut …");
      const {
        mode: how,
        v_ns,
        margin_ns,
        stretch_ns,
        control_round_trip_ns,
        hosts,
        why_not_timed,
      } = await post("/api/v1/rehearsals", request());
      const bound =
        v_ns == null
          ? ""
          : ` V would be ${short(v_ns)}${margin_ns == null ? "" : `, the margin about ${least(margin_ns)}`}.`;
      say(
        said,
        `It would be a ${how} cut of ${count(hosts.length, "host")}: a reply may be held for ${short(stretch_ns)}.${bound}` +
          ` The slowest host answers orders in ${short(control_round_trip_ns)}.${why_not_timed ? ` Not by clocks: ${why_not_timed}.` : ""}`,
      );
    } catch (why) {
      tellBad(why);
    } finally {
      busy(false);
    }
  };

  let [attempt, shown] = [0, null];
  const progress = ({ attempt: at, detail }) => {
    // What goes on before the first attempt, or after the last one.
    if (!at) return void say(said, detail);
    const { number, mode: how, step } = at;
    const order = STEPS[how];
    if (number !== attempt || how !== shown) {
      [attempt, shown] = [number, how];
      steps.replaceChildren(...order.map((step) => el("li", {}, step)));
    }
    const place = order.indexOf(step);
    [...steps.children].forEach(
      (item, at) => (item.className = place < 0 ? "undone" : at < place ? "done" : at === place ? "current" : ""),
    );
    say(said, `${number > 1 ? `Attempt ${number}, ` : ""}${step}: ${detail}`);
  };

  const create = async () => {
    let [manifest, problem] = [null, null];
    try {
      const order = request();
      begin("Asking the hosts …");
      [attempt, shown] = [0, null];
      await postForEvents("/api/v1/snapshots", order, (event) => {
        if (event.progress) progress(event.progress);
        manifest = event.result ?? manifest;
        problem = event.problem ?? problem;
      });
      if (problem) throw new Error(problem.detail);
      if (!manifest) throw new Error("The server did not say how it ended; the list shows what became of it.");
      [...steps.children].forEach((item) => (item.className = "done"));
      said.className = "said good";
      const margin = manifest.margin_ns == null ? "" : `, margin ${least(manifest.margin_ns)}`;
      said.replaceChildren(`${manifest.name} is ${manifest.verdict}${margin}.`);
      name.value = "";
      taken(manifest);
    } catch (why) {
      [...steps.querySelectorAll(".current")].forEach((item) => (item.className = "undone"));
      tellBad(why);
    } finally {
      busy(false);
      changed();
    }
  };
  return element;
}
