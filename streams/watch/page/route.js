// Routes in the fragment: #/, #/run/RUN, #/run/RUN/decision/ID, #/policy, #/installation. Ids are URI-encoded.
const decoded = (part) => {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // A lone % in a link that was written by hand.
  }
};

/** The route of a fragment; what is not known is the fleet. */
export function parse(hash) {
  const [view, run, word, decision] = hash.replace(/^#?\/?/, "").split("/").map(decoded);
  if (view === "run" && run && word === "decision" && decision) return { view: "decision", params: { run, decision } };
  if (view === "run" && run) return { view: "run", params: { run } };
  if (view === "policy" || view === "installation") return { view, params: {} };
  return { view: "fleet", params: {} };
}

export const runLink = (run) => `#/run/${encodeURIComponent(run)}`;
export const decisionLink = (run, decision) => `${runLink(run)}/decision/${encodeURIComponent(decision)}`;

/** Where Esc leads from a route. */
export function parent(route) {
  return route.view === "decision" ? runLink(route.params.run) : "#/";
}
