// The gaps of a range in words: silence must never look like health.

import type { Gap, GapList } from "./api";
import type { Resource } from "./hooks";
import { formatInteger, formatSpan, plural } from "./format";
import { ErrorNote, Time } from "./ui";

const MOST = 100;

export function GapNote({ gaps }: { gaps: Resource<GapList> }) {
  if (gaps.error !== null) return <ErrorNote error={gaps.error} onRetry={gaps.reload} />;
  if (gaps.data === null) return null;
  const { gaps: all, truncated } = gaps.data;
  if (all.length === 0) return <p className="gaps none">No gaps in this range: everything that was watched was seen.</p>;
  const lost = all.reduce((sum, gap) => sum + gap.count, 0);
  return (
    <details className="gaps" data-testid="gaps">
      <summary>
        <b>
          {truncated ? "more than " : ""}
          {plural(all.length, "gap")} in this range
        </b>
        {lost > 0 ? `, ${plural(lost, "item")} not seen` : ""}: {causes(all)}
      </summary>
      <div className="scroll">
        <table>
          <thead>
            <tr>
              <th scope="col">from</th>
              <th scope="col">for</th>
              <th scope="col">node</th>
              <th scope="col">pod</th>
              <th scope="col">probe</th>
              <th scope="col">cause</th>
              <th scope="col" className="num">
                count
              </th>
              <th scope="col">detail</th>
            </tr>
          </thead>
          <tbody>
            {all.slice(0, MOST).map((gap, i) => (
              <tr key={i}>
                <td>
                  <Time at={gap.from} short />
                </td>
                <td>{formatSpan(Date.parse(gap.to) - Date.parse(gap.from))}</td>
                <td>{gap.node}</td>
                <td>{gap.pod === undefined ? "unknown" : gap.pod === "" ? "whole node" : `${gap.namespace ?? ""}/${gap.pod}`}</td>
                <td>{gap.probe === "" ? "all" : gap.probe}</td>
                <td>{gap.cause}</td>
                <td className="num">{gap.count === 0 ? "unknown" : formatInteger(gap.count)}</td>
                <td>{gap.detail}</td>
              </tr>
            ))}
          </tbody>
        </table>
        {all.length > MOST && <p>… and {plural(all.length - MOST, "more gap")}.</p>}
      </div>
    </details>
  );
}

function causes(gaps: readonly Gap[]): string {
  return [...new Set(gaps.map((gap) => gap.cause))].slice(0, 4).join(", ");
}
