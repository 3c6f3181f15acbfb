// A swimlane of kernels: loading, active, fossilized, ended; patterns as well as colours.
import { html, useState } from "./vendor/vendor.js";
import { compact, count, shorten } from "./format.js";
import { decisionLink } from "./route.js";
import { Panel, State } from "./widgets.js";

const MOST = 40;
const WIDE = 1000; // Units of the drawing; it is scaled to its box.
const HIGH = 16;

/** The parts of a kernel's life as [kind, first step, last step]. */
function parts(kernel, now) {
  const end = kernel.ended_step ?? now;
  const active = kernel.active_step ?? end;
  const fossilized = kernel.fossilized_step ?? end;
  return [
    ["loading", kernel.requested_step, Math.min(active, end)],
    ["active", active, Math.min(fossilized, end)],
    ["fossilized", fossilized, end],
  ].filter(([kind, from, to]) => from !== null && (to > from || (kind === kernel.status && from === now)));
}

function story(kernel) {
  const steps = [
    ["requested at step", kernel.requested_step],
    ["active from", kernel.active_step],
    ["fossilized at", kernel.fossilized_step],
    [kernel.status === "unloaded" ? "unloaded at" : "ended at", kernel.ended_step],
  ];
  const known = steps.filter(([, step]) => step !== null && step !== undefined).map(([word, step]) => `${word} ${count(step)}`);
  return `${known.join(", ")}${kernel.reason ? `: ${shorten(kernel.reason, 120)}` : ""}`;
}

function Lane({ run, kernel, now }) {
  const x = (step) => (WIDE * step) / Math.max(1, now);
  const lived = parts(kernel, now);
  const ended = kernel.ended_step ?? (["refused", "failed"].includes(kernel.status) ? kernel.requested_step : null);
  return html`<li class="lane">
    <a class="name" href=${decisionLink(run, kernel.decision_id)} title=${shorten(`${kernel.blueprint} at ${kernel.layer_id}`, 300)}><bdi>${shorten(kernel.blueprint, 20)}</bdi> <span class="of">at</span> <bdi>${shorten(kernel.layer_id, 16)}</bdi></a>
    <span class="track"><svg viewBox=${`0 0 ${WIDE} ${HIGH}`} preserveAspectRatio="none" role="img" aria-label=${story(kernel)}>
      <title>${story(kernel)}</title>
      ${lived.map(([kind, from, to]) => html`<rect class=${kind} fill=${kind === "active" ? undefined : `url(#p-${kind})`} x=${x(from)} y="3" width=${Math.max(3, x(to) - x(from))} height=${HIGH - 6} />`)}
      ${ended !== null && html`<rect class="end" x=${Math.max(0, Math.min(WIDE - 3, x(ended)))} y="0" width="3" height=${HIGH} />`}
    </svg></span>
    <span class="what"><${State} state=${kernel.status} /></span>
    <span class="size n">${compact(kernel.parameters)}</span>
  </li>`;
}

export function Lanes({ state, run }) {
  const [all, setAll] = useState(false);
  const kernels = [...state.kernels.values()].sort((a, b) => a.requested_step - b.requested_step);
  if (!kernels.length) return html`<${Panel} title="Kernels"><p class="nothing">No kernel has been requested so far.</p></${Panel}>`;
  const now = Math.max(state.run?.step ?? 0, ...kernels.map((kernel) => kernel.ended_step ?? kernel.requested_step));
  const shown = all ? kernels : kernels.slice(-MOST);
  return html`<${Panel} title="Kernels" actions=${html`<ul class="legend"><li><span class="sign-loading" aria-hidden="true"></span>loading</li><li><span class="sign-active" aria-hidden="true"></span>active</li><li><span class="sign-fossilized" aria-hidden="true"></span>fossilized</li><li><span class="sign-end" aria-hidden="true"></span>ended</li></ul>`}>
    <svg class="patterns" aria-hidden="true" width="0" height="0"><defs>
      <pattern id="p-loading" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="8" height="8" class="under" /><rect width="3" height="8" class="over" /></pattern>
      <pattern id="p-fossilized" width="6" height="6" patternUnits="userSpaceOnUse"><rect width="6" height="6" class="under" /><circle cx="3" cy="3" r="1.2" class="over" /></pattern>
    </defs></svg>
    <ol class="lanes">${shown.map((kernel) => html`<${Lane} key=${kernel.kernel_id} run=${run} kernel=${kernel} now=${now} />`)}</ol>
    <div class="ends lanes-ends"><span>step 0</span><span>${count(now)}</span></div>
    ${kernels.length > MOST && html`<button type="button" class="toggle" onClick=${() => setAll(!all)}>${all ? `newest ${MOST} only` : `show all ${count(kernels.length)}`}</button>`}
  </${Panel}>`;
}
