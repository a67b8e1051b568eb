// Measures one job with one provider, in a worker of its own: its memory and what it compiled go with it.
//
// It gets {base, job, runtime, provider} and {visibility}; it says {progress}, {note}, and at last {result} or {failed}.

import { answersOf, batches, clockStep, compared, differs, expectedOf } from "./measure.js";
import { outputsOf, random, repeats, shuffled, Stopping } from "./measure.js";
import { parseNpy } from "./npy.js";
import { Runtime } from "./ort.js";
import { sha256 } from "./sha256.js";

const CLOCK_JUMP_MS = 1000; // of the wall clock against the one that only goes forward
const SAY_MS = 250;
const MOST_SAMPLES = 400_000; // of a job: its result has to be sent, and kept until then

class Deadline extends Error {}

let hidden = false;
let timesHidden = 0;
let whenVisible = null;

onmessage = ({ data }) => {
  if (data.visibility) {
    hidden = data.visibility === "hidden";
    if (hidden) timesHidden += 1;
    else whenVisible?.();
  } else {
    new Measurement(data).run().then(
      (result) => postMessage({ result }),
      (error) => postMessage({ failed: String(error?.message ?? error).split("\n")[0].slice(0, 500) }),
    );
  }
};

class Measurement {
  constructor({ base, job, runtime, provider }) {
    Object.assign(this, { base, job, provider });
    this.runtime = new Runtime(base, runtime, provider, job.threads);
    this.started = performance.now();
    this.wall = Date.now() - this.started;
    this.clockJumps = 0;
    this.files = new Map();
    this.downloads = {};
    this.sessions = new Map();
    this.said = 0;
  }

  async run() {
    const startedUnixS = Date.now() / 1000;
    await this.download();
    this.say("starting ONNX Runtime", 0);
    this.note(await this.runtime.start());
    const step = clockStep();
    this.note(`clock: steps of ${Number((1000 * step).toPrecision(2))} us`);
    const lanes = await this.load();
    const checks = await this.check(lanes);
    const stoppedBy = this.job.emulated ? "rounds" : await this.time(lanes, step);
    const sustained = this.job.emulated || !this.job.sustained_s ? null : await this.sustain(lanes);
    if (timesHidden) this.note(`hidden: the page was hidden ${timesHidden} times; rounds it interrupted were dropped`);
    return {
      schema_version: 1,
      job_id: this.job.job_id,
      status: "ok",
      reason: null,
      agent: this.runtime.facts(),
      emulated: this.job.emulated,
      threads: this.runtime.threads,
      cpus: null,
      started_unix_s: startedUnixS,
      ended_unix_s: Date.now() / 1000,
      clock_jumps: this.clockJumps,
      stopped_by: stoppedBy,
      checks,
      arms: lanes.map((lane) => ({
        name: lane.arm.name,
        batch_size: lane.size,
        reason: lane.reason,
        load_ms: lane.loadMs,
        first_run_ms: lane.firstMs,
        download_ms: this.downloads[lane.file] ?? null,
        rounds: lane.rounds,
        positions: lane.positions,
      })),
      sustained,
      memory_bytes: this.runtime.memoryBytes(),
    };
  }

  // Everything that the job names, compared with its hash. Graphs come one after the other, so each time is its own.
  async download() {
    const names = Object.keys(this.job.sha256);
    for (const [i, name] of names.entries()) {
      this.say(`downloading ${name}`, 0, i / names.length);
      const start = performance.now();
      const answer = await fetch(`${this.base}jobs/${this.job.job_id}/${name}`, { cache: "no-store" });
      if (!answer.ok) throw new Error(`${name} cannot be downloaded: status ${answer.status}`);
      const content = new Uint8Array(await answer.arrayBuffer());
      this.downloads[name] = performance.now() - start;
      if ((await sha256(content)) !== this.job.sha256[name]) throw new Error(`${name} was changed: its sha256 differs`);
      this.files.set(name, content);
      this.within();
    }
    this.input = parseNpy(this.files.get(this.job.input.file), this.job.input.file);
  }

  // A lane is an arm at a batch size.
  async load() {
    const lanes = [];
    for (const size of this.job.batch_sizes) {
      for (const arm of this.job.arms) {
        const file = (size === 1 && arm.graphs.single) || arm.graphs.any;
        const lane = { arm, size, file, reason: null, loadMs: null, firstMs: null, rounds: [], positions: [] };
        lane.batches = batches(this.input, size);
        lanes.push(lane);
        if (!lane.batches.length) lane.reason = `the job holds ${this.input.shape[0]} items only`;
        else await this.loadLane(lane);
        this.within();
      }
    }
    return lanes;
  }

