-- Facts of the cluster, from the Kubernetes API, each with the span in which it held; and what changed in it. One
-- aggregator, the one that holds an advisory lock, writes all of this; ids are given out by it, so they have no sequence.

create table sonde_store.cluster_watches (
    scope text primary key,
    seen timestamptz not null);
comment on table sonde_store.cluster_watches is 'How far each watch of the Kubernetes API has come';
comment on column sonde_store.cluster_watches.scope is 'What is watched: pods, or pods in one namespace: pods/shop';
comment on column sonde_store.cluster_watches.seen is
    'Everything up to then is in the tables. What is missing later went between then and the next list';

create table sonde_store.cluster_objects (
    id bigint primary key,
    kind text not null,
    uid text not null,
    namespace text not null default '',
    name text not null,
    version text not null default '',
    node text not null default '',
    runtime_uid text not null default '',
    owner_kind text not null default '',
    owner text not null default '',
    owner_uid text not null default '',
    workload_kind text not null default '',
    workload text not null default '',
    ips inet[] not null default '{}',
    labels jsonb not null default '{}',
    detail jsonb not null default '{}',
    state jsonb not null default '{}',
    digest bigint not null,
    valid_from timestamptz not null,
    valid_to timestamptz,
    updated timestamptz not null default now());
create unique index on sonde_store.cluster_objects (kind, uid) where valid_to is null;
create index on sonde_store.cluster_objects (kind, namespace, name);
create index on sonde_store.cluster_objects (runtime_uid) where runtime_uid <> '';
create index on sonde_store.cluster_objects (updated) where ips <> '{}';
create index on sonde_store.cluster_objects (valid_to) where valid_to is not null;
comment on table sonde_store.cluster_objects is
    'Pods, services, nodes and what owns pods: a row for each span in which an object had the same facts';
comment on column sonde_store.cluster_objects.kind is 'As Kubernetes has it: Pod, Service, Node, ReplicaSet, ...';
comment on column sonde_store.cluster_objects.version is 'resourceVersion when the row was written; for people only';
comment on column sonde_store.cluster_objects.node is 'Where a pod was scheduled';
comment on column sonde_store.cluster_objects.runtime_uid is
    'The uid by which the container runtime knows a pod: another than the API''s for static pods';
comment on column sonde_store.cluster_objects.owner is 'The controller of it';
comment on column sonde_store.cluster_objects.workload is 'Of a pod: the end of the chain of owners; empty while not known';
comment on column sonde_store.cluster_objects.ips is
    'By which it alone was known; empty for pods of the host''s network and for those that have ended';
comment on column sonde_store.cluster_objects.state is 'Newest readiness, restarts, boot id: what changes are told from';
comment on column sonde_store.cluster_objects.digest is 'Of the facts, to see whether they are others';
comment on column sonde_store.cluster_objects.updated is 'Other aggregators read what changed since they looked last';

create table sonde_store.cluster_endpoints (
    id bigint primary key,
    slice_uid text not null,
    namespace text not null,
    service text not null,
    ip inet not null,
    pod text not null default '',
    node text not null default '',
    ready boolean not null,
    valid_from timestamptz not null,
    valid_to timestamptz);
create index on sonde_store.cluster_endpoints (namespace, service, valid_to);
create index on sonde_store.cluster_endpoints (valid_to);
comment on table sonde_store.cluster_endpoints is
    'What stands behind services: a row for each span in which an address was in a slice, ready or not';

create sequence sonde_store.change_ids;
create table sonde_store.changes (
    time timestamptz not null,
    since timestamptz not null,
    id bigint not null,
    kind text not null,
    node text not null default '',
    namespace text not null default '',
    pod text not null default '',
    workload_kind text not null default '',
    workload text not null default '',
    service text not null default '',
    before text,
    after text,
    detail text not null default '')
    partition by range (time);
