// Round trips: how many took how long, in bins of a quarter of an octave, on a logarithmic axis.
//
// Bins come as [number, count]; number n holds the round trips of up to 2^(n/4) ns, and more than those before it.

import { atWidth, el, svg, say } from "./dom.js";
import { short, tick } from "./units.js";

const upTo = (bin) => 2 ** (bin / 4);

/** The first and last bin of all these hosts. */
export function bins(tracks) {
  const all = tracks.flatMap((track) => track.round_trips);
  if (!all.length) return [0, 1];
  return [Math.min(...all.map(([bin]) => bin)) - 1, Math.max(...all.map(([bin]) => bin))];
}

/** A row's histogram, on an axis that all rows share. Heights are square roots: one slow exchange in a thousand is seen. */
export function sparkTrips(track, [first, last]) {
  const most = Math.max(1, ...track.round_trips.map(([, count]) => count));
  const bars = track.round_trips.map(([bin, count]) => {
    const height = Math.max(4, 96 * Math.sqrt(count / most));
    return `M${bin - 1 - first} 100h1V${(100 - height).toFixed(1)}h-1Z`;
  });
  return svg(
    "svg",
    { class: "spark trips", viewBox: `0 0 ${last - first} 100`, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("path", { class: "trips bars", d: bars.join("") }),
  );
}

/** A large one with its axis. `update(track)` draws it. */
export function trips(height) {
  const picture = svg("svg", { class: "chart trips", height, role: "img" });
  const title = el("figcaption");
  const readout = el("p", { class: "readout" });
  const figure = el("figure", {}, title, picture, readout);
  let track = null;
  const draw = (width) => {
    if (!track) return;
    const found = track.round_trips;
    const total = found.reduce((sum, [, count]) => sum + count, 0);
    say(title, "Round trips between the stamping points");
    if (!total) {
      picture.replaceChildren();
      return say(readout, "none yet");
    }
    let [first, last] = bins([track]);
    // A narrow one gets some room on both sides.
    const room = Math.max(0, 8 - (last - first)) / 2;
    [first, last] = [first - room - 1, last + room + 1];
    const x = (bin) => 2 + ((width - 4) * (bin - first)) / (last - first);
    const [top, bottom] = [6, height - 20];
    const most = Math.max(...found.map(([, count]) => count));
    const y = (count) => bottom - Math.max(1.5, (bottom - top) * Math.sqrt(count / most));
    const bars = found.map(([bin, count]) =>
      svg(
        "rect",
        {
          class: "trips bars",
          x: x(bin - 1) + 0.5,
          width: Math.max(1, x(bin) - x(bin - 1) - 1),
          y: y(count),
          height: bottom - y(count),
        },
        svg("title", {}, `up to ${short(upTo(bin))}: ${count.toLocaleString()}`),
      ),
    );
    const wide = 4 * Math.log2(10) * (width / (last - first));
    const steps = wide > 260 ? [1, 2, 5] : wide > 120 ? [1, 3] : [1];
    const marks = [];
    for (let power = 0; power < 11; power++) marks.push(...steps.map((step) => step * 10 ** power));
    const seen = marks
      .map((ns) => [x(4 * Math.log2(ns)), tick(ns)])
      .filter(([place]) => place > 14 && place < width - 14);
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.replaceChildren(
      svg("path", {
        class: "grid",
        d:
          seen.map(([place]) => `M${place.toFixed(1)} ${top}V${bottom + 3}`).join("") +
          `M2 ${bottom + 0.5}H${width - 2}`,
      }),
      ...bars,
      ...seen.map(([place, label]) =>
        svg("text", { x: place.toFixed(1), y: height - 4, "text-anchor": "middle" }, label),
      ),
    );
    const said = words(found, total);
    say(readout, said);
    picture.setAttribute("aria-label", `${track.host}: round trips. ${said}`);
  };
  const redraw = atWidth(figure, draw);
  return { figure, update: (shown) => ((track = shown), redraw()) };
}

function words(found, total) {
  const below = (share) => {
    let sum = 0;
    return upTo(found.find(([, count]) => (sum += count) >= share * total)[0]);
  };
  return `Half take up to ${short(below(0.5))}, 99 of 100 up to ${short(below(0.99))}; ${total.toLocaleString()} exchanges. Heights are square roots.`;
}
