// Small parts that every view uses.
import { Component, html, useEffect, useState } from "./vendor/vendor.js";
import { shorten, visible } from "./format.js";

const COPIED_MS = 1500;

/** A component that renders again only when a property changes. */
export function pure(render) {
  return class extends Component {
    shouldComponentUpdate(next) {
      const names = new Set([...Object.keys(next), ...Object.keys(this.props)]);
      for (const name of names) if (next[name] !== this.props[name]) return true;
      return false;
    }

    render() {
      return render(this.props);
    }
  };
}

/** A foreign text, isolated so that its direction changes nothing around it. */
export const Text = ({ children }) => html`<bdi>${[children].flat().map((part) => visible(part ?? ""))}</bdi>`;

/** An id, shortened in the middle, the whole in its title; with a button that copies it where `copy` is set. */
export function Id({ id, most = 28, copy = false, link = null }) {
  const text = html`<bdi title=${visible(id)}>${shorten(id, most)}</bdi>`;
  return html`<span class="id">${link ? html`<a href=${link}>${text}</a>` : text}${copy && html`<${Copy} text=${id} />`}</span>`;
}

function Copy({ text }) {
  const [copied, setCopied] = useState(false);
  useEffect(() => {
    if (!copied) return undefined;
    const timer = setTimeout(() => setCopied(false), COPIED_MS);
    return () => clearTimeout(timer);
  }, [copied]);
  const copy = () => navigator.clipboard?.writeText(text).then(() => setCopied(true), () => {});
  return html`<button class="copy" type="button" onClick=${copy} title="Copy" aria-label=${`Copy ${shorten(text, 60)}`}>
    <svg viewBox="0 0 16 16" width="13" height="13" aria-hidden="true">${copied ? html`<path d="M3 8.5l3.5 3.5L13 4.5" />` : html`<path d="M5.5 5.5h7v8h-7zM3.5 10.5v-8h7" />`}</svg>
  </button>`;
}

const STATES = {
  training: ["●", "ok"],
  paused: ["‖", "warn"],
  finished: ["✓", "muted"],
  silent: ["○", "bad"],
  executed: ["▲", "ok"],
  pending: ["…", "muted"],
  vetoed: ["⊘", "warn"],
  dry_run: ["◇", "muted"],
  refused: ["✕", "bad"],
  failed: ["✕", "bad"],
  none: ["·", "muted"],
  loading: ["◔", "muted"],
  active: ["●", "ok"],
  fossilized: ["◆", "special"],
  unloaded: ["○", "muted"],
  compiled: ["✓", "ok"],
  released: ["✓", "ok"],
  rolled_back: ["↩", "bad"],
};

/** A state with its sign, so that colour is never the only difference. */
export function State({ state }) {
  const [sign, tone] = STATES[state] ?? ["?", "muted"];
  return html`<span class=${`state ${tone}`}><span class="sign" aria-hidden="true">${sign}</span><span class="word">${shorten(state, 16).replace("_", " ")}</span></span>`;
}

export const Empty = ({ title, children }) => html`<div class="empty"><h2>${title}</h2>${children}</div>`;

export const Fact = ({ label, title, wide, children }) =>
  html`<div class=${wide ? "fact wide" : "fact"} title=${title}><dt>${label}</dt><dd>${children}</dd></div>`;

export function Panel({ title, actions, children, className = "" }) {
  const id = `panel-${title.toLowerCase().replace(/[^a-z]+/g, "-")}`;
  return html`<section class=${`panel ${className}`} aria-labelledby=${id}>
    <div class="panel-head"><h2 id=${id}>${title}</h2>${actions && html`<div class="actions">${actions}</div>`}</div>
    ${children}
  </section>`;
}

/** A group of options of which one is pressed. */
export function Choice({ label, options, value, onChange }) {
  return html`<label class="choice"><span>${label}</span>
    <select aria-label=${label} value=${value} onChange=${(event) => onChange(event.target.value)}>
      ${options.map(([key, text]) => html`<option value=${key} selected=${key === value}>${text}</option>`)}
    </select></label>`;
}

export const Toggle = ({ label, on, onChange, title }) =>
  html`<button type="button" class="toggle" aria-pressed=${String(on)} title=${title} onClick=${() => onChange(!on)}>${label}</button>`;

const WIDTH = 96;
const HEIGHT = 22;

/** A small curve of up to 40 numbers, unknown ones left out. */
export const Sparkline = pure(({ values }) => {
  const known = (values ?? []).map((value, index) => [index, value]).filter(([, value]) => value !== null);
  if (known.length < 2) return html`<svg class="spark" width=${WIDTH} height=${HEIGHT} aria-hidden="true"></svg>`;
  const numbers = known.map(([, value]) => value);
  const low = Math.min(...numbers);
  const range = Math.max(...numbers) - low || 1;
  const last = values.length - 1;
  const path = known.map(
    ([index, value], order) =>
      `${order ? "L" : "M"}${((index / last) * (WIDTH - 6) + 2).toFixed(1)} ${(HEIGHT - 3 - ((value - low) / range) * (HEIGHT - 6)).toFixed(1)}`,
  );
  const [x, y] = path.at(-1).slice(1).split(" ");
  return html`<svg class="spark" width=${WIDTH} height=${HEIGHT} viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} aria-hidden="true">
    <path d=${path.join("")} /><circle cx=${x} cy=${y} r="2" />
  </svg>`;
});
