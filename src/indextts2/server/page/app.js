// Start reading here: puts the parts of the page together.

import { ApiError, apiKey, health, Mistake, models, speechFile, speechStream } from "./api.js";
import { Clip } from "./clip.js";
import { EmotionPanel } from "./emotion.js";
import { History } from "./history.js";
import { Picture } from "./picture.js";
import { Player } from "./player.js";
import { VoicePanel } from "./voices.js";
import { pcmBytes, wavBytes } from "./wav.js";

const byId = (id) => document.getElementById(id);
const MAX_CHARACTERS = 4096;
const FORMATS = { wav: "WAV", flac: "FLAC", mp3: "MP3", opus: "Opus", pcm: "PCM" };
const EXAMPLES = {
  "Good news": "Good morning! The letter came today, and you will not believe what it says.",
  "A tale": "The lighthouse keeper climbed the stairs slowly. Outside, the storm had already found the island.",
  "A riddle": "I have cities, but no houses; forests, but no trees; and water, but no fish. What am I?",
};
const PLAY = "M8 5v14l11-7z";
const PAUSE = "M7 5h4v14H7zm6 0h4v14h-4z";
const STOP = "M6 6h12v12H6z";

const player = new Player();
const picture = new Picture(byId("wave"), byId("mel"), byId("axis"));
const history = new History(byId("history"), byId("history-empty"), byId("history-clear"));
const voices = new VoicePanel();
const emotion = new EmotionPanel();

let model = "indextts2";
let sampleRate = 22050; // until the server has said another one
let running = null; // the AbortController of the request in flight
let shown = null; // the entry in the player
let dirty = false; // the picture is older than its clip

// --- messages ---

const say = (text) => (byId("status").textContent = text);

function showError(error) {
  if (error.name === "AbortError") return;
  const wait = error.retryAfter ? ` (in ${error.retryAfter} s)` : "";
  byId("error-text").textContent = error.message.charAt(0).toUpperCase() + error.message.slice(1) + wait;
  const facts = [error.status || "", error.code ?? "", error.requestId ? `request ${error.requestId}` : ""];
  byId("error-fine").textContent = facts.filter(Boolean).join(" · ");
  byId("error").hidden = false;
  say("");
  const fields = { input: "text", seed: "seed", speed: "speed" };
  const field = byId(fields[error.param] ?? "") ?? null;
  field?.setAttribute("aria-invalid", "true");
  if (error.status === 401) openKey();
  if (!(error instanceof ApiError || error instanceof Mistake)) console.error(error);
}

function clearError() {
  byId("error").hidden = true;
  for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
}

/** A mistake that the page itself sees; `id` is the field to go to. */
function mistake(message, id) {
  byId(id)?.focus();
  byId(id)?.setAttribute("aria-invalid", "true");
  return new Mistake(message);
}

function serverState(state, text) {
  byId("server").dataset.state = state;
  byId("server-text").textContent = text;
}

// --- the server ---

async function connect() {
  serverState("wait", "Connecting …");
  try {
    const state = await health();
    model = (await models()).data[0].id;
    await voices.load();
    serverState("ready", state.status === "loading" ? "Loading the model" : "Ready");
  } catch (error) {
    if (error.status === 401) {
      serverState("key", "Needs a key");
      openKey();
    } else {
      serverState("down", "Not reachable");
      showError(error);
    }
  }
}

// --- speaking ---

async function requestBody() {
  const text = byId("text").value.trim();
  if (!text) throw mistake("Type something to say.", "text");
  if (text.length > MAX_CHARACTERS) throw mistake(`The text has ${text.length} characters; at most ${MAX_CHARACTERS} can be said at once.`, "text");
  const body = { model, input: text, speed: Number(byId("speed").value), latency: byId("latency").value };
  const seed = byId("seed").value.trim();
  if (seed) {
    if (!/^\d+$/.test(seed) || !Number.isSafeInteger(Number(seed))) {
      byId("more").open = true;
      throw mistake("A seed is a whole number of at most 15 digits.", "seed");
    }
    body.seed = Number(seed);
  }
  Object.assign(body, await voices.fields(), await emotion.fields());
  return body;
}