create index on sonde_store.changes (time, id);
create index on sonde_store.changes (namespace, pod, time) where pod <> '';
create index on sonde_store.changes (node, time) where node <> '';
comment on table sonde_store.changes is 'Names, not ids: a change is read long after what it is about has gone';

-- The peer of an event that is no pod of a collector's: a service, a node, or a pod where no collector runs.
alter table sonde_store.events add column peer_object_id bigint;
comment on column sonde_store.events.peer_object_id is
    'Row of cluster_objects that had the peer''s address at that time, where no row of pods had it';

-- What the API says of a pod goes before what its node could tell from names; that is kept beside it.
alter table sonde_store.pods add column said jsonb;
create index on sonde_store.pods (uid) where uid <> '';
comment on column sonde_store.pods.said is
    '{workload_kind, workload, labels} as the collector has them, where the Kubernetes API knows better; else null';

create view sonde.changes as
select time, since, id, kind, node, namespace, pod, workload_kind, workload, service, before, after, detail
from sonde_store.changes;
comment on view sonde.changes is 'What changed in the cluster, from the Kubernetes API: deletes, rollouts, restarts, readiness';
comment on column sonde.changes.time is 'When it happened; where that was not seen, the last moment at which it can have happened';
comment on column sonde.changes.since is 'Not before: equal to time where that is known';
comment on column sonde.changes.id is 'Ascends in the order in which changes were stored';
comment on column sonde.changes.kind is 'pod_created, pod_deleted, pod_restarted, readiness_changed, rollout, node_added, '
    'node_removed, node_ready_changed, node_restarted, node_cordoned, service_created, service_deleted, service_changed, '
    'endpoints_changed';
comment on column sonde.changes.node is 'Node it is about or that the pod ran on; empty = none';
comment on column sonde.changes.namespace is 'Kubernetes namespace; empty for nodes';
comment on column sonde.changes.pod is 'Pod it is about; empty = none';
comment on column sonde.changes.workload_kind is 'Kind of the workload';
comment on column sonde.changes.workload is 'Workload it is about or that made the pod; empty = none';
comment on column sonde.changes.service is 'Service it is about; empty = none';
comment on column sonde.changes.before is 'What was, in words; null = nothing to compare';
comment on column sonde.changes.after is 'What is, in words; null = nothing to compare';
comment on column sonde.changes.detail is 'Why, in the words of Kubernetes, or what else is known';

create view sonde.services as
select namespace, name as service, detail->>'type' as type, ips, detail->'ports' as ports, detail->'selector' as selector,
       labels, valid_from, valid_to
from sonde_store.cluster_objects
where kind = 'Service';
comment on view sonde.services is 'Services: one row for each span in which one had the same addresses, ports, selector and labels';
comment on column sonde.services.namespace is 'Kubernetes namespace';
comment on column sonde.services.service is 'Name of the service';
comment on column sonde.services.type is 'ClusterIP, NodePort, LoadBalancer or ExternalName';
comment on column sonde.services.ips is 'Cluster addresses, external addresses and those of load balancers; empty when headless';
comment on column sonde.services.ports is '[{port, protocol, name, target_port, node_port}]';
comment on column sonde.services.selector is 'Labels of the pods behind it';
comment on column sonde.services.labels is 'Kubernetes labels of the service';
comment on column sonde.services.valid_from is 'Since when it was so';
comment on column sonde.services.valid_to is 'Until when; null while it is';

create view sonde.endpoints as
select namespace, service, ip, pod, node, ready, valid_from, valid_to
from sonde_store.cluster_endpoints;
comment on view sonde.endpoints is 'What stands behind services, with the span in which it did';
comment on column sonde.endpoints.namespace is 'Kubernetes namespace';
comment on column sonde.endpoints.service is 'Name of the service';
comment on column sonde.endpoints.ip is 'Address';
comment on column sonde.endpoints.pod is 'Pod that has it; empty where it is none';
comment on column sonde.endpoints.node is 'Node of the pod';
comment on column sonde.endpoints.ready is 'Whether it takes connections';
comment on column sonde.endpoints.valid_from is 'Since when it was so';
comment on column sonde.endpoints.valid_to is 'Until when; null while it is';

