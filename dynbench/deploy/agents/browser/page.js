// The page: asks for a name, lets a worker measure each job, shows what happens, and sends what came out until it arrived.

import { browserName, facts, guessedName, keepAwake } from "./device.js";
import { Outbox, post } from "./outbox.js";

const TELL_MS = 1000;
const base = new URL("./", location.href).href;
const asked = new URLSearchParams(location.search);
const at = (id) => document.getElementById(id);
const memory = {
  get: (key) => { try { return sessionStorage.getItem(key); } catch { return null; } },
  set: (key, value) => { try { sessionStorage.setItem(key, value); } catch { /* private mode: a reload begins anew */ } },
};

const client = memory.get("client") ?? hex(16);
memory.set("client", client);
const outbox = new Outbox(base, client, (text) => (at("sending").textContent = text));
let status = { state: "waiting", text: "waiting for a name", share: null, left_s: null };
let name = asked.get("name") ?? remembered() ?? guessedName();
let setup;

main().catch((error) => note(`This page cannot go on: ${error.message}`, "bad"));

async function main() {
  if (!("noModule" in HTMLScriptElement.prototype) || typeof WebAssembly !== "object") {
    throw new Error("this browser is too old");
  }
  const answer = await fetch(`${base}setup.json`, { cache: "no-store" });
  if (!answer.ok) throw new Error("the machine that served it has ended its run");
  setup = await answer.json();
  for (const job of setup.jobs) {
    const line = document.createElement("li");
    line.id = `job-${job.job_id}`;
    line.textContent = job.title;
    at("jobs").append(line);
  }
  if (!isSecureContext) {
    note("This address is neither https nor localhost, so browsers give the page one thread, no WebGPU and a coarse clock.");
  }
  setInterval(tell, TELL_MS);
  addEventListener("pagehide", () => navigator.sendBeacon(`${base}progress`, message("left", "the page was closed")));
  outbox.resend(setup.jobs.map((job) => job.job_id));
  at("name").value = name;
  if (asked.has("autostart") || memory.get("started")) return measure();
  at("form").hidden = false;
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    name = at("name").value.trim() || guessedName();
    try { localStorage.setItem("name", name); } catch { /* it is asked for again next time */ }
    measure().catch((error) => note(error.message, "bad"));
  });
}

async function measure() {
  memory.set("started", "1");
  at("form").hidden = true;
  at("now").hidden = false;
  const { device, notes } = await facts(name);
  const awake = await keepAwake();
  note(awake);
  notes.push(awake);
  if (!isSecureContext) notes.push("insecure address: no threads, no WebGPU, a coarse clock");
  const providers = await usable(setup.runtime.files);
  const todo = setup.jobs.flatMap((job) => providers.map((provider) => ({ job, provider })));
  for (const { job, provider } of todo) {
    const key = `${job.job_id}/${provider}`;
    if (memory.get(key)) continue;
    const said = [];
    const result = await measured(job, provider, providers.length > 1, said);
    result.agent.notes = [...said, ...notes];
    result.device = device;
    show(job, result);
    await outbox.add(job.job_id, provider, result);
    memory.set(key, "done");
  }
  say({ state: "sending", text: "sending what was measured", share: 1, left_s: null });
  const lost = await outbox.empty();
  say({ state: "done", text: lost ?? "Done. This page can be closed.", share: 1, left_s: null });
  tell();
}

// Which providers this browser has; WebGPU needs a graphics adapter too.
async function usable(files) {
  const found = ["wasm"];
  if (!("webgpu" in files)) return found;
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (adapter) found.push("webgpu");
  else note("WebGPU is not measured: this browser offers none here.");
  return found;
}

