// A piece of sound that grows while it arrives: samples, peaks for drawing, mel frames.

import { HOP, MelStream } from "./mel.js";

export class Clip {
  constructor(sampleRate) {
    this.sampleRate = sampleRate;
    this.pcm = new Int16Array(sampleRate * 4);
    this.floats = new Float32Array(sampleRate * 4);
    this.length = 0;
    this.complete = false;
    this.mel = new MelStream(sampleRate);
  }

  get duration() {
    return this.length / this.sampleRate;
  }

  /** Append an Int16Array. */
  append(samples) {
    const length = this.length + samples.length;
    if (length > this.pcm.length) {
      const size = Math.max(length, 2 * this.pcm.length);
      this.pcm = copy(this.pcm, new Int16Array(size));
      this.floats = copy(this.floats, new Float32Array(size));
    }
    this.pcm.set(samples, this.length);
    for (let i = 0; i < samples.length; i++) this.floats[this.length + i] = samples[i] / 32768;
    this.length = length;
    this.mel.update(this.floats, length);
  }

  /** No more samples will come. */
  finish() {
    this.complete = true;
    this.pcm = this.pcm.slice(0, this.length);
    this.floats = this.floats.slice(0, this.length);
    this.mel.update(this.floats, this.length, true);
  }

  /** Smallest and largest sample of each of `columns` equal parts of [0, seconds); null where nothing is yet. */
  peaks(columns, seconds) {
    const perColumn = (seconds * this.sampleRate) / columns;
    return Array.from({ length: columns }, (_, i) => {
      const begin = Math.floor(i * perColumn);
      const end = Math.min(this.length, Math.max(begin + 1, Math.floor((i + 1) * perColumn)));
      if (begin >= end) return null;
      const step = Math.max(1, Math.floor((end - begin) / 64));
      let low = 0, high = 0;
      for (let j = begin; j < end; j += step) {
        if (this.floats[j] < low) low = this.floats[j];
        if (this.floats[j] > high) high = this.floats[j];
      }
      return [low, high];
    });
  }

  get framesPerSecond() {
    return this.sampleRate / HOP;
  }
}

function copy(from, to) {
  to.set(from);
  return to;
}

/** A complete Clip of decoded audio, mixed down to mono. */
export function clipOf(audioBuffer) {
  const clip = new Clip(audioBuffer.sampleRate);
  const mono = new Int16Array(audioBuffer.length);
  const channels = Array.from({ length: audioBuffer.numberOfChannels }, (_, i) => audioBuffer.getChannelData(i));
  for (let i = 0; i < mono.length; i++) {
    let sum = 0;
    for (const channel of channels) sum += channel[i];
    mono[i] = Math.max(-32768, Math.min(32767, Math.round((sum / channels.length) * 32767)));
  }
  clip.append(mono);
  clip.finish();
  return clip;
}
