// A place for a clip of sound: record it, choose a file or drop one. Used for voices and for emotions.

import { clipOf } from "./clip.js";
import { drawWave } from "./picture.js";
import { wavBytes } from "./wav.js";

const LONGEST_SECONDS = 30;
const CUT_SECONDS = 15;
const SHORTEST_SECONDS = 1;
const LARGEST_BYTES = 10 * 1024 * 1024;
const KNOWN_SUFFIX = /\.(wav|flac|ogg|oga|opus|mp3)$/i;

/** Events: "change" when a clip has come or gone. */
export class ClipField extends EventTarget {
  constructor(place, label) {
    super();
    place.append(document.getElementById("clip-template").content.cloneNode(true));
    this.part = Object.fromEntries([...place.querySelectorAll("[data-part]")].map((node) => [node.dataset.part, node]));
    this.panes = ["empty", "live", "full"].map((name) => place.querySelector(`.clip-${name}`));
    this.file = null;
    this.clip = null;
    this.label = label;
    place.setAttribute("role", "group");
    place.setAttribute("aria-label", label);
    this.part.file.addEventListener("change", () => this.take(this.part.file.files[0]));
    this.part.record.addEventListener("click", () => this.record());
    this.part.stop.addEventListener("click", () => this.recorder?.stop());
    this.part.remove.addEventListener("click", () => this.clear(true));
    this.part.play.addEventListener("click", () => this.#listen());
    this.#pane("empty");
  }

  #pane(name) {
    for (const pane of this.panes) pane.hidden = !pane.classList.contains(`clip-${name}`);
  }

  #note(text) {
    this.part.note.textContent = text;
  }

  /** Forget the clip. */
  clear(focus = false) {
    this.#hush();
    this.file = this.clip = null;
    this.part.file.value = "";
    this.#note("");
    this.#pane("empty");
    if (focus) this.part.record.focus();
    this.dispatchEvent(new Event("change"));
  }

  /** Take a file, if it is sound of a usable length. */
  async take(file) {
    if (!file) return;
    this.#note("Reading …");
    let clip;
    try {
      clip = await decode(await file.arrayBuffer());
    } catch {
      this.clear();
      this.#note(`“${file.name}” is no sound that this browser can read. Try WAV, MP3, FLAC or Ogg.`);
      return;
    }
    if (clip.duration < SHORTEST_SECONDS) {
      this.clear();
      this.#note(`“${file.name}” lasts ${clip.duration.toFixed(1)} s; at least ${SHORTEST_SECONDS} s is needed.`);
      return;
    }
    const tooLong = clip.duration > LONGEST_SECONDS || file.size > LARGEST_BYTES;
    if (tooLong) clip = cut(clip);
    // Files that the server reads are sent as they are; all else as WAV.
    const keep = !tooLong && KNOWN_SUFFIX.test(file.name);
    this.file = keep ? file : new File([wavBytes(clip.pcm, clip.sampleRate)], "clip.wav", { type: "audio/wav" });
    this.clip = clip;
    this.part.name.textContent = file.name;
    this.part.length.textContent = `${clip.duration.toFixed(1)} s`;
    this.#note(tooLong ? `Only the first ${CUT_SECONDS} seconds are used.` : "");
    this.#pane("full");
    this.draw();
    this.dispatchEvent(new Event("change"));
  }

  draw() {
    if (this.clip && this.part.wave.clientWidth) drawWave(this.part.wave, this.clip);
  }

  async record() {
    if (!navigator.mediaDevices?.getUserMedia) {
      this.#note("Browsers allow recording only on https and on localhost. Choose a file instead.");
      return;
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: false, autoGainControl: false } });
    } catch (error) {
      this.#note(error.name === "NotAllowedError" ? "The microphone was not allowed." : "No microphone was found.");
      return;
    }
    this.#note("");
    this.#pane("live");
    this.part.stop.focus();
    const pieces = [];
    this.recorder = new MediaRecorder(stream);
    this.recorder.ondataavailable = (event) => pieces.push(event.data);
    const stopMeter = this.#meter(stream);
    this.recorder.onstop = () => {
      stopMeter();
      stream.getTracks().forEach((track) => track.stop());
      const blob = new Blob(pieces, { type: this.recorder.mimeType });
      this.recorder = null;
      this.#pane("empty");
      this.take(new File([blob], "Recording", { type: blob.type })).then(() => {
        if (this.clip) this.part.play.focus();
        else this.part.record.focus();
      });
    };
    this.recorder.start();
  }

  /** Show loudness and time until the returned function is called; stop the recording when it is long enough. */
  #meter(stream) {
    const context = new AudioContext();
    const analyser = new AnalyserNode(context, { fftSize: 1024 });
    context.createMediaStreamSource(stream).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    const start = performance.now();
    const timer = setInterval(() => {
      analyser.getFloatTimeDomainData(samples);
      const power = samples.reduce((sum, x) => sum + x * x, 0) / samples.length;
      this.part.level.value = Math.max(0, Math.min(1, 1 + Math.log10(power + 1e-9) / 5));
      const seconds = (performance.now() - start) / 1000;
      this.part.seconds.textContent = `${seconds.toFixed(1)} s`;
      if (seconds >= CUT_SECONDS) this.recorder?.stop();
    }, 80);
    return () => {
      clearInterval(timer);
      context.close();
    };
  }

  #listen() {
    if (this.listening) return this.#hush();
    const { clip } = this;
    const context = new AudioContext();
    const buffer = context.createBuffer(1, clip.length, clip.sampleRate);
    buffer.copyToChannel(clip.floats, 0);
    const source = new AudioBufferSourceNode(context, { buffer });
    source.connect(context.destination);
    source.onended = () => this.#hush();
    source.start();
    this.listening = context;
    this.part.play.setAttribute("aria-label", "Stop the clip");
    this.part.play.classList.add("on");
  }

  #hush() {
    this.listening?.close();
    this.listening = null;
    this.part.play.setAttribute("aria-label", "Listen to the clip");
    this.part.play.classList.remove("on");
  }
}

/** Decode at the rate that speech models like: more would only make the upload larger. */
async function decode(bytes) {
  const context = new OfflineAudioContext(1, 1, 24000);
  return clipOf(await context.decodeAudioData(bytes));
}

function cut(clip) {
  const shorter = new clip.constructor(clip.sampleRate);
  shorter.append(clip.pcm.subarray(0, CUT_SECONDS * clip.sampleRate));
  shorter.finish();
  return shorter;
}
