-- Fixed tables. The probe_<name> tables are made from the catalogue, with the same node_id, pod_id and time columns.
-- People and Grafana read the views of schema sonde (0002), never these.

create schema sonde_store;
comment on schema sonde_store is 'How Sonde keeps things; may change with any version. Read the views in schema sonde.';

create table sonde_store.nodes (
    id int generated always as identity primary key,
    name text not null unique,
    boot_id uuid,
    version text not null default '',
    kernel text not null default '',
    interval_ns bigint not null default 0,
    first_seen timestamptz not null default now(),
    last_seen timestamptz not null default now());

-- One row for each sandbox ever seen: history with validity. Never deleted while an event may name it.
create table sonde_store.pods (
    id int generated always as identity primary key,
    node_id int not null references sonde_store.nodes,
    sandbox text not null,
    uid text not null default '',
    namespace text not null,
    name text not null,
    workload_kind text not null default '',
    workload text not null default '',
    host_network boolean not null default false,
    netns_inode bigint not null default 0,
    netns_cookie numeric(20) not null default 0,
    ips inet[] not null default '{}',
    labels jsonb not null default '{}',
    valid_from timestamptz not null,
    valid_to timestamptz,
    unique (node_id, sandbox));
create index on sonde_store.pods (namespace, name);
create index on sonde_store.pods using gin (ips);
comment on column sonde_store.pods.sandbox is 'Unique on its node, also over time: a recreated pod has another';
comment on column sonde_store.pods.valid_to is 'Null while the pod is there';

-- Dictionary of the words of events: types, reasons, interfaces, symbols, process names.
create table sonde_store.strings (
    id int generated always as identity primary key,
    text text not null);
create unique index on sonde_store.strings (md5(text));
comment on index sonde_store.strings_md5_idx is 'Over the digest: a btree entry beyond 8 kB is refused';

create table sonde_store.stacks (
    id int generated always as identity primary key,
    digest bytea not null unique,
    frames text[] not null);
comment on column sonde_store.stacks.frames is 'Innermost first';

-- How far each collector's stream is in the tables; written in the transaction that holds the data.
create table sonde_store.cursors (
    node_id int not null references sonde_store.nodes,
    epoch uuid not null,
    sequence bigint not null check (sequence >= 0),
    updated timestamptz not null default now(),
    primary key (node_id, epoch));

-- What each probe has, from the catalogue of the newest collector that spoke of it.
create table sonde_store.probes (
    name text primary key,
    help text not null,
    definition jsonb not null,
    updated timestamptz not null default now());
comment on column sonde_store.probes.definition is
    '{"labels":[{name,help}],"columns":[{name,help,kind,unit,scale,bounds}],"event_types":[{name,help}]}';

create sequence sonde_store.event_id as bigint;

create table sonde_store.events (
    time timestamptz not null,
    id bigint not null default nextval('sonde_store.event_id'),
    node_id int not null,
    pod_id int,
    peer_pod_id int,
    probe int not null,
    type int not null,
    reason int,
    protocol int,
    saddr inet,
    sport int,
    daddr inet,
    dport int,
    direction smallint not null default 0,
    latency_ns bigint,
    cpu int,
    pid int,
    comm int,
    state int,
    interface int,
    suppressed bigint not null default 0,
    stack_id int,
    attributes jsonb)
    partition by range (time);
create index on sonde_store.events (time, id);
create index on sonde_store.events (pod_id, time, id);
create index on sonde_store.events (type, time, id);
comment on table sonde_store.events is 'Words (probe, type, reason, protocol, comm, state, interface) are ids of strings';
comment on column sonde_store.events.pod_id is 'Pod; 0 = the node itself; null = a network namespace of no known pod';
comment on column sonde_store.events.direction is '1 ingress, 2 egress, 3 forward, 0 not known';

create table sonde_store.gaps (
    from_time timestamptz not null,
    to_time timestamptz not null,
    node_id int not null,
    pod_id int,
    probe text not null,
    cause text not null,
    count bigint not null,
    detail text not null default '')
    partition by range (from_time);
create index on sonde_store.gaps (from_time);
comment on column sonde_store.gaps.pod_id is 'Pod; 0 = the whole node; null = a network namespace of no known pod';
