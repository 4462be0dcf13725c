// Talking to the server: asks again and again, and says when nobody answers any more.

/** Nobody answers for so long, in ms: then the server counts as gone. */
const PATIENCE = 8000;
const RETRY = 2000;

const state = { gone: null, heard: null };
const listeners = new Set();

/** Calls `listener` with {gone, heard} whenever the server answered or did not: each an instant in ms, or null. */
export function watch(listener) {
  listeners.add(listener);
  listener(state);
}

function note(answered) {
  if (answered) [state.gone, state.heard] = [null, Date.now()];
  else state.gone ??= Date.now();
  listeners.forEach((listener) => listener(state));
}

/** The server answered, and said no: `message` is its sentence. */
export class Refusal extends Error {}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options });
  } catch (why) {
    note(false);
    throw new Error("The server does not answer", { cause: why });
  }
  note(true);
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Refusal(problem.detail ?? `The server answers ${response.status} ${response.statusText}`);
}

/** GET, as JSON. */
export async function get(path, limit = PATIENCE) {
  const response = await ask(path, { signal: AbortSignal.timeout(limit) });
  return response.json();
}

const posted = (body) => ({
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify(body),
});

/** POST, as JSON. It takes as long as it takes. */
export const post = async (path, body) => (await ask(path, posted(body))).json();

/** POST, for an answer that comes event by event (server-sent events); `each` gets every one as `{kind: data}`. */
export async function postForEvents(path, body, each) {
  const order = posted(body);
  order.headers.accept = "text/event-stream";
  const response = await ask(path, order);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let [rest, kind] = ["", "message"];
  const take = (line) => {
    if (line.startsWith("event:")) kind = line.slice(6).trim();
    else if (line.startsWith("data:")) each({ [kind]: JSON.parse(line.slice(5)) });
  };
  for (;;) {
    const { done, value } = await reader.read().catch((cause) => {
      throw new Error("The connection broke; the list shows what became of it", { cause });
    });
    const lines = (rest + (value ?? "")).split("\n");
    rest = done ? "" : lines.pop();
    lines.filter(Boolean).forEach(take);
    if (done) return;
  }
}

/**
 * Asks for `path()` every `every` ms while the page is visible, and `apply`s each answer. What the server refuses goes
 * to `refused`, as a sentence. Returns a handle: `now()` asks at once, `stop()` ends it.
 */
export function poll(path, every, apply, refused = () => {}, limit = PATIENCE) {
  let timer = null;
  let turn = 0;
  let stopped = false;
  const round = async () => {
    clearTimeout(timer);
    if (stopped) return;
    const mine = ++turn;
    let [answer, problem, wait] = [null, null, every];
    try {
      answer = await get(path(), limit);
    } catch (why) {
      if (why instanceof Refusal) problem = why.message;
      else wait = RETRY;
    }
    // Another round may have begun meanwhile: it goes on by itself.
    if (mine !== turn || stopped) return;
    if (!document.hidden) timer = setTimeout(round, wait);
    if (problem !== null) refused(problem);
    else if (answer !== null) apply(answer);
  };
  const shown = () => !document.hidden && round();
  document.addEventListener("visibilitychange", shown);
  round();
  const stop = () => {
    stopped = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", shown);
  };
  return { now: round, stop };
}
