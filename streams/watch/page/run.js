// One run: its facts, curves, layers, kernels, decisions and errors.
import { html, useMemo, useState } from "./vendor/vendor.js";
import { actionText, bytes, clock, compact, count, delta, duration, fixed, many, moment, num, percent, shorten, tone, typeWords } from "./format.js";
import { Curves, adapts } from "./curves.js";
import { Graph } from "./graph.js";
import { Heat } from "./heat.js";
import { Lanes } from "./lanes.js";
import { decisionLink } from "./route.js";
import { Grid, Plain, sorted } from "./table.js";
import { Fact, Id, Panel, State, Text, Toggle } from "./widgets.js";

const share = (value) => percent(value, 0);

function Facts({ run, now }) {
  const { orders } = run;
  const growth = run.base_parameters ? run.parameters / run.base_parameters - 1 : null;
  return html`<header class="facts">
    <div class="title"><h1 tabindex="-1"><${Id} id=${run.run_id} most=${48} copy /></h1> <${State} state=${run.state} />
      ${orders && html`<p class="orders">Standing orders by <${Text}>${shorten(orders.issued_by || "an operator", 40)}</${Text}>: ${[orders.paused && "paused", orders.dry_run && "dry run", orders.protected_layers?.length && `${many(orders.protected_layers.length, "layer")} protected`].filter(Boolean).join(", ") || "none"}${orders.reason ? html` (<${Text}>${shorten(orders.reason, 200)}</${Text}>)` : ""}</p>`}
    </div>
    <dl>
      <${Fact} label="Task" wide><${Id} id=${run.task || "–"} most=${26} /></${Fact}>
      <${Fact} label="Step">${count(run.step)}${run.planned_steps ? html` <span class="of">/ ${count(run.planned_steps)}</span>` : ""}</${Fact}>
      <${Fact} label="Training loss" title="nats">${fixed(run.train_loss)}</${Fact}>
      <${Fact} label="Validation loss" title="nats">${fixed(run.validation_loss)}</${Fact}>
      ${(run.validation_accuracy ?? run.train_accuracy ?? null) !== null && html`<${Fact} label="Accuracy">${percent(run.validation_accuracy ?? run.train_accuracy)}</${Fact}>`}
      <${Fact} label="Parameters" title=${`${count(run.parameters)}; without kernels ${count(run.base_parameters)}`}>${compact(run.parameters)}${growth ? html` <span class="of">+${percent(growth)}</span>` : ""}</${Fact}>
      <${Fact} label="Kernel budget">${compact(run.parameter_budget)}</${Fact}>
      <${Fact} label="Adapted" title="executed adaptations of all decisions">${count(run.adaptations)} <span class="of">/ ${count(run.decisions)}</span></${Fact}>
      <${Fact} label="Worth" title="what all adaptations gained in the final objective, nats">${delta(run.worth)}</${Fact}>
      <${Fact} label="Overhead" title="share of a step's time that Tamiyo takes">${percent(run.overhead_ratio, 2)}</${Fact}>
      <${Fact} label="Step time">${run.step_time_ms === null ? "–" : `${num(run.step_time_ms)} ms`}</${Fact}>
      <${Fact} label="Memory">${bytes(run.memory_bytes)}</${Fact}>
      <${Fact} label="Attached" title=${moment(run.attached_ms)}>${run.attached_ms ? `${duration(Math.max(0, now - run.attached_ms))} ago` : "–"}</${Fact}>
      <${Fact} label="Newest" title=${moment(run.time_ms)}>${clock(run.time_ms)} <span class="of">UTC</span></${Fact}>
      ${run.dropped_records > 0 && html`<${Fact} label="Dropped"><span class="warn">${count(run.dropped_records)}</span></${Fact}>`}
    </dl>
  </header>`;
}

/** The action to name in a list: the proposed one where a veto turned it into doing nothing. */
const named = (decision) => (decision.type === "no_op" && decision.vetoed_by?.length ? decision.proposed : decision);

