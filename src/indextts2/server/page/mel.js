// Log-mel spectrogram, the same as the model's own: 1024-point frames every 256 samples, 80 Slaney bands.

export const FRAME = 1024;
export const HOP = 256;
export const BANDS = 80;
const PADDING = (FRAME - HOP) / 2;
const FLOOR = 1e-5;

/** In-place FFT of a power-of-two length. */
function fft(re, im) {
  const n = re.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [re[i], re[j]] = [re[j], re[i]];
      [im[i], im[j]] = [im[j], im[i]];
    }
  }
  for (let size = 2; size <= n; size *= 2) {
    const half = size / 2;
    const step = FRAME / size;
    for (let k = 0; k < half; k++) {
      const c = COS[k * step], s = SIN[k * step];
      for (let a = k; a < n; a += size) {
        const b = a + half;
        const x = re[b] * c + im[b] * s, y = im[b] * c - re[b] * s;
        re[b] = re[a] - x;
        im[b] = im[a] - y;
        re[a] += x;
        im[a] += y;
      }
    }
  }
}

const turn = (i) => (2 * Math.PI * i) / FRAME;
const COS = Float64Array.from({ length: FRAME / 2 }, (_, i) => Math.cos(turn(i)));
const SIN = Float64Array.from({ length: FRAME / 2 }, (_, i) => Math.sin(turn(i)));
const WINDOW = Float64Array.from({ length: FRAME }, (_, i) => 0.5 - 0.5 * Math.cos(turn(i)));

// Slaney's scale: 200/3 Hz per mel up to 1000 Hz, then 27 mel for each factor of 6.4.
const toMel = (hz) => (hz < 1000 ? (hz * 3) / 200 : 15 + (27 * Math.log(hz / 1000)) / Math.log(6.4));
const toHz = (mel) => (mel < 15 ? (mel * 200) / 3 : 1000 * Math.exp((Math.log(6.4) * (mel - 15)) / 27));

/** For each band its first bin and its weights. */
function triangles(sampleRate) {
  const top = toMel(sampleRate / 2);
  const edge = (i) => toHz((top * i) / (BANDS + 1));
  return Array.from({ length: BANDS }, (_, band) => {
    const [left, centre, right] = [edge(band), edge(band + 1), edge(band + 2)];
    const weight = (bin) => {
      const hz = (bin * sampleRate) / FRAME;
      return (Math.max(0, Math.min((hz - left) / (centre - left), (right - hz) / (right - centre))) * 2) / (right - left);
    };
    const bins = Array.from({ length: FRAME / 2 + 1 }, (_, bin) => bin).filter((bin) => weight(bin) > 0);
    return { first: bins[0] ?? 0, weights: Float64Array.from(bins, weight) };
  });
}

/** Computes frames as soon as their samples have arrived; `frames` holds BANDS natural logarithms for each. */
export class MelStream {
  constructor(sampleRate) {
    this.bands = triangles(sampleRate);
    this.frames = new Float32Array(BANDS * 256);
    this.count = 0;
    this.re = new Float64Array(FRAME);
    this.im = new Float64Array(FRAME);
  }

  /** Take `samples[0..length)`, all that has come so far; with `complete` also the frames at the end. */
  update(samples, length, complete = false) {
    if (length <= PADDING) return;
    const last = complete ? Math.floor(length / HOP) : Math.floor((length - FRAME + PADDING) / HOP) + 1;
    for (; this.count < last; this.count++) this.#frame(samples, length);
  }

  #frame(samples, length) {
    const start = this.count * HOP - PADDING;
    for (let i = 0; i < FRAME; i++) {
      let at = start + i;
      if (at < 0) at = -at;
      if (at >= length) at = 2 * (length - 1) - at;
      this.re[i] = samples[at] * WINDOW[i];
    }
    this.im.fill(0);
    fft(this.re, this.im);
    if ((this.count + 1) * BANDS > this.frames.length) {
      const larger = new Float32Array(this.frames.length * 2);
      larger.set(this.frames);
      this.frames = larger;
    }
    for (let band = 0; band < BANDS; band++) {
      const { first, weights } = this.bands[band];
      let sum = 0;
      for (let k = 0; k < weights.length; k++) {
        const bin = first + k;
        sum += weights[k] * Math.sqrt(this.re[bin] ** 2 + this.im[bin] ** 2 + 1e-9);
      }
      this.frames[this.count * BANDS + band] = Math.log(Math.max(sum, FLOOR));
    }
  }
}
