// What belongs to the page as a whole: theme, files that are dropped on it, dialogs.

const byId = (id) => document.getElementById(id);
const THEMES = { auto: "as the system", light: "light", dark: "dark" };
const systemDark = matchMedia("(prefers-color-scheme: dark)");

/** Let the theme button work; `redraw` is called whenever colours change. */
export function watchTheme(redraw) {
  const root = document.documentElement;
  const show = () => {
    const name = `Theme: ${THEMES[root.dataset.theme ?? "auto"]}`;
    byId("theme").setAttribute("aria-label", name);
    byId("theme").title = name;
    redraw();
  };
  byId("theme").addEventListener("click", () => {
    // From the system's theme to its opposite, then to the other one, then back.
    const order = ["auto", ...(systemDark.matches ? ["light", "dark"] : ["dark", "light"])];
    const next = order[(order.indexOf(root.dataset.theme ?? "auto") + 1) % order.length];
    if (next === "auto") {
      delete root.dataset.theme;
      localStorage.removeItem("indextts2.theme");
    } else {
      root.dataset.theme = next;
      localStorage.setItem("indextts2.theme", next);
    }
    show();
  });
  systemDark.addEventListener("change", redraw);
  show();
}

/** Call `take(file, place)` with a file that is dropped anywhere; `place` is the element under it. */
export function watchDrops(take) {
  let depth = 0; // of the elements entered and not left
  const show = () => document.body.classList.toggle("dragging", depth > 0);
  addEventListener("dragenter", (event) => {
    if (event.dataTransfer?.types.includes("Files")) depth += 1;
    show();
  });
  addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    show();
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    show();
    const file = event.dataTransfer?.files[0];
    if (file) take(file, event.target);
  });
}

/** Let the buttons of the help and key dialogs work; `useKey(text)` is called with a new key, "" to forget it. */
export function watchDialogs(currentKey, useKey) {
  const dialog = byId("key-dialog");
  byId("open-help").addEventListener("click", () => byId("help-dialog").showModal());
  byId("open-key").addEventListener("click", () => {
    byId("key").value = currentKey();
    if (!dialog.open) dialog.showModal();
  });
  dialog.addEventListener("close", () => {
    const choice = dialog.returnValue;
    dialog.returnValue = "";
    if (choice === "save" || choice === "forget") useKey(choice === "save" ? byId("key").value.trim() : "");
    byId("key").value = "";
  });
}
