// The page: which view is shown, what is asked of the server and how often, and whether it still answers.

import { clocks } from "./clocks.js";
import { say } from "./dom.js";
import { poll, watch } from "./server.js";
import { snapshots } from "./snapshots.js";
import { strip } from "./strip.js";
import { clock } from "./units.js";
import { volumes } from "./volumes.js";

const $ = (id) => document.getElementById(id);

/** So many points are as many as a table's row can show. */
const POINTS = 90;

const glance = strip($("strip"));
const views = {
  clocks: clocks(() => histories.now()),
  snapshots: snapshots(() => listed.now()),
  volumes: volumes(),
};

/** What the server refused last, by path; each a sentence. */
const refusals = new Map();

/** Asks for `path()` again and again, and says if it is refused. */
function follow(path, every, ...applies) {
  const key = path().split("?")[0];
  const apply = (answer) => {
    refusals.delete(key);
    applies.forEach((apply) => apply(answer));
    tell();
  };
  const refused = (why) => {
    refusals.set(key, why);
    tell();
  };
  return poll(path, every, apply, refused);
}

let link = { gone: null, heard: null };
follow(() => "/api/v1/skew", 2000, glance.skew, views.clocks.skew);
const histories = follow(
  () => `/api/v1/dashboard/history?span_ms=${views.clocks.span()}&points=${POINTS}`,
  10000,
  glance.history,
  views.clocks.history,
);
const listed = follow(() => "/api/v1/dashboard/snapshots", 3000, glance.snapshots, views.snapshots.list);
follow(() => "/api/v1/schedules", 15000, glance.schedules, views.volumes.schedules);
follow(() => "/api/v1/me", 60000, who, views.snapshots.who);

function who(me) {
  say($("who"), me.name ? `${me.role} ${me.name}` : me.role);
}

function route() {
  const [, name, id] = location.hash.split("/");
  const current = Object.hasOwn(views, name) ? name : "clocks";
  const { element } = views[current];
  if ($("view").firstChild !== element) $("view").replaceChildren(element);
  views.snapshots.open(current === "snapshots" && id ? decodeURIComponent(id) : null);
  views.volumes.shown(current === "volumes");
  for (const link of document.querySelectorAll("header nav a")) {
    const is = link.hash === `#/${current}`;
    if (is) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    if (is) document.title = `${link.textContent} · Coeval`;
  }
}
addEventListener("hashchange", route);
route();
// Not by its address, which says what is shown.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("main").focus();
});

function tell() {
  const { gone, heard } = link;
  const [refusal] = refusals.values();
  document.body.classList.toggle("gone", gone != null);
  $("gone").hidden = gone == null && !refusal;
  const since = heard ? `since ${clock(heard)}; what is shown is as of then` : "yet";
  say($("gone"), gone != null ? `The server does not answer ${since}. Trying again …` : (refusal ?? ""));
  say($("live"), gone != null ? "not connected" : heard ? "live" : "connecting");
}
watch((state) => ((link = { ...state }), tell()));
