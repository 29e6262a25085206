// The frame around all pages: header with the state of the whole system, footer, and which page is shown.

import { Component, useEffect, useMemo, type ReactNode } from "react";

import { api } from "./api";
import { EventsPage } from "./events-page";
import { parseFilters, rangeParams, type Filters } from "./filters";
import { formatInteger, plural, zoneName } from "./format";
import { SharedContext, useNow, useResource, useShared, useZone } from "./hooks";
import { NodesPage } from "./nodes-page";
import { PodsPage } from "./pods-page";
import { Link, parseRoute, useAddress, type Route } from "./router";
import { SubjectPage } from "./subject-page";
import { rangeName } from "./range-picker";

const NODES_MS = 5000;
const TOTAL_MS = 15_000;

export function App() {
  const nodes = useResource("nodes", api.nodes, NODES_MS);
  const probes = useResource("probes", api.probes, 60_000);
  const [zone, setZone] = useZone();
  const minute = useNow(60_000);
  const shared = useMemo(() => ({ nodes, probes, zone, setZone, minute }), [nodes, probes, zone, setZone, minute]);
  const [path, search] = useAddress();
  const route = useMemo(() => parseRoute(path), [path]);
  const filters = useMemo(() => parseFilters(new URLSearchParams(search)), [search]);
  useEffect(() => {
    document.title = `${titleOf(route)} · Sonde`;
  }, [route]);
  return (
    <SharedContext value={shared}>
      <a className="skip" href="#main">
        Skip to content
      </a>
      <Header route={route} filters={filters} />
      <SystemBanner />
      <main id="main" tabIndex={-1}>
        <Boundary key={path}>
          <Page route={route} filters={filters} search={search} />
        </Boundary>
      </main>
      <footer>
        <a href="/openapi.json">openapi.json</a>
        <a href="/metrics">metrics</a>
        <span className="keys">
          <kbd>/</kbd> search <kbd>p</kbd> pause <kbd>j</kbd>
          <kbd>k</kbd> move <kbd>Enter</kbd> open
        </span>
      </footer>
    </SharedContext>
  );
}

function titleOf(route: Route): string {
  switch (route.page) {
    case "events":
      return "Events";
    case "pods":
      return "Pods";
    case "nodes":
      return "Nodes";
    case "pod":
      return `${route.namespace}/${route.pod}`;
    case "node":
      return route.node;
    case "missing":
      return "No such page";
  }
}

function Page({ route, filters, search }: { route: Route; filters: Filters; search: string }) {
  switch (route.page) {
    case "events":
      return <EventsPage filters={filters} />;
    case "pods":
      return <PodsPage search={search} />;
    case "nodes":
      return <NodesPage />;
    case "pod":
      return <SubjectPage key={`${route.node}/${route.namespace}/${route.pod}`} subject={route} search={search} />;
    case "node":
      return <SubjectPage key={route.node} subject={{ node: route.node, namespace: "", pod: "" }} search={search} />;
    case "missing":
      return (
        <div className="empty">
          <h1>No such page</h1>
          <p>
            Go to the <Link href="/">events</Link>, the <Link href="/pods">pods</Link> or the <Link href="/nodes">nodes</Link>.
          </p>
        </div>
      );
  }
}

const NAV = [
  { href: "/", name: "Events", pages: ["events"] },
  { href: "/pods", name: "Pods", pages: ["pods", "pod"] },
  { href: "/nodes", name: "Nodes", pages: ["nodes", "node"] },
];

function Header({ route, filters }: { route: Route; filters: Filters }) {
  const { nodes, zone, setZone } = useShared();
  const range = rangeParams(filters);
  const total = useResource(`total ${JSON.stringify(range)}`, (signal) => api.eventStats(range, signal), TOTAL_MS);
  const connected = nodes.data?.filter((node) => node.connected).length ?? 0;
  const known = nodes.data?.length ?? 0;
  const health = nodes.data === null ? "" : connected === 0 ? "bad" : connected < known ? "warn" : "good";
  const offset = new Date().getTimezoneOffset();
  return (
    <header className="top">
      <Link className="brand" href="/">
        Sonde
      </Link>
      <nav aria-label="Pages">
        {NAV.map((item) => (
          <Link key={item.href} href={item.href} aria-current={item.pages.includes(route.page) ? "page" : undefined}>
            {item.name}
          </Link>
        ))}
      </nav>
      <div className="facts">
        <Link href="/nodes" className={`dot ${health}`} data-testid="nodes-connected">
          {nodes.data === null ? "nodes: no answer" : `${formatInteger(connected)} of ${plural(known, "node")} connected`}
        </Link>
        {total.data !== null && (
          <span data-testid="events-total">
            <b>{formatInteger(total.data.total)}</b> {total.data.total === 1 ? "event" : "events"} {rangeName(filters)}
          </span>
        )}
        <button
          type="button"
          className="plain"
          title="Show times in UTC or in the time of this browser"
          onClick={() => {
            setZone(zone === "utc" ? "local" : "utc");
          }}
        >
          {zone === "utc" ? "UTC" : `local (${zoneName("local", offset)})`}
        </button>
      </div>
    </header>
  );
}

/** What makes everything below doubtful is said above all of it. */
function SystemBanner() {
  const { nodes } = useShared();
  if (nodes.error !== null) {
    return (
      <p className="banner bad" role="alert">
        <b>The aggregator does not answer as it should.</b> What you see may be old. {nodes.error.message}
      </p>
    );
  }
  if (nodes.data === null) return null;
  const gone = nodes.data.filter((node) => !node.connected);
  if (nodes.data.length === 0) {
    return (
      <p className="banner bad" role="alert">
        <b>No node has ever connected.</b> Nothing is being watched: start a sonde-collector that ships to this aggregator.
      </p>
    );
  }
  if (gone.length === nodes.data.length) {
    return (
      <p className="banner bad" role="alert">
        <b>No node is connected.</b> Nothing new can arrive: an empty list says nothing about the network.{" "}
        <Link href="/nodes">See the nodes</Link>
      </p>
    );
  }
  if (gone.length > 0) {
    return (
      <p className="banner warn" role="status">
        <b>{plural(gone.length, "node")} not connected:</b>{" "}
        {gone
          .slice(0, 5)
          .map((node) => node.node)
          .join(", ")}
        {gone.length > 5 ? " …" : ""}. Their events are missing. <Link href="/nodes">See the nodes</Link>
      </p>
    );
  }
  return null;
}

/** A fault of these pages shows as a fault, never as an empty page. */
class Boundary extends Component<{ children: ReactNode }, { error: Error | null }> {
  override state: { error: Error | null } = { error: null };

  static getDerivedStateFromError(error: Error) {
    return { error };
  }

  override render() {
    if (this.state.error === null) return this.props.children;
    return (
      <div className="empty bad" role="alert">
        <h1>This page failed</h1>
        <p>
          {this.state.error.message}. The data itself is at <a href="/openapi.json">/api/v1</a>.
        </p>
      </div>
    );
  }
}
