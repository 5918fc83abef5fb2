// Requests to the server. Every failure is an ApiError with a sentence that can be shown.

const KEY = "indextts2.key";

export class ApiError extends Error {
  constructor(message, { status = 0, param = null, code = null, retryAfter = null, requestId = null } = {}) {
    super(message);
    Object.assign(this, { status, param, code, retryAfter, requestId });
  }
}

/** Something that the user has to do first, in a sentence. */
export class Mistake extends Error {}

export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

async function errorOf(response) {
  const facts = {
    status: response.status,
    retryAfter: Number(response.headers.get("Retry-After")) || null,
    requestId: response.headers.get("X-Request-Id"),
  };
  try {
    const { error } = await response.json();
    return new ApiError(error.message, { ...facts, param: error.param, code: error.code });
  } catch {
    return new ApiError(`The server answered ${response.status} ${response.statusText}`.trim() + ".", facts);
  }
}

async function request(path, options = {}) {
  const headers = new Headers(options.headers);
  if (apiKey.get()) headers.set("Authorization", `Bearer ${apiKey.get()}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is it still running?", { code: "unreachable" });
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

const json = async (path, options) => (await request(path, options)).json();

export const health = () => json("health");
export const models = () => json("v1/models");
export const voices = () => json("v1/audio/voices");

export function deleteVoice(name) {
  return json(`v1/audio/voices/${encodeURIComponent(name)}`, { method: "DELETE" });
}

export function keepVoice(file, name) {
  const form = new FormData();
  form.set("audio_sample", file, file.name);
  form.set("name", name);
  form.set("consent", "confirmed on the web page: the person who speaks agrees");
  return json("v1/audio/voices", { method: "POST", body: form });
}

function post(body, signal) {
  return request("v1/audio/speech", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
}

/** The speech as a complete file of `format`. */
export async function speechFile(body, format) {
  const response = await post({ ...body, response_format: format, stream: false });
  return response.blob();
}

/**
 * The speech as 16-bit samples while it is made.
 * Calls onStart({sampleRate, seed, requestId}) once and onSamples(Int16Array) for each piece that arrives.
 */
export async function speechStream(body, signal, { onStart, onSamples }) {
  const response = await post({ ...body, response_format: "pcm", stream: true }, signal);
  const sampleRate = Number(response.headers.get("X-Sample-Rate"));
  const seed = response.headers.get("X-Seed");
  const requestId = response.headers.get("X-Request-Id");
  if (!(sampleRate > 0 && seed)) throw new ApiError("The server did not say sample rate and seed.", { requestId });
  onStart({ sampleRate, seed, requestId });
  const reader = response.body.getReader();
  let rest = new Uint8Array(0);
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server broke off in the middle. What you heard is kept.", { code: "broken", requestId });
    }
    if (piece.done) break;
    // A piece may end in the middle of a sample.
    const bytes = new Uint8Array(rest.length + piece.value.length);
    bytes.set(rest);
    bytes.set(piece.value, rest.length);
    const whole = bytes.length & ~1;
    rest = bytes.slice(whole);
    if (whole) onSamples(toInt16(bytes, whole));
  }
}

function toInt16(bytes, length) {
  const view = new DataView(bytes.buffer, 0, length);
  const samples = new Int16Array(length / 2);
  for (let i = 0; i < samples.length; i++) samples[i] = view.getInt16(2 * i, true);
  return samples;
}

export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new ApiError("The clip cannot be read any more. Choose it again."));
    reader.readAsDataURL(blob);
  });
}
