// uPlot as a component: made once, given new data, resized with its box, destroyed with it.
import { Component, createRef, html, uPlot } from "./vendor/vendor.js";
import { palette } from "./colours.js";
import { num } from "./format.js";

const FONT = "11px system-ui, sans-serif";
const SIDE = 52; // Pixels left of the plot, for the numbers of the axis.

/** A number on an axis: as short as it is exact. */
function tick(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(4))}M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(4))}k`;
  return size > 0 && size < 1e-3 ? value.toExponential(0) : String(Number(value.toPrecision(4)));
}

/** The range of x: wider than the data by `pad`; around a single point, which uPlot would put into 0..100. */
function spread(x, low, high, pad) {
  if (x.length === 1) return [x[0] - 1, x[0] + 1];
  return low === null ? [0, 1] : [low - pad, high + pad];
}

/** The options that all charts share. */
function base({ series, height, width, log, whole, colours, range, sync, bars }) {
  const axis = { stroke: colours.muted, font: FONT, grid: { stroke: colours.faint, width: 1 }, ticks: { stroke: colours.faint, width: 1, size: 4 } };
  const short = (u, splits) => splits.map((value) => (value === null ? "" : tick(value)));
  return {
    width,
    height,
    padding: [8, 20, 0, 0],
    legend: { show: false },
    cursor: { y: false, points: { size: 6 }, sync: sync ? { key: sync } : undefined, drag: { x: true, y: false } },
    scales: { x: { time: false, range: (u, low, high) => spread(u.data[0], low, high, whole ? 0.5 : 0) }, y: { distr: log ? 3 : 1, range } },
    axes: [
      { ...axis, size: 30, values: short, ...(whole ? { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] } : {}) },
      { ...axis, size: SIDE, space: 28, values: short },
    ],
    series: [{}, ...series.map((each) => ({ width: 1.5, spanGaps: true, points: { show: bars || false }, ...each }))],
  };
}

/** A plugin that shows the numbers under the cursor. */
function readout(names, xName) {
  let box = null;
  return {
    hooks: {
      init(u) {
        box = document.createElement("div");
        box.className = "readout";
        box.hidden = true;
        u.over.append(box);
      },
      setCursor(u) {
        const { idx, left } = u.cursor;
        box.hidden = idx === null || idx === undefined || left < 0;
        if (box.hidden) return;
        const lines = names.map((name, index) => [name, u.data[index + 1]?.[idx]]).filter(([, value]) => value !== null && value !== undefined);
        box.textContent = [`${xName} ${u.data[0][idx]}`, ...lines.map(([name, value]) => `${name} ${num(value, 4)}`)].join("\n");
        const right = left > u.over.clientWidth / 2;
        box.style.left = right ? "" : `${left + 12}px`;
        box.style.right = right ? `${u.over.clientWidth - left + 12}px` : "";
      },
    },
  };
}

/**
 * A chart with these properties; a change of `kind` or `theme` makes it anew, a change of `revision` gives it new data.
 *
 * - `data()`: [x, y1, y2, ...]; `series(colours)`: label, stroke, ... of each y; `label`: what the chart shows, in words.
 * - `height`, in pixels; `log`; `whole`: x is a small whole number; `range(u, low, high)` of y; `xName`; `sync`: key of charts that share their cursor.
 * - `draw(u, colours)`: drawn on top; `onPlace({left, width, low, high})`: where the plot lies and which x it shows.
 */
export class Chart extends Component {
  constructor(props) {
    super(props);
    this.box = createRef();
  }

  shouldComponentUpdate(next) {
    const { kind, theme, revision, label } = this.props;
    if (next.kind !== kind || next.theme !== theme) {
      this.remake = true;
      return true;
    }
    if (next.revision !== revision) this.fresh = true;
    return next.revision !== revision || next.label !== label;
  }

  componentDidMount() {
    this.make();
    this.observer = new ResizeObserver(() => {
      const width = this.box.current?.clientWidth;
      if (width && width !== this.plot.width) this.plot.setSize({ width, height: this.props.height });
    });
    this.observer.observe(this.box.current);
  }

  componentDidUpdate() {
    if (this.remake) {
      this.plot.destroy();
      this.make();
    } else if (this.fresh) {
      this.plot.setData(this.props.data(), !this.zoomed);
      if (this.zoomed) this.plot.redraw();
    }
    this.remake = this.fresh = false;
  }

  componentWillUnmount() {
    this.observer.disconnect();
    this.plot.destroy();
  }

  make() {
    const { props } = this;
    const colours = palette();
    const series = props.series(colours);
    const width = this.box.current.clientWidth || 600;
    const options = base({ ...props, series, width, colours });
    const place = (u) => {
      const { min, max } = u.scales.x;
      const range = this.plot && u.data[0].length ? [u.data[0][0], u.data[0].at(-1)] : null;
      this.zoomed = range !== null && (min > range[0] || max < range[1]);
      const left = u.over.offsetLeft;
      const wide = u.over.offsetWidth;
      const key = `${left} ${wide} ${min} ${max}`;
      if (key === this.placed || !props.onPlace) return;
      this.placed = key;
      this.props.onPlace({ left, width: wide, low: min, high: max });
    };
    options.plugins = [readout(series.map((each) => each.label), props.xName ?? "step"), { hooks: { draw: [(u) => this.props.draw?.(u, colours), place] } }];
    this.zoomed = false;
    this.plot = new uPlot(options, props.data(), this.box.current);
  }

  render({ label, height }) {
    return html`<div class="chart" ref=${this.box} role="img" aria-label=${label} style=${{ height: `${height}px` }}></div>`;
  }
}

/** The meaning of a chart's lines; `entries` are [name, class of its sign]. */
export const Legend = ({ entries }) =>
  html`<ul class="legend">${entries.map(([name, sign]) => html`<li><span class=${`sign-${sign}`} aria-hidden="true"></span>${name}</li>`)}</ul>`;
