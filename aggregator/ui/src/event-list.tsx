// The list of events with its state line. Used by the events page and by the page of a pod.

import { Fragment, useCallback, useState, type ReactNode } from "react";

import type { Filters } from "./filters";
import type { EventFeed, Feed } from "./feed";
import { formatDate, formatInteger } from "./format";
import { useShared } from "./hooks";
import { EventRow } from "./event-row";
import { ErrorNote } from "./ui";

const STATE_TEXT: Record<Feed["state"], string> = {
  connecting: "connecting",
  live: "live",
  polling: "polling (no stream)",
  disconnected: "disconnected, trying again",
  refused: "not live",
  fixed: "fixed range",
};

export function FeedStatus({ feed, control }: { feed: Feed; control: EventFeed }) {
  const text = feed.paused ? "paused" : STATE_TEXT[feed.state];
  return (
    <div className="status">
      <span className={`state ${feed.paused ? "paused" : feed.state}`} role="status" data-testid="feed-state">
        {text}
      </span>
      {feed.state !== "fixed" && feed.state !== "refused" && (
        <button
          type="button"
          aria-pressed={feed.paused}
          aria-keyshortcuts="p"
          onClick={() => {
            control.pause(!feed.paused);
          }}
        >
          {feed.paused ? "Resume" : "Pause"}
        </button>
      )}
      {feed.paused && feed.waiting !== 0 && (
        <span data-testid="waiting">{feed.waiting === null ? "very many new" : `${formatInteger(feed.waiting)} new`}</span>
      )}
    </div>
  );
}

interface Props {
  feed: Feed;
  control: EventFeed;
  /** Against which "only this" and "not this" are set. */
  filters: Filters;
  /** What an empty list means here. */
  empty: ReactNode;
  /** Rows shown at first; all when absent. */
  most?: number;
}

export function EventList({ feed, control, filters, empty, most }: Props) {
  const { zone, minute } = useShared();
  const [open, setOpen] = useState<ReadonlySet<number>>(new Set());
  const toggle = useCallback((id: number) => {
    setOpen((old) => {
      const next = new Set(old);
      if (!next.delete(id)) next.add(id);
      return next;
    });
  }, []);
  const shown = most === undefined ? feed.events : feed.events.slice(0, most);
  const dayOf = (ms: number) => formatDate(ms, zone);
  return (
    <>
      {feed.error !== null && <ErrorNote error={feed.error} />}
      {shown.length > 0 && (
        <ol className="events" aria-label="Events, newest first">
          {shown.map((event, i) => {
            const above = shown[i - 1];
            const day = dayOf(Date.parse(event.time));
            const heading = day === dayOf(above ? Date.parse(above.time) : minute) ? null : day;
            return (
              <Fragment key={event.id}>
                {heading !== null && <li className="day">{heading}</li>}
                <EventRow event={event} open={open.has(event.id)} zone={zone} filters={filters} onToggle={toggle} />
              </Fragment>
            );
          })}
        </ol>
      )}
      {!feed.loaded && feed.error === null && <p className="loading">Loading …</p>}
      {feed.loaded && feed.events.length === 0 && empty}
      {most === undefined && feed.events.length > 0 && (
        <p className="end">
          {feed.hasOlder ? (
            <button type="button" disabled={feed.loadingOlder} onClick={() => void control.loadOlder()}>
              {feed.loadingOlder ? "Loading …" : "Load older"}
            </button>
          ) : (
            "No older events in this range."
          )}
        </p>
      )}
    </>
  );
}
