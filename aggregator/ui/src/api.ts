// The aggregator's REST interface as these pages use it. No other file calls fetch, but for the event stream (stream.ts).

export interface Peer {
  node?: string;
  namespace?: string;
  pod?: string;
  workload?: string;
  /** The other end was the address of this service. */
  service?: string;
}

/** One abnormal thing at one time. Absent keys are left out; the node itself has namespace "" and pod "". */
export interface SondeEvent {
  id: number;
  /** RFC 3339 in UTC with microseconds. */
  time: string;
  node: string;
  namespace?: string;
  pod?: string;
  workload?: string;
  probe: string;
  type: string;
  reason?: string;
  protocol?: string;
  saddr?: string;
  sport?: number;
  daddr?: string;
  dport?: number;
  peer?: Peer;
  direction?: "ingress" | "egress" | "forward";
  latency_ns?: number;
  cpu?: number;
  pid?: number;
  comm?: string;
  state?: string;
  interface?: string;
  /** Hits the kernel side held back before this one. */
  suppressed?: number;
  /** Innermost first. */
  stack?: string[];
  attributes?: Record<string, unknown>;
}

export interface EventPage {
  events: SondeEvent[];
  next_cursor: string | null;
}

export interface EventStats {
  from: string;
  to: string;
  step_s: number;
  buckets: { time: string; count: number }[];
  /** Most frequent first; null counts the events that have no value there. */
  top: { value: string | null; count: number }[];
  total: number;
}

export interface Pod {
  node: string;
  namespace: string;
  pod: string;
  uid: string;
  workload: string;
  workload_kind: string;
  sandbox: string;
  ips: string[];
  labels: Record<string, string>;
  netns_inode: number;
  valid_from: string;
  valid_to: string | null;
}

interface PodPage {
  pods: Pod[];
  next_cursor: string | null;
}

export interface Node {
  node: string;
  version: string;
  kernel: string;
  boot_id: string | null;
  first_seen: string;
  last_seen: string;
  connected: boolean;
  interval_s: number;
  pods: number;
  /** Of the Kubernetes API, where that is read and knows the node. */
  labels?: Record<string, string>;
  ready?: string;
}

export type Kind = "counter" | "gauge" | "histogram";

export interface Column {
  name: string;
  metric: string;
  help: string;
  kind: Kind;
  unit: string;
}

export interface Probe {
  name: string;
  help: string;
  labels: { name: string; help: string }[];
  columns: Column[];
  event_types: { name: string; help: string }[];
}

/** A span in which something could not be seen or had to be dropped. */
export interface Gap {
  node: string;
  /** Empty: the whole node; absent: a network namespace of no known pod. */
  namespace?: string;
  pod?: string;
  /** Empty: all. */
  probe: string;
  cause: string;
  from: string;
  to: string;
  /** 0: not countable. */
  count: number;
  detail: string;
}

export interface GapList {
  /** Newest first. */
  gaps: Gap[];
  /** There are more: older ones are left out. */
  truncated: boolean;
}

/** Something that changed in the cluster. What does not apply is left out. */
export interface Change {
  id: number;
  time: string;
  /** It was not seen as it happened: it happened after this and not after `time`. */
  since?: string;
  kind: string;
  node?: string;
  namespace?: string;
  pod?: string;
  workload_kind?: string;
  workload?: string;
  service?: string;
  before?: string;
  after?: string;
  detail?: string;
}

export interface ChangePage {
  /** Newest first. */
  changes: Change[];
  next_cursor: string | null;
}

/** `[unix milliseconds, value]`; null is absent, an array is a histogram's buckets. */
export type Point = [number, number | number[] | null];

export interface RowSeries {
  node: string;
  namespace: string;
  pod: string;
  labels: Record<string, string>;
  columns: Record<string, Point[]>;
}

export interface ProbeRows {
  probe: string;
  from: string;
  to: string;
  series: RowSeries[];
}

/** What the aggregator refused or could not do, in the words of its problem JSON. */
export class ApiError extends Error {
  override name = "ApiError";
  constructor(
    /** HTTP status; 0 when no answer came at all. */
    readonly status: number,
    readonly title: string,
    readonly detail: string,
  ) {
    super(detail === "" ? title : `${title}: ${detail}`);
  }
}

const BASE = "/api/v1";

/** Query parameters in the order given; a key may repeat, and an empty value is sent (it means the node itself). */
export type Params = [string, string][];

export function apiUrl(path: string, params: Params = []): string {
  const query = new URLSearchParams(params).toString();
  return BASE + path + (query === "" ? "" : `?${query}`);
}

function text(value: unknown): string {
  return typeof value === "string" ? value : "";
}

/** Reads a failed answer: problem JSON where it is one, else what HTTP says. */
export async function problemOf(response: Response): Promise<ApiError> {
  const fallback = response.statusText === "" ? `HTTP ${response.status}` : `HTTP ${response.status} ${response.statusText}`;
  try {
    const body: unknown = JSON.parse(await response.text());
    if (typeof body === "object" && body !== null) {
      const { title, detail } = body as { title?: unknown; detail?: unknown };
      return new ApiError(response.status, text(title) || fallback, text(detail));
    }
  } catch {
    // Not JSON: a proxy in between answered.
  }
  return new ApiError(response.status, fallback, "");
}

/** Turns whatever fetch threw into an ApiError; an abort stays an abort. */
export function asApiError(error: unknown): ApiError {
  if (error instanceof ApiError) return error;
  return new ApiError(0, "no answer from the aggregator", error instanceof Error ? error.message : String(error));
}

async function get<T>(path: string, params: Params, signal?: AbortSignal): Promise<T> {
  const response = await fetch(apiUrl(path, params), {
    headers: { accept: "application/json" },
    ...(signal ? { signal } : {}),
  });
  if (!response.ok) throw await problemOf(response);
  return (await response.json()) as T;
}

const PODS_PAGE = 5000;

/** All pods that match, however many pages that takes. */
async function allPods(params: Params, signal?: AbortSignal): Promise<Pod[]> {
  const pods: Pod[] = [];
  let cursor: string | null = null;
  do {
    const where: Params = cursor === null ? [] : [["cursor", cursor]];
    const page: PodPage = await get<PodPage>("/pods", [...params, ["limit", String(PODS_PAGE)], ...where], signal);
    pods.push(...page.pods);
    cursor = page.next_cursor;
  } while (cursor !== null);
  return pods;
}

export const api = {
  events: (params: Params, signal?: AbortSignal) => get<EventPage>("/events", params, signal),
  eventStats: (params: Params, signal?: AbortSignal) => get<EventStats>("/events/stats", params, signal),
  pods: allPods,
  nodes: async (signal?: AbortSignal) => (await get<{ nodes: Node[] }>("/nodes", [], signal)).nodes,
  probes: async (signal?: AbortSignal) => (await get<{ probes: Probe[] }>("/probes", [], signal)).probes,
  gaps: (params: Params, signal?: AbortSignal) => get<GapList>("/gaps", params, signal),
  changes: (params: Params, signal?: AbortSignal) => get<ChangePage>("/changes", params, signal),
  rows: (probe: string, params: Params, signal?: AbortSignal) =>
    get<ProbeRows>(`/probes/${encodeURIComponent(probe)}/rows`, params, signal),
};