const COLUMNS = [
  { key: "step", label: "Step", class: "n", width: "5rem", sort: (d) => d.step, cell: (d, run) => html`<a href=${decisionLink(run, d.decision_id)} title=${moment(d.time_ms)}>${count(d.step)}</a>` },
  { key: "type", label: "Action", class: "c-action", width: "6.5rem", sort: (d) => named(d).type, cell: (d) => html`<span class=${adapts(d) ? "strong" : "of"}>${typeWords(named(d).type)}</span>` },
  { key: "blueprint", label: "Blueprint", class: "p2", sort: (d) => named(d).blueprint, cell: (d) => html`<${Id} id=${named(d).blueprint ?? ""} most=${22} />` },
  { key: "layer", label: "Layer", class: "p1", sort: (d) => named(d).layer_id, cell: (d) => html`<${Id} id=${named(d).layer_id ?? ""} most=${20} />` },
  { key: "status", label: "Outcome", class: "c-status", width: "7rem", sort: (d) => d.status, cell: (d) => (d.status === "none" ? html`<span class="of">–</span>` : html`<span title=${shorten(d.reason || d.vetoed_by?.join(", ") || "", 300)}><${State} state=${d.status} /></span>`) },
  { key: "confidence", label: "Conf.", title: "Confidence: 1 less the uncertainty of the predicted reward", class: "n p3", width: "4.5rem", sort: (d) => d.confidence, cell: (d) => share(d.confidence) },
  { key: "predicted", label: "Expected", title: "The reward that the policy predicted", class: "n p3", width: "6.5rem", sort: (d) => d.predicted_reward, cell: (d) => delta(d.predicted_reward, 2) },
  { key: "reward", label: "Reward", title: "In -1..1; in brackets while a revision may come", class: "n", width: "5.5rem", sort: (d) => d.reward,
    cell: (d) => html`<span class=${tone(d.reward, 2)}>${d.reward !== null && !d.reward_complete ? `(${delta(d.reward, 2)})` : delta(d.reward, 2)}</span>` },
  { key: "worth", label: "Worth", title: "Gain in the run's final objective less costs, with half of its 90 % interval, nats", class: "n p2", width: "9.5rem", sort: (d) => d.worth,
    cell: (d) => html`<span class=${tone(d.worth)}>${delta(d.worth)}</span>${d.worth_half_width === null || d.worth_half_width === undefined ? "" : html` <span class="of">± ${fixed(d.worth_half_width)}</span>`}` },
  { key: "version", label: "Policy", class: "n p3", width: "5rem", sort: (d) => d.policy_version, cell: (d) => `v${d.policy_version}` },
];
const BY_KEY = Object.fromEntries(COLUMNS.map((column) => [column.key, column]));

function Decisions({ decisions, run }) {
  const [only, setOnly] = useState(true);
  const [sort, setSort] = useState({ key: "step", direction: -1 });
  const shown = useMemo(() => sorted(only ? decisions.filter(adapts) : decisions, BY_KEY[sort.key], sort.direction), [decisions, only, sort]);
  const onSort = (key) => setSort((old) => ({ key, direction: old.key === key ? -old.direction : -1 }));
  return html`<${Panel} title="Decisions" className="wide" actions=${html`<span class="of">${count(shown.length)} of ${count(decisions.length)}</span>
      <${Toggle} label="only adaptations" on=${only} onChange=${setOnly} />`}>
    ${shown.length
      ? html`<${Grid} name="decision" label="Decisions" columns=${COLUMNS} rows=${shown} rowKey=${(d) => d.decision_id} rowHeight=${28} sort=${sort} onSort=${onSort}
          context=${run} tone=${(d) => (adapts(d) ? "" : "past")} onOpen=${(d) => { location.hash = decisionLink(run, d.decision_id); }} />`
      : html`<p class="nothing">${decisions.length ? "The policy has proposed no adaptation so far." : "No decision has been published so far."}</p>`}
  </${Panel}>`;
}

function Errors({ errors }) {
  if (!errors.length) return null;
  const rows = errors.toReversed().map((error) => [count(error.step), clock(error.time_ms), html`<${Id} id=${error.layer_id ?? "–"} most=${20} />`, html`<${Text}>${shorten(error.error_type, 30)}</${Text}>`, html`<${Text}>${shorten(error.message, 160)}</${Text}>`, html`<${Text}>${shorten(error.strategy, 24)}</${Text}>`, error.success ? "recovered" : "not recovered"]);
  return html`<${Panel} title="Errors and recoveries" className="wide"><${Plain} label="Errors and recoveries" head=${["step", "time", "layer", "error", "message", "strategy", "result"]} rows=${rows} numbers=${[0]} /></${Panel}>`;
}

export function Run({ state, params, theme }) {
  const { run } = params;
  const decisions = useMemo(() => [...state.decisions.values()].sort((a, b) => a.step - b.step), [state.decisions, state.revisions.decisions]);
  return html`<${Facts} run=${state.run} now=${state.now_ms} />
    <div class="panels">
      <${Curves} state=${state} run=${run} theme=${theme} decisions=${decisions} />
      <${Graph} state=${state} theme=${theme} />
      <div class="column"><${Heat} state=${state} theme=${theme} /><${Lanes} state=${state} run=${run} /></div>
      <${Decisions} decisions=${decisions} run=${run} />
      <${Errors} errors=${state.errors} />
    </div>`;
}
