// Numbers, times, sizes and ids as text. Unknown is an en dash everywhere.
export const UNKNOWN = "–";
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
const MINUS = "\u2212";
const SUFFIXES = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

/** With a typographic minus; a number that rounds to zero has no sign. */
const signed = (text) => (text.startsWith("-") ? (/[1-9]/.test(text) ? MINUS : "") + text.slice(1) : text);

/** A number to `digits` significant digits; very large and very small ones as powers of ten. */
export function num(value, digits = 3) {
  if (!known(value)) return UNKNOWN;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return signed(value.toExponential(Math.max(0, digits - 1)).replace("e+", "e"));
  if (size >= 1000) return signed(Math.round(value).toLocaleString("en"));
  return signed(value.toPrecision(digits));
}

/** A number with a fixed count of decimals, so that a column of them aligns. */
export function fixed(value, decimals = 3) {
  if (!known(value)) return UNKNOWN;
  return Math.abs(value) >= 1e5 ? num(value) : signed(value.toFixed(decimals));
}

/** As `fixed`, with a plus sign before what is positive. */
export function delta(value, decimals = 3) {
  return plus(value, fixed(value, decimals));
}

/** The class of a signed number; none where it is shown as zero. */
export function tone(value, decimals = 3) {
  if (!known(value) || Math.abs(value) < 0.5 * 10 ** -decimals) return "";
  return value > 0 ? "good" : "poor";
}

/** As `num`, with a plus sign before what is positive. */
export const change = (value, digits = 3) => plus(value, num(value, digits));

const plus = (value, text) => (known(value) && value > 0 && /[1-9]/.test(text) ? `+${text}` : text);

/** A whole number with separators. */
export function count(value) {
  return known(value) ? signed(Math.round(value).toLocaleString("en")) : UNKNOWN;
}

/** A number of things: "1 layer", "2 layers". */
export const many = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

/** A whole number with a suffix: 1,234,567 is 1.23 M. */
export function compact(value) {
  if (!known(value)) return UNKNOWN;
  for (const [unit, suffix] of SUFFIXES) {
    if (Math.abs(value) >= unit) return signed(`${(value / unit).toPrecision(3)} ${suffix}`);
  }
  return count(value);
}

export function percent(value, decimals = 1) {
  return known(value) ? `${signed((100 * value).toFixed(decimals))} %` : UNKNOWN;
}

export function bytes(value) {
  return known(value) ? `${compact(value)}B` : UNKNOWN;
}

/** A duration in its largest fitting unit. */
export function duration(ms) {
  if (!known(ms)) return UNKNOWN;
  const s = Math.abs(ms) / 1000;
  if (s < 1) return `${Math.round(ms)} ms`;
  if (s < 90) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${(s / 3600).toFixed(1)} h` : `${Math.round(s / 86400)} d`;
}

/** How long ago, in whole units: under a second is now. */
export function ago(ms) {
  if (!known(ms)) return UNKNOWN;
  return ms < 1000 ? "now" : ms < 60_000 ? `${Math.floor(ms / 1000)} s` : duration(ms);
}

/** A time of day, UTC. */
export function clock(ms) {
  return known(ms) ? dateOf(ms).slice(11, 19) : UNKNOWN;
}

/** A date and time, UTC. */
export function moment(ms) {
  return known(ms) ? `${dateOf(ms).slice(0, 10)} ${clock(ms)} UTC` : UNKNOWN;
}

function dateOf(ms) {
  const date = new Date(ms);
  return Number.isNaN(date.getTime()) ? "".padEnd(10, "?") + " out of range" : date.toISOString();
}

// Control characters, and marks that change the direction of text: an unbalanced one would reach beyond its element.
const INVISIBLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069\ufeff]/g;

/** A foreign text with a sign in place of each character that cannot be seen but has an effect. */
export const visible = (text) => String(text).replace(INVISIBLE, "\ufffd");

/** An id of at most `most` characters: its middle is left out, since ids differ at their start and end. */
export function shorten(text, most = 28) {
  const characters = Array.from(visible(text));
  if (characters.length <= most) return characters.join("");
  const kept = most - 1;
  const head = Math.ceil(kept / 2);
  return `${characters.slice(0, head).join("")}…${characters.slice(characters.length - (kept - head)).join("")}`;
}

const WORDS = {
  no_op: "do nothing",
  load_kernel: "load",
  unload_kernel: "unload",
  fossilize_kernel: "fossilize",
  optimize_parameters: "slow down",
};

/** A decision's type in words; an unknown one as it is. */
export function typeWords(type) {
  return Object.hasOwn(WORDS, type) ? WORDS[type] : shorten(type, 24);
}

/** An action in words: "load low_rank at fc2". */
export function actionText(action, most = 28) {
  if (!action || action.type === "no_op") return "do nothing";
  const what = action.blueprint ? ` ${shorten(action.blueprint, most)}` : "";
  return `${typeWords(action.type)}${what}${action.layer_id ? ` at ${shorten(action.layer_id, most)}` : ""}`;
}

/** A metric's name in words. */
export const words = (name) => visible(name).replaceAll("_", " ");
