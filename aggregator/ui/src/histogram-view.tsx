// Counts over time above the list, with the gaps of the same range on the same axis. Drag over it to look closer.

import { useRef, useState, type PointerEvent } from "react";

import type { EventStats, Gap } from "./api";
import { formatClock, formatDate, formatDateTime, formatInteger, formatSpan, plural, type Zone } from "./format";
import { bars, placeGap, ticks } from "./histogram";
import { useShared } from "./hooks";

const WIDTH = 1000;
const HEIGHT = 56;

interface Props {
  stats: EventStats | null;
  gaps: readonly Gap[];
  from: number;
  to: number;
  onZoom: (from: number, to: number) => void;
}

export function HistogramView({ stats, gaps, from, to, onZoom }: Props) {
  const { zone } = useShared();
  const all = stats === null ? [] : bars(stats, from, to);
  const most = Math.max(1, ...all.map((bar) => bar.count));
  const x = (time: number) => ((Math.min(to, Math.max(from, time)) - from) / Math.max(1, to - from)) * WIDTH;
  const [drag, setDrag] = useState<[number, number] | null>(null);
  const [hover, setHover] = useState<string | null>(null);
  const box = useRef<SVGSVGElement>(null);
  const share = (event: PointerEvent) => {
    const rect = box.current?.getBoundingClientRect();
    return rect ? Math.min(1, Math.max(0, (event.clientX - rect.left) / rect.width)) : 0;
  };
  const time = (part: number) => from + part * (to - from);
  const moved = (event: PointerEvent) => {
    const at = share(event);
    if (drag) setDrag([drag[0], at]);
    const bar = all.find((one) => time(at) >= one.from && time(at) < one.to);
    setHover(bar ? `${formatDateTime(bar.from, zone)}: ${plural(bar.count, "event")} in ${formatSpan(bar.to - bar.from)}` : null);
  };
  const released = () => {
    if (drag) {
      const [a, b] = [time(Math.min(...drag)), time(Math.max(...drag))];
      const bar = all.find((one) => a >= one.from && a < one.to);
      if (Math.abs(drag[1] - drag[0]) > 0.01) onZoom(a, b);
      else if (bar) onZoom(bar.from, bar.to);
    }
    setDrag(null);
  };
  const peak = all.reduce((max, bar) => Math.max(max, bar.count), 0);
  const label =
    stats === null
      ? "Events over time, not loaded"
      : `Events over time: ${plural(stats.total, "event")}, at most ${formatInteger(peak)} in ${formatSpan(stats.step_s * 1000)}; ${plural(gaps.length, "gap")}`;
  return (
    <figure className="histogram">
      <svg
        ref={box}
        viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
        preserveAspectRatio="none"
        role="img"
        aria-label={label}
        data-testid="histogram"
        onPointerDown={(event) => {
          event.currentTarget.setPointerCapture(event.pointerId);
          setDrag([share(event), share(event)]);
        }}
        onPointerMove={moved}
        onPointerUp={released}
        onPointerLeave={() => {
          setHover(null);
        }}
      >
        {all.map((bar) => {
          const height = bar.count === 0 ? 0 : Math.max(2, (bar.count / most) * (HEIGHT - 4));
          const left = x(bar.from);
          const width = Math.max(0.5, x(bar.to) - left - 1);
          return bar.count === 0 ? null : <rect key={bar.from} className="bar" x={left} y={HEIGHT - height} width={width} height={height} />;
        })}
        {drag && <rect className="drag" x={Math.min(...drag) * WIDTH} y={0} width={Math.abs(drag[1] - drag[0]) * WIDTH} height={HEIGHT} />}
      </svg>
      <span className="peak" aria-hidden="true">
        {peak > 0 ? formatInteger(peak) : ""}
      </span>
      <GapStrip gaps={gaps} from={from} to={to} />
      <Axis from={from} to={to} zone={zone} />
      <figcaption aria-live="off">{hover ?? "\u00a0"}</figcaption>
    </figure>
  );
}

/** Where we could not see. Always there, so that an empty strip means "no gap" and not "not shown". */
function GapStrip({ gaps, from, to }: { gaps: readonly Gap[]; from: number; to: number }) {
  return (
    <svg className="gap-strip" viewBox={`0 0 ${WIDTH} 8`} preserveAspectRatio="none" aria-hidden="true" data-testid="gap-strip">
      <rect className="base" x={0} y={0} width={WIDTH} height={8} />
      {gaps.map((gap, i) => {
        const place = placeGap(gap, from, to);
        if (place === null) return null;
        const left = Math.min(place[0] * WIDTH, WIDTH - 4);
        return <rect key={i} className="gap" x={left} y={0} width={Math.max(4, place[1] * WIDTH - left)} height={8} />;
      })}
    </svg>
  );
}

function Axis({ from, to, zone }: { from: number; to: number; zone: Zone }) {
  const days = to - from > 36 * 3_600_000;
  return (
    <div className="axis" aria-hidden="true">
      {ticks(from, to, 6).map((tick) => (
        <span key={tick} style={{ left: `${((tick - from) / (to - from)) * 100}%` }}>
          {days ? formatDate(tick, zone).slice(5) : formatClock(tick, zone).slice(0, to - from > 300_000 ? 5 : 8)}
        </span>
      ))}
    </div>
  );
}
