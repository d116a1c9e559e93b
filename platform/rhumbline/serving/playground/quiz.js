// The quiz: two answers, which do you prefer? The wedge on the dial is where your direction lies so far.

import { ApiError, call } from "./api.js";
import { angleOf, fromWeights, normalise } from "./directions.js";
import { announce, bringIntoView, find, handOver, html } from "./elements.js";
import { directionName } from "./measured.js";
import { failure, note } from "./notices.js";
import { describe, number, plural } from "./words.js";

const KEPT = "rhumbline.quiz";
const ENDS = {
  certain: "it was certain enough",
  limit: "the number of questions was reached",
  no_questions: "there are no questions left",
};

const GONE = "The quiz that you began is not there any more, or was begun with another key.";
const OTHERS = "The quiz that you began was about another model’s objectives, so it was put away.";

/** Why a kept quiz can never go on, or null: other failures may pass, and its answers are still there. */
const lost = ({ code }) => (code === "other_model" ? OTHERS : code === "unknown_quiz" ? GONE : null);

export function quiz(store) {
  const root = find("quiz");
  const { names, hasQuiz } = store.get();

  const button = (text, action, attributes = {}) => html("button", { type: "button", onclick: action, ...attributes }, text);

  /** Runs one step at the server; a failure leaves what is shown and offers the step again. */
  async function step(work) {
    const pressed = document.activeElement;
    root.setAttribute("aria-busy", "true");
    root.querySelectorAll(".note[role=alert]").forEach((old) => old.remove());
    const controls = [...root.querySelectorAll("button")];
    for (const control of controls) control.disabled = true;
    try {
      await work();
    } catch (error) {
      failed(error, () => step(work));
    } finally {
      for (const control of controls) control.disabled = false;
      root.removeAttribute("aria-busy");
      if (pressed.isConnected) handOver(pressed);
    }
  }

  /** Below what is there what went wrong, or the way to a new quiz, because of `why` the kept one cannot go on. */
  function failed(error, retry, why = lost(error)) {
    if (why) {
      sessionStorage.removeItem(KEPT);
      welcome(why);
      return;
    }
    const told = failure(error, retry);
    root.append(told);
    handOver(told);
    if (!(error instanceof ApiError)) throw error; // a fault of this page: shown, and in the console with its place
  }

  function welcome(why = null) {
    store.set({ wedge: null });
    if (!hasQuiz) {
      root.replaceChildren(
        note("info", "There is no quiz here", "It needs a run that was evaluated, for its questions, and a place to keep answers. The direction can be set by hand."),
        html("p", { class: "actions" }, byHand()),
      );
      return;
    }
    const heading = html("h3", { tabindex: -1 }, "Find your direction by comparing answers");
    root.replaceChildren(
      why ? note("info", "A new quiz", why) : "",
      heading,
      html(
        "p",
        {},
        `You see two answers to the same prompt and say which one you prefer. After a few of them, about ${Math.max(6, 3 * names.length)} at most, `,
        "your direction is estimated, with how sure the quiz is of it. You can stop or set it by hand at any time.",
      ),
      html("p", { class: "actions" }, button("Start", () => step(start)), byHand()),
    );
    if (!why) return;
    handOver(heading);
    announce(why);
  }

  async function start() {
    const state = await call("POST", "steering/quiz", {});
    sessionStorage.setItem(KEPT, state.id);
    show(state);
  }

  /** The quiz that this tab began. Meanwhile, and where that fails, there is no Start: another quiz would take its place. */
  async function resume() {
    const id = sessionStorage.getItem(KEPT);
    if (!id || !hasQuiz) return;
    root.replaceChildren(html("p", { class: "soft", role: "status" }, "Asking for the quiz that you began…"));
    try {
      show(await call("GET", `steering/quiz/${encodeURIComponent(id)}`));
    } catch (error) {
      root.replaceChildren();
      failed(error, resume, lost(error) ?? ([401, 404].includes(error.status) ? GONE : null));
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
    focusAt(heading);
  }

  const option = (letter, text) => html("section", { class: "column", "aria-label": `Answer ${letter}` }, html("h4", {}, `Answer ${letter}`), html("p", { class: "text" }, text));

  /** A prompt is a text or a conversation. */
  function turns(prompt) {
    if (typeof prompt === "string") return [html("p", { class: "text" }, prompt)];
    return prompt.map((m) => html("p", { class: "text" }, html("b", { class: "who" }, `${m.role === "user" ? "Asked" : m.role}: `), m.content));
  }

  function spread({ estimate, wedge }) {
    const half = `± ${number(estimate.half_angle_deg, 0)}°`;
    if (!wedge) return `within ${half}`;
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
      html("p", {}, names.length === 2 ? `${number(angleOf(v), 0)}°, ` : "", `${spread(state)}. If you answer as consistently as the quiz assumes, it lies there nine times in ten.`),
      html("p", { class: "soft" }, `Found by ${plural(state.estimate.asked, "answer")}${state.reason in ENDS ? `; the quiz stopped because ${ENDS[state.reason]}` : ""}.`),
      html("p", { class: "actions" }, button("Use this direction", () => use(v)), more, byHand(), button("Start again", () => step(start), { class: "quiet" })),
      save,
    );
    focusAt(heading);
    announce(`Done. Your direction: ${describe(v, names)}.`);
  }

  /** To what replaced the button that was pressed. A quiz that comes back with its tab leaves the keyboard on the tab. */
  function focusAt(heading) {
    if (handOver(heading)) bringIntoView(root, "nearest");
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