  async loadLane(lane) {
    this.say(`loading ${lane.arm.name}`, 0.02);
    try {
      if (!this.sessions.has(lane.file)) {
        if (this.provider !== "wasm") this.note(await this.runtime.placement(lane.file, this.files.get(lane.file)));
        const start = performance.now();
        const session = await this.runtime.session(this.files.get(lane.file));
        this.sessions.set(lane.file, { session, loadMs: performance.now() - start });
      }
      Object.assign(lane, this.sessions.get(lane.file));
      const given = (lane.arm.given ?? []).map((g) => ({ ...g, array: parseNpy(this.files.get(g.file), g.file) }));
      lane.feeds = lane.batches.map((b) => ({
        ...this.runtime.feeds(lane.session, this.job.input, b),
        ...this.runtime.given(lane.session, given, b.first, lane.size),
      }));
      const start = performance.now();
      await lane.session.run(lane.feeds[0], answersOf(lane.arm));
      lane.firstMs = performance.now() - start;
    } catch (error) {
      lane.reason = fault(error);
    }
  }

  async check(lanes) {
    const checks = [];
    for (const lane of lanes) {
      if (lane.reason || lane.arm.compared === false) continue;
      this.say(`comparing the answers of ${lane.arm.name}, batch ${lane.size}`, 0.04);
      const runs = [];
      try {
        for (const feeds of lane.feeds) {
          runs.push(await lane.session.run(feeds, outputsOf(lane.arm)));
          await this.breathe();
        }
      } catch (error) {
        lane.reason = fault(error);
        continue;
      }
      const found = compared(lane.arm, lane.size, runs, expectedOf(lane.arm, this.files), this.job.tolerance);
      lane.reason = differs(found, this.job.tolerance);
      checks.push({ arm: lane.arm.name, batch_size: lane.size, ...found, error: plain(found.error) });
    }
    return checks;
  }

  // Rounds of each batch size in turn; a round is the whole stream by each arm, in random order.
  async time(lanes, step) {
    const next = random(this.job.seed);
    const sizes = [...new Set(lanes.map((lane) => lane.size))];
    let stoppedBy = null;
    for (const [i, size] of sizes.entries()) {
      const group = lanes.filter((lane) => lane.size === size && !lane.reason);
      if (!group.length) continue;
      try {
        for (const lane of group) await this.warmUp(lane, step);
        const most = MOST_SAMPLES / sizes.length;
        const why = await this.rounds(group, next, most, (share) => 0.06 + (0.94 * (i + share)) / sizes.length);
        stoppedBy = worse(stoppedBy, why);
      } catch (error) {
        if (!(error instanceof Deadline)) throw error;
        for (const lane of lanes.filter((l) => !l.rounds.length && !l.reason)) lane.reason = error.message;
        return "deadline";
      }
    }
    return stoppedBy ?? "rounds"; // nothing was to be timed
  }

  async warmUp(lane, step) {
    const start = performance.now();
    let batch = Infinity;
    for (let i = 0; i === 0 || performance.now() - start < 1000 * this.job.warm_up_s; i++) {
      this.say(`warming up ${lane.arm.name}, batch ${lane.size}`, 0.06);
      const before = performance.now();
      for (const feeds of lane.feeds) await lane.session.run(feeds, answersOf(lane.arm));
      batch = Math.min(batch, (performance.now() - before) / lane.feeds.length);
      await this.breathe();
    }
    lane.repeats = repeats(batch, step);
    if (lane.repeats > 1) {
      this.note(
        `groups: as the clock is coarse, each sample of ${lane.arm.name} at batch ${lane.size} is the mean of ` +
          `${lane.repeats} runs of the same batch`,
      );
    }
  }

  async rounds(group, next, most, share) {
    const stopping = new Stopping(this.job, this.job.time_limit_s);
    const start = performance.now();
    let away = 0;
    for (;;) {
      const waited = await this.untilVisible();
      away += waited;
      const before = timesHidden;
      const order = shuffled(group, next);
      const taken = [];
      for (const lane of order) {
        const passed = (performance.now() - start - away) / 1000;
        const left = Math.max(0, this.job.time_limit_s - passed);
        this.say(`round ${lane.rounds.length + 1}, ${lane.arm.name}, batch ${lane.size}`, share(
          Math.min(1, passed / this.job.time_limit_s)), 0, left);
        taken.push(await this.sample(lane));
        await this.breathe();
      }
      if (hidden || timesHidden !== before) continue;
      order.forEach((lane, position) => {
        lane.rounds.push(taken[position]);
        lane.positions.push(position);
      });
      this.watchClock();
      const totals = group.map((lane) => lane.rounds.map((round) => round.reduce((a, b) => a + b, 0)));
      const why = stopping.why((performance.now() - start - away) / 1000, totals);
      if (why) return why;
      const perRound = group.reduce((sum, lane) => sum + lane.batches.length, 0);
      if ((group[0].rounds.length + 1) * perRound > most) return "rounds";
    }
  }

