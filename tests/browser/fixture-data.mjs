// The data behind the fixture server. Made by rule from numbers, so that each run shows the same.

const STACK = [
  "kfree_skb_list_reason+0x1a0",
  "nf_hook_slow+0xc3",
  "ip_local_deliver+0xd1",
  "ip_sublist_rcv_finish+0x7e",
  "ip_list_rcv+0x12c",
  "__netif_receive_skb_list_core+0x26b",
  "netif_receive_skb_list_internal+0x1d4",
  "napi_complete_done+0x6f",
  "veth_poll+0x15c",
  "__napi_poll+0x2b",
  "net_rx_action+0x32f",
  "handle_softirqs+0xe4",
];

export function micros(ms) {
  return `${new Date(ms).toISOString().slice(0, -1)}000Z`;
}

const KINDS = [
  { probe: "packetloss", type: "PACKETLOSS", reason: "NETFILTER_DROP", protocol: "UDP", direction: "ingress", interface: "eth0", stack: STACK, attributes: { class: "suspect", symbol: "nf_hook_slow" } },
  { probe: "packetloss", type: "PACKETLOSS", reason: "NO_SOCKET", protocol: "UDP", direction: "ingress", interface: "eth0", stack: STACK.slice(3) },
  { probe: "tcpreset", type: "TCPRESET_NOSOCK", protocol: "TCP", direction: "egress", state: "CLOSE" },
  { probe: "tcpretrans", type: "TCPRETRANS", protocol: "TCP", direction: "egress", state: "ESTABLISHED", suppressed: 12 },
  { probe: "socketlatency", type: "SOCKETLAT_READSLOW", protocol: "TCP", latency_ns: 134_500_000, pid: 4711, comm: "postgres", cpu: 3 },
  { probe: "packetloss", type: "PACKETLOSS", reason: "SOCKET_RCVBUFF", protocol: "UDP", direction: "ingress", interface: "eth0" },
];

const SUBJECTS = [
  { node: "node-a", namespace: "demo", pod: "server", workload: "server", ip: "10.1.0.2" },
  { node: "node-a", namespace: "demo", pod: "client", workload: "client", ip: "10.1.0.3" },
  { node: "node-b", namespace: "shop", pod: "checkout-7d9f8b6c5-x2x7p", workload: "checkout", ip: "10.1.1.7" },
  { node: "node-b", namespace: "", pod: "", ip: "192.168.1.20" },
  { node: "node-b", ip: "172.16.9.9" },
];

/** The n-th event, `age` ms back. */
export function eventAt(id, age, change = {}) {
  const { ip, ...subject } = SUBJECTS[id % SUBJECTS.length];
  const other = SUBJECTS[(id + 1) % 3];
  return {
    id,
    time: micros(Date.now() - age),
    ...subject,
    ...KINDS[(id * 7) % KINDS.length],
    saddr: other.ip,
    sport: 30_000 + (id % 1000),
    daddr: id % 11 === 0 ? "2001:db8:aaaa:bbbb:cccc:dddd:eeee:1" : ip,
    dport: [53, 443, 5432][id % 3],
    peer: { node: other.node, namespace: other.namespace, pod: other.pod, workload: other.workload },
    ...change,
  };
}

function pod(subject, change = {}) {
  return {
    node: subject.node,
    namespace: subject.namespace,
    pod: subject.pod,
    uid: `0d9a6c1e-77f2-4c0e-9d55-${subject.pod.length.toString().padStart(12, "0")}`,
    workload: subject.workload ?? "",
    workload_kind: subject.workload ? "Deployment" : "",
    sandbox: "3f1c9d0c9f4c",
    ips: [subject.ip],
    labels: { app: subject.workload ?? "" },
    netns_inode: 4_026_532_800,
    valid_from: micros(Date.now() - 7_200_000),
    valid_to: null,
    ...change,
  };
}

function node(name, change = {}) {
  return {
    node: name,
    version: "0.1.0",
    kernel: "6.12.9",
    boot_id: "b5b1a5cc-0f8f-4b3e-8a26-7d6d6cf9bb01",
    first_seen: micros(Date.now() - 86_400_000),
    last_seen: micros(Date.now() - 1000),
    connected: true,
    interval_s: 5,
    pods: 2,
    ...change,
  };
}

function column(name, kind, unit, help = `What ${name} says.`) {
  return { name, metric: `sonde_x_${name}${kind === "counter" ? "_total" : ""}`, help, kind, unit };
}

const PROBES = [
  {
    name: "netdev",
    help: "Traffic, errors and drops of each network device of the pod",
    labels: [{ name: "device", help: "Interface name" }],
    columns: [
      column("receive_bytes", "counter", "bytes"),
      column("transmit_bytes", "counter", "bytes"),
      column("receive_packets", "counter", "packets"),
      column("transmit_packets", "counter", "packets"),
      column("receive_errors", "counter", "packets"),
      column("receive_dropped", "counter", "packets"),
    ],
    event_types: [],
  },
  {
    name: "packetloss",
    help: "Packets the kernel dropped, by reason",
    labels: [
      { name: "reason", help: "The kernel's name of the reason" },
      { name: "class", help: "suspect, protocol or benign" },
    ],
    columns: [column("drops", "counter", "packets"), column("segments", "counter", "segments")],
    event_types: [{ name: "PACKETLOSS", help: "The kernel dropped a packet" }],
  },
  {
    name: "tcp",
    help: "TCP counters of the network namespace (SNMP MIB)",
    labels: [],
    columns: [column("retranssegs", "counter", "segments"), column("currestab", "gauge", "connections"), column("outrsts", "counter", "segments"), ...Array.from({ length: 30 }, (_, i) => column(`still_counter_${i}`, "counter", "segments"))],
    event_types: [],
  },
  { name: "sock", help: "Sockets and their memory", labels: [], columns: [column("inuse", "gauge", "sockets"), column("mem_bytes", "gauge", "bytes")], event_types: [] },
  { name: "socketlatency", help: "Time from data in the socket to the read", labels: [], columns: [column("read_latency_seconds", "histogram", "seconds"), column("busy_seconds", "counter", "seconds")], event_types: [{ name: "SOCKETLAT_READSLOW", help: "" }] },
  { name: "softnet", help: "Per-CPU packet processing of the node, summed", labels: [], columns: [column("processed", "counter", "packets"), column("time_squeeze", "counter", "times")], event_types: [] },
];

