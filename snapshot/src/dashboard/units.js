// Numbers as people read them.

const THIN = "\u202f";
const TIMES = [
  ["ns", 1],
  ["µs", 1e3],
  ["ms", 1e6],
  ["s", 1e9],
];

/** A duration in three digits. A bound is rounded up, so that it is not made smaller; a margin down (`Math.floor`). */
export function short(ns, round = Math.ceil) {
  if (ns == null) return "–";
  if (ns < 0) return "−" + short(-ns, round === Math.ceil ? Math.floor : Math.ceil);
  for (const [name, unit] of TIMES) {
    for (const decimals of [2, 1, 0]) {
      const step = unit / 10 ** decimals;
      if (step < 1) continue;
      const steps = round(ns / step);
      if (steps < 1000) return (steps / 10 ** decimals).toFixed(decimals) + THIN + name;
    }
  }
  return round(ns / 1e9) + THIN + "s";
}

/** A margin or a measured duration: never shown as more than it is. */
export const least = (ns) => short(ns, Math.floor);

/** ± a half-width. */
export const within = (ns) => (ns == null ? "–" : "±" + THIN + short(ns));

/** An offset with its sign, in digits down to a tenth of the bound's half-width. */
export function offset(ns, half) {
  if (ns == null) return "–";
  const size = Math.abs(ns);
  const [name, digits] = size < 1e3 ? ["ns", 0] : size < 1e6 ? ["µs", 3] : size < 1e9 ? ["ms", 6] : ["s", 9];
  const known = Math.max(0, Math.floor(Math.log10(Math.max(1, half ?? 1))) - 1);
  const whole = String(Math.floor(size / 10 ** digits)).length;
  const decimals = Math.max(0, Math.min(digits - known, 9 - whole));
  return (ns < 0 ? "−" : "+") + (size / 10 ** digits).toFixed(decimals) + THIN + name;
}

/** A round number of nanoseconds for an axis: no digits that say nothing. */
export function tick(ns) {
  if (ns === 0) return "0";
  const [name, unit] = [...TIMES].reverse().find(([, unit]) => Math.abs(ns) >= unit) ?? TIMES[0];
  return (ns < 0 ? "−" : "") + +(Math.abs(ns) / unit).toFixed(2) + THIN + name;
}

/** A size in bytes. */
export function size(bytes) {
  if (bytes == null) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < 4) [bytes, unit] = [bytes / 1024, unit + 1];
  return bytes.toFixed(unit === 0 || bytes >= 100 ? 0 : 1) + THIN + units[unit];
}

/** A span of time in its largest unit: for how long ago, or how soon. */
export function span(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 60) return seconds + THIN + "s";
  if (seconds < 3600) return Math.round(seconds / 60) + THIN + "min";
  if (seconds < 86400) {
    const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor((seconds % 3600) / 60)];
    return hours + THIN + "h" + (hours < 10 && minutes ? " " + minutes + THIN + "min" : "");
  }
  return Math.floor(seconds / 86400) + THIN + "d";
}

/** An instant, given as RFC 3339 or in ms, in the reader's own time zone. */
export const date = (at) => new Date(at).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });

/** The time of day alone. */
export const clock = (at) => new Date(at).toLocaleTimeString();

/** A count, with its noun. */
export const count = (n, noun) => n.toLocaleString() + " " + noun + (n === 1 ? "" : "s");