  // One pass over the stream: the ns of every batch.
  async sample(lane) {
    const names = answersOf(lane.arm);
    const { session, repeats: times } = lane;
    const ns = [];
    for (const feeds of lane.feeds) {
      const start = performance.now();
      for (let i = 0; i < times; i++) await session.run(feeds, names);
      ns.push(Math.max(1, Math.round(((performance.now() - start) * 1e6) / times)));
    }
    return ns;
  }

  // Each arm at the first batch size for `sustained_s`, second by second. A browser tells no temperature. The time of a
  // pass over the stream is one reading, as the clock may be coarse; passes while the page was hidden do not count.
  async sustain(lanes) {
    const rows = [];
    const group = lanes.filter((lane) => lane.rounds.length && lane.size === this.job.batch_sizes[0]);
    try {
      for (const [i, lane] of group.entries()) {
        const names = answersOf(lane.arm);
        let start = performance.now();
        let [second, items, ns] = [0, 0, 0];
        for (let passed = 0; passed < this.job.sustained_s; ) {
          start += await this.untilVisible();
          const before = timesHidden;
          const begin = performance.now();
          for (const feeds of lane.feeds) await lane.session.run(feeds, names);
          const took = performance.now() - begin;
          if (!hidden && timesHidden === before) {
            ns += took * 1e6;
            items += lane.size * lane.feeds.length;
          }
          passed = (performance.now() - start) / 1000;
          if (passed >= second + 1 && items) {
            rows.push({ arm: lane.arm.name, second, items, ns: Math.round(ns), temperature_c: null });
            [second, items, ns] = [Math.floor(passed), 0, 0];
          }
          const done = (i + Math.min(1, passed / this.job.sustained_s)) / group.length;
          this.say(`under load, ${lane.arm.name}, batch ${lane.size}`, done, 0, this.job.sustained_s - passed);
          await this.breathe();
        }
      }
    } catch (error) {
      if (!(error instanceof Deadline)) throw error;
      this.note(`load: ended early: ${error.message}`);
    }
    return rows;
  }

  // Lets messages in, which a loop of awaited sessions would keep out.
  breathe() {
    this.within();
    return new Promise((resolve) => setTimeout(resolve));
  }

  async untilVisible() {
    const start = performance.now();
    while (hidden) {
      this.say("waiting: this page is hidden; show it again to go on", null);
      await new Promise((resolve) => {
        whenVisible = resolve;
        setTimeout(resolve, 1000);
      });
      this.within();
    }
    return performance.now() - start;
  }

  within() {
    if (performance.now() - this.started > 1000 * this.job.deadline_s) {
      throw new Deadline(`the deadline of ${this.job.deadline_s} s has passed`);
    }
  }

  watchClock() {
    const wall = Date.now() - performance.now();
    if (Math.abs(wall - this.wall) > CLOCK_JUMP_MS) this.clockJumps += 1;
    this.wall = wall;
  }

  // For the result, whether it comes to one or not.
  note(note) {
    postMessage({ note });
  }

  say(text, share, part = 0, leftS = null) {
    const now = performance.now();
    if (now - this.said < SAY_MS) return;
    this.said = now;
    postMessage({ progress: { text, share: share === null ? null : share + 0.02 * part, left_s: leftS } });
  }
}

// Of two batch sizes, the one that was cut short says why the measurement ended.
function worse(a, b) {
  const order = ["precision", "rounds", "time limit"];
  return order.indexOf(a) > order.indexOf(b) ? a : b;
}

// What the runtime says, as the reason why something is not measured; a deadline is another matter.
function fault(error) {
  if (error instanceof Deadline) throw error;
  return `ONNX Runtime fails: ${String(error?.message ?? error).split("\n")[0].slice(0, 300)}`;
}

// JSON has no NaN and no infinities.
function plain(value) {
  return Number.isFinite(value) ? value : "nan";
}
