// "Use it elsewhere": the current direction as curl, as Python, as a model alias and as a link. The key is in none of
// them: the snippets read it from the environment.

import { endpoint } from "./api.js";
import { between, fromText, toText, toWeights } from "./directions.js";
import { announce, find, html } from "./elements.js";
import { presetAt } from "./state.js";

const ASK = "Why is the sky blue?";
const KEY = "RHUMBLINE_API_KEY";

/** `name@preset` where the direction is a preset, else `name@objective=weight,...`. */
export function alias(state) {
  const preset = presetAt(state, state.requested);
  return `${state.model}@${preset ? preset.name : toText(state.requested, state.names)}`;
}

const question = (state) => (state.prompt && state.prompt.length <= 200 ? state.prompt : ASK);

/** Single quotes for a POSIX shell. */
export const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function curl(state) {
  const body = {
    model: state.model,
    messages: [{ role: "user", content: question(state) }],
    steering: { weights: toWeights(state.requested, state.names) },
  };
  return [
    `curl ${quoted(endpoint("chat/completions"))} \\`,
    `  -H "Authorization: Bearer $${KEY}" \\`,
    `  -H 'Content-Type: application/json' \\`,
    `  -d ${quoted(JSON.stringify(body))}`,
  ].join("\n");
}

export function python(state) {
  const text = (value) => JSON.stringify(value); // a JSON string or object of numbers is a Python literal as well
  return [
    "import os",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${text(endpoint("").replace(/\/$/, ""))}, api_key=os.environ["${KEY}"])`,
    "answer = client.chat.completions.create(",
    `    model=${text(state.model)},`,
    `    messages=[{"role": "user", "content": ${text(question(state))}}],`,
    `    extra_body={"steering": {"weights": ${text(toWeights(state.requested, state.names))}}},`,
    ")",
    "print(answer.choices[0].message.content)",
  ].join("\n");
}

/** A link to this page with the direction in its hash, which browsers do not send to servers. */
export function link(state) {
  const url = new URL(location.href);
  url.hash = `d=${toText(state.requested, state.names)}`;
  return url.href;
}

/** The direction that the page's address names, or null. */
export function fromLink(names) {
  const text = new URLSearchParams(location.hash.slice(1)).get("d");
  return text === null ? null : fromText(text, names);
}

export function elsewhere(store) {
  const root = find("elsewhere");
  const ways = [
    ["curl", curl, "For a terminal."],
    ["Python", python, "With the official openai package."],
    ["Model alias", alias, "For programs that only have a box for the model’s name."],
    ["Link", link, "Opens this page in this direction. It holds no key."],
  ];
  const places = ways.map(([name, write, hint], i) => {
    const code = html("code");
    const block = html("pre", { tabindex: 0, "aria-label": name }, code);
    const copy = html("button", { type: "button", class: "quiet", "aria-label": `Copy as ${name}` }, "Copy");
    copy.addEventListener("click", () => copyText(code, copy, name));
    root.append(html("details", { open: i === 0 }, html("summary", {}, name), html("div", { class: "snippet" }, html("p", { class: "soft" }, hint), copy), block));
    return { code, write };
  });
  store.subscribe((state) => {
    for (const { code, write } of places) code.textContent = write(state);
  });
}

async function copyText(code, button, name) {
  let copied = true;
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    // Without https a page has no clipboard: select the text, so that one keystroke does it.
    getSelection().selectAllChildren(code);
    copied = document.execCommand("copy");
  }
  button.textContent = copied ? "Copied" : "Press Ctrl+C";
  announce(copied ? `Copied as ${name}.` : "The text is selected: press Control C.");
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

/** Keeps the address and the direction in step, both ways. */
export function shareLink(store) {
  const { names } = store.get();
  const read = () => {
    const direction = fromLink(names);
    if (direction && between(direction, store.get().requested) > 0.05) store.set({ requested: direction });
  };
  read();
  addEventListener("hashchange", read);
  let pending = null;
  store.subscribe((state, change) => {
    if (state === change || !change.requested) return; // the first call: an untouched page keeps its address
    clearTimeout(pending); // browsers refuse more than about a hundred changes of the address in half a minute
    pending = setTimeout(() => history.replaceState(null, "", link(store.get())), 250);
  });
}
