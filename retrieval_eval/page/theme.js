// Light or dark: the system's choice until the reader makes one, which is kept where the browser lets a file keep it.
"use strict";
(() => {
  const root = document.documentElement;
  const memory = (use) => { try { return use(localStorage); } catch { return null; } };
  const kept = memory((storage) => storage.getItem("allpairs-theme"));
  if (kept === "light" || kept === "dark") root.dataset.theme = kept;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const current = () => root.dataset.theme ?? (system.matches ? "dark" : "light");
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const label = () => {
      button.setAttribute("aria-pressed", String(current() === "dark"));
    };
    button.hidden = false;
    button.addEventListener("click", () => {
      root.dataset.theme = current() === "dark" ? "light" : "dark";
      memory((storage) => storage.setItem("allpairs-theme", root.dataset.theme));
      label();
    });
    system.addEventListener("change", label);
    label();
  });
})();
