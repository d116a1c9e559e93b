// Directions: unit vectors over named objectives, with the arithmetic of rhumbline/directions.py.
//
//   const region = { axis: [1, 0], half: 45 };
//   project([0, 1], region)   // { direction: [0.71, 0.71], projected: true }
//
// A direction is an array of K numbers in the order of the served objectives. Angles are degrees.

const RAD = Math.PI / 180;
const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
const size = (v) => Math.hypot(...v);

/** v / |v|, or null where v is no direction: all zero, NaN or infinite. */
export function normalise(v) {
  const largest = Math.max(...v.map(Math.abs));
  if (!Number.isFinite(largest) || largest === 0) return null;
  const scaled = v.map((x) => x / largest); // first, so that no square overflows or vanishes
  return scaled.map((x) => x / size(scaled) + 0);
}

/** arctan(v2 / v1) in (-180, 180]; two objectives. */
export const angleOf = ([x, y]) => Math.atan2(y, x) / RAD;

export function fromAngle(degrees) {
  const clean = (x) => (Math.abs(x) < 1e-15 ? 0 : x);
  return [clean(Math.cos(degrees * RAD)), clean(Math.sin(degrees * RAD))];
}

/** Degrees between two unit vectors, accurate for small angles too (Kahan). */
export function between(a, b) {
  return (2 * Math.atan2(size(a.map((x, i) => x - b[i])), size(a.map((x, i) => x + b[i])))) / RAD;
}

/** `v` pulled back to the nearest direction of the trained cone; the axis where v points exactly away from it. */
export function project(v, { axis, half }) {
  const unit = normalise(v);
  const across = unit.map((x, i) => x - dot(unit, axis) * axis[i]);
  const sine = size(across);
  if (Math.atan2(sine, dot(unit, axis)) <= half * RAD + 1e-9) return { direction: unit, projected: false };
  if (sine < 1e-9) return { direction: [...axis], projected: true };
  return { direction: turned(axis, across, half), projected: true };
}

/** The axis turned by `degrees` towards the vector `across`, which is at right angles to it. */
function turned(axis, across, degrees) {
  const length = size(across);
  return normalise(axis.map((c, i) => Math.cos(degrees * RAD) * c + (Math.sin(degrees * RAD) * across[i]) / length));
}

/** n directions over the trained cone along objective j, from most to least of it. */
export function sweep({ axis, half }, n, j) {
  const across = axis.map((c, i) => (i === j ? 1 : 0) - axis[j] * c);
  if (size(across) < 1e-6) return [[...axis]]; // the axis is this objective: there is no more or less of it to sweep
  const widest = Math.min(half, 180 - 180 / n); // on a full circle both ends would be one direction
  return Array.from({ length: n }, (_, i) => turned(axis, across, widest - (2 * widest * i) / (n - 1)));
}

/** Whether the cone holds more and less of objective j, so that a sweep along it shows something. */
export const sweepable = ({ axis }, j) => 1 - axis[j] * axis[j] > 1e-6;

/**
 * Sliders on the sphere: objective `moved` was released at `value`; the free others share what is left of length one
 * in their old proportions, the locked ones stay. Returns a unit vector.
 */
export function relink(v, moved, value, locked) {
  const held = v.map((x, i) => (locked.has(i) && i !== moved ? x : 0));
  const room = Math.sqrt(Math.max(0, 1 - dot(held, held)));
  const free = v.map((_, i) => i).filter((i) => i !== moved && !locked.has(i));
  const mine = free.length ? Math.max(-room, Math.min(room, value)) : Math.sign(value || 1) * room;
  const rest = Math.sqrt(Math.max(0, room * room - mine * mine));
  const before = Math.hypot(...free.map((i) => v[i]));
  const next = [...held];
  next[moved] = mine;
  for (const i of free) next[i] = before > 1e-9 ? (v[i] * rest) / before : rest / Math.sqrt(free.length);
  return normalise(next) ?? [...v];
}

/** `helpfulness=0.8,verbosity=-0.6`: what the server, its alias and its header read. */
export const toText = (v, names) => names.map((name, i) => `${name}=${Number(v[i].toFixed(3)) + 0}`).join(",");

/** The direction that `toText` wrote, or null where it names other objectives or no numbers. */
export function fromText(text, names) {
  const v = names.map(() => 0);
  for (const part of text.split(",")) {
    const cut = part.lastIndexOf("=");
    const i = names.indexOf(part.slice(0, cut).trim());
    const number = Number(part.slice(cut + 1));
    if (cut < 1 || i < 0 || part.slice(cut + 1).trim() === "") return null;
    v[i] = number;
  }
  return normalise(v);
}

export const toWeights = (v, names) => Object.fromEntries(names.map((name, i) => [name, Number(v[i].toFixed(4)) + 0]));
export const fromWeights = (weights, names) => names.map((name) => weights[name] ?? 0);
