-- Event 1 is summed up, event 2 is not yet.
do $$
declare
    day date := (now() at time zone 'utc')::date;
    name text;
begin
    foreach name in array '{event_kinds_1m,event_kinds_10m,event_subjects_10m,event_subjects_1h,event_addresses,event_attributes}'::text[] loop
        execute format('create table sonde_parts.%I (like sonde_store.%I including defaults)',
                       name || '_' || to_char(day, 'YYYYMMDD'), name);
        execute format('alter table sonde_store.%I attach partition sonde_parts.%I for values from (%L) to (%L)',
                       name, name || '_' || to_char(day, 'YYYYMMDD'), day || ' 00:00:00+00', day + 1 || ' 00:00:00+00');
    end loop;
end $$;
update sonde_store.event_digest set through = 1;
insert into sonde_store.event_kinds_1m (time, probe, type, reason, protocol, direction, n)
select date_trunc('minute', time, 'UTC'), probe, type, coalesce(reason, 0), coalesce(protocol, 0), direction, 1
from sonde_store.events where id = 1;
insert into sonde_store.event_addresses (time, address)
select date_trunc('day', time, 'UTC'), saddr from sonde_store.events where id = 1;
insert into sonde_store.event_attributes (time, text, more)
select date_trunc('day', time, 'UTC'), 'rule drop', 0 from sonde_store.events where id = 1;
