// Changes of the cluster in words. No React: this is the part that is tested.

import type { Change } from "./api";
import { formatSpan } from "./format";

/** `pod_deleted` is "pod deleted". */
export function kindWords(kind: string): string {
  return kind.replaceAll("_", " ");
}

/** What it is about. */
export function changeSubject(change: Change): string {
  const { namespace, pod, service, workload, workload_kind: kind, node } = change;
  const within = (name: string) => (namespace === undefined ? name : `${namespace}/${name}`);
  if (pod !== undefined) return within(pod);
  if (service !== undefined) return `service ${within(service)}`;
  if (workload !== undefined) return `${kind ?? "workload"} ${within(workload)}`;
  return node === undefined ? "" : `node ${node}`;
}

/** `3 of 3 ready → 2 of 3 ready`; what came or went has only one side. */
export function changeMove({ before, after }: Change): string {
  if (before === undefined) return after ?? "";
  return after === undefined ? `was ${before}` : `${before} → ${after}`;
}

/** How long before its time it may have happened; empty where it was seen. */
export function changeDoubt({ since, time }: Change): string {
  if (since === undefined) return "";
  const ms = Date.parse(time) - Date.parse(since);
  return Number.isNaN(ms) ? "" : `or up to ${formatSpan(ms)} before`;
}

/** Kinds, most frequent first: `readiness changed 4, pod deleted`. */
export function changeKinds(changes: readonly Change[], most = 4): string {
  const counts = new Map<string, number>();
  for (const { kind } of changes) counts.set(kind, (counts.get(kind) ?? 0) + 1);
  const sorted = [...counts].sort((a, b) => b[1] - a[1]);
  const words = sorted.slice(0, most).map(([kind, count]) => (count === 1 ? kindWords(kind) : `${kindWords(kind)} ${count}`));
  return words.join(", ") + (sorted.length > most ? ", …" : "");
}
