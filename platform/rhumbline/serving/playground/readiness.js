// Whether the engine would answer now: asked when the page opens and, while it would not, every few seconds until it would.

import { ApiError, call } from "./api.js";
import { announce } from "./elements.js";
import { note, pause } from "./notices.js";

const EVERY_S = 4;

/** Keeps a note in `place` until the server says that it is ready; the rest of the page works meanwhile. */
export async function untilReady(place) {
  while (!(await ready(place))) await pause(EVERY_S);
  if (!place.hasChildNodes()) return;
  place.replaceChildren();
  announce("The model is ready.");
}

async function ready(place) {
  try {
    await call("GET", "../ready");
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status >= 400 && error.status < 500 && error.kind !== "busy") return true; // a proxy that hides it: nobody can say
    if (error.status && !place.hasChildNodes()) place.append(waiting());
    return false;
  }
  return true;
}

function waiting() {
  const box = note("care", "The model is not ready yet", "It is loading. You can set the direction meanwhile; this page asks again every few seconds.");
  box.setAttribute("role", "status");
  box.dataset.kind = "loading";
  return box;
}
