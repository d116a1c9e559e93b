// One prompt in two to five directions, with one seed, side by side. The answers are numbered, here and on the front.

import { between, fromWeights, normalise, sweep, sweepable } from "./directions.js";
import { announce, field, find, handOver, html } from "./elements.js";
import { cutAt, directionName, facts, measure } from "./measured.js";
import { failure } from "./notices.js";
import { aim, presetAt } from "./state.js";
import { ROUNDS, compareOnce, compareRounds, cutWords, interval, judge, meanWords, same, sentence } from "./verdict.js";
import { plural } from "./words.js";

const MOST = 5;

export function compare(store, readSettings) {
  const { names, region, presets, neutral } = store.get();
  const form = find("compare-form");
  const list = find("compare-directions");
  const add = find("compare-add");
  const box = find("compare-text");
  const go = find("compare-go");
  const stop = find("compare-stop");
  const out = find("compare-results");
  const along = html("select", { class: "along" }, names.map((name, i) => (sweepable(region, i) ? html("option", { value: i }, name.replaceAll("_", " ")) : null)));
  let columns = [];
  let running = null;

  const button = (text, action) => html("button", { type: "button", class: "quiet", onclick: action }, text);
  const axis = names.length > 2 && along.options.length > 1 ? field("Sweep along", along) : null;
  add.append(
    ...[axis].filter(Boolean),
    button("Sweep the trained range", () => choose(sweep(region, MOST, Number(along.value || 0)))),
    button("Add the current direction", () => choose([...columns, store.get().requested])),
    button("Add neutral", () => choose([...columns, neutral])),
    ...(presets.length ? [button("The presets", () => choose(presets.slice(0, MOST).map((p) => p.direction)))] : []),
    button("None", () => choose([])),
  );
  along.value = String(Math.max(0, names.findIndex((_, i) => i > 0 && sweepable(region, i))));

  function choose(next) {
    const apart = next.filter((v, i) => next.findIndex((w) => between(v, w) < 0.5) === i);
    columns = apart.slice(0, MOST);
    list.replaceChildren(
      ...columns.map((v, i) =>
        html(
          "li",
          {},
          html("b", { class: "badge" }, i + 1),
          html("span", {}, presetAt(store.get(), v) ? `${presetAt(store.get(), v).name}: ` : "", directionName(v, names)),
          html("button", { type: "button", class: "remove", "aria-label": `Remove direction ${i + 1}`, onclick: () => remove(i) }, "✕"),
        ),
      ),
    );
    const fits = columns.length >= 2;
    go.disabled = !fits || running !== null;
    find("compare-hint").textContent = fits ? "" : "Choose two to five different directions.";
  }
  choose(sweep(region, 3, Number(along.value || 0)));

  function remove(i) {
    choose(columns.toSpliced(i, 1));
    (list.children[i]?.querySelector(".remove") ?? find("compare-title")).focus();
  }

  stop.addEventListener("click", () => {
    running?.abort();
    box.focus();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running && box.value.trim() && columns.length >= 2) first(box.value.trim(), [...columns]);
  });
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });

  function busy(controller) {
    if (controller === null && document.activeElement === stop) box.focus();
    running = controller;
    go.disabled = controller !== null || columns.length < 2;
    stop.hidden = controller === null;
    for (const offer of out.querySelectorAll(".check-offer button")) offer.disabled = controller !== null;
  }

  async function first(prompt, directions) {
    if (running) return;
    const state = store.get();
    const { maxTokens, temperature, seed } = readSettings();
    const question = { messages: [{ role: "user", content: prompt }], directions, maxTokens, temperature, seed: seed ?? 0 };
    store.set({ prompt });
    await task(
      () => first(prompt, directions),
      (text) => out.replaceChildren(waiting(directions, text)),
      async (signal, says) => {
        says(`Asking for ${plural(directions.length, "answer")}…`);
        const { results } = await compareOnce(state, question, signal);
        show(state, question, [results]);
        announce(`${directions.length} answers of ${results.map((r) => r.words).join(", ")} words.`);
      },
    );
  }

  async function check(state, question) {
    if (running) return;
    const status = html("p", { class: "soft", role: "status" });
    out.prepend(status);
    await task(
      () => check(state, question),
      (text) => (status.textContent = text),
      async (signal, says) => {
        const sampled = { ...question, temperature: question.temperature || 0.7 };
        const all = await compareRounds(state, sampled, ROUNDS, says, signal);
        show(state, sampled, all);
      },
      () => status.remove(),
    );
  }

  async function task(retry, says, work, cleanUp = () => {}) {
    const controller = new AbortController();
    out.querySelectorAll(":scope > .note").forEach((old) => old.remove()); // of an earlier try, with its own way to try again
    busy(controller);
    handOver(out);
    out.setAttribute("aria-busy", "true");
    try {
      await work(controller.signal, says);
    } catch (error) {
      cleanUp();
      out.querySelectorAll(".waiting-columns").forEach((node) => node.remove());
      out.prepend(failure(error, retry));
    } finally {
      busy(null);
      out.removeAttribute("aria-busy");
    }
  }

  function waiting(directions, text) {
    const columnsNow = directions.map((v, i) => column(i, directionName(v, names), html("p", { class: "text waiting" })));
    return html("div", { class: "waiting-columns" }, html("p", { class: "soft", role: "status" }, text), html("div", { class: "columns" }, columnsNow));
  }

  const column = (i, name, ...rest) => html("article", { class: "column" }, html("h3", {}, html("b", { class: "badge" }, i + 1), name), ...rest);

  /** [round][direction] results: the first round's answers, and means with verdicts where there are several. */
  function show(state, question, all) {
    const took = question.directions.map((_, k) => normalise(fromWeights(all[0][k].steering.effective, names)));
    const neutralAt = took.findIndex((v) => same(v, state.neutral));
    const reference = neutralAt < 0 ? 0 : neutralAt;
    const rewards = took.map((_, k) => (state.hasRewards ? all.map((results) => rewardVector(results[k])) : null));
    const many = all.length > 1;
    const articles = took.map((v, k) => {
      const said = all[0][k];
      const stats = many && rewards[k] ? names.map((_, i) => interval(rewards[k].map((r) => r[i]))) : null;
      const mean = stats ? stats.map((s) => s.mean) : (rewards[k]?.[0] ?? null);
      return column(
        k,
        directionName(v, names),
        html("p", { class: "text", tabindex: 0, "aria-label": `Answer ${k + 1}` }, said.message.content),
        facts(state, said.steering, said.words, { named: true, cut: cutAt(said.finish_reason, said.usage, question.maxTokens) }),
        many ? html("p", { class: "soft" }, `Below: means of ${all.length} answers, ${meanWords(all, k)} words on average.${cutWords(all.map((results) => results[k]), question.maxTokens)}`) : null,
        measure(state, mean, stats?.map((s) => s.half) ?? null),
        rewards[k] ? claim(state, took, rewards, k, reference, many) : null,
      );
    });
    store.set({
      points: rewards.flatMap((r, k) => (r ? [{ label: String(k + 1), rewards: names.map((_, i) => interval(r.map((x) => x[i])).mean) }] : [])),
    });
    const actions = state.hasRewards && !many ? [checkOffer(() => check(state, question))] : [];
    out.replaceChildren(html("div", { class: "columns", tabindex: 0, role: "group", "aria-label": "Answers side by side" }, articles), ...actions);
  }

  const rewardVector = (result) => fromWeights(result.steering.rewards, names);

  function claim(state, took, rewards, k, reference, many) {
    if (k === reference) return html("p", { class: "verdict" }, "The others are measured against this one.");
    if (!many) return html("p", { class: "verdict" }, "Moved in the asked direction: unclear from one answer.");
    const verdict = judge(state.objectives, took[reference], took[k], rewards[reference], rewards[k], took.length - 1);
    return html("p", { class: "verdict", "data-moved": verdict.moved }, sentence(verdict, `answer ${reference + 1}`));
  }

  const checkOffer = (action) =>
    html(
      "p",
      { class: "check-offer" },
      html("button", { type: "button", onclick: action }, `Check with ${ROUNDS} answers each`),
      html("span", { class: "soft" }, " One answer per direction shows what it can sound like, not what the direction does."),
    );
}
