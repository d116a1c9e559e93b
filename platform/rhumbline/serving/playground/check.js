// The check of a chat's answer: from one answer nothing is claimed; the button asks the model often enough to claim something.

import { fromWeights } from "./directions.js";
import { handOver, html } from "./elements.js";
import { failure } from "./notices.js";
import { aim } from "./state.js";
import { ROUNDS, compareRounds, cutWords, judge, meanWords, same, sentence } from "./verdict.js";

/** The line under an answer that offers the check, then tells how far it is, then its verdict. `over` ends it. */
export function check(state, { steering, messages, settings, over }) {
  const asked = steering ? fromWeights(steering.effective, state.names) : aim(state).effective;
  if (same(asked, state.neutral)) {
    return html("p", { class: "verdict" }, "This is the neutral direction: there is no movement to look for.");
  }
  const says = html("span", {}, "Moved in the asked direction: unclear from one answer. ");
  const place = html("p", { class: "verdict", "aria-live": "polite", tabindex: -1 }, says);
  const button = html("button", { type: "button", class: "quiet", onclick: () => run() }, `Check with ${ROUNDS} answers against neutral`);
  place.append(button);

  /** Shows `nodes` instead. The keyboard stays on the line, whichever of its buttons it was on. */
  function put(...nodes) {
    place.replaceChildren(...nodes);
    handOver(place);
  }

  async function run() {
    const controller = new AbortController();
    over.addEventListener("abort", () => controller.abort());
    put(says, html("button", { type: "button", class: "quiet", onclick: () => controller.abort() }, "Stop"));
    try {
      const question = {
        messages,
        directions: [state.neutral, asked],
        maxTokens: settings.maxTokens,
        temperature: settings.temperature || 0.7, // without sampling there is only one answer to repeat
        seed: settings.seed ?? 0,
      };
      const all = await compareRounds(state, question, ROUNDS, (t) => (says.textContent = `${t} `), controller.signal);
      const rewards = [0, 1].map((k) => all.map((results) => fromWeights(results[k].steering.rewards, state.names)));
      const verdict = judge(state.objectives, state.neutral, asked, rewards[0], rewards[1]);
      place.dataset.moved = verdict.moved;
      const words = `Words: ${meanWords(all, 1)} against ${meanWords(all, 0)} on average.`;
      put(`${sentence(verdict)} ${words}${cutWords(all.flat(), question.maxTokens)}`);
    } catch (error) {
      says.textContent = "Moved in the asked direction: not checked. ";
      put(says, button, error.kind === "stopped" ? "" : failure(error, run));
    }
  }

  return place;
}