async function speak() {
  clearError();
  player.pause();
  player.wake(sampleRate);
  const control = new AbortController();
  running = control;
  showRunning();
  const pressed = performance.now();
  let entry = null;
  try {
    const body = await requestBody();
    say("Waiting for the first sound …");
    await speechStream(body, control.signal, {
      onStart: (facts) => (entry = begin(body, facts, pressed)),
      onSamples: (samples) => grow(entry, samples),
    });
    if (entry.clip.length === 0) throw new ApiError("The server sent no sound.", { requestId: entry.requestId });
    say(`Done: ${entry.clip.duration.toFixed(1)} seconds of speech.`);
  } catch (error) {
    if (entry) entry.broken = true;
    if (control.signal.aborted) say("Stopped.");
    else showError(error);
  }
  running = null;
  showRunning();
  if (entry) finish(entry, pressed);
}

/** The response has begun: show an empty clip that will grow. */
function begin(body, facts, pressed) {
  sampleRate = facts.sampleRate;
  const clip = new Clip(facts.sampleRate);
  const summary = [voices.summary, emotion.summary].filter(Boolean).join(" · ");
  const form = { voice: voices.state, emotion: emotion.state };
  const seed = facts.seed ?? String(body.seed ?? "");
  const entry = { clip, body, form, text: body.input, summary, seed, requestId: facts.requestId, pressed };
  show(entry);
  player.play();
  byId("stage").scrollIntoView({ block: "nearest" });
  return entry;
}

function grow(entry, samples) {
  entry.clip.append(samples);
  if (shown !== entry) return;
  player.update();
  dirty = true;
}

function finish(entry, pressed) {
  entry.clip.finish();
  if (entry.clip.length === 0) return;
  entry.rtf = entry.broken ? null : (performance.now() - pressed) / 1000 / entry.clip.duration;
  history.add(entry);
  if (shown !== entry) return;
  history.mark(entry);
  player.update();
  picture.draw(player.position);
  showNumbers();
}

function showRunning() {
  const button = byId("speak");
  button.classList.toggle("running", Boolean(running));
  byId("speak-label").textContent = running ? "Stop" : "Speak";
  byId("speak-key").textContent = running ? "Esc" : "Ctrl ↵";
  byId("speak-icon").setAttribute("d", running ? STOP : PLAY);
  byId("stage").classList.toggle("busy", Boolean(running));
  showNumbers();
}

// --- the player ---

function show(entry) {
  shown = entry;
  player.load(entry.clip);
  picture.show(entry.clip);
  delete byId("stage").dataset.empty;
  byId("empty").hidden = true;
  byId("play").disabled = false;
  byId("stage-name").textContent = entry.summary;
  history.mark(entry);
  showNumbers();
  tick();
}

function showNumbers() {
  const seconds = (value) => (value == null ? "–" : `${value.toFixed(2)} s`);
  byId("first-sound").textContent = seconds(shown?.firstSound);
  byId("rtf").textContent = shown?.rtf == null ? "–" : shown.rtf.toFixed(2);
  byId("seed-use").textContent = shown?.seed || "–";
  byId("seed-use").disabled = !shown?.seed;
  byId("seed-use").setAttribute("aria-label", shown?.seed ? `Use the seed ${shown.seed} again` : "No seed yet");
  for (const button of byId("downloads").children) button.disabled = !shown?.clip.complete || shown.clip.length === 0;
}

