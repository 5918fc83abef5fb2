// The status line and the error box.

import { ApiError, Mistake } from "./api.js";

const byId = (id) => document.getElementById(id);
const FIELDS = { input: "text", seed: "seed", speed: "speed" }; // by the name in the request

export const say = (text) => (byId("status").textContent = text);

export function showError(error) {
  if (error.name === "AbortError") return;
  const wait = error.retryAfter ? ` (in ${error.retryAfter} s)` : "";
  byId("error-text").textContent = error.message.charAt(0).toUpperCase() + error.message.slice(1) + wait;
  const facts = [error.status || "", error.code ?? "", error.requestId ? `request ${error.requestId}` : ""];
  byId("error-fine").textContent = facts.filter(Boolean).join(" · ");
  byId("error").hidden = false;
  say("");
  if (error.param in FIELDS) byId(FIELDS[error.param]).setAttribute("aria-invalid", "true");
  if (error.status === 401) byId("open-key").click();
  if (!(error instanceof ApiError || error instanceof Mistake)) console.error(error);
}

export function clearError() {
  byId("error").hidden = true;
  for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
}

/** A mistake that the page itself sees, to be thrown; `id` is the field to go to. */
export function mistake(message, id) {
  byId(id).focus();
  byId(id).setAttribute("aria-invalid", "true");
  return new Mistake(message);
}

byId("error-close").addEventListener("click", () => {
  clearError();
  byId("text").focus();
});
