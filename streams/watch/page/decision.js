// One decision: what was decided and why, and what became of it.
import { html, useState } from "./vendor/vendor.js";
import { actionText, bytes, change as signedChange, count, delta, duration, fixed, many, moment, num, percent, shorten, words } from "./format.js";
import { runLink } from "./route.js";
import { Plain } from "./table.js";
import { Fact, Id, Panel, State, Text } from "./widgets.js";
import { Waterfall, Worth } from "./waterfall.js";

const LIKELY = 12; // Bars before the rest is folded.

/** What was decided, and how it came about, as one sentence. */
function sentence(decision, chosen) {
  const odds = chosen ? ` with probability ${percent(chosen.probability)}` : "";
  const who = decision.method === "policy" || !decision.method ? `Policy version ${decision.policy_version}` : `The ${shorten(words(decision.method), 30)}, under policy version ${decision.policy_version},`;
  if (decision.vetoed_by?.length && decision.proposed.type === "no_op") {
    return html`${who} did nothing, since adaptations were ruled out by <${Text}>${decision.vetoed_by.map(words).join(", ")}</${Text}>.`;
  }
  if (decision.vetoed_by?.length) {
    return html`${who} proposed to <b><${Text}>${actionText(decision.proposed, 60)}</${Text}></b>${odds}; it was vetoed by <${Text}>${decision.vetoed_by.map(words).join(", ")}</${Text}>, so nothing was done.`;
  }
  const trial = decision.dry_run ? " This was a dry run: the host did not execute it." : "";
  return html`${who} decided to <b><${Text}>${actionText(decision, 60)}</${Text}></b>${odds}.${trial}`;
}

function Bars({ actions, leftOut }) {
  const [all, setAll] = useState(false);
  const legal = actions.filter((action) => action.legal);
  const illegal = actions.filter((action) => !action.legal);
  const shown = all ? legal : legal.filter((action, index) => index < LIKELY || action.chosen);
  const most = Math.max(1e-9, ...legal.map((action) => action.probability));
  return html`<ol class="bars">${shown.map((action) => html`<li class=${action.chosen ? "chosen" : ""}>
      <span class="name" title=${actionText(action, 300)}><bdi>${actionText(action, 22)}</bdi>${action.chosen ? html` <span class="tag">chosen</span>` : ""}</span>
      <span class="track" aria-hidden="true"><span style=${{ width: `${(100 * action.probability) / most}%` }}></span></span>
      <span class="n">${percent(action.probability, action.probability < 0.001 ? 3 : 1)}</span></li>`)}</ol>
    <p class="about">${many(legal.length, "legal action")}, ${count(illegal.length)} masked${leftOut ? `, ${count(leftOut)} not listed` : ""}.
      ${legal.length > LIKELY && html` <button type="button" class="toggle" onClick=${() => setAll(!all)}>${all ? "fewer" : `show all ${count(legal.length)}`}</button>`}</p>
    ${illegal.length > 0 && html`<details><summary>Masked actions</summary><ul class="masked">${byReason(illegal).map(([reason, actions]) => html`<li><b><${Text}>${reason}</${Text}>:</b> ${actions.map((action, place) => html`${place ? ", " : ""}<bdi>${actionText(action, 22)}</bdi>`)}</li>`)}</ul></details>`}`;
}

/** Masked actions by the reason for it. */
function byReason(actions) {
  const found = new Map();
  for (const action of actions) {
    const reason = action.reason ?? "for a reason that the telemetry does not show";
    found.set(reason, [...(found.get(reason) ?? []), action]);
  }
  return [...found];
}

