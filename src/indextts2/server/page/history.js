// What was made in this session, newest first. Kept in memory only.

import { drawWave } from "./picture.js";

const MAX_SECONDS = 900;

/** Events: "open" (hear it again), "reuse" (back into the form), each with the entry as detail. */
export class History extends EventTarget {
  constructor(list, empty, clear) {
    super();
    Object.assign(this, { list, empty, clear });
    this.entries = [];
    clear.addEventListener("click", () => {
      this.entries = this.entries.filter((entry) => entry.current);
      this.#draw();
    });
  }

  /** Add an entry {clip, text, summary, …}; the oldest go when there is too much. */
  add(entry) {
    this.entries.unshift(entry);
    let seconds = 0;
    this.entries = this.entries.filter((old, i) => (seconds += old.clip.duration) <= MAX_SECONDS || i === 0);
    this.#draw();
  }

  /** Mark the entry that the player shows. */
  mark(entry) {
    for (const other of this.entries) other.current = other === entry;
    this.#draw();
  }

  /** Draw again after a change of theme or size. */
  draw() {
    this.list.querySelectorAll("canvas").forEach((canvas, i) => drawWave(canvas, this.entries[i].clip));
  }

  #draw() {
    this.list.replaceChildren(...this.entries.map((entry) => this.#item(entry)));
    this.empty.hidden = this.entries.length > 0;
    this.clear.hidden = this.entries.length < 2;
    this.draw();
  }

  #item(entry) {
    const item = document.createElement("li");
    if (entry.current) item.setAttribute("aria-current", "true");
    const open = this.#button("open-entry", "open", entry, `Show and play: ${entry.text}`);
    const wave = document.createElement("canvas");
    wave.setAttribute("aria-hidden", "true");
    const words = Object.assign(document.createElement("span"), { className: "said", textContent: entry.text });
    const facts = [`${entry.clip.duration.toFixed(1)} s`, entry.summary, entry.broken ? "incomplete" : ""];
    const fine = Object.assign(document.createElement("span"), { className: "fine", textContent: facts.filter(Boolean).join(" · ") });
    open.append(wave, words, fine);
    const reuse = this.#button("link", "reuse", entry, `Use again: ${entry.text}`);
    reuse.textContent = "Use again";
    item.append(open, reuse);
    return item;
  }

  #button(className, event, entry, label) {
    const button = Object.assign(document.createElement("button"), { type: "button", className });
    button.setAttribute("aria-label", label);
    button.addEventListener("click", () => this.dispatchEvent(new CustomEvent(event, { detail: entry })));
    return button;
  }
}
