// The nodes, and whether they still report.

import type { Node } from "./api";
import { formatInteger, formatSpan } from "./format";
import { useNow, useShared } from "./hooks";
import { Link, nodePath } from "./router";
import { ErrorNote, Time } from "./ui";

export function NodesPage() {
  const { nodes } = useShared();
  const now = useNow(1000);
  const sorted = [...(nodes.data ?? [])].sort((a, b) => Number(a.connected) - Number(b.connected) || a.node.localeCompare(b.node));
  return (
    <>
      <h1>Nodes</h1>
      {nodes.error !== null && <ErrorNote error={nodes.error} onRetry={nodes.reload} />}
      {nodes.data === null && nodes.error === null && <p className="loading">Loading …</p>}
      {nodes.data?.length === 0 && (
        <div className="empty bad">
          <h2>No node has ever connected</h2>
          <p>
            Start a collector that ships to this aggregator: <code>sonde-collector run</code>, or <code>sonde up</code> for this machine.
          </p>
        </div>
      )}
      {sorted.length > 0 && (
        <div className="scroll">
          <table className="list" data-testid="nodes">
            <thead>
              <tr>
                <th scope="col">node</th>
                <th scope="col">state</th>
                <th scope="col">last heard</th>
                <th scope="col" className="num">
                  pods
                </th>
                <th scope="col">kernel</th>
                <th scope="col">collector</th>
                <th scope="col">interval</th>
                <th scope="col">first seen</th>
              </tr>
            </thead>
            <tbody>
              {sorted.map((node) => (
                <tr key={node.node}>
                  <th scope="row">
                    <Link href={nodePath(node.node)}>{node.node}</Link>
                  </th>
                  <td data-name="state">
                    <NodeState node={node} />
                  </td>
                  <td data-name="last heard">{ago(node.last_seen, now)}</td>
                  <td className="num" data-name="pods">
                    <Link href={`/pods?${new URLSearchParams({ node: node.node }).toString()}`}>{formatInteger(node.pods)}</Link>
                  </td>
                  <td data-name="kernel">{node.kernel}</td>
                  <td data-name="collector">{node.version}</td>
                  <td data-name="interval">{node.interval_s} s</td>
                  <td data-name="first seen">
                    <Time at={node.first_seen} />
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </>
  );
}

export function NodeState({ node }: { node: Node }) {
  return <span className={`dot ${node.connected ? "good" : "bad"}`}>{node.connected ? "connected" : "not connected"}</span>;
}

/** `3s ago`; a clock that runs ahead counts as now. */
export function ago(at: string, now: number): string {
  const ms = Date.parse(at);
  return Number.isNaN(ms) ? at : `${formatSpan(Math.max(0, now - ms))} ago`;
}
