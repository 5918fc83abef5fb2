// Start reading here: puts the parts of the page together.

import { ApiError, apiKey, health, models, speechStream } from "./api.js";
import { Clip } from "./clip.js";
import { EmotionPanel } from "./emotion.js";
import { History } from "./history.js";
import { clearError, mistake, say, showError } from "./messages.js";
import { watchDialogs, watchDrops, watchTheme } from "./shell.js";
import { Stage } from "./stage.js";
import { VoicePanel } from "./voices.js";

const byId = (id) => document.getElementById(id);
const MAX_CHARACTERS = 4096;
const EXAMPLES = {
  "Good news": "Good morning! The letter came today, and you will not believe what it says.",
  "A tale": "The lighthouse keeper climbed the stairs slowly. Outside, the storm had already found the island.",
  "A riddle": "I have cities, but no houses; forests, but no trees; and water, but no fish. What am I?",
};
const SPEAK = "M8 5v14l11-7z";
const STOP = "M6 6h12v12H6z";

const stage = new Stage();
const history = new History(byId("history"), byId("history-empty"), byId("history-clear"));
const voices = new VoicePanel();
const emotion = new EmotionPanel();

let model = "indextts2";
let sampleRate = 22050; // until the server has said another one
let running = null; // the AbortController of the request in flight

// --- the server ---

function serverState(state, text) {
  byId("server").dataset.state = state;
  byId("server-text").textContent = text;
}

async function connect() {
  serverState("wait", "Connecting …");
  try {
    const state = await health();
    stage.downloads.setFormats(state.response_formats);
    model = (await models()).data[0].id;
    await voices.load();
    serverState("ready", state.status === "loading" ? "Loading the model" : "Ready");
  } catch (error) {
    if (error.status === 401) {
      serverState("key", "Needs a key");
      byId("open-key").click();
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
  if (text.length > MAX_CHARACTERS) {
    throw mistake(`The text has ${text.length} characters; at most ${MAX_CHARACTERS} can be said at once.`, "text");
  }
  const body = { model, input: text, speed: Number(byId("speed").value), latency: byId("latency").value };
  const seed = byId("seed").value.trim();
  if (seed) {
    body.seed = /^\d+$/.test(seed) ? Number(seed) : NaN;
    if (!Number.isSafeInteger(body.seed)) {
      byId("more").open = true;
      throw mistake("A seed is a whole number of at most 15 digits.", "seed");
    }
  }
  return { ...body, ...(await voices.fields()), ...(await emotion.fields()) };
}

async function speak() {
  clearError();
  stage.player.pause();
  stage.player.wake(sampleRate);
  const control = new AbortController();
  setRunning(control);
  const pressed = performance.now();
  let entry = null;
  try {
    const body = await requestBody();
    say("Waiting for the first sound …");
    await speechStream(body, control.signal, {
      onStart: (facts) => (entry = begin(body, facts, pressed)),
      onSamples: (samples) => {
        entry.clip.append(samples);
        stage.grown(entry);
      },
    });
    if (entry.clip.length === 0) throw new ApiError("The server sent no sound.", { requestId: entry.requestId });
    entry.rtf = (performance.now() - pressed) / 1000 / entry.clip.duration;
    say(`Done: ${entry.clip.duration.toFixed(1)} seconds of speech.`);
  } catch (error) {
    if (entry) entry.broken = true;
    if (control.signal.aborted) say("Stopped.");
    else showError(error);
  }
  setRunning(null);
  if (entry) finish(entry);
}

/** The response has begun: show an empty clip that will grow. */
function begin(body, facts, pressed) {
  sampleRate = facts.sampleRate;
  const entry = {
    ...facts,
    body,
    pressed,
    clip: new Clip(facts.sampleRate),
    text: body.input,
    summary: [voices.summary, emotion.summary].filter(Boolean).join(" · "),
    form: { voice: voices.state, emotion: emotion.state },
  };
  show(entry);
  byId("stage").scrollIntoView({ block: "nearest" });
  return entry;
}

function finish(entry) {
  entry.clip.finish();
  if (entry.clip.length === 0) return;
  history.add(entry);
  if (stage.entry !== entry) return;
  history.mark(entry);
  stage.grown(entry);
  stage.showFigures();
}

function show(entry) {
  stage.show(entry);
  stage.player.play();
  history.mark(entry);
}

function setRunning(control) {
  running = control;
  byId("speak").classList.toggle("running", Boolean(running));
  byId("speak-label").textContent = running ? "Stop" : "Speak";
  byId("speak-key").textContent = running ? "Esc" : "Ctrl ↵";
  byId("speak-icon").setAttribute("d", running ? STOP : SPEAK);
  stage.setBusy(Boolean(running));
}

stage.addEventListener("heard", () => running && say("Speaking …"));
history.addEventListener("open", ({ detail: entry }) => show(entry));
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

function addExample([title, text]) {
  const button = Object.assign(document.createElement("button"), { type: "button", className: "idea", textContent: title, title: text });
  button.addEventListener("click", () => {
    byId("text").value = text;
    showForm();
    byId("text").focus();
  });
  byId("ideas").append(button);
}

Object.entries(EXAMPLES).forEach(addExample);
byId("text").addEventListener("input", showForm);
byId("speed").addEventListener("input", showForm);
byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.abort();
  else speak();
});
byId("seed-use").addEventListener("click", () => {
  byId("seed").value = stage.entry.seed;
  byId("more").open = true;
  byId("seed").focus();
});
voices.addEventListener("kept", ({ detail: name }) => say(`The voice “${name}” is kept.`));
voices.addEventListener("error", ({ detail: error }) => showError(error));

addEventListener("keydown", (event) => {
  if (event.isComposing || document.querySelector("dialog[open]")) return;
  const typing = event.target.matches?.("textarea, input:not([type=radio], [type=range], [type=checkbox]), select");
  if ((event.ctrlKey || event.metaKey) && event.key === "Enter") {
    if (!running) byId("form").requestSubmit();
  } else if (event.key === "Escape" && running) running.abort();
  else if (event.altKey && event.code === "KeyP") stage.toggle();
  else if (event.key === "?" && !typing) byId("open-help").click();
  else return;
  event.preventDefault();
});

watchDrops((file, place) => {
  const mood = place instanceof Element && place.closest("#emotion-card");
  if (mood) emotion.restore({ ...emotion.state, kind: "clip", file });
  else voices.takeFile(file);
});
watchDialogs(apiKey.get, (key) => {
  apiKey.set(key);
  clearError();
  connect();
});
watchTheme(() => {
  stage.draw();
  history.draw();
  voices.own.draw();
  emotion.clip.draw();
});
showForm();
connect();
