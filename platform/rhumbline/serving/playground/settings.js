// How answers are sampled: the same few settings for the chat, the comparison and the check.

import { field, html } from "./elements.js";

const KEY = "rhumbline.settings";

/** Puts the controls into `root`; returns a function that reads { maxTokens, temperature, seed | null, bestOf }. */
export function settings(root, { hasRewards }) {
  const kept = JSON.parse(sessionStorage.getItem(KEY) ?? "{}");
  const input = (value, attributes) => html("input", { type: "number", inputmode: "decimal", value, ...attributes });
  const controls = {
    maxTokens: input(kept.maxTokens ?? 256, { min: 1, step: 1 }),
    temperature: input(kept.temperature ?? 0.7, { min: 0, max: 2, step: 0.1 }),
    seed: input(kept.seed ?? "", { step: 1, placeholder: "any" }),
    bestOf: input(kept.bestOf ?? 1, { min: 1, step: 1, disabled: !hasRewards }),
  };
  const labels = { maxTokens: "Longest answer, tokens", temperature: "Temperature", seed: "Seed", bestOf: "Best of" };
  root.append(
    html("div", { class: "controls" }, Object.entries(controls).map(([name, control]) => field(labels[name], control))),
    html(
      "p",
      { class: "soft" },
      hasRewards
        ? "Best of n samples n answers and keeps the one with the highest reward in your direction; it does not stream."
        : "Best of n needs a reward model, and none is served here.",
    ),
  );
  const number = (name, fallback) => (controls[name].value === "" || !controls[name].checkValidity() ? fallback : Number(controls[name].value));
  const read = () => ({
    maxTokens: number("maxTokens", 256),
    temperature: number("temperature", 0.7),
    seed: number("seed", null),
    bestOf: number("bestOf", 1),
  });
  root.addEventListener("change", () => {
    const now = read();
    sessionStorage.setItem(KEY, JSON.stringify({ ...now, seed: now.seed ?? "" }));
  });
  return read;
}
