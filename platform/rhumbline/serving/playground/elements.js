// HTML and SVG elements. Strings become text nodes and nothing else: what a model wrote can never become markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** html("button", { class: "quiet", onclick: go }, "Go") */
export const html = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

/** svg("circle", { cx: 1, cy: 2, r: 3 }) */
export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

export const find = (id) => document.getElementById(id);

let serial = 0;
/** An id that no other element has, for labels and descriptions. */
export const freshId = (stem) => `${stem}-${++serial}`;

/** A labelled control: the words above, the control below. */
export function field(label, control, attributes = {}) {
  control.id ||= freshId("field");
  return html("div", { class: "field", ...attributes }, html("label", { for: control.id }, label), control);
}

/** Says something to a screen reader without showing it. */
export function announce(text) {
  find("announcer").textContent = text;
}

/** Whether the keyboard is on nothing, or on a control that was just disabled or hidden, which browsers notice later. */
function adrift() {
  const at = document.activeElement;
  return !at || at === document.body || at.disabled || at.closest("[hidden]") !== null;
}

/**
 * Puts the keyboard on what took the place of the control that it was on; says whether it did. Where somebody has gone
 * elsewhere meanwhile it stays.
 */
export function handOver(node) {
  const lost = adrift();
  if (lost) node.focus({ preventScroll: true });
  return lost;
}

/** Scrolls there, at once where motion is unwelcome. */
export function bringIntoView(node, block = "start") {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  node.scrollIntoView({ block, behavior: calm ? "auto" : "smooth" });
}
