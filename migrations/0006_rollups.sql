-- Rollups of one minute and one hour, made from the readings of probes by one aggregator, the one that holds an advisory
-- lock. Their tables, r1m_<probe> and r1h_<probe>, are made from the catalogue.

create table sonde_store.rollup_progress (
    probe text primary key,
    hour timestamptz not null,
    node_id int not null default 0);
comment on table sonde_store.rollup_progress is 'How far the readings of each probe are rolled up; written with what was rolled up';
comment on column sonde_store.rollup_progress.hour is 'All before it is in the tables';
comment on column sonde_store.rollup_progress.node_id is 'Of that hour, all nodes up to this one are in the tables too';

-- Rows are only inserted by writers, so that none of them waits for another or for the one that rolls up.
create table sonde_store.rollup_late (
    id bigint generated always as identity primary key,
    probe text not null,
    hour timestamptz not null,
    node_id int not null);
create index on sonde_store.rollup_late (probe, node_id, hour);
comment on table sonde_store.rollup_late is
    'Hours for which readings were stored late, in the transaction that stored them: they are rolled up once more';

-- A row of r1m_<probe> holds an hour. Joined to this, it shows as minutes, and a condition on the time finds its hours.
create table sonde_store.rollup_minutes (
    time timestamptz primary key,
    hour timestamptz not null,
    minute smallint not null);
create index on sonde_store.rollup_minutes (hour);
comment on table sonde_store.rollup_minutes is 'The minutes for which there are rollups of one minute';
comment on column sonde_store.rollup_minutes.minute is '1 to 60: the place in the arrays of r1m_<probe>';
