// A reward by component: each contribution from where the one before it ended, then the sum and its tanh.
import { html } from "./vendor/vendor.js";
import { delta, fixed, words } from "./format.js";

function Bar({ from, to, low, high, kind }) {
  const x = (value) => (100 * (value - low)) / (high - low || 1);
  const [left, right] = [Math.min(from, to), Math.max(from, to)];
  return html`<span class="cascade" aria-hidden="true"><span class="zero" style=${{ left: `${x(0)}%` }}></span>
    <span class=${`step ${kind}`} style=${{ left: `${x(left)}%`, width: `${Math.max(0.6, x(right) - x(left))}%` }}></span></span>`;
}

export function Waterfall({ reward }) {
  let reached = 0;
  const steps = (reward.waterfall ?? []).map((step) => {
    const from = reached;
    reached += step.contribution ?? 0;
    return { ...step, from, to: reached };
  });
  const sum = reward.sum ?? reached;
  const edges = [0, sum, reward.total, ...steps.flatMap(({ from, to }) => [from, to])];
  const [low, high] = [Math.min(...edges), Math.max(...edges)];
  const pad = 0.04 * (high - low || 1);
  const place = { low: low - pad, high: high + pad };
  const side = (value) => (value < 0 ? "down" : "up");
  return html`<div class="plain-box" tabindex="0" role="region" aria-label="Reward by component"><table class="plain waterfall">
    <caption>Reward by component</caption>
    <thead><tr><th scope="col">component</th><th scope="col" class="n part">value</th><th scope="col" class="n part">weight</th><th scope="col" class="n">contribution</th><th scope="col" class="course">course</th></tr></thead>
    <tbody>
      ${steps.map((step) => html`<tr><th scope="row"><bdi>${words(step.component)}</bdi></th><td class="n part">${fixed(step.value)}</td><td class="n part">× ${fixed(step.weight, 1)}</td><td class="n">${delta(step.contribution)}</td>
        <td class="course"><${Bar} from=${step.from} to=${step.to} kind=${side(step.contribution)} ...${place} /></td></tr>`)}
      <tr class="sum"><th scope="row">weighted sum</th><td class="part"></td><td class="part"></td><td class="n">${delta(sum)}</td><td class="course"><${Bar} from=${0} to=${sum} kind="sum" ...${place} /></td></tr>
      <tr class="total"><th scope="row">total = tanh(sum)</th><td class="part"></td><td class="part"></td><td class="n"><b>${delta(reward.total)}</b></td><td class="course"><${Bar} from=${0} to=${reward.total} kind="total" ...${place} /></td></tr>
    </tbody>
  </table></div>`;
}

/** The worth with its 90 % interval, in nats, on an axis of its own. */
export function Worth({ reward }) {
  const { worth, worth_half_width: half } = reward;
  if (worth === null || worth === undefined) return html`<p class="nothing">Worth: not estimated.</p>`;
  const [from, to] = [worth - (half ?? 0), worth + (half ?? 0)];
  const reach = 1.15 * Math.max(Math.abs(from), Math.abs(to), 1e-6);
  const x = (value) => 50 + (50 * value) / reach;
  const sure = half === null ? "without an interval" : from > 0 ? "the interval lies above 0" : to < 0 ? "the interval lies below 0" : "the interval contains 0";
  return html`<div class="worth"><h3>Worth <span class="n">${delta(worth)} nats${half === null ? "" : ` ± ${fixed(half)}`}</span></h3>
    <svg viewBox="0 0 100 14" preserveAspectRatio="none" aria-hidden="true"><rect class="axis" x="0" y="6.5" width="100" height="1" /><rect class="zero" x="49.8" y="0" width="0.4" height="14" />
      ${half !== null && html`<rect class="interval" x=${x(from)} y="4" width=${x(to) - x(from)} height="6" />`}<rect class="point" x=${x(worth) - 0.6} y="1" width="1.2" height="12" /></svg>
    <p class="about">90 % interval ${half === null ? "–" : `${delta(from)} to ${delta(to)}`}; ${sure}.</p></div>`;
}
