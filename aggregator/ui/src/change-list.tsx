// What changed in the cluster in a range: deletes, rollouts, restarts, readiness. Nothing is shown where nothing is known.

import type { ChangePage } from "./api";
import { changeDoubt, changeKinds, changeMove, changeSubject, kindWords } from "./changes";
import { plural } from "./format";
import type { Resource } from "./hooks";
import { ErrorNote, Time } from "./ui";

export function ChangeNote({ changes }: { changes: Resource<ChangePage> }) {
  if (changes.error !== null) return <ErrorNote error={changes.error} onRetry={changes.reload} />;
  // Without the Kubernetes API there never are any: then this would only be noise.
  if (changes.data === null || changes.data.changes.length === 0) return null;
  const { changes: all, next_cursor: more } = changes.data;
  return (
    <details className="gaps changes" data-testid="changes">
      <summary>
        <b>
          {more === null ? "" : "more than "}
          {plural(all.length, "change")} of the cluster in this range
        </b>
        : {changeKinds(all)}
      </summary>
      <div className="scroll">
        <table>
          <thead>
            <tr>
              <th scope="col">time</th>
              <th scope="col">what</th>
              <th scope="col">of</th>
              <th scope="col">from → to</th>
              <th scope="col">detail</th>
            </tr>
          </thead>
          <tbody>
            {all.map((change) => (
              <tr key={change.id}>
                <td>
                  <Time at={change.time} short /> <small>{changeDoubt(change)}</small>
                </td>
                <td>{kindWords(change.kind)}</td>
                <td>{changeSubject(change)}</td>
                <td>{changeMove(change)}</td>
                <td>{change.detail}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </details>
  );
}
