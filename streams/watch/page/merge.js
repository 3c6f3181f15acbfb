// Documents of the server merged into one state a view: keyed entries replaced, series appended.
//
// A state has `revisions`: for each section the revision of the document that changed it last, so that a component
// redraws only when its section changed.
const MOST_POINTS = 6000; // The server thins at 2,000; this holds even if it does not.
const MOST_COLUMNS = 1200;
const MOST_DECISIONS = 2000;
const MOST_ERRORS = 200;

const SERIES = ["step", "time_ms", "train_loss", "validation_loss", "validation_accuracy", "parameters"];
const HEAT = ["step", "health", "gradient_norm", "growth_score"];

/** The state after a document; `state` is null before the first one, and changed in place otherwise. */
export function merge(state, document) {
  const fresh = state === null || document.whole !== false;
  const next = fresh ? { view: document.view, revisions: {} } : state;
  const { whole, ...sections } = document;
  MERGERS[document.view](next, sections, fresh);
  next.revision = document.revision;
  next.source = document.source;
  next.now_ms = document.now_ms;
  next.changes = (state?.changes ?? 0) + 1; // Rises also when a whole document replaces a state of the same revision.
  return next;
}

/** Note that a section changed with this document. */
const touch = (state, name) => {
  state.revisions[name] = (state.revisions[name] ?? 0) + 1;
};

function keyed(state, name, entries, key, fresh, most = Infinity) {
  if (fresh) state[name] = new Map();
  if (!entries) return;
  for (const entry of entries) state[name].set(entry[key], entry);
  if (state[name].size > most) {
    const byStep = [...state[name].values()].sort((a, b) => a.step - b.step);
    for (const oldest of byStep.slice(0, byStep.length - most)) state[name].delete(oldest[key]);
  }
  if (fresh || entries.length) touch(state, name);
}

function appended(state, name, part, columns, most, fresh) {
  if (!part) {
    if (fresh) state[name] = null;
    return;
  }
  if (fresh || part.replace || !state[name]) {
    state[name] = { ...part };
    touch(state, name);
    return;
  }
  if (!part.step?.length) return;
  for (const column of columns) {
    if (part[column]) state[name][column].push(...part[column]);
  }
  if (state[name].step.length > most) {
    for (const column of columns) {
      if (state[name][column]) state[name][column] = state[name][column].filter((_, index) => index % 2 === 1);
    }
  }
  touch(state, name);
}

function replaced(state, name, value, fresh) {
  if (fresh) state[name] = value ?? null;
  else if (value !== null && value !== undefined) state[name] = value;
  else return;
  touch(state, name);
}

const MERGERS = {
  fleet(state, document, fresh) {
    const before = fresh ? -1 : state.runs.size;
    keyed(state, "runs", document.runs, "run_id", fresh);
    let moved = state.runs.size !== before;
    for (const run of document.removed ?? []) moved = state.runs.delete(run) || moved;
    if (moved) {
      touch(state, "runs");
      touch(state, "members"); // Which runs there are, not only what they have.
    }
  },

  run(state, document, fresh) {
    replaced(state, "run", document.run, fresh);
    appended(state, "series", document.series, SERIES, MOST_POINTS, fresh);
    keyed(state, "decisions", document.decisions, "decision_id", fresh, MOST_DECISIONS);
    keyed(state, "projections", document.projections, "decision_id", fresh);
    replaced(state, "topology", document.topology, fresh);
    replaced(state, "layers", document.layers, fresh);
    appended(state, "heat", document.heat, HEAT, MOST_COLUMNS, fresh);
    keyed(state, "kernels", document.kernels, "kernel_id", fresh);
    if (fresh) state.errors = [];
    if (document.errors?.length) {
      const name = (e) => JSON.stringify([e.time_ms, e.step, e.layer_id, e.kernel_id, e.error_type, e.message]);
      const all = new Map([...state.errors, ...document.errors].map((error) => [name(error), error]));
      state.errors = [...all.values()].slice(-MOST_ERRORS);
      touch(state, "errors");
    }
  },

  decision(state, document, fresh) {
    const { rewards, view, revision, source, now_ms, ...rest } = document;
    for (const [name, value] of Object.entries(rest)) replaced(state, name, value, fresh);
    keyed(state, "rewards", rewards, "revision", fresh);
  },

  policy(state, document, fresh) {
    if (fresh) state.policies = new Map();
    for (const policy of document.policies ?? []) {
      const versions = new Map(state.policies.get(policy.name)?.versions);
      for (const version of policy.versions ?? []) versions.set(version.version, version);
      state.policies.set(policy.name, { ...policy, versions });
    }
    if (fresh || document.policies?.length) touch(state, "policies");
  },

  installation(state, document, fresh) {
    keyed(state, "topics", document.topics, "name", fresh);
    keyed(state, "stages", document.stages, "stage", fresh);
    for (const name of ["shed", "dead_letters", "control"]) replaced(state, name, document[name], fresh);
  },
};
