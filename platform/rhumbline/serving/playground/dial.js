// The dial for two objectives: a compass whose bearing is the direction. Trained bearings are shaded, the rest is
// hatched, and a handle out there shows where the server will pull it back to.

import { angleOf, fromAngle } from "./directions.js";
import { svg } from "./elements.js";
import { aim, arc } from "./state.js";
import { degrees, describe, poles, weightsText } from "./words.js";

const C = { x: 190, y: 178 };
const R = 118;
const WIDTH = 400;
const KEYS = new Map([
  ["ArrowUp", 1],
  ["ArrowRight", 1],
  ["ArrowDown", -1],
  ["ArrowLeft", -1],
  ["PageUp", 5],
  ["PageDown", -5],
]);

const at = (deg, r) => {
  const [x, y] = fromAngle(deg);
  return [C.x + r * x, C.y - r * y]; // y grows downwards in SVG
};
const pair = (point) => point.map((x) => x.toFixed(2)).join(" ");

/** Path of the arc from `low` to `high` degrees, counter-clockwise; whole circles as two halves. */
function arcPath(low, high, r) {
  if (high - low >= 359.99) return `${arcPath(low, low + 180, r)} ${arcPath(low + 180, low + 359.98, r)}`;
  const large = high - low > 180 ? 1 : 0;
  return `M ${pair(at(low, r))} A ${r} ${r} 0 ${large} 0 ${pair(at(high, r))}`;
}

function sector(low, high, r) {
  if (high - low >= 359.99) return `${arcPath(low, high, r)} Z`;
  return `M ${C.x} ${C.y} L ${arcPath(low, high, r).slice(2)} Z`;
}

