// The boxes that say what is searched for. Each change is a new address.

import { useId, useMemo, useState } from "react";

import { api } from "./api";
import { BOX_KEYS, TAG_KEYS, hasFilters, pinned, splitBox, withValues, type FilterKey, type Filters } from "./filters";
import { useResource, useShared } from "./hooks";
import { RangePicker } from "./range-picker";
import { CopyButton } from "./ui";

const HINTS: Partial<Record<FilterKey, string>> = { type: "any, !X is not X", ip: "any, 10.0.0.0/8" };

interface Props {
  filters: Filters;
  onChange: (filters: Filters) => void;
  /** Values seen in the list, offered for completion. */
  seen: Partial<Record<FilterKey, readonly string[]>>;
}

export function FilterBar({ filters, onChange, seen }: Props) {
  const hints = useHints(seen);
  const tags = TAG_KEYS.flatMap((key) => (filters.values[key] ?? []).map((value) => ({ key, value })));
  const count = Object.values(filters.values).reduce((sum, values) => sum + values.length, 0);
  return (
    <form
      className="filters search"
      role="search"
      aria-label="Filter events"
      onSubmit={(event) => {
        event.preventDefault();
      }}
    >
      <RangePicker
        range={filters}
        onChange={(range) => {
          onChange({ ...filters, ...range });
        }}
      />
      <FilterBox
        name="q"
        label="text"
        placeholder="in reason, command, stack, attributes"
        values={filters.values.q ?? []}
        split={(text) => (text.trim() === "" ? [] : [text.trim()])}
        onChange={(values) => {
          onChange(withValues(filters, "q", values));
        }}
      />
      <div className="actions">
        {tags.map(({ key, value }) => (
          <button
            key={`${key}=${value}`}
            type="button"
            className="tag"
            title="Remove this filter"
            onClick={() => {
              onChange(withValues(filters, key, (filters.values[key] ?? []).filter((old) => old !== value)));
            }}
          >
            {key}={value} <span aria-hidden="true">✕</span>
          </button>
        ))}
        {hasFilters(filters) && (
          <button
            type="button"
            className="plain"
            onClick={() => {
              onChange({ ...filters, values: {} });
            }}
          >
            clear filters
          </button>
        )}
        {filters.to === null && (
          <button
            type="button"
            className="plain"
            title="Fix both ends of the range in the address, so that the link shows the same tomorrow"
            onClick={() => {
              onChange(pinned(filters, Date.now()));
            }}
          >
            pin times
          </button>
        )}
        <CopyButton text={window.location.href} name="copy link" />
      </div>
      <details className="more" open={isWide() || undefined}>
        <summary>Filters{count > 0 ? ` (${count})` : ""}</summary>
        <div className="boxes">
          {BOX_KEYS.map((key) => (
            <FilterBox
              key={key}
              name={key}
              label={key}
              placeholder={HINTS[key] ?? "any"}
              values={filters.values[key] ?? []}
              hints={hints[key] ?? []}
              split={splitBox}
              onChange={(values) => {
                onChange(withValues(filters, key, values));
              }}
            />
          ))}
        </div>
      </details>
    </form>
  );
}

/** Narrow screens start with the boxes folded away. */
function isWide(): boolean {
  return window.matchMedia("(min-width: 700px)").matches;
}

interface BoxProps {
  name: FilterKey;
  label: string;
  placeholder: string;
  values: readonly string[];
  hints?: readonly string[];
  split: (text: string) => string[];
  onChange: (values: string[]) => void;
}

function FilterBox({ name, label, placeholder, values, hints = [], split, onChange }: BoxProps) {
  const id = useId();
  const shown = name === "q" ? values.join(" ") : values.map((value) => (value === "" ? '""' : value)).join(", ");
  // Null while the box shows what the address says; text while somebody types.
  const [text, setText] = useState<string | null>(null);
  const apply = (typed: string) => {
    if (typed !== shown) onChange(split(typed).map((value) => (value === '""' ? "" : value)));
    setText(null);
  };
  return (
    <div className={`field ${shown === "" ? "" : "set"}`}>
      <label htmlFor={id}>{label}</label>
      <input
        id={id}
        name={name}
        type="search"
        list={hints.length > 0 ? `${id}-hints` : undefined}
        placeholder={placeholder}
        value={text ?? shown}
        spellCheck={false}
        autoComplete="off"
        autoCapitalize="off"
        onChange={(event) => {
          const typed = event.target.value;
          // Chosen from the list, or emptied with the cross: nothing more will be typed.
          if (typed === "" || (hints.includes(typed) && isChoice(event.nativeEvent))) apply(typed);
          else setText(typed);
        }}
        onBlur={() => {
          if (text !== null) apply(text);
        }}
        onKeyDown={(event) => {
          if (event.key === "Enter") apply(event.currentTarget.value);
          if (event.key === "Escape") {
            setText(null);
            event.currentTarget.blur();
          }
        }}
      />
      {hints.length > 0 && (
        <datalist id={`${id}-hints`}>
          {hints.slice(0, 200).map((hint) => (
            <option key={hint} value={hint} />
          ))}
        </datalist>
      )}
    </div>
  );
}

/** A choice from a datalist comes as a replacement, or as an event that is no InputEvent. */
function isChoice(event: Event): boolean {
  return !(event instanceof InputEvent) || event.inputType === "insertReplacementText";
}

function useHints(seen: Props["seen"]): Partial<Record<FilterKey, string[]>> {
  const { nodes, probes } = useShared();
  const pods = useResource("pods for hints", (signal) => api.pods([], signal), 60_000);
  return useMemo(() => {
    const all = (...lists: (readonly string[] | undefined)[]) => [...new Set(lists.flatMap((list) => list ?? []))].filter((value) => value !== "").sort();
    return {
      type: all(
        probes.data?.flatMap((probe) => probe.event_types.map((type) => type.name)),
        seen.type,
      ),
      reason: all(seen.reason),
      node: all(nodes.data?.map((node) => node.node)),
      namespace: all(pods.data?.map((pod) => pod.namespace)),
      pod: all(pods.data?.map((pod) => pod.pod)),
      protocol: all(["TCP", "UDP", "ICMP", "ICMPv6"], seen.protocol),
    };
  }, [nodes.data, probes.data, pods.data, seen]);
}
