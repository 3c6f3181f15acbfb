// The time of a recording: a slider, and playing at a speed.
import { html, useEffect, useRef, useState } from "./vendor/vendor.js";
import { count, duration, moment, percent } from "./format.js";

const FIT_S = 60;
const SPEEDS = [["1", "1×"], ["10", "10×"], ["100", "100×"], ["fit", `all in ${FIT_S} s`]];
const TICK_MS = 100;

/**
 * The slider of a recording.
 *
 * @param {{source: object, at: number | null, setAt: (at: number | null) => void}} props `at` is null at the end.
 */
export function Timeline({ source, at, setAt }) {
  const [speed, setSpeed] = useState("fit");
  const [playing, setPlaying] = useState(false);
  const { from_ms: from, to_ms: to } = source;
  const now = useRef(0);
  now.current = at ?? to;
  const length = Math.max(1, to - from);

  useEffect(() => {
    if (!playing) return undefined;
    const rate = speed === "fit" ? length / (FIT_S * 1000) : Number(speed);
    let last = performance.now();
    const timer = setInterval(() => {
      const time = performance.now();
      const next = now.current + (time - last) * rate;
      last = time;
      if (next >= to) setPlaying(false);
      setAt(next >= to ? null : next);
    }, TICK_MS);
    return () => clearInterval(timer);
  }, [playing, speed, from, to]);

  if (from === null || to === null) return null;
  const toggle = () => {
    if (!playing && at === null) setAt(from); // At the end, playing starts again.
    setPlaying(!playing);
  };
  const move = (event) => {
    const value = Number(event.target.value);
    setAt(value >= to ? null : value);
  };
  const shown = Math.round(now.current);
  return html`<div class="timeline" role="group" aria-label="Time in the recording">
    <button type="button" class="play" onClick=${toggle} aria-label=${playing ? "Pause" : "Play"}>${playing ? "❚❚" : "▶"}</button>
    <select aria-label="Speed" value=${speed} onChange=${(event) => setSpeed(event.target.value)}>
      ${SPEEDS.map(([key, text]) => html`<option value=${key} selected=${key === speed}>${text}</option>`)}
    </select>
    <input type="range" min=${from} max=${to} step=${Math.max(1, Math.floor(length / 1000))} value=${shown} onInput=${move}
      aria-label="Time" aria-valuetext=${`${moment(shown)}, ${percent((shown - from) / length, 0)} of ${duration(length)}`} />
    <output class="when">${moment(shown)}</output>
    <button type="button" class="toggle end" disabled=${at === null} onClick=${() => { setPlaying(false); setAt(null); }}>to the end</button>
  </div>`;
}

/** How far the reading of past records is. */
export function Reading({ source }) {
  if (!source.reading) return null;
  const text = source.total ? `reading ${count(source.records)} of ${count(source.total)} records` : `reading, ${count(source.records)} records`;
  return html`<span class="reading"><progress max="1" value=${source.total ? source.records / source.total : undefined} aria-label=${text}></progress>
    <span>${text}</span></span>`;
}
