// The run's Pareto front: the mean rewards that the model reached in each direction when it was evaluated, with the
// current direction on it and the latest answers beside it.

import { angleOf, between } from "./directions.js";
import { field, html, svg } from "./elements.js";
import { aim } from "./state.js";
import { degrees, number, pole, weightsText } from "./words.js";

const W = 400;
const H = 290;
const EDGE = { left: 46, right: 16, top: 14, bottom: 44 };

export function front(root, store) {
  const { front: points, names } = store.get();
  if (points.length < 2) {
    root.append(html("p", { class: "soft" }, "This model comes without an evaluation over directions: there is no front to show."));
    return;
  }
  let axes = [0, 1];
  const choose = (k) => {
    const select = html("select", {}, names.map((name, i) => html("option", { value: i, selected: i === axes[k] }, name)));
    select.addEventListener("change", () => {
      axes[k] = Number(select.value);
      draw(store.get());
    });
    return select;
  };
  const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, class: "front", role: "img" });
  const where = html("p", { class: "front-where" });
  const key = html("ul", { class: "legend" });
  if (names.length > 2) root.append(html("div", { class: "controls" }, field("Across", choose(0)), field("Up", choose(1))));
  root.append(picture, key, where, table(points, names));
  const draw = (state) => paint(picture, key, where, state, axes);
  store.subscribe(draw);
}

/** Mean rewards (K,) to expect in a direction: between the two evaluated neighbours (K=2), or of the nearest one. */
export function expected(points, direction) {
  const away = points.map((p) => between(p.direction, direction));
  const nearest = away.indexOf(Math.min(...away));
  if (direction.length > 2 || away[nearest] < 0.05) return { rewards: points[nearest].rewards, off: away[nearest] };
  const turn = (p) => ((angleOf(p.direction) - angleOf(direction) + 540) % 360) - 180;
  const above = points.filter((p) => turn(p) >= 0).sort((a, b) => turn(a) - turn(b))[0];
  const below = points.filter((p) => turn(p) < 0).sort((a, b) => turn(b) - turn(a))[0];
  if (!above || !below || turn(above) - turn(below) > 90) return { rewards: points[nearest].rewards, off: away[nearest] };
  const share = -turn(below) / (turn(above) - turn(below));
  return { rewards: above.rewards.map((r, i) => share * r + (1 - share) * below.rewards[i]), off: 0 };
}

function paint(picture, key, where, state, [ax, ay]) {
  const { front: points, names, points: answers } = state;
  const { effective } = aim(state);
  const here = expected(points, effective);
  const shown = [...points, ...answers, here].map((p) => p.rewards);
  const x = scale(shown.map((r) => r[ax]), EDGE.left, W - EDGE.right);
  const y = scale(shown.map((r) => r[ay]), H - EDGE.bottom, EDGE.top);
  const spot = (p) => [x.at(p.rewards[ax]), y.at(p.rewards[ay])];
  const line = names.length === 2 ? [...points].sort((a, b) => angleOf(b.direction) - angleOf(a.direction)) : [];
  const [hx, hy] = spot(here);
  picture.replaceChildren(
    ...x.ticks.map((t) => svg("path", { class: "grid", d: `M ${x.at(t)} ${EDGE.top} V ${H - EDGE.bottom}` })),
    ...y.ticks.map((t) => svg("path", { class: "grid", d: `M ${EDGE.left} ${y.at(t)} H ${W - EDGE.right}` })),
    ...x.ticks.map((t) => svg("text", { class: "tick", x: x.at(t), y: H - EDGE.bottom + 15, "text-anchor": "middle" }, label(t))),
    ...y.ticks.map((t) => svg("text", { class: "tick", x: EDGE.left - 6, y: y.at(t) + 4, "text-anchor": "end" }, label(t))),
    svg("text", { class: "axis", x: W - EDGE.right, y: H - 8, "text-anchor": "end" }, `${names[ax]}: ${pole(names[ax], 1)} →`),
    svg("text", { class: "axis", x: 14, y: EDGE.top, transform: `rotate(-90 14 ${EDGE.top})`, "text-anchor": "end" }, `${names[ay]}: ${pole(names[ay], 1)} →`),
    svg("polyline", { class: "front-line", points: line.map((p) => spot(p).join(",")).join(" ") }),
    ...points.map((p) => {
      const [cx, cy] = spot(p);
      return svg("circle", { class: "front-point", cx, cy, r: 4 }, svg("title", {}, pointText(p, names)));
    }),
    svg("path", { class: "front-here", d: `M ${hx} ${hy - 9} L ${hx + 9} ${hy} L ${hx} ${hy + 9} L ${hx - 9} ${hy} Z` }),
    ...answers.map((p) => {
      const [cx, cy] = spot(p);
      return svg(
        "g",
        { class: "front-answer" },
        svg("rect", { x: cx - 8, y: cy - 8, width: 16, height: 16, rx: 3 }),
        svg("text", { x: cx, y: cy + 4, "text-anchor": "middle" }, p.label),
      );
    }),
  );
  const expectation = names.map((name, i) => `${name} ${number(here.rewards[i])}`).join(", ");
  picture.setAttribute("aria-label", `Front of ${points.length} evaluated directions; the current one is at ${expectation}`);
  where.textContent =
    `In the current direction the model averaged ${expectation} on its test prompts` +
    (here.off > 1 ? ` (nearest evaluated direction, ${degrees(here.off)} away).` : ".");
  key.replaceChildren(
    html("li", {}, html("span", { class: "key-dot", "aria-hidden": "true" }), "evaluated directions"),
    html("li", {}, html("span", { class: "key-diamond", "aria-hidden": "true" }), "your direction"),
    answers.length ? html("li", {}, html("span", { class: "key-square", "aria-hidden": "true" }), answers.length > 1 ? "the compared answers" : "the latest answer") : "",
  );
}

const label = (t) => number(t, Number.isInteger(t) ? 0 : 1);

/** A linear scale over `values` with a margin, and round ticks inside it. */
function scale(values, from, to) {
  const [min, max] = [Math.min(...values), Math.max(...values)];
  const margin = Math.max((max - min) * 0.12, 0.5);
  const [low, high] = [min - margin, max + margin];
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const ticks = [];
  for (let t = Math.ceil(low / step) * step; t <= high; t += step) ticks.push(Number(t.toFixed(6)));
  return { ticks, at: (value) => Number((from + ((value - low) / (high - low)) * (to - from)).toFixed(2)) };
}

const pointText = (p, names) => `${weightsText(p.direction, names)}: ${names.map((n, i) => `${n} ${number(p.rewards[i])}`).join(", ")}`;

function table(points, names) {
  const cells = (p) => [...p.direction.map((x) => number(x, 2)), ...p.rewards.map((x) => number(x))];
  return html(
    "details",
    {},
    html("summary", {}, "The same as a table"),
    html(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": "Evaluated directions" },
      html(
        "table",
        {},
        html("thead", {}, html("tr", {}, names.map((n) => html("th", { scope: "col" }, `weight of ${n}`)), names.map((n) => html("th", { scope: "col" }, `mean ${n}`)))),
        html("tbody", {}, points.map((p) => html("tr", {}, cells(p).map((c) => html("td", {}, c))))),
      ),
    ),
  );
}
