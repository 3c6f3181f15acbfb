// Policies: their versions, what each learned from, the gates, and the rewards that it earned.
import { html, useState } from "./vendor/vendor.js";
import { bytes, compact, count, delta, fixed, moment, num, percent, shorten, words } from "./format.js";
import { Chart } from "./charts.js";
import { Empty, Fact, Id, Panel, State, Text } from "./widgets.js";
import { Plain } from "./table.js";

// Charts that are always shown, first; the others follow in a fold.
const MAIN = [
  ["losses", "policy_loss", "policy loss"],
  ["losses", "value_loss", "value loss"],
  ["losses", "reward_loss", "reward loss"],
  ["losses", "entropy", "entropy, nats"],
  ["charts", "coverage", "calibration coverage"],
  ["losses", "approx_kl", "KL divergence"],
];

const short = (name) => name.replace(/^(losses|charts)\//, "");
const pick = (version, group, name) => version[group]?.[name] ?? version[group]?.[`${group}/${name}`] ?? null;

function names(versions, group) {
  return [...new Set(versions.flatMap((version) => Object.keys(version[group] ?? {}).map(short)))];
}

function Small({ versions, group, name, title, theme, revision }) {
  const values = versions.map((version) => pick(version, group, name));
  const known = values.filter((value) => value !== null);
  if (!known.length) return null;
  return html`<figure><figcaption>${title}</figcaption><${Chart} kind=${name} theme=${theme} revision=${revision} height=${130} sync="policy" xName="version" bars whole
    label=${`${title} by version; version ${versions.at(-1).version}: ${num(values.at(-1))}`}
    data=${() => [versions.map(({ version }) => version), values]} series=${(colours) => [{ label: title, stroke: colours.blue }]} /></figure>`;
}

/** The mean reward of each version's decisions with its 95 % interval. */
function Rewards({ versions, theme, revision }) {
  const judged = versions.filter(({ mean_reward: mean }) => (mean ?? null) !== null);
  if (!judged.length) return html`<p class="nothing">No decision of these versions has a reward so far.</p>`;
  const edge = (side) => judged.map((version) => ((version.reward_half_width ?? null) === null ? null : version.mean_reward + side * version.reward_half_width));
  const draw = (u, colours) => {
    const { ctx } = u;
    ctx.save();
    ctx.strokeStyle = colours.blue;
    ctx.lineWidth = 1.5 * devicePixelRatio;
    const cap = 3 * devicePixelRatio;
    for (const version of judged) {
      if ((version.reward_half_width ?? null) === null) continue;
      const x = u.valToPos(version.version, "x", true);
      const [low, high] = [-1, 1].map((side) => u.valToPos(version.mean_reward + side * version.reward_half_width, "y", true));
      ctx.beginPath();
      for (const y of [low, high]) {
        ctx.moveTo(x - cap, y);
        ctx.lineTo(x + cap, y);
      }
      ctx.moveTo(x, low);
      ctx.lineTo(x, high);
      ctx.stroke();
    }
    ctx.restore();
  };
  return html`<figure><figcaption>mean reward, with its 95 % interval</figcaption><${Chart} kind="reward" theme=${theme} revision=${revision} height=${180} sync="policy" xName="version" bars whole
    label=${`Mean reward by version: ${judged.slice(-6).map((version) => `version ${version.version} ${delta(version.mean_reward)}`).join(", ")}`}
    data=${() => [judged.map(({ version }) => version), judged.map(({ mean_reward: mean }) => mean), edge(-1), edge(1)]}
    series=${(colours) => [{ label: "mean reward", stroke: colours.blue }, { label: "from", stroke: "transparent", points: { show: false } }, { label: "to", stroke: "transparent", points: { show: false } }]} draw=${draw} /></figure>`;
}

function Gates({ gates }) {
  const failed = Object.entries(gates?.failed ?? {}).filter(([, many]) => many > 0);
  const passed = gates?.passed ?? [];
  if (!passed.length && !failed.length) return html`<span class="of">–</span>`;
  return html`<span title=${[...passed.map((name) => `${words(name)}: passed`), ...failed.map(([name, many]) => `${words(name)}: failed ${many} times before`)].join("\n")}>
    <span class="good">✓ ${passed.length}</span>${failed.length > 0 && html` <span class="poor">✕ ${failed.map(([name, many]) => `${words(name)} × ${many}`).join(", ")}</span>`}</span>`;
}

const HEAD = ["version", "status", "released", "gates", "experiences", "updates", "decisions", "executed", "mean reward", "mean worth", "confidence", "size"];

function row(version) {
  return [
    html`v${version.version}${(version.parent_version ?? null) === null ? "" : html` <span class="of">from v${version.parent_version}</span>`}`,
    html`<span title=${shorten(version.reason ?? "", 300)}>${version.status ? html`<${State} state=${version.status} />` : html`<span class="of">known from decisions only</span>`}</span>${(version.fallback_version ?? null) === null ? "" : html` <span class="of">to v${version.fallback_version}</span>`}`,
    moment(version.time_ms),
    html`<${Gates} gates=${version.gates} />`,
    compact(version.experiences),
    count(version.updates),
    count(version.decisions),
    count(version.executed),
    html`${delta(version.mean_reward)}${(version.reward_half_width ?? null) === null ? "" : html` <span class="of">± ${fixed(version.reward_half_width)}</span>`}`,
    delta(version.mean_worth),
    percent(version.mean_confidence, 0),
    bytes(version.size_bytes),
  ];
}

function One({ policy, theme, revision }) {
  const [more, setMore] = useState(false);
  const versions = [...policy.versions.values()].sort((a, b) => a.version - b.version);
  const { orders } = policy;
  const main = new Set(MAIN.map(([group, name]) => `${group}/${name}`));
  const others = ["losses", "charts"].flatMap((group) => names(versions, group).filter((name) => !main.has(`${group}/${name}`)).map((name) => [group, name, words(name)]));
  const learned = ["losses", "charts"].flatMap((group) => names(versions, group));
  const newest = versions.at(-1);
  return html`<section aria-label=${`Policy ${policy.name || "not announced"}`}>
    <header class="facts"><div class="title"><h1 tabindex="-1">Policy ${policy.name ? html`<${Id} id=${policy.name} most=${40} copy />` : html`<span class="of">not announced</span>`}</h1></div>
      ${orders && (orders.frozen || (orders.pinned_version ?? null) !== null) && html`<p class="orders">Standing orders by <${Text}>${shorten(orders.issued_by || "an operator", 40)}</${Text}>: ${[(orders.pinned_version ?? null) !== null && `version ${orders.pinned_version} is pinned`, orders.frozen && "learning is frozen"].filter(Boolean).join(", ")}${orders.reason ? html` (<${Text}>${shorten(orders.reason, 200)}</${Text}>)` : ""}</p>`}
      ${newest && html`<dl><${Fact} label="Newest version">v${newest.version}</${Fact}><${Fact} label="Versions">${count(versions.length)}</${Fact}><${Fact} label="Rolled back">${count(versions.filter(({ status }) => status === "rolled_back").length)}</${Fact}>
        <${Fact} label="Experiences">${compact(newest.experiences)}</${Fact}><${Fact} label="Updates">${count(newest.updates)}</${Fact}><${Fact} label="Decisions">${count(versions.reduce((sum, version) => sum + (version.decisions ?? 0), 0))}</${Fact}></dl>`}
    </header>
    <div class="panels">
      <${Panel} title="Rewards by version" className="wide"><${Rewards} versions=${versions} theme=${theme} revision=${revision} /></${Panel}>
      <${Panel} title="Learning by version" className="wide" actions=${others.length > 0 && html`<button type="button" class="toggle" aria-pressed=${String(more)} onClick=${() => setMore(!more)}>all ${count(MAIN.length + others.length)} measurements</button>`}>
        ${!learned.length && html`<p class="nothing">No update has been measured so far.</p>`}
        <div class="small-charts">${[...MAIN, ...(more ? others : [])].map(([group, name, title]) => html`<${Small} key=${`${group}/${name}`} versions=${versions} group=${group} name=${name} title=${title} theme=${theme} revision=${revision} />`)}</div>
      </${Panel}>
      <${Panel} title="Versions" className="wide"><${Plain} label="Versions, newest first" head=${HEAD} rows=${versions.toReversed().map(row)} numbers=${[4, 5, 6, 7, 8, 9, 10, 11]} /></${Panel}>
    </div>
  </section>`;
}

export function Policy({ state, theme }) {
  const policies = [...state.policies.values()];
  if (!policies.length) return html`<h1 tabindex="-1" class="sr">Policy</h1><${Empty} title="No policy has been announced"><p>Decisions come from the policy that is shipped with the package until a learner releases a version: <code>tamiyo learner</code>.</p></${Empty}>`;
  return policies.map((policy) => html`<${One} key=${policy.name} policy=${policy} theme=${theme} revision=${state.revisions.policies} />`);
}
