// The server's API: JSON calls, streamed answers, and every failure as one kind of error that a panel can explain.
//
//   const description = await call("GET", "steering/objectives");
//   for await (const chunk of stream("chat/completions", body, { signal })) ...
//
// The key lives in sessionStorage: it ends with the tab and is in no link.

const BASE = new URL("../v1/", import.meta.url); // beside the playground, wherever a proxy mounts both
const KEY = "rhumbline.key";

export const endpoint = (path) => new URL(path, BASE).href;
export const key = () => sessionStorage.getItem(KEY) ?? "";
export const setKey = (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY));

/**
 * What is wrong with a pasted key, in a sentence, or null. A header holds printable ASCII: on anything else fetch throws as
 * if the server could not be reached.
 */
export function wrongKey(text) {
  const at = text.search(/[^\x20-\x7e]/);
  if (at < 0) return null;
  const code = text.codePointAt(at).toString(16).toUpperCase().padStart(4, "0");
  return `Not used: character ${at + 1} of this key is U+${code}, which is invisible or typographic, and in no key. Copy the key again, or type it.`;
}

/** kind: a value of KINDS below, refused, failed, offline or stopped; waitSeconds where the server said how long. */
export class ApiError extends Error {
  constructor(kind, message, { status = 0, waitSeconds = null, code = null, requestId = null } = {}) {
    super(message);
    Object.assign(this, { kind, status, waitSeconds, code, requestId });
  }
}

// By the server's code first: a 503 alone does not say whether the model starts, or the quiz's database is away.
const KINDS = new Map([
  ["not_ready", "loading"],
  ["overloaded", "full"],
  ["replica_died", "died"],
  ["unavailable", "away"],
  ["no_database", "database"],
  ["deadline_exceeded", "late"],
  [401, "key"],
  [403, "key"],
  [429, "busy"],
  [503, "away"],
]);

/** What is likely to pass by itself, so that asking again is not in vain. */
export const passing = ({ kind }) => ["busy", "loading", "full", "died", "away", "database"].includes(kind);

async function request(method, path, body, signal) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  if (key()) headers.Authorization = `Bearer ${key()}`;
  let response;
  try {
    response = await fetch(new URL(path, BASE), {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (cause) {
    throw broken(cause, signal);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

function broken(cause, signal) {
  if (signal?.aborted) return new ApiError("stopped", "Stopped.");
  if (cause instanceof ApiError) return cause;
  return new ApiError("offline", "The server cannot be reached.");
}

async function refusal(response) {
  const error = (await response.json().catch(() => ({}))).error ?? {};
  const kind = KINDS.get(error.code) ?? KINDS.get(response.status) ?? (response.status < 500 ? "refused" : "failed");
  return new ApiError(kind, error.message || `The server answered ${response.status}.`, {
    status: response.status,
    waitSeconds: seconds(response.headers.get("Retry-After")),
    code: error.code ?? null,
    requestId: response.headers.get("x-request-id"),
  });
}

/** What ends a stream that the engine could not: its status was sent long before. One that had begun was ready. */
function brokenOff({ message, code }, requestId) {
  const kind = KINDS.get(code) ?? "failed";
  return new ApiError(kind === "loading" ? "failed" : kind, message, { code, requestId });
}

/** Retry-After as seconds: the header holds a number or a date. */
export function seconds(header) {
  if (!header) return null;
  const wait = /^\d+(\.\d+)?$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(wait) ? Math.max(0, Math.ceil(wait)) : null;
}

/** The JSON that the server answers, or null for an empty answer. Throws ApiError. */
export async function call(method, path, body, { signal } = {}) {
  const response = await request(method, path, body, signal);
  try {
    const text = await response.text();
    return text ? JSON.parse(text) : null;
  } catch (cause) {
    if (cause instanceof SyntaxError) throw new ApiError("failed", "The server's answer cannot be read.");
    throw broken(cause, signal);
  }
}

/** The chunks of a streamed answer up to [DONE]. Throws ApiError, also where the stream breaks off. */
export async function* stream(path, body, { signal } = {}) {
  const response = await request("POST", path, body, signal);
  const requestId = response.headers.get("x-request-id");
  const events = serverSentEvents();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new ApiError("failed", "The answer broke off.", { requestId });
      for (const data of events(value)) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw brokenOff(chunk.error, requestId);
        yield chunk;
      }
    }
  } catch (cause) {
    if (cause instanceof SyntaxError) throw new ApiError("failed", "The server's answer cannot be read.");
    throw broken(cause, signal);
  } finally {
    reader.cancel().catch(() => {}); // the caller may have left early: let the server know
  }
}

/** A parser of server-sent events that is fed text in any pieces and returns the data of the events that are whole. */
export function serverSentEvents() {
  let rest = "";
  let data = [];
  return (text) => {
    const whole = [];
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines.map((raw) => raw.replace(/\r$/, ""))) {
      if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      else if (line === "" && data.length) {
        whole.push(data.join("\n"));
        data = [];
      }
    }
    return whole;
  };
}
