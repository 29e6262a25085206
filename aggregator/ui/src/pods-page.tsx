// All pods that are watched now, or ever were.

import { useState } from "react";

import { api, type Pod } from "./api";
import { formatInteger, plural } from "./format";
import { useResource, useShared } from "./hooks";
import { Link, navigate, nodePath, podPath } from "./router";
import { ErrorNote, Time } from "./ui";

const PODS_MS = 10_000;
const MOST = 500;

/** Pods that hold every word of the text somewhere in their names, addresses, workload or labels. */
export function matchPods(pods: readonly Pod[], text: string): Pod[] {
  const words = text.toLowerCase().split(/\s+/).filter((word) => word !== "");
  return pods.filter((pod) => {
    const all = [pod.namespace, pod.pod, pod.node, pod.workload, pod.uid, ...pod.ips, ...Object.entries(pod.labels).map(([name, value]) => `${name}=${value}`)]
      .join(" ")
      .toLowerCase();
    return words.every((word) => all.includes(word));
  });
}

export function PodsPage({ search }: { search: string }) {
  const params = new URLSearchParams(search);
  const text = params.get("q") ?? "";
  const namespace = params.get("namespace") ?? "";
  const node = params.get("node") ?? "";
  const ended = params.get("all") === "true";
  const { nodes } = useShared();
  const query: [string, string][] = ended ? [["all", "true"]] : [];
  const pods = useResource(`pods ${ended}`, (signal) => api.pods(query, signal), PODS_MS);
  const [most, setMost] = useState(MOST);
  const set = (key: string, value: string) => {
    const next = new URLSearchParams(search);
    if (value === "") next.delete(key);
    else next.set(key, value);
    const tail = next.toString();
    navigate(tail === "" ? "/pods" : `/pods?${tail}`, key === "q" ? "replace" : "push");
  };
  const real = (pods.data ?? []).filter((pod) => pod.pod !== "");
  const found = matchPods(real, text)
    .filter((pod) => (namespace === "" || pod.namespace === namespace) && (node === "" || pod.node === node))
    .sort(
      (a, b) =>
        Number(a.valid_to !== null) - Number(b.valid_to !== null) ||
        a.namespace.localeCompare(b.namespace) ||
        a.pod.localeCompare(b.pod) ||
        a.node.localeCompare(b.node) ||
        b.valid_from.localeCompare(a.valid_from),
    );
  const namespaces = [...new Set([...real.map((pod) => pod.namespace), ...(namespace === "" ? [] : [namespace])])].sort();
  const nodeNames = [...new Set([...(nodes.data ?? []).map((one) => one.node), ...(node === "" ? [] : [node])])].sort();
  return (
    <>
      <h1>Pods</h1>
      <form
        className="filters pod-search"
        role="search"
        aria-label="Filter pods"
        onSubmit={(event) => {
          event.preventDefault();
        }}
      >
        <div className="field wide">
          <label htmlFor="pods-q">text</label>
          <input
            id="pods-q"
            name="q"
            type="search"
            placeholder="name, address, workload, label"
            defaultValue={text}
            onChange={(event) => {
              set("q", event.target.value);
            }}
          />
        </div>
        <Choice name="namespace" value={namespace} values={namespaces} onChange={set} />
        <Choice name="node" value={node} values={nodeNames} onChange={set} />
        <label className="check">
          <input
            type="checkbox"
            checked={ended}
            onChange={(event) => {
              set("all", event.target.checked ? "true" : "");
            }}
          />
          ended ones too
        </label>
      </form>
      {pods.error !== null && <ErrorNote error={pods.error} onRetry={pods.reload} />}
      {pods.data === null && pods.error === null && <p className="loading">Loading …</p>}
      {pods.data !== null && (
        <p className="summary" role="status">
          {found.length === real.length ? plural(real.length, "pod") : `${formatInteger(found.length)} of ${plural(real.length, "pod")}`}
        </p>
      )}
      {pods.data !== null && found.length === 0 && (
        <div className="empty">
          <h2>{real.length === 0 ? "No pods are known" : "No pod matches"}</h2>
          {real.length === 0 && (
            <p>
              Pods come from the container runtime (<code>pods.sources: [cri]</code>) or from named network namespaces (<code>pods.sources: [netns]</code>) of
              connected nodes.
            </p>
          )}
        </div>
      )}
      {found.length > 0 && <PodTable pods={found.slice(0, most)} />}
      {found.length > most && (
        <p className="end">
          <button
            type="button"
            onClick={() => {
              setMost(most + MOST);
            }}
          >
            Show more of {formatInteger(found.length - most)}
          </button>
        </p>
      )}
    </>
  );
}

function Choice(props: { name: string; value: string; values: string[]; onChange: (name: string, value: string) => void }) {
  const id = `pods-${props.name}`;
  return (
    <div className="field">
      <label htmlFor={id}>{props.name}</label>
      <select
        id={id}
        value={props.value}
        onChange={(event) => {
          props.onChange(props.name, event.target.value);
        }}
      >
        <option value="">any</option>
        {props.values.map((value) => (
          <option key={value}>{value}</option>
        ))}
      </select>
    </div>
  );
}

export function PodTable({ pods }: { pods: readonly Pod[] }) {
  return (
    <div className="scroll">
      <table className="list" data-testid="pods">
        <thead>
          <tr>
            <th scope="col">pod</th>
            <th scope="col">node</th>
            <th scope="col">workload</th>
            <th scope="col">addresses</th>
            <th scope="col">since</th>
            <th scope="col">until</th>
          </tr>
        </thead>
        <tbody>
          {pods.map((pod) => (
            <tr key={`${pod.node}/${pod.namespace}/${pod.pod}/${pod.uid}/${pod.valid_from}`} className={pod.valid_to === null ? "" : "ended"}>
              <th scope="row">
                <Link href={podHref(pod)}>
                  <span className="ns">{pod.namespace}/</span>
                  {pod.pod}
                </Link>
              </th>
              <td data-name="node">
                <Link href={nodePath(pod.node)}>{pod.node}</Link>
              </td>
              <td data-name="workload">{workloadName(pod)}</td>
              <td className="mono" data-name="addresses">{pod.ips.join(" ")}</td>
              <td data-name="since">
                <Time at={pod.valid_from} short />
              </td>
              <td data-name="until">{pod.valid_to === null ? "live" : <Time at={pod.valid_to} short />}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

export function workloadName(pod: Pick<Pod, "workload" | "workload_kind">): string {
  return [pod.workload_kind, pod.workload].filter((part) => part !== "").join("/");
}

const LAST_MS = 3_600_000;

/** The page of a pod; of one that ended, its last hour. */
function podHref(pod: Pod): string {
  const path = podPath(pod.node, pod.namespace, pod.pod);
  if (pod.valid_to === null) return path;
  const end = Date.parse(pod.valid_to);
  const range = new URLSearchParams({ from: new Date(end - LAST_MS).toISOString(), to: new Date(end + 60_000).toISOString() });
  return `${path}?${range.toString()}`;
}
