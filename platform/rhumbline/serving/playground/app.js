// The playground: asks the server what it serves, then puts the panels on the page.

import { call, key, passing, setKey, wrongKey } from "./api.js";
import { chat, nextDirection } from "./chat.js";
import { compare } from "./compare.js";
import { dial } from "./dial.js";
import { angleOf, between } from "./directions.js";
import { bringIntoView, find, html } from "./elements.js";
import { elsewhere, shareLink } from "./elsewhere.js";
import { front } from "./front.js";
import { failure, note } from "./notices.js";
import { quiz } from "./quiz.js";
import { untilReady } from "./readiness.js";
import { settings } from "./settings.js";
import { sliders } from "./sliders.js";
import { aim, arc, createStore, presetAt, served } from "./state.js";
import { degrees, describe, weightsText } from "./words.js";

const startUp = find("start-up");
const keyBox = find("api-key");
const keyState = find("key-state");

async function boot() {
  startUp.replaceChildren(html("p", { class: "soft", role: "status" }, "Asking the server what it serves…"));
  try {
    const [description, presets] = await Promise.all([call("GET", "steering/objectives"), call("GET", "steering/presets")]);
    open(createStore(served(description, presets)));
    startUp.replaceChildren();
  } catch (error) {
    startUp.replaceChildren(failure(error, boot, { automatic: passing(error) }));
    if (error.kind === "key") keyBox.focus();
    if (!error.kind) throw error; // a fault of this page: shown, and in the console with its place
  }
}

let opened = false;

function open(store) {
  if (opened) return;
  const state = store.get();
  find("model-name").textContent = state.model;
  document.title = `${state.model} · Rhumbline playground`;
  about(state);
  const k2 = state.names.length === 2;
  (k2 ? dial : sliders)(find("control"), store);
  find("dial-help").hidden = !k2;
  readout(store);
  presetChips(store);
  front(find("front"), store);
  elsewhere(store);
  const read = settings(find("settings"), state);
  chat(store, read);
  compare(store, read);
  const { resume } = quiz(store);
  nextDirection(store);
  shareLink(store);
  tabs({ quiz: resume });
  find("page").hidden = false;
  opened = true;
}

/** What a person must know before believing the dial. */
function about({ effect, hasRewards, mechanism, method, templateVersion }) {
  const notes = [];
  if (!effect.proven) notes.push(note("care", "Steering has not been shown to work for this model", effect.why || "Its run holds no evaluation of it."));
  if (!hasRewards) notes.push(note("info", "No reward model is served here", "Answers cannot be measured: only their length is known."));
  find("model-notes").replaceChildren(...notes);
  const how = mechanism === "weights" ? "steered by mixed weights" : "steered by a line in its prompt";
  find("model-facts").textContent = [how, method, templateVersion].filter(Boolean).join(" · ");
}

function readout(store) {
  const words = find("direction-words");
  const numbers = find("direction-numbers");
  const warning = find("direction-warning");
  store.subscribe((state) => {
    const { requested, effective, projected } = aim(state);
    const k2 = state.names.length === 2;
    words.textContent = describe(effective, state.names);
    numbers.textContent = (k2 ? `${degrees(angleOf(effective))} · ` : "") + weightsText(effective, state.names);
    warning.hidden = !projected;
    find("wedge-key").hidden = !state.wedge;
    if (!projected) return;
    const asked = k2 ? degrees(angleOf(requested)) : weightsText(requested, state.names);
    const range = k2 ? arc(state.region).map(degrees).join(" to ") : `${degrees(state.region.half)} around its middle`;
    const here = k2 ? degrees(angleOf(effective)) : weightsText(effective, state.names);
    warning.textContent = `You ask for ${asked}. The model was trained for ${range}: this will be pulled back to ${here}.`;
  });
}

function presetChips(store) {
  const { presets, names, neutral } = store.get();
  const all = presets.some((p) => between(p.direction, neutral) < 0.5) ? presets : [{ name: "default", direction: neutral }, ...presets];
  const chips = all.map(({ name, direction }) => {
    const turn = names.length === 2 ? html("span", { class: "soft" }, ` ${degrees(angleOf(direction))}`) : null;
    const chip = html("button", { type: "button", class: "chip", title: weightsText(direction, names) }, name, turn);
    chip.addEventListener("click", () => store.set({ requested: direction }));
    return { chip, direction };
  });
  find("presets").replaceChildren(...chips.map(({ chip }) => chip));
  store.subscribe((state) => {
    for (const { chip, direction } of chips) chip.setAttribute("aria-pressed", String(between(direction, state.requested) < 0.5));
    find("preset-now").textContent = presetAt(state, state.requested)?.name ?? "";
  });
}

/** Tabs as the ARIA practices have them: one in the tab order, arrows between them. */
function tabs(onFirst) {
  const all = [...document.querySelectorAll("[role=tab]")];
  const seen = new Set();
  const select = (tab, focus = true) => {
    for (const other of all) {
      const on = other === tab;
      other.setAttribute("aria-selected", String(on));
      other.tabIndex = on ? 0 : -1;
      find(other.getAttribute("aria-controls")).hidden = !on;
    }
    if (focus) tab.focus();
    const name = tab.dataset.panel;
    if (!seen.has(name)) onFirst[name]?.();
    seen.add(name);
  };
  all.forEach((tab, i) => {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: all.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      select(all[(to + all.length) % all.length]);
    });
  });
  select(all[0], false);
}

keyBox.value = key();
find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = keyBox.value.trim();
  const wrong = wrongKey(text);
  keyBox.setAttribute("aria-invalid", String(wrong !== null));
  keyState.classList.toggle("wrong", wrong !== null);
  keyState.textContent = wrong ?? (text ? "In use until this tab closes." : "No key is used.");
  if (wrong) {
    keyBox.focus();
    return;
  }
  setKey(text);
  if (!opened) boot();
});
for (const jump of document.querySelectorAll("[data-jump]")) {
  jump.addEventListener("click", (event) => {
    event.preventDefault(); // the address's hash is the direction's
    const target = find(jump.dataset.jump);
    bringIntoView(target);
    target.focus({ preventScroll: true });
  });
}
untilReady(find("readiness"));
boot();