const clock = (seconds) => `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;

function showPosition() {
  const { position } = player;
  const duration = shown?.clip.duration ?? 0;
  byId("clock-now").textContent = clock(position);
  byId("clock-all").textContent = clock(duration);
  const field = byId("picture");
  field.setAttribute("aria-valuemax", duration.toFixed(1));
  field.setAttribute("aria-valuenow", position.toFixed(1));
  field.setAttribute("aria-valuetext", shown ? `${position.toFixed(1)} of ${duration.toFixed(1)} seconds` : "no speech yet");
  byId("playhead").style.transform = `translateX(${(position / picture.seconds) * byId("wave").clientWidth}px)`;
}

let ticking = false;
function tick() {
  player.update();
  if (dirty) picture.draw(player.position);
  else if (shown) picture.drawPlayed(player.position);
  dirty = false;
  if (shown) showPosition();
  ticking = player.playing || Boolean(running);
  if (ticking) requestAnimationFrame(tick);
}

player.addEventListener("change", () => {
  byId("play-icon").setAttribute("d", player.playing ? PAUSE : PLAY);
  byId("play").setAttribute("aria-label", player.playing ? "Pause" : "Play");
  byId("stage").dataset.state = player.state;
  if (!ticking) tick();
});

player.addEventListener("heard", ({ detail: when }) => {
  if (!shown || shown.firstSound != null) return;
  shown.firstSound = (when - shown.pressed) / 1000;
  if (running) say("Speaking …");
  showNumbers();
});

function toggle() {
  if (!shown) return;
  if (player.playing) player.pause();
  else player.play();
}

byId("play").addEventListener("click", toggle);

byId("picture").addEventListener("pointerdown", (event) => {
  if (!shown) return;
  const box = byId("wave").getBoundingClientRect();
  const seek = ({ clientX }) => {
    player.seek(((clientX - box.left) / box.width) * picture.seconds);
    if (!ticking) tick();
  };
  seek(event);
  byId("picture").setPointerCapture(event.pointerId);
  byId("picture").onpointermove = seek;
});
for (const name of ["pointerup", "pointercancel"]) byId("picture").addEventListener(name, () => (byId("picture").onpointermove = null));

byId("picture").addEventListener("keydown", (event) => {
  const duration = shown?.clip.duration ?? 0;
  const at = player.position;
  const to = { ArrowLeft: at - 0.5, ArrowDown: at - 0.5, ArrowRight: at + 0.5, ArrowUp: at + 0.5, Home: 0, End: duration, PageDown: at - 5, PageUp: at + 5 };
  if (event.key === " " || event.key === "Enter") toggle();
  else if (event.key in to) player.seek(to[event.key]);
  else return;
  event.preventDefault();
  if (!ticking) tick();
});

// --- downloads ---

/** Samples as a file of `format`; WAV and PCM are made here, the rest by the server, which repeats the same speech. */
async function fileOf(entry, format) {
  const comment = `synthetic speech; seed ${entry.seed}; made with IndexTTS2`;
  if (format === "pcm") return new Blob([pcmBytes(entry.clip.pcm)], { type: "audio/pcm" });
  if (format === "wav") {
    return new Blob([wavBytes(entry.clip.pcm, entry.clip.sampleRate, { INAM: "Synthetic speech", ICMT: comment })], { type: "audio/wav" });
  }
  return speechFile({ ...entry.body, seed: Number(entry.seed) }, format);
}

async function download(format, button) {
  const entry = shown;
  clearError();
  button.disabled = true;
  button.setAttribute("aria-busy", "true");
  try {
    if (format !== "wav" && format !== "pcm") say(`The server speaks it once more, as ${FORMATS[format]} …`);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await fileOf(entry, format));
    link.download = `${fileName(entry.text)}.${format}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    say(`Saved ${link.download}.`);
  } catch (error) {
    showError(error);
  }
  button.removeAttribute("aria-busy");
  showNumbers();
}

const fileName = (text) => text.toLowerCase().match(/[\p{L}\p{N}]+/gu)?.slice(0, 5).join("-").slice(0, 60) || "speech";

for (const [format, label] of Object.entries(FORMATS)) {
  const button = Object.assign(document.createElement("button"), { type: "button", className: "soft", textContent: label, disabled: true });
  button.dataset.format = format;
  button.setAttribute("aria-label", `Download as ${label}`);
  button.addEventListener("click", () => download(format, button));
  byId("downloads").append(button);
}

// --- history ---

history.addEventListener("open", ({ detail: entry }) => {
  show(entry);
  picture.draw(0);
  player.play();
});

history.addEventListener("reuse", ({ detail: { text, form, body } }) => {
  byId("text").value = text;
  byId("speed").value = body.speed;
  byId("latency").value = body.latency;
  voices.restore(form.voice);
  emotion.restore(form.emotion);
  showForm();
  byId("text").focus();
});

// --- the form ---

