// What the model reached: the mean rewards of every direction in which it was evaluated, the Pareto front as a line through
// those that no other one dominates, the place of the current direction where it is known, and the latest answers.

import { angleOf, between } from "./directions.js";
import { field, html, svg } from "./elements.js";
import { directionName } from "./measured.js";
import { aim } from "./state.js";
import { degrees, number, pole, weightsText } from "./words.js";

const W = 400;
const H = 290;
const EDGE = { left: 46, right: 16, top: 14, bottom: 44 };

export function front(root, store) {
  const { evaluated, names } = store.get();
  if (evaluated.length < 2) {
    const found = evaluated.length ? "was evaluated in one direction only" : "comes without an evaluation over directions";
    root.append(html("p", { class: "soft" }, `This model ${found}: there is no front to show.`));
    return;
  }
  const best = evaluated.filter((p) => p.pareto);
  if (best.length === 1) {
    root.append(
      html("p", { class: "front-one" }, "One direction, ", directionName(best[0].direction, names), ", is best in every objective on the test prompts, so there is no trade-off to steer."),
    );
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
  root.append(picture, key, where, table(evaluated, names));
  const draw = (state) => paint(picture, key, where, state, axes);
  store.subscribe(draw);
}

const SAME_DEG = 1.001; // within this of an evaluated direction its measurement counts: one step of the dial
const WIDEST_DEG = 90; // no line is drawn between neighbours farther apart than this

/**
 * What is known of a direction: { how, rewards (K,), ends }.
 *
 * "measured": it was evaluated, `ends` is that direction. "between": its place on the line between its two evaluated
 * neighbours, `ends`; K=2. "nearest": neither, and the rewards are those of the nearest evaluated one, not its own. Where weights
 * are mixed the nearest mixture answers, so that its measurement is the direction's own: "mixture".
 */
export function known(evaluated, direction, mixed = false) {
  const near = (p) => between(p.direction, direction);
  const nearest = evaluated.reduce((best, p) => (near(p) < near(best) ? p : best));
  if (mixed) return { how: "mixture", rewards: nearest.rewards, ends: [nearest] };
  if (near(nearest) <= SAME_DEG) return { how: "measured", rewards: nearest.rewards, ends: [nearest] };
  const other = { how: "nearest", rewards: nearest.rewards, ends: [nearest] };
  if (direction.length > 2) return other;
  const turn = (p) => ((angleOf(p.direction) - angleOf(direction) + 540) % 360) - 180;
  const above = evaluated.filter((p) => turn(p) >= 0).sort((a, b) => turn(a) - turn(b))[0];
  const below = evaluated.filter((p) => turn(p) < 0).sort((a, b) => turn(b) - turn(a))[0];
  if (!above || !below || turn(above) - turn(below) > WIDEST_DEG) return other;
  const share = -turn(below) / (turn(above) - turn(below));
  return { how: "between", rewards: above.rewards.map((r, i) => share * r + (1 - share) * below.rewards[i]), ends: [below, above] };
}

/** The same in a sentence. */
function told({ how, rewards, ends }, direction, names) {
  const figures = names.map((name, i) => `${name} ${number(rewards[i])}`).join(", ");
  const away = between(ends[0].direction, direction);
  if (how === "measured") return `In the current direction${away < 0.05 ? "" : ` (evaluated ${degrees(away)} away)`} the model averaged ${figures} on its test prompts.`;
  if (how === "mixture") return `In the current direction the mixture for ${weightsText(ends[0].direction, names)} answers, ${degrees(away)} away. It averaged ${figures} on the test prompts.`;
  if (how === "nearest") return `The current direction was not evaluated. The nearest one that was, ${degrees(away)} away, averaged ${figures} on the test prompts.`;
  const [from, to] = ends.map((p) => degrees(angleOf(p.direction)));
  return `In the current direction the model would average about ${figures} on its test prompts: interpolated between ${from} and ${to}, where it was evaluated.`;
}

const HERE = { mixture: "the mixture that answers", measured: "your direction, evaluated", between: "your direction, interpolated", nearest: "evaluated nearest to your direction" };

function paint(picture, key, where, state, [ax, ay]) {
  const { evaluated, names, points: answers } = state;
  const { effective } = aim(state);
  const here = known(evaluated, effective, state.mechanism === "weights");
  const shown = [...evaluated, ...answers].map((p) => p.rewards);
  const x = scale(shown.map((r) => r[ax]), EDGE.left, W - EDGE.right);
  const y = scale(shown.map((r) => r[ay]), H - EDGE.bottom, EDGE.top);
  const spot = (p) => [x.at(p.rewards[ax]), y.at(p.rewards[ay])];
  const best = evaluated.filter((p) => p.pareto);
  const line = names.length === 2 ? [...best].sort((a, b) => a.rewards[ax] - b.rewards[ax]) : [];
  const [hx, hy] = spot(here);
  picture.replaceChildren(
    ...x.ticks.map((t) => svg("path", { class: "grid", d: `M ${x.at(t)} ${EDGE.top} V ${H - EDGE.bottom}` })),
    ...y.ticks.map((t) => svg("path", { class: "grid", d: `M ${EDGE.left} ${y.at(t)} H ${W - EDGE.right}` })),
    ...x.ticks.map((t) => svg("text", { class: "tick", x: x.at(t), y: H - EDGE.bottom + 15, "text-anchor": "middle" }, label(t))),
    ...y.ticks.map((t) => svg("text", { class: "tick", x: EDGE.left - 6, y: y.at(t) + 4, "text-anchor": "end" }, label(t))),
    svg("text", { class: "axis", x: W - EDGE.right, y: H - 8, "text-anchor": "end" }, `${names[ax]}: ${pole(names[ax], 1)} →`),
    svg("text", { class: "axis", x: 14, y: EDGE.top, transform: `rotate(-90 14 ${EDGE.top})`, "text-anchor": "end" }, `${names[ay]}: ${pole(names[ay], 1)} →`),
    line.length > 1 ? svg("polyline", { class: "front-line", points: line.map((p) => spot(p).join(",")).join(" ") }) : "",
    ...evaluated.map((p) => {
      const [cx, cy] = spot(p);
      return svg("circle", { class: p.pareto ? "front-point" : "front-point dominated", cx, cy, r: 4 }, svg("title", {}, pointText(p, names)));
    }),
    // A ring says no more than which point is meant; a diamond is a place of the current direction's own.
    here.how === "nearest"
      ? svg("circle", { class: "front-near", cx: hx, cy: hy, r: 9 })
      : svg("path", { class: `front-here ${here.how}`, d: `M ${hx} ${hy - 9} L ${hx + 9} ${hy} L ${hx} ${hy + 9} L ${hx - 9} ${hy} Z` }),
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
  where.textContent = told(here, effective, names);
  const dominated = evaluated.length - best.length;
  picture.setAttribute(
    "aria-label",
    `${evaluated.length} evaluated directions: ${best.length} on the front` +
      (dominated ? `, ${dominated} dominated, drawn hollow: another one is at least as good in every objective.` : ".") +
      ` ${where.textContent}`,
  );
  const entry = (mark, text) => html("li", {}, html("span", { class: mark, "aria-hidden": "true" }), text);
  key.replaceChildren(
    entry("key-dot", "on the front"),
    dominated ? entry("key-dot hollow", "dominated: another one is at least as good in every objective") : "",
    entry(here.how === "nearest" ? "key-ring" : `key-diamond ${here.how}`, HERE[here.how]),
    answers.length ? entry("key-square", answers.length > 1 ? "the compared answers" : "the latest answer") : "",
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

const pointText = (p, names) => `${weightsText(p.direction, names)}: ${names.map((n, i) => `${n} ${number(p.rewards[i])}`).join(", ")}${p.pareto ? "" : " (dominated)"}`;

function table(points, names) {
  const cells = (p) => [...p.direction.map((x) => number(x, 2)), ...p.rewards.map((x) => number(x)), p.pareto ? "yes" : "no, dominated"];
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
        html("thead", {}, html("tr", {}, names.map((n) => html("th", { scope: "col" }, `weight of ${n}`)), names.map((n) => html("th", { scope: "col" }, `mean ${n}`)), html("th", { scope: "col" }, "on the front"))),
        html("tbody", {}, points.map((p) => html("tr", {}, cells(p).map((c) => html("td", {}, c))))),
      ),
    ),
  );
}
