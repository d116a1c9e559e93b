// Did an answer move in the asked direction? One answer cannot say: sampling alone moves it. So the same conversation
// is answered several times in the neutral and in the asked direction, pair by pair, and the mean difference along the
// asked change comes with a 95% interval. "Yes" and "no" only where the interval leaves zero out.

import { call } from "./api.js";
import { normalise, toWeights } from "./directions.js";
import { pause } from "./notices.js";
import { number, plural, signed } from "./words.js";

export const ROUNDS = 6;

// Two-sided 95% quantiles of Student's t with 5 degrees of freedom, Bonferroni over 1 to 4 comparisons with one reference.
const T5 = [2.571, 3.163, 3.534, 3.81];

/** Mean of ROUNDS numbers and the half-width of its 95% interval. */
export function interval(values, comparisons = 1) {
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  const variance = values.reduce((sum, x) => sum + (x - mean) ** 2, 0) / (values.length - 1);
  return { mean, half: T5[comparisons - 1] * Math.sqrt(variance / values.length) };
}

/** One unit per objective: the width of its usual range, as directions weigh objectives by their spread, not in points. */
function units(objectives) {
  const known = objectives.every(({ range }) => range && range[2] > range[0]);
  return { known, widths: objectives.map(({ range }) => (known ? (range[2] - range[0]) / 100 : 1)) };
}

/**
 * { moved: "yes" | "no" | "unclear", mean, half, unit, why } from paired rewards (ROUNDS, K) of neutral and asked answers,
 * along the unit change from the neutral to the asked direction.
 */
export function judge(objectives, neutral, asked, neutralRewards, askedRewards, comparisons = 1) {
  const change = normalise(asked.map((x, i) => x - neutral[i]));
  if (!change) return { moved: "unclear", why: "both are one direction" };
  const { known, widths } = units(objectives);
  const unit = known ? "% of the usual range" : " points";
  const along = askedRewards.map((r, n) => change.reduce((sum, c, i) => sum + (c * (r[i] - neutralRewards[n][i])) / widths[i], 0));
  const { mean, half } = interval(along, comparisons);
  if (Math.max(...along) - Math.min(...along) < 1e-9) {
    // Without any spread this is one answer repeated, not evidence from six.
    return { moved: "unclear", mean, half: null, unit, why: "the answers did not vary from one try to the next" };
  }
  const moved = mean - half > 0 ? "yes" : mean + half < 0 ? "no" : "unclear";
  return { moved, mean, half, unit, why: WHY[moved] };
}

const WHY = {
  yes: "more than chance explains",
  no: "it moved the other way, more than chance explains",
  unclear: "chance alone may explain it",
};

/** The verdict in a sentence. */
export function sentence({ moved, mean, half, unit, why }, against = "the neutral direction") {
  if (mean === undefined || half === null) return `Moved in the asked direction: ${moved}, ${why}.`;
  const [low, high] = [mean - half, mean + half];
  return (
    `Moved in the asked direction: ${moved}, ${why}. ` +
    `On this prompt, ${ROUNDS} answers each: ${signed(mean, 0)}${unit} against ${against} (95% interval ${signed(low, 0)} to ${signed(high, 0)}).`
  );
}

/** Whether two directions are near enough to be one: there is nothing to check between them. */
export const same = (a, b) => a.every((x, i) => Math.abs(x - b[i]) < 0.01);

/** One comparison at the server: the same conversation and seed in 2 to 5 directions. */
export function compareOnce(state, { messages, directions, maxTokens, temperature, seed }, signal) {
  const body = {
    messages,
    directions: directions.map((v) => ({ weights: toWeights(v, state.names), return_rewards: state.hasRewards })),
    max_tokens: maxTokens,
    temperature,
    seed,
  };
  return call("POST", "steering/compare", body, { signal });
}

/**
 * `rounds` comparisons with seeds from `question.seed` on; [round][direction] results. A busy server is waited for.
 * `progress(text)` is called before each round.
 */
export async function compareRounds(state, question, rounds, progress, signal) {
  const all = [];
  for (let patience = 5; all.length < rounds; ) {
    progress(`Answers ${all.length + 1} of ${rounds} in ${plural(question.directions.length, "direction")}…`);
    try {
      const { results } = await compareOnce(state, { ...question, seed: question.seed + all.length }, signal);
      all.push(results);
    } catch (error) {
      if (!["busy", "full"].includes(error.kind) || patience-- === 0) throw error;
      const wait = error.waitSeconds ?? 5;
      progress(`The server asks to wait ${wait} s…`);
      await pause(wait, signal);
    }
  }
  return all;
}

/** How many of some results were cut, in a sentence; "" where none was. Mean lengths hide it, and are then too small. */
export function cutWords(results, maxTokens) {
  const cut = results.filter((result) => result.finish_reason === "length").length;
  if (!cut) return "";
  const what = cut === 1 ? "was cut: its length is a lower bound" : "were cut: their lengths are lower bounds";
  return ` ${cut} of ${plural(results.length, "answer")} (${plural(maxTokens, "token")} at most) ${what}.`;
}

/** Mean words per direction of [round][direction] results, as text. */
export const meanWords = (all, column) => number(all.reduce((sum, results) => sum + results[column].words, 0) / all.length, 0);
