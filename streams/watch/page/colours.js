// Colours for canvases, and the scales of numbers; safe for colour-blind readers.
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
// Health: orange is poor, blue is sound; light in the middle.
const HEALTH = ["#8c3b00", "#c2570c", "#e8853a", "#f4bd8a", "#efe6dc", "#b9d3ea", "#77acd8", "#3a80bd", "#1d5a96"];
const UNKNOWN = [128, 128, 128];

const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
const RAMPS = { viridis: VIRIDIS.map(channels), health: HEALTH.map(channels) };

/** The red, green and blue of a share 0..1 of a ramp; grey where it is unknown. */
export function rgb(ramp, share) {
  if (share === null || Number.isNaN(share)) return UNKNOWN;
  const stops = RAMPS[ramp];
  const place = Math.max(0, Math.min(1, share)) * (stops.length - 1);
  const low = Math.min(stops.length - 2, Math.floor(place));
  return stops[low].map((from, channel) => Math.round(from + (stops[low + 1][channel] - from) * (place - low)));
}

export const css = ([red, green, blue]) => `rgb(${red}, ${green}, ${blue})`;

const linear = (channel) => (channel <= 10 ? channel / 3294 : ((channel / 255 + 0.055) / 1.055) ** 2.4);
const luminance = (colour) => colour.map(linear).reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);

/** Black or white, whichever has more contrast on a colour. */
export const ink = (colour) => (luminance(colour) > 0.18 ? "#000000" : "#ffffff");

/** The page's colours as the canvas needs them, resolved for the theme in force. */
export function palette() {
  const probe = document.createElement("span");
  document.body.append(probe);
  const resolve = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const names = ["text", "muted", "line", "faint", "surface", "bg", "blue", "orange", "grey", "purple", "focus"];
  const found = Object.fromEntries(names.map((name) => [name, resolve(name)]));
  probe.remove();
  return found;
}

const OUTLYING = 4; // Standard deviations above the mean.

/** How a metric's numbers become shares of a ramp. */
export const METRICS = {
  health: { label: "health", ramp: "health", range: () => [0, 1], share: (value) => value },
  growth_score: { label: "growth score", ramp: "viridis" },
  gradient_norm: { label: "gradient norm (log)", ramp: "viridis", log: true },
};

/**
 * The scale of a metric over its values.
 *
 * @returns {{low: number, high: number, ramp: string, share: (value: number | null) => number | null}}
 */
export function scaleOf(metric, values) {
  const { ramp, log, range } = METRICS[metric];
  const usable = (value) => value !== null && value !== undefined && (!log || value > 0);
  let [low, high] = range ? range() : [Infinity, -Infinity];
  if (!range) {
    let [many, sum, squares] = [0, 0, 0];
    for (const value of values) {
      if (!usable(value)) continue;
      many += 1;
      sum += value;
      squares += value * value;
      if (value < low) low = value;
      if (value > high) high = value;
    }
    if (low > high) [low, high] = log ? [1e-3, 1] : [0, 1];
    else if (!log) {
      // A single extreme would leave one colour for all others: what is beyond four deviations has the last colour.
      const mean = sum / many;
      const deviation = Math.sqrt(Math.max(0, squares / many - mean * mean));
      high = Math.min(high, mean + OUTLYING * deviation);
    }
  }
  const place = log ? Math.log : (value) => value;
  const width = place(high) - place(low) || 1;
  return { low, high, ramp, share: (value) => (usable(value) ? (place(value) - place(low)) / width : null) };
}
