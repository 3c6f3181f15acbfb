// Layers by steps as a heat map: hover or arrow keys read a cell.
import { Component, createRef, html, useMemo, useState } from "./vendor/vendor.js";
import { METRICS, palette, rgb, scaleOf } from "./colours.js";
import { count, num, shorten } from "./format.js";
import { Ramp } from "./graph.js";
import { Choice, Panel } from "./widgets.js";

const ROW = 18; // Pixels a layer, less where many layers must fit.
const MOST = 420; // Pixels of all layers together.
const NAMED = 11; // The smallest row that has room for the layer's name.

class Map_ extends Component {
  constructor(props) {
    super(props);
    this.canvas = createRef();
    this.box = createRef();
    this.state = { cell: null };
  }

  componentDidMount() {
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.box.current);
    this.draw();
  }

  shouldComponentUpdate(next, state) {
    return ["heat", "revision", "metric", "theme"].some((name) => next[name] !== this.props[name]) || state.cell !== this.state.cell;
  }

  componentDidUpdate() {
    this.draw();
  }

  componentWillUnmount() {
    this.observer.disconnect();
  }

  rowHeight() {
    return Math.max(2, Math.min(ROW, Math.floor(MOST / Math.max(1, this.props.heat.layer_id.length))));
  }

  draw() {
    const { heat, metric, scale } = this.props;
    const canvas = this.canvas.current;
    const width = this.box.current.clientWidth;
    const height = this.rowHeight() * heat.layer_id.length;
    const ratio = devicePixelRatio;
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
    const columns = heat.step.length;
    if (!columns || !width) return;
    const pixels = new ImageData(columns, heat.layer_id.length);
    for (let column = 0; column < columns; column += 1) {
      const values = heat[metric]?.[column] ?? [];
      for (let layer = 0; layer < heat.layer_id.length; layer += 1) {
        const [red, green, blue] = rgb(scale.ramp, scale.share(values[layer] ?? null));
        pixels.data.set([red, green, blue, 255], 4 * (layer * columns + column));
      }
    }
    const small = new OffscreenCanvas(columns, heat.layer_id.length);
    small.getContext("2d").putImageData(pixels, 0, 0);
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
    const { cell } = this.state;
    if (!cell) return;
    const [w, h] = [canvas.width / columns, canvas.height / heat.layer_id.length];
    context.lineWidth = 2 * ratio;
    context.strokeStyle = palette().text;
    context.strokeRect(cell[0] * w, cell[1] * h, Math.max(w, 3), Math.max(h, 3));
  }

  onMove(event) {
    const { heat } = this.props;
    const box = this.canvas.current.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * heat.step.length);
    const layer = Math.floor(((event.clientY - box.top) / box.height) * heat.layer_id.length);
    this.move(column, layer);
  }

  move(column, layer) {
    const { heat } = this.props;
    const cell = [Math.max(0, Math.min(heat.step.length - 1, column)), Math.max(0, Math.min(heat.layer_id.length - 1, layer))];
    if (cell.join() !== this.state.cell?.join()) this.setState({ cell });
  }

  onKey(event) {
    const { heat } = this.props;
    const [column, layer] = this.state.cell ?? [heat.step.length - 1, 0];
    const moves = { ArrowRight: [column + 1, layer], ArrowLeft: [column - 1, layer], ArrowDown: [column, layer + 1], ArrowUp: [column, layer - 1], Home: [0, layer], End: [heat.step.length - 1, layer] };
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.move(...(this.state.cell ? moves[event.key] : [column, layer]));
  }

  /** The worst layer of the newest column, in words. */
  newest() {
    const { heat, metric } = this.props;
    const values = heat[metric]?.at(-1) ?? [];
    let worst = -1;
    values.forEach((value, layer) => {
      if (value !== null && (worst < 0 || (metric === "health" ? value < values[worst] : value > values[worst]))) worst = layer;
    });
    if (worst < 0) return "not measured in the newest step";
    return `${metric === "health" ? "lowest" : "highest"} in step ${count(heat.step.at(-1))}: ${shorten(heat.layer_id[worst], 30)}, ${num(values[worst])}`;
  }

  render({ heat, metric }, { cell }) {
    const row = this.rowHeight();
    const known = cell && heat.step[cell[0]] !== undefined;
    const text = known
      ? html`step ${count(heat.step[cell[0]])} · <bdi>${shorten(heat.layer_id[cell[1]], 40)}</bdi> · ${METRICS[metric].label} <b>${num(heat[metric]?.[cell[0]]?.[cell[1]] ?? null, 4)}</b>`
      : html`<bdi>${this.newest()}</bdi>`;
    return html`<div class="heat">
      ${row >= NAMED && html`<ol class="names" aria-hidden="true">${heat.layer_id.map((id) => html`<li title=${shorten(id, 300)} style=${{ height: `${row}px`, lineHeight: `${row}px` }}><bdi>${shorten(id, 16)}</bdi></li>`)}</ol>`}
      <div class="cells" ref=${this.box} style=${{ height: `${row * heat.layer_id.length}px` }}>
        <canvas ref=${this.canvas} tabindex="0" role="img" aria-label=${`${METRICS[metric].label} of ${heat.layer_id.length} layers over ${heat.step.length} steps; ${this.newest()}. Arrow keys read cells.`}
          onMouseMove=${(event) => this.onMove(event)} onMouseLeave=${() => this.setState({ cell: null })} onBlur=${() => this.setState({ cell: null })} onKeyDown=${(event) => this.onKey(event)}></canvas>
      </div>
      <div class="ends"><span>step ${count(heat.step[0])}</span><span>${count(heat.step.at(-1))}</span></div>
      <output class="about">${text}</output>
    </div>`;
  }
}

export function Heat({ state, theme }) {
  const [metric, setMetric] = useState("health");
  const { heat } = state;
  const scale = useMemo(() => (heat ? scaleOf(metric, (heat[metric] ?? []).flat()) : null), [heat, metric, state.revisions.heat]);
  const choice = html`<${Choice} label="metric" value=${metric} onChange=${setMetric} options=${Object.entries(METRICS).map(([key, { label }]) => [key, label])} />`;
  if (!heat?.step.length) return html`<${Panel} title="Layers by steps" actions=${choice}><p class="nothing tall">No layer has been measured so far.</p></${Panel}>`;
  return html`<${Panel} title="Layers by steps" actions=${html`<${Ramp} metric=${metric} scale=${scale} />${choice}`}>
    <${Map_} heat=${heat} revision=${state.revisions.heat} metric=${metric} theme=${theme} scale=${scale} />
  </${Panel}>`;
}
