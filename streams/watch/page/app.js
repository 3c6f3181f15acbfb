// The page: header, the view of the route, and the state of source and connection.
import { Component, html, render, useEffect, useRef, useState } from "./vendor/vendor.js";
import { count, shorten } from "./format.js";
import { parent, parse } from "./route.js";
import { useDocument } from "./stream.js";
import { Reading, Timeline } from "./timeline.js";
import { Empty } from "./widgets.js";
import { Decision } from "./decision.js";
import { Fleet } from "./fleet.js";
import { Installation } from "./installation.js";
import { Policy } from "./policy.js";
import { Run } from "./run.js";

const VIEWS = { fleet: Fleet, run: Run, decision: Decision, policy: Policy, installation: Installation };
const PLACES = [["fleet", "#/", "Runs"], ["policy", "#/policy", "Policy"], ["installation", "#/installation", "Installation"]];
const THEMES = { auto: ["◐", "system"], light: ["☀", "light"], dark: ["☾", "dark"] };

function useRoute() {
  const [route, setRoute] = useState(parse(location.hash));
  useEffect(() => {
    const onHash = () => setRoute(parse(location.hash));
    window.addEventListener("hashchange", onHash);
    return () => window.removeEventListener("hashchange", onHash);
  }, []);
  return route;
}

/** The theme that is shown, "light" or "dark", which canvases follow; and the button that changes it. */
function useTheme() {
  const [chosen, setChosen] = useState(document.documentElement.dataset.theme);
  const system = useRef(matchMedia("(prefers-color-scheme: dark)"));
  const [dark, setDark] = useState(system.current.matches);
  useEffect(() => {
    const onChange = (event) => setDark(event.matches);
    system.current.addEventListener("change", onChange);
    return () => system.current.removeEventListener("change", onChange);
  }, []);
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(chosen) + 1) % names.length];
  const change = () => {
    setTamiyoTheme(next);
    setChosen(next);
  };
  const [sign, name] = THEMES[chosen];
  const button = html`<button type="button" class="theme" onClick=${change} title=${`Theme: ${name}`} aria-label=${`Theme: ${name}. Change to ${THEMES[next][1]}`}>${sign}</button>`;
  return [chosen === "auto" ? (dark ? "dark" : "light") : chosen, button];
}

function Header({ route, button }) {
  const here = route.view === "run" || route.view === "decision" ? "fleet" : route.view;
  return html`<header class="top">
    <a class="brand" href="#/"><svg viewBox="0 0 16 16" width="18" height="18" aria-hidden="true"><path d="M5 3L12 8L4 12" /><circle cx="4" cy="12" r="3" class="a" /><circle cx="12" cy="8" r="3" class="b" /><circle cx="5" cy="3" r="2" class="a" /></svg>Tamiyo</a>
    <nav aria-label="Views">${PLACES.map(([view, link, name]) => html`<a href=${link} aria-current=${view === here ? (here === route.view ? "page" : "true") : undefined}>${name}</a>`)}</nav>
    ${button}
  </header>`;
}

function Banner({ state, status }) {
  if (status === "lost") return html`<div class="banner">The connection to the server is lost; connecting again. ${state ? "The page shows the last known state." : ""}</div>`;
  if (state?.source.problem) return html`<div class="banner"><bdi>${shorten(state.source.problem, 300)}</bdi></div>`;
  return null;
}

const CONNECTION = { connecting: "connecting", open: "connected", lost: "connection lost", refused: "connected" };

function Footer({ state, status, at }) {
  const source = state?.source;
  return html`<footer class="bottom">
    <span class=${`dot ${status}`} aria-hidden="true"></span>
    <span role="status" aria-live="polite">${CONNECTION[status]}</span>
    ${source && html`<span class="place" title=${shorten(source.name, 300)}>${source.live ? "live" : at === null ? "recording" : "recording, past"} · <bdi>${shorten(source.name, 40)}</bdi>${source.prefix ? html` · prefix <bdi>${shorten(source.prefix, 20)}</bdi>` : ""}</span>
      <span class="records">${count(source.records)} records</span>
      ${source.undecodable > 0 && html`<span class="warn">${count(source.undecodable)} not decodable</span>`}
      <${Reading} source=${source} />`}
  </footer>`;
}

/** Shows a problem in a view in its place, so that the rest of the page stays usable. */
class Guard extends Component {
  componentDidCatch(error) {
    console.error(error);
    this.setState({ error, key: this.props.name });
  }

  render({ name, children }, { error, key }) {
    if (!error || key !== name) return children;
    return html`<${Empty} title="This view cannot be shown"><p>${String(error.message)}</p><p><a href="#/" onClick=${() => this.setState({ error: null })}>All runs</a></p></${Empty}>`;
  }
}

function Body({ route, state, status, problem, theme, at }) {
  if (status === "refused" && !(state && at === null)) {
    const what = route.view === "fleet" ? "Nothing to show" : route.view === "decision" ? "Decision not found" : "Run not found";
    return html`<h1 tabindex="-1" class="sr">${what}</h1><${Empty} title=${what}><p><bdi>${shorten(problem ?? "", 300)}</bdi></p><p><a href="#/">All runs</a></p></${Empty}>`;
  }
  if (!state) return html`<h1 tabindex="-1" class="sr">Loading</h1><p class="wait" aria-hidden="true">Waiting for the server …</p>`;
  const View = VIEWS[route.view];
  return html`<${View} key=${JSON.stringify(route)} state=${state} params=${route.params} theme=${theme} live=${state.source.live} />`;
}

const TITLES = { fleet: "Runs", policy: "Policy", installation: "Installation" };

function App() {
  const route = useRoute();
  const [theme, button] = useTheme();
  const [at, setAt] = useState(null);
  const { state, status, problem } = useDocument(route.view, route.params, at);
  const source = useRef(null); // The slider stays while the next view loads.
  if (state) source.current = state.source;
  const main = useRef(null);
  const first = useRef(true);
  const shown = state !== null;

  useEffect(() => {
    const name = TITLES[route.view] ?? shorten(route.params.decision ?? route.params.run, 24);
    document.title = `${name} · Tamiyo`;
  }, [route]);
  useEffect(() => {
    if (first.current) first.current = !shown;
    else if (shown && !main.current.contains(document.activeElement)) main.current.querySelector("h1")?.focus();
  }, [route, shown]);
  useEffect(() => {
    const onKey = (event) => {
      if (event.key !== "Escape" || event.defaultPrevented || route.view === "fleet") return;
      location.hash = parent(route);
    };
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  }, [route]);

  const skip = (event) => {
    event.preventDefault();
    main.current.focus();
  };
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to the content</a>
    <${Header} route=${route} button=${button} />
    <div class="banners" role="alert"><${Banner} state=${state} status=${status} /></div>
    ${source.current && !source.current.live && html`<${Timeline} source=${source.current} at=${at} setAt=${setAt} />`}
    <main id="main" tabindex="-1" ref=${main} class=${`view-${route.view}`}>
      <${Guard} name=${JSON.stringify(route)}><${Body} route=${route} state=${state} status=${status} problem=${problem} theme=${theme} at=${at} /></${Guard}>
    </main>
    <${Footer} state=${state} status=${status} at=${at} />`;
}

render(html`<${App} />`, document.getElementById("app"));
