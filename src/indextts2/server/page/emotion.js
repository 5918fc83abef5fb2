// The emotion of a request: none, eight faders, or a clip; with a strength.

import { dataUrl, Mistake } from "./api.js";
import { ClipField } from "./clipfield.js";
import { drawFace } from "./face.js";

export const EMOTIONS = ["happy", "angry", "sad", "afraid", "disgusted", "melancholic", "surprised", "calm"];

// How much of each fader counts, and how much of all together: strong emotions make the voice another one.
const BIAS = [0.9375, 0.875, 1, 1, 0.9375, 0.9375, 0.6875, 0.5625];
const MAX_SUM = 0.8;

/** Fader positions in [0, 1] to the weights that are sent. */
export function weightsOf(positions) {
  const weights = positions.map((position, i) => position * BIAS[i]);
  const sum = weights.reduce((a, b) => a + b, 0);
  return sum > MAX_SUM ? weights.map((weight) => weight * (MAX_SUM / sum)) : weights;
}

const byId = (id) => document.getElementById(id);

export class EmotionPanel {
  constructor() {
    this.faders = EMOTIONS.map((name) => this.#fader(name));
    this.clip = new ClipField(byId("emotion-clip"), "Emotion clip");
    this.kinds = [...document.querySelectorAll('input[name="emotion"]')];
    for (const kind of this.kinds) kind.addEventListener("change", () => this.#show());
    byId("mix-reset").addEventListener("click", () => this.#setAll(EMOTIONS.map(() => 0)));
    byId("strength").addEventListener("input", () => this.#show());
    this.#setAll(EMOTIONS.map(() => 0));
    this.#show();
  }

  #fader(name) {
    const label = document.createElement("label");
    label.className = "fader";
    label.dataset.emotion = name;
    const input = Object.assign(document.createElement("input"), { type: "range", min: 0, max: 1, step: 0.05, value: 0 });
    input.setAttribute("orient", "vertical");
    input.id = `emotion-${name}`;
    input.setAttribute("aria-label", name);
    const text = Object.assign(document.createElement("span"), { textContent: name });
    const value = document.createElement("output");
    value.htmlFor = input.id;
    label.append(value, input, text);
    byId("faders").append(label);
    input.addEventListener("input", () => this.#moved());
    return { input, value, label };
  }

  get kind() {
    return this.kinds.find((kind) => kind.checked).value;
  }

  get positions() {
    return this.faders.map(({ input }) => Number(input.value));
  }

  #setAll(positions) {
    this.faders.forEach(({ input }, i) => (input.value = positions[i]));
    this.#moved();
  }

  #moved() {
    for (const { input, value, label } of this.faders) {
      const percent = Math.round(input.value * 100);
      value.textContent = percent || "";
      input.setAttribute("aria-valuetext", `${percent} percent`);
      label.style.setProperty("--level", input.value);
    }
    drawFace(byId("face"), this.positions);
  }

  #show() {
    for (const id of ["faders", "mix-reset", "face"]) byId(id).toggleAttribute("hidden", this.kind !== "mix");
    byId("emotion-clip").hidden = this.kind !== "clip";
    byId("strength-row").hidden = this.kind === "none";
    byId("strength-value").textContent = `${Math.round(byId("strength").value * 100)} %`;
    this.clip.draw();
  }

  get #alpha() {
    return Number(byId("strength").value);
  }

  /** The fields of the request. Throws a Mistake when something is missing. */
  async fields() {
    if (this.kind === "clip") {
      if (!this.clip.file) throw new Mistake("Choose or record the clip that has the emotion, or take it from the voice.");
      return { emotion_audio: await dataUrl(this.clip.file), emotion_alpha: this.#alpha };
    }
    if (this.kind === "mix" && this.positions.some(Boolean)) {
      return { emotion_vector: weightsOf(this.positions), emotion_alpha: this.#alpha };
    }
    return {};
  }

  /** In words, for the history. */
  get summary() {
    if (this.kind === "clip") return "emotion of a clip";
    if (this.kind === "none") return "";
    const named = EMOTIONS.map((name, i) => [this.positions[i], name]).filter(([position]) => position);
    return named.sort((a, b) => b[0] - a[0]).map(([, name]) => name).slice(0, 3).join(", ");
  }

  /** All that is set, to be given to `restore` later. */
  get state() {
    const { file, clip } = this.clip;
    return { kind: this.kind, positions: this.positions, strength: byId("strength").value, file, clip };
  }

  restore({ kind, positions, strength, file }) {
    this.kinds.find((input) => input.value === kind).checked = true;
    byId("strength").value = strength;
    this.#setAll(positions);
    this.#show();
    if (kind === "clip" && file && file !== this.clip.file) this.clip.take(file);
  }
}