function Why({ state }) {
  const { decision } = state;
  const vetoes = decision.vetoes ?? [];
  const orders = Object.entries(decision.orders ?? {});
  return html`<${Panel} title="Why">
    ${decision.explanation && html`<p class="explanation"><${Text}>${decision.explanation}</${Text}></p>`}
    ${vetoes.length > 0 && html`<h3>Vetoes</h3><ul class="vetoes">${vetoes.map((veto) => html`<li><b><${Text}>${words(veto.by)}</${Text}></b> <${Text}>${veto.reason}</${Text}></li>`)}</ul>`}
    <dl class="facts-list">
      <${Fact} label="Predicted reward">${delta(decision.predicted_reward)}</${Fact}>
      <${Fact} label="Uncertainty" title="calibrated half-width of the predicted reward">± ${fixed(decision.uncertainty)}</${Fact}>
      <${Fact} label="Confidence">${percent(decision.confidence, 0)}</${Fact}>
      <${Fact} label="Urgency">${percent(decision.urgency, 0)}</${Fact}>
      <${Fact} label="Entropy" title="of the distribution, nats">${num(decision.entropy)}</${Fact}>
      <${Fact} label="Log-probability">${num(decision.log_probability)}</${Fact}>
      <${Fact} label="Graph value" title="the value head's estimate for the graph">${delta(decision.value)}</${Fact}>
      <${Fact} label="Temperature">${num(decision.temperature)}</${Fact}>
      <${Fact} label="Policy">version ${decision.policy_version}, ${shorten(words(decision.method ?? "policy"), 30)}</${Fact}>
      <${Fact} label="Orders in force">${orders.length ? orders.map(([run, time]) => html`<span title=${moment(time)}>${run === "*" ? "all runs" : "this run"} </span>`) : "none"}</${Fact}>
      <${Fact} label="Graph" wide><${Id} id=${decision.graph_id ?? "–"} most=${22} copy=${Boolean(decision.graph_id)} /></${Fact}>
    </dl>
  </${Panel}>`;
}

function Outcome({ state }) {
  const { outcome, kernel, decision } = state;
  const names = outcome ? [...new Set([...Object.keys(outcome.before ?? {}), ...Object.keys(outcome.after ?? {})])] : [];
  const difference = (name) => (outcome.after?.[name] ?? null) === null || (outcome.before?.[name] ?? null) === null ? null : outcome.after[name] - outcome.before[name];
  return html`<${Panel} title="Outcome">
    ${outcome
      ? html`<p><${State} state=${outcome.status} /> at step ${count(outcome.step)}, <span title="how long training paused for it">in ${duration(outcome.duration_ms)}</span>${outcome.reason ? html`: <${Text}>${outcome.reason}</${Text}>` : ""}</p>
        ${names.length > 0 && html`<${Plain} label="Measurements before and after" head=${["measurement", "before", "after", "change"]} numbers=${[1, 2, 3]}
          rows=${names.map((name) => [words(name), num(outcome.before?.[name] ?? null, 4), num(outcome.after?.[name] ?? null, 4), signedChange(difference(name), 4)])} />`}`
      : html`<p class="nothing">${decision.status === "none" ? "Nothing was to be done." : decision.status === "vetoed" ? "A veto stopped it: nothing was executed." : decision.status === "dry_run" ? "A dry run: nothing was executed." : decision.status === "pending" ? "The host has not reported so far." : "No outcome has been published."}</p>`}
    ${kernel && html`<h3>Kernel</h3><dl class="facts-list">
      <${Fact} label="Status"><${State} state=${kernel.status} /></${Fact}>
      <${Fact} label="Parameters">${count(kernel.parameters)}</${Fact}>
      <${Fact} label="Size">${bytes(kernel.size_bytes)}</${Fact}>
      <${Fact} label="Compiled in">${duration(kernel.compile_time_ms)}</${Fact}>
      ${decision.kernel_id && html`<${Fact} label="Id" wide><${Id} id=${decision.kernel_id} most=${22} copy /></${Fact}>`}
      ${kernel.reason && html`<${Fact} label="Reason" wide><${Text}>${kernel.reason}</${Text}></${Fact}>`}
    </dl>`}
  </${Panel}>`;
}

