// Small parts that several pages use.

import { useState, type ReactNode } from "react";

import type { ApiError } from "./api";
import { formatClock, formatDate, formatDateTime } from "./format";
import { useShared } from "./hooks";

export function ErrorNote({ error, onRetry }: { error: ApiError; onRetry?: () => void }) {
  return (
    <div className="note bad" role="alert">
      <b>
        {error.title}
        {error.status > 0 ? ` (${error.status})` : ""}
      </b>
      {error.detail !== "" && <span> {error.detail}</span>}
      {onRetry && (
        <button type="button" className="plain" onClick={onRetry}>
          Try again
        </button>
      )}
    </div>
  );
}

/** An instant in the chosen zone, the exact UTC text as its title. */
export function Time({ at, short = false }: { at: string; short?: boolean }) {
  const { zone, minute } = useShared();
  const ms = Date.parse(at);
  if (Number.isNaN(ms)) return <>{at}</>;
  const today = formatDate(ms, zone) === formatDate(minute, zone);
  return (
    <time dateTime={at} title={at}>
      {short && today ? formatClock(ms, zone) : formatDateTime(ms, zone)}
    </time>
  );
}

export function Facts({ children }: { children: ReactNode }) {
  return <dl className="facts-list">{children}</dl>;
}

/** One fact; an absent one is not shown. */
export function Fact({ name, children }: { name: string; children: ReactNode }) {
  if (children === undefined || children === null || children === "") return null;
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}

/** Copies text; not there where the browser does not allow it (plain HTTP from another machine). */
export function CopyButton({ text, name }: { text: string; name: string }) {
  const [done, setDone] = useState(false);
  if (!window.isSecureContext) return null;
  return (
    <button
      type="button"
      className="plain"
      onClick={() => {
        void navigator.clipboard.writeText(text).then(() => {
          setDone(true);
          setTimeout(() => {
            setDone(false);
          }, 1500);
        });
      }}
    >
      {done ? "copied" : name}
    </button>
  );
}
