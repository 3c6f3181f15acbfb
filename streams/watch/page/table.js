// A table of many rows as an ARIA grid: only the rows in sight are in the document.
import { Component, createRef, html } from "./vendor/vendor.js";

const SPARE = 6; // Rows beyond each edge, so that scrolling shows no gap.

const compare = (a, b) => (typeof a === "string" && typeof b === "string" ? a.localeCompare(b) : a < b ? -1 : a > b ? 1 : 0);
const unknown = (value) => value === null || value === undefined;

/**
 * Rows in the order of a column; unknown values last, equal ones in their given order.
 *
 * @param {Array} rows Rows.
 * @param {{sort: (row: object) => any}} column The column.
 * @param {1 | -1} direction 1 ascending, -1 descending.
 */
export function sorted(rows, column, direction) {
  const pairs = rows.map((row) => [column.sort(row), row]);
  pairs.sort(([a], [b]) => {
    if (unknown(a) || unknown(b)) return unknown(a) - unknown(b);
    return direction * compare(a, b);
  });
  return pairs.map(([, row]) => row);
}

class Row extends Component {
  shouldComponentUpdate(next) {
    return ["row", "active", "index", "columns", "context"].some((name) => next[name] !== this.props[name]);
  }

  render({ row, id, index, active, columns, onClick, onOpen, tone, context }) {
    return html`<tr id=${id} aria-rowindex=${index + 2} aria-selected=${String(active)} class=${tone ?? ""}
      onClick=${() => onClick(index)} onDblClick=${() => onOpen?.(row)}>
      ${columns.map((column) => html`<td class=${column.class}>${column.cell(row, context)}</td>`)}
    </tr>`;
  }
}

/**
 * A table with these properties:
 *
 * - `columns`: {key, label, title, class, width, sort(row), cell(row, context)}; without `sort` it cannot be sorted by.
 * - `rows`: in the order to show; `rowKey(row)`: each row's key; `tone(row)`: each row's class, optional.
 * - `sort`: {key, direction} and `onSort(key)`.
 * - `onOpen(row)`: Enter or a double click.
 * - `handle`: a ref that gets this component (Preact gives `ref` itself to components as a property).
 * - `initial`: {active, scroll}: the key of the active row and the place of the scroll bar at first.
 * - `label`: the table's name; `rowHeight`: in pixels; `context`: passed to the cells.
 */
export class Grid extends Component {
  constructor(props) {
    super(props);
    this.state = { first: 0, height: 600, active: props.initial?.active ?? null };
    this.box = createRef();
    this.table = createRef();
    this.prefix = `${props.name}-row-`;
    this.onScroll = this.onScroll.bind(this);
    this.onKey = this.onKey.bind(this);
    this.onClick = this.onClick.bind(this);
  }

  componentDidMount() {
    if (this.props.handle) this.props.handle.current = this;
    if (this.props.initial?.scroll) this.box.current.scrollTop = this.props.initial.scroll;
    this.observer = new ResizeObserver(([entry]) => {
      const height = Math.round(entry.contentRect.height);
      if (height !== this.state.height) this.setState({ height });
    });
    this.observer.observe(this.box.current);
  }

  componentWillUnmount() {
    this.observer.disconnect();
  }

  onScroll() {
    const first = Math.max(0, Math.floor(this.box.current.scrollTop / this.props.rowHeight));
    if (first !== this.state.first) this.setState({ first });
  }

  onClick(index) {
    this.setState({ active: this.props.rowKey(this.props.rows[index]) });
  }

