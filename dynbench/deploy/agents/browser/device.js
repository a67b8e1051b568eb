// What a page can know of the device it is on, and keeping its screen on.

const BROWSERS = [
  [/HeadlessChrome\/(\d+)/, "Chrome, headless"],
  [/SamsungBrowser\/([\d.]+)/, "Samsung Internet"],
  [/OPR\/(\d+)/, "Opera"],
  [/Edg(?:A|iOS)?\/(\d+)/, "Edge"],
  [/FxiOS\/(\d+)/, "Firefox for iOS"],
  [/CriOS\/(\d+)/, "Chrome for iOS"],
  [/Firefox\/(\d+)/, "Firefox"],
  [/Chrome\/(\d+)/, "Chrome"],
  [/Version\/([\d.]+).*Safari/, "Safari"],
];

export function browserName(agent = navigator.userAgent) {
  for (const [pattern, name] of BROWSERS) {
    const found = pattern.exec(agent);
    if (found) return `${name} ${found[1]}`;
  }
  return "unknown browser";
}

export function systemName(agent = navigator.userAgent) {
  const android = /Android [\d.]+/.exec(agent);
  const ios = /(?:iPhone|CPU) OS ([\d_]+)/.exec(agent);
  if (android) return android[0];
  if (ios) return `iOS ${ios[1].replaceAll("_", ".")}`;
  return ["Windows", "Mac OS X", "CrOS", "Linux"].find((name) => agent.includes(name)) ?? "unknown system";
}

// A first guess at the device's name: the model in the user agent, which newer browsers write as 'K'.
export function guessedName(agent = navigator.userAgent) {
  const model = /Android [\d.]+; ([^;)]+)/.exec(agent)?.[1].replace(/ Build\/.*/, "");
  if (model && model !== "K") return model.slice(0, 60);
  for (const name of ["iPhone", "iPad"]) if (agent.includes(name)) return name;
  return `${systemName(agent)} device`;
}

// Facts for the result. What is a guess or rounded goes into notes, not into a number.
export async function facts(name) {
  const notes = [`user agent: ${navigator.userAgent}`];
  let architecture = /(aarch64|arm64|armv\d\w*|x86_64|Win64|i686)/.exec(`${navigator.platform} ${navigator.userAgent}`)?.[1];
  let model = "";
  try {
    const said = await navigator.userAgentData?.getHighEntropyValues(["architecture", "bitness", "model"]);
    if (said?.architecture) architecture = said.architecture + (said.bitness === "64" ? " 64 bit" : "");
    model = said?.model ?? "";
  } catch { /* it may refuse */ }
  if (model) notes.push(`model: ${model}`);
  if (navigator.deviceMemory) notes.push(`memory: ${navigator.deviceMemory} GiB, as the browser rounds it`);
  if (navigator.webdriver) notes.push("driven by a program (navigator.webdriver)");
  if (/Headless/.test(navigator.userAgent)) notes.push("headless: no screen, so perhaps a server");
  notes.push("a browser cannot tell whether its machine is emulated, which core it runs on, or how warm that is");
  return {
    device: {
      name,
      architecture: architecture ?? "unknown",
      cpu: null,
      cores: navigator.hardwareConcurrency ?? null,
      memory_bytes: null,
      os: systemName(),
      browser: browserName(),
    },
    notes,
  };
}

// Keeps the screen on as long as the page is shown. Returns a sentence that says how.
export async function keepAwake() {
  if (navigator.wakeLock) {
    const ask = () => navigator.wakeLock.request("screen").catch(() => null);
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && ask());
    if (await ask()) return "screen: kept on by a wake lock";
  }
  try {
    await playNothing();
    return "screen: a tiny video plays, for which most browsers keep it on; a wake lock needs https or localhost";
  } catch {
    return "screen: may turn off; set its time-out to the longest. A wake lock needs https or localhost";
  }
}

// A video of an empty canvas, of which a frame is drawn every few seconds.
async function playNothing() {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 16;
  const pen = canvas.getContext("2d");
  const video = document.createElement("video");
  Object.assign(video, { muted: true, playsInline: true, srcObject: canvas.captureStream() });
  const draw = () => pen.fillRect(0, 0, 16, 16);
  draw();
  setInterval(draw, 5000);
  document.body.append(video);
  const late = new Promise((_, reject) => setTimeout(() => reject(new Error("it does not start")), 3000));
  await Promise.race([video.play(), late]);
}
