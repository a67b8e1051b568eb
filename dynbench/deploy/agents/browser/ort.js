// ONNX Runtime Web, as this machine's server has it.

// y = x, for one number: the smallest graph, with which the runtime itself is started before anything is timed.
const IDENTITY = "CAc6NwoQCgF4EgF5IghJZGVudGl0eRIBZ1oPCgF4EgoKCAgBEgQKAggBYg8KAXkSCgoICAESBAoCCAFCBAoAEA0=";
const KINDS = {
  float32: "float32", float64: "float64", int32: "int32", int64: "int64", bool: "bool", uint8: "uint8", int8: "int8",
};

// What the runtime writes while somebody listens. It keeps the console's functions when it starts, so they are replaced
// before that.
let heard = null;
for (const way of ["log", "info", "debug", "warn", "error"]) {
  const write = console[way].bind(console);
  console[way] = (...words) => (heard ? heard.push(words.join(" ")) : write(...words));
}

export class Runtime {
  // runtime: {version, files: {PROVIDER: [main, module, wasm]}}
  constructor(base, runtime, provider, threads) {
    Object.assign(this, { base, provider, version: runtime.version });
    this.names = runtime.files[provider];
    this.threads = crossOriginIsolated ? threads : 1;
    this.asked = threads;
    this.memories = [];
  }

  facts() {
    const provider = this.provider === "wasm" ? "WebAssembly" : "WebGPU";
    return { name: "browser", version: "1", runtime: "onnxruntime-web", runtime_version: this.version, provider };
  }

  // Downloads and compiles the runtime. Returns a sentence about it.
  async start() {
    const [main, module, wasm] = this.names.map((name) => `${this.base}runtime/${name}`);
    this.watchMemory();
    const start = performance.now();
    this.ort = await import(main);
    const env = this.ort.env;
    Object.assign(env.wasm, { wasmPaths: { mjs: module, wasm }, numThreads: this.threads, proxy: false });
    env.logLevel = "error";
    const bytes = Uint8Array.from(atob(IDENTITY), (c) => c.charCodeAt(0));
    const session = await this.session(bytes);
    await session.release();
    const took = `runtime: downloaded and compiled in ${(performance.now() - start).toFixed(0)} ms`;
    if (this.threads === this.asked) return took;
    return `${took}; 1 thread, not ${this.asked}: threads need an address with https, or localhost`;
  }

  // graph: its bytes. verbose: the runtime says where each node runs.
  session(graph, verbose = false) {
    const providers = this.provider === "wasm" ? ["wasm"] : [this.provider, "wasm"];
    return this.ort.InferenceSession.create(graph, {
      executionProviders: providers,
      graphOptimizationLevel: "all",
      executionMode: "sequential",
      logSeverityLevel: verbose ? 0 : 3,
    });
  }

  // Which operators of a graph the GPU does not run, as a sentence: from what the runtime writes when it is told to be
  // verbose. A session of its own, as such a one is slow.
  async placement(file, graph) {
    heard = [];
    try {
      const session = await this.session(graph, true);
      await session.release();
      return placed(file, heard.join("\n"));
    } finally {
      heard = null;
    }
  }

  // The inputs of a session: a graph that ignores its input does not have one.
  feeds(session, input, batch) {
    if (!session.inputNames.includes(input.name)) return {};
    return { [input.name]: new this.ort.Tensor(KINDS[input.dtype], batch.data, batch.shape) };
  }

  // Inputs beside the stream: of `size` items from the item `first` on, the rows of each array.
  given(session, arrays, first, size) {
    const feeds = {};
    for (const { input, rows, array } of arrays) {
      if (!session.inputNames.includes(input)) continue;
      const width = array.shape.slice(1).reduce((a, b) => a * b, 1);
      const data = array.data.slice(first * rows * width, (first + size) * rows * width);
      feeds[input] = new this.ort.Tensor(KINDS[array.dtype], data, [size * rows, ...array.shape.slice(1)]);
    }
    return feeds;
  }

  // WebAssembly's memory only grows, so what it has at the end is the most it had.
  memoryBytes() {
    const bytes = this.memories.reduce((sum, memory) => sum + memory.buffer.byteLength, 0);
    return bytes || null;
  }

  watchMemory() {
    const Memory = WebAssembly.Memory;
    const memories = this.memories;
    WebAssembly.Memory = class extends Memory {
      constructor(...given) {
        super(...given);
        memories.push(this);
      }
    };
  }
}

// text: as VerifyEachNodeIsAssignedToAnEp writes it: for each provider a line with its number of nodes, then, where there
// are several providers, a line for each node.
export function placed(file, text) {
  const gpu = { nodes: 0 };
  const cpu = {};
  let onCpu = false;
  for (const line of text.split("\n")) {
    const head = /(?:All nodes|Node\(s\)) placed on \[(\w+)\]\. Number of nodes: (\d+)/.exec(line);
    const node = /^(?:.*VerifyEachNodeIsAssignedToAnEp\])?\s+(\w+) \(/.exec(line);
    if (head) {
      onCpu = head[1].startsWith("CPU");
      if (!onCpu) gpu.nodes += Number(head[2]);
      else if (line.includes("All nodes")) cpu.node = Number(head[2]);
    } else if (node && onCpu) {
      cpu[node[1]] = (cpu[node[1]] ?? 0) + 1;
    } else if (!/VerifyEachNode/.test(line)) {
      onCpu = false;
    }
  }
  const fell = Object.entries(cpu).sort((a, b) => b[1] - a[1]).map(([name, count]) => `${count} ${name}`);
  if (!gpu.nodes && !fell.length) return `placement: ${file}: unavailable: the runtime did not say`;
  return `placement: ${file}, branches aside: ${gpu.nodes} nodes on the GPU; on the CPU: ${fell.join(", ") || "none"}`;
}
