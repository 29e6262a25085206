// One event: a line, and all that is known of it when opened.

import { memo, type MouseEvent, type ReactNode } from "react";

import type { SondeEvent } from "./api";
import { filterSearch, withValue, type FilterKey, type Filters } from "./filters";
import { formatClock, formatEndpoint, formatInteger, formatLatency, fraction, type Zone } from "./format";
import { useShared } from "./hooks";
import { Link, subjectPath } from "./router";
import { CopyButton } from "./ui";

interface Props {
  event: SondeEvent;
  open: boolean;
  zone: Zone;
  filters: Filters;
  onToggle: (id: number) => void;
}

export const EventRow = memo(function EventRow({ event, open, zone, filters, onToggle }: Props) {
  const ms = Date.parse(event.time);
  const where = subjectName(event);
  const toggle = () => {
    onToggle(event.id);
  };
  const clicked = (click: MouseEvent) => {
    // A click on a link is for the link; the end of marking text is no click.
    if (click.target instanceof Element && click.target.closest("a, button")) return;
    if (window.getSelection()?.isCollapsed === false) return;
    toggle();
  };
  return (
    <li className={`event ${family(event.type)} ${open ? "open" : ""}`} data-testid="event" data-id={event.id}>
      <div className="line" onClick={clicked}>
        <button
          type="button"
          className="fold"
          aria-expanded={open}
          aria-label={`${event.type} ${event.reason ?? ""} ${where} at ${formatClock(ms, zone)}`}
          onClick={toggle}
        >
          <span aria-hidden="true">{open ? "▾" : "▸"}</span>
        </button>
        <time className="time" dateTime={event.time} title={event.time}>
          {formatClock(ms, zone)}
          <small>{fraction(event.time, 3)}</small>
        </time>
        <span className="type" title={event.type}>{event.type}</span>
        <span className="reason" title={event.reason}>{event.reason ?? ""}</span>
        <span className="where" title={`${where} on ${event.node}`}>
          {where} <small>{event.node}</small>
        </span>
        <span className="flow">
          <Flow event={event} />
        </span>
        <span className="extra">
          {event.latency_ns !== undefined && <b>{formatLatency(event.latency_ns)} </b>}
          {event.interface !== undefined && <span>{event.interface} </span>}
          {event.direction !== undefined && <span>{event.direction} </span>}
          {event.suppressed !== undefined && event.suppressed > 0 && (
            <span className="held" title="Held back in the kernel before this one; counted in the metrics">
              +{formatInteger(event.suppressed)} held back
            </span>
          )}
        </span>
      </div>
      {open && <Detail event={event} filters={filters} />}
    </li>
  );
});

function Flow({ event }: { event: SondeEvent }) {
  const from = formatEndpoint(event.saddr, event.sport);
  const to = formatEndpoint(event.daddr, event.dport);
  return (
    <>
      {event.protocol !== undefined && <span className="proto">{event.protocol} </span>}
      {from}
      {(from !== "" || to !== "") && " → "}
      {to}
    </>
  );
}

/** `namespace/pod`; the node itself; or a network namespace that belongs to no known pod. */
export function subjectName(event: Pick<SondeEvent, "namespace" | "pod">): string {
  if (event.pod === undefined || event.namespace === undefined) return "unknown pod";
  return event.pod === "" ? "node itself" : `${event.namespace}/${event.pod}`;
}

/** What kind of trouble a type is, for its colour. */
export function family(type: string): string {
  if (type.startsWith("PACKETLOSS")) return "loss";
  if (type.startsWith("TCPRESET")) return "reset";
  if (type.startsWith("TCPRETRANS")) return "retrans";
  return "slow";
}

const HALF_RANGE_MS = 900_000;

/** The page of the pod, with the times around the event where that is long ago. */
export function podHref(event: SondeEvent, now: number): string | null {
  const path = subjectPath(event.node, event.namespace, event.pod);
  const ms = Date.parse(event.time);
  if (path === null || Number.isNaN(ms) || now - ms < 2 * HALF_RANGE_MS) return path;
  const around = new URLSearchParams({
    from: new Date(ms - HALF_RANGE_MS).toISOString(),
    to: new Date(ms + HALF_RANGE_MS).toISOString(),
  });
  return `${path}?${around.toString()}`;
}

