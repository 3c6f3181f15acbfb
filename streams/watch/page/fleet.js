// The fleet: all runs in a table that is filtered, sorted and walked by keyboard.
import { html, useEffect, useMemo, useReducer, useRef, useState } from "./vendor/vendor.js";
import { actionText, ago, compact, count, delta, fixed, moment, percent, tone } from "./format.js";
import { Empty, Id, Sparkline, State, Toggle } from "./widgets.js";
import { Grid, sorted } from "./table.js";
import { runLink } from "./route.js";

const STATES = ["training", "paused", "finished", "silent"];
const ORDER = { training: 0, paused: 1, silent: 2, finished: 3 };
const REORDER_MS = 1000; // Rows keep their places for this long, so that a stream does not shuffle them under the reader.

const loss = (run) => run.validation_loss ?? run.train_loss;

const steps = (value) => (value < 100_000 ? count(value) : compact(value));

function Progress({ run }) {
  const share = run.planned_steps ? Math.min(1, run.step / run.planned_steps) : null;
  return html`<span class="progress" title=${share === null ? "length not known" : percent(share, 0)}>
    <span class="figures">${steps(run.step)}${run.planned_steps ? html`<span class="of"> / ${steps(run.planned_steps)}</span>` : ""}</span>
    <span class="track" aria-hidden="true"><span style=${{ width: `${100 * (share ?? 0)}%` }}></span></span>
  </span>`;
}

function growth(run) {
  return run.base_parameters ? run.parameters / run.base_parameters - 1 : null;
}

const COLUMNS = [
  { key: "state", label: "State", class: "c-state", width: "7rem", sort: (run) => ORDER[run.state], cell: (run) => html`<${State} state=${run.state} />` },
  { key: "run_id", label: "Run", class: "c-run", sort: (run) => run.run_id, cell: (run) => html`<${Id} id=${run.run_id} most=${44} link=${runLink(run.run_id)} />` },
  { key: "task", label: "Task", class: "p3 c-task", sort: (run) => run.task, cell: (run) => html`<${Id} id=${run.task ?? "–"} most=${36} />` },
  { key: "step", label: "Step", class: "p2", width: "9rem", sort: (run) => run.step, cell: (run) => html`<${Progress} run=${run} />` },
  { key: "loss", label: "Loss", title: "Validation loss, else training loss, nats", class: "c-loss", width: "12.5rem", sort: loss,
    cell: (run) => html`<span class="loss"><${Sparkline} values=${run.sparkline} /><span class="n">${fixed(loss(run))}</span></span>` },
  { key: "parameters", label: "Parameters", title: "Trainable parameters now, and the growth against the network without kernels", class: "n p3", width: "9.5rem",
    sort: (run) => run.parameters, cell: (run) => html`${compact(run.parameters)} <span class="of growth">${growth(run) ? `+${percent(growth(run))}` : ""}</span>` },
  { key: "adaptations", label: "Adapted", title: "Executed adaptations of all decisions", class: "n", width: "6.5rem", sort: (run) => run.adaptations,
    cell: (run) => html`<span title=${run.last_adaptation ? `last: ${actionText(run.last_adaptation)}, step ${count(run.last_adaptation.step)}` : "none"}>${count(run.adaptations)}<span class="of"> / ${count(run.decisions)}</span></span>` },
  { key: "vetoed", label: "Vetoed", title: "Decisions with a veto", class: "n p4", width: "5.5rem", sort: (run) => run.vetoed, cell: (run) => count(run.vetoed) },
  { key: "reward", label: "Reward", title: "The newest reward, in -1..1", class: "n p2", width: "5.5rem", sort: (run) => run.last_reward,
    cell: (run) => html`<span class=${tone(run.last_reward, 2)}>${delta(run.last_reward, 2)}</span>` },
  { key: "worth", label: "Worth", title: "What all adaptations of the run gained in its final objective, nats", class: "n p1", width: "5.5rem", sort: (run) => run.worth,
    cell: (run) => html`<span class=${tone(run.worth)}>${delta(run.worth)}</span>` },
  { key: "time", label: "Newest", title: "Age of the newest record", class: "n p4", width: "5.5rem", sort: (run) => run.time_ms,
    cell: (run, now) => html`<span title=${moment(run.time_ms)}>${run.time_ms ? ago(Math.max(0, now - run.time_ms)) : "–"}</span>` },
];
const BY_KEY = Object.fromEntries(COLUMNS.map((column) => [column.key, column]));
const TEXTUAL = new Set(["state", "run_id", "task"]);

/** What a reader has chosen; kept while the page is open, so that coming back from a run finds it again. */
const chosen = { text: "", state: null, sort: { key: "state", direction: 1 }, active: null, scroll: 0 };

function matches(run, words) {
  const text = `${run.run_id} ${run.task ?? ""} ${run.state}`.toLowerCase();
  return words.every((word) => text.includes(word));
}

