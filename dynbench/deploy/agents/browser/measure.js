// What is measured and compared, as functions of arrays and sessions; nothing here knows the page or the server.

import { parseNpy } from "./npy.js";

const MOST_DIFFERENT = 0.01; // share of the decisions: two scores can be equal up to rounding
const RESOLUTIONS = 50; // a sample spans at least so many steps of the clock
const FIRST_LOOK = 10; // rounds; each further look comes at twice as many, or it would stop on the luckiest round

// The smallest step of the clock in ms: 0.005 in an isolated page of Chromium, 0.1 to 1 in others.
export function clockStep() {
  let step = Infinity;
  for (let i = 0; i < 5; i++) {
    const start = performance.now();
    let now = start;
    while (now === start) now = performance.now();
    step = Math.min(step, now - start);
  }
  return step;
}

// How often a batch is repeated within one sample.
export function repeats(batchMs, stepMs) {
  return Math.max(1, Math.ceil((RESOLUTIONS * stepMs) / Math.max(batchMs, stepMs / 100)));
}

// Numbers in [0, 1) that are the same for the same seed (mulberry32).
export function random(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

export function shuffled(values, next) {
  const out = [...values];
  for (let i = out.length - 1; i > 0; i--) {
    const j = Math.floor(next() * (i + 1));
    [out[i], out[j]] = [out[j], out[i]];
  }
  return out;
}

export class Stopping {
  constructor(job, limitS) {
    this.job = job;
    this.limitS = limitS;
    this.look = FIRST_LOOK;
  }

  // totals: of each arm, the ns of every round. Returns why to stop, or null.
  why(elapsedS, totals) {
    const rounds = totals[0].length;
    if (rounds >= this.look) {
      while (this.look <= rounds) this.look *= 2;
      const widths = totals.slice(1).map((t) => halfWidth(t.map((ns, i) => totals[0][i] / ns)));
      if (widths.length && Math.max(...widths) <= this.job.precision) return "precision";
    }
    return rounds >= this.job.rounds_min && elapsedS >= this.limitS ? "time limit" : null;
  }
}

// Half the width of the 95 % interval of the median, as a share of it: two order statistics (sign test).
export function halfWidth(ratios) {
  const x = [...ratios].sort((a, b) => a - b);
  const n = x.length;
  let rank = 0;
  let term = n * Math.log(0.5); // logarithm of a binomial probability, which itself is 0 for a thousand rounds
  for (let below = Math.exp(term); below <= 0.025 && 2 * (rank + 1) <= n; below += Math.exp(term)) {
    rank += 1;
    term += Math.log((n - rank + 1) / rank);
  }
  const [low, high] = rank ? [x[rank - 1], x[n - rank]] : [0, Infinity];
  const middle = (x[Math.floor((n - 1) / 2)] + x[Math.floor(n / 2)]) / 2;
  return (high - low) / 2 / middle;
}

// Slices of the inputs: full batches only, the rest is left out.
export function batches(input, size) {
  const perItem = input.shape.slice(1).reduce((a, b) => a * b, 1);
  return Array.from({ length: Math.floor(input.shape[0] / size) }, (_, i) => ({
    first: i * size,
    shape: [size, ...input.shape.slice(1)],
    data: input.data.slice(i * size * perItem, (i + 1) * size * perItem),
  }));
}

// The outputs that are compared. Those of the timed runs are the answers alone.
export function answersOf(arm) {
  return arm.answers.map((a) => a.output);
}

export function outputsOf(arm) {
  const decided = arm.decisions.flatMap((d) => (typeof d.items === "string" ? [d.decision, d.items] : [d.decision]));
  return [...new Set([...answersOf(arm), ...decided])];
}

// The expected arrays of an arm: a map from file names to {shape, data}.
export function expectedOf(arm, files) {
  const names = [...arm.answers.map((a) => a.file), ...arm.decisions.flatMap((d) => [d.expected, d.reached])];
  return Object.fromEntries(names.map((name) => [name, parseNpy(files.get(name), name)]));
}

// Compares what an arm gave with what is right.
//
// runs: of each batch, its outputs by name as {dims, data, type}; size: items per batch.
// Returns {error, decisions, decisions_differ}; items whose decisions differ are left out of the error.
export function compared(arm, size, runs, expected, tolerance) {
  const items = runs.length * size;
  const alike = new Uint8Array(items).fill(1);
  let decisions = 0;
  let differ = 0;
  for (const decided of arm.decisions) {
    const wrong = wrongRows(decided, size, runs, expected, tolerance);
    const per = wrong.length / items;
    const reached = expected[decided.reached].data;
    wrong.forEach((bad, row) => {
      decisions += reached[row] ? 1 : 0;
      differ += bad;
      if (bad) alike[Math.floor(row / per)] = 0;
    });
  }
  let error = 0;
  for (const answer of arm.answers) {
    error = worst(error, answerError(answer.output, size, runs, expected[answer.file], alike));
  }
  return { error, decisions, decisions_differ: differ };
}

export function differs(check, tolerance) {
  if (!Number.isFinite(check.error)) return "answers have another shape or type, or NaN or infinities in other places";
  if (check.error > tolerance) return `answers differ by ${check.error.toExponential(1)} of the largest value`;
  if (check.decisions_differ > MOST_DIFFERENT * check.decisions) {
    return `${check.decisions_differ} of ${check.decisions} decisions differ`;
  }
  return null;
}

function worst(a, b) {
  return Number.isNaN(a) || Number.isNaN(b) ? NaN : Math.max(a, b);
}

// Largest difference relative to the largest value; NaN where one of the two is NaN alone, infinite where an infinity or
// the shape differs.
function answerError(output, size, runs, right, alike) {
  const perItem = right.shape.slice(1).reduce((a, b) => a * b, 1);
  let difference = 0;
  let largest = 0;
  for (const [b, run] of runs.entries()) {
    const found = run[output];
    if (found.data.length !== size * perItem || found.type !== right.dtype) return Infinity;
    for (let i = 0; i < found.data.length; i++) {
      if (!alike[b * size + Math.floor(i / perItem)]) continue;
      const mine = Number(found.data[i]);
      const theirs = Number(right.data[b * size * perItem + i]);
      if (Number.isNaN(mine) !== Number.isNaN(theirs)) return NaN;
      if (Number.isNaN(mine) || mine === theirs) {
        largest = Math.max(largest, Number.isFinite(theirs) ? Math.abs(theirs) : 0);
        continue;
      }
      if (!Number.isFinite(mine) || !Number.isFinite(theirs)) return Infinity;
      difference = Math.max(difference, Math.abs(mine - theirs));
      largest = Math.max(largest, Math.abs(theirs));
    }
  }
  return difference === 0 ? 0 : difference / Math.max(largest, 1e-30);
}

// Which decisions are others than expected, or missing, or too many: a flag for each row of the stream.
function wrongRows(decided, size, runs, expected, tolerance) {
  const per = decided.sizes.reduce((a, b) => a * b, 1);
  const table = expected[decided.expected];
  const reached = expected[decided.reached].data;
  const width = table.shape.slice(1).reduce((a, b) => a * b, 1);
  const real = table.dtype.startsWith("float");
  const largest = real ? table.data.reduce((a, v) => Math.max(a, Math.abs(v)), 1e-30) : 0;
  const wrong = new Uint8Array(runs.length * size * per);
  for (const [b, run] of runs.entries()) {
    const base = b * size * per;
    const ids = typeof decided.items === "string" ? Array.from(run[decided.items].data, Number) : decided.items;
    const value = run[decided.decision];
    const asked = new Uint8Array(size * per);
    const within = ids.every((id) => id >= 0 && id < size * per && !asked[id]++);
    if (!within || value.data.length !== ids.length * width || value.type !== table.dtype) {
      wrong.fill(1, base, base + size * per);
      continue;
    }
    for (let row = 0; row < size * per; row++) wrong[base + row] = asked[row] === reached[base + row] ? 0 : 1;
    ids.forEach((id, i) => {
      for (let j = 0; j < width; j++) {
        const mine = Number(value.data[i * width + j]);
        const theirs = Number(table.data[(base + id) * width + j]);
        const same = real ? Math.abs(mine - theirs) <= tolerance * largest : mine === theirs;
        if (!same) wrong[base + id] = 1;
      }
    });
  }
  return wrong;
}
