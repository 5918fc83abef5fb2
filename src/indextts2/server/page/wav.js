// 16-bit WAV files, tagged.

const ascii = (text) => Uint8Array.from(text, (c) => c.charCodeAt(0));

function chunk(name, body) {
  const bytes = new Uint8Array(8 + body.length + (body.length & 1));
  bytes.set(ascii(name));
  new DataView(bytes.buffer).setUint32(4, body.length, true);
  bytes.set(body, 8);
  return bytes;
}

function join(parts) {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

/** Little-endian bytes of 16-bit samples. */
export function pcmBytes(samples) {
  const bytes = new Uint8Array(samples.length * 2);
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < samples.length; i++) view.setInt16(2 * i, samples[i], true);
  return bytes;
}

/** A mono WAV file of an Int16Array; `tags` are RIFF INFO fields such as {ICMT: "…"}, in ASCII. */
export function wavBytes(samples, sampleRate, tags = {}) {
  const format = new DataView(new ArrayBuffer(16));
  format.setUint16(0, 1, true);
  format.setUint16(2, 1, true);
  format.setUint32(4, sampleRate, true);
  format.setUint32(8, sampleRate * 2, true);
  format.setUint16(12, 2, true);
  format.setUint16(14, 16, true);
  const info = Object.entries(tags).map(([name, text]) => chunk(name, ascii(`${text.replace(/[^\x20-\x7e]/g, "?")}\0`)));
  const list = info.length ? [chunk("LIST", join([ascii("INFO"), ...info]))] : [];
  const body = join([ascii("WAVE"), chunk("fmt ", new Uint8Array(format.buffer)), ...list, chunk("data", pcmBytes(samples))]);
  return chunk("RIFF", body);
}

/** Floats in [-1, 1] to 16 bits. */
export function toInt16(floats) {
  return Int16Array.from(floats, (x) => Math.max(-32768, Math.min(32767, Math.round(x * 32767))));
}
