// The installation: stages with their lag, topics with their rates, what went wrong, standing orders.
import { html } from "./vendor/vendor.js";
import { ago, clock, compact, count, many, moment, num, percent, shorten } from "./format.js";
import { runLink } from "./route.js";
import { Plain } from "./table.js";
import { Fact, Id, Panel, Text } from "./widgets.js";

const age = (now, ms) => (ms ? html`<span title=${moment(ms)}>${ago(Math.max(0, now - ms))}</span>` : "–");
const warn = (value) => (value > 0 ? html`<span class="warn">${count(value)}</span>` : count(value));

function stageRow(stage) {
  const parts = Object.entries(stage.lag_by_topic ?? {}).map(([topic, lag]) => `${topic}: ${count(lag)}`);
  const unassigned = stage.unassigned ?? [];
  const note = stage.problem ? html`<span class="warn"><${Text}>${shorten(stage.problem, 120)}</${Text}></span>` : unassigned.length ? html`<span class="warn"><${Text}>${many(unassigned.length, "partition")} without a member: ${unassigned.slice(0, 4).map(([topic, partition]) => `${topic} ${partition}`).join(", ")}${unassigned.length > 4 ? " …" : ""}</${Text}></span>` : "";
  return [html`<${Text}>${stage.stage}</${Text}>`, html`<${Id} id=${stage.group} most=${30} />`, count(stage.members), html`<span title=${parts.join("\n")}>${count(stage.lag)}</span>`, note];
}

function topicRow(topic, now) {
  return [
    html`<span title=${topic.description}><${Id} id=${topic.name} most=${44} /></span>`,
    html`<${Text}>${topic.writer}</${Text}>`,
    html`<${Text}>${(topic.readers ?? []).join(", ")}</${Text}>`,
    count(topic.partitions),
    compact(topic.records),
    topic.rate === null ? "–" : num(topic.rate, 3),
    age(now, topic.newest_ms),
    warn(topic.dead_letters),
    warn(topic.late),
  ];
}

export function Installation({ state }) {
  const { source, now_ms: now } = state;
  const topics = [...state.topics.values()];
  const stages = [...state.stages.values()];
  const letters = state.dead_letters ?? [];
  const orders = state.control ?? [];
  const sum = (name) => topics.reduce((total, topic) => total + (topic[name] ?? 0), 0);
  return html`<header class="facts"><div class="title"><h1 tabindex="-1">Installation</h1></div>
      <dl>
        <${Fact} label=${source.live ? "Brokers" : "Recording"} wide><${Id} id=${source.name} most=${36} copy /></${Fact}>
        ${source.prefix && html`<${Fact} label="Prefix"><${Id} id=${source.prefix} most=${20} /></${Fact}>`}
        <${Fact} label="Records read">${count(source.records)}</${Fact}>
        <${Fact} label="Rate" title="records a second over the last ten seconds">${num(sum("rate"))} / s</${Fact}>
        <${Fact} label="From" title=${moment(source.from_ms)}>${clock(source.from_ms)} <span class="of">UTC</span></${Fact}>
        <${Fact} label="To" title=${moment(source.to_ms)}>${clock(source.to_ms)} <span class="of">UTC</span></${Fact}>
        <${Fact} label="Dead letters">${warn(sum("dead_letters"))}</${Fact}>
        <${Fact} label="Late">${warn(sum("late"))}</${Fact}>
        <${Fact} label="Shed" title=${`share of the layer-signals that intake shed under overload: ${count(state.shed?.shed)} shed, ${count(state.shed?.signals)} in windows`}>${percent(state.shed?.share ?? null, 2)} </${Fact}>
        <${Fact} label="Not decodable">${warn(source.undecodable)}</${Fact}>
      </dl></header>
    <div class="panels">
      <${Panel} title="Stages" className="wide">${stages.length
        ? html`<${Plain} label="Stages" head=${["stage", "consumer group", "members", "lag", "notes"]} numbers=${[2, 3]} rows=${stages.map(stageRow)} />`
        : html`<p class="nothing">${source.live ? "The consumer groups have not been read so far." : "A recording has no consumer groups: members and lag are known only where the page reads the topics."}</p>`}</${Panel}>
      <${Panel} title="Topics" className="wide"><${Plain} label="Topics" head=${["topic", "written by", "read by", "partitions", "records", "records / s", "newest", "dead letters", "late"]} numbers=${[3, 4, 5, 6, 7, 8]} rows=${topics.map((topic) => topicRow(topic, now))} /></${Panel}>
      <${Panel} title="Standing orders" className="wide"><${Plain} label="Standing orders" empty="no orders are in force" head=${["run", "orders", "protected layers", "by", "reason", "since"]}
        rows=${orders.map((order) => [order.run_id === "*" ? "all runs" : html`<${Id} id=${order.run_id} most=${30} link=${runLink(order.run_id)} />`, [order.paused && "paused", order.dry_run && "dry run"].filter(Boolean).join(", ") || "–", html`<${Text}>${shorten((order.protected_layers ?? []).join(", ") || "–", 60)}</${Text}>`, html`<${Text}>${shorten(order.issued_by || "–", 40)}</${Text}>`, html`<${Text}>${shorten(order.reason || "–", 120)}</${Text}>`, moment(order.time_ms)])} /></${Panel}>
      <${Panel} title="Dead letters" className="wide"><${Plain} label="Newest dead letters" empty="no dead letters" head=${["time", "topic", "run", "reason"]}
        rows=${letters.map((letter) => [moment(letter.time_ms), html`<${Id} id=${letter.topic} most=${44} />`, letter.run_id ? html`<${Id} id=${letter.run_id} most=${30} link=${runLink(letter.run_id)} />` : "–", html`<${Text}>${shorten(letter.reason, 200)}</${Text}>`])} /></${Panel}>
    </div>`;
}