function Spans({ reward }) {
  const rows = (reward.spans ?? []).map((span) => [html`<${Text}>${shorten(words(span.name), 30)}</${Text}>`, `${count(span.start)} to ${span.end === null ? "the end" : count(span.end)}`, percent(span.weight, 0), span.seen ? count(span.windows) : "–", span.seen ? delta(span.total) : "not observed"]);
  return html`<${Plain} label="Spans after the decision" caption head=${["span", "steps after", "weight", "windows", "total"]} numbers=${[2, 3, 4]} rows=${rows} />`;
}

function Reward({ state }) {
  const rewards = [...state.rewards.values()].sort((a, b) => a.revision - b.revision);
  const [picked, setPicked] = useState(null);
  if (!rewards.length) return html`<${Panel} title="Reward" className="wide"><p class="nothing">No reward has been published so far; the first comes when the first span after the decision is complete.</p></${Panel}>`;
  const index = picked === null ? rewards.length - 1 : Math.min(picked, rewards.length - 1);
  const reward = rewards[index];
  const choose = (next) => setPicked(next >= rewards.length - 1 ? null : next);
  return html`<${Panel} title="Reward" className="wide" actions=${rewards.length > 1 && html`<span class="revisions" role="group" aria-label="Revision">
      <button type="button" aria-label="Earlier revision" disabled=${index === 0} onClick=${() => choose(index - 1)}>‹</button>
      <input type="range" min="0" max=${rewards.length - 1} value=${index} aria-label="Revision" aria-valuetext=${`revision ${reward.revision}, ${index + 1} of ${rewards.length}`} onInput=${(event) => choose(Number(event.target.value))} />
      <button type="button" aria-label="Later revision" disabled=${index === rewards.length - 1} onClick=${() => choose(index + 1)}>›</button>
      <span class="of">revision ${reward.revision} · ${index + 1} of ${rewards.length}</span></span>`}>
    <p>${reward.complete ? "Final." : "Preliminary: a later revision replaces it."} As of ${moment(reward.time_ms)}${reward.estimator ? html`, estimator <${Text}>${shorten(reward.estimator, 30)}</${Text}>` : ""}.
      ${reward.explanation && html` <${Text}>${reward.explanation}</${Text}>`}</p>
    <div class="reward">
      <div><${Waterfall} reward=${reward} /></div>
      <div><${Worth} reward=${reward} />
        <dl class="facts-list">
          <${Fact} label="Total">${delta(reward.total)}</${Fact}>
          <${Fact} label="Predicted">${delta(reward.predicted_reward)}</${Fact}>
          <${Fact} label="Improvement" title="loss reduction relative to the run without the adaptation">${percent(reward.improvement, 2)}</${Fact}>
          <${Fact} label="Confidence" title="share of the span weight measured, reduced for noisy baselines">${percent(reward.confidence, 0)}</${Fact}>
        </dl>
        <${Spans} reward=${reward} /></div>
    </div>
  </${Panel}>`;
}

export function Decision({ state, params }) {
  const { decision } = state;
  const actions = state.actions ?? [];
  return html`<nav class="crumbs" aria-label="Path"><a href="#/">Runs</a> › <${Id} id=${params.run} most=${36} link=${runLink(params.run)} /></nav>
    <header class="facts">
      <div class="title"><h1 tabindex="-1">Decision at step ${count(decision.step)}</h1> ${decision.status !== "none" && html`<${State} state=${decision.status} />`}
        <span class="of">${moment(decision.time_ms)} · <${Id} id=${decision.decision_id} most=${20} copy /></span></div>
      <p class="sentence">${sentence(decision, actions.find((action) => action.chosen))}</p>
      ${!state.details_kept && html`<p class="note">This decision is older than the page keeps in full: probabilities, explanation and earlier revisions of the reward are not shown. A recording has them.</p>`}
    </header>
    <div class="panels">
      ${state.details_kept && html`<${Panel} title="Probabilities"><${Bars} actions=${actions} leftOut=${state.actions_left_out} /></${Panel}>`}
      <div class="column">${state.details_kept && html`<${Why} state=${state} />`}<${Outcome} state=${state} /></div>
      <${Reward} state=${state} />
    </div>`;
}
