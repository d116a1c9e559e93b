// What the page knows: the served model as the server described it, and what the person has set.
//
//   const store = createStore(served(objectives, presets));
//   store.subscribe((state) => draw(aim(state)));
//   store.set({ requested: [0.8, -0.6] });

import { angleOf, between, fromWeights, normalise, project } from "./directions.js";

/** Plain state from the answers of /v1/steering/objectives and /v1/steering/presets. */
export function served(description, presets) {
  const names = description.objectives.map((objective) => objective.name);
  const start = normalise(fromWeights(description.default, names));
  return {
    model: description.model,
    names,
    objectives: description.objectives,
    region: {
      axis: normalise(fromWeights(description.region.axis, names)),
      half: description.region.half_angle_deg,
    },
    neutral: start,
    requested: start,
    mechanism: description.mechanism,
    method: description.method,
    templateVersion: description.template_version,
    hasRewards: description.rewards,
    hasQuiz: description.quiz ?? true,
    effect: description.effect,
    evaluated: description.evaluated.map((point) => ({
      direction: normalise(fromWeights(point.direction, names)),
      rewards: fromWeights(point.rewards, names),
      pareto: point.pareto,
    })),
    presets: presets.presets.map((preset) => ({
      name: preset.name,
      direction: normalise(fromWeights(preset.weights, names)),
    })),
    wedge: null, // [low, high] in degrees while the quiz has an opinion; two objectives
    points: [], // rewards of the latest answers, for the front: { label, rewards }
    prompt: "", // what was asked last, for "use it elsewhere"
  };
}

export function createStore(initial) {
  let state = initial;
  const listeners = new Set();
  return {
    get: () => state,
    set(change) {
      state = { ...state, ...change };
      for (const listener of listeners) listener(state, change);
    },
    /** Calls `listener` now and after every change. */
    subscribe(listener) {
      listeners.add(listener);
      listener(state, state);
    },
  };
}

// The server tells directions with four decimals, so that one on the very edge of the cone may read as just outside.
const ROUNDING_DEG = 0.05;
export const apart = (a, b) => between(a, b) > ROUNDING_DEG;

/** What was asked for, and what the server will make of it: { requested, effective, projected }. */
export function aim({ requested, region }) {
  const { direction } = project(requested, region);
  return { requested, effective: direction, projected: apart(requested, direction) };
}

/** The preset that a direction is, or undefined. */
export const presetAt = (state, direction) => state.presets.find((p) => between(p.direction, direction) < 0.5);

/** Low and high end of the trained arc in degrees; two objectives. */
export function arc({ axis, half }) {
  return [angleOf(axis) - half, angleOf(axis) + half];
}
