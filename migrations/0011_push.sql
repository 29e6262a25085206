-- How far events were sent to systems that are not Sonde, one row for each of them. Whoever sends holds an advisory lock.
create table sonde_store.push_cursors (
    target text primary key,
    event_id bigint not null,
    moved timestamptz not null default now()
);
