// Dark or light? This is not a module, so it runs before the first paint: no white flash at night.

(() => {
  const KEY = "chatgot:theme";
  const root = document.documentElement;
  const night = matchMedia("(prefers-color-scheme: dark)");

  function remembered() {
    try {
      const theme = JSON.parse(localStorage.getItem(KEY));
      return theme === "dark" || theme === "light" ? theme : null;
    } catch {
      return null;
    }
  }

  function remember(theme) {
    try {
      if (theme) localStorage.setItem(KEY, JSON.stringify(theme));
      else localStorage.removeItem(KEY);
    } catch {
      // the choice is valid until the page is closed
    }
  }

  let chosen = remembered();
  const ofSystem = () => (night.matches ? "dark" : "light");

  function apply() {
    if (chosen) root.dataset.theme = chosen;
    else delete root.dataset.theme;
    const other = (chosen ?? ofSystem()) === "dark" ? "light" : "dark";
    document.getElementById("theme")?.setAttribute("aria-label", `Switch to ${other}`);
    document.getElementById("theme")?.setAttribute("title", `Switch to ${other}`);
  }

  function toggle() {
    const other = (chosen ?? ofSystem()) === "dark" ? "light" : "dark";
    // back at what the system says, the page follows the system again
    chosen = other === ofSystem() ? null : other;
    remember(chosen);
    apply();
  }

  apply();
  night.addEventListener("change", apply);
  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", toggle);
    apply();
  });
})();
