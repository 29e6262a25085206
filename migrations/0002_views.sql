-- What people and Grafana read. sonde.<probe> views are made with their tables, from the catalogue.

create schema sonde;
comment on schema sonde is 'Sonde: what the network did to every pod. One row a fact, text names, UTC times; read-only';

-- Roles belong to the whole server: another Sonde database on it may have made this one, or an administrator has to.
do $$
begin
    create role sonde_reader nologin;
exception
    when duplicate_object or unique_violation then null;
    when insufficient_privilege then
        raise warning 'may not create role sonde_reader: create it (nologin) and grant it usage and select in schema sonde';
end $$;

create view sonde.nodes as
select name as node, version, kernel, boot_id, first_seen, last_seen, interval_ns * 1e-9::float8 as interval_seconds
from sonde_store.nodes;
comment on view sonde.nodes is 'One row for each node that ever sent something';
comment on column sonde.nodes.node is 'Kubernetes node name';
comment on column sonde.nodes.version is 'Version of its collector';
comment on column sonde.nodes.kernel is 'Kernel release';
comment on column sonde.nodes.boot_id is 'Changes with each boot of the node';
comment on column sonde.nodes.first_seen is 'When its first collector connected';
comment on column sonde.nodes.last_seen is 'When a collector of it was connected last, to about ten seconds';
comment on column sonde.nodes.interval_seconds is 'How often its metrics are read';

create view sonde.pods as
select n.name as node, p.namespace, p.name as pod, p.uid, p.workload, p.workload_kind, p.sandbox, p.ips, p.labels,
       p.host_network, p.netns_inode, p.netns_cookie, p.valid_from, p.valid_to
from sonde_store.pods p
join sonde_store.nodes n on n.id = p.node_id;
comment on view sonde.pods is 'One row for each pod sandbox ever seen, with the span in which it was there';
comment on column sonde.pods.node is 'Node it runs or ran on';
comment on column sonde.pods.namespace is 'Kubernetes namespace; "netns" for a network namespace without one';
comment on column sonde.pods.pod is 'Pod name';
comment on column sonde.pods.uid is 'Kubernetes uid; empty for a network namespace without Kubernetes';
comment on column sonde.pods.workload is 'Name of what made the pod: Deployment, DaemonSet, ...; empty if nothing did';
comment on column sonde.pods.workload_kind is 'Kind of the workload';
comment on column sonde.pods.sandbox is 'Unique on its node, also over time: a recreated pod has another';
comment on column sonde.pods.ips is 'Its addresses';
comment on column sonde.pods.labels is 'Kubernetes labels';
comment on column sonde.pods.host_network is 'Whether it shares the network of its node';
comment on column sonde.pods.netns_inode is 'Inode of its network namespace; reused by the kernel after it is gone';
comment on column sonde.pods.netns_cookie is 'Cookie of its network namespace, never reused; 0 where the kernel has none';
comment on column sonde.pods.valid_from is 'When it began';
comment on column sonde.pods.valid_to is 'When it ended; null while it is there';

create view sonde.events as
select e.time, e.id, n.name as node, p.namespace, p.name as pod, p.workload,
       probe.text as probe, type.text as type, reason.text as reason, protocol.text as protocol,
       e.saddr, e.sport, e.daddr, e.dport,
       (select pn.name from sonde_store.nodes pn where pn.id = peer.node_id) as peer_node,
       peer.namespace as peer_namespace, peer.name as peer_pod, peer.workload as peer_workload,
       case e.direction when 1 then 'ingress' when 2 then 'egress' when 3 then 'forward' end as direction,
       e.latency_ns, e.cpu, e.pid,
       (select s.text from sonde_store.strings s where s.id = e.comm) as comm,
       (select s.text from sonde_store.strings s where s.id = e.state) as state,
       (select s.text from sonde_store.strings s where s.id = e.interface) as interface,
       e.suppressed,
       (select s.frames from sonde_store.stacks s where s.id = e.stack_id) as stack,
       e.attributes
