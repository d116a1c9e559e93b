// More than two objectives: a slider from -1 to 1 for each, linked because a direction has length one. The others give
// way when a slider is let go, not while it moves; a locked one stays. A radar beside them shows what came of it.

import { relink } from "./directions.js";
import { html, svg } from "./elements.js";
import { standing } from "./meters.js";
import { aim } from "./state.js";
import { number, pole, poles } from "./words.js";

export function sliders(root, store) {
  const { names } = store.get();
  const locked = new Set();
  const rows = names.map((name, i) => row(name, i));
  const reset = html("button", { type: "button", class: "quiet", onclick: () => unlockAll() }, "Reset to the default");
  const picture = svg("svg", { viewBox: "0 0 400 260", class: "radar", role: "img" });
  const caption = html("p", { class: "soft" }, "Line: what you ask for. Filled, dashed: where the latest answer stands in the model’s usual range.");
  root.append(html("div", { class: "sliders" }, rows.map((r) => r.node)), reset, picture, caption);

  function row(name, i) {
    const [less, more] = poles(name);
    const range = html("input", { type: "range", min: -1, max: 1, step: 0.01, id: `slider-${i}` });
    const output = html("output", { for: range.id });
    const lock = html("button", { type: "button", class: "lock", "aria-pressed": "false", "aria-label": `Lock ${name}` }, "Lock");
    range.addEventListener("input", () => show(i, Number(range.value)));
    range.addEventListener("change", () => {
      store.set({ requested: relink(store.get().requested, i, Number(range.value), locked) });
    });
    lock.addEventListener("click", () => toggle(i));
    const node = html(
      "div",
      { class: "slider-row" },
      html("label", { for: range.id }, name.replaceAll("_", " ")),
      output,
      lock,
      html("div", { class: "slider-ends", "aria-hidden": "true" }, html("span", {}, less), html("span", {}, more)),
      range,
    );
    return { node, range, output, lock };
  }

  function show(i, value) {
    rows[i].output.textContent = number(value, 2);
    rows[i].range.setAttribute("aria-valuetext", `${number(value, 2)}, ${value ? pole(names[i], value) : "does not count"}`);
  }

  function toggle(i) {
    locked.has(i) ? locked.delete(i) : locked.add(i);
    const on = locked.has(i);
    rows[i].lock.setAttribute("aria-pressed", String(on));
    rows[i].lock.textContent = on ? "Locked" : "Lock";
    rows[i].range.disabled = on;
  }

  function unlockAll() {
    for (const i of [...locked]) toggle(i);
    store.set({ requested: store.get().neutral });
  }

  store.subscribe((state) => {
    state.requested.forEach((value, i) => {
      rows[i].range.value = value;
      show(i, value);
    });
    radar(picture, state);
  });
}

/** Requested weights as an outline; where the latest answer stands in the model's usual range as a filled shape. */
function radar(picture, state) {
  const { names, requested, objectives, points } = state;
  const spoke = (i, r) => {
    const turn = (2 * Math.PI * i) / names.length - Math.PI / 2;
    return [200 + r * Math.cos(turn), 130 + r * Math.sin(turn)];
  };
  const radius = (x) => 45 + 45 * Math.max(-1, Math.min(1, x)); // -1 in the middle, 0 half way, 1 at the rim
  const outline = (values) => values.map((x, i) => spoke(i, radius(x)).map((c) => c.toFixed(1)).join(",")).join(" ");
  const latest = points.length === 1 && points[0].rewards.map((r, i) => standing(r, objectives[i].range));
  const achieved = latest && latest.every((x) => x !== null) ? latest : null;
  picture.setAttribute(
    "aria-label",
    `Requested: ${names.map((name, i) => `${name} ${number(requested[i], 2)}`).join(", ")}` +
      (achieved ? `. Latest answer within the usual range, -1 low to 1 high: ${achieved.map((x) => number(x, 2)).join(", ")}` : ""),
  );
  const text = (name, i) => {
    const [x, y] = spoke(i, 106);
    const anchor = Math.abs(x - 200) < 12 ? "middle" : x > 200 ? "start" : "end";
    return svg("text", { x, y: y + 4, "text-anchor": anchor }, name.replaceAll("_", " "));
  };
  picture.replaceChildren(
    svg("polygon", { class: "radar-rim", points: outline(names.map(() => 1)) }),
    svg("polygon", { class: "radar-zero", points: outline(names.map(() => 0)) }),
    ...names.map((_, i) => svg("path", { class: "radar-spoke", d: `M 200 130 L ${spoke(i, 90).join(" ")}` })),
    achieved ? svg("polygon", { class: "radar-achieved", points: outline(achieved) }) : "",
    svg("polygon", { class: "radar-requested", points: outline(aim(state).requested) }),
    ...names.map(text),
  );
}
