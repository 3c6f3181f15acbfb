// The network as a graph of layers, coloured by a metric, with its seeds as badges; and the same as a table.
import { Component, createRef, cytoscape, html, useMemo, useRef, useState } from "./vendor/vendor.js";
import { METRICS, css, ink, palette, rgb, scaleOf } from "./colours.js";
import { compact, count, fixed, many, num, shorten } from "./format.js";
import { Choice, Id, Panel, Text } from "./widgets.js";
import { Plain } from "./table.js";

const WIDE = 132;
const HIGH = 46;
const DEEP = 4; // A chain longer than this runs from top to bottom, so that its names can be read.
const LEVEL = 60; // Pixels a level of a deep graph,
const TALL = 620; // as long as they fit into these.
const SMALLEST = 0.55; // The zoom below which names cannot be read; the graph is then panned instead.
const BADGES = [["dormant_seeds", "dormant"], ["active_seeds", "active"], ["fossilized_seeds", "fossilized"], ["error_seeds", "error"]];

/** The badges of a node as an image: a circle, a disc, a diamond and a cross, each with its count. */
function badges(counts, colour) {
  let x = 6;
  const parts = [];
  for (const [name, many] of counts) {
    if (!many) continue;
    const shape = {
      dormant: `<circle cx="${x + 4}" cy="8" r="3" fill="none" stroke="${colour}" stroke-width="1.4"/>`,
      active: `<circle cx="${x + 4}" cy="8" r="3.6" fill="${colour}"/>`,
      fossilized: `<path d="M${x + 4} 3.6l4.4 4.4l-4.4 4.4l-4.4 -4.4z" fill="${colour}"/>`,
      error: `<path d="M${x + 1} 5l6 6m0 -6l-6 6" stroke="${colour}" stroke-width="2" fill="none"/>`,
    }[name];
    parts.push(`${shape}<text x="${x + 10}" y="11.5" font-family="sans-serif" font-size="10" fill="${colour}">${Number(many)}</text>`);
    x += 16 + 6 * String(many).length;
  }
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDE}" height="16" viewBox="0 0 ${WIDE} 16">${parts.join("")}</svg>`;
  return `data:image/svg+xml;utf8,${encodeURIComponent(svg)}`;
}

/** The number of layers on the longest path, or more where the graph is wide. */
function depth({ nodes, edges }) {
  const level = new Map(nodes.map(({ layer_id: id }) => [id, 1]));
  for (let round = 0; round < 2; round += 1) {
    for (const { source, target } of edges) {
      if (level.has(source) && level.has(target)) level.set(target, Math.max(level.get(target), level.get(source) + 1));
    }
  }
  return Math.max(0, ...level.values());
}

class Drawing extends Component {
  constructor(props) {
    super(props);
    this.box = createRef();
  }

  shouldComponentUpdate(next) {
    const changed = ["topology", "revision", "metric", "theme", "selected"].some((name) => next[name] !== this.props[name]);
    return changed;
  }

  componentDidMount() {
    this.props.handle.current = this; // Preact gives `ref` itself to components as a property.
    this.make();
    this.observer = new ResizeObserver(() => {
      this.graph?.resize();
      this.fit();
    });
    this.observer.observe(this.box.current);
  }

  componentDidUpdate(before) {
    if (before.topology !== this.props.topology || before.theme !== this.props.theme) {
      this.graph.destroy();
      this.make();
    } else this.paint();
  }

  componentWillUnmount() {
    this.observer.disconnect();
    this.graph.destroy();
  }