-- Eight relations are joined, the others are looked up for each row shown: beyond eight the planner would join in
-- the order written (join_collapse_limit) and could no longer start from a filter on a pod or a reason.
from sonde_store.events e
join sonde_store.nodes n on n.id = e.node_id
join sonde_store.strings probe on probe.id = e.probe
join sonde_store.strings type on type.id = e.type
left join sonde_store.pods p on p.id = e.pod_id
left join sonde_store.strings reason on reason.id = e.reason
left join sonde_store.strings protocol on protocol.id = e.protocol
left join sonde_store.pods peer on peer.id = e.peer_pod_id;
comment on view sonde.events is 'One row for each abnormal thing that happened to a packet, connection or device';
comment on column sonde.events.time is 'When it happened';
comment on column sonde.events.id is 'Ascends in the order in which events became visible here, over all nodes';
comment on column sonde.events.node is 'Node that saw it';
comment on column sonde.events.namespace is 'Namespace of the pod; empty = the node itself; null = a network namespace of no known pod';
comment on column sonde.events.pod is 'Pod it happened to; empty = the node itself; null = a network namespace of no known pod';
comment on column sonde.events.workload is 'Workload of the pod';
comment on column sonde.events.probe is 'Probe that saw it';
comment on column sonde.events.type is 'What it was, such as PACKETLOSS';
comment on column sonde.events.reason is 'Why, in the words of the kernel where it has some';
comment on column sonde.events.protocol is 'TCP, UDP, ICMP, ICMPv6, IP, ARP, or an EtherType as 0x88cc';
comment on column sonde.events.saddr is 'Source address of the packet or connection';
comment on column sonde.events.sport is 'Source port';
comment on column sonde.events.daddr is 'Destination address';
comment on column sonde.events.dport is 'Destination port';
comment on column sonde.events.peer_node is 'Node of the pod at the other end';
comment on column sonde.events.peer_namespace is 'Namespace of the pod at the other end';
comment on column sonde.events.peer_pod is 'Pod at the other end, where it is one';
comment on column sonde.events.peer_workload is 'Workload of the pod at the other end';
comment on column sonde.events.direction is 'ingress, egress or forward; null = not known';
comment on column sonde.events.latency_ns is 'How long it took, nanoseconds, for events about time';
comment on column sonde.events.cpu is 'Processor it happened on';
comment on column sonde.events.pid is 'Process it belongs to; null = not known to be its own';
comment on column sonde.events.comm is 'Name of that process';
comment on column sonde.events.state is 'State of the connection';
comment on column sonde.events.interface is 'Network device';
comment on column sonde.events.suppressed is 'How many more of this pod and type were held back since the one before';
comment on column sonde.events.stack is 'Kernel stack, innermost first';
comment on column sonde.events.attributes is 'What else the probe said, texts by name';

create view sonde.gaps as
select g.from_time as time, g.to_time as end_time, n.name as node, p.namespace, p.name as pod, g.probe, g.cause, g.count,
       g.detail
from sonde_store.gaps g
join sonde_store.nodes n on n.id = g.node_id
left join sonde_store.pods p on p.id = g.pod_id;
comment on view sonde.gaps is 'Spans in which something could not be seen or had to be dropped: silence is not health';
comment on column sonde.gaps.time is 'When it began';
comment on column sonde.gaps.end_time is 'When it ended';
comment on column sonde.gaps.node is 'Node that could not see';
comment on column sonde.gaps.namespace is 'Namespace of the pod; empty = the whole node; null = a network namespace of no known pod';
comment on column sonde.gaps.pod is 'Pod; empty = the whole node; null = a network namespace of no known pod';
comment on column sonde.gaps.probe is 'Probe that misses something; empty = all';
comment on column sonde.gaps.cause is 'One word of a fixed set, such as rate_limited';
comment on column sonde.gaps.count is 'How many events, rows or hits are missing; 0 = not countable';
comment on column sonde.gaps.detail is 'In words';

do $$
begin
    if exists (select from pg_roles where rolname = 'sonde_reader') then
        grant usage on schema sonde to sonde_reader;
        grant select on all tables in schema sonde to sonde_reader;
    end if;
end $$;
