// Results on their way: kept until the server has said that it has them, over a reload of the page as well.

const PATIENCE_MS = [1000, 2000, 4000, 8000, 15000, 30000];
const ANSWER_MS = 20000;

export async function post(url, body, patienceMs = ANSWER_MS) {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), patienceMs);
  try {
    return await fetch(url, { method: "POST", body, signal: stop.signal, headers: { "Content-Type": "application/json" } });
  } finally {
    clearTimeout(timer);
  }
}

export class Outbox {
  constructor(base, client, say) {
    Object.assign(this, { base, client, say });
    this.waiting = new Map(); // from keys 'JOB/PROVIDER/CLIENT' to bodies
    this.refused = null;
    this.busy = null;
  }

  // Takes up results of these jobs that an earlier page measured and could not send.
  resend(jobIds) {
    try {
      for (let i = 0; i < localStorage.length; i++) {
        const key = localStorage.key(i);
        if (jobIds.some((id) => key.startsWith(`${id}/`))) this.waiting.set(key, localStorage.getItem(key));
      }
    } catch { /* nothing was kept */ }
    if (this.waiting.size) this.start();
  }

  async add(jobId, provider, result) {
    const key = `${jobId}/${provider}/${this.client}`;
    const body = JSON.stringify(result);
    this.waiting.set(key, body);
    try {
      localStorage.setItem(key, body);
    } catch {
      this.say("Do not reload this page: the browser has no room to keep the result.");
    }
    this.start();
  }

  // When all was sent. Returns null, or why something was refused.
  async empty() {
    while (this.busy) await this.busy;
    return this.refused;
  }

  start() {
    this.busy ??= this.send().finally(() => (this.busy = null));
  }

  async send() {
    let failures = 0;
    while (this.waiting.size) {
      const [key, body] = this.waiting.entries().next().value;
      const client = key.split("/")[2];
      let status = 0;
      try {
        // A result is some megabytes at most; a slow network needs its time.
        const answer = await post(`${this.base}result?client=${client}`, body, 6 * ANSWER_MS);
        status = answer.status;
        if (status === 400 || status === 413) this.refused = `The result was refused: ${(await answer.text()).slice(0, 300)}`;
      } catch { /* no answer: it is sent again */ }
      if (status === 200 || status === 400 || status === 413) {
        this.waiting.delete(key);
        try { localStorage.removeItem(key); } catch { /* it was not kept */ }
        failures = 0;
        this.say("");
        continue;
      }
      const wait = PATIENCE_MS[Math.min(failures, PATIENCE_MS.length - 1)];
      failures += 1;
      this.say(`No connection to the machine that collects the results; the result is kept and sent again in ${wait / 1000} s.`);
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }
}
