// Elements. A string that is given as a child becomes text, never markup: names come from elsewhere. (The page's
// Content-Security-Policy asks for Trusted Types besides, so that nothing here could parse a string as HTML.)

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

/** An HTML element. Attributes that are null or false are left out; `onclick` and its like are listeners. */
export const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

/** An SVG element. */
export const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

/** Sets an element's text, if it is another one: what did not change is not announced again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Draws now, and again whenever the element's width changes. */
export function atWidth(element, draw) {
  let last = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.round(entry.contentRect.width);
    if (width > 0 && width !== last) draw((last = width));
  }).observe(element);
  return () => last > 0 && draw(last);
}

/** A table whose cells keep their meaning where a narrow screen turns the rows into blocks. */
export function table(label, headings, rows, attributes = {}) {
  const heads = headings.map((heading) => el("th", { scope: "col", role: "columnheader" }, heading));
  return el(
    "table",
    { "aria-label": label, role: "table", ...attributes },
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, heads)),
    el("tbody", { role: "rowgroup" }, rows),
  );
}

/** A row of such a table: of strings, elements, or [class, content]. The first cell is the row's heading. */
export function row(headings, cells, attributes = {}) {
  const made = cells.map((cell, column) => {
    const [kind, content] = Array.isArray(cell) ? cell : [null, cell];
    const place = column === 0 ? ["th", { scope: "row", role: "rowheader" }] : ["td", { role: "cell" }];
    return el(place[0], { ...place[1], class: kind, "data-label": headings[column] }, content);
  });
  return el("tr", { role: "row", ...attributes }, made);
}