function Detail({ event, filters }: { event: SondeEvent; filters: Filters }) {
  const { minute } = useShared();
  const href = podHref(event, minute);
  const { peer } = event;
  const peerHref = peer?.node === undefined ? null : subjectPath(peer.node, peer.namespace, peer.pod);
  const row = (name: string, value: string | number | undefined, key?: FilterKey, shown?: ReactNode) =>
    value === undefined ? null : (
      <Row key={name} name={name} value={String(value)} filters={filters} {...(key ? { filter: key } : {})}>
        {shown ?? String(value)}
      </Row>
    );
  return (
    <div className="detail">
      <div className="fields">
        <table>
          <tbody>
            {row("time", event.time)}
            {row("type", event.type, "type")}
            {row("reason", event.reason, "reason")}
            {row("probe", event.probe, "probe")}
            {row("node", event.node, "node")}
            {row("namespace", event.namespace, "namespace", event.namespace === "" ? <i>the node itself</i> : undefined)}
            {row("pod", event.pod, "pod", event.pod === "" ? <i>the node itself</i> : undefined)}
            {row("workload", event.workload, "workload")}
            {row("protocol", event.protocol, "protocol")}
            {row("source address", event.saddr, "ip")}
            {row("source port", event.sport, "port")}
            {row("destination address", event.daddr, "ip")}
            {row("destination port", event.dport, "port")}
            {peer && (
              <Row name="peer" value="" filters={filters}>
                {peerHref === null ? peerName(peer) : <Link href={peerHref}>{peerName(peer)}</Link>}
              </Row>
            )}
          </tbody>
        </table>
        <div>
          <table>
            <tbody>
              {row("direction", event.direction)}
              {row("interface", event.interface)}
              {row("latency", event.latency_ns, undefined, event.latency_ns === undefined ? null : `${formatLatency(event.latency_ns)} (${event.latency_ns} ns)`)}
              {row("state", event.state)}
              {row("cpu", event.cpu)}
              {row("pid", event.pid)}
              {row("command", event.comm)}
              {row("held back before", event.suppressed)}
              {Object.entries(event.attributes ?? {}).map(([name, value]) =>
                row(name, typeof value === "string" || typeof value === "number" ? value : JSON.stringify(value)),
              )}
              {row("id", event.id)}
            </tbody>
          </table>
          <p className="links">
            {href !== null && (
              <Link className="button" href={href}>
                {event.pod === "" ? "node page" : "pod page"}
              </Link>
            )}
            <CopyButton text={JSON.stringify(event, null, 2)} name="copy JSON" />
          </p>
        </div>
      </div>
      {event.stack !== undefined && event.stack.length > 0 && (
        <div className="stack">
          <p id={`stack-${event.id}`}>Kernel stack, innermost first</p>
          <ol aria-labelledby={`stack-${event.id}`}>
            {event.stack.map((frame, i) => (
              <li key={i}>{frame}</li>
            ))}
          </ol>
        </div>
      )}
    </div>
  );
}

function peerName(peer: NonNullable<SondeEvent["peer"]>): string {
  if (peer.service !== undefined) return `service ${[peer.namespace, peer.service].filter((part) => part !== undefined).join("/")}`;
  const name = peer.pod === "" ? "node itself" : [peer.namespace, peer.pod].filter((part) => part !== undefined).join("/");
  return [name, peer.workload === undefined ? "" : `(${peer.workload})`, peer.node === undefined ? "" : `on ${peer.node}`]
    .filter((part) => part !== "")
    .join(" ");
}

function Row(props: { name: string; value: string; filter?: FilterKey; filters: Filters; children: ReactNode }) {
  const { name, value, filter, filters, children } = props;
  return (
    <tr>
      <th scope="row">{name}</th>
      <td>
        {children}
        {filter !== undefined && (
          <span className="pick">
            <Link href={`/${filterSearch(withValue(filters, filter, value))}`} aria-label={`only ${filter} ${value}`} title={`Only ${filter} ${value}`}>
              +
            </Link>
            <Link href={`/${filterSearch(withValue(filters, filter, `!${value}`))}`} aria-label={`not ${filter} ${value}`} title={`Without ${filter} ${value}`}>
              −
            </Link>
          </span>
        )}
      </td>
    </tr>
  );
}