create view sonde.cluster_nodes as
select name as node, labels, ips, detail->'addresses' as addresses, detail->>'kubelet' as kubelet,
       state->>'ready' as ready, valid_from, valid_to
from sonde_store.cluster_objects
where kind = 'Node';
comment on view sonde.cluster_nodes is 'Nodes as the Kubernetes API has them: one row for each span with the same addresses and labels';
comment on column sonde.cluster_nodes.node is 'Kubernetes node name';
comment on column sonde.cluster_nodes.labels is 'Kubernetes labels';
comment on column sonde.cluster_nodes.ips is 'Its addresses';
comment on column sonde.cluster_nodes.addresses is '[{type, address}], names included';
comment on column sonde.cluster_nodes.kubelet is 'Version of its kubelet';
comment on column sonde.cluster_nodes.ready is 'ready, not ready or unknown, as it was last in that span';
comment on column sonde.cluster_nodes.valid_from is 'Since when it was so';
comment on column sonde.cluster_nodes.valid_to is 'Until when; null while it is';

create or replace view sonde.events as
select e.time, e.id, n.name as node, p.namespace, p.name as pod, p.workload,
       probe.text as probe, type.text as type, reason.text as reason, protocol.text as protocol,
       e.saddr, e.sport, e.daddr, e.dport,
       coalesce((select pn.name from sonde_store.nodes pn where pn.id = peer.node_id),
                (select case o.kind when 'Node' then o.name else nullif(o.node, '') end
                 from sonde_store.cluster_objects o where o.id = e.peer_object_id)) as peer_node,
       coalesce(peer.namespace, (select o.namespace from sonde_store.cluster_objects o where o.id = e.peer_object_id))
           as peer_namespace,
       coalesce(peer.name, (select case o.kind when 'Pod' then o.name when 'Node' then '' end
                            from sonde_store.cluster_objects o where o.id = e.peer_object_id)) as peer_pod,
       coalesce(peer.workload, (select nullif(o.workload, '')
                                from sonde_store.cluster_objects o where o.id = e.peer_object_id)) as peer_workload,
       case e.direction when 1 then 'ingress' when 2 then 'egress' when 3 then 'forward' end as direction,
       e.latency_ns, e.cpu, e.pid,
       (select s.text from sonde_store.strings s where s.id = e.comm) as comm,
       (select s.text from sonde_store.strings s where s.id = e.state) as state,
       (select s.text from sonde_store.strings s where s.id = e.interface) as interface,
       e.suppressed,
       (select s.frames from sonde_store.stacks s where s.id = e.stack_id) as stack,
       e.attributes,
       (select o.name from sonde_store.cluster_objects o where o.id = e.peer_object_id and o.kind = 'Service')
           as peer_service
-- Eight relations are joined, the others are looked up for each row shown: see 0002.
from sonde_store.events e
join sonde_store.nodes n on n.id = e.node_id
join sonde_store.strings probe on probe.id = e.probe
join sonde_store.strings type on type.id = e.type
left join sonde_store.pods p on p.id = e.pod_id
left join sonde_store.strings reason on reason.id = e.reason
left join sonde_store.strings protocol on protocol.id = e.protocol
left join sonde_store.pods peer on peer.id = e.peer_pod_id;
comment on column sonde.events.peer_node is 'Node of the pod at the other end, or the node that is the other end';
comment on column sonde.events.peer_namespace is 'Namespace of the pod or service at the other end; empty = a node itself';
comment on column sonde.events.peer_pod is 'Pod at the other end, where it is one; empty = a node itself';
comment on column sonde.events.peer_service is 'Service whose address the other end was, at that time';

do $$
begin
    if exists (select from pg_roles where rolname = 'sonde_reader') then
        grant select on sonde.changes, sonde.services, sonde.endpoints, sonde.cluster_nodes to sonde_reader;
    end if;
end $$;
