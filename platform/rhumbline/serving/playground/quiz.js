// The quiz: two answers, which do you prefer? The wedge on the dial is where your direction lies so far.

import { ApiError, call } from "./api.js";
import { angleOf, fromWeights, normalise } from "./directions.js";
import { announce, bringIntoView, find, html } from "./elements.js";
import { directionName } from "./measured.js";
import { failure, note } from "./notices.js";
import { describe, number, plural } from "./words.js";

const KEPT = "rhumbline.quiz";

export function quiz(store) {
  const root = find("quiz");
  const { names, hasQuiz } = store.get();

  const button = (text, action, attributes = {}) => html("button", { type: "button", onclick: action, ...attributes }, text);

  /** Runs one step at the server; a failure leaves what is shown and offers the step again. */
  async function step(work) {
    root.setAttribute("aria-busy", "true");
    root.querySelectorAll(".note[role=alert]").forEach((old) => old.remove());
    for (const control of root.querySelectorAll("button")) control.disabled = true;
    try {
      await work();
    } catch (error) {
      for (const control of root.querySelectorAll("button")) control.disabled = false;
      root.append(failure(error, () => step(work)));
    } finally {
      root.removeAttribute("aria-busy");
    }
  }

  function welcome() {
    store.set({ wedge: null });
    if (!hasQuiz) {
      root.replaceChildren(
        note("info", "There is no quiz here", "It needs a run that was evaluated, for its questions, and a place to keep answers. The direction can be set by hand."),
        html("p", { class: "actions" }, byHand()),
      );
      return;
    }
    root.replaceChildren(
      html("h3", {}, "Find your direction by comparing answers"),
      html(
        "p",
        {},
        `You see two answers to the same prompt and say which one you prefer. After a few of them, about ${Math.max(6, 3 * names.length)} at most, `,
        "your direction is known well enough. You can stop or set it by hand at any time.",
      ),
      html("p", { class: "actions" }, button("Start", () => step(start)), byHand()),
    );
  }

  async function start() {
    const state = await call("POST", "steering/quiz", {});
    sessionStorage.setItem(KEPT, state.id);
    show(state);
  }

  async function resume() {
    const id = sessionStorage.getItem(KEPT);
    if (!id || !hasQuiz) return;
    try {
      show(await call("GET", `steering/quiz/${encodeURIComponent(id)}`));
    } catch (error) {
      // The quiz is another key's, or was swept away: begin anew. Anything else may pass, so the id is kept.
      if (error instanceof ApiError && (error.status === 404 || error.kind === "key")) sessionStorage.removeItem(KEPT);
    }
  }

  const tell = (state, path, body) => call("POST", `steering/quiz/${encodeURIComponent(state.id)}/${path}`, body);

  function show(state) {
    if (names.length === 2) store.set({ wedge: state.estimate.asked ? state.wedge : null });
    if (state.done || !state.question) result(state);
    else question(state);
  }

  /** The state after an answer; where it was given already, in another tab or before a retry, the state as it is. */
  async function answered(state, question, choice) {
    try {
      return await tell(state, "answer", { question, choice });
    } catch (error) {
      if (error.status !== 409) throw error;
      return call("GET", `steering/quiz/${encodeURIComponent(state.id)}`);
    }
  }

  function question(state) {
    const { index, prompt, a, b } = state.question;
    const answer = (choice) => step(async () => show(await answered(state, index, choice)));
    const choices = html(
      "p",
      { class: "actions choices" },
      button("I prefer A", () => answer("a")),
      button("About the same", () => answer("tie")),
      button("I prefer B", () => answer("b")),
    );
    const heading = html("h3", { tabindex: -1 }, `Question ${index + 1}${state.limit ? ` of at most ${state.limit}` : ""}: which answer do you prefer?`);
    root.replaceChildren(
      heading,
      html("div", { class: "quiz-prompt" }, ...turns(prompt)),
      html("div", { class: "pair" }, option("A", a), option("B", b)),
      choices,
      sofar(state),
      html("p", { class: "actions" }, byHand(), button("Start again", () => step(start), { class: "quiet" })),
    );
    if (state.estimate.asked) focusAt(heading);
  }

  const option = (letter, text) => html("section", { class: "column", "aria-label": `Answer ${letter}` }, html("h4", {}, `Answer ${letter}`), html("p", { class: "text" }, text));

  /** A prompt is a text or a conversation. */
  function turns(prompt) {
    if (typeof prompt === "string") return [html("p", { class: "text" }, prompt)];
    return prompt.map((m) => html("p", { class: "text" }, html("b", { class: "who" }, `${m.role === "user" ? "Asked" : m.role}: `), m.content));
  }

  function spread({ estimate, wedge }) {
    const half = `± ${number(estimate.half_angle_deg, 0)}°`;
    if (!wedge) return `sure to ${half}`;
    return `between ${number(wedge[0], 0)}° and ${number(wedge[1], 0)}°, ${half}`;
  }

  function sofar(state) {
    if (!state.estimate.asked) return html("p", { class: "soft" }, "Nothing is known about you yet.");
    const v = normalise(fromWeights(state.estimate.direction, names));
    return html("p", { class: "soft", role: "status" }, `So far, after ${plural(state.estimate.asked, "answer")}: `, directionName(v, names), `, ${spread(state)}.`);
  }

  function result(state) {
    const v = normalise(fromWeights(state.estimate.direction, names));
    const name = html("input", { id: "profile-name", type: "text", maxlength: 64, required: true, autocomplete: "off", spellcheck: "false", pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]*", title: "Letters, digits, dots, dashes and underscores; no spaces" });
    const bind = html("input", { id: "profile-bind", type: "checkbox" });
    const saved = html("p", { role: "status", class: "soft" });
    const save = html(
      "form",
      { class: "save" },
      html("label", { for: name.id }, "Save it as a profile of your key"),
      html("div", { class: "inline" }, name, html("button", { type: "submit" }, "Save")),
      html("label", { class: "check", for: bind.id }, bind, "Answer this key in it whenever a request names no direction"),
      saved,
    );
    save.addEventListener("submit", (event) => {
      event.preventDefault();
      const profile = name.value.trim();
      step(async () => {
        await tell(state, "save", { profile, bind: bind.checked });
        for (const control of root.querySelectorAll("button")) control.disabled = false;
        saved.textContent = bind.checked
          ? `Saved as ${profile}: requests with this key follow it from now on.`
          : `Saved. Requests with this key may now say "steering": {"profile": ${JSON.stringify(profile)}}.`;
      });
    });
    const more = state.question || state.done ? button("Keep asking", () => step(async () => show(await tell(state, "more", {}))), { class: "quiet" }) : null;
    const heading = html("h3", { tabindex: -1 }, `Your direction: ${describe(v, names)}`);
    root.replaceChildren(
      heading,
      html("p", {}, names.length === 2 ? `${number(angleOf(v), 0)}°, ` : "", `${spread(state)}: nine times in ten it lies there. Found by ${plural(state.estimate.asked, "answer")}.`),
      html("p", { class: "actions" }, button("Use this direction", () => use(v)), more, byHand(), button("Start again", () => step(start), { class: "quiet" })),
      save,
    );
    focusAt(heading);
    announce(`Done. Your direction: ${describe(v, names)}.`);
  }

  function focusAt(heading) {
    heading.focus({ preventScroll: true });
    bringIntoView(root, "nearest");
  }

  function use(v) {
    store.set({ requested: v });
    root.prepend(note("info", "Set", "Your direction is on the dial now; the next answer follows it."));
    announce("Your direction is set.");
  }

  function byHand() {
    return button(
      "I’ll set it by hand",
      () => {
        const control = document.querySelector("#direction [role=slider], #direction input[type=range]");
        bringIntoView(find("direction"));
        control.focus({ preventScroll: true });
      },
      { class: "quiet" },
    );
  }

  welcome();
  return { resume };
}
