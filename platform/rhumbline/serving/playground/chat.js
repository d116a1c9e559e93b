// A conversation in the current direction, streamed; every answer measured, and checked against neutral on request.

import { call, stream } from "./api.js";
import { check } from "./check.js";
import { toWeights } from "./directions.js";
import { announce, bringIntoView, find, handOver, html } from "./elements.js";
import { cutAt, directionName, facts, measure, rewardsOf } from "./measured.js";
import { failure } from "./notices.js";
import { aim } from "./state.js";
import { plural, wordCount } from "./words.js";

// A conversation: the answers that count as said, as { user, reply }, and the signal that it was cleared.
const beginning = () => ({ turns: [], over: new AbortController() });

export function chat(store, readSettings) {
  const log = find("chat-log");
  const form = find("chat-form");
  const box = find("chat-text");
  const send = find("chat-send");
  const stop = find("chat-stop");
  const clear = find("chat-clear");
  const empty = find("chat-empty");
  let talk = beginning();
  let running = null; // the AbortController of the answer that is being written
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
    const answer = html("article", { class: "turn reply", tabindex: -1 });
    retire();
    log.append(asked, answer);
    reply(text, answer);
  });
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  stop.addEventListener("click", () => {
    running?.abort();
    box.focus();
  });
  clear.addEventListener("click", () => {
    talk.over.abort();
    talk = beginning();
    busy(null);
    log.replaceChildren();
    empty.hidden = false;
    store.set({ points: [], prompt: "" }); // the prompt is in the requests to copy, too
    box.focus();
  });

  function busy(controller) {
    if (controller === null && document.activeElement === stop) box.focus();
    running = controller;
    send.disabled = controller !== null;
    stop.hidden = controller === null;
  }

  /** Once the conversation goes on a question that failed cannot be asked again: its answer would come after later ones. */
  function retire() {
    for (const actions of log.querySelectorAll(":scope > .reply > .note > .note-actions")) {
      actions.replaceWith(html("p", { class: "soft" }, "This message is not part of the conversation."));
    }
  }

  const history = (text) => [
    ...talk.turns.flatMap((turn) => [
      { role: "user", content: turn.user },
      { role: "assistant", content: turn.reply },
    ]),
    { role: "user", content: text },
  ];

  async function reply(user, article) {
    if (running) return;
    const state = store.get();
    const mine = talk;
    const controller = new AbortController();
    mine.over.signal.addEventListener("abort", () => controller.abort());
    const messages = history(user);
    const settings = readSettings();
    const text = document.createTextNode("");
    const shown = html("p", { class: "text waiting" }, text);
    article.replaceChildren(html("p", { class: "who" }, "Model"), shown);
    article.setAttribute("aria-busy", "true");
    busy(controller);
    handOver(article);
    following = true;
    if (log.scrollHeight <= log.clientHeight) bringIntoView(article, "nearest"); // on a phone the page scrolls
    let [steering, usage, finish, failed] = [null, null, null, null];
    try {
      for await (const chunk of answers(state, messages, settings, controller.signal)) {
        steering = chunk.steering ?? steering;
        usage = chunk.usage ?? usage;
        const choice = chunk.choices?.[0];
        finish = choice?.finish_reason ?? finish;
        const piece = (choice?.delta ?? choice?.message)?.content;
        if (piece) text.data += piece;
        if (piece) shown.classList.remove("waiting");
      }
    } catch (error) {
      failed = error;
    }
    if (mine !== talk) return; // cleared meanwhile: nothing of it enters the next conversation
    busy(null);
    article.removeAttribute("aria-busy");
    const stopped = failed?.kind === "stopped";
    if (failed && !(stopped && text.data)) {
      // Nothing of a broken answer enters the conversation: the retry asks the same question again.
      article.append(failure(failed, () => reply(user, article)));
      return;
    }
    shown.classList.remove("waiting");
    mine.turns.push({ user, reply: text.data });
    const cut = cutAt(finish, settings.bestOf > 1 ? null : usage, settings.maxTokens); // best of n: the usage is of all n
    announce(`Answer of ${plural(wordCount(text.data), "word")}${cut === null ? "" : ", cut"}.`);
    article.append(facts(state, steering, wordCount(text.data), { stopped, cut }));
    await weigh(state, article, { steering, messages, text: text.data, settings, over: mine.over.signal });
  }

  async function weigh(state, article, said) {
    const place = html("div", { class: "measured" }, html("p", { class: "soft" }, state.hasRewards ? "Scoring…" : ""));
    article.append(place);
    try {
      const rewards = await rewardsOf(state, said.steering, said.messages, said.text, said.over);
      if (said.over.aborted) return;
      place.replaceChildren(measure(state, rewards));
      if (!rewards) return;
      if (article === log.lastElementChild) store.set({ points: [{ label: "1", rewards }] });
      place.append(check(state, said));
    } catch (error) {
      place.replaceChildren(failure(error, () => (place.remove(), handOver(article), weigh(state, article, said))));
    }
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
