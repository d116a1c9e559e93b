// Plain words for objectives, directions and numbers: "shorter", not "verbosity -0.6".

const POLES = new Map(
  Object.entries({
    helpfulness: ["less helpful", "more helpful"],
    verbosity: ["shorter", "more detailed"],
    length: ["shorter", "longer"],
    quality: ["lower quality", "higher quality"],
    correctness: ["less correct", "more correct"],
    coherence: ["less coherent", "more coherent"],
    complexity: ["simpler", "more complex"],
    creativity: ["more sober", "more creative"],
    humor: ["more serious", "funnier"],
    toxicity: ["kinder", "more toxic"],
    violence: ["gentler", "more violent"],
    harmlessness: ["less cautious", "more cautious"],
    harmless: ["less cautious", "more cautious"],
    helpful: ["less helpful", "more helpful"],
    honesty: ["less honest", "more honest"],
  }),
);

/** [what less of it is called, what more of it is called] */
export function poles(name) {
  const plain = name.replaceAll("_", " ");
  return POLES.get(name.toLowerCase()) ?? [`less ${plain}`, `more ${plain}`];
}

export const pole = (name, weight) => poles(name)[weight < 0 ? 0 : 1];

/** A direction in words, the heaviest objective first; what hardly counts is left out. */
export function describe(v, names) {
  const weight = (i) => Math.round(Math.abs(v[i]) * 50); // near enough to equal is equal: the order of the names decides
  const order = names.map((_, i) => i).sort((a, b) => weight(b) - weight(a));
  const strong = order.filter((i) => Math.abs(v[i]) >= 0.5).map((i) => pole(names[i], v[i]));
  const weak = order.filter((i) => Math.abs(v[i]) < 0.5 && Math.abs(v[i]) >= 0.15).map((i) => pole(names[i], v[i]));
  if (!strong.length) return join(weak);
  return weak.length ? `${join(strong)}, a little ${join(weak)}` : join(strong);
}

function join(parts) {
  return parts.length < 2 ? (parts[0] ?? "") : `${parts.slice(0, -1).join(", ")} and ${parts.at(-1)}`;
}

/** A number with a real minus sign; never "-0". */
export function number(x, digits = 1) {
  const text = Math.abs(x).toFixed(digits);
  return x < 0 && Number(text) !== 0 ? `−${text}` : text;
}

export const signed = (x, digits = 1) => (Number(x.toFixed(digits)) > 0 ? `+${number(x, digits)}` : number(x, digits));
export const degrees = (x) => `${number(x, Math.abs(x - Math.round(x)) < 0.05 ? 0 : 1)}°`;
export const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

/** Words as a reader counts them: runs of characters between white space. */
export const wordCount = (text) => (text.match(/\S+/g) ?? []).length;

/** All weights of a direction: "helpfulness 0.80 · verbosity −0.60". */
export const weightsText = (v, names) => names.map((name, i) => `${name} ${number(v[i], 2)}`).join(" · ");
