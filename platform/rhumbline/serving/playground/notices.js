// What went wrong or is missing, in words, with what to do about it.

import { passing } from "./api.js";
import { html } from "./elements.js";

const TITLES = {
  key: "This server needs a key",
  busy: "Too many requests for this key",
  loading: "The model is not ready yet",
  full: "The server has more requests than it can take",
  died: "A process of the server died with this request",
  away: "The server cannot answer now",
  database: "The server’s database does not answer",
  late: "The answer took too long",
  refused: "The server refused this",
  failed: "Something failed on the server",
  offline: "The server cannot be reached",
  stopped: "Stopped",
  unread: "This page failed",
};

/** A note with a heading, in a frame of its kind: "info", "care" or "bad". */
export function note(kind, title, ...lines) {
  return html("div", { class: `note ${kind}` }, html("p", { class: "note-title" }, title), ...lines.map((line) => paragraph(line)));
}

const paragraph = (line) => (typeof line === "string" ? html("p", {}, line) : line);

/**
 * An ApiError as a note with a retry button. Where the server said how long to wait the button counts down first;
 * `automatic` presses it then by itself.
 */
export function failure(error, retry, { automatic = false } = {}) {
  const kind = error.kind ?? "unread";
  const box = note(passing({ kind }) ? "care" : "bad", TITLES[kind], message(kind, error));
  box.setAttribute("role", "alert");
  box.tabIndex = -1; // where the keyboard goes when the control that failed is gone
  box.dataset.kind = kind;
  if (retry) {
    const button = html("button", { type: "button", onclick: retry }, "Try again");
    box.append(html("p", { class: "note-actions" }, button));
    const wait = error.waitSeconds ?? (automatic ? 3 : 0);
    if (wait > 0) countDown(button, wait, automatic ? retry : null);
  }
  if (error.requestId) box.append(html("p", { class: "soft" }, `Request ${error.requestId}`));
  return box;
}

function message(kind, error) {
  if (kind === "key") return `Put a key into the field at the top of the page. The server says: ${error.message}`;
  if (kind === "busy" || kind === "full") {
    const wait = error.waitSeconds === null ? "a moment" : `${error.waitSeconds} s`;
    return `The server asks to wait ${wait}. ${error.message}`;
  }
  return error.message;
}

function countDown(button, wait, then) {
  const end = Date.now() + wait * 1000;
  button.disabled = true;
  const tick = () => {
    const left = Math.ceil((end - Date.now()) / 1000);
    if (!button.isConnected && Date.now() > end - wait * 1000 + 500) return; // the note was taken away meanwhile
    if (left > 0) {
      button.textContent = `Try again in ${left} s`;
      setTimeout(tick, 250);
      return;
    }
    button.disabled = false;
    button.textContent = "Try again";
    then?.();
  };
  tick();
}

/** Waits `seconds` unless `signal` aborts; resolves either way. */
export function pause(seconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
