-- Events in short by six hours, for what has many values: a day of events of 5,000 pods to 20,000 addresses has 400,000 rows of an
-- hour each. What is there is summed up here and now, so that questions about old days have them too.
create table sonde_store.event_subjects_6h (
    time timestamptz not null,
    node_id int not null,
    pod_id int not null,
    probe int not null,
    type int not null,
    n bigint not null,
    primary key (pod_id, time, node_id, type, probe))
    partition by range (time);
comment on table sonde_store.event_subjects_6h is 'Events of each six hours, of UTC, by whom they happened to';

create table sonde_store.event_ends_6h (
    time timestamptz not null,
    type int not null,
    field smallint not null,
    address inet not null,
    n bigint not null,
    primary key (field, type, time, address))
    partition by range (time);
comment on table sonde_store.event_ends_6h is 'Events of each six hours, of UTC, by source (field 1) and destination (2)';
comment on column sonde_store.event_ends_6h.type is '0: all types together; there are no others here';

do $$
declare
    leaf record;
begin
    for leaf in
        select child.relname, parent.relname as of_table, pg_get_expr(child.relpartbound, child.oid) as bounds
        from pg_inherits i
        join pg_class child on child.oid = i.inhrelid
        join pg_class parent on parent.oid = i.inhparent
        where i.inhparent in ('sonde_store.event_subjects_1h'::regclass, 'sonde_store.event_ends_1h'::regclass)
    loop
        execute format('create table sonde_parts.%I partition of sonde_store.%I %s',
                       replace(leaf.relname, '_1h_', '_6h_'), replace(leaf.of_table, '_1h', '_6h'), leaf.bounds);
    end loop;
end $$;
insert into sonde_store.event_subjects_6h (time, node_id, pod_id, probe, type, n)
select to_timestamp(floor(extract(epoch from time) / 21600) * 21600), node_id, pod_id, probe, type, sum(n)
from sonde_store.event_subjects_1h group by 1, 2, 3, 4, 5 order by 3, 1;
insert into sonde_store.event_ends_6h (time, type, field, address, n)
select to_timestamp(floor(extract(epoch from time) / 21600) * 21600), 0, field, address, sum(n)
from sonde_store.event_ends_1h where type = 0 group by 1, 3, 4 order by 3, 1, 4;
