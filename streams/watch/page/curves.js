// The curves of a run: loss with a marker for each decision and the projected line without it, accuracy, parameters.
import { html, useMemo, useRef, useState } from "./vendor/vendor.js";
import { actionText, count, delta, fixed, many, percent, shorten, words } from "./format.js";
import { Chart, Legend } from "./charts.js";
import { decisionLink } from "./route.js";
import { Panel, Toggle } from "./widgets.js";

const MOST_MARKERS = 300;
const DASH = [5, 4];
const SIGNS = { executed: "▲", pending: "△", vetoed: "⊘", dry_run: "◇", refused: "✕", failed: "✕" };

/** A decision that meant to change the network, whether or not it did. */
export const adapts = (decision) => decision.type !== "no_op" || (decision.proposed && decision.proposed.type !== "no_op");

/** What was decided and what became of it, in one line. */
export function summary(decision) {
  const action = decision.type === "no_op" && decision.vetoed_by?.length ? decision.proposed : decision;
  const status = decision.status === "vetoed" ? `vetoed by ${shorten(words(decision.vetoed_by.join(", ")), 80)}` : words(decision.status);
  const reward = decision.reward === null || decision.reward === undefined ? "" : `, reward ${delta(decision.reward, 2)}`;
  const worth = decision.worth === null || decision.worth === undefined ? "" : `, worth ${delta(decision.worth)}`;
  return `Step ${count(decision.step)}: ${actionText(action)}; ${status}${reward}${worth}`;
}

const positive = (log, values) => (log ? values.map((value) => (value > 0 ? value : null)) : values);

/** The range of y: that of the curves, and of the projections as far as they stay near it. */
function rangeWith(projections, log) {
  return (u, low, high) => {
    if (low === null) return log ? [0.1, 1] : [0, 1];
    let [from, to] = [low, high];
    const reach = log ? 4 * high : high + 0.5 * (high - low || Math.abs(high) || 1);
    for (const { loss } of projections()) {
      for (const value of loss) {
        if (value === null) continue;
        if (value > to) to = Math.min(value, reach);
        if (value < from && (value > 0 || !log)) from = Math.max(value, log ? low / 4 : low - 0.5 * (high - low));
      }
    }
    if (log) return [from / 1.1, to * 1.1];
    const pad = 0.05 * (to - from || Math.abs(to) || 1);
    return [from - pad, to + pad];
  };
}