function showForm() {
  const length = byId("text").value.trim().length;
  byId("count-now").textContent = length;
  byId("count").classList.toggle("over", length > MAX_CHARACTERS);
  byId("speed-value").textContent = `${Number(byId("speed").value).toFixed(2)} ×`;
}

byId("text").addEventListener("input", showForm);
byId("speed").addEventListener("input", showForm);
byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.abort();
  else speak();
});
byId("seed-use").addEventListener("click", () => {
  byId("seed").value = shown.seed;
  byId("more").open = true;
  byId("seed").focus();
});
byId("error-close").addEventListener("click", () => {
  clearError();
  byId("text").focus();
});
for (const event of ["kept", "error"]) {
  voices.addEventListener(event, ({ detail }) => (event === "kept" ? say(`The voice “${detail}” is kept.`) : showError(detail)));
}

for (const [title, text] of Object.entries(EXAMPLES)) {
  const button = Object.assign(document.createElement("button"), { type: "button", className: "idea", textContent: title, title: text });
  button.addEventListener("click", () => {
    byId("text").value = text;
    showForm();
    byId("text").focus();
  });
  byId("ideas").append(button);
}

// --- files dropped anywhere on the page ---

let depth = 0;
const dragging = (on) => document.body.classList.toggle("dragging", on);
addEventListener("dragenter", (event) => {
  if (event.dataTransfer?.types.includes("Files")) dragging(++depth > 0);
});
addEventListener("dragleave", () => dragging((depth = Math.max(0, depth - 1)) > 0));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  dragging((depth = 0) > 0);
  const file = event.dataTransfer?.files[0];
  if (!file) return;
  if (event.target instanceof Element && event.target.closest("#emotion-card")) {
    emotion.restore({ ...emotion.state, kind: "clip", file });
  } else voices.takeFile(file);
});

// --- dialogs, theme, keys ---

function openKey() {
  byId("key").value = apiKey.get();
  if (!byId("key-dialog").open) byId("key-dialog").showModal();
}
byId("open-key").addEventListener("click", openKey);
byId("key-dialog").addEventListener("close", () => {
  const choice = byId("key-dialog").returnValue;
  byId("key-dialog").returnValue = "";
  if (choice !== "save" && choice !== "forget") return;
  apiKey.set(choice === "save" ? byId("key").value.trim() : "");
  byId("key").value = "";
  clearError();
  connect();
});
byId("open-help").addEventListener("click", () => byId("help-dialog").showModal());

const systemDark = matchMedia("(prefers-color-scheme: dark)");
const THEMES = { auto: "as the system", light: "light", dark: "dark" };
function showTheme() {
  const theme = document.documentElement.dataset.theme ?? "auto";
  byId("theme").setAttribute("aria-label", `Theme: ${THEMES[theme]}`);
  byId("theme").title = `Theme: ${THEMES[theme]}`;
  redraw();
}
byId("theme").addEventListener("click", () => {
  // From the system's theme to its opposite, then to the other one, then back.
  const order = ["auto", ...(systemDark.matches ? ["light", "dark"] : ["dark", "light"])];
  const now = document.documentElement.dataset.theme ?? "auto";
  const next = order[(order.indexOf(now) + 1) % order.length];
  if (next === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  if (next === "auto") localStorage.removeItem("indextts2.theme");
  else localStorage.setItem("indextts2.theme", next);
  showTheme();
});

function redraw() {
  picture.draw(player.position);
  if (shown) showPosition();
  history.draw();
  voices.own.draw();
  emotion.clip.draw();
}
systemDark.addEventListener("change", redraw);
new ResizeObserver(redraw).observe(byId("picture"));

addEventListener("keydown", (event) => {
  if (event.isComposing || document.querySelector("dialog[open]")) return;
  const typing = event.target.matches?.("textarea, input:not([type=radio], [type=range], [type=checkbox]), select");
  if ((event.ctrlKey || event.metaKey) && event.key === "Enter") {
    if (!running) byId("form").requestSubmit();
  } else if (event.key === "Escape" && running) running.abort();
  else if (event.altKey && event.code === "KeyP") toggle();
  else if (event.key === "?" && !typing) byId("help-dialog").showModal();
  else return;
  event.preventDefault();
});

showForm();
showTheme();
connect();
