// What is known about one answer: its direction as the server took it, its length in words, its rewards.

import { angleOf, fromWeights, normalise, toWeights } from "./directions.js";
import { call } from "./api.js";
import { html } from "./elements.js";
import { meters } from "./meters.js";
import { apart } from "./state.js";
import { degrees, describe, plural, weightsText } from "./words.js";

/** "more helpful, a little shorter (−20°)"; the weights are in the title. */
export function directionName(v, names) {
  const turn = names.length === 2 ? ` (${degrees(angleOf(v))})` : "";
  return html("span", { title: weightsText(v, names) }, describe(v, names) + turn);
}

/**
 * Tokens at which an answer was cut, or null where it came to its own end. `usage` is of this answer alone: the engine's
 * context may have ended it before `maxTokens`.
 */
export const cutAt = (finishReason, usage, maxTokens) =>
  finishReason === "length" ? Math.min(maxTokens, usage?.completion_tokens ?? maxTokens) : null;

/** The line under an answer: words, direction unless a heading has `named` it, whether it was pulled back, and its end. */
export function facts(state, steering, words, { stopped = false, named = false, cut = null } = {}) {
  const { names } = state;
  const effective = steering ? fromWeights(steering.effective, names) : null;
  return html(
    "p",
    { class: "facts" },
    html("b", {}, plural(words, "word")),
    effective && !named ? html("span", {}, "answered as ", directionName(effective, names)) : null,
    effective && steering.projected && apart(normalise(fromWeights(steering.requested, names)), effective) ? html("span", { class: "flag" }, "pulled back into the trained range") : null,
    stopped ? html("span", { class: "flag" }, "stopped before its end") : null,
    cut === null ? null : html("span", { class: "flag" }, `cut at ${plural(cut, "token")}: its length is a lower bound`),
  );
}

/** Rewards (K,) of an answer: from its echo, or asked for; null where the server has no reward model. */
export async function rewardsOf(state, steering, messages, response, signal) {
  if (!state.hasRewards) return null;
  if (steering?.rewards) return fromWeights(steering.rewards, state.names);
  const body = { messages, response, steering: { weights: toWeights(state.requested, state.names) } };
  return fromWeights((await call("POST", "steering/score", body, { signal })).rewards, state.names);
}

/** Meters, or why there are none. */
export function measure(state, rewards, spread = null) {
  if (rewards) return meters(state.objectives, rewards, spread);
  return html("p", { class: "soft" }, "No reward model is served here, so answers cannot be measured; only their length is known.");
}