const LABELS = {
  netdev: [{ device: "eth0" }, { device: "lo" }],
  packetloss: [
    { reason: "NETFILTER_DROP", class: "suspect" },
    { reason: "NO_SOCKET", class: "protocol" },
  ],
};

/** Rows with a reset in the middle, a hole at a third and a few absent values. */
function rows({ probe, subject, from, to, maxPoints }) {
  if (probe.name === "softnet" && subject.pod !== "") return [];
  const step = Math.max(15_000, Math.ceil((to - from) / maxPoints / 15_000) * 15_000);
  const times = [];
  for (let time = Math.ceil(from / step) * step; time <= to; time += step) times.push(time);
  return (LABELS[probe.name] ?? [{}]).map((labels, which) => ({
    ...subject,
    labels,
    columns: Object.fromEntries(probe.columns.map((one, i) => [one.name, times.map((time, n) => [time, value(one, i + which * 3, time, n, times.length)]).filter(([, v]) => v !== undefined)])),
  }));
}

function value(one, seed, time, n, count) {
  const part = n / count;
  if (part > 0.33 && part < 0.38) return undefined;
  if (part > 0.7 && part < 0.72) return null;
  if (one.name.startsWith("still") || one.name.endsWith("errors")) return 7;
  const wave = 1 + 0.5 * Math.sin(time / 400_000 + seed);
  if (one.kind === "histogram") return [n * 3, n * 2, Math.floor(n / 4), 0, n * 0.01 + Math.sin(n / 9) * 0.05];
  if (one.kind === "gauge") return Math.round((one.unit === "bytes" ? 4_000_000 : 310) * wave);
  // Never falls but where it is reset, half an hour back.
  const reset = Math.floor(Date.now() / 3_600_000) * 3_600_000 - 1_800_000;
  const seconds = (time < reset ? time - 1_700_000_000_000 : time - reset) / 1000;
  const speed = one.unit === "bytes" ? 250_000 : one.unit === "seconds" ? 0.04 : 12;
  const raw = speed * (seed + 1) * (seconds + 300 * (Math.sin(seconds / 400 + seed) - Math.sin(seed)));
  return one.unit === "seconds" ? raw : Math.floor(raw);
}

const changes = () => [
  { id: 2, time: micros(Date.now() - 500_000), kind: "readiness_changed", node: "node-a", namespace: "demo", pod: "server", workload_kind: "Deployment", workload: "server", before: "ready", after: "not ready", detail: "ContainersNotReady: containers with unready status: [app]" },
  { id: 1, time: micros(Date.now() - 700_000), since: micros(Date.now() - 730_000), kind: "node_restarted", node: "node-a", before: "boot-1", after: "boot-2" },
];

export function busyScenario(count = 400) {
  const events = Array.from({ length: count }, (_, i) => eventAt(count - i, i * 7000 + 1500 + (i % 5) * 300));
  const gap = (from, to, change = {}) => ({
    node: "node-a",
    namespace: "",
    pod: "",
    probe: "packetloss",
    cause: "rate_limited",
    from: micros(Date.now() - from),
    to: micros(Date.now() - to),
    count: 120,
    detail: "events held back in the kernel",
    ...change,
  });
  return {
    events,
    nodes: [node("node-a"), node("node-b", { pods: 1 }), node("node-c", { connected: false, last_seen: micros(Date.now() - 400_000), pods: 0 })],
    pods: [...SUBJECTS.slice(0, 3).map((subject) => pod(subject)), pod(SUBJECTS[0], { uid: "old-uid", valid_from: micros(Date.now() - 90_000_000), valid_to: micros(Date.now() - 7_200_000) })],
    probes: PROBES,
    gaps: [gap(1_900_000, 1_600_000), gap(600_000, 599_000, { namespace: "demo", pod: "server" }), gap(400_000, 0, { node: "node-c", probe: "", cause: "disconnected", count: 0, detail: "no collector connected" })],
    changes: changes(),
    rows,
  };
}

export function quietScenario() {
  return { ...busyScenario(), events: [], gaps: [], changes: [], nodes: [node("node-a")] };
}

/** Everything at its longest. */
export function longNamesScenario() {
  const long = "a-very-long-name-of-a-thing-that-somebody-generated-".repeat(4).slice(0, 190);
  const subject = { node: `node-${long}`, namespace: long.slice(0, 63), pod: long, workload: long, ip: "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff" };
  const events = Array.from({ length: 30 }, (_, i) =>
    eventAt(30 - i, i * 1000 + 500, {
      ...subject,
      reason: "A_REASON_OF_A_KERNEL_TO_COME_THAT_IS_VERY_LONG_INDEED",
      saddr: subject.ip,
      daddr: subject.ip,
      stack: [`${long}+0x1`, ...STACK],
      attributes: { note: long, nested: { a: [1, 2, null] } },
    }),
  );
  return { ...busyScenario(), events, nodes: [node(subject.node, { kernel: long })], pods: [pod(subject, { labels: { [long]: long } })] };
}
