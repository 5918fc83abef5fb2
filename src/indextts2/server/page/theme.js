// Sets the theme before the page is painted. "auto" follows the system.
"use strict";
(() => {
  const saved = localStorage.getItem("indextts2.theme");
  if (saved === "light" || saved === "dark") document.documentElement.dataset.theme = saved;
})();
