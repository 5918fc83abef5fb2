// The choice of a voice: those of the server, and one's own clip.

import { dataUrl, deleteVoice, keepVoice, Mistake, voices as listVoices } from "./api.js";
import { ClipField } from "./clipfield.js";

const byId = (id) => document.getElementById(id);
const OWN = "\u0000own";

/** A steady hue for a name. */
const hue = (name) => [...name].reduce((sum, c) => (sum * 31 + c.codePointAt(0)) % 360, 7);

/** Events: "error" with an Error as detail, "kept" with a name. */
export class VoicePanel extends EventTarget {
  constructor() {
    super();
    this.own = new ClipField(byId("own-voice"), "Your own voice");
    this.own.addEventListener("change", () => this.#show());
    byId("keep-save").addEventListener("click", () => this.#keep());
    this.names = [];
    this.uploaded = new Map();
    this.#show();
  }

  async load() {
    const { voices, uploaded_voices: uploaded } = await listVoices();
    this.names = voices;
    this.uploaded = new Map(uploaded.map((voice) => [voice.name, voice]));
    this.#list();
  }

  get chosen() {
    return byId("voices").querySelector("input:checked")?.value ?? null;
  }

  choose(name) {
    const input = [...byId("voices").querySelectorAll("input")].find(({ value }) => value === name);
    if (input) input.checked = true;
    this.#show();
  }

  #list() {
    const before = this.chosen;
    byId("voices").replaceChildren(...this.names.map((name) => this.#tile(name)), this.#ownTile());
    this.choose(before !== null && (before === OWN || this.names.includes(before)) ? before : (this.names.find((name) => this.uploaded.get(name)?.usable !== false) ?? OWN));
  }

  #tile(name) {
    const tile = this.#option(name, name, name.slice(0, 1).toUpperCase());
    tile.style.setProperty("--hue", hue(name));
    if (!this.uploaded.has(name)) return tile;
    if (!this.uploaded.get(name).usable) {
      tile.title = "Another model made this voice; upload it again.";
      tile.querySelector("input").disabled = true;
    }
    const remove = Object.assign(document.createElement("button"), { type: "button", className: "drop", textContent: "×" });
    remove.setAttribute("aria-label", `Delete the voice ${name}`);
    remove.addEventListener("click", () => this.#remove(name));
    const box = Object.assign(document.createElement("div"), { className: "tile-box" });
    box.append(tile, remove);
    return box;
  }

  #ownTile() {
    const tile = this.#option(OWN, "Your own", "+");
    tile.classList.add("own-tile");
    return tile;
  }

  #option(value, text, letter) {
    const label = Object.assign(document.createElement("label"), { className: "tile" });
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "voice", value });
    const mark = Object.assign(document.createElement("span"), { className: "mark", textContent: letter });
    mark.setAttribute("aria-hidden", "true");
    label.append(input, mark, Object.assign(document.createElement("span"), { className: "tile-name", textContent: text }));
    input.addEventListener("change", () => this.#show());
    return label;
  }

  #show() {
    const own = this.chosen === OWN;
    byId("own-voice").hidden = !own;
    byId("keep").hidden = !(own && this.own.file);
    this.own.draw();
  }

  /** The fields of the request. Throws a Mistake when there is no voice. */
  async fields() {
    if (this.chosen !== OWN) return { voice: this.chosen };
    if (!this.own.file) throw new Mistake("Record a voice, choose a file, or pick one of the voices above.");
    return { ref_audio: await dataUrl(this.own.file) };
  }

  get summary() {
    return this.chosen === OWN ? "own voice" : this.chosen;
  }

  get state() {
    return { chosen: this.chosen, file: this.own.file };
  }

  restore({ chosen, file }) {
    this.choose(chosen);
    if (chosen === OWN && file && file !== this.own.file) this.own.take(file);
  }

  /** Use a file as one's own voice. */
  takeFile(file) {
    this.choose(OWN);
    return this.own.take(file);
  }

  async #keep() {
    const name = byId("keep-name").value.trim();
    const button = byId("keep-save");
    button.disabled = true;
    try {
      if (!name) throw new Mistake("Give the voice a name.");
      if (!byId("keep-consent").checked) throw new Mistake("A voice can be kept only with the consent of its owner: tick the box.");
      await keepVoice(this.own.file, name);
      await this.load();
      this.choose(name);
      byId("keep-name").value = "";
      byId("keep-consent").checked = byId("keep").open = false;
      this.dispatchEvent(new CustomEvent("kept", { detail: name }));
    } catch (error) {
      this.dispatchEvent(new CustomEvent("error", { detail: error }));
    } finally {
      button.disabled = false;
    }
  }

  #remove(name) {
    const dialog = byId("ask-dialog");
    byId("ask-text").textContent = `“${name}” is removed from the server for everybody.`;
    dialog.returnValue = "";
    dialog.addEventListener("close", async () => {
      if (dialog.returnValue !== "yes") return;
      try {
        await deleteVoice(name);
        await this.load();
      } catch (error) {
        this.dispatchEvent(new CustomEvent("error", { detail: error }));
      }
    }, { once: true });
    dialog.showModal();
  }
}
