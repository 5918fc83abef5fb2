// The right side of the page: what is heard and seen of one entry, and its figures.

import { Downloads } from "./downloads.js";
import { Picture } from "./picture.js";
import { Player } from "./player.js";

const byId = (id) => document.getElementById(id);
const PLAY = "M8 5v14l11-7z";
const PAUSE = "M7 5h4v14H7zm6 0h4v14h-4z";

const clock = (seconds) => `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;

/** Events: "heard" when the first sound of an entry is heard. */
export class Stage extends EventTarget {
  constructor() {
    super();
    this.player = new Player();
    this.picture = new Picture(byId("wave"), byId("mel"), byId("axis"));
    this.downloads = new Downloads(byId("downloads"));
    this.entry = null;
    this.busy = false; // more may come
    this.stale = false; // the picture is older than its clip
    this.frame = 0;
    this.player.addEventListener("change", () => this.#changed());
    this.player.addEventListener("heard", ({ detail }) => this.#heard(detail));
    byId("play").addEventListener("click", () => this.toggle());
    byId("picture").addEventListener("keydown", (event) => this.#key(event));
    byId("picture").addEventListener("pointerdown", (event) => this.#drag(event));
    new ResizeObserver(() => this.draw()).observe(byId("picture"));
  }

  /** Put an entry on the stage. */
  show(entry) {
    this.entry = entry;
    this.player.load(entry.clip);
    this.picture.show(entry.clip);
    delete byId("stage").dataset.empty;
    byId("empty").hidden = true;
    byId("play").disabled = false;
    byId("stage-name").textContent = entry.summary;
    this.showFigures();
    this.draw();
  }

  /** The entry has more samples, or is complete. */
  grown(entry) {
    if (entry !== this.entry) return;
    this.player.update();
    this.stale = true;
    this.#follow();
  }

  setBusy(busy) {
    this.busy = busy;
    byId("stage").classList.toggle("busy", busy);
    this.#follow();
  }

  toggle() {
    if (!this.entry) return;
    if (this.player.playing) this.player.pause();
    else this.player.play();
  }

  /** Draw everything again. */
  draw() {
    this.stale = false;
    this.picture.draw(this.player.position);
    if (this.entry) this.#showPosition();
  }

  showFigures() {
    const { entry } = this;
    const figure = (value, unit = "") => (value == null ? "–" : value.toFixed(2) + unit);
    byId("first-sound").textContent = figure(entry.firstSound, " s");
    byId("rtf").textContent = figure(entry.rtf);
    byId("seed-use").textContent = entry.seed;
    byId("seed-use").disabled = false;
    byId("seed-use").setAttribute("aria-label", `Use the seed ${entry.seed} again`);
    this.downloads.show(entry);
  }

  #showPosition() {
    const { position } = this.player;
    const { duration } = this.entry.clip;
    byId("clock-now").textContent = clock(position);
    byId("clock-all").textContent = clock(duration);
    const field = byId("picture");
    field.setAttribute("aria-valuemax", duration.toFixed(1));
    field.setAttribute("aria-valuenow", position.toFixed(1));
    field.setAttribute("aria-valuetext", `${position.toFixed(1)} of ${duration.toFixed(1)} seconds`);
    const x = (position / this.picture.seconds) * byId("wave").clientWidth;
    byId("playhead").style.transform = `translateX(${x}px)`;
  }

  /** Keep player and picture up to date, once for each frame while anything moves. */
  #follow() {
    if (!this.entry || this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.player.update();
      if (this.stale) this.draw();
      else {
        this.picture.drawPlayed(this.player.position);
        this.#showPosition();
      }
      if (this.player.playing || this.busy) this.#follow();
    });
  }

  #changed() {
    const { playing, state } = this.player;
    byId("play-icon").setAttribute("d", playing ? PAUSE : PLAY);
    byId("play").setAttribute("aria-label", playing ? "Pause" : "Play");
    byId("stage").dataset.state = state;
    this.#follow();
  }

  #heard(when) {
    if (this.entry.firstSound != null) return;
    this.entry.firstSound = (when - this.entry.pressed) / 1000;
    this.showFigures();
    this.dispatchEvent(new Event("heard"));
  }

  #seek(seconds) {
    this.player.seek(seconds);
    this.draw();
  }

  #drag(event) {
    if (!this.entry) return;
    const field = byId("picture");
    const box = byId("wave").getBoundingClientRect();
    const seek = ({ clientX }) => this.#seek(((clientX - box.left) / box.width) * this.picture.seconds);
    seek(event);
    field.setPointerCapture(event.pointerId);
    field.onpointermove = seek;
    field.onpointerup = field.onpointercancel = () => (field.onpointermove = null);
  }

  #key(event) {
    if (!this.entry) return;
    const at = this.player.position;
    const steps = { ArrowLeft: -0.5, ArrowDown: -0.5, ArrowRight: 0.5, ArrowUp: 0.5, PageDown: -5, PageUp: 5 };
    if (event.key === " " || event.key === "Enter") this.toggle();
    else if (event.key in steps) this.#seek(at + steps[event.key]);
    else if (event.key === "Home") this.#seek(0);
    else if (event.key === "End") this.#seek(this.entry.clip.duration);
    else return;
    event.preventDefault();
  }
}