  make() {
    const { topology } = this.props;
    const colours = palette();
    const known = new Set(topology.nodes.map((node) => node.layer_id));
    this.graph = cytoscape({
      container: this.box.current,
      elements: [
        ...topology.nodes.map((node) => ({ data: { id: node.layer_id, label: `${shorten(node.layer_id, 18)}\n${shorten(node.type, 12)} ${compact(node.parameters)}`, protected: node.protected ? 1 : 0 } })),
        ...topology.edges.filter(({ source, target }) => known.has(source) && known.has(target)).map(({ source, target, kind }, index) => ({ data: { id: `edge ${index}`, source, target, kind } })),
      ],
      style: [
        { selector: "node", style: { shape: "round-rectangle", width: WIDE, height: HIGH, label: "data(label)", "text-wrap": "wrap", "text-valign": "center", "text-halign": "center", "text-margin-y": -7, "font-size": 11, "font-family": "system-ui, sans-serif", "background-color": colours.grey, color: colours.text, "border-width": 1, "border-color": colours.muted, "background-fit": "none", "background-position-y": "100%", "background-width": WIDE, "background-height": 16, "background-image-smoothing": "yes" } },
        { selector: "node[ink]", style: { color: "data(ink)", "background-color": "data(fill)", "background-image": "data(badges)" } },
        { selector: "node[protected = 1]", style: { "border-style": "dashed" } },
        { selector: "node[problem = 1]", style: { "border-width": 3, "border-color": colours.orange } },
        { selector: "node[chosen = 1]", style: { "border-width": 3, "border-color": colours.focus } },
        { selector: "edge", style: { width: 1.5, "line-color": colours.muted, "target-arrow-color": colours.muted, "target-arrow-shape": "triangle", "arrow-scale": 0.8, "curve-style": "bezier" } },
      ],
      layout: { name: "dagre", rankDir: this.props.deep ? "TB" : "LR", nodeSep: 16, rankSep: this.props.deep ? 26 : 34, edgeSep: 8, animate: false, useDagreEdgeControlPoints: true, automaticDagreEdgeStyle: true },
      userZoomingEnabled: false, // The wheel scrolls the page; buttons zoom.
      autoungrabify: true,
      boxSelectionEnabled: false,
      pixelRatio: "auto",
    });
    this.graph.on("tap", "node", (event) => this.props.onSelect(event.target.id()));
    this.paint();
    this.fit();
  }

  /** Fit the graph, or show its start where it would become too small to read. */
  fit() {
    const { graph } = this;
    if (!graph) return;
    this.fitAll();
    if (graph.zoom() > 1.25) {
      graph.zoom(1.25);
      graph.center();
    }
    if (graph.zoom() >= SMALLEST) return;
    graph.zoom(SMALLEST);
    graph.center();
    const box = graph.elements().renderedBoundingBox();
    graph.panBy({ x: box.x1 < 0 && !this.props.deep ? 10 - box.x1 : 0, y: box.y1 < 0 && this.props.deep ? 10 - box.y1 : 0 });
  }

  fitAll() {
    this.graph.fit(undefined, 10);
  }

  zoomBy(factor) {
    const { graph } = this;
    graph.zoom({ level: graph.zoom() * factor, renderedPosition: { x: graph.width() / 2, y: graph.height() / 2 } });
  }

  paint() {
    const { layers, metric, selected } = this.props;
    const index = new Map((layers?.layer_id ?? []).map((id, place) => [id, place]));
    const scale = layers ? scaleOf(metric, layers[metric] ?? []) : null;
    this.graph.batch(() => {
      for (const node of this.graph.nodes()) {
        const place = index.get(node.id());
        node.data("chosen", node.id() === selected ? 1 : 0);
        if (place === undefined) continue;
        const fill = rgb(scale.ramp, scale.share(layers[metric]?.[place] ?? null));
        const text = ink(fill);
        const image = badges(BADGES.map(([column, name]) => [name, layers[column]?.[place] ?? 0]), text);
        node.data({ fill: css(fill), ink: text, badges: image, problem: layers.problematic?.[place] ? 1 : 0 });
      }
    });
  }

  render({ label, deep, tall }) {
    return html`<div class=${deep ? "network deep" : "network"} ref=${this.box} role="img" aria-label=${label} style=${deep ? { height: `${tall}px` } : undefined}></div>`;
  }
}