/** The runs to show, in order; between two orders at least a second passes unless filter, sort or the runs themselves changed. */
function useOrder(state, text, only, sort) {
  const [, redraw] = useReducer((n) => n + 1, 0);
  const kept = useRef({ key: "", time: 0, order: [] });
  const revision = state.revisions.runs;
  const key = JSON.stringify([text, only, sort, state.revisions.members]);
  const age = performance.now() - kept.current.time;
  const changed = kept.current.key !== key || kept.current.runs !== state.runs;
  if (changed || (age > REORDER_MS && kept.current.revision !== revision)) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = [...state.runs.values()].filter((run) => (!only || run.state === only) && matches(run, words));
    const order = sorted(shown, BY_KEY[sort.key], sort.direction).map((run) => run.run_id);
    kept.current = { key, time: performance.now(), order, runs: state.runs, revision };
  }
  const stale = kept.current.revision !== revision;
  useEffect(() => {
    if (!stale) return undefined;
    const timer = setTimeout(redraw, REORDER_MS);
    return () => clearTimeout(timer);
  }, [stale]);
  return kept.current.order.map((id) => state.runs.get(id)).filter(Boolean);
}

export function Fleet({ state, live }) {
  const [text, setText] = useState(chosen.text);
  const [only, setOnly] = useState(chosen.state);
  const [sort, setSort] = useState(chosen.sort);
  const grid = useRef(null);
  const filter = useRef(null);
  const rows = useOrder(state, text, only, sort);
  Object.assign(chosen, { text, state: only, sort });
  const minute = Math.floor(state.now_ms / 10_000) * 10_000; // Ages change every ten seconds, not with every document.
  const counts = useMemo(() => {
    const found = Object.fromEntries(STATES.map((name) => [name, 0]));
    for (const run of state.runs.values()) found[run.state] = (found[run.state] ?? 0) + 1;
    return found;
  }, [state.revisions.runs, state.runs]);

  useEffect(() => {
    const table = grid.current;
    if (!table) return undefined;
    if (chosen.active !== null) table.focus();
    return () => {
      chosen.active = table.state.active;
      chosen.scroll = table.box.current?.scrollTop ?? 0;
    };
  }, [state.runs.size > 0]);

  useEffect(() => {
    const onKey = (event) => {
      if (event.key !== "/" || event.ctrlKey || event.metaKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
      event.preventDefault();
      filter.current?.focus();
      filter.current?.select();
    };
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  }, []);

  const onFilterKey = (event) => {
    if (event.key === "Escape" && text) setText("");
    else if (event.key === "Escape" || event.key === "ArrowDown" || event.key === "Enter") grid.current?.focus();
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  const onSort = (key) =>
    setSort((old) => (old.key === key ? { key, direction: -old.direction } : { key, direction: TEXTUAL.has(key) ? 1 : -1 }));

  if (!state.runs.size) return html`<h1 tabindex="-1" class="sr">Runs</h1><${NoRuns} source=${state.source} live=${live} />`;
  return html`<div class="fleet">
    <div class="toolbar">
      <h1 tabindex="-1">Runs</h1>
      <input ref=${filter} type="search" value=${text} placeholder="Filter by run or task  ( / )" aria-label="Filter runs by name, task or state"
        spellcheck="false" autocomplete="off" onInput=${(event) => setText(event.target.value)} onKeyDown=${onFilterKey} />
      <div class="chips" role="group" aria-label="Filter by state">
        <${Toggle} label=${html`all <b>${count(state.runs.size)}</b>`} on=${only === null} onChange=${() => setOnly(null)} />
        ${STATES.map((name) => html`<${Toggle} label=${html`<${State} state=${name} /> <b>${count(counts[name])}</b>`} on=${only === name}
          onChange=${(on) => setOnly(on ? name : null)} />`)}
      </div>
      <span class="shown" role="status">${rows.length === state.runs.size ? "" : `${count(rows.length)} shown`}</span>
    </div>
    ${rows.length
      ? html`<${Grid} handle=${grid} initial=${chosen} name="fleet" className="fill" label="Runs" columns=${COLUMNS} rows=${rows} rowKey=${(run) => run.run_id} rowHeight=${34}
          sort=${sort} onSort=${onSort} context=${minute} tone=${(run) => (run.state === "finished" || run.state === "silent" ? "past" : "")}
          onOpen=${(run) => { location.hash = runLink(run.run_id); }} />`
      : html`<${Empty} title="No run matches"><p>Press Esc in the filter to clear it, or choose another state.</p></${Empty}>`}
  </div>`;
}

function NoRuns({ source, live }) {
  if (source.reading) return html`<${Empty} title="Reading records"><p>No run has appeared in the ${count(source.records)} records read so far.</p></${Empty}>`;
  if (!live) return html`<${Empty} title="No runs at this time"><p>Move the time slider forward, or record again: <code>tamiyo record FOLDER</code>.</p></${Empty}>`;
  return html`<${Empty} title="No runs yet">
    <p>A run appears here with its first record. Attach a training loop to the brokers at <code>${source.name}</code>
      (<code>TAMIYO_KAFKA_BOOTSTRAP_SERVERS</code>):</p>
    <pre>from tamiyo.host import attach

handle = attach(model, optimizer, example_input=inputs, loss_fn=loss_fn)
for inputs, labels in loader:
    ...  # forward, backward, optimizer.step()
    handle.step(loss=loss)
handle.close()</pre>
    <p>Or run <code>tamiyo demo --watch</code>, which trains a small network.</p>
  </${Empty}>`;
}
