// Plays a Clip that may still be growing. Pieces are scheduled edge to edge, to the sample; when the clip runs dry the
// player waits until enough has come. Events: "change" (playing, waiting, paused, ended), "heard" (first sound).

const LEAD_SECONDS = 0.04;
const FIRST_REFILL_SECONDS = 0.4;
const MAX_REFILL_SECONDS = 4;

export class Player extends EventTarget {
  constructor() {
    super();
    this.context = null;
    this.clip = null;
    this.state = "empty";
    this.sources = new Set();
    this.offset = 0; // samples, where playback stands while nothing runs
  }

  /** To be called from a press or a key, so that the browser allows sound. */
  wake(sampleRate) {
    if (this.context && this.context.sampleRate !== sampleRate) {
      this.#silence();
      this.context.close();
      this.context = null;
    }
    // At the clip's own rate no piece is resampled apart from its neighbours, which would click.
    this.context ??= new AudioContext({ sampleRate, latencyHint: "interactive" });
    if (this.context.state === "suspended") this.context.resume();
  }

  /** Show `clip` from its beginning, silent. */
  load(clip) {
    this.#silence();
    this.clip = clip;
    this.offset = 0;
    this.refill = 0; // the first piece is played at once
    this.announced = false;
    this.#become("paused");
  }

  get playing() {
    return this.state === "playing" || this.state === "waiting";
  }

  /** Seconds from the beginning of the clip. */
  get position() {
    if (!this.clip) return 0;
    if (this.state !== "playing") return this.offset / this.clip.sampleRate;
    const played = this.context.currentTime - this.origin;
    return Math.max(this.offset / this.clip.sampleRate, Math.min(played, this.scheduled / this.clip.sampleRate));
  }

  play() {
    if (!this.clip || this.playing) return;
    this.wake(this.clip.sampleRate);
    if (this.clip.complete && this.offset >= this.clip.length) this.offset = 0;
    this.#start(0);
  }

  pause() {
    if (!this.playing) return;
    this.offset = Math.round(this.position * this.clip.sampleRate);
    this.#silence();
    this.#become("paused");
  }

  seek(seconds) {
    if (!this.clip) return;
    const playing = this.playing;
    this.#silence();
    this.offset = Math.max(0, Math.min(this.clip.length, Math.round(seconds * this.clip.sampleRate)));
    if (playing) this.#start(0);
    else this.#become("paused");
  }

  /** Call after the clip has grown or was finished, and often while playing. */
  update() {
    if (this.state === "waiting") this.#start(this.refill);
    if (this.state !== "playing") return;
    const dry = this.context.currentTime - this.origin >= this.scheduled / this.clip.sampleRate;
    if (!dry) this.#schedule();
    else if (this.scheduled < this.clip.length || !this.clip.complete) this.#runDry();
    else {
      this.offset = this.clip.length;
      this.#silence();
      this.#become("ended");
    }
  }

  #runDry() {
    this.offset = this.scheduled;
    this.#silence();
    this.refill = Math.max(FIRST_REFILL_SECONDS, Math.min(MAX_REFILL_SECONDS, this.refill * 2));
    this.#start(this.refill);
  }

  /** Begin at `offset` if there is anything to play, and at least `seconds` of it unless the clip is complete. */
  #start(seconds) {
    const { clip, context } = this;
    const ready = clip.length - this.offset;
    if (!clip.complete && (ready === 0 || ready < seconds * clip.sampleRate)) return this.#become("waiting");
    // On the grid of samples, or the browser would interpolate between them.
    const begin = Math.ceil((context.currentTime + LEAD_SECONDS) * clip.sampleRate) / clip.sampleRate;
    this.origin = begin - this.offset / clip.sampleRate;
    this.scheduled = this.offset;
    this.#schedule();
    this.#become("playing");
    if (!this.announced) {
      this.announced = true;
      const latency = context.outputLatency || context.baseLatency || 0;
      const detail = performance.now() + (begin - context.currentTime + latency) * 1000;
      this.dispatchEvent(new CustomEvent("heard", { detail }));
    }
  }

  #schedule() {
    const { clip, context } = this;
    if (this.scheduled >= clip.length) return;
    const samples = clip.floats.subarray(this.scheduled, clip.length);
    const buffer = context.createBuffer(1, samples.length, clip.sampleRate);
    buffer.copyToChannel(samples, 0);
    const source = new AudioBufferSourceNode(context, { buffer });
    source.connect(context.destination);
    source.onended = () => this.sources.delete(source);
    source.start(this.origin + this.scheduled / clip.sampleRate);
    this.sources.add(source);
    this.scheduled = clip.length;
  }

  #silence() {
    for (const source of this.sources) {
      source.onended = null;
      source.stop();
      source.disconnect();
    }
    this.sources.clear();
  }

  #become(state) {
    if (state === this.state) return;
    this.state = state;
    this.dispatchEvent(new Event("change"));
  }
}