/** The ramp of colours with its ends. */
export function Ramp({ metric, scale }) {
  const stops = Array.from({ length: 12 }, (_, index) => css(rgb(scale.ramp, index / 11)));
  return html`<span class="ramp" aria-hidden="true"><span class="n">${num(scale.low, 2)}</span><span class="bar" style=${{ background: `linear-gradient(to right, ${stops.join(",")})` }}></span><span class="n">${num(scale.high, 2)}</span></span>`;
}

const HEAD = ["layer", "type", "parameters", "health", "growth score", "contribution", "gradient norm", "update ratio", "seeds: dormant, active, fossilized, error", "learning rate"];

export function Graph({ state, theme }) {
  const [metric, setMetric] = useState("health");
  const [selected, setSelected] = useState(null);
  const drawing = useRef(null);
  const { topology, layers } = state;
  const levels = useMemo(() => (topology ? depth(topology) : 0), [topology]);
  if (!topology?.nodes.length) return html`<${Panel} title="Layers"><p class="nothing tall">The run's topology has not been published so far.</p></${Panel}>`;
  const index = new Map((layers?.layer_id ?? []).map((id, place) => [id, place]));
  const value = (column, id) => (index.has(id) ? (layers[column]?.[index.get(id)] ?? null) : null);
  const problems = layers ? layers.layer_id.filter((_, place) => layers.problematic?.[place]).length : 0;
  const scale = scaleOf(metric, layers?.[metric] ?? []);
  const seeds = (id) => BADGES.map(([column]) => count(value(column, id))).join(", ");
  const rows = topology.nodes.map((node) => {
    const id = node.layer_id;
    return [html`<${Id} id=${id} most=${24} />`, html`<${Text}>${shorten(node.type, 20)}${node.protected ? ", protected" : ""}</${Text}>`, count(node.parameters), fixed(value("health", id), 2), num(value("growth_score", id)), num(value("contribution", id)), num(value("gradient_norm", id)), num(value("update_ratio", id)), seeds(id), value("learning_rate_scale", id) === null ? "–" : `× ${num(value("learning_rate_scale", id))}`];
  });
  const node = topology.nodes.find(({ layer_id: id }) => id === selected);
  return html`<${Panel} title="Layers" className="graph" actions=${html`<${Ramp} metric=${metric} scale=${scale} />
      <${Choice} label="colour" value=${metric} onChange=${setMetric} options=${Object.entries(METRICS).map(([key, { label }]) => [key, label])} />
      <span class="zoom">
        <button type="button" aria-label="Zoom out" onClick=${() => drawing.current.zoomBy(0.8)}>−</button>
        <button type="button" aria-label="Zoom in" onClick=${() => drawing.current.zoomBy(1.25)}>+</button>
        <button type="button" aria-label="Fit the graph" onClick=${() => drawing.current.fitAll()}>fit</button>
      </span>`}>
    <${Drawing} handle=${drawing} topology=${topology} layers=${layers} revision=${state.revisions.layers} metric=${metric} theme=${theme}
      selected=${selected} onSelect=${setSelected} deep=${levels > DEEP} tall=${Math.min(TALL, 24 + LEVEL * levels)}
      label=${`Graph of ${many(topology.nodes.length, "layer")} coloured by ${METRICS[metric].label}; ${problems} need attention. The table below has the same.`} />
    <p class="about">${node
      ? html`<b><${Id} id=${node.layer_id} most=${40} /></b> ${shorten(node.type, 20)}, ${count(node.parameters)} parameters · health ${fixed(value("health", selected), 2)} · growth score ${num(value("growth_score", selected))} · gradient ${num(value("gradient_norm", selected))} · kernels ${count(value("kernel_parameters", selected))} parameters, alpha ${num(value("alpha", selected))}`
      : html`<span class="key"><span>○ dormant</span><span>● active</span><span>◆ fossilized</span><span>✕ error</span> seeds; <span class="dashed">dashed</span> protected, <span class="thick">thick</span> needs attention</span>`}</p>
    <details><summary>Table of layers</summary><${Plain} label="Layers" head=${HEAD} rows=${rows} numbers=${[2, 3, 4, 5, 6, 7, 9]} /></details>
  </${Panel}>`;
}
