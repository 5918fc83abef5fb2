// Draws waveform, mel spectrogram and time axis of a Clip on three canvases that share one time axis.

import { BANDS } from "./mel.js";

const FLOOR = -11.5; // natural logarithms: silence …
const CEILING = 1.5; // … and loud speech
const SHORTEST_SECONDS = 3;

const palettes = {
  light: ["#fbf7f1", "#f8e6d3", "#f4c39a", "#ea8f5c", "#d2552c", "#962c2b", "#4e1a33", "#1d0f26"],
  dark: ["#14161d", "#241a36", "#4b1f54", "#852a5b", "#c23f52", "#f0703f", "#fbb35f", "#fff2cf"],
};

/** 256 colours as the pixels of an ImageData. */
function table(stops) {
  const colours = stops.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  const bytes = Uint8ClampedArray.from({ length: 1024 }, (_, i) => {
    if (i % 4 === 3) return 255;
    const at = (Math.floor(i / 4) / 255) * (colours.length - 1);
    const low = Math.min(Math.floor(at), colours.length - 2);
    return colours[low][i % 4] + (colours[low + 1][i % 4] - colours[low][i % 4]) * (at - low);
  });
  return new Uint32Array(bytes.buffer);
}
const tables = { light: table(palettes.light), dark: table(palettes.dark) };

/** Whether the page is dark now. */
export function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Fit a canvas to its place on the screen and return its context, scaled to CSS pixels. */
function fit(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

/** Draw bars; those before `played` seconds in the accent colour. */
export function drawWave(canvas, clip, seconds = clip.duration, played = 0) {
  const { context, width, height } = fit(canvas);
  const [bar, gap] = width > 200 ? [3, 2] : [2, 1];
  const columns = Math.max(1, Math.floor(width / (bar + gap)));
  const [accent, muted] = [colour("--accent"), colour("--wave")];
  const edge = (played / seconds) * columns;
  clip.peaks(columns, seconds).forEach((peak, i) => {
    if (!peak) return;
    const size = Math.max(bar, (peak[1] - peak[0]) * 0.5 * (height - 4));
    context.fillStyle = i < edge ? accent : muted;
    context.beginPath();
    context.roundRect(i * (bar + gap), (height - size) / 2, bar, size, bar / 2);
    context.fill();
  });
}

/** What is there before anything was said: a sketch of a waveform. */
function drawIdle(canvas) {
  const { context, width, height } = fit(canvas);
  const columns = Math.max(1, Math.floor(width / 5));
  context.fillStyle = colour("--line");
  for (let i = 0; i < columns; i++) {
    const at = i / columns;
    const wave = Math.abs(Math.sin(at * 23) * Math.sin(at * 7 + 1)) * Math.sin(Math.PI * at);
    const size = 3 + wave * 0.7 * height;
    context.beginPath();
    context.roundRect(i * 5, (height - size) / 2, 3, size, 1.5);
    context.fill();
  }
}

function drawMel(canvas, clip, seconds) {
  const ratio = window.devicePixelRatio || 1;
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  const perColumn = (seconds * clip.framesPerSecond) / width;
  const columns = Math.min(width, Math.ceil(clip.mel.count / perColumn));
  if (columns < 1) return;
  const image = new ImageData(columns, BANDS);
  const pixels = new Uint32Array(image.data.buffer);
  const palette = tables[isDark() ? "dark" : "light"];
  for (let x = 0; x < columns; x++) {
    const first = Math.min(clip.mel.count - 1, Math.floor(x * perColumn));
    const last = Math.min(clip.mel.count, Math.max(first + 1, Math.floor((x + 1) * perColumn)));
    for (let band = 0; band < BANDS; band++) {
      let value = -Infinity;
      for (let frame = first; frame < last; frame++) value = Math.max(value, clip.mel.frames[frame * BANDS + band]);
      const level = Math.max(0, Math.min(255, Math.round(((value - FLOOR) / (CEILING - FLOOR)) * 255)));
      pixels[(BANDS - 1 - band) * columns + x] = palette[level];
    }
  }
  const strip = new OffscreenCanvas(columns, BANDS);
  strip.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = true;
  context.drawImage(strip, 0, 0, columns, height);
}

const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300];

function drawAxis(canvas, seconds) {
  const { context, width } = fit(canvas);
  const step = STEPS.find((candidate) => (candidate / seconds) * width >= 48) ?? STEPS.at(-1);
  context.fillStyle = colour("--faint");
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "top";
  for (let i = 0; i * step <= seconds; i++) {
    const x = ((i * step) / seconds) * width;
    context.fillRect(Math.min(width - 1, x), 0, 1, 5);
    const label = step < 1 ? `${(i * step).toFixed(1)} s` : `${i * step} s`;
    if (x + 30 < width) context.fillText(label, x + 4, 3);
  }
}

/** The big picture of the clip that is being made or played. */
export class Picture {
  constructor(wave, mel, axis) {
    Object.assign(this, { wave, mel, axis });
    this.clip = null;
    this.seconds = SHORTEST_SECONDS;
  }

  show(clip) {
    this.clip = clip;
    this.seconds = SHORTEST_SECONDS;
    this.draw(0);
  }

  /** Draw all of it. While the clip grows the axis grows in leaps, so that the picture does not shrink all the time. */
  draw(played) {
    if (!this.clip) return drawIdle(this.wave);
    const { duration, complete } = this.clip;
    if (complete) this.seconds = Math.max(duration, 0.1);
    else while (duration > this.seconds) this.seconds *= 1.5;
    drawMel(this.mel, this.clip, this.seconds);
    drawAxis(this.axis, this.seconds);
    this.drawPlayed(played);
  }

  /** Draw the waveform only, with `played` seconds of it coloured. */
  drawPlayed(played) {
    if (this.clip) drawWave(this.wave, this.clip, this.seconds, played);
  }
}