  /** Make the row at an index the active one and scroll it into sight. */
  activate(index) {
    const { rows, rowKey, rowHeight } = this.props;
    if (!rows.length) return;
    const kept = Math.max(0, Math.min(rows.length - 1, index));
    const box = this.box.current;
    const head = this.table.current.tHead.offsetHeight;
    const top = kept * rowHeight;
    const room = box.clientHeight - head - rowHeight;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top > box.scrollTop + room) box.scrollTop = top - room;
    this.setState({ active: rowKey(rows[kept]) });
  }

  onKey(event) {
    if (event.target !== this.table.current || event.altKey || event.ctrlKey || event.metaKey) return;
    const { rows, rowHeight, onOpen } = this.props;
    const index = this.activeIndex();
    const page = Math.max(1, Math.floor(this.state.height / rowHeight) - 2);
    const steps = { ArrowDown: index + 1, ArrowUp: index - 1, PageDown: index + page, PageUp: index - page, Home: 0, End: rows.length - 1 };
    if (event.key in steps) this.activate(index < 0 ? 0 : steps[event.key]);
    else if (event.key === "Enter" && index >= 0) onOpen?.(rows[index]);
    else return;
    event.preventDefault();
  }

  activeIndex() {
    const { rows, rowKey } = this.props;
    return this.state.active === null ? -1 : rows.findIndex((row) => rowKey(row) === this.state.active);
  }

  focus() {
    this.table.current?.focus();
  }

  render({ columns, rows, rowKey, rowHeight, sort, onSort, onOpen, label, tone, context, className = "" }, { first, height }) {
    const from = Math.max(0, Math.min(first, rows.length - Math.floor(height / rowHeight)) - SPARE);
    const to = Math.min(rows.length, from + Math.ceil(height / rowHeight) + 2 * SPARE);
    const active = this.activeIndex();
    const seen = active >= from && active < to;
    const gap = (pixels) => pixels > 0 && html`<tr class="gap" aria-hidden="true"><td style=${{ height: `${pixels}px` }}></td></tr>`;
    return html`<div class=${`grid-box ${className}`} ref=${this.box} onScroll=${this.onScroll}>
      <table role="grid" class="grid" tabindex="0" ref=${this.table} aria-label=${label} aria-rowcount=${rows.length + 1}
        aria-activedescendant=${seen ? this.prefix + active : undefined} onKeyDown=${this.onKey}
        onFocus=${(event) => event.target === this.table.current && active < 0 && this.activate(0)}>
        <thead><tr aria-rowindex="1">
          ${columns.map((column) => html`<${Heading} key=${column.key} column=${column} onSort=${onSort}
            direction=${sort?.key === column.key ? sort.direction : 0} />`)}
        </tr></thead>
        <tbody>
          ${gap(from * rowHeight)}
          ${rows.slice(from, to).map((row, offset) => html`<${Row} key=${rowKey(row)} id=${this.prefix + (from + offset)} row=${row}
            index=${from + offset} active=${from + offset === active} columns=${columns} context=${context} tone=${tone?.(row)}
            onClick=${this.onClick} onOpen=${onOpen} />`)}
          ${gap((rows.length - to) * rowHeight)}
        </tbody>
      </table>
    </div>`;
  }
}

const ORDERS = { 0: "none", 1: "ascending", "-1": "descending" };

function Heading({ column, direction, onSort }) {
  const arrow = { 0: "", 1: "▲", "-1": "▼" }[direction];
  return html`<th scope="col" class=${column.class} title=${column.title} style=${column.width ? { width: column.width } : undefined}
    aria-sort=${column.sort ? ORDERS[direction] : undefined}>
    ${column.sort
      ? html`<button type="button" onClick=${() => onSort(column.key)}>${column.label}<span class="arrow" aria-hidden="true">${arrow}</span></button>`
      : column.label}
  </th>`;
}

/** A small table in full: head, then rows of cells; `numbers` names the columns that are right-aligned. */
export function Plain({ label, head, rows, numbers = [], empty = "nothing", caption = false }) {
  const side = (index) => (numbers.includes(index) ? "n" : "");
  return html`<div class="plain-box" tabindex="0" role="region" aria-label=${label}><table class="plain">
    <caption class=${caption ? "" : "sr"}>${label}</caption>
    <thead><tr>${head.map((name, index) => html`<th scope="col" class=${side(index)}>${name}</th>`)}</tr></thead>
    <tbody>
      ${rows.length
        ? rows.map((cells) => html`<tr>${cells.map((cell, index) => (index ? html`<td class=${side(index)}>${cell}</td>` : html`<th scope="row" class=${side(0)}>${cell}</th>`))}</tr>`)
        : html`<tr><td class="nothing" colspan=${head.length}>${empty}</td></tr>`}
    </tbody>
  </table></div>`;
}
