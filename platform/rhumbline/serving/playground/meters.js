// Reward meters: one per objective, on the scale of what this model usually gets, because 71 out of 100 alone says nothing.

import { html } from "./elements.js";
import { number } from "./words.js";

/** Where a reward stands in the usual range: -1 at its low end, 0 in the middle, 1 at its high end; null without one. */
export function standing(reward, range) {
  if (!range || range[2] <= range[0]) return null;
  return (2 * (reward - range[0])) / (range[2] - range[0]) - 1;
}

function verdict(x) {
  if (x < -1) return "below usual";
  if (x > 1) return "above usual";
  if (x < -0.33) return "low end of usual";
  if (x > 0.33) return "high end of usual";
  return "middle of usual";
}

/** Meters for rewards (K,); `spread` (K,) are half-widths of 95% intervals where the rewards are means. */
export function meters(objectives, rewards, spread = null) {
  return html(
    "ul",
    { class: "meters" },
    objectives.map((objective, i) => html("li", {}, meter(objective, rewards[i], spread?.[i] ?? null))),
  );
}

function meter({ name, range, unit }, reward, half) {
  const x = standing(reward, range);
  const value = half === null ? number(reward) : `${number(reward)} ± ${number(half)}`;
  const usual = x === null ? "no usual range known" : `${verdict(x)} (${number(range[0], 0)} to ${number(range[2], 0)})`;
  const label = html(
    "p",
    { class: "meter-label" },
    html("span", { class: "meter-name" }, name.replaceAll("_", " ")),
    html("b", { title: unit ?? "" }, value),
    html("span", { class: "soft" }, usual),
  );
  if (x === null) return label;
  const track = html("div", {
    class: "meter",
    role: "meter",
    "aria-label": name,
    "aria-valuemin": number(range[0]).replace("−", "-"),
    "aria-valuemax": number(range[2]).replace("−", "-"),
    "aria-valuenow": Math.max(range[0], Math.min(range[2], reward)).toFixed(1),
    "aria-valuetext": `${value}, ${usual}`,
  });
  // The usual range fills the middle half of the track, so that an unusual reward still has a place to be.
  const place = (y) => `${Math.max(1, Math.min(99, 50 + 25 * y))}%`;
  const band = html("span", { class: "meter-band" });
  const median = html("span", { class: "meter-median" });
  const mark = html("span", { class: Math.abs(x) > 2 ? "meter-mark off" : "meter-mark" });
  median.style.left = place(standing(range[1], range));
  mark.style.left = place(x);
  track.append(band, median);
  if (half !== null) {
    const whisker = html("span", { class: "meter-spread" });
    const [from, to] = [reward - half, reward + half].map((r) => parseFloat(place(standing(r, range))));
    whisker.style.left = `${from}%`;
    whisker.style.width = `${to - from}%`;
    track.append(whisker);
  }
  track.append(mark);
  return html("div", {}, label, track);
}