export function dial(root, store) {
  const { names, region, presets } = store.get();
  const [low, high] = arc(region);
  const whole = region.half >= 180;
  const wedge = svg("g", { class: "wedge" });
  const needle = svg("path", { class: "needle" });
  const pull = svg("path", { class: "pull" });
  const landing = svg("circle", { class: "landing", r: 7 });
  const says = svg("text", { class: "pulled" });
  const handle = svg(
    "g",
    {
      class: "handle",
      role: "slider",
      tabindex: 0,
      "aria-label": `Direction between ${poles(names[0])[1]} and ${poles(names[1]).join(" or ")}, in degrees`,
      "aria-describedby": "dial-help",
      "aria-valuemin": -180,
      "aria-valuemax": 180,
    },
    svg("circle", { class: "reach", r: 24 }),
    svg("circle", { class: "grip", r: 13 }),
    svg("path", { d: "M -4.5 -3 H 4.5 M -4.5 0 H 4.5 M -4.5 3 H 4.5", class: "grooves" }),
  );
  const ring = svg("circle", { class: "hit", cx: C.x, cy: C.y, r: R });
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} 356`, class: "dial" },
    svg(
      "defs",
      {},
      svg(
        "pattern",
        { id: "untrained", width: 7, height: 7, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
        svg("path", { d: "M 0 0 V 7", class: "hatch" }),
      ),
      svg("path", { id: "under", d: outerPath(low, high) }),
    ),
    svg("circle", { class: "face", cx: C.x, cy: C.y, r: R }),
    svg("circle", { cx: C.x, cy: C.y, r: R, fill: "url(#untrained)" }),
    svg("path", { class: "trained-ground", d: sector(low, high, R) }),
    svg("path", { class: "trained", d: sector(low, high, R) }),
    svg("circle", { class: "rim", cx: C.x, cy: C.y, r: R }),
    ...graduations(),
    svg("path", { class: "trained-rim", d: arcPath(low, high, R) }),
    whole ? null : svg("text", { class: "zone" }, svg("textPath", { href: "#under", startOffset: "50%", "text-anchor": "middle" }, "not trained")),
    ...poleLabels(names, presets),
    wedge,
    ...presetTicks(presets),
    ring,
    pull,
    needle,
    svg("circle", { class: "hub", cx: C.x, cy: C.y, r: 4 }),
    landing,
    says,
    handle,
  );
  root.append(picture);

  const set = (deg) => store.set({ requested: fromAngle(deg) });
  const current = () => Math.round(angleOf(store.get().requested));

  handle.addEventListener("keydown", (event) => {
    const step = KEYS.get(event.key);
    if (step !== undefined) set(current() + (event.shiftKey ? Math.sign(step) * 5 : step));
    else if (event.key === "Home") set(low);
    else if (event.key === "End") set(high);
    else return;
    event.preventDefault();
  });

  const follow = (event) => {
    const box = picture.getBoundingClientRect();
    const scale = WIDTH / box.width;
    const x = (event.clientX - box.left) * scale - C.x;
    const y = C.y - (event.clientY - box.top) * scale;
    if (Math.hypot(x, y) > 8) set(Math.round(angleOf([x, y])));
  };
  let dragging = false;
  picture.addEventListener("pointerdown", (event) => {
    // A finger on the face scrolls the page; only the ring and the handle are for turning.
    const grabbed = handle.contains(event.target) || event.target === ring;
    if (event.button !== 0 || (event.pointerType !== "mouse" && !grabbed)) return;
    dragging = true;
    picture.setPointerCapture(event.pointerId);
    handle.focus({ preventScroll: true });
    follow(event);
    event.preventDefault();
  });
  picture.addEventListener("pointermove", (event) => dragging && follow(event));
  for (const end of ["pointerup", "pointercancel"]) picture.addEventListener(end, () => (dragging = false));

  store.subscribe((state) => {
    const { requested, effective, projected } = aim(state);
    const asked = angleOf(requested);
    const got = angleOf(effective);
    needle.setAttribute("d", `M ${C.x} ${C.y} L ${pair(at(got, R - (projected ? 8 : 14)))}`);
    handle.setAttribute("transform", `translate(${pair(at(asked, R))})`);
    handle.classList.toggle("outside", projected);
    handle.setAttribute("aria-valuenow", Math.round(asked));
    handle.setAttribute("aria-valuetext", spoken(state, asked, got, projected));
    const way = Math.abs(asked - got) <= 180 ? [asked, got] : [asked, got + Math.sign(asked - got) * 360];
    pull.setAttribute("d", projected ? arcPath(Math.min(...way), Math.max(...way), R) : "");
    landing.setAttribute("visibility", projected ? "visible" : "hidden");
    const [x, y] = at(got, R);
    landing.setAttribute("cx", x);
    landing.setAttribute("cy", y);
    place(says, got, projected);
    drawWedge(wedge, state.wedge);
  });
}

function spoken({ names }, asked, got, projected) {
  const words = `${degrees(asked)}: ${describe(fromAngle(asked), names)}; ${weightsText(fromAngle(asked), names)}`;
  return projected ? `${words}. Outside what the model was trained for, will be pulled back to ${degrees(got)}` : words;
}

function place(says, got, projected) {
  const [x, y] = at(got, R - 20);
  says.textContent = projected ? "pulled back to here" : "";
  says.setAttribute("x", x);
  says.setAttribute("y", y + 4);
  says.setAttribute("text-anchor", x >= C.x ? "end" : "start");
}

/** Where "not trained" is written: along the rim opposite to the trained arc, readable from left to right. */
function outerPath(low, high) {
  const middle = (((low + high) / 2 + 180) % 360) + 360;
  const upper = middle % 360 > 0 && middle % 360 <= 180;
  const r = upper ? R - 18 : R - 10;
  const [from, to] = upper ? [middle + 60, middle - 60] : [middle - 60, middle + 60];
  return `M ${pair(at(from, r))} A ${r} ${r} 0 0 ${upper ? 1 : 0} ${pair(at(to, r))}`;
}

function graduations() {
  return Array.from({ length: 24 }, (_, i) => i * 15).map((deg) =>
    svg("path", { class: "graduation", d: `M ${pair(at(deg, R))} L ${pair(at(deg, R - (deg % 45 ? 4 : 8)))}` }),
  );
}

const OUTSIDE = R + 19; // beyond the handle, which is on the rim

/** What the four ends of the two axes mean. The side ones make room for the names of presets near the horizontal. */
function poleLabels(names, presets) {
  const [[less0, more0], [less1, more1]] = names.map(poles);
  const crowd = presets.map((p) => angleOf(p.direction)).filter((deg) => Math.abs(deg) < 32);
  const raise = crowd.length ? (crowd.reduce((a, b) => a + b) > 0 ? 30 : -30) : 0;
  const side = (text, x, anchor, shift = 0) => {
    const cut = text.indexOf(" ");
    const lines = cut > 0 ? [text.slice(0, cut), text.slice(cut + 1)] : [text];
    const top = C.y + 4 - (lines.length - 1) * 8 + shift;
    return svg(
      "text",
      { class: "pole", "text-anchor": anchor },
      svg("title", {}, text),
      ...lines.map((line, i) => svg("tspan", { x, y: top + i * 16 }, line.length > 11 ? `${line.slice(0, 10)}…` : line)),
    );
  };
  const middle = (text, y) => svg("text", { class: "pole", x: C.x, y, "text-anchor": "middle" }, text);
  return [side(more0, C.x + OUTSIDE, "start", raise), side(less0, C.x - OUTSIDE, "end"), middle(more1, C.y - R - 24), middle(less1, C.y + R + 36)];
}

/** A tick per preset on the rim, named outside it where the names do not run into each other. */
function presetTicks(presets) {
  const taken = [];
  return presets.map(({ name, direction }) => {
    const deg = angleOf(direction);
    const [x, y] = at(deg, OUTSIDE);
    const right = x >= C.x;
    const free = Math.abs(deg % 180) < 75 && taken.every((other) => other.right !== right || Math.abs(other.y - y) > 14);
    if (free) taken.push({ right, y });
    return svg(
      "g",
      { class: "preset-tick" },
      svg("title", {}, `${name}: ${degrees(deg)}`),
      svg("path", { d: `M ${pair(at(deg, R - 7))} L ${pair(at(deg, R + 9))}` }),
      free ? svg("text", { x, y: y + 4, "text-anchor": right ? "start" : "end" }, name.length > 11 ? `${name.slice(0, 10)}…` : name) : null,
    );
  });
}

function drawWedge(group, wedge) {
  group.replaceChildren();
  if (!wedge) return;
  const [low, high] = wedge;
  group.append(svg("path", { class: "wedge-fill", d: sector(low, high, R - 30) }));
}
