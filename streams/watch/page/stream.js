// One view's state, kept current by server-sent events, or as of a past time by single requests.
import { useEffect, useReducer, useRef } from "./vendor/vendor.js";
import { merge } from "./merge.js";

const RETRY_MS = [500, 1000, 2000, 4000, 8000];
const HIDDEN_MS = 10_000; // A hidden tab gives its connection back: a browser opens only six to one server.

const query = (params) => new URLSearchParams(params).toString();

/** The problem that a response states, in words. */
async function problemOf(response) {
  try {
    return (await response.json()).problem || `the server responded with status ${response.status}`;
  } catch {
    return `the server responded with status ${response.status}`;
  }
}

class Stream {
  /**
   * @param {string} view The view's name.
   * @param {object} params Its parameters.
   * @param {() => void} onChange Called at most once an animation frame, after state or status changed.
   */
  constructor(view, params, onChange) {
    this.view = view;
    this.params = params;
    this.state = null;
    this.status = "connecting";
    this.problem = null;
    this._onChange = onChange;
    this._attempt = 0;
    this._closed = false;
    this._onVisibility = () => this._follow();
    document.addEventListener("visibilitychange", this._onVisibility);
  }

  /** Follow the newest state. */
  live() {
    this._at = null;
    this._wanted = null;
    this._request?.abort();
    if (!this._events) this._connect();
  }

  /** Show the state as of a time, ms since the epoch; of several requested while one is under way, the last. */
  past(at) {
    this._disconnect();
    this._at = at;
    this._wanted = at;
    if (!this._loading) this._load();
  }

  close() {
    this._closed = true;
    this._disconnect();
    this._request?.abort();
    cancelAnimationFrame(this._frame);
    document.removeEventListener("visibilitychange", this._onVisibility);
  }

  _connect() {
    const events = new EventSource(`api/stream/${this.view}?${query(this.params)}`);
    this._events = events;
    events.onopen = () => {
      this._attempt = 0;
      this._became("open");
    };
    events.onmessage = (event) => {
      this._take(JSON.parse(event.data));
      this._became("open");
    };
    events.onerror = () => {
      if (events.readyState === EventSource.CLOSED) this._refused();
      else this._became("lost"); // The browser connects again, and then gets a whole document.
    };
  }

  _disconnect() {
    this._events?.close();
    this._events = null;
    clearTimeout(this._retry);
    clearTimeout(this._hiding);
  }

  /** The server ended the stream with a status: find out why, and try again later. */
  async _refused() {
    this._disconnect();
    const wait = RETRY_MS[Math.min(this._attempt++, RETRY_MS.length - 1)];
    this._retry = setTimeout(() => this._connect(), wait);
    try {
      const response = await fetch(`api/view/${this.view}?${query(this.params)}`);
      if (this._closed || this._at !== null) return;
      if (response.ok) this._became("lost");
      else this._became(response.status === 404 || response.status === 400 ? "refused" : "lost", await problemOf(response));
    } catch {
      this._became("lost");
    }
  }

  async _load() {
    this._loading = true;
    while (this._wanted !== null && !this._closed) {
      const at = this._wanted;
      this._wanted = null;
      this._request = new AbortController();
      try {
        const response = await fetch(`api/view/${this.view}?${query({ ...this.params, at: Math.round(at) })}`, {
          signal: this._request.signal,
        });
        if (this._at === null || this._closed) break;
        if (response.ok) {
          this._take({ ...(await response.json()), whole: true });
          this._became("open");
        } else {
          this.state = null;
          this._became(response.status === 404 ? "refused" : "lost", await problemOf(response));
        }
      } catch (error) {
        if (error.name !== "AbortError") this._became("lost");
      }
    }
    this._loading = false;
  }

  _follow() {
    if (this._at !== null) return;
    if (document.hidden) this._hiding = setTimeout(() => this._disconnect(), HIDDEN_MS);
    else {
      clearTimeout(this._hiding);
      if (!this._events) this._connect();
    }
  }

  _take(document) {
    this.state = merge(this.state, document);
  }

  _became(status, problem = null) {
    this.status = status;
    this.problem = problem;
    if (this._closed || this._frame) return;
    this._frame = requestAnimationFrame(() => {
      this._frame = 0;
      this._onChange();
    });
  }
}

/**
 * The state of a view, redrawn when it changes.
 *
 * @param {string} view The view's name.
 * @param {object} params Its parameters.
 * @param {number | null} at The time to show, ms since the epoch; null follows the newest.
 * @returns {{state: object | null, status: string, problem: string | null}}
 */
export function useDocument(view, params, at) {
  const [, redraw] = useReducer((n) => n + 1, 0);
  const stream = useRef(null);
  const key = JSON.stringify([view, params]);
  useEffect(() => {
    const opened = new Stream(view, params, redraw);
    opened.key = key;
    stream.current = opened;
    if (at === null) opened.live();
    else opened.past(at);
    return () => opened.close();
  }, [key]);
  useEffect(() => {
    if (at === null) stream.current.live();
    else if (stream.current._at !== at) stream.current.past(at);
  }, [at]);
  const { state = null, status = "connecting", problem = null } = stream.current?.key === key ? stream.current : {};
  return { state, status, problem };
}
