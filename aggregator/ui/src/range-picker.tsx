// The time range: the usual spans back from now, or two fixed ends.

import { useId, useState } from "react";

import { DEFAULT_FROM, rangeMs, spanMs, type Filters } from "./filters";
import { formatSpan, fromDateTimeBox, toDateTimeBox } from "./format";
import { useShared } from "./hooks";

type Range = Pick<Filters, "from" | "to">;

const SPANS = ["5m", "15m", "1h", "3h", "6h", "12h", "24h", "2d", "7d", "30d"];

/** `in the last 1h`, `in the chosen range` */
export function rangeName({ from, to }: Range): string {
  const span = from.startsWith("-") ? spanMs(from.slice(1)) : null;
  return to === null && span !== null ? `in the last ${formatSpan(span)}` : "in the chosen range";
}

export function RangePicker({ range, onChange }: { range: Range; onChange: (range: Range) => void }) {
  const [editing, setEditing] = useState(false);
  const id = useId();
  const relative = range.to === null && range.from.startsWith("-") ? range.from.slice(1) : null;
  const spans = relative === null || SPANS.includes(relative) ? SPANS : [relative, ...SPANS];
  const fixed = relative === null;
  return (
    <div className="field range">
      <label htmlFor={id}>time</label>
      <select
        id={id}
        value={relative ?? "fixed"}
        onChange={(event) => {
          const { value } = event.target;
          setEditing(value === "fixed");
          if (value === "fixed") {
            const [from, to] = rangeMs(range, Date.now());
            onChange({ from: new Date(from).toISOString(), to: new Date(to).toISOString() });
          } else onChange({ from: `-${value}`, to: null });
        }}
      >
        {spans.map((span) => (
          <option key={span} value={span}>
            last {span}
          </option>
        ))}
        <option value="fixed">from … to …</option>
      </select>
      {(fixed || editing) && <FixedRange key={`${range.from} ${range.to}`} range={range} onChange={onChange} />}
    </div>
  );
}

function FixedRange({ range, onChange }: { range: Range; onChange: (range: Range) => void }) {
  const { zone } = useShared();
  const [[from, to]] = useState(() => rangeMs(range, Date.now()));
  const change = (end: "from" | "to", text: string) => {
    const ms = fromDateTimeBox(text, zone);
    const now = new Date(to).toISOString();
    if (ms !== null) onChange({ from: range.from, to: range.to ?? now, [end]: new Date(ms).toISOString() });
  };
  return (
    <>
      <DateTimeBox name="from" ms={from} zoneKey={zone} onChange={change} />
      <DateTimeBox name="to" ms={to} zoneKey={zone} onChange={change} />
      <button
        type="button"
        className="plain"
        onClick={() => {
          onChange({ from: DEFAULT_FROM, to: null });
        }}
      >
        now
      </button>
    </>
  );
}

function DateTimeBox(props: { name: "from" | "to"; ms: number; zoneKey: "utc" | "local"; onChange: (end: "from" | "to", text: string) => void }) {
  const shown = toDateTimeBox(props.ms, props.zoneKey);
  const [text, setText] = useState<string | null>(null);
  const apply = () => {
    if (text !== null && text !== shown) props.onChange(props.name, text);
    setText(null);
  };
  return (
    <input
      type="datetime-local"
      step="1"
      aria-label={props.name}
      value={text ?? shown}
      onChange={(event) => {
        setText(event.target.value);
      }}
      onBlur={apply}
      onKeyDown={(event) => {
        if (event.key === "Enter") apply();
      }}
    />
  );
}
