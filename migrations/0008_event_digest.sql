-- Events in short, made from them some seconds after they are stored: how many there were of which kind and of whom, and which
-- addresses and attributes they have. `through` moves in the transaction that adds what is up to that id, and ids ascend in the order of
-- commits: so what is here and the events above `through` are together all events, whatever was ended where and however
-- late an event came. Old databases catch up by themselves.
create table sonde_store.event_digest (
    only_row boolean primary key default true check (only_row),
    through bigint not null);
insert into sonde_store.event_digest (through) values (0);
comment on column sonde_store.event_digest.through is 'Events up to this id are in event_kinds_*, event_subjects_*, event_addresses and event_attributes';

-- In these, 0 stands for "has no such word", and pod -1 for a network namespace of no known pod.
create table sonde_store.event_kinds_1m (
    time timestamptz not null,
    probe int not null,
    type int not null,
    reason int not null,
    protocol int not null,
    direction smallint not null,
    n bigint not null,
    primary key (time, type, reason, protocol, direction, probe))
    partition by range (time);
create table sonde_store.event_kinds_10m (
    time timestamptz not null,
    probe int not null,
    type int not null,
    reason int not null,
    protocol int not null,
    direction smallint not null,
    n bigint not null,
    primary key (time, type, reason, protocol, direction, probe))
    partition by range (time);
comment on table sonde_store.event_kinds_1m is 'Events of each minute by what they were';
comment on table sonde_store.event_kinds_10m is 'Events of each ten minutes by what they were';

create table sonde_store.event_subjects_10m (
    time timestamptz not null,
    node_id int not null,
    pod_id int not null,
    probe int not null,
    type int not null,
    n bigint not null,
    primary key (pod_id, time, node_id, type, probe))
    partition by range (time);
create index on sonde_store.event_subjects_10m (time);
create table sonde_store.event_subjects_1h (
    time timestamptz not null,
    node_id int not null,
    pod_id int not null,
    probe int not null,
    type int not null,
    n bigint not null,
    primary key (pod_id, time, node_id, type, probe))
    partition by range (time);
comment on table sonde_store.event_subjects_10m is 'Events of each ten minutes by whom they happened to';
comment on table sonde_store.event_subjects_1h is 'Events of each hour by whom they happened to';

create table sonde_store.event_addresses (
    time timestamptz not null,
    address inet not null,
    primary key (address, time))
    partition by range (time);
comment on table sonde_store.event_addresses is 'Which addresses events of a UTC day have, at either end: networks are looked up here';

create table sonde_store.event_attributes (
    time timestamptz not null,
    text text not null,
    more smallint not null,
    primary key (text, more, time))
    partition by range (time);
comment on table sonde_store.event_attributes is
    'Which attributes events of a UTC day have, as "key value": whether a text can be in one is looked up here';
comment on column sonde_store.event_attributes.more is '0: this is all of it; 1: digits follow; 2: anything follows';

-- Latencies above a bound are few or many; where they are few, this finds them. Partitions that are there get it afterwards, as
-- they get the index for searches: see event_indexes.rs.
create index events_latency on only sonde_store.events (latency_ns) where latency_ns is not null;