// A result of a job by a provider; what goes wrong is a result that says so. notes: takes the worker's sentences.
function measured(job, provider, several, notes) {
  const label = several ? `${job.title} (${provider === "wasm" ? "WebAssembly" : "WebGPU"})` : job.title;
  const started = Date.now() / 1000;
  return new Promise((resolve) => {
    const worker = new Worker("agent.js", { type: "module" });
    const end = (result) => {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", visibility);
      worker.terminate();
      resolve(result);
    };
    const fail = (reason, stoppedBy) => end(failed(job, provider, `${reason} (while ${last})`, started, stoppedBy));
    let last = "starting";
    // The worker ends by itself; this is for one that is stuck inside a session.
    const timer = setTimeout(() => fail(`nothing came within the deadline of ${job.deadline_s} s`, "deadline"), 1000 * job.deadline_s + 5000);
    const visibility = () => worker.postMessage({ visibility: document.visibilityState });
    worker.onerror = (event) => fail(`the worker ended: ${event.message || "it cannot be loaded; this browser may be too old"}`);
    worker.onmessage = ({ data }) => {
      if (data.progress) last = data.progress.text;
      if (data.progress) say({ state: document.hidden ? "hidden" : "measuring", ...data.progress, text: `${label}: ${data.progress.text}` });
      else if (data.note) notes.push(data.note);
      else if (data.result) end(data.result);
      else fail(data.failed);
    };
    document.addEventListener("visibilitychange", visibility);
    worker.postMessage({ base, job, provider, runtime: setup.runtime });
    visibility();
  });
}

function failed(job, provider, reason, started, stoppedBy = "rounds") {
  return {
    schema_version: 1, job_id: job.job_id, status: "failed", reason,
    agent: {
      name: "browser", version: "1", runtime: "onnxruntime-web", runtime_version: setup.runtime.version,
      provider: provider === "wasm" ? "WebAssembly" : "WebGPU",
    },
    emulated: job.emulated, threads: 1, cpus: null, started_unix_s: started, ended_unix_s: Date.now() / 1000,
    clock_jumps: 0, stopped_by: stoppedBy, checks: [], arms: [], sustained: null, memory_bytes: null,
  };
}

function say(change) {
  status = { ...status, ...change };
  at("text").textContent = status.text;
  at("left").textContent = status.left_s === null ? "" : `about ${Math.ceil(status.left_s)} s left of this part`;
  if (status.share !== null) at("bar").value = status.share;
}

function message(state, text) {
  return JSON.stringify({ client, name, browser: browserName(), state, text, share: status.share, left_s: status.left_s });
}

let telling = false;
async function tell() {
  if (telling) return;
  telling = true;
  try {
    await post(`${base}progress`, message(status.state, status.text));
  } catch { /* the next one says it */ } finally {
    telling = false;
  }
}

function show(job, result) {
  const line = at(`job-${job.job_id}`);
  const say = document.createElement("p");
  if (result.status !== "ok") {
    say.className = "bad";
    say.textContent = `${result.agent.provider}: ${result.reason}`;
    return line.append(say);
  }
  const table = document.createElement("table");
  const row = (kind, cells) => {
    const tr = table.insertRow();
    for (const cell of cells) tr.append(Object.assign(document.createElement(kind), { textContent: cell }));
  };
  row("th", [result.agent.provider, "batch", "ms per item"]);
  for (const arm of result.arms) {
    const totals = arm.rounds.map((round) => round.reduce((a, b) => a + b, 0) / round.length / arm.batch_size / 1e6);
    const middle = totals.sort((a, b) => a - b)[Math.floor(totals.length / 2)];
    row("td", [arm.name, arm.batch_size, arm.reason ?? middle?.toPrecision(3) ?? "not timed"]);
  }
  line.append(table);
}

function note(text, kind = "") {
  at("notes").append(Object.assign(document.createElement("li"), { textContent: text, className: kind }));
}

function remembered() {
  try { return localStorage.getItem("name"); } catch { return null; }
}

function hex(bytes) {
  return Array.from(crypto.getRandomValues(new Uint8Array(bytes)), (b) => b.toString(16).padStart(2, "0")).join("");
}
