// One button for each format that an entry can be saved in.

import { speechFile } from "./api.js";
import { clearError, say, showError } from "./messages.js";
import { pcmBytes, wavBytes } from "./wav.js";

const FORMATS = { wav: "WAV", flac: "FLAC", mp3: "MP3", opus: "Opus", aac: "AAC", pcm: "PCM" };
const MADE_HERE = ["wav", "pcm"];

/** Samples as a file of `format`; WAV and PCM are made here, the rest by the server, which repeats the same speech. */
async function fileOf({ clip, body, seed }, format) {
  if (format === "pcm") return new Blob([pcmBytes(clip.pcm)], { type: "audio/pcm" });
  if (format === "wav") {
    const tags = { INAM: "Synthetic speech", ICMT: `synthetic speech; seed ${seed}; made with IndexTTS2` };
    return new Blob([wavBytes(clip.pcm, clip.sampleRate, tags)], { type: "audio/wav" });
  }
  return speechFile({ ...body, seed: Number(seed) }, format);
}

const fileName = (text) => text.toLowerCase().match(/[\p{L}\p{N}]+/gu)?.slice(0, 5).join("-").slice(0, 60) || "speech";

export class Downloads {
  constructor(place) {
    this.entry = null;
    this.buttons = Object.entries(FORMATS).map(([format, label]) => {
      const button = Object.assign(document.createElement("button"), { type: "button", className: "soft", textContent: label });
      button.dataset.format = format;
      button.setAttribute("aria-label", `Download as ${label}`);
      button.addEventListener("click", () => this.#save(format, button));
      return button;
    });
    place.append(...this.buttons);
    this.show(null);
  }

  /** Leave out the formats that the server cannot make. */
  setFormats(served) {
    for (const button of this.buttons) button.hidden = ![...MADE_HERE, ...served].includes(button.dataset.format);
  }

  /** Offer `entry`; of speech that broke off only what was received. */
  show(entry) {
    this.entry = entry;
    const ready = entry?.clip.complete && entry.clip.length > 0;
    for (const button of this.buttons) {
      const possible = ready && (!entry.broken || MADE_HERE.includes(button.dataset.format));
      button.disabled = !possible || button.hasAttribute("aria-busy");
    }
  }

  async #save(format, button) {
    const { entry } = this;
    clearError();
    button.setAttribute("aria-busy", "true");
    this.show(entry);
    try {
      if (!MADE_HERE.includes(format)) say(`The server speaks it once more, as ${FORMATS[format]} …`);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await fileOf(entry, format));
      link.download = `${fileName(entry.text)}.${format}`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
      say(`Saved ${link.download}.`);
    } catch (error) {
      showError(error);
    }
    button.removeAttribute("aria-busy");
    this.show(this.entry);
  }
}
