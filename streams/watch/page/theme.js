// The colour theme: the system's unless the user chose one. A classic script, so that it runs before the first paint.
const TAMIYO_THEMES = ["auto", "light", "dark"];

function tamiyoTheme() {
  try {
    const kept = localStorage.getItem("tamiyo-theme");
    return TAMIYO_THEMES.includes(kept) ? kept : "auto";
  } catch {
    return "auto"; // Storage may be forbidden; the system's theme is then always used.
  }
}

function setTamiyoTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("tamiyo-theme", theme);
  } catch {
    // The choice lasts as long as the page.
  }
}

document.documentElement.dataset.theme = tamiyoTheme();