function drawProjections(u, colours, projections, decisions, shown) {
  const { ctx, bbox } = u;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  ctx.lineWidth = 1.5 * devicePixelRatio;
  ctx.strokeStyle = colours.orange;
  ctx.setLineDash(DASH.map((length) => length * devicePixelRatio));
  for (const { decision_id: id, step, loss } of projections) {
    ctx.globalAlpha = shown && id !== shown ? 0.25 : 1; // The one of the marker under the pointer stands out.
    ctx.lineWidth = (id === shown ? 2.5 : 1.5) * devicePixelRatio;
    ctx.beginPath();
    let open = false;
    for (let index = 0; index < step.length; index += 1) {
      if (loss[index] === null) continue;
      const [x, y] = [u.valToPos(step[index], "x", true), u.valToPos(loss[index], "y", true)];
      if (open) ctx.lineTo(x, y);
      else ctx.moveTo(x, y);
      open = true;
    }
    ctx.stroke();
  }
  ctx.setLineDash([]);
  ctx.lineWidth = devicePixelRatio;
  ctx.globalAlpha = 0.7;
  for (const decision of decisions) {
    const x = Math.round(u.valToPos(decision.outcome_step ?? decision.step, "x", true)) + 0.5;
    if (decision.status === "executed") {
      ctx.strokeStyle = colours.muted;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    } else if (!adapts(decision)) {
      ctx.strokeStyle = colours.grey; // The rug of decisions to do nothing.
      ctx.beginPath();
      ctx.moveTo(x, bbox.top + bbox.height - 5 * devicePixelRatio);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
  }
  ctx.restore();
}

/** The markers above the chart: one stop of the tab key, walked with arrows, each a link to its decision. */
function Markers({ run, decisions, place, shown, setShown }) {
  const [at, setAt] = useState(0);
  const strip = useRef(null);
  const inSight = place ? decisions.filter(({ step }) => step >= place.low && step <= place.high) : [];
  const marked = inSight.slice(-MOST_MARKERS);
  const kept = Math.min(at, Math.max(0, marked.length - 1));
  const share = (decision) => (decision.step - place.low) / (place.high - place.low || 1);
  const onKey = (event) => {
    const steps = { ArrowRight: kept + 1, ArrowLeft: kept - 1, Home: 0, End: marked.length - 1 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(marked.length - 1, steps[event.key]));
    setAt(next);
    strip.current.querySelectorAll("a")[next]?.focus();
  };
  const about = shown && marked.find(({ decision_id: id }) => id === shown);
  return html`<div class="markers" ref=${strip} role="group" aria-label="Adaptations, in order of steps; arrow keys move" onKeyDown=${onKey}
      style=${place ? { marginLeft: `${place.left}px`, width: `${place.width}px` } : undefined}>
    ${marked.map((decision, index) => html`<a key=${decision.decision_id} class=${`marker ${decision.status}`} href=${decisionLink(run, decision.decision_id)}
      tabindex=${index === kept ? 0 : -1} aria-label=${summary(decision)} style=${{ left: `${100 * share(decision)}%` }}
      onFocus=${() => { setAt(index); setShown(decision.decision_id); }} onBlur=${() => setShown(null)}
      onMouseEnter=${() => setShown(decision.decision_id)} onMouseLeave=${() => setShown(null)}>${SIGNS[decision.status] ?? "·"}</a>`)}
    ${about && html`<div class="tip" aria-hidden="true" style=${share(about) < 0.5 ? { left: `${100 * share(about)}%` } : { right: `${100 * (1 - share(about))}%` }}><bdi>${summary(about)}</bdi></div>`}
  </div>`;
}

export function Curves({ state, run, theme, decisions }) {
  const [log, setLog] = useState(false);
  const [place, setPlace] = useState(null);
  const [shown, setShown] = useState(null);
  const { series, revisions } = state;
  const adaptations = useMemo(() => decisions.filter(adapts), [decisions]);
  const projections = () => [...state.projections.values()];
  const revision = `${revisions.series} ${revisions.decisions} ${revisions.projections}`;
  const validated = series?.validation_loss.some((value) => value !== null);
  const accurate = series?.validation_accuracy.some((value) => value !== null);
  const last = (values) => values?.findLast((value) => value !== null) ?? null;
  if (!series?.step.length) return html`<${Panel} title="Loss"><p class="nothing tall">No step has been published so far.</p></${Panel}>`;
  const at = (decision) => ({ ...decision, step: decision.outcome_step ?? decision.step });
  return html`<${Panel} title="Loss" className="wide" actions=${html`
      <${Legend} entries=${[["training", "train"], ...(validated ? [["validation", "validation"]] : []), ...(state.projections.size ? [["projected without the adaptation", "projected"]] : []), ["do nothing", "rug"]]} />
      <${Toggle} label="log scale" on=${log} onChange=${setLog} />`}>
    <${Markers} run=${run} decisions=${adaptations.map(at)} place=${place} shown=${shown} setShown=${setShown} />
    <${Chart} kind=${`${log} ${validated}`} theme=${theme} revision=${`${revision} ${shown}`} height=${280} log=${log} sync="run"
      label=${`Loss by step. At step ${count(series.step.at(-1))}: training ${fixed(last(series.train_loss))}${validated ? `, validation ${fixed(last(series.validation_loss))}` : ""}. ${many(adaptations.length, "adaptation")} proposed.`}
      data=${() => [series.step, positive(log, state.series.train_loss), ...(validated ? [positive(log, state.series.validation_loss)] : [])].map((column, index) => (index ? column : state.series.step))}
      series=${(colours) => [{ label: "training", stroke: colours.grey, width: validated ? 1 : 1.5 }, ...(validated ? [{ label: "validation", stroke: colours.blue, width: 2 }] : [])]}
      range=${rangeWith(projections, log)} onPlace=${setPlace}
      draw=${(u, colours) => drawProjections(u, colours, projections(), decisions, shown)} />
    <div class="small-charts">
      ${accurate && html`<figure><figcaption>Validation accuracy</figcaption><${Chart} kind="accuracy" theme=${theme} revision=${revisions.series} height=${120} sync="run"
        label=${`Validation accuracy by step, now ${percent(last(series.validation_accuracy))}`}
        data=${() => [state.series.step, state.series.validation_accuracy]} series=${(colours) => [{ label: "accuracy", stroke: colours.blue }]} /></figure>`}
      <figure><figcaption>Parameters</figcaption><${Chart} kind="parameters" theme=${theme} revision=${revisions.series} height=${120} sync="run"
        label=${`Parameters by step, now ${count(last(series.parameters))}`}
        data=${() => [state.series.step, state.series.parameters]}
        series=${(colours) => [{ label: "parameters", stroke: colours.purple, paths: undefined }]} /></figure>
    </div>
  </${Panel}>`;
}
