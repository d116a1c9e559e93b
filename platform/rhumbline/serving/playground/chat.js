// A conversation in the current direction, streamed; every answer measured, and checked against neutral on request.

import { call, stream } from "./api.js";
import { fromWeights, toWeights } from "./directions.js";
import { announce, bringIntoView, find, html } from "./elements.js";
import { directionName, facts, measure, rewardsOf } from "./measured.js";
import { failure } from "./notices.js";
import { aim } from "./state.js";
import { ROUNDS, compareRounds, judge, meanWords, same, sentence } from "./verdict.js";
import { plural, wordCount } from "./words.js";

export function chat(store, readSettings) {
  const log = find("chat-log");
  const form = find("chat-form");
  const box = find("chat-text");
  const send = find("chat-send");
  const stop = find("chat-stop");
  const clear = find("chat-clear");
  const empty = find("chat-empty");
  let turns = []; // { user, reply } of the answers that count as said
  let running = null;
  let following = true; // the end of the conversation stays in sight until somebody scrolls up
  log.addEventListener("scroll", () => (following = log.scrollHeight - log.scrollTop - log.clientHeight < 80));
  new MutationObserver(() => following && (log.scrollTop = log.scrollHeight)).observe(log, {
    childList: true,
    subtree: true,
    characterData: true,
  });

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = box.value.trim();
    if (!text || running) return;
    box.value = "";
    empty.hidden = true;
    store.set({ prompt: text });
    const asked = html("div", { class: "turn mine" }, html("p", { class: "who" }, "You"), html("p", { class: "text" }, text));
    const answer = html("article", { class: "turn reply" });
    log.append(asked, answer);
    reply(text, answer);
  });
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  stop.addEventListener("click", () => running?.abort());
  clear.addEventListener("click", () => {
    running?.abort();
    turns = [];
    log.replaceChildren();
    empty.hidden = false;
    store.set({ points: [] });
    box.focus();
  });

  function busy(controller) {
    running = controller;
    send.disabled = controller !== null;
    stop.hidden = controller === null;
  }

  const history = (text) => [
    ...turns.flatMap((turn) => [
      { role: "user", content: turn.user },
      { role: "assistant", content: turn.reply },
    ]),
    { role: "user", content: text },
  ];

  async function reply(user, article) {
    const state = store.get();
    const controller = new AbortController();
    const messages = history(user);
    const settings = readSettings();
    const text = document.createTextNode("");
    const shown = html("p", { class: "text waiting" }, text);
    article.replaceChildren(html("p", { class: "who" }, "Model"), shown);
    article.setAttribute("aria-busy", "true");
    busy(controller);
    following = true;
    if (log.scrollHeight <= log.clientHeight) bringIntoView(article, "nearest"); // on a phone the page scrolls
    let steering = null;
    let stopped = false;
    try {
      for await (const chunk of answers(state, messages, settings, controller.signal)) {
        steering = chunk.steering ?? steering;
        const piece = (chunk.choices?.[0]?.delta ?? chunk.choices?.[0]?.message)?.content;
        if (piece) text.data += piece;
        if (piece) shown.classList.remove("waiting");
      }
    } catch (error) {
      stopped = error.kind === "stopped";
      if (!stopped || !text.data) {
        busy(null);
        article.removeAttribute("aria-busy");
        // Nothing of a broken answer enters the conversation: the retry asks the same question again.
        article.append(failure(error, () => reply(user, article)));
        return;
      }
    }
    busy(null);
    article.removeAttribute("aria-busy");
    shown.classList.remove("waiting");
    turns.push({ user, reply: text.data });
    announce(`Answer of ${plural(wordCount(text.data), "word")}.`);
    article.append(facts(state, steering, wordCount(text.data), { stopped }));
    await weigh(state, article, { steering, messages, text: text.data, settings, stopped });
  }

  async function weigh(state, article, said) {
    const place = html("div", { class: "measured" }, html("p", { class: "soft" }, state.hasRewards ? "Scoring…" : ""));
    article.append(place);
    try {
      const rewards = await rewardsOf(state, said.steering, said.messages, said.text);
      place.replaceChildren(measure(state, rewards));
      if (rewards) {
        store.set({ points: [{ label: "1", rewards }] });
        place.append(checkButton(state, said));
      }
    } catch (error) {
      place.replaceChildren(failure(error, () => (place.remove(), weigh(state, article, said))));
    }
  }

  /** From one answer nothing is claimed; the button asks the model often enough to claim something. */
  function checkButton(state, { steering, messages, settings }) {
    const asked = steering ? fromWeights(steering.effective, state.names) : aim(state).effective;
    if (same(asked, state.neutral)) {
      return html("p", { class: "verdict" }, "This is the neutral direction: there is no movement to look for.");
    }
    const says = html("span", {}, "Moved in the asked direction: unclear from one answer. ");
    const place = html("p", { class: "verdict", "aria-live": "polite" }, says);
    const button = html("button", { type: "button", class: "quiet" }, `Check with ${ROUNDS} answers against neutral`);
    place.append(button);
    button.addEventListener("click", async () => {
      const controller = new AbortController();
      const cancel = html("button", { type: "button", class: "quiet", onclick: () => controller.abort() }, "Stop");
      place.replaceChildren(says, cancel);
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
        place.replaceChildren(`${sentence(verdict)} Words: ${meanWords(all, 1)} against ${meanWords(all, 0)} on average.`);
      } catch (error) {
        says.textContent = "Moved in the asked direction: not checked. ";
        place.replaceChildren(says, button);
        if (error.kind !== "stopped") place.append(failure(error, () => button.click()));
      }
    });
    return place;
  }
}

/** The chunks of an answer; with best of n the whole answer as the only one, since a choice needs all of them whole. */
async function* answers(state, messages, settings, signal) {
  const body = request(state, messages, settings);
  if (settings.bestOf > 1) yield await call("POST", "chat/completions", body, { signal });
  else yield* stream("chat/completions", { ...body, stream: true, stream_options: { include_usage: true } }, { signal });
}

function request(state, messages, { maxTokens, temperature, seed, bestOf }) {
  return {
    model: state.model,
    messages,
    max_tokens: maxTokens,
    temperature,
    ...(seed === null ? {} : { seed }),
    steering: {
      weights: toWeights(state.requested, state.names),
      out_of_range: "project",
      return_rewards: state.hasRewards,
      ...(bestOf > 1 ? { best_of: bestOf } : {}),
    },
  };
}

/** The line over the conversation that says in which direction the next answer will be. */
export function nextDirection(store) {
  store.subscribe((state) => {
    const { effective, projected } = aim(state);
    for (const place of document.querySelectorAll("[data-current-direction]")) {
      place.replaceChildren(directionName(effective, state.names), projected ? ", pulled back into the trained range" : "");
    }
  });
}
